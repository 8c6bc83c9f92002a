//! What the programs of one machine share outside of HTTP: the layout of the home directory, the lock and the run file
//! of each daemon, log files, the way a config file is found and read, the settings that both daemons have, and how a
//! program ends. Never reads the environment, never starts a process, never opens a socket.

mod config_file;
mod descriptors;
mod error;
mod exit;
mod home;
mod lock;
mod nearest;
mod run_file;
mod secret_setting;

pub use config_file::{ConfigError, ConfigSearch, Loaded, load_toml, parse_toml};
pub use descriptors::raise_descriptor_limit;
pub use error::HomeError;
pub use exit::{ExitStatus, report_error};
pub use home::{Daemon, Home, ensure_private_directory};
pub use lock::LockGuard;
pub use run_file::RunFileGuard;
pub use secret_setting::SecretSetting;

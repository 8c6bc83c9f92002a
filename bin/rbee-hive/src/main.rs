//! The life of the process.

use std::io::{BufRead as _, IsTerminal as _, Read as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use rbee_hive::{Config, EndSignals, HeldHome, HiveError, Invocation};
use rbee_home::{ExitStatus, raise_descriptor_limit, report_error};
use secrets_management::forbid_core_dumps;
use zeroize::Zeroizing;

/// Longer than any pairing code.
const CODE_BYTES_MAX: usize = 1024;
/// How long threads for calls that block are kept without work: for good. Where the machine refuses a new one, tokio
/// panics unless there is another; after its own ten seconds a hive that rests has none.
const THREADS_KEPT: Duration = Duration::MAX;

fn main() -> ExitCode {
    let ended = match Config::from_process() {
        Ok(Invocation::Run(config)) => serve(*config),
        Ok(Invocation::Pair(config)) => match pair(&config) {
            Ok(told) => return print(&told),
            Err(error) => Err(error),
        },
        Ok(Invocation::PrintRoutes) => return print(&rbee_hive::route_listing()),
        Ok(Invocation::PrintOpenapi) => return print(&rbee_hive::openapi_document()),
        Ok(Invocation::ConfigIsValid) => return print("the configuration is valid\n"),
        Err(error) => Err(error),
    };
    let Err(error) = ended else { return ExitStatus::Success.into() };
    let report = report_error(&error, error.hint().as_deref());
    // With standard error gone, the exit code still tells.
    std::io::stderr().write_all(report.as_bytes()).ok();
    error.exit_status().into()
}

fn serve(config: Config) -> Result<(), HiveError> {
    rbee_hive::init_logs(&config)?;
    forbid_core_dumps().map_err(HiveError::Setup)?;
    raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_keep_alive(THREADS_KEPT)
        .build()
        .map_err(HiveError::Setup)?;
    let outcome = runtime.block_on(async {
        // Before the home is touched, since an unheard signal kills.
        let signals = EndSignals::install().map_err(HiveError::Setup)?;
        let held = HeldHome::take(&config)?;
        let config = rbee_hive::paired(config, &held)?;
        let token = rbee_hive::load_token(&config, &held)?;
        let listener = rbee_hive::listen(&config, &token).await?;
        rbee_hive::run(config, held, token, listener, signals).await
    });
    // What still reads a file must not hold up the end; whatever had to be written was waited for.
    runtime.shutdown_background();
    outcome
}

/// Pairs this machine. The code comes over standard input, where no other user sees it.
fn pair(config: &Config) -> Result<String, HiveError> {
    forbid_core_dumps().map_err(HiveError::Setup)?;
    let held = HeldHome::take(config)?;
    let input = std::io::stdin();
    if input.is_terminal() {
        std::io::stderr().write_all(b"pairing code: ").ok();
    }
    let mut code = Zeroizing::new(String::with_capacity(CODE_BYTES_MAX));
    let mut line = input.lock().take(CODE_BYTES_MAX as u64);
    line.read_line(&mut code).map_err(HiveError::Setup)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(HiveError::Setup)?;
    runtime.block_on(rbee_hive::pair(config, &held, &code))
}

fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitStatus::Success.into(),
        Err(_) => ExitStatus::Failure.into(),
    }
}

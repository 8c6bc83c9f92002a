//! Where values come from, which are refused, and what workers are told of them.

use std::path::Path;

use super::*;

fn resolve(arguments: &[&str], file: &str) -> Result<Config, HiveError> {
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join(".config/rbee");
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("rbee-hive.toml"), file).unwrap();
    let arguments = ["rbee-hive"].iter().chain(arguments);
    Config::resolve(Args::parse_from(arguments), Some(home.path()))
}

#[test]
fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
    let file =
        "bind = '127.0.0.1:1'\nname = 'from-file'\n[worker]\nslots = 2\n[log]\nformat = 'json'\n";
    let config = resolve(&["--name", "from-flag", "--worker-engine", "echo"], file).unwrap();
    assert_eq!(config.name.as_str(), "from-flag");
    assert_eq!(config.bind.port(), 1);
    assert_eq!((config.worker.slots, config.worker.context_tokens), (2, 4096));
    assert_eq!((config.worker.engine, config.log.format), (Backend::Echo, LogFormat::Json));
    assert!(config.home.ends_with(".rbee"));
    let config = resolve(&[], "").unwrap();
    assert_eq!(
        (config.name.as_str(), config.bind.to_string().as_str()),
        ("local", "127.0.0.1:9200")
    );
}

#[test]
fn workers_are_told_how_to_treat_their_context_memory() {
    let arguments = |file| {
        resolve(&[], file).unwrap().memory_arguments_of_workers(Path::new("/home/u/.rbee/cache"))
    };
    assert_eq!(arguments(""), ["--speculation=auto"]);
    let file = "[worker]\ncache_ram_mib = 0\ncache_shared = true\nkv_layout = 'unified'\nspeculation = 'off'\n";
    let expected = ["--speculation=off", "--cache-shared", "--kv-layout=unified"];
    assert_eq!(arguments(file), expected);
    let kept = arguments("[worker]\ncache_disk_mib = 20").split_off(1);
    assert_eq!(kept, ["--cache-disk=20", "--cache-dir", "/home/u/.rbee/cache"]);
}

#[test]
fn every_value_out_of_range_is_refused_by_name() {
    for (file, key) in [
        ("workers_max = 0", "workers_max"),
        ("workers_max = 65", "workers_max"),
        ("idle_stop_seconds = 604801", "idle_stop_seconds"),
        ("load_timeout_seconds = 0", "load_timeout_seconds"),
        ("heartbeat_interval_seconds = 0", "heartbeat_interval_seconds"),
        ("stop_grace_seconds = 14", "stop_grace_seconds"),
        ("import_roots = ['models']", "import_roots"),
        ("queen_url = 'https://queen'", "queen_url"),
        ("queen_url = 'http://queen/path'", "queen_url"),
        ("[worker]\nslots = 0", "worker.slots"),
        ("[worker]\nthreads = 0", "worker.threads"),
        ("[worker]\ncontext_tokens = 63", "worker.context_tokens"),
        ("[worker]\ncache_ram_mib = 1048577", "worker.cache_ram_mib"),
        ("[worker]\ncache_disk_mib = 16777217", "worker.cache_disk_mib"),
    ] {
        let error = resolve(&[], file).unwrap_err();
        let HiveError::Config(error @ ConfigError::Value { .. }) = error else {
            panic!("{file}: {error}");
        };
        assert!(error.to_string().contains(key), "{file}: {error}");
    }
}

#[test]
fn what_the_command_line_alone_decides_cannot_stand_in_the_file() {
    for key in ["home", "managed", "worker_environment"] {
        let error = resolve(&[], &format!("{key} = true")).unwrap_err();
        assert!(matches!(error, HiveError::Config(ConfigError::Content { .. })), "{key}");
    }
}

#[test]
fn only_a_loopback_hive_imports_from_everywhere_by_default() {
    assert_eq!(resolve(&[], "").unwrap().import_roots(), [PathBuf::from("/")]);
    assert!(resolve(&["--bind", "0.0.0.0:9200"], "").unwrap().import_roots().is_empty());
    let roots =
        resolve(&["--bind", "0.0.0.0:9200"], "import_roots = ['/srv']").unwrap().import_roots();
    assert_eq!(roots, [PathBuf::from("/srv")]);
}

//! Where values come from, which are refused, and what workers are told of them.

use std::path::Path;

use rbee_api::worker::Backend;

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
fn workers_are_told_how_to_treat_devices_and_memory() {
    let arguments =
        |file| resolve(&[], file).unwrap().worker.arguments(Path::new("/home/u/.rbee/cache"));
    let defaults = [
        "--speculation=auto",
        "--gpu-layers=auto",
        "--cache-type-k=f16",
        "--cache-type-v=f16",
        "--flash-attention=auto",
    ];
    assert_eq!(arguments(""), defaults);
    let file = "[worker]\ncache_shared = true\nkv_layout = 'unified'\nspeculation = 'off'\ngpu_layers = 20\n\
        device = ['Vulkan0', 'Vulkan1']\ncache_type_k = 'q8_0'\ncache_type_v = 'iq4_nl'\n\
        flash_attention = 'on'\nmmap = false\nmlock = true\ncache_disk_mib = 20\n";
    let expected = [
        "--speculation=off",
        "--gpu-layers=20",
        "--cache-type-k=q8_0",
        "--cache-type-v=iq4_nl",
        "--flash-attention=on",
        "--device=Vulkan0,Vulkan1",
        "--mmap=off",
        "--mlock",
        "--cache-shared",
        "--kv-layout=unified",
        "--cache-disk=20",
        "--cache-dir",
        "/home/u/.rbee/cache",
    ];
    assert_eq!(arguments(file), expected);
    let has = |file, argument: &str| arguments(file).iter().any(|given| given == argument);
    assert!(has("[worker]\ngpu_layers = 'all'", "--gpu-layers=all"));
    assert!(has("[worker]\ndevice = []", "--device=none"));
}

#[test]
fn a_form_that_is_unknown_is_refused() {
    for file in [
        "[worker]\ngpu_layers = 'most'",
        "[worker]\ngpu_layers = -1",
        "[worker]\ngpu_layers = 65536",
        "[worker]\ncache_type_k = 'q6_k'",
        "[worker]\nflash_attention = true",
        "[worker]\nmmap = 'on'",
    ] {
        let error = resolve(&[], file).unwrap_err();
        assert!(matches!(error, HiveError::Config(ConfigError::Content { .. })), "{file}: {error}");
    }
}

#[test]
fn the_example_file_is_good_and_is_the_one_in_the_documents() {
    let example = include_str!("../../../../docs/config/rbee-hive.toml");
    assert!(resolve(&[], example).is_ok());
    assert!(include_str!("../../../../docs/CONFIG.md").contains(example));
    let defaults = resolve(&[], "").unwrap();
    let config = resolve(&[], example).unwrap();
    assert_eq!(format!("{:?}", config.worker), format!("{:?}", defaults.worker));
    assert_eq!(format!("{:?}", config.restart), format!("{:?}", defaults.restart));
    assert_eq!(format!("{:?}", config.liveness()), format!("{:?}", defaults.liveness()));
}

#[test]
fn every_value_out_of_range_is_refused_by_name() {
    for (file, key) in [
        ("workers_max = 0", "workers_max"),
        ("workers_max = 65", "workers_max"),
        ("idle_stop_seconds = 604801", "idle_stop_seconds"),
        ("load_timeout_seconds = 0", "load_timeout_seconds"),
        ("load_stall_seconds = 0", "load_stall_seconds"),
        ("hang_timeout_seconds = 86401", "hang_timeout_seconds"),
        ("[restart]\ndelay_ms = 0", "restart.delay_ms"),
        ("[restart]\nfailures_max = 0", "restart.failures_max"),
        ("[restart]\nprobe_delays_ms = []", "restart.probe_delays_ms"),
        ("[restart]\nprobe_delays_ms = [0]", "restart.probe_delays_ms"),
        ("heartbeat_interval_seconds = 0", "heartbeat_interval_seconds"),
        ("stop_grace_seconds = 14", "stop_grace_seconds"),
        ("[log]\nmax_mib = 0", "log.max_mib"),
        ("[log]\nmax_mib = 10241", "log.max_mib"),
        ("import_roots = ['models']", "import_roots"),
        ("queen_url = 'ftp://queen'", "queen_url"),
        ("queen_url = 'http://queen/path'", "queen_url"),
        ("[worker]\nslots = 0", "worker.slots"),
        ("[worker]\nthreads = 0", "worker.threads"),
        ("[worker]\ncontext_tokens = 63", "worker.context_tokens"),
        ("[worker]\ncache_ram_mib = 1048577", "worker.cache_ram_mib"),
        ("[worker]\ncache_type_v = 'q8_0'\nflash_attention = 'off'", "worker.cache_type_v"),
        ("[worker]\ndevice = ['none']", "worker.device"),
        ("[worker]\ndevice = ['Vulkan0', 'Vulkan0']", "worker.device"),
        ("[worker]\ndevice = ['a,b']", "worker.device"),
        ("[worker]\ndevice = []\ngpu_layers = 4", "worker.gpu_layers"),
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

#[test]
fn a_worker_gives_up_on_a_step_somewhat_sooner_than_it_is_killed() {
    for (hang_timeout_seconds, stall_seconds) in
        [(330, 300), (1, 1), (2, 1), (3600, 3272), (86_400, 78_545)]
    {
        let config = Config { hang_timeout_seconds, ..Config::default() };
        assert_eq!(config.stall_seconds(), stall_seconds, "{hang_timeout_seconds}");
    }
}

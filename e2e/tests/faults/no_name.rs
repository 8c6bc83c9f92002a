//! A queen whose name means nothing to the resolver: her hive starts and works alone, says
//! so, and finds her once the name means something.

use std::fs;
use std::path::Path;

use e2e::{free_address, wait_until};

use crate::agreement::assert_agreement;
use crate::figures::processor_time;
use crate::nemesis::pass;
use crate::site::{HIVE, LIMIT, QUEEN, Site, pid_of};
use crate::volume;

const NAME: &str = "queen.rbee.test";
/// What a resolver reads.
const FILES: [&str; 3] = ["hosts", "nsswitch.conf", "resolv.conf"];

/// Returns the words before a command that run it where the resolver reads the files of `folder`.
fn resolver_of(folder: &Path) -> Vec<String> {
    fs::create_dir(folder).expect("a folder");
    fs::write(folder.join("hosts"), "127.0.0.1 localhost\n").expect("a file");
    fs::write(folder.join("nsswitch.conf"), "hosts: files\n").expect("a file");
    fs::write(folder.join("resolv.conf"), "").expect("a file");
    let there = FILES.iter().filter(|file| Path::new("/etc").join(file).exists());
    let binds: String =
        there.map(|file| format!("mount --bind \"$0/{file}\" /etc/{file} && ")).collect();
    let script = format!("mount --make-rprivate / && {binds}exec \"$@\"");
    let folder = folder.to_str().expect("UTF-8").to_owned();
    ["unshare", "--mount", "/bin/sh", "-c", &script, &folder].map(str::to_owned).to_vec()
}

#[test]
fn a_queen_whose_name_is_unknown_is_found_once_it_is_known() {
    let row = "a name that does not resolve";
    if !volume::is_root(row) {
        return;
    }
    let address = free_address();
    let (_, port) = address.split_once(':').expect("a port");
    let hive = format!("queen_url = \"http://{NAME}:{port}\"\n{HIVE}");
    let queen = format!("allowed_hosts = [\"{NAME}\", \"localhost\", \"127.0.0.1\"]\n{QUEEN}");
    let site = Site::with(&hive, &queen).env("RBEE_QUEEN_BIND", &address);
    let folder = site.cluster.home().with_file_name("resolver");
    let mut hive = site.launch("rbee-hive", &resolver_of(&folder));
    wait_until("the hive serves", LIMIT, || site.serves("hive", hive.pid()));
    site.import("tiny", 1);
    let worker = site.ready_worker("tiny");
    wait_until("it says so", LIMIT, || site.log("rbee-hive").contains("queen not reached"));
    let taken = processor_time(hive.pid());
    let long = std::time::Duration::from_secs(volume::of(2, 30));
    pass(long);
    let busy = processor_time(hive.pid()).saturating_sub(taken);
    assert!(busy < long / 10, "it does not spin: {busy:?} of {long:?}");
    let _queen = site.queen();
    assert!(!site.log("rbee-hive").contains("queen reached"));
    fs::write(folder.join("hosts"), format!("127.0.0.1 localhost {NAME}\n")).expect("a file");
    wait_until("it finds her", LIMIT, || site.log("rbee-hive").contains("queen reached"));
    assert_eq!(site.cluster.rbee(&["infer", "-m", "tiny", "-p", "one"]).ok().trim(), "one");
    assert_eq!(site.listed().expect("a list")[0]["pid"], pid_of(&worker), "the same worker");
    assert!(hive.ended().is_none());
    assert_agreement(&site, row);
}

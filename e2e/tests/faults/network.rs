//! Machines of their own: network namespaces around a router that drops packets on
//! request, silently, as a broken network does. Everything ends with the test.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// Which way packets are lost, seen from the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loss {
    Both,
    /// What others send to it.
    Inward,
    /// What it sends to others.
    Outward,
}

/// One network namespace, held by a shell.
#[derive(Debug)]
pub(crate) struct NetRoom {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl NetRoom {
    /// Makes a namespace; needs root.
    #[expect(clippy::disallowed_methods, reason = "tests start the injector")]
    fn new() -> Self {
        let mut child = Command::new("unshare")
            .args(["--net", "/bin/sh"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare; scripts/system-packages installs it");
        let input = child.stdin.take().expect("a pipe");
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut room = Self { child, input, output };
        room.run("ip link set lo up");
        room
    }

    /// Runs a command in the namespace.
    fn run(&mut self, command: &str) {
        writeln!(self.input, "{command} 2>&1; echo \"=$?\"").expect("a shell that listens");
        let mut said = String::new();
        while !said.ends_with("=0\n") {
            let read = self.output.read_line(&mut said).expect("a shell that answers");
            let failed = said.lines().last().is_some_and(|l| l.starts_with('=') && l != "=0");
            assert!(read > 0 && !failed, "{command}: {said}");
        }
    }

    /// Returns the words before a command that run it in here.
    pub(crate) fn wrapper(&self) -> Vec<String> {
        vec!["nsenter".to_owned(), format!("--net=/proc/{}/ns/net", self.child.id())]
    }
}

impl Drop for NetRoom {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Machines, each linked to one router.
#[derive(Debug)]
pub(crate) struct Network {
    router: NetRoom,
    pub(crate) machines: Vec<NetRoom>,
}

impl Network {
    /// Makes a router with so many machines.
    pub(crate) fn of(count: usize) -> Self {
        let mut router = NetRoom::new();
        router.run("echo 1 >/proc/sys/net/ipv4/ip_forward");
        let machines = (0..count).map(|at| linked(&mut router, at)).collect();
        Self { router, machines }
    }

    /// Returns the address of a machine.
    pub(crate) fn address(at: usize) -> String {
        format!("10.77.{at}.2")
    }

    /// Loses the packets between one machine and all others from now on.
    pub(crate) fn cut(&mut self, at: usize, loss: Loss) {
        let address = Self::address(at);
        if loss != Loss::Outward {
            self.router.run(&format!("ip route replace blackhole {address}/32"));
        }
        if loss != Loss::Inward {
            self.router.run(&format!("ip rule add from {address} blackhole"));
        }
    }

    /// Loses nothing any more.
    pub(crate) fn heal(&mut self, at: usize, loss: Loss) {
        let address = Self::address(at);
        if loss != Loss::Outward {
            self.router.run(&format!("ip route del blackhole {address}/32"));
        }
        if loss != Loss::Inward {
            self.router.run(&format!("ip rule del from {address} blackhole"));
        }
    }
}

fn linked(router: &mut NetRoom, at: usize) -> NetRoom {
    let mut machine = NetRoom::new();
    let pid = machine.child.id();
    router.run(&format!("ip link add v{at} type veth peer name eth0 netns {pid}"));
    router.run(&format!("ip addr add 10.77.{at}.1/24 dev v{at}"));
    router.run(&format!("ip link set v{at} up"));
    machine.run(&format!("ip addr add {}/24 dev eth0", Network::address(at)));
    machine.run("ip link set eth0 up");
    machine.run(&format!("ip route add default via 10.77.{at}.1"));
    machine
}

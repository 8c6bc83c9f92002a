//! The numbers of dead workers given to innocent processes: a hive that takes over
//! signals none of them, whatever its ledger says beside the number.

use e2e::{holds_within, wait_until};

use crate::ledger;
use crate::pid_room::PidRoom;
use crate::site::{HIVE, LIMIT, QUEEN, Site, pid_of};
use crate::volume;

const ROW: &str = "forced reuse of pids";

/// What one round came to.
struct Round {
    reused: usize,
    signalled: Vec<String>,
}

struct Stage {
    // Ends before the site looks whether anything is left.
    room: PidRoom,
    site: Site,
    models: u8,
}

impl Stage {
    fn new(models: u8) -> Self {
        // With little time between its steps a hive comes to SIGKILL soon.
        let hive = HIVE.replace("stop_grace_seconds = 2", "stop_grace_seconds = 1");
        let mut stage = Self { room: PidRoom::new(), site: Site::with(&hive, QUEEN), models };
        let hive = stage.hive();
        for model in 0..models {
            stage.site.import(&format!("m{model}"), model);
        }
        stage.room.kill(&[hive]);
        stage
    }

    fn hive(&mut self) -> u32 {
        let log = self.site.cluster.home().parent().expect("a parent").join("rbee-hive.log");
        let pid = self.room.start(&self.site.cluster.command("rbee-hive", &[]), &log);
        wait_until("the hive serves", LIMIT, || self.site.serves("hive", pid));
        pid
    }

    /// Kills a hive and its workers, gives their numbers away, and has a hive take over
    /// and end.
    fn round(&mut self) -> Round {
        let hive = self.hive();
        let ready = (0..self.models).map(|model| self.site.ready_worker(&format!("m{model}")));
        let workers: Vec<u32> = ready.map(|worker| pid_of(&worker)).collect();
        self.room.kill(&[hive]);
        self.room.kill(&workers);
        let innocents = self.room.innocents(&workers);
        self.forge(&innocents);
        let hive = self.hive();
        let home = self.site.cluster.home();
        // With the protection out the rows stay; what matters then is what follows.
        holds_within(std::time::Duration::from_secs(2), || ledger::rows(&home).is_empty());
        self.room.run(&format!("kill -TERM {hive}; wait {hive}"));
        let signalled = self.room.signalled(&innocents);
        self.room.kill(&innocents);
        Round { reused: innocents.len(), signalled }
    }

    /// Makes half of the rows agree in the start time too, as a clock of 100 Hz does by
    /// itself when a number is used again at once; and has half of them being stopped.
    fn forge(&mut self, innocents: &[u32]) {
        let connection = ledger::open(&self.site.cluster.home());
        for (at, pid) in innocents.iter().enumerate() {
            if at % 2 == 0 {
                let ticks = self.room.start_ticks(*pid);
                let sql = "UPDATE worker SET start_ticks = ?1 WHERE pid = ?2";
                assert_eq!(connection.execute(sql, (ticks, pid)).expect("an update"), 1);
            }
            if at % 4 < 2 {
                let sql = "UPDATE worker SET is_stopping = 1 WHERE pid = ?1";
                assert_eq!(connection.execute(sql, [pid]).expect("an update"), 1);
            }
        }
    }
}

#[test]
fn a_process_that_got_the_number_of_a_dead_worker_is_never_signalled() {
    if !volume::is_root(ROW) {
        return;
    }
    let mut stage = Stage::new(volume::of(8, 50));
    let wanted = volume::of(16, 1_000);
    let mut reused = 0;
    while reused < wanted {
        let round = stage.round();
        assert!(round.signalled.is_empty(), "signalled: {:?}", round.signalled);
        assert!(round.reused > 0, "no number could be used again");
        reused += round.reused;
    }
    volume::figure(ROW, format!("0 of {reused} innocents signalled"));
}

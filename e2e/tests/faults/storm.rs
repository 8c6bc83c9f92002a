//! Many clients that leave at any moment: afterwards nothing is counted as under way, and
//! nothing is held that was not held before.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use e2e::holds_within;

use crate::figures::Holds;
use crate::requests::{Ending, Manner, ask, metric, under_way};
use crate::site::{LIMIT, Site};
use crate::volume;

const CLIENTS: usize = 32;
/// Connections that are kept for the next request are held too.
const DESCRIPTORS_MORE_MAX: usize = 2 * CLIENTS;

#[test]
fn after_a_storm_of_clients_that_left_all_counters_are_zero() {
    let site = Site::new();
    let queen = site.queen();
    site.cluster.import_tiny("tiny");
    assert_eq!(site.cluster.rbee(&["infer", "-m", "tiny", "-p", "one"]).ok().trim(), "one");
    let hive = site.living("rbee-hive")[0].pid;
    let counted =
        |site: &Site| metric(&site.to_queen().get("/metrics").body, "rbee_queen_requests_total");
    let (before, holds) = (counted(&site), [queen.pid(), hive].map(Holds::of));
    let (answered, left) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (site, answered, left) = (&site, &answered, &left);
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(client as u64);
                for _ in 0..volume::of(12, 200) {
                    let manner = Manner::Leave(random.usize(0..12));
                    let ending = ask(site, "tiny", manner, 20, Duration::from_millis(3));
                    assert!(!matches!(ending, Ending::Broken(_)), "{ending:?}");
                    answered.fetch_add(1, Ordering::Relaxed);
                    left.fetch_add(usize::from(ending == Ending::Left), Ordering::Relaxed);
                }
            });
        }
    });
    let mut last = None;
    let calm = holds_within(LIMIT, || {
        last = under_way(&site);
        last.is_none()
    });
    assert!(calm, "{last:?}");
    let (answered, left) = (answered.into_inner(), left.into_inner());
    volume::figure("storm", format!("{answered} requests, {left} left early, 0 under way"));
    assert!(left * 2 > answered, "most leave: {left} of {answered}");
    let ended = counted(&site) - before;
    assert!((ended - answered as f64).abs() < 0.5, "{ended} ends of {answered} requests");
    for (pid, before) in [queen.pid(), hive].into_iter().zip(holds) {
        let before = before.expect("a daemon");
        let shed = holds_within(LIMIT, || {
            let now = Holds::of(pid).expect("a daemon");
            now.descriptors <= before.descriptors + DESCRIPTORS_MORE_MAX
                && now.threads <= before.threads + 8
        });
        assert!(shed, "{before:?}, now {:?}", Holds::of(pid));
    }
}

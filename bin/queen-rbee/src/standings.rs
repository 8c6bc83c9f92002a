//! Tells the log when a machine falls silent, is lost, or is back: whoever looks for what happened at night finds it there.
//! Looks only, and changes nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use input_validation::NodeName;
use rbee_api::hive::HiveState;
use tokio::time::sleep;

use crate::registry::Registry;

/// How often is looked. What comes and goes in between is not worth a line.
const LOOK: Duration = Duration::from_secs(1);

/// The states that were told last.
#[derive(Debug, Default)]
struct Told(BTreeMap<NodeName, HiveState>);

/// Tells of changes until dropped.
pub(crate) async fn tell_changes(registry: Arc<Registry>) {
    let mut told = Told::default();
    loop {
        let view = registry.view();
        let machines = view.hives.iter().map(|hive| (hive.name.clone(), hive.state())).collect();
        for (machine, was, state) in told.replaced_by(machines) {
            match state {
                HiveState::Suspect | HiveState::Stale | HiveState::Unreachable => {
                    tracing::warn!(hive = %machine, state = state.as_str(), was = was.as_str(), "machine is not well");
                }
                HiveState::Online | HiveState::Draining => {
                    tracing::info!(hive = %machine, state = state.as_str(), was = was.as_str(), "machine's state changed");
                }
            }
        }
        sleep(LOOK).await;
    }
}

impl Told {
    /// Takes the states of this moment, and returns those that are others than before, with what they were. Of a machine
    /// that was not there before nothing is told until something becomes of it.
    fn replaced_by(
        &mut self,
        machines: BTreeMap<NodeName, HiveState>,
    ) -> Vec<(NodeName, HiveState, HiveState)> {
        let changes = machines.iter().filter_map(|(name, state)| {
            let was = self.0.get(name).filter(|was| *was != state)?;
            Some((name.clone(), *was, *state))
        });
        let changes = changes.collect();
        self.0 = machines;
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_is_told_once_and_what_comes_or_goes_is_not() {
        let name = |name: &str| name.parse::<NodeName>().unwrap();
        let states = |all: &[(&str, HiveState)]| {
            all.iter().map(|(machine, state)| (name(machine), *state)).collect()
        };
        let mut told = Told::default();
        for (machines, changes) in [
            (vec![("a", HiveState::Suspect)], vec![]),
            (
                vec![("a", HiveState::Online), ("b", HiveState::Online)],
                vec![(name("a"), HiveState::Suspect, HiveState::Online)],
            ),
            (vec![("a", HiveState::Online), ("b", HiveState::Online)], vec![]),
            (vec![("b", HiveState::Stale)], vec![(name("b"), HiveState::Online, HiveState::Stale)]),
            (vec![("a", HiveState::Unreachable), ("b", HiveState::Stale)], vec![]),
        ] {
            assert_eq!(told.replaced_by(states(&machines)), changes, "{machines:?}");
        }
    }
}

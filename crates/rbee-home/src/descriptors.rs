//! How many files and connections a daemon may have open. Owns the limit of the process; opens nothing.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that a daemon wants: each connection takes one, a forwarded request two.
const WANTED: u64 = 65_536;

/// Raises this process's own limit on open files as far as the system allows, up to [`WANTED`]. Many systems start
/// programs with 1024, which a thousand idle clients would use up. Without the right to it, all stays as it was.
pub fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let reachable = limit.maximum.map_or(WANTED, |maximum| maximum.min(WANTED));
    if limit.current.is_some_and(|current| current < reachable) {
        // A daemon with fewer connections is better than none.
        setrlimit(Resource::Nofile, Rlimit { current: Some(reachable), ..limit }).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn afterwards_the_limit_is_what_the_system_allows() {
        raise_descriptor_limit();
        let limit = getrlimit(Resource::Nofile);
        let reachable = limit.maximum.map_or(WANTED, |maximum| maximum.min(WANTED));
        assert!(limit.current.is_none_or(|current| current >= reachable), "{limit:?}");
    }
}

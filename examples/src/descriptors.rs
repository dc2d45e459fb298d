//! How many files a process may have open, and what that is enough for.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Takes what the system allows, and gives how many connections a node may have with that.
///
/// # Errors
/// Where it is not enough for a node that has none.
pub(crate) fn for_connections() -> anyhow::Result<usize> {
    let descriptors = raise();
    anyhow::ensure!(
        descriptors >= LEAST,
        "it may have {descriptors} files open, and needs {LEAST} before the first connection: raise its limit (LimitNOFILE of systemd, ulimit -n)"
    );
    let connections = within(descriptors);
    if connections < FEW {
        tracing::warn!(
            descriptors,
            connections,
            "this process may have few files open, and takes no more connections than that allows, a pod a quarter of them: raise its limit (LimitNOFILE of systemd, ulimit -n)"
        );
    }
    Ok(connections)
}

/// Takes what the system allows; gives what the process may have now.
pub(crate) fn raise() -> usize {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
    let present = getrlimit(Resource::Nofile).current;
    present.map_or(usize::MAX, |most| most.try_into().unwrap_or(usize::MAX))
}

/// Two for each connection, and some are left for everything else.
fn within(descriptors: usize) -> usize {
    (descriptors - 1024.min(descriptors / 2)) / 2
}

/// A node with two pods has some sixty open while it has nothing to do, and more for a moment as it enters a pod's namespace or gives a page.
const LEAST: usize = 128;
/// Of all pods together: with as many a busy node is short of them.
const FEW: usize = 4_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_for_connections_is_for_everything_else() {
        assert_eq!([LEAST, 1024, 4096, 1 << 20].map(within), [32, 256, 1536, (1 << 19) - 512]);
    }
}

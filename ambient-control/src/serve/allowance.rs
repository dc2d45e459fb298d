//! How much each node may have signed, and how often it may report. What is signed is listed until it ends: whoever has stolen a node
//! is not to fill the disk of the authority with it, nor to keep it from others.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// What each node has had of late.
#[derive(Debug)]
pub(super) struct Allowance {
    at_once: u32,
    /// When all that a node has had is back.
    nodes: Mutex<HashMap<Box<str>, Instant>>,
}

impl Allowance {
    /// So many for each node.
    pub(super) fn of(at_once: u32) -> Self {
        Self {
            at_once,
            nodes: Mutex::default(),
        }
    }

    /// Takes one of a node's. Each comes back after [`EACH`], one after the other.
    ///
    /// # Errors
    /// How long until there is one, where it has had all.
    pub(super) fn take(&self, node: &str, now: Instant) -> Result<(), Duration> {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        let back = nodes.get(node).copied().map_or(now, |back| back.max(now));
        let next = back + EACH;
        if let over @ 1.. = (next - now).saturating_sub(EACH * self.at_once).as_nanos() {
            return Err(Duration::from_nanos(u64::try_from(over).unwrap_or(u64::MAX)));
        }
        if nodes.len() >= NODES {
            nodes.retain(|_, back| *back > now);
        }
        nodes.insert(node.into(), next);
        Ok(())
    }
}

/// For a thousand pods, certificates may live as short as two minutes.
const EACH: Duration = Duration::from_millis(50);
/// Nodes that are remembered without a look at whether that is needed.
const NODES: usize = 4_096;

#[cfg(test)]
mod tests {
    use super::{super::limits::Limits, *};

    fn allowance() -> (Allowance, u32) {
        let at_once = Limits::default().signed_at_once;
        (Allowance::of(at_once), at_once)
    }

    #[test]
    fn a_node_has_what_all_its_pods_need_and_then_little_by_little_and_others_are_not_concerned() {
        let ((allowance, at_once), start) = (allowance(), Instant::now());
        for n in 0..at_once {
            assert_eq!(allowance.take("node-1", start), Ok(()), "{n}");
        }
        assert_eq!(allowance.take("node-1", start), Err(EACH));
        assert_eq!(allowance.take("node-2", start), Ok(()));
        assert_eq!(allowance.take("node-1", start + EACH), Ok(()));
        assert_eq!(allowance.take("node-1", start + EACH), Err(EACH));
        // After a while it has all of it again, and no more.
        let later = start + EACH * (at_once + 1);
        let had = (0..2 * at_once).filter(|_| allowance.take("node-1", later).is_ok()).count();
        assert_eq!(had, at_once as usize);
    }

    #[test]
    fn who_has_all_of_it_is_not_remembered_for_ever() {
        let ((allowance, _), start) = (allowance(), Instant::now());
        for n in 0..3 * NODES {
            let now = start + EACH * u32::try_from(n).unwrap();
            assert_eq!(allowance.take(&format!("node-{n}"), now), Ok(()));
            assert!(allowance.nodes.lock().unwrap().len() <= NODES);
        }
    }
}

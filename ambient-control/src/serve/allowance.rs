//! How much each node may have signed. What is signed is listed until it ends: whoever has stolen a node is not to fill the disk
//! of the authority with it, nor to keep it from others.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// What each node has had of late.
#[derive(Debug, Default)]
pub(super) struct Allowance(Mutex<HashMap<Box<str>, Instant>>);

impl Allowance {
    /// Takes one of a node's. Each comes back after [`EACH`], one after the other.
    ///
    /// # Errors
    /// How long until there is one, where it has had [`AT_ONCE`].
    pub(super) fn take(&self, node: &str, now: Instant) -> Result<(), Duration> {
        let mut nodes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // When all that it has had is back.
        let back = nodes.get(node).copied().map_or(now, |back| back.max(now));
        let next = back + EACH;
        if let over @ 1.. = (next - now).saturating_sub(EACH * AT_ONCE).as_nanos() {
            return Err(Duration::from_nanos(u64::try_from(over).unwrap_or(u64::MAX)));
        }
        if nodes.len() >= NODES {
            nodes.retain(|_, back| *back > now);
        }
        nodes.insert(node.into(), next);
        Ok(())
    }
}

/// More than any node has pods, so that all of them may need a certificate in the same moment.
pub(super) const AT_ONCE: u32 = if cfg!(test) { 100 } else { 1_000 };
/// For a thousand pods, certificates may live as short as two minutes.
const EACH: Duration = Duration::from_millis(50);
/// Nodes that are remembered without a look at whether that is needed.
const NODES: usize = 4_096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_what_all_its_pods_need_and_then_little_by_little_and_others_are_not_concerned() {
        let (allowance, start) = (Allowance::default(), Instant::now());
        for n in 0..AT_ONCE {
            assert_eq!(allowance.take("node-1", start), Ok(()), "{n}");
        }
        assert_eq!(allowance.take("node-1", start), Err(EACH));
        assert_eq!(allowance.take("node-2", start), Ok(()));
        assert_eq!(allowance.take("node-1", start + EACH), Ok(()));
        assert_eq!(allowance.take("node-1", start + EACH), Err(EACH));
        // After a while it has all of it again, and no more.
        let later = start + EACH * (AT_ONCE + 1);
        let had = (0..2 * AT_ONCE).filter(|_| allowance.take("node-1", later).is_ok()).count();
        assert_eq!(had, AT_ONCE as usize);
    }

    #[test]
    fn who_has_all_of_it_is_not_remembered_for_ever() {
        let (allowance, start) = (Allowance::default(), Instant::now());
        for n in 0..3 * NODES {
            let now = start + EACH * u32::try_from(n).unwrap();
            assert_eq!(allowance.take(&format!("node-{n}"), now), Ok(()));
            assert!(allowance.0.lock().unwrap().len() <= NODES);
        }
    }
}

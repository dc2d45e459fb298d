//! Ports of connections that the proxy makes to a pod's application from a client's own address.
//!
//! To the kernel's connection tracking such a connection is one from the client to the application, as is a connection that the
//! client itself has made, and that is redirected to the proxy: with the same port they were the same one, and the packets of
//! each would go the way of the other. A client's kernel gives a connection a port of its range, by default one of 32768 to 60999,
//! and of these one of the parity of the first, and so an even one, as long as half of them are free. Taken here are those above
//! that range, which no client is given; and while they are short, as a client that makes connections by the thousand has them,
//! the odd ones too: a client that has so many itself, or chooses a port on purpose, is met by chance alone.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher as _, Hasher as _},
    sync::atomic::{AtomicU32, Ordering},
};

/// Above those that Linux gives by default.
const ABOVE: u32 = 61_000;
const HIGHEST: u32 = 65_535;
/// The first odd one of those that it gives.
const FIRST: u32 = 32_769;

const HIGH: u32 = HIGHEST - ABOVE + 1;
const ODD: u32 = (ABOVE - FIRST).div_ceil(2);

/// So many are taken from all after one above was not to be had: whether there are some again is seldom asked.
const SHORT: u32 = 1_000;

/// One after the other, from a random one on: each comes again only when all have been.
#[derive(Debug)]
pub(super) struct SourcePorts {
    above: AtomicU32,
    all: AtomicU32,
    /// How many are taken from all yet.
    short: AtomicU32,
}

impl SourcePorts {
    pub(super) fn new() -> Self {
        let random = RandomState::new().build_hasher().finish();
        Self {
            // Which half of it does not matter.
            above: AtomicU32::new(random as u32),
            all: AtomicU32::new((random >> 32) as u32),
            short: AtomicU32::new(0),
        }
    }

    pub(super) fn next(&self) -> u16 {
        let left = self.short.load(Ordering::Relaxed);
        let turn = match left.checked_sub(1) {
            None => self.above.fetch_add(1, Ordering::Relaxed) % HIGH,
            Some(less) => {
                // One that another has counted down at once may be counted twice.
                self.short.store(less, Ordering::Relaxed);
                self.all.fetch_add(1, Ordering::Relaxed) % (HIGH + ODD)
            }
        };
        let port = match turn.checked_sub(HIGH) {
            None => ABOVE + turn,
            Some(nth) => FIRST + 2 * nth,
        };
        // Never more than the highest.
        u16::try_from(port).unwrap_or(u16::MAX)
    }

    /// One was not to be had.
    pub(super) fn taken(&self) {
        self.short.store(SHORT, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn none_is_one_that_a_client_is_given_as_long_as_there_are_others() {
        let ports = SourcePorts::new();
        let above: BTreeSet<u16> = (0..2 * HIGH).map(|_| ports.next()).collect();
        assert_eq!((above.len(), above.first(), above.last()), (4_536, Some(&61_000), Some(&65_535)));
    }

    #[test]
    fn while_they_are_short_all_are_used_that_clients_are_given_last() {
        let ports = SourcePorts::new();
        let mut all = BTreeSet::new();
        for _ in 0..HIGH + ODD {
            ports.taken();
            all.insert(ports.next());
        }
        assert_eq!(all.len(), 18_652);
        assert!(all.iter().all(|port| *port >= 61_000 || *port > 32_768 && port % 2 == 1));
        assert!(all.contains(&32_769) && all.contains(&60_999) && all.contains(&61_000) && all.contains(&65_535));
        // They are tried again after a while.
        let then: Vec<u16> = (0..SHORT + HIGH).map(|_| ports.next()).collect();
        assert!(then[SHORT as usize..].iter().all(|port| *port >= 61_000));
    }
}

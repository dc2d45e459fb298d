//! Ports of connections that the proxy makes to a pod's application from a client's own address.
//!
//! To the kernel's connection tracking such a connection is one from the client to the application, as is a connection that the
//! client itself has made, and that is redirected to the proxy: with the same port they were the same one, and the packets of
//! each would go the way of the other. A client's kernel gives a connection a port of its range, by default one of 32768 to 60999,
//! and of these one of the parity of the first, and so an even one, as long as half of them are free. Taken here are those above
//! that range, which no client is given; and where those between two addresses are short, as a client that makes connections by
//! the thousand has them, the odd ones too: a client that has so many itself, or chooses a port on purpose, is met by chance alone.

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

/// So many connections begin with an odd one after one above was taken: whether there are some again is seldom asked.
const SHORT: u32 = 100;

/// Ports that one connection tries; then the kernel is asked, which knows which are left.
const TRIES: u32 = 4;

/// The ports of one namespace, above and odd, each in turn from a random one on: what comes next is what was used longest ago.
#[derive(Debug)]
pub(super) struct SourcePorts {
    above: AtomicU32,
    odd: AtomicU32,
    /// How many connections begin with an odd one yet.
    short: AtomicU32,
}

impl SourcePorts {
    pub(super) fn new() -> Self {
        let random = RandomState::new().build_hasher().finish();
        Self {
            // Which half of it does not matter.
            above: AtomicU32::new(random as u32),
            odd: AtomicU32::new((random >> 32) as u32),
            short: AtomicU32::new(0),
        }
    }

    /// Ports for a connection.
    pub(super) fn choose(&self) -> Choice<'_> {
        let left = self.short.load(Ordering::Relaxed);
        if let Some(less) = left.checked_sub(1) {
            // One that another has counted down at once may be counted twice.
            self.short.store(less, Ordering::Relaxed);
        }
        Choice {
            ports: self,
            above: left == 0,
            left: TRIES,
        }
    }
}

/// What one connection tries, one after the other.
#[derive(Debug)]
pub(super) struct Choice<'a> {
    ports: &'a SourcePorts,
    above: bool,
    left: u32,
}

impl Choice<'_> {
    /// The next one, unless enough were tried.
    pub(super) fn next(&mut self) -> Option<u16> {
        self.left = self.left.checked_sub(1)?;
        let port = match self.above {
            true => ABOVE + self.ports.above.fetch_add(1, Ordering::Relaxed) % HIGH,
            false => FIRST + 2 * (self.ports.odd.fetch_add(1, Ordering::Relaxed) % ODD),
        };
        // Never more than the highest.
        u16::try_from(port).ok()
    }

    /// There is a connection from that one between the same addresses, or there was one a moment ago. Where somebody listens at it
    /// that says nothing of others.
    pub(super) fn taken(&mut self) {
        if self.above {
            self.ports.short.store(SHORT, Ordering::Relaxed);
        }
        self.above = !self.above;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    fn is_above(port: u16) -> bool {
        port >= 61_000
    }

    #[test]
    fn none_is_one_that_a_client_is_given_as_long_as_there_are_others() {
        let ports = SourcePorts::new();
        let above: BTreeSet<u16> = (0..2 * HIGH).filter_map(|_| ports.choose().next()).collect();
        assert_eq!((above.len(), above.first(), above.last()), (4_536, Some(&61_000), Some(&65_535)));
        let mut all = BTreeSet::new();
        for _ in 0..2 * ODD {
            let mut choice = ports.choose();
            while let Some(port) = choice.next() {
                all.insert(port);
                choice.taken();
            }
        }
        assert_eq!(all.len(), 18_652);
        assert!(all.iter().all(|port| is_above(*port) || *port > 32_768 && port % 2 == 1));
    }

    /// What becomes of connections of one client to one application, so many a second, each of whose ports is taken for a minute:
    /// how many have an odd one, and how many none. At one port above somebody listens.
    fn busy(a_second: u64) -> (usize, usize) {
        let (ports, mut used) = (SourcePorts::new(), BTreeMap::new());
        let (mut odd, mut none) = (0, 0);
        for n in 0..300 * a_second {
            let now = n * 1000 / a_second;
            let mut choice = ports.choose();
            let free = loop {
                match choice.next() {
                    Some(62_000) => {}
                    Some(port) if used.get(&port).is_some_and(|until| *until > now) => choice.taken(),
                    other => break other,
                }
            };
            match free {
                Some(port) => {
                    used.insert(port, now + 60_000);
                    odd += usize::from(!is_above(port));
                }
                None => none += 1,
            }
        }
        (odd, none)
    }

    #[test]
    fn who_makes_many_connections_has_ports_of_ours_as_long_as_there_are_any() {
        // 75 a second leave each of those above a minute.
        for a_second in [1, 30, 75] {
            assert_eq!(busy(a_second), (0, 0), "{a_second} a second");
        }
        for a_second in [80, 100, 150, 200, 230] {
            let (odd, none) = busy(a_second);
            assert!(odd > 0 && none == 0, "{a_second} a second: {odd} odd ones, {none} none");
        }
        // All that there are are enough for 310.
        let (_, none) = busy(300);
        assert!(none < 300 * 300 / 100, "{none} of {} have none", 300 * 300);
    }
}

//! Ports of connections that the proxy makes to a pod's application from a client's own address.
//!
//! To the kernel's connection tracking such a connection is one from the client to the application, as is a connection that the
//! client itself has made, and that is redirected to the proxy: with the same port they were the same one, and the packets of
//! each would go the way of the other. A client's kernel gives a connection a port of the parity of the first of its range, by
//! default one of 32768 to 60999 and so an even one, as long as half of them are free. Taken here are the others, and those
//! above: whoever chooses a port on purpose, or has made more than 14,000 connections, is met by chance alone.

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

/// One after the other, from a random one on: each comes again only when all have been.
#[derive(Debug)]
pub(super) struct SourcePorts(AtomicU32);

impl SourcePorts {
    pub(super) fn new() -> Self {
        let random = RandomState::new().build_hasher().finish();
        // Which half of it does not matter.
        Self(AtomicU32::new(random as u32))
    }

    pub(super) fn next(&self) -> u16 {
        let turn = self.0.fetch_add(1, Ordering::Relaxed) % (HIGH + ODD);
        let port = match turn.checked_sub(HIGH) {
            None => ABOVE + turn,
            Some(nth) => FIRST + 2 * nth,
        };
        // Never more than the highest.
        u16::try_from(port).unwrap_or(u16::MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn none_is_one_that_a_client_is_given_and_all_are_used() {
        let ports = SourcePorts::new();
        let all: BTreeSet<u16> = (0..HIGH + ODD).map(|_| ports.next()).collect();
        assert_eq!(all.len(), 18_652);
        assert!(all.iter().all(|port| *port >= 61_000 || *port > 32_768 && port % 2 == 1));
        assert!(all.contains(&32_769) && all.contains(&60_999) && all.contains(&61_000) && all.contains(&65_535));
        assert!(all.contains(&ports.next()));
    }
}

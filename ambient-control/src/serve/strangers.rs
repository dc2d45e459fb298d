//! Connections on which nobody is known to be a node yet: few from one place, and never all that there is room for.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Those that are open now. Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Strangers {
    of_a_place: usize,
    open: Arc<Mutex<Open>>,
}

#[derive(Debug, Default)]
struct Open {
    from: HashMap<IpAddr, usize>,
    all: usize,
}

/// Why there is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// As many have come from there as may, which is so many.
    Place(usize),
    /// As many have come from everywhere as may.
    Everywhere,
}

/// A connection's place among them; it is given back once the node is known, or at the connection's end.
#[derive(Debug)]
pub(super) struct Stranger {
    of: Strangers,
    /// `None` once it is given back.
    from: Mutex<Option<IpAddr>>,
}

impl Strangers {
    /// So many of one place at a time.
    pub(super) fn few(of_a_place: usize) -> Self {
        Self {
            of_a_place,
            open: Arc::default(),
        }
    }

    /// One more has come from an address.
    pub(super) fn admit(&self, from: IpAddr) -> Result<Stranger, Full> {
        let place = place(from);
        let mut open = self.open();
        if open.all >= MOST {
            return Err(Full::Everywhere);
        }
        let here = open.from.entry(place).or_default();
        if *here >= self.of_a_place {
            return Err(Full::Place(self.of_a_place));
        }
        *here += 1;
        open.all += 1;
        Ok(Stranger {
            of: self.clone(),
            from: Mutex::new(Some(place)),
        })
    }

    fn leave(&self, place: IpAddr) {
        let mut open = self.open();
        open.all = open.all.saturating_sub(1);
        if let Some(here) = open.from.get_mut(&place) {
            *here -= 1;
            if *here == 0 {
                open.from.remove(&place);
            }
        }
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stranger {
    /// It is a node.
    pub(super) fn is_known(&self) {
        let place = self.from.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(place) = place {
            self.of.leave(place);
        }
    }

    /// Whether nothing has said so far that it is one.
    pub(super) fn is_stranger(&self) -> bool {
        self.from.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.is_known();
    }
}

/// What one machine has of addresses: of IPv6, a network of 64 bits.
fn place(from: IpAddr) -> IpAddr {
    match from.to_canonical() {
        IpAddr::V4(v4) => v4.into(),
        IpAddr::V6(v6) => {
            let network = v6.to_bits() >> 64 << 64;
            std::net::Ipv6Addr::from_bits(network).into()
        }
    }
}

/// Of all places: the other half of the room is for whoever is known.
pub(super) const MOST: usize = super::server::CONNECTIONS / 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_place_has_few_and_all_together_half() {
        let strangers = Strangers::few(8);
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let mut held: Vec<_> = (0..8).map(|_| strangers.admit(ip("10.0.0.1")).unwrap()).collect();
        assert_eq!(strangers.admit(ip("10.0.0.1")).unwrap_err(), Full::Place(8));
        assert_eq!(strangers.admit(ip("::ffff:10.0.0.1")).unwrap_err(), Full::Place(8));
        drop(strangers.admit(ip("10.0.0.2")).unwrap());
        // Whoever is known makes room, once.
        held[0].is_known();
        held[0].is_known();
        assert!(!held[0].is_stranger() && held[1].is_stranger());
        held.push(strangers.admit(ip("10.0.0.1")).unwrap());
        assert_eq!(strangers.admit(ip("10.0.0.1")).unwrap_err(), Full::Place(8));
        drop(held);
        // A machine has many addresses of a network.
        let of_one: Vec<_> = (0..8).map(|n| strangers.admit(ip(&format!("2001:db8::{n:x}"))).unwrap()).collect();
        assert_eq!(strangers.admit(ip("2001:db8::ffff:1")).unwrap_err(), Full::Place(8));
        drop(strangers.admit(ip("2001:db8:0:1::1")).unwrap());
        drop(of_one);
        {
            let open = strangers.open();
            assert_eq!((open.all, open.from.len()), (0, 0));
        }
        let of_all: Vec<_> = (0..MOST)
            .map(|n| strangers.admit(IpAddr::from([10, 1, (n / 256) as u8, (n % 256) as u8])).unwrap())
            .collect();
        assert_eq!(strangers.admit(ip("10.2.0.1")).unwrap_err(), Full::Everywhere);
        drop(of_all);
        drop(strangers.admit(ip("10.2.0.1")).unwrap());
    }
}

//! Whether the peer still lives, and whether a tunnel still serves: both asked at the ticks of somebody else's clock.

/// Ticks within which a silent peer is given up.
pub(crate) const TICKS: u32 = 5;

/// Counts the ticks in which nothing came from the peer.
#[derive(Debug, Default)]
pub(crate) struct Liveness {
    reads: u64,
    quiet: u32,
}

/// What a tick asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Beat {
    /// Nothing.
    Rest,
    /// Send a PING: whatever the peer sends next counts as its answer.
    Ping,
    /// Give the peer up.
    Dead,
}

impl Liveness {
    /// A tick at which `reads` reads have brought something so far. A busy peer is never asked, nor cut.
    pub(crate) fn on_tick(&mut self, reads: u64) -> Beat {
        if reads != self.reads {
            *self = Self { reads, quiet: 0 };
            return Beat::Rest;
        }
        self.quiet += 1;
        match self.quiet {
            1 => Beat::Ping,
            // The silence may have begun right after the tick before the first quiet one.
            quiet if quiet >= TICKS - 1 => Beat::Dead,
            _ => Beat::Rest,
        }
    }
}

/// Counts the ticks in which a tunnel carried nothing.
#[derive(Debug, Default)]
pub(crate) struct Idleness {
    opened: u64,
    quiet: u32,
}

impl Idleness {
    /// A tick, two of which make the idle limit: whether the tunnel has been idle for that limit.
    pub(crate) fn on_tick(&mut self, open: usize, opened: u64) -> bool {
        if open > 0 || opened != self.opened {
            *self = Self { opened, quiet: 0 };
            return false;
        }
        self.quiet += 1;
        self.quiet > 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_peer_is_asked_once_and_then_given_up() {
        let mut liveness = Liveness::default();
        assert_eq!(liveness.on_tick(1), Beat::Rest);
        assert_eq!(liveness.on_tick(1), Beat::Ping);
        assert_eq!(liveness.on_tick(1), Beat::Rest);
        assert_eq!(liveness.on_tick(1), Beat::Rest);
        assert_eq!(liveness.on_tick(1), Beat::Dead);
    }

    #[test]
    fn any_byte_is_an_answer() {
        let mut liveness = Liveness::default();
        let mut pings = 0;
        for tick in 0..1000_u64 {
            match liveness.on_tick(tick / 3) {
                Beat::Dead => panic!("a peer heard every third tick lives"),
                Beat::Ping => pings += 1,
                Beat::Rest => {}
            }
        }
        assert!(pings > 300);
    }

    #[test]
    fn a_tunnel_in_use_is_not_idle() {
        let mut idle = Idleness::default();
        assert!(!idle.on_tick(1, 1));
        assert!(!idle.on_tick(0, 1));
        assert!(!idle.on_tick(0, 1));
        assert!(!idle.on_tick(0, 2), "a stream came and went between two ticks");
        assert!(!idle.on_tick(0, 2));
        assert!(!idle.on_tick(0, 2));
        assert!(idle.on_tick(0, 2));
    }
}

//! Which tunnel carries the next stream.

/// A tunnel as the choice sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// Whether it may carry new streams: it stands, says no GOAWAY, and was made with the present credential.
    pub(crate) usable: bool,
    /// Streams in it.
    pub(crate) open: usize,
    /// Streams it may carry.
    pub(crate) limit: usize,
}

/// What to do with one more stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// Open it in this tunnel.
    Use(usize),
    /// Wait for this dial.
    Join(usize),
    /// Dial, and wait for it.
    Dial,
    /// There are as many tunnels as there may be, and all are full.
    Full,
}

/// The least loaded tunnel with room; else a dial with room among those who wait for it; else a new dial.
pub(crate) fn choose(tunnels: impl Iterator<Item = Load>, waiting: impl Iterator<Item = usize>, streams: usize, most: usize) -> Choice {
    let mut standing = 0;
    let mut best: Option<(usize, usize)> = None;
    for (index, load) in tunnels.enumerate() {
        if !load.usable {
            continue;
        }
        standing += 1;
        if load.open < load.limit && best.is_none_or(|(_, open)| load.open < open) {
            best = Some((index, load.open));
        }
    }
    if let Some((index, _)) = best {
        return Choice::Use(index);
    }
    for (index, waiting) in waiting.enumerate() {
        standing += 1;
        if waiting < streams {
            return Choice::Join(index);
        }
    }
    if standing < most { Choice::Dial } else { Choice::Full }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn load(usable: bool, open: usize, limit: usize) -> Load {
        Load { usable, open, limit }
    }

    #[test]
    fn the_least_loaded_with_room_carries_it() {
        let tunnels = [load(false, 0, 10), load(true, 5, 10), load(true, 3, 10), load(true, 1, 1)];
        assert_eq!(choose(tunnels.into_iter(), [0].into_iter(), 10, 16), Choice::Use(2));
    }

    #[test]
    fn a_full_pair_dials_once_for_many() {
        let full = [load(true, 10, 10)];
        assert_eq!(choose(full.into_iter(), [].into_iter(), 10, 16), Choice::Dial);
        assert_eq!(choose(full.into_iter(), [9].into_iter(), 10, 16), Choice::Join(0));
        assert_eq!(choose(full.into_iter(), [10].into_iter(), 10, 16), Choice::Dial);
        assert_eq!(choose(full.into_iter(), [10].into_iter(), 10, 2), Choice::Full);
    }

    proptest! {
        #[test]
        fn nothing_is_chosen_beyond_its_bound(
            tunnels in proptest::collection::vec((any::<bool>(), 0_usize..5, 0_usize..5), 0..6),
            dials in proptest::collection::vec(0_usize..5, 0..4),
            streams in 1_usize..5,
            most in 1_usize..8,
        ) {
            let loads: Vec<_> = tunnels.iter().map(|&(usable, open, limit)| load(usable, open, limit)).collect();
            match choose(loads.iter().copied(), dials.iter().copied(), streams, most) {
                Choice::Use(i) => prop_assert!(loads[i].usable && loads[i].open < loads[i].limit),
                Choice::Join(i) => prop_assert!(dials[i] < streams),
                Choice::Dial => prop_assert!(loads.iter().filter(|l| l.usable).count() + dials.len() < most),
                Choice::Full => prop_assert!(loads.iter().filter(|l| l.usable).count() + dials.len() >= most),
            }
        }
    }
}

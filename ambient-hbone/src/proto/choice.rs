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
    /// The same, and dial for those who come later.
    UseAndDial(usize),
    /// Wait for this dial.
    Join(usize),
    /// Dial, and wait for it.
    Dial,
    /// There are as many tunnels as there may be, and all are full.
    Full,
}

/// The bounds of a choice.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Streams that may wait for a dial.
    pub(crate) streams: usize,
    /// Tunnels at most that carry new streams; as many again may stand that carry none any more.
    pub(crate) most: usize,
    /// From how many streams in the least loaded tunnel on another is made, and up to how many of those.
    pub(crate) spread: (usize, usize),
}

/// The least loaded tunnel with room; else a dial with room among those who wait for it; else a new dial.
pub(crate) fn choose(tunnels: impl Iterator<Item = Load>, mut waiting: impl Iterator<Item = usize>, bounds: Bounds) -> Choice {
    let (mut standing, mut leaving) = (0, 0);
    let mut best: Option<(usize, usize)> = None;
    for (index, load) in tunnels.enumerate() {
        if !load.usable {
            leaving += 1;
            continue;
        }
        standing += 1;
        if load.open < load.limit && best.is_none_or(|(_, open)| load.open < open) {
            best = Some((index, load.open));
        }
    }
    if let Some((index, open)) = best {
        let (from, over) = bounds.spread;
        let most = over.min(bounds.most);
        let spreads = open + 1 >= from && standing < most && leaving < bounds.most && waiting.next().is_none();
        return if spreads { Choice::UseAndDial(index) } else { Choice::Use(index) };
    }
    for (index, waiting) in waiting.enumerate() {
        standing += 1;
        if waiting < bounds.streams {
            return Choice::Join(index);
        }
    }
    // Those that leave make room for others, or new credentials would find none; but not for any number of them.
    if standing < bounds.most && standing + leaving < bounds.most.saturating_mul(2) {
        Choice::Dial
    } else {
        Choice::Full
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn load(usable: bool, open: usize, limit: usize) -> Load {
        Load { usable, open, limit }
    }

    fn bounds(streams: usize, most: usize) -> Bounds {
        let spread = (usize::MAX, 1);
        Bounds { streams, most, spread }
    }

    #[test]
    fn the_least_loaded_with_room_carries_it() {
        let tunnels = [load(false, 0, 10), load(true, 5, 10), load(true, 3, 10), load(true, 1, 1)];
        assert_eq!(choose(tunnels.into_iter(), [0].into_iter(), bounds(10, 16)), Choice::Use(2));
    }

    #[test]
    fn a_full_pair_dials_once_for_many() {
        let full = [load(true, 10, 10)];
        let choose = |waiting: &[usize], most| choose(full.into_iter(), waiting.iter().copied(), bounds(10, most));
        assert_eq!(choose(&[], 16), Choice::Dial);
        assert_eq!(choose(&[9], 16), Choice::Join(0));
        assert_eq!(choose(&[10], 16), Choice::Dial);
        assert_eq!(choose(&[10], 2), Choice::Full);
    }

    #[test]
    fn those_that_leave_make_room_once() {
        let choose = |leaving, standing| {
            let tunnels = [load(false, 5, 0)]
                .repeat(leaving)
                .into_iter()
                .chain([load(true, 10, 10)].repeat(standing));
            choose(tunnels, [].into_iter(), bounds(10, 16))
        };
        assert_eq!(choose(16, 0), Choice::Dial, "all were made with another credential");
        assert_eq!(choose(16, 15), Choice::Dial);
        assert_eq!(choose(31, 0), Choice::Dial);
        assert_eq!(choose(32, 0), Choice::Full);
        assert_eq!(choose(17, 15), Choice::Full);
    }

    #[test]
    fn a_busy_pair_gets_another_tunnel_before_it_is_full() {
        let spread = |tunnels: &[Load], waiting: &[usize]| {
            let bounds = Bounds {
                spread: (4, 2),
                ..bounds(10, 16)
            };
            choose(tunnels.iter().copied(), waiting.iter().copied(), bounds)
        };
        assert_eq!(spread(&[load(true, 2, 10)], &[]), Choice::Use(0));
        assert_eq!(spread(&[load(true, 3, 10)], &[]), Choice::UseAndDial(0));
        assert_eq!(spread(&[load(true, 9, 10)], &[0]), Choice::Use(0), "one is on its way");
        assert_eq!(spread(&[load(true, 9, 10), load(true, 8, 10)], &[]), Choice::Use(1), "enough");
    }

    proptest! {
        #[test]
        fn nothing_is_chosen_beyond_its_bound(
            tunnels in proptest::collection::vec((any::<bool>(), 0_usize..5, 0_usize..5), 0..6),
            dials in proptest::collection::vec(0_usize..5, 0..4),
            streams in 1_usize..5,
            most in 1_usize..8,
            spread in (0_usize..6, 0_usize..6),
        ) {
            let loads: Vec<_> = tunnels.iter().map(|&(usable, open, limit)| load(usable, open, limit)).collect();
            let usable = loads.iter().filter(|l| l.usable).count();
            let all = loads.len() + dials.len();
            match choose(loads.iter().copied(), dials.iter().copied(), Bounds { streams, most, spread }) {
                Choice::Use(i) => prop_assert!(loads[i].usable && loads[i].open < loads[i].limit),
                Choice::UseAndDial(i) => {
                    prop_assert!(loads[i].usable && loads[i].open < loads[i].limit && loads[i].open + 1 >= spread.0);
                    prop_assert!(dials.is_empty() && usable < most.min(spread.1) && all < 2 * most);
                }
                Choice::Join(i) => prop_assert!(dials[i] < streams),
                Choice::Dial => prop_assert!(usable + dials.len() < most && all < 2 * most),
                Choice::Full => prop_assert!(usable + dials.len() >= most || all >= 2 * most),
            }
        }
    }
}

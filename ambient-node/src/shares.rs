//! Whose share of a worker's thread a task is in: no pod, and nobody who calls one, takes the thread from the others.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
};

use ambient_hbone::{Share, SpeakerKey, Turns};

/// On whose behalf something is done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Whose {
    /// A pod of this node, that connects somewhere.
    Pod(SpeakerKey),
    /// Whoever connects to pods of this node from this address: by tunnel that is the speaker's own, or a gateway's.
    Peer(IpAddr),
}

/// The shares of one worker's thread.
#[derive(Debug)]
pub(crate) struct Shares {
    turns: Turns,
    /// Held for moments, never across an await.
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    shares: HashMap<Whose, Share>,
    /// With how many those in which there is nothing are let go.
    swept_at: usize,
}

impl Shares {
    pub(crate) fn new(turns: Turns) -> Self {
        Self {
            turns,
            known: Mutex::default(),
        }
    }

    /// Somebody's share: one, however often it is asked for.
    pub(crate) fn of(&self, whose: &Whose) -> Share {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = known.shares.get(whose) {
            return share.clone();
        }
        if known.shares.len() >= known.swept_at {
            known.shares.retain(|_, share| share.is_used());
            known.swept_at = FEW.max(known.shares.len() * 2);
        }
        let share = self.turns.share();
        known.shares.insert(whose.clone(), share.clone());
        share
    }
}

/// So many in which there is nothing are no loss.
const FEW: usize = 64;

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn shares_in_which_there_is_nothing_are_let_go_and_others_kept() {
        let shares = Shares::new(Turns::new());
        let peer = |n: u32| Whose::Peer(Ipv4Addr::from(n).into());
        let held: Vec<_> = (0..100).map(|n| shares.of(&peer(n))).collect();
        for n in 0..10_000 {
            drop(shares.of(&peer(n)));
        }
        let known = || shares.known.lock().unwrap().shares.len();
        assert!((100..=200).contains(&known()), "{}", known());
        assert!(held.iter().all(Share::is_used));
        drop(held);
        assert!(!shares.known.lock().unwrap().shares[&peer(7)].is_used());
        for n in 20_000..20_200 {
            drop(shares.of(&peer(n)));
        }
        assert!(known() <= 2 * FEW, "{}", known());
    }
}

//! Who is served at a listener of pages: so many at once, and nobody is kept out by who says nothing or asks for all.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::task::AbortHandle;

/// Clients of one listener at once.
pub(super) const MOST: usize = 8;

/// Those of one listener, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Clients(Vec<Client>);

#[derive(Debug)]
struct Client {
    from: IpAddr,
    asked: Asked,
    serving: AbortHandle,
}

/// Whether a client's request is there.
#[derive(Clone, Debug, Default)]
pub(super) struct Asked(Arc<AtomicBool>);

impl Asked {
    /// It is.
    pub(super) fn told(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_told(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Clients {
    /// Whether there is room for one more from an address, after somebody had to go for it where that is just.
    pub(super) fn make_room(&mut self, from: IpAddr) -> bool {
        self.0.retain(|client| !client.serving.is_finished());
        if self.0.len() < MOST {
            return true;
        }
        let present: Vec<_> = self.0.iter().map(|client| (client.from, client.asked.is_told())).collect();
        let Some(at) = who_goes(&present, from) else { return false };
        self.0.remove(at).serving.abort();
        true
    }

    /// One more, for whom there is room.
    pub(super) fn enter(&mut self, from: IpAddr, asked: Asked, serving: AbortHandle) {
        self.0.push(Client { from, asked, serving });
    }
}

/// Who has to go for one more, of clients with their addresses and whether each has asked, the oldest first. One of the address
/// that has most: the oldest that has not asked; else the oldest, where its address still has as many as the new one then.
fn who_goes(present: &[(IpAddr, bool)], new: IpAddr) -> Option<usize> {
    let of = |address: IpAddr| present.iter().filter(|(from, _)| *from == address).count();
    let silent = |address: IpAddr| present.iter().position(|(from, asked)| *from == address && !asked);
    // Of several that have as many, the one that has one who is silent, and was there first.
    let (most, ..) = *present.iter().rev().max_by_key(|(from, _)| (of(*from), silent(*from).is_some()))?;
    if of(new) < of(most) {
        let oldest = || {
            present
                .iter()
                .position(|(from, _)| *from == most)
                .filter(|_| of(new) + 1 < of(most))
        };
        return silent(most).or_else(oldest);
    }
    silent(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each client by its address, in capitals if it has asked.
    fn goes(present: &str, new: char) -> Option<usize> {
        let address = |c: char| IpAddr::from([10, 0, 0, c.to_ascii_lowercase() as u8]);
        let present: Vec<_> = present.chars().map(|c| (address(c), c.is_ascii_uppercase())).collect();
        who_goes(&present, address(new))
    }

    #[test]
    fn nobody_is_kept_out_by_who_is_silent_or_greedy() {
        for (present, new, gone) in [
            ("", 'a', None),
            // One address, as on a loopback: who says nothing goes, and who is being answered stays.
            ("aaaaaaaa", 'a', Some(0)),
            ("AAaaaaaa", 'a', Some(2)),
            ("AAAAAAAA", 'a', None),
            // Somebody else is never kept out by it.
            ("aaaaaaaa", 'b', Some(0)),
            ("AAAaAAAA", 'b', Some(3)),
            ("AAAAAAAA", 'b', Some(0)),
            // Until both have as many.
            ("AAAAABBB", 'b', Some(0)),
            ("AAAABBBB", 'b', None),
            ("BAAAABBB", 'a', None),
            ("AAAAbBBB", 'b', Some(4)),
            ("AAAAbBBB", 'a', None),
            // As many addresses as there is room for: those that say nothing.
            ("abcdefgh", 'i', Some(0)),
            ("ABCDEfGH", 'i', Some(5)),
            ("ABCDEFGH", 'i', None),
        ] {
            assert_eq!(goes(present, new), gone, "{present} and {new}");
        }
    }
}

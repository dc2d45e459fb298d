//! How long to wait before trying again.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hasher},
    time::Duration,
};

/// Waits that double, up to the longest; each somewhere between half of it and the whole, so that those who failed together
/// do not come back together.
#[derive(Debug)]
pub(super) struct Backoff {
    first: Duration,
    longest: Duration,
    present: Duration,
    draws: RandomState,
    drawn: u64,
}

impl Backoff {
    pub(super) fn new(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest,
            present: first,
            draws: RandomState::new(),
            drawn: 0,
        }
    }

    /// The next wait.
    pub(super) fn next(&mut self) -> Duration {
        let present = self.present;
        self.present = (present * 2).min(self.longest);
        // A keyed hash of a counter: random enough for spreading, without a random number generator to depend on.
        self.drawn += 1;
        let mut hasher = self.draws.build_hasher();
        hasher.write_u64(self.drawn);
        let spread = hasher.finish() % 1000;
        present / 2 + present * u32::try_from(spread).unwrap_or(0) / 2000
    }

    /// All is well again.
    pub(super) fn reset(&mut self) {
        self.present = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_begin_again() {
        let (first, longest) = (Duration::from_millis(10), Duration::from_secs(15));
        let mut backoff = Backoff::new(first, longest);
        let mut whole = first;
        for _ in 0..20 {
            let wait = backoff.next();
            assert!(whole / 2 <= wait && wait <= whole, "{wait:?} of {whole:?}");
            whole = (whole * 2).min(longest);
        }
        backoff.reset();
        assert!(backoff.next() <= first);
    }
}

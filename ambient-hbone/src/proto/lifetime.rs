//! When a tunnel should take no new streams, and when it must end, by the end of its certificates.

use std::time::{Duration, SystemTime};

/// From a handshake to the end of a certificate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lifetime {
    closing: SystemTime,
    end: SystemTime,
}

/// What a tunnel may still do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Carry streams, and take new ones.
    Open,
    /// Carry its streams; new ones would have little time left, and the certificate's owner has a new one by now.
    Closing,
    /// Nothing: a certificate has ended.
    Over,
}

impl Lifetime {
    /// Of a tunnel made at a moment, if that is known, whose first certificate ends at `end`.
    pub(crate) fn new(made: Option<SystemTime>, end: SystemTime) -> Self {
        let left = made.and_then(|made| end.duration_since(made).ok()).unwrap_or_default();
        Self {
            closing: end - left / LAST_PART,
            end,
        }
    }

    /// Where it stands at a moment, and how long nothing needs to be looked at. A clock that is not known ends nothing.
    pub(crate) fn at(&self, now: Option<SystemTime>) -> (Stage, Duration) {
        let Some(now) = now else {
            return (Stage::Open, LONGEST_WAIT);
        };
        let (stage, next) = match () {
            () if now >= self.end => return (Stage::Over, LONGEST_WAIT),
            () if now >= self.closing => (Stage::Closing, self.end),
            () => (Stage::Open, self.closing),
        };
        let left = next.duration_since(now).unwrap_or_default();
        // The clock tells whole seconds: the last one is watched closely.
        let wait = if left > CLOSE {
            (left - CLOSE).min(LONGEST_WAIT)
        } else {
            SHORTEST_WAIT
        };
        (stage, wait)
    }
}

/// New streams go elsewhere in this part of what was left at the handshake.
const LAST_PART: u32 = 4;

/// Between two looks at a clock that may be set.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// How exact the clock is.
const CLOSE: Duration = Duration::from_secs(1);
const SHORTEST_WAIT: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn the_last_quarter_takes_no_new_streams() {
        let lifetime = Lifetime::new(Some(at(1000)), at(1400));
        assert_eq!(lifetime.at(Some(at(1000))), (Stage::Open, LONGEST_WAIT));
        assert_eq!(lifetime.at(Some(at(1290))), (Stage::Open, Duration::from_secs(9)));
        assert_eq!(lifetime.at(Some(at(1299))), (Stage::Open, SHORTEST_WAIT));
        assert_eq!(lifetime.at(Some(at(1300))), (Stage::Closing, LONGEST_WAIT));
        assert_eq!(lifetime.at(Some(at(1399))), (Stage::Closing, SHORTEST_WAIT));
        assert_eq!(lifetime.at(Some(at(1400))).0, Stage::Over);
    }

    #[test]
    fn a_clock_that_is_set_is_believed_at_the_next_look() {
        let lifetime = Lifetime::new(Some(at(1000)), at(1400));
        assert_eq!(lifetime.at(Some(at(9000))).0, Stage::Over);
        assert_eq!(lifetime.at(Some(at(500))), (Stage::Open, LONGEST_WAIT));
        assert_eq!(lifetime.at(None), (Stage::Open, LONGEST_WAIT));
    }

    #[test]
    fn made_after_the_end_or_at_no_known_time_it_ends_no_later() {
        for made in [Some(at(1500)), None] {
            let lifetime = Lifetime::new(made, at(1400));
            assert_eq!(lifetime.at(Some(at(1399))).0, Stage::Open);
            assert_eq!(lifetime.at(Some(at(1400))).0, Stage::Over);
        }
    }
}

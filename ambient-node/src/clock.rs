//! The two clocks of the process, read here and nowhere else in this crate.

use std::time::{Instant, SystemTime};

/// The wall clock: certificates' dates are measured by it.
#[expect(clippy::disallowed_methods, reason = "the one reading of the wall clock")]
pub(crate) fn wall() -> SystemTime {
    SystemTime::now()
}

/// The steady clock: durations are measured by it.
#[expect(clippy::disallowed_methods, reason = "the one reading of the steady clock")]
pub(crate) fn steady() -> Instant {
    Instant::now()
}

//! Moments, for people.

use std::{
    fmt,
    time::{SystemTime, UNIX_EPOCH},
};

use rustls_pki_types::UnixTime;
use x509_parser::time::ASN1Time;

/// A moment to the second. It is written in UTC, as RFC 3339 does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

impl Moment {
    /// So many seconds after the beginning of 1970.
    pub fn of(seconds: u64) -> Self {
        Self(seconds)
    }
}

impl From<UnixTime> for Moment {
    fn from(time: UnixTime) -> Self {
        Self(time.as_secs())
    }
}

impl From<SystemTime> for Moment {
    fn from(time: SystemTime) -> Self {
        Self(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let moment = i64::try_from(self.0)
            .ok()
            .and_then(|seconds| ASN1Time::from_timestamp(seconds).ok());
        // Later than what a certificate can say.
        let Some(moment) = moment else { return f.write_str("never") };
        let at = moment.to_datetime();
        let (year, month, day) = (at.year(), u8::from(at.month()), at.day());
        let (hour, minute, second) = (at.hour(), at.minute(), at.second());
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_rfc_3339_does() {
        assert_eq!(Moment::of(0).to_string(), "1970-01-01T00:00:00Z");
        assert_eq!(Moment::of(1_795_000_000).to_string(), "2026-11-18T11:06:40Z");
        assert_eq!(Moment::of(u64::MAX).to_string(), "never");
    }
}

//! The scaffolding's only look at the machine's clocks, and the text form of a time.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A moment on the monotonic clock.
#[expect(clippy::disallowed_methods, reason = "the lab waits in real time; this is its one monotonic clock")]
pub fn now() -> Instant {
    Instant::now()
}

/// The time of day.
#[expect(
    clippy::disallowed_methods,
    reason = "Kubernetes objects carry the time of day; this is the lab's one wall clock"
)]
pub fn time_of_day() -> SystemTime {
    SystemTime::now()
}

/// A time as RFC 3339 writes it in UTC, with as many digits after the second as asked for (at most 9). Times before
/// 1970 are written as its beginning.
///
/// ```
/// use std::time::{Duration, UNIX_EPOCH};
/// use ambient_testkit::cluster::clock::rfc3339;
///
/// assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_millis(1_709_210_096_007), 3), "2024-02-29T12:34:56.007Z");
/// ```
pub fn rfc3339(time: SystemTime, digits: usize) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let mut text = format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}",
        second / 3600,
        second / 60 % 60,
        second % 60
    );
    let nanos = format!("{:09}", since.subsec_nanos());
    if let Some(fraction) = nanos.get(..digits.min(9)).filter(|f| !f.is_empty()) {
        text.push('.');
        text.push_str(fraction);
    }
    text.push('Z');
    text
}

/// Year, month and day of a day since 1970-01-01, by the Gregorian calendar in eras of 400 years that begin in March:
/// the leap day is then the last of its year.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_around_leap_days() {
        for (second, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (1_795_392_000, "2026-11-23T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(second), 0), text);
        }
    }
}

//! Lines of the log that callers can cause at will: each is written once in a while, with how often it was left out.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// What was said when.
#[derive(Debug, Default)]
pub(super) struct Seldom(Mutex<Vec<Said>>);

#[derive(Debug)]
struct Said {
    what: &'static str,
    at: Instant,
    left_out: u64,
}

impl Seldom {
    /// Whether a line is to be written now, and then how often it was not since the last time. `what` tells lines apart.
    pub(super) fn say(&self, what: &'static str, now: Instant) -> Option<u64> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(said) = all.iter_mut().find(|said| said.what == what) else {
            all.push(Said {
                what,
                at: now,
                left_out: 0,
            });
            return Some(0);
        };
        if now < said.at + SILENCE {
            said.left_out += 1;
            return None;
        }
        said.at = now;
        Some(std::mem::take(&mut said.left_out))
    }
}

/// Between two lines that say the same.
const SILENCE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_line_is_written_once_in_a_while_and_tells_how_many_were_not() {
        let (seldom, start) = (Seldom::default(), Instant::now());
        assert_eq!(seldom.say("one", start), Some(0));
        for n in 0..100 {
            let now = start + Duration::from_millis(n * 99);
            assert_eq!(seldom.say("one", now), None);
            assert_eq!(seldom.say("other", now), (n == 0).then_some(0), "the one is not the other");
        }
        assert_eq!(seldom.say("one", start + SILENCE), Some(100));
        assert_eq!(seldom.say("one", start + SILENCE), None);
        assert_eq!(seldom.say("one", start + 2 * SILENCE), Some(1));
    }
}

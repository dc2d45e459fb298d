//! Lines of the log that callers can cause at will: each is written once in a while, with how often it was left out.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// What was said when, of whom.
#[derive(Debug, Default)]
pub(super) struct Seldom(Mutex<HashMap<Box<str>, Vec<Said>>>);

#[derive(Debug)]
struct Said {
    what: &'static str,
    at: Instant,
    left_out: u64,
}

impl Seldom {
    /// Whether a line is to be written now, and then how often it was not since the last time. `what` tells lines apart.
    pub(super) fn say(&self, what: &'static str, now: Instant) -> Option<u64> {
        self.say_of("", what, now)
    }

    /// The same of one node: what others cause takes none of its lines.
    pub(super) fn say_of(&self, node: &str, what: &'static str, now: Instant) -> Option<u64> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= NODES && !all.contains_key(node) {
            let left_out = forget_the_still(&mut all, now);
            if left_out > 0 {
                tracing::info!(
                    left_out,
                    "lines that are told no more: they are of nodes that have been still since"
                );
            }
        }
        let of = match all.get_mut(node) {
            Some(of) => of,
            None => all.entry(node.into()).or_default(),
        };
        let Some(said) = of.iter_mut().find(|said| said.what == what) else {
            of.push(Said {
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

/// Forgets of whom nothing was to be said for a while; gives how many of their lines were left out, and not told.
fn forget_the_still(all: &mut HashMap<Box<str>, Vec<Said>>, now: Instant) -> u64 {
    let still = all.extract_if(|_, said| said.iter().all(|said| said.at + SILENCE <= now));
    still.flat_map(|(_, said)| said).map(|said| said.left_out).sum()
}

/// Between two lines that say the same.
const SILENCE: Duration = Duration::from_secs(10);
/// Nodes that are remembered without a look at whether that is needed.
const NODES: usize = 4_096;

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

    #[tokio::test(start_paused = true)]
    async fn each_node_has_its_own_and_those_that_are_still_are_forgotten() {
        let (seldom, start) = (Seldom::default(), Instant::now());
        for n in 0..NODES {
            assert_eq!(seldom.say_of(&n.to_string(), "one", start), Some(0), "the one is not the other");
        }
        assert_eq!(seldom.say_of("0", "one", start), None);
        assert_eq!(seldom.say("one", start), Some(0));
        assert_eq!(seldom.0.lock().unwrap().len(), NODES + 1, "all of them have just spoken");
        assert_eq!(seldom.say_of("0", "one", start + SILENCE), Some(1));
        assert_eq!(seldom.say_of("new", "one", start + SILENCE), Some(0));
        assert_eq!(seldom.0.lock().unwrap().len(), 2);
        // What was left out of those that are forgotten is told of them together.
        assert_eq!(seldom.say_of("new", "one", start + SILENCE), None);
        let mut all = seldom.0.lock().unwrap();
        assert_eq!(forget_the_still(&mut all, start + SILENCE), 0);
        assert_eq!(forget_the_still(&mut all, start + 2 * SILENCE), 1);
        assert!(all.is_empty());
    }
}

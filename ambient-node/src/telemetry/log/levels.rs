//! What is logged, and how that is changed while the process runs.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Mutex, PoisonError},
};

use tracing_subscriber::{EnvFilter, filter::LevelFilter};

use super::LogError;

/// Targets that may be set while the process runs.
const MOST_TARGETS: usize = 64;

/// The filter of the process's log: as it was started, and what was set since.
pub(crate) struct Levels {
    start: String,
    /// By target; no target is all of them.
    set: Mutex<BTreeMap<Option<String>, LevelFilter>>,
    put: Box<Put>,
}

/// Puts another filter in force.
type Put = dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync;

impl fmt::Debug for Levels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Levels").field("present", &self.present()).finish_non_exhaustive()
    }
}

/// Why a level was not changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LevelError {
    #[error("{0:?} is no level, and no TARGET=LEVEL or TARGET:LEVEL")]
    Unreadable(String),
    #[error("more than {MOST_TARGETS} targets are set: ?reset takes them back")]
    TooMany,
    #[error("the log cannot be changed: {0}")]
    Put(String),
}

impl Levels {
    pub(super) fn new(start: &str, put: impl Fn(EnvFilter) -> Result<(), String> + Send + Sync + 'static) -> Self {
        Self {
            start: meant(start).to_owned(),
            set: Mutex::default(),
            put: Box::new(put),
        }
    }

    /// The filter in force.
    pub(crate) fn present(&self) -> String {
        self.joined(&self.set.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Sets levels, `LEVEL`, `TARGET=LEVEL` or `TARGET:LEVEL` as istioctl writes it, with commas between several; what was set before stays, unless it is taken
    /// back first. All of it or nothing.
    pub(crate) fn change(&self, reset: bool, wanted: &str) -> Result<(), LevelError> {
        let mut set = self.set.lock().unwrap_or_else(PoisonError::into_inner);
        let parts = wanted.split(',').map(str::trim).filter(|part| !part.is_empty());
        let asked = parts.map(read).collect::<Result<Vec<_>, _>>()?;
        // As one is for all, what was set for some before has no say any more.
        let mut next = match reset || asked.iter().any(|(target, _)| target.is_none()) {
            true => BTreeMap::new(),
            false => set.clone(),
        };
        next.extend(asked);
        if next.len() > MOST_TARGETS {
            return Err(LevelError::TooMany);
        }
        let text = self.joined(&next);
        let filter = filter(&text).map_err(|error| LevelError::Put(error.to_string()))?;
        (self.put)(filter).map_err(LevelError::Put)?;
        *set = next;
        Ok(())
    }

    /// A level for all takes the place of what the process was started with.
    fn joined(&self, set: &BTreeMap<Option<String>, LevelFilter>) -> String {
        let start = match set.get(&None) {
            None => Some(self.start.clone()),
            Some(level) => Some(level.to_string()),
        };
        let some = set
            .iter()
            .filter_map(|(target, level)| target.as_ref().map(|target| format!("{target}={level}")));
        start.into_iter().chain(some).collect::<Vec<_>>().join(",")
    }
}

/// `LEVEL`, `TARGET=LEVEL` or `TARGET:LEVEL`, where two colons are within the name of a target.
fn read(part: &str) -> Result<(Option<String>, LevelFilter), LevelError> {
    let unreadable = || LevelError::Unreadable(part.to_owned());
    let by_colon = || part.rsplit_once(':').filter(|(target, _)| !target.ends_with(':'));
    let (target, level) = match part.split_once('=').or_else(by_colon) {
        Some((target, level)) => (Some(target.trim()), level.trim()),
        None => (None, part),
    };
    let is_target = |target: &str| !target.is_empty() && target.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-:".contains(&b));
    // An empty level would be read as one.
    if level.is_empty() || target.is_some_and(|target| !is_target(target)) {
        return Err(unreadable());
    }
    let level = match level {
        // Words of istioctl's.
        "warning" => LevelFilter::WARN,
        "critical" => LevelFilter::ERROR,
        other => other.parse().map_err(|_| unreadable())?,
    };
    Ok((target.map(str::to_owned), level))
}

/// A filter without a word, as of a variable that is set and empty, is for errors, as in ztunnel: the library takes it for none at
/// all.
fn meant(text: &str) -> &str {
    match text.split(',').all(|part| part.trim().is_empty()) {
        true => "error",
        false => text,
    }
}

/// Reads a filter of `tracing`'s syntax.
pub(super) fn filter(text: &str) -> Result<EnvFilter, LogError> {
    EnvFilter::try_new(meant(text)).map_err(|error| LogError::Filter {
        text: text.into(),
        why: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use super::*;

    #[test]
    fn levels_are_added_and_taken_back() {
        let put = Arc::new(AtomicUsize::new(0));
        let levels = Levels::new("info,access=warn", {
            let put = put.clone();
            move |_| {
                put.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
        });
        assert_eq!(levels.present(), "info,access=warn");
        levels.change(false, "access=debug, ambient_hbone=trace").unwrap();
        assert_eq!(levels.present(), "info,access=warn,access=debug,ambient_hbone=trace");
        levels.change(false, "debug").unwrap();
        assert_eq!(levels.present(), "debug");
        levels.change(true, "access=off").unwrap();
        assert_eq!(levels.present(), "info,access=warn,access=off");
        levels.change(true, "").unwrap();
        assert_eq!(levels.present(), "info,access=warn");
        assert_eq!(put.load(Ordering::Relaxed), 4);
    }

    #[test]
    fn istioctls_words_are_understood() {
        let levels = Levels::new("info", |_| Ok(()));
        for (wanted, present) in [
            ("", "info"),
            ("access:debug,info", "info,access=debug"),
            ("ambient_hbone::pool:trace", "info,access=debug,ambient_hbone::pool=trace"),
            (
                "access:warning,ambient_dns:critical",
                "info,access=warn,ambient_dns=error,ambient_hbone::pool=trace",
            ),
            ("warning", "warn"),
        ] {
            levels.change(false, wanted).unwrap();
            assert_eq!(levels.present(), present, "{wanted}");
        }
    }

    #[test]
    fn a_filter_without_a_word_is_for_errors() {
        for nothing in ["", " ", ",", " , "] {
            assert_eq!(filter(nothing).unwrap().max_level_hint(), Some(LevelFilter::ERROR), "{nothing:?}");
            assert_eq!(Levels::new(nothing, |_| Ok(())).present(), "error");
        }
    }

    #[test]
    fn what_is_no_level_changes_nothing() {
        let levels = Levels::new("info", |_| Ok(()));
        for wanted in [
            "loud",
            "access=",
            "=debug",
            "a b=debug",
            "access=debug,x=loud",
            "access[span]=debug",
            "ambient_hbone::pool",
            ":debug",
            "access:",
        ] {
            let error = levels.change(true, wanted).unwrap_err();
            assert!(matches!(error, LevelError::Unreadable(_)), "{wanted}: {error}");
        }
        let many: Vec<_> = (0..=MOST_TARGETS).map(|n| format!("t{n}=debug")).collect();
        assert!(matches!(levels.change(false, &many.join(",")), Err(LevelError::TooMany)));
        assert_eq!(levels.present(), "info");
    }
}

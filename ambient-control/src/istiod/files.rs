//! The files that an endpoint names, as they were read last: what is replaced while the process runs may be gone for a moment,
//! or for longer.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::watch,
    task,
    time::{Instant, timeout_at},
};
use zeroize::Zeroizing;

use crate::plain;

/// What was read last of the files that an [`Endpoint`](super::Endpoint) names, and could be used: gone by where a file is no
/// more, is empty, or holds something else. Clones are the same; in memory alone.
#[derive(Clone, Default)]
pub struct Files(Arc<Mutex<BTreeMap<PathBuf, Seen>>>);

#[derive(Default)]
struct Seen {
    good: Option<Arc<Zeroizing<Vec<u8>>>>,
    /// What is wrong with it now, and what to do.
    wrong: Option<String>,
    /// The read of it that began last, and when; its other end is gone once it has ended.
    reading: Option<(watch::Receiver<()>, Instant)>,
}

impl std::fmt::Debug for Files {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.seen().keys()).finish()
    }
}

impl Files {
    /// What is wrong with those that were read last, each with its name and what to do.
    pub fn faults(&self) -> Vec<String> {
        self.seen().values().filter_map(|seen| seen.wrong.clone()).collect()
    }

    /// Reads a file anew, and gives what is made of it. Where nothing can be made of it that is told, and what was read before
    /// counts.
    ///
    /// # Errors
    /// Where nothing was read before: why nothing can be made of it.
    pub(super) async fn read<T>(
        &self,
        path: &Path,
        most: u64,
        remedy: &str,
        make: impl Fn(&[u8]) -> Result<T, String>,
    ) -> Result<T, io::Error> {
        let read = self.bytes(path, most).await;
        self.take(path, read, remedy, make)
    }

    /// Looks whether a file can be used, for who is to be told of it before it is needed. One that is not there and never was is not
    /// missed before that.
    pub(super) async fn look<T>(&self, path: &Path, most: u64, remedy: &str, make: impl Fn(&[u8]) -> Result<T, String>) {
        let is_known = self
            .seen()
            .get(path)
            .is_some_and(|seen| seen.good.is_some() || seen.wrong.is_some());
        let read = self.bytes(path, most).await;
        if is_known || !matches!(&read, Err(error) if error.kind() == io::ErrorKind::NotFound) {
            // What is wrong is kept.
            let _ = self.take(path, read, remedy, make);
        }
    }

    /// What is made of what was read.
    fn take<T>(
        &self,
        path: &Path,
        read: io::Result<Zeroizing<Vec<u8>>>,
        remedy: &str,
        make: impl Fn(&[u8]) -> Result<T, String>,
    ) -> Result<T, io::Error> {
        let unusable = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
        let made = read.and_then(|bytes| Ok((make(&bytes).map_err(unusable)?, bytes)));
        let (error, good) = {
            let mut all = self.seen();
            let seen = all.entry(path.to_owned()).or_default();
            match made {
                Ok((made, bytes)) => {
                    if seen.wrong.take().is_some() {
                        tracing::info!(path = %path.display(), "it can be used again");
                    }
                    seen.good = Some(Arc::new(bytes));
                    return Ok(made);
                }
                Err(error) => {
                    let instead = if seen.good.is_some() {
                        "; what was there before is used"
                    } else {
                        ""
                    };
                    let wrong = format!("{}: {error}: {remedy}{instead}", path.display());
                    if seen.wrong.as_ref() != Some(&wrong) {
                        tracing::error!("{wrong}");
                        seen.wrong = Some(wrong);
                    }
                    (error, seen.good.clone())
                }
            }
        };
        let Some(good) = good else { return Err(error) };
        // It could be made before.
        make(&good).map_err(unusable)
    }

    /// A file's bytes, within a time. Of a file that hangs, as one on a network may, one thread at a time is lost to it, also where
    /// whoever asked does not wait for the end.
    pub(super) async fn bytes(&self, path: &Path, most: u64) -> io::Result<Zeroizing<Vec<u8>>> {
        let late = || io::Error::new(io::ErrorKind::TimedOut, format!("it was not read within {READING:?}"));
        let until = Instant::now() + READING;
        let done = loop {
            match self.begin(path) {
                Ok(done) => break done,
                Err((mut other, begun)) => {
                    // Nothing is ever sent: it ends with the read.
                    if timeout_at(until.min(begun + READING), other.changed()).await.is_err() {
                        return Err(late());
                    }
                }
            }
        };
        let of = path.to_owned();
        let read = task::spawn_blocking(move || {
            let mut bytes = Zeroizing::new(Vec::new());
            let read = plain::read_into(&of, most, &mut bytes);
            drop(done);
            read.map(|_| bytes)
        });
        match timeout_at(until, read).await {
            Ok(read) => read.map_err(io::Error::other)?,
            Err(_) => Err(late()),
        }
    }

    /// Notes that a read of a file begins, which lasts as long as what is given is kept; else the one that is under way.
    fn begin(&self, path: &Path) -> Result<watch::Sender<()>, (watch::Receiver<()>, Instant)> {
        let mut all = self.seen();
        let seen = all.entry(path.to_owned()).or_default();
        match &seen.reading {
            Some((other, begun)) if other.has_changed().is_ok() => Err((other.clone(), *begun)),
            _ => {
                let (done, reading) = watch::channel(());
                seen.reading = Some((reading, Instant::now()));
                Ok(done)
            }
        }
    }

    fn seen(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Seen>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long a file may take: one on a network may hang.
const READING: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn text(bytes: &[u8]) -> Result<String, String> {
        match std::str::from_utf8(bytes) {
            Ok("") => Err("it is empty".into()),
            Ok(text) => Ok(text.into()),
            Err(_) => Err("it is no text".into()),
        }
    }

    #[tokio::test]
    async fn what_was_there_before_counts_until_the_file_can_be_used_again() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("token");
        let files = Files::default();
        let read = async || files.read(&path, 10, "put one there", text).await;
        assert_eq!(read().await.unwrap_err().kind(), io::ErrorKind::NotFound);
        fs::write(&path, "first").unwrap();
        assert_eq!(read().await.unwrap(), "first");
        assert!(files.faults().is_empty());
        let breaks: [(&dyn Fn(), &str); 4] = [
            (&|| fs::remove_file(&path).unwrap(), "No such file"),
            (&|| fs::write(&path, "").unwrap(), "it is empty"),
            (&|| fs::write(&path, [0xff]).unwrap(), "it is no text"),
            (&|| fs::write(&path, "eleven byte").unwrap(), "longer than the 10 bytes"),
        ];
        for (n, (break_it, why)) in breaks.into_iter().enumerate() {
            break_it();
            assert_eq!(read().await.unwrap(), if n == 0 { "first" } else { "again" });
            let faults = files.faults();
            assert_eq!(faults.len(), 1);
            for part in [path.to_str().unwrap(), why, "put one there", "what was there before is used"] {
                assert!(faults[0].contains(part), "{faults:?} does not say {part:?}");
            }
            fs::write(&path, "again").unwrap();
            assert_eq!((read().await.unwrap(), files.clone().faults()), ("again".into(), Vec::new()));
        }
    }

    #[tokio::test]
    async fn a_look_tells_what_a_read_would_and_misses_nothing_that_never_was_there() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("token");
        let files = Files::default();
        let look = async || {
            files.look(&path, 10, "put one there", text).await;
            files.faults()
        };
        assert!(look().await.is_empty());
        fs::write(&path, "").unwrap();
        assert!(look().await[0].contains("it is empty: put one there"));
        fs::write(&path, "good").unwrap();
        assert!(look().await.is_empty());
        fs::remove_file(&path).unwrap();
        assert!(look().await[0].ends_with("what was there before is used"));
    }

    /// Whoever asked may not wait for the end: its read goes on, and no other begins before that.
    #[test]
    fn a_file_that_hangs_costs_one_thread_whoever_waits_for_it() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("token");
        fs::write(&path, "good").unwrap();
        let files = Files::default();
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().start_paused(true).max_blocking_threads(1).build().unwrap();
        runtime.block_on(async {
            // The only thread there is: no read goes on.
            let (go, wait) = std::sync::mpsc::channel::<()>();
            let busy = task::spawn_blocking(move || wait.recv());
            let a_while = async || {
                for _ in 0..20 {
                    task::yield_now().await;
                }
            };
            let look = async || {
                tokio::select! {
                    () = files.look(&path, 10, "put one there", text) => true,
                    () = a_while() => false,
                }
            };
            assert!(!look().await);
            tokio::time::advance(READING / 2).await;
            assert!(!look().await && files.faults().is_empty(), "it is not late yet");
            tokio::time::advance(READING).await;
            assert!(look().await, "another read was begun");
            assert!(files.faults()[0].contains("it was not read within 5s"), "{:?}", files.faults());
            drop(go);
            busy.await.unwrap().unwrap_err();
            // It is done after the read that waits.
            task::spawn_blocking(|| ()).await.unwrap();
            assert_eq!(files.read(&path, 10, "put one there", text).await.unwrap(), "good");
            assert!(files.faults().is_empty());
        });
    }

    #[tokio::test]
    async fn what_has_no_end_is_not_waited_for() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("token");
        let files = Files::default();
        fs::write(&path, "good").unwrap();
        let read = async || {
            tokio::time::timeout(READING, files.read(&path, 10, "put one there", text))
                .await
                .expect("at once")
        };
        assert_eq!(read().await.unwrap(), "good");
        fs::remove_file(&path).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert_eq!(read().await.unwrap(), "good");
        let faults = files.faults();
        let named = path.to_str().unwrap();
        assert!(faults[0].contains(named) && faults[0].contains("it is a pipe"), "{faults:?}");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert_eq!(read().await.unwrap(), "good");
        assert!(files.faults()[0].contains("it is a directory"));
    }
}

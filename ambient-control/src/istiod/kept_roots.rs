//! The roots that came with certificates, on disk: written beside whoever asked for a certificate, as a disk may take its time.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::time::{Instant, sleep};

use crate::disk::trust::{KeptTrust, Root, TrustFile};

/// Where roots are kept, and what was last. Clones are the same.
#[derive(Clone)]
pub(super) struct KeptRoots(Arc<Shared>);

struct Shared {
    file: TrustFile,
    desk: Mutex<Desk>,
    #[cfg(test)]
    tries: std::sync::atomic::AtomicUsize,
}

struct Desk {
    last: KeptTrust,
    /// What is to be written next.
    next: Option<KeptTrust>,
    /// Since when something is written.
    since: Option<Instant>,
    failed: Option<String>,
    /// Whether it is to be tried again in a while.
    is_owed: bool,
}

impl KeptRoots {
    pub(super) fn new(file: TrustFile) -> Self {
        let last = KeptTrust {
            heard: SystemTime::UNIX_EPOCH,
            roots: Vec::new(),
            lists: Vec::new(),
        };
        let desk = Desk {
            last,
            next: None,
            since: None,
            failed: None,
            is_owed: false,
        };
        Self(Arc::new(Shared {
            file,
            desk: Mutex::new(desk),
            #[cfg(test)]
            tries: Default::default(),
        }))
    }

    /// Keeps the roots of now, where they are others than those that are kept, or were kept a while ago. It waits for nothing;
    /// what cannot be kept is told, and only a restart misses it.
    pub(super) fn keep(&self, roots: Vec<Root>, heard: SystemTime) {
        let mut desk = self.desk();
        let recent = heard.duration_since(desk.last.heard).is_ok_and(|age| age < KEEPING);
        let alike = |(a, b): (&Root, &Root)| a.of == b.of && a.der == b.der;
        if recent && desk.last.roots.len() == roots.len() && desk.last.roots.iter().zip(&roots).all(alike) {
            return;
        }
        desk.last = KeptTrust {
            heard,
            roots,
            lists: Vec::new(),
        };
        self.begin(&mut desk);
    }

    /// Has what was last written, now or after what is being written.
    fn begin(&self, desk: &mut Desk) {
        desk.next = Some(desk.last.clone());
        if desk.since.is_none() {
            desk.since = Some(Instant::now());
            let kept = self.clone();
            tokio::task::spawn_blocking(move || kept.write());
        }
    }

    /// Tries again what could not be written, after a while.
    fn owe(&self) {
        let kept = Arc::downgrade(&self.0);
        tokio::spawn(async move {
            sleep(AGAIN).await;
            let Some(kept) = kept.upgrade().map(Self) else { return };
            let mut desk = kept.desk();
            desk.is_owed = false;
            if desk.failed.is_some() && desk.since.is_none() {
                kept.begin(&mut desk);
            }
        });
    }

    fn write(&self) {
        loop {
            let next = {
                let mut desk = self.desk();
                let next = desk.next.take();
                desk.since = next.is_some().then(Instant::now);
                if next.is_none() && desk.failed.is_some() && !std::mem::replace(&mut desk.is_owed, true) {
                    self.owe();
                }
                next
            };
            let Some(next) = next else { return };
            #[cfg(test)]
            self.0.tries.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let written = self.0.file.keep(&next);
            let why = |error| format!("the roots that came are not remembered: a restart without the authority has none: {error}");
            let failed = written.err().map(why);
            let before = std::mem::replace(&mut self.desk().failed, failed.clone());
            match failed {
                Some(why) if before.as_ref() != Some(&why) => tracing::error!("{why}"),
                None if before.is_some() => tracing::info!("the roots that came are remembered again"),
                _ => {}
            }
        }
    }

    /// Why they are not kept.
    pub(super) fn fault(&self) -> Option<String> {
        let desk = self.desk();
        match desk.since {
            Some(since) if since.elapsed() >= SLOW => Some(format!(
                "the roots that came are not remembered: the disk has taken nothing for {SLOW:?} and longer"
            )),
            _ => desk.failed.clone(),
        }
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.0.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How old the kept roots' dates may be.
const KEEPING: Duration = Duration::from_secs(60);
/// When it is tried again what could not be written.
const AGAIN: Duration = Duration::from_secs(2);
/// How long a disk may take before that is told.
const SLOW: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    fn root(name: &str) -> Root {
        Root {
            of: "cluster.local".parse().unwrap(),
            der: name.into(),
            until: SystemTime::UNIX_EPOCH + Duration::from_secs(1000),
        }
    }

    /// Waits for a thread that no clock here knows of, and not without end.
    async fn until(is_so: impl Fn() -> bool) {
        for _ in 0..20_000 {
            if is_so() {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
            tokio::task::yield_now().await;
        }
        panic!("not within twenty seconds");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_the_disk_and_what_came_last_is_kept() {
        let scratch = tempfile::tempdir().unwrap();
        let (file, _) = TrustFile::open(scratch.path(), "istiod.roots").unwrap();
        let stalls = file.stalls.clone();
        stalls.store(true, Ordering::Relaxed);
        let kept = KeptRoots::new(file);
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        kept.keep(vec![root("a")], at(100));
        until(|| kept.desk().next.is_none()).await;
        kept.keep(vec![root("b")], at(101));
        kept.keep(vec![root("c")], at(102));
        assert_eq!(kept.fault(), None);
        tokio::time::advance(SLOW).await;
        assert!(kept.fault().is_some_and(|why| why.contains("has taken nothing for 10s and longer")));
        stalls.store(false, Ordering::Relaxed);
        until(|| kept.desk().since.is_none()).await;
        assert_eq!(kept.fault(), None);
        let (_, found) = TrustFile::open(scratch.path(), "istiod.roots").unwrap();
        assert_eq!(found.unwrap().roots, [root("c")]);
    }

    /// What cannot be written is told for as long as it cannot, and no longer.
    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_written_is_tried_again() {
        let scratch = tempfile::tempdir().unwrap();
        let in_the_way = scratch.path().join("istiod.roots.new");
        let (file, _) = TrustFile::open(scratch.path(), "istiod.roots").unwrap();
        let kept = KeptRoots::new(file);
        std::fs::create_dir(&in_the_way).unwrap();
        kept.keep(vec![root("a")], SystemTime::UNIX_EPOCH + Duration::from_secs(100));
        until(|| kept.fault().is_some()).await;
        sleep(3 * AGAIN).await;
        assert!(
            kept.fault().is_some_and(|why| why.contains("istiod.roots")),
            "it is in the way still"
        );
        std::fs::remove_dir(&in_the_way).unwrap();
        let kept_at_last = async {
            while kept.fault().is_some() {
                sleep(AGAIN).await;
            }
        };
        tokio::time::timeout(100 * AGAIN, kept_at_last).await.expect("it is tried again");
        let (_, found) = TrustFile::open(scratch.path(), "istiod.roots").unwrap();
        assert_eq!(found.unwrap().roots, [root("a")]);
    }
    /// However often others come meanwhile.
    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_written_is_tried_once_in_a_while() {
        let scratch = tempfile::tempdir().unwrap();
        let (file, _) = TrustFile::open(scratch.path(), "istiod.roots").unwrap();
        let kept = KeptRoots::new(file);
        std::fs::create_dir(scratch.path().join("istiod.roots.new")).unwrap();
        for n in 0..20 {
            kept.keep(vec![root(&n.to_string())], SystemTime::UNIX_EPOCH + Duration::from_secs(n));
            until(|| kept.desk().since.is_none()).await;
        }
        let before = kept.0.tries.load(Ordering::Relaxed);
        sleep(10 * AGAIN).await;
        let tries = kept.0.tries.load(Ordering::Relaxed) - before;
        assert!((5..=10).contains(&tries), "{tries} in ten times {AGAIN:?}");
    }
}

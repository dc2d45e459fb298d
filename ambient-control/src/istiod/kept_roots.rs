//! The roots that came with certificates, on disk: written beside whoever asked for a certificate, as a disk may take its time.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

use crate::disk::trust::{KeptTrust, Root, TrustFile};

/// Where roots are kept, and what was last. Clones are the same.
#[derive(Clone)]
pub(super) struct KeptRoots(Arc<Shared>);

struct Shared {
    file: TrustFile,
    desk: Mutex<Desk>,
}

struct Desk {
    last: KeptTrust,
    /// What is to be written next.
    next: Option<KeptTrust>,
    /// Since when something is written.
    since: Option<Instant>,
    failed: Option<String>,
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
        };
        Self(Arc::new(Shared {
            file,
            desk: Mutex::new(desk),
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
        desk.next = Some(desk.last.clone());
        if desk.since.is_none() {
            desk.since = Some(Instant::now());
            let kept = self.clone();
            tokio::task::spawn_blocking(move || kept.write());
        }
    }

    fn write(&self) {
        loop {
            let next = {
                let mut desk = self.desk();
                let next = desk.next.take();
                desk.since = next.is_some().then(Instant::now);
                next
            };
            let Some(next) = next else { return };
            let written = self.0.file.keep(&next);
            self.desk().failed = written.err().map(|error| {
                let why = format!("the roots that came are not remembered: a restart without the authority has none: {error}");
                tracing::error!("{why}");
                why
            });
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

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_the_disk_and_what_came_last_is_kept() {
        let scratch = tempfile::tempdir().unwrap();
        let (file, _) = TrustFile::open(scratch.path(), "istiod.roots").unwrap();
        let stalls = file.stalls.clone();
        stalls.store(true, Ordering::Relaxed);
        let kept = KeptRoots::new(file);
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        kept.keep(vec![root("a")], at(100));
        while kept.desk().next.is_some() {
            tokio::task::yield_now().await;
        }
        kept.keep(vec![root("b")], at(101));
        kept.keep(vec![root("c")], at(102));
        assert_eq!(kept.fault(), None);
        tokio::time::advance(SLOW).await;
        assert!(kept.fault().is_some_and(|why| why.contains("has taken nothing for 10s and longer")));
        stalls.store(false, Ordering::Relaxed);
        while kept.desk().since.is_some() {
            tokio::task::yield_now().await;
        }
        assert_eq!(kept.fault(), None);
        let (_, found) = TrustFile::open(scratch.path(), "istiod.roots").unwrap();
        assert_eq!(found.unwrap().roots, [root("c")]);
        // What cannot be written is told for as long as it cannot.
        std::fs::create_dir(scratch.path().join("istiod.roots.new")).unwrap();
        for (is_told, name) in [(true, "d"), (false, "e")] {
            kept.keep(vec![root(name)], at(103));
            while kept.desk().since.is_some() {
                tokio::task::yield_now().await;
            }
            assert_eq!(kept.fault().is_some(), is_told);
            let _ = std::fs::remove_dir(scratch.path().join("istiod.roots.new"));
        }
    }
}

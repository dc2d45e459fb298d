//! What nodes report to a control plane, kept in the directory that it serves.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError},
    time::SystemTime,
};

use ambient_core::PodUid;
use tokio::task;

use super::{Status, directory};
use crate::{BoxFuture, serve::Captures};

/// Keeps each node's report in `status/NODE.json` of a directory of manifests, as a node of the same directory does itself.
///
/// A node reports either here or itself: two would undo each other's reports.
pub struct Statuses {
    dir: PathBuf,
    clock: fn() -> SystemTime,
    nodes: Arc<Mutex<Nodes>>,
}

type Nodes = HashMap<String, Status>;

impl std::fmt::Debug for Statuses {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Statuses").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Statuses {
    /// The reports in a directory of manifests; `clock` dates them.
    pub fn new(dir: impl Into<PathBuf>, clock: fn() -> SystemTime) -> Arc<Self> {
        Arc::new(Self {
            dir: dir.into(),
            clock,
            nodes: Arc::default(),
        })
    }

    /// Of a node that has called before, at once; else the disk is waited for, and by none of the runtime's threads. So it is
    /// where somebody else waits for it meanwhile.
    async fn of(&self, node: &str) -> io::Result<Status> {
        let known = match self.nodes.try_lock() {
            Ok(nodes) => nodes.get(node).cloned(),
            Err(TryLockError::Poisoned(nodes)) => nodes.into_inner().get(node).cloned(),
            Err(TryLockError::WouldBlock) => None,
        };
        if let Some(status) = known {
            return Ok(status);
        }
        let (nodes, dir, node) = (self.nodes.clone(), self.dir.clone(), node.to_owned());
        let opened = task::spawn_blocking(move || {
            let mut nodes = lock(&nodes);
            if let Some(status) = nodes.get(&node) {
                return Ok(status.clone());
            }
            let status = Status::open(&dir, &node)?;
            nodes.insert(node, status.clone());
            Ok(status)
        });
        opened
            .await
            .unwrap_or_else(|_| Err(io::Error::other("not read, as the program is ending")))
    }

    /// Every pod that some node's report names, also of nodes that have not called yet.
    pub(super) fn named(&self) -> BTreeSet<PodUid> {
        let present = self.present();
        let others = self.others(&present);
        // It may be the node itself that writes it: read anew each time. What is no report is told by whoever reads it.
        let others = others.iter().filter_map(|name| Status::open(&self.dir, name).ok());
        let all = present.values().cloned().chain(others);
        all.flat_map(|status| status.named()).collect()
    }

    /// Forgets pods that are gone, and gives what was wrong first, if anything: the others are seen to all the same. May block.
    pub(super) fn forget(&self, gone: &BTreeSet<PodUid>) -> io::Result<()> {
        let present = self.present();
        let mut done: Vec<_> = present.values().map(|status| status.forget(gone)).collect();
        for name in self.others(&present) {
            if Status::open(&self.dir, &name).is_ok_and(|status| !status.named().is_disjoint(gone)) {
                done.push(self.forget_of(&name, gone));
            }
        }
        done.into_iter().collect()
    }

    /// Of a node that has not called yet. If it does meanwhile it waits: there are never two values for one.
    fn forget_of(&self, name: &str, gone: &BTreeSet<PodUid>) -> io::Result<()> {
        let nodes = lock(&self.nodes);
        if let Some(status) = nodes.get(name).cloned() {
            drop(nodes);
            return status.forget(gone);
        }
        Status::open(&self.dir, name)?.forget(gone)
    }

    /// Of the nodes that have called: nobody waits while these are written.
    fn present(&self) -> Nodes {
        lock(&self.nodes).clone()
    }

    /// The nodes of the other reports.
    fn others(&self, present: &Nodes) -> Vec<String> {
        let files = directory::names_of_reports(&self.dir.join("status")).unwrap_or_default();
        let names = files.iter().filter_map(|name| name.strip_suffix(".json"));
        names.filter(|name| !present.contains_key(*name)).map(Into::into).collect()
    }
}

fn lock(nodes: &Mutex<Nodes>) -> MutexGuard<'_, Nodes> {
    nodes.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Captures for Statuses {
    fn report<'a>(&'a self, node: &'a str, pod: &'a PodUid, addresses: &'a [IpAddr], captured: bool) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            let status = self.of(node).await?;
            match captured {
                true => status.captured(pod, addresses, (self.clock)()).await,
                false => status.withdrawn(pod).await,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_report_stands_in_the_file_of_its_node() {
        let scratch = tempfile::tempdir().unwrap();
        let statuses = Statuses::new(scratch.path(), || SystemTime::UNIX_EPOCH);
        let (one, two) = (PodUid::from("uid-1"), PodUid::from("uid-2"));
        statuses.report("node-1", &one, &["10.0.0.1".parse().unwrap()], true).await.unwrap();
        statuses.report("node-2", &two, &[], true).await.unwrap();
        statuses.report("node-2", &two, &[], false).await.unwrap();
        let pods = |node: &str| Status::open(scratch.path(), node).unwrap().pods();
        assert_eq!(pods("node-1"), std::slice::from_ref(&one));
        assert!(pods("node-2").is_empty());
        assert!(statuses.report("../x", &one, &[], true).await.is_err());
    }

    /// Whoever writes of another node has the lock for as long as the disk takes.
    #[tokio::test]
    async fn a_disk_that_is_waited_for_keeps_no_thread_of_the_runtime() {
        let scratch = tempfile::tempdir().unwrap();
        let statuses = Statuses::new(scratch.path(), || SystemTime::UNIX_EPOCH);
        let one = PodUid::from("uid-1");
        for known in [false, true] {
            let (begun, begins) = std::sync::mpsc::channel();
            let (done, ends) = std::sync::mpsc::channel::<()>();
            let nodes = statuses.nodes.clone();
            let disk = std::thread::spawn(move || {
                let _held = lock(&nodes);
                begun.send(()).unwrap();
                // Here the report comes, and what else the only thread of this runtime has to do.
                let ended = ends.recv_timeout(std::time::Duration::from_secs(20));
                assert!(ended.is_ok(), "the runtime waits with it");
            });
            begins.recv().unwrap();
            let reported = statuses.report("node-1", &one, &[], true);
            let else_done = async { done.send(()).unwrap() };
            let (reported, ()) = tokio::join!(reported, else_done);
            reported.unwrap();
            disk.join().unwrap();
            assert_eq!(statuses.present().len(), 1, "known before: {known}");
        }
    }
}

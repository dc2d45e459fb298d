//! What nodes report to a control plane, kept in the directory that it serves.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use ambient_core::PodUid;

use super::{Status, directory};
use crate::{BoxFuture, serve::Captures};

/// Keeps each node's report in `status/NODE.json` of a directory of manifests, as a node of the same directory does itself.
///
/// A node reports either here or itself: two would undo each other's reports.
pub struct Statuses {
    dir: PathBuf,
    clock: fn() -> SystemTime,
    nodes: Mutex<HashMap<String, Status>>,
}

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
            nodes: Mutex::default(),
        })
    }

    fn of(&self, node: &str) -> io::Result<Status> {
        let mut nodes = self.lock();
        if let Some(status) = nodes.get(node) {
            return Ok(status.clone());
        }
        let status = Status::open(&self.dir, node)?;
        nodes.insert(node.to_owned(), status.clone());
        Ok(status)
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
        let nodes = self.lock();
        if let Some(status) = nodes.get(name).cloned() {
            drop(nodes);
            return status.forget(gone);
        }
        Status::open(&self.dir, name)?.forget(gone)
    }

    /// Of the nodes that have called: nobody waits while these are written.
    fn present(&self) -> HashMap<String, Status> {
        self.lock().clone()
    }

    /// The nodes of the other reports.
    fn others(&self, present: &HashMap<String, Status>) -> Vec<String> {
        let files = directory::names(&self.dir.join("status"), &["json"]).unwrap_or_default();
        let names = files.iter().filter_map(|name| name.strip_suffix(".json"));
        names.filter(|name| !present.contains_key(*name)).map(Into::into).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Status>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Captures for Statuses {
    fn report<'a>(&'a self, node: &'a str, pod: &'a PodUid, addresses: &'a [IpAddr], captured: bool) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            let status = self.of(node)?;
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
}

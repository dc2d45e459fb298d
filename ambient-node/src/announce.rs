//! Telling the other nodes which pods are captured here: in a mesh directory, through a control plane, or not at all.

use std::{io, sync::Arc, time::Duration};

use ambient_control::{istiod::Reports, manifests::Status};
use ambient_core::{NetworkMode, PodUid, TunnelProtocol, Workload};
use ambient_redirect::{Announce, BoxFuture, PodSpec};
use tokio::time;

use crate::{clock, state::State};

#[cfg(test)]
mod tests;

/// How long a withdrawal takes to reach every node that watches the directory: they look every 200 ms.
///
/// Until then the pod goes on being served as captured, so that nobody who has not heard is refused.
const HEARD: Duration = Duration::from_millis(400);

/// Announces captured pods in the directory's `status/NODE.json`.
#[derive(Debug)]
pub struct AnnounceInDirectory(Status);

impl AnnounceInDirectory {
    /// Announces through a node's status file.
    pub fn new(status: Status) -> Self {
        Self(status)
    }
}

impl Announce for AnnounceInDirectory {
    fn announced(&self) -> Option<Vec<PodUid>> {
        Some(self.0.pods())
    }

    fn captured<'a>(&'a self, pod: &'a PodSpec) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async move { self.0.captured(&pod.uid, &pod.addresses, clock::wall()).await })
    }

    fn withdrawn<'a>(&'a self, uid: &'a PodUid) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            self.0.withdrawn(uid).await?;
            time::sleep(HEARD).await;
            Ok(())
        })
    }
}

/// Announces captured pods through `ambient control`.
#[derive(Debug)]
pub struct AnnounceToControl(Reports);

/// How long a withdrawal takes to reach every node from there: the directory is looked at first, twice.
const TOLD: Duration = Duration::from_secs(1);

impl AnnounceToControl {
    /// Announces through reports to a control plane.
    pub fn new(reports: Reports) -> Self {
        Self(reports)
    }
}

impl Announce for AnnounceToControl {
    /// The control plane tells that of every pod to every node alike.
    fn announced(&self) -> Option<Vec<PodUid>> {
        None
    }

    fn captured<'a>(&'a self, pod: &'a PodSpec) -> BoxFuture<'a, io::Result<()>> {
        let told = self.0.report(&pod.uid, &pod.addresses, true);
        Box::pin(async move { told.await.map_err(io::Error::other) })
    }

    fn withdrawn<'a>(&'a self, uid: &'a PodUid) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            self.0.report(uid, &[], false).await.map_err(io::Error::other)?;
            time::sleep(TOLD).await;
            Ok(())
        })
    }
}

/// Announces as is said, and knows from the mesh's state what an earlier process has announced, where that is told nowhere else.
pub(crate) struct ByState {
    announce: Arc<dyn Announce>,
    /// The name of this node.
    node: Arc<str>,
    state: Arc<State>,
}

impl ByState {
    pub(crate) fn over(announce: Arc<dyn Announce>, node: &Arc<str>, state: &Arc<State>) -> Arc<Self> {
        Arc::new(Self {
            announce,
            node: node.clone(),
            state: state.clone(),
        })
    }
}

impl Announce for ByState {
    fn announced(&self) -> Option<Vec<PodUid>> {
        self.announce.announced().or_else(|| {
            let now = self.state.current()?;
            let ours = now.mesh.workloads_of_node(&self.node).filter(|workload| is_announced(workload));
            Some(ours.filter_map(|workload| workload.pod.clone()).collect())
        })
    }

    fn captured<'a>(&'a self, pod: &'a PodSpec) -> BoxFuture<'a, io::Result<()>> {
        self.announce.captured(pod)
    }

    fn withdrawn<'a>(&'a self, uid: &'a PodUid) -> BoxFuture<'a, io::Result<()>> {
        self.announce.withdrawn(uid)
    }
}

/// Whether a pod is reached by tunnel because its node has said so: what speaks HBONE itself, as a waypoint does, is so by its
/// own word.
fn is_announced(workload: &Workload) -> bool {
    workload.tunnel == TunnelProtocol::Hbone && !workload.native_tunnel && workload.network_mode == NetworkMode::Standard
}

/// Announces nothing: who is captured is told by somebody else, as Istio's istio-cni does by an annotation.
#[derive(Clone, Copy, Debug)]
pub struct AnnounceNothing;

impl Announce for AnnounceNothing {
    fn captured<'a>(&'a self, _: &'a PodSpec) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn withdrawn<'a>(&'a self, _: &'a PodUid) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

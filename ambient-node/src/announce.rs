//! Telling the other nodes which pods are captured here: in a mesh directory, through a control plane, or not at all.

use std::{io, time::Duration};

use ambient_control::{istiod::Reports, manifests::Status};
use ambient_core::PodUid;
use ambient_redirect::{Announce, BoxFuture, PodSpec};
use tokio::time;

use crate::clock;

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
    fn announced(&self) -> Vec<PodUid> {
        self.0.pods()
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

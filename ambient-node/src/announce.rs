//! Telling the other nodes which pods are captured here, in a mesh directory.

use std::{io, time::Duration};

use ambient_control::manifests::Status;
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

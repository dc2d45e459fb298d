//! The pod that the node's own process runs in, as a workload of the mesh: it takes tunnels, as to its metrics.

use std::sync::Arc;

use ambient_core::{Capture, PodUid, TunnelProtocol, WorkloadUid};
use ambient_redirect::{PodSpec, linux::Netns};
use tokio::time;

use super::{FIRST_AGAIN, LAST_AGAIN, Pods, refuse};
use crate::{OwnPod, state::Snapshot};

impl Pods {
    /// Serves the pod of this process once the mesh says that it takes tunnels; before that nobody sends it any, and neither a
    /// port nor a certificate is asked for. Never ends.
    pub(crate) async fn serve_own(self: Arc<Self>, own: OwnPod) {
        let named = self.node.config.workload_of_pod(&own.namespace, &own.name);
        let mut news = self.node.state.news();
        let uid = loop {
            if let Some(uid) = self.node.state.current().and_then(|now| takes_tunnels(&now, &named)) {
                break uid;
            }
            if news.changed().await.is_err() {
                // Who tells has gone, with all of the node.
                return std::future::pending().await;
            }
        };
        let spec = PodSpec {
            uid,
            namespace: own.namespace,
            name: own.name,
            service_account: own.service_account,
            addresses: Vec::new(),
            capture: Capture::default(),
            has_run: true,
        };
        let mut pause = FIRST_AGAIN;
        // It is there already where what served it before has panicked.
        while self.present(&spec.uid).is_none() {
            match self.begin_own(&spec).await {
                Ok(()) => tracing::info!(pod = %spec, "the pod of this process takes tunnels, as the mesh says"),
                Err(error) => {
                    tracing::warn!(pod = %spec, %error, again_in = ?pause, "the mesh says that the pod of this process takes tunnels, and it cannot yet");
                    time::sleep(pause).await;
                    pause = (pause * 2).min(LAST_AGAIN);
                }
            }
        }
        std::future::pending().await
    }

    async fn begin_own(&self, spec: &PodSpec) -> Result<(), ambient_redirect::ProxyError> {
        let namespace = Netns::current().map_err(|e| refuse("opening the namespace of this process", std::io::Error::other(e)))?;
        let pod = Arc::new(self.admit(spec, namespace.into()).await?.own());
        self.listen(&pod, spec).await?;
        self.enter(pod);
        Ok(())
    }
}

/// Whom the mesh says that a workload's pod is, if it says that it takes tunnels. Where it tells of no UID, as istiod does not, the
/// name stands for it.
fn takes_tunnels(now: &Snapshot, named: &WorkloadUid) -> Option<PodUid> {
    let workload = now.mesh.workload(named).filter(|w| w.tunnel == TunnelProtocol::Hbone)?;
    Some(workload.pod.clone().unwrap_or_else(|| named.to_string().as_str().into()))
}

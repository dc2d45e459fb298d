//! The pod that the node's own process runs in, as a workload of the mesh: it takes tunnels, as to its metrics.

use std::{future::pending, sync::Arc};

use ambient_core::{Capture, PodUid, TunnelProtocol, WorkloadUid};
use ambient_redirect::{PodSpec, Proxy as _, ProxyError, linux::Netns};
use tokio::time;

use super::{FIRST_AGAIN, LAST_AGAIN, Pods, refuse};
use crate::{
    OwnPod,
    pod::Pod,
    state::{SETTLING, Snapshot},
};

impl Pods {
    /// Serves the pod of this process, if it is told which that is, for as long as the mesh says that it takes tunnels. Before that
    /// nobody sends it any, and neither a port nor a certificate is asked for; after it what is open goes on as in a pod that leaves.
    /// Never ends. The node drops it as it stops, and what it serves then drains with the other pods, whichever of both comes first.
    pub(crate) async fn serve_own(self: Arc<Self>) {
        let Some(own) = &self.node.config.own_pod else {
            return pending().await;
        };
        let named = self.node.config.workload_of_pod(&own.namespace, &own.name);
        loop {
            let uid = self.said_of(&named, |said| said).await;
            let spec = spec_of(own, &uid);
            tokio::select! {
                () = self.keep_own(&spec) => {}
                () = self.said_of(&named, |said| (said.as_ref() != Some(&uid)).then_some(())) => {}
            }
            let back = self.said_of(&named, |said| (said.as_ref() == Some(&uid)).then_some(()));
            tokio::select! {
                () = self.let_own_go(&spec) => {}
                () = back => continue,
            }
            // From here on it cannot come back as it is.
            self.cut(&spec.uid).await;
            self.remove(&spec.uid).await;
            tracing::info!(pod = %spec, "the pod of this process takes no tunnels any more, as the mesh says");
        }
    }

    /// Waits until something is to be made of what the mesh says of a pod: whom it calls so, if it takes tunnels. What is too old to
    /// go by says nothing. Cancel safe.
    async fn said_of<T>(&self, named: &WorkloadUid, mut make: impl FnMut(Option<PodUid>) -> Option<T>) -> T {
        let mut news = self.node.state.news();
        loop {
            let now = self.node.state.current();
            if let Some(made) = now.and_then(|now| make(takes_tunnels(&now, named))) {
                return made;
            }
            if news.changed().await.is_err() {
                // Who tells has gone, with all of the node.
                return pending().await;
            }
        }
    }

    /// Brings the pod up, however often that fails, and never ends. It is there already where it was about to leave, or where what
    /// served it before has panicked.
    async fn keep_own(&self, spec: &PodSpec) {
        let mut pod = self.present(&spec.uid).filter(|pod| pod.resume());
        let mut pause = FIRST_AGAIN;
        while let Err(error) = self.begin_own(spec, &mut pod).await {
            tracing::warn!(pod = %spec, %error, again_in = ?pause, "the mesh says that the pod of this process takes tunnels, and it cannot yet");
            time::sleep(pause).await;
            pause = (pause * 2).min(LAST_AGAIN);
        }
        tracing::info!(pod = %spec, "the pod of this process takes tunnels, as the mesh says");
        pending().await
    }

    /// What there is of it is held through failures: a certificate is asked for once, however long a port is taken.
    async fn begin_own(&self, spec: &PodSpec, pod: &mut Option<Arc<Pod>>) -> Result<(), ProxyError> {
        let pod = match pod {
            Some(pod) => pod,
            None => {
                let namespace = Netns::current().map_err(|e| refuse("opening the namespace of this process", std::io::Error::other(e)))?;
                pod.insert(Arc::new(self.admit(spec, namespace.into()).await?.own()))
            }
        };
        self.listen(pod, spec).await?;
        self.enter(pod.clone());
        Ok(())
    }

    /// Takes nothing new once others have heard of it, as this node has, and waits until what is open has ended, or has had its time.
    async fn let_own_go(&self, spec: &PodSpec) {
        time::sleep(SETTLING).await;
        let _ = time::timeout(self.node.config.leave, self.drain(&spec.uid)).await;
    }
}

fn spec_of(own: &OwnPod, uid: &PodUid) -> PodSpec {
    PodSpec {
        uid: uid.clone(),
        namespace: own.namespace.clone(),
        name: own.name.clone(),
        service_account: own.service_account.clone(),
        addresses: Vec::new(),
        capture: Capture::default(),
        has_run: true,
    }
}

/// Whom the mesh says that a workload's pod is, if it says that it takes tunnels. Where it tells of no UID, as istiod does not, the
/// name stands for it.
fn takes_tunnels(now: &Snapshot, named: &WorkloadUid) -> Option<PodUid> {
    let workload = now.mesh.workload(named).filter(|w| w.tunnel == TunnelProtocol::Hbone)?;
    Some(workload.pod.clone().unwrap_or_else(|| named.to_string().as_str().into()))
}

//! Connections that were open when their pod joined: outside of the mesh, and closed once a policy would refuse them.
//!
//! Nobody knows who speaks in them, so that they are asked about as connections without an identity; and only those that came
//! to the pod, as it is the server's policies that decide. Those that the pod opened are for the server's node, whatever they
//! are there: kept as well, or taken in plaintext, and asked about at every change. Where no node captures the server no policy
//! is in force there. This node could not say it as well: what it sees may be a service's address, and which policies hold at
//! the other end it need not know.

use std::{sync::Arc, time::Duration};

use ambient_authz::{Conn, Decision, Peer};
use ambient_redirect::{
    KeptConnections,
    pods::{Direction, Kept, PodState},
};
use tokio::{
    sync::{Notify, watch},
    time,
};

use crate::{
    state::{Snapshot, State},
    telemetry::Metrics,
};

/// Holds them to policy for as long as pods are told of. `changed` is told after every change of policies or workloads.
pub(crate) async fn hold_to_policy(
    state: Arc<State>,
    metrics: Arc<Metrics>,
    mut states: watch::Receiver<Arc<[PodState]>>,
    connections: KeptConnections,
    changed: Arc<Notify>,
) {
    loop {
        let pods = states.borrow_and_update().clone();
        metrics.kept_connections(pods.iter().map(|pod| pod.kept.len()).sum());
        let mut refused_some = false;
        if let Some(snapshot) = state.current() {
            for pod in pods.iter().filter(|pod| !pod.kept.is_empty()) {
                let refused = refused(&snapshot, pod);
                let Some((_, why)) = refused.first() else { continue };
                let uid = pod.spec.uid.clone();
                let (why, all) = (why.clone(), refused.into_iter().map(|(kept, _)| kept).collect());
                refused_some = true;
                let closed = connections.close(uid.clone(), all).await;
                if closed > 0 {
                    metrics.kept_connections_closed(closed);
                    let name = format_args!("{}/{}", pod.spec.namespace, pod.spec.name);
                    tracing::warn!(pod = %name, %uid, closed, why, "connections from before the pod joined are closed: policy refuses them");
                }
            }
        }
        // The next look of redirect's leaves out what was closed; what could not be is asked about again.
        let again = time::sleep(AGAIN);
        tokio::select! {
            ended = states.changed() => if ended.is_err() { return },
            () = changed.notified() => {}
            () = again, if refused_some => {}
        }
    }
}

/// Those that policy would refuse now, and why.
fn refused(snapshot: &Snapshot, pod: &PodState) -> Vec<(Kept, String)> {
    // One that is not in the mesh's state is on its way out of it.
    let Some(workload) = snapshot.mesh.workload_by_pod(&pod.spec.uid) else {
        return Vec::new();
    };
    let (target, peer) = (snapshot.policies.target(workload), Peer::plaintext());
    let inbound = pod.kept.iter().filter(|kept| kept.direction == Direction::Inbound);
    let refused = inbound.filter_map(|kept| {
        let conn = Conn {
            peer: &peer,
            source: kept.remote.ip(),
            destination: kept.local,
        };
        match target.decide_again(&snapshot.policies, &conn) {
            Decision::Allow(_) => None,
            Decision::Deny(denial) => Some((kept.clone(), format!("{kept}: {denial}"))),
        }
    });
    refused.collect()
}

const AGAIN: Duration = Duration::from_secs(5);

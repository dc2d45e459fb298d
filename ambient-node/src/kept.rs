//! Connections that were open when their pod joined: outside of the mesh, and closed once a policy would refuse them.
//!
//! Nobody knows who speaks in them, so that they are asked about as connections without an identity; and only those that came
//! to the pod, as it is the server's policies that decide. Those that the pod opened are for the server's node, whatever they
//! are there: kept as well, or taken in plaintext, and asked about at every change. Where no node captures the server no policy
//! is in force there. This node could not say it as well: what it sees may be a service's address, and which policies hold at
//! the other end it need not know.

use std::{collections::HashMap, sync::Arc, time::Duration};

use ambient_authz::{Conn, Decision, Denial, Peer};
use ambient_core::PodUid;
use ambient_redirect::{
    KeptConnections,
    pods::{Direction, Kept, PodState},
};
use tokio::{
    sync::{Notify, watch},
    time::{self, Instant},
};

use crate::{
    feed::GRACE,
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
    let mut unsure = Unsure::default();
    loop {
        let pods = states.borrow_and_update().clone();
        metrics.kept_connections(pods.iter().map(|pod| pod.kept.len()).sum());
        let mut refused_some = false;
        if let Some(snapshot) = state.current() {
            unsure.0.retain(|uid, _| pods.iter().any(|pod| pod.spec.uid == *uid));
            for pod in pods.iter().filter(|pod| !pod.kept.is_empty()) {
                let uid = pod.spec.uid.clone();
                let refused = unsure.certain(&uid, refused(&snapshot, pod), Instant::now());
                let Some((first, denial)) = refused.first() else { continue };
                let (why, all) = (format!("{first}: {denial}"), refused.into_iter().map(|(kept, _)| kept).collect());
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
        let now = Instant::now();
        let settled = unsure.0.values().filter(|until| **until > now).min().copied();
        let settled = async {
            match settled {
                Some(at) => time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ended = states.changed() => if ended.is_err() { return },
            () = changed.notified() => {}
            () = again, if refused_some => {}
            () = settled => {}
        }
    }
}

/// Pods that list a policy which is not there, and until when it may still come, or be listed no more; see [`GRACE`].
#[derive(Default)]
struct Unsure(HashMap<PodUid, Instant>);

impl Unsure {
    /// Of those of a pod that are refused the ones that are to be closed now.
    fn certain<T>(&mut self, pod: &PodUid, mut refused: Vec<(T, Denial)>, now: Instant) -> Vec<(T, Denial)> {
        if !refused.iter().any(|(_, denial)| matches!(denial, Denial::NotArrived(_))) {
            self.0.remove(pod);
        } else if now < *self.0.entry(pod.clone()).or_insert(now + GRACE) {
            refused.retain(|(_, denial)| !matches!(denial, Denial::NotArrived(_)));
        }
        refused
    }
}

/// Those that policy would refuse now, and why.
fn refused(snapshot: &Snapshot, pod: &PodState) -> Vec<(Kept, Denial)> {
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
            Decision::Deny(denial) => Some((kept.clone(), denial)),
        }
    });
    refused.collect()
}

const AGAIN: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_is_not_closed_for_a_policy_that_may_still_come_or_be_listed_no_more() {
        let (pod, begun) = (PodUid::from("cart"), Instant::now());
        let missing = || ("kept", Denial::NotArrived("shop/on-its-way".into()));
        let mut unsure = Unsure::default();
        assert_eq!(unsure.certain(&pod, vec![missing()], begun), []);
        let denied = || ("another", Denial::NoneAllowed);
        assert_eq!(unsure.certain(&pod, vec![missing(), denied()], begun + GRACE / 2), [denied()]);
        assert_eq!(unsure.certain::<&str>(&pod, vec![], begun + GRACE / 2), []);
        assert_eq!(unsure.certain(&pod, vec![missing()], begun + GRACE), [], "it begins anew");
        // Also where closing it fails the first time.
        for later in [GRACE, 2 * GRACE] {
            assert_eq!(unsure.certain(&pod, vec![missing()], begun + GRACE + later), [missing()]);
        }
    }
}

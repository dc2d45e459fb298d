//! Which pods of a node are meant to be in the mesh, and how that goes, as the log tells it.

use std::{collections::HashMap, sync::Arc};

use ambient_core::{NetworkMode, PodUid, Workload};
use ambient_redirect::{
    PodSpec,
    linux::Stranger,
    pods::{PodState, State as PodStage, Step},
};
use tokio::sync::watch;

use crate::{state::Snapshot, telemetry::Metrics};

/// Why no pod's DNS can be captured.
pub(crate) const NO_DNS: &str = "the node knows no DNS server; name a resolv.conf with --resolv-conf";

/// The pods of a node that are meant to be in the mesh; with a reason why their DNS cannot be captured, if it cannot.
pub(crate) fn pods_of(node: &Arc<str>, no_dns: Option<&'static str>, now: &Snapshot) -> Arc<[PodSpec]> {
    let ours = now.mesh.workloads_of_node(node).filter(|w| is_meant(w));
    ours.filter_map(|workload| spec_of(workload, no_dns)).collect()
}

/// Those of them whose UID is not told, as it is not by istiod: until an agent of others says it, the workload's name stands for it.
pub(crate) fn unnamed(node: &Arc<str>, now: &Snapshot) -> Vec<PodSpec> {
    let ours = now.mesh.workloads_of_node(node).filter(|w| is_meant(w) && w.pod.is_none());
    ours.map(|workload| spec(workload, workload.uid.as_str().into(), None)).collect()
}

/// A workload as a pod; `None` where its UID is not told.
pub(crate) fn spec_of(workload: &Workload, no_dns: Option<&'static str>) -> Option<PodSpec> {
    Some(spec(workload, workload.pod.clone()?, no_dns))
}

fn spec(workload: &Workload, uid: PodUid, no_dns: Option<&'static str>) -> PodSpec {
    let mut capture = workload.capture.as_deref().cloned().unwrap_or_default();
    if let Some(why) = no_dns {
        capture.refuse_dns(why);
    }
    PodSpec {
        uid,
        namespace: workload.namespace.clone(),
        name: workload.name.clone(),
        service_account: workload.service_account.clone(),
        addresses: workload.addresses.clone(),
        capture,
        has_run: workload.has_run,
    }
}

/// Whether a workload is a pod to be captured: one that speaks HBONE itself, as a waypoint does, is not, nor one that has its
/// node's addresses.
pub(crate) fn is_meant(workload: &Workload) -> bool {
    workload.ambient && !workload.native_tunnel && workload.network_mode == NetworkMode::Standard
}

/// Puts into the log how each pod stands, when that changes, and counts.
pub(crate) async fn tell_of_pods(metrics: Arc<Metrics>, mut states: watch::Receiver<Arc<[PodState]>>) {
    let mut told: HashMap<PodUid, (PodStage, Arc<[Stranger]>)> = HashMap::new();
    loop {
        let now = states.borrow_and_update().clone();
        let captured = |pod: &&PodState| matches!(pod.state, PodStage::In { .. });
        metrics.uncovered_pods(now.len() - now.iter().filter(captured).count());
        metrics.pods_with_strangers(now.iter().filter(|pod| !pod.strangers.is_empty()).count());
        for pod in now.iter() {
            let before = told.get(&pod.spec.uid);
            if before.map(|(stage, _)| stage) != Some(&pod.state) {
                tell(pod);
            }
            if before.map_or(&[][..], |(_, strangers)| strangers) != &pod.strangers[..] {
                tell_of_strangers(pod);
            }
        }
        let of = |pod: &PodState| (pod.spec.uid.clone(), (pod.state.clone(), pod.strangers.clone()));
        told = now.iter().map(of).collect();
        if states.changed().await.is_err() {
            return;
        }
    }
}

fn tell_of_strangers(pod: &PodState) {
    let (name, uid) = (format_args!("{}/{}", pod.spec.namespace, pod.spec.name), &pod.spec.uid);
    let rules: Vec<String> = pod.strangers.iter().map(ToString::to_string).collect();
    match rules.is_empty() {
        true => tracing::info!(pod = %name, uid = %uid, "no rules of others come before the pod's capture any more"),
        false => tracing::warn!(
            pod = %name,
            uid = %uid,
            rules = rules.join("; "),
            "rules of others come before the pod's capture: what they take does not reach the proxy"
        ),
    }
}

fn tell(pod: &PodState) {
    if pod.spec.name.is_empty() {
        // Nothing is known of it but what an earlier process has left.
        let namespace = pod.namespace.map(|id| id.to_string());
        let uid = Some(pod.spec.uid.as_str()).filter(|uid| namespace.as_deref() != Some(*uid));
        return match &pod.state {
            PodStage::Refused { error } => tracing::error!(uid, namespace, %error, "what an earlier process has left cannot be taken away"),
            _ => tracing::info!(
                uid,
                namespace,
                "what an earlier process has left is taken away: its pod is not meant to be in the mesh, or not here"
            ),
        };
    }
    let (name, uid) = (format_args!("{}/{}", pod.spec.namespace, pod.spec.name), &pod.spec.uid);
    let said = pod.said.as_deref();
    match &pod.state {
        PodStage::In { proof, .. } => tracing::info!(pod = %name, uid = %uid, added = said, %proof, "pod captured"),
        PodStage::Pairing { why } => tracing::info!(pod = %name, uid = %uid, %why, "pod waits for its network namespace"),
        PodStage::Refused { error } if error.step == Step::Announce => {
            tracing::error!(pod = %name, uid = %uid, %error, "pod captured, but not announced: until it is, others reach it in plaintext");
        }
        PodStage::Refused { error } => tracing::error!(pod = %name, uid = %uid, %error, "pod refused: its capture cannot be upheld"),
        PodStage::Leaving => tracing::info!(pod = %name, uid = %uid, "pod is leaving the mesh"),
        _ => {}
    }
}

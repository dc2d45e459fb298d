//! A pod as a workload of the mesh.

use std::{net::IpAddr, sync::Arc};

use ambient_authz::kubernetes::Labels;
use ambient_core::{Capture, Health, NetworkMode, PodUid, TunnelProtocol, Workload, WorkloadKind};

use super::{
    Settings,
    kinds::{ContainerStatus, Pod, PodStatus},
    selection::{self, Candidate},
};

/// The workload that a pod is, not captured and without policies; `None` while it has no address, and once it has ended.
pub(super) fn workload(settings: &Settings, pod: &Pod, namespace_labels: &Labels) -> Option<Workload> {
    let addresses = addresses(pod);
    if addresses.is_empty() || is_terminal(pod) {
        return None;
    }
    let meta = &pod.metadata;
    let mut workload = Workload::new(&uid(settings, meta.namespace(), &meta.name), meta.namespace(), &meta.name);
    workload.pod = meta.uid.as_deref().map(PodUid::from);
    workload.addresses = addresses;
    workload.trust_domain = settings.trust_domain.clone();
    if let Some(account) = &pod.spec.service_account_name {
        workload.service_account = account.as_str().into();
    }
    workload.node = pod.spec.node_name.as_deref().unwrap_or_default().into();
    workload.cluster = settings.cluster_id.clone();
    workload.ambient = is_ambient(settings, pod, namespace_labels);
    let capture = Capture::read(|key| meta.annotations.get(key).map(String::as_str));
    workload.capture = (!capture.is_default()).then(|| Arc::new(capture));
    workload.has_run = has_run(&pod.status);
    if pod.spec.host_network {
        workload.network_mode = NetworkMode::HostNetwork;
    }
    workload.health = health(pod);
    (workload.kind, workload.workload_name) = owner(pod);
    workload.canonical_name = label(&meta.labels, &["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"])
        .unwrap_or_else(|| workload.workload_name.clone());
    workload.canonical_revision = label(
        &meta.labels,
        &["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"],
    )
    .unwrap_or_else(|| "latest".into());
    Some(workload)
}

/// Says of a workload that its node has captured it: also where it is no longer meant to be, as until its node has let
/// it go its own rules refuse plaintext.
pub(super) fn capture(workload: &mut Workload) {
    if workload.network_mode == NetworkMode::Standard {
        workload.tunnel = TunnelProtocol::Hbone;
    }
}

/// The name of a pod in the mesh, as istiod writes it.
pub(super) fn uid(settings: &Settings, namespace: &str, name: &str) -> String {
    format!("{}//Pod/{namespace}/{name}", settings.cluster_id)
}

/// Whether a pod is meant to be in the mesh.
fn is_ambient(settings: &Settings, pod: &Pod, namespace_labels: &Labels) -> bool {
    let meta = &pod.metadata;
    let candidate = Candidate {
        namespace_labels,
        host_network: pod.spec.host_network,
        phase: pod.status.phase.as_deref(),
        ..Candidate::new(meta.namespace(), &meta.labels, &meta.annotations)
    };
    settings.selection.decide(&candidate).is_ok()
}

fn addresses(pod: &Pod) -> Vec<IpAddr> {
    let status = &pod.status;
    let mut addresses: Vec<IpAddr> = Vec::new();
    for text in status.pod_ips.iter().map(|ip| &ip.ip).chain(&status.pod_ip) {
        if let Ok(ip) = text.parse::<IpAddr>().map(|ip| ip.to_canonical())
            && !addresses.contains(&ip)
        {
            addresses.push(ip);
        }
    }
    addresses
}

fn is_terminal(pod: &Pod) -> bool {
    pod.status.phase.as_deref().is_some_and(selection::is_terminal)
}

/// Whether something may have run in a pod. A kubelet says `Pending` until a container runs, but while one of those runs that
/// come before them.
fn has_run(status: &PodStatus) -> bool {
    if status.phase.as_deref() != Some("Pending") {
        // Also where nobody keeps a status of it.
        return true;
    }
    let ran = |c: &ContainerStatus| {
        let seen = [&c.state, &c.last_state]
            .iter()
            .any(|s| s.running.is_some() || s.terminated.is_some());
        seen || c.started || c.restart_count > 0
    };
    let lists = [
        &status.container_statuses,
        &status.init_container_statuses,
        &status.ephemeral_container_statuses,
    ];
    lists.into_iter().flatten().any(ran)
}

fn health(pod: &Pod) -> Health {
    let ready = pod.status.conditions.iter().find(|c| c.kind == "Ready");
    let healthy = match (ready, pod.status.phase.as_deref()) {
        (Some(ready), _) => ready.status == "True",
        (None, Some(phase)) => phase == "Running",
        // Nobody keeps a status of it, as in a file that was written by hand.
        (None, None) => true,
    };
    if healthy && pod.metadata.deletion_timestamp.is_none() {
        Health::Healthy
    } else {
        Health::Unhealthy
    }
}

fn owner(pod: &Pod) -> (WorkloadKind, Arc<str>) {
    let meta = &pod.metadata;
    let owner = meta.owner_references.iter().find(|o| o.controller == Some(true));
    let alone = || (WorkloadKind::Pod, meta.name.as_str().into());
    let Some(owner) = owner else { return alone() };
    match owner.kind.as_str() {
        "ReplicaSet" => {
            // One that no Deployment made has no such label, and then the pod stands for itself.
            let hash = meta.labels.get("pod-template-hash").filter(|hash| !hash.is_empty());
            let name = hash.and_then(|hash| owner.name.strip_suffix(hash.as_str())?.strip_suffix('-'));
            name.filter(|name| !name.is_empty())
                .map_or_else(alone, |name| (WorkloadKind::Deployment, name.into()))
        }
        "Job" => match owner.name.rsplit_once('-') {
            // A CronJob's are named after the minute they were made for.
            Some((name, minute)) if (8..=10).contains(&minute.len()) && minute.bytes().all(|b| b.is_ascii_digit()) => {
                (WorkloadKind::CronJob, name.into())
            }
            _ => (WorkloadKind::Job, owner.name.as_str().into()),
        },
        _ => alone(),
    }
}

fn label(labels: &Labels, keys: &[&str]) -> Option<Arc<str>> {
    keys.iter().find_map(|key| labels.get(*key)).map(|value| value.as_str().into())
}

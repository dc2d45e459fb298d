//! What each metric is called, and what it is.

use std::sync::{Arc, OnceLock};

use ambient_control::StreamCounts;
use prometheus_client::registry::Registry;

use super::{
    super::{
        lookups::{self, NamesAsked},
        runtimes::{Counted, Runtimes},
        series::{Traffic, Written},
        streams::Streams,
    },
    Metrics,
};

/// What is counted, in the order in which it is written.
pub(super) fn add(registry: &mut Registry, metrics: &Metrics) {
    traffic(registry, metrics);
    process(registry, metrics);
    served(registry, metrics);
    captures(registry, metrics);
    policies(registry, metrics);
    state(registry, metrics);
    trust(registry, metrics);
}

/// What is copied before it is written: it holds up nobody, however slowly that goes.
pub(super) fn list(
    registry: &mut Registry,
    traffic: &Arc<Traffic>,
    streams: &Arc<OnceLock<StreamCounts>>,
    names_asked: &Arc<NamesAsked>,
    runtimes: &Arc<OnceLock<Vec<Counted>>>,
) {
    registry.register_collector(Box::new(Written(traffic.clone())));
    registry.register_collector(Box::new(Streams(streams.clone())));
    registry.register_collector(Box::new(lookups::Written(names_asked.clone())));
    registry.register_collector(Box::new(Runtimes(runtimes.clone())));
}

/// What an enrolment has whose proxy is another process.
pub(super) fn add_of_enrolment(registry: &mut Registry, metrics: &Metrics) {
    process(registry, metrics);
    captures(registry, metrics);
    state(registry, metrics);
}

fn state(registry: &mut Registry, metrics: &Metrics) {
    registry.register(
        "ambient_state_age_seconds",
        "How long ago the source of the mesh's state was heard of; 0 while it is there (unstable)",
        metrics.state_age.clone(),
    );
    registry.register(
        "ambient_state_faults",
        "What is wrong with what state and certificates come from; readiness names each (unstable)",
        metrics.state_faults.clone(),
    );
}

fn trust(registry: &mut Registry, metrics: &Metrics) {
    registry.register(
        "ambient_trust_age_seconds",
        "How long ago the authority has said which roots are trusted; 0 where they are the node's own (unstable)",
        metrics.trust_age.clone(),
    );
    registry.register(
        "ambient_node_certificate_end_seconds",
        "When this node's own certificate for its control plane ends, in seconds since 1970; 0 without one (unstable)",
        metrics.known_until.clone(),
    );
    registry.register(
        "ambient_certificates_missing",
        "Identities that this node's pods need and that have no valid certificate (unstable)",
        metrics.certificates_missing.clone(),
    );
    registry.register(
        "ambient_certificates_refused",
        "Identities whose certificate peers refuse, by the roots and revocations that this node knows (unstable)",
        metrics.certificates_refused.clone(),
    );
    registry.register(
        "ambient_certificate_requests",
        "Requests for certificates, by how they have ended (unstable)",
        metrics.certificate_requests.clone(),
    );
}

fn traffic(registry: &mut Registry, metrics: &Metrics) {
    registry.register(
        "istio_tcp_sockets_open",
        "Connections that are open (unstable)",
        metrics.sockets_open.clone(),
    );
    registry.register(
        "ambient_connections_failed",
        "Connections that were refused or broken off, by the reason that the log gives (unstable)",
        metrics.failures.clone(),
    );
    registry.register(
        "istio_crl_policy_rejections",
        "Connections that were refused, as the certificate of their peer is revoked (unstable)",
        metrics.revoked.clone(),
    );
    registry.register(
        "ambient_connect_seconds",
        "From a connection's opening until its other end is open too (unstable)",
        metrics.connect_seconds.clone(),
    );
    registry.register(
        "ambient_first_byte_seconds",
        "From a connection's opening until the first byte of an answer (unstable)",
        metrics.first_byte_seconds.clone(),
    );
    registry.register(
        "ambient_handshake_seconds",
        "Handshakes of tunnels that came, and of those that were dialled (unstable)",
        metrics.handshake_seconds.clone(),
    );
    registry.register(
        "ambient_streams_given_up",
        "Streams whose last bytes are lost, as the peer took none of them for two minutes (unstable)",
        metrics.streams_given_up.clone(),
    );
    registry.register(
        "ambient_series",
        "Label sets of Istio's metrics at the last look (unstable)",
        metrics.series.clone(),
    );
    registry.register(
        "ambient_series_folded",
        "Connections counted under unknown ends, because the bound on series was reached (unstable)",
        metrics.traffic.folded.clone(),
    );
    registry.register(
        "ambient_handshakes_refused",
        "Tunnels refused in the handshake (unstable)",
        metrics.handshakes_refused.clone(),
    );
    registry.register(
        "ambient_connections_shed",
        "Connections reset at once, because a pod had too many (unstable)",
        metrics.connections_shed.clone(),
    );
}

fn process(registry: &mut Registry, metrics: &Metrics) {
    registry.register("istio_build", "The proxy and its version (unstable)", metrics.build.clone());
    registry.register(
        "process_open_fds",
        "Descriptors that the process has open (unstable)",
        metrics.open_fds.clone(),
    );
    registry.register(
        "process_max_fds",
        "Descriptors that the process may have open (unstable)",
        metrics.max_fds.clone(),
    );
    registry.register(
        "process_resident_memory_bytes",
        "Memory of the process that is present (unstable)",
        metrics.resident_memory.clone(),
    );
    registry.register(
        "ambient_accept_failures",
        "Times that no connection could be accepted, for want of descriptors or memory (unstable)",
        metrics.accept_failures.clone(),
    );
    registry.register(
        "ambient_tasks_restarted",
        "Tasks of the node that have panicked, and were begun anew (unstable)",
        metrics.tasks_restarted.clone(),
    );
    registry.register(
        "ambient_log_lines_lost",
        "Log lines dropped, because the reader of the log was too slow (unstable)",
        metrics.log_lines_lost.clone(),
    );
}

fn served(registry: &mut Registry, metrics: &Metrics) {
    registry.register(
        "workload_manager_active_proxy_count",
        "Pods that this node serves (unstable)",
        metrics.pods.clone(),
    );
    registry.register(
        "workload_manager_proxies_started",
        "Pods that this node has begun to serve (unstable)",
        metrics.pods_started.clone(),
    );
    registry.register(
        "workload_manager_proxies_stopped",
        "Pods that this node has ceased to serve (unstable)",
        metrics.pods_stopped.clone(),
    );
    registry.register(
        "workload_manager_pending_proxy_count",
        "Pods that this node is to serve, and that are not captured (unstable)",
        metrics.pods_pending.clone(),
    );
}

fn captures(registry: &mut Registry, metrics: &Metrics) {
    registry.register(
        "ambient_pods_not_captured",
        "Pods that are meant to be in the mesh and whose capture is not proven (unstable)",
        metrics.pods_uncovered.clone(),
    );
    registry.register(
        "ambient_pods_with_foreign_rules",
        "Pods in whose namespace rules of others come before those that capture; what they take does not reach the proxy (unstable)",
        metrics.pods_with_strangers.clone(),
    );
    registry.register(
        "ambient_connections_kept",
        "Connections from before their pod joined the mesh that are open still, outside of it (unstable)",
        metrics.kept.clone(),
    );
    registry.register(
        "ambient_connections_kept_closed",
        "Connections from before their pod joined that were closed, because policy refuses them (unstable)",
        metrics.kept_closed.clone(),
    );
    registry.register(
        "ambient_captures_repaired",
        "Captures that were found broken, and are proven again (unstable)",
        metrics.pods_repaired.clone(),
    );
    registry.register(
        "ambient_connections_around",
        "Connections that went around the mesh while a capture was broken, found right after its repair and reset (unstable)",
        metrics.connections_around.clone(),
    );
}

fn policies(registry: &mut Registry, metrics: &Metrics) {
    registry.register(
        "ambient_policies_unreadable",
        "Policies whose present version cannot be read, by what is in force instead (unstable)",
        metrics.policies_unreadable.clone(),
    );
    registry.register(
        "ambient_policies_missing",
        "Policies that this node's workloads list and that have not come, by whom each refuses (unstable)",
        metrics.policies_missing.clone(),
    );
}

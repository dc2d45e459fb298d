use std::{path::Path, time::Duration};

use serde::Serialize;

use crate::Config;

/// What the process is.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Version {
    version: &'static str,
    git_revision: &'static str,
    rust_version: &'static str,
    build_profile: &'static str,
    build_status: &'static str,
    istio_version: &'static str,
    crypto_provider: &'static str,
}

impl Default for Version {
    fn default() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            // Whoever builds a release may tell.
            git_revision: option_env!("AMBIENT_GIT_REVISION").unwrap_or("unknown"),
            rust_version: option_env!("AMBIENT_RUST_VERSION").unwrap_or("unknown"),
            build_profile: if cfg!(debug_assertions) { "debug" } else { "release" },
            build_status: option_env!("AMBIENT_BUILD_STATUS").unwrap_or("unknown"),
            istio_version: "unknown",
            crypto_provider: "tls-aws-lc",
        }
    }
}

/// What the node was started with. It holds no secret.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct View<'a> {
    node: &'a str,
    netns_dir: &'a Path,
    trust_domain: &'a str,
    cluster_domain: &'a str,
    nameservers: &'a [std::net::SocketAddr],
    istio_exact: bool,
    let_unreadable_policies_go: bool,
    local_shortcut: bool,
    localhost_app_tunnel: bool,
    post_quantum_only: bool,
    ipv6: bool,
    metrics: std::net::SocketAddr,
    readiness: std::net::SocketAddr,
    admin: std::net::SocketAddr,
    workers: usize,
    connections: usize,
    connections_per_pod: usize,
    connect_timeout: Duration,
    share_ports: bool,
    pool_streams: u32,
    pool_idle: Duration,
    drain: Duration,
}

impl<'a> From<&'a Config> for View<'a> {
    fn from(c: &'a Config) -> Self {
        Self {
            node: &c.node,
            netns_dir: &c.netns_dir,
            trust_domain: c.trust_domain.as_str(),
            cluster_domain: &c.cluster_domain,
            nameservers: &c.nameservers,
            istio_exact: c.istio_exact,
            let_unreadable_policies_go: c.let_unreadable_policies_go,
            local_shortcut: c.local_shortcut,
            localhost_app_tunnel: c.localhost_app_tunnel,
            post_quantum_only: c.post_quantum_only,
            ipv6: c.ipv6,
            metrics: c.metrics,
            readiness: c.readiness,
            admin: c.admin,
            workers: c.workers,
            connections: c.connections,
            connections_per_pod: c.connections_per_pod,
            connect_timeout: c.connect_timeout,
            share_ports: c.share_ports,
            pool_streams: c.pool_streams,
            pool_idle: c.pool_idle,
            drain: c.drain,
        }
    }
}

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use ambient_core::ports;
use ambient_hbone::Limits;
use ambient_redirect::plan::PROXY_MARK;
use serde::Serialize;

use crate::{Config, ControlPlane, KeepAlive, Sources, Vouchers};

/// What the process is.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Version<'a> {
    version: &'static str,
    git_revision: &'static str,
    rust_version: &'static str,
    build_profile: &'static str,
    build_status: &'static str,
    /// As the node's metadata has it.
    istio_version: &'a str,
    crypto_provider: &'static str,
}

impl<'a> From<&'a Config> for Version<'a> {
    fn from(config: &'a Config) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            // Whoever builds a release may tell.
            git_revision: option_env!("AMBIENT_GIT_REVISION").unwrap_or("unknown"),
            rust_version: option_env!("AMBIENT_RUST_VERSION").unwrap_or("unknown"),
            build_profile: if cfg!(debug_assertions) { "debug" } else { "release" },
            build_status: option_env!("AMBIENT_BUILD_STATUS").unwrap_or("unknown"),
            istio_version: config.sources.metadata.get("ISTIO_VERSION").map_or("unknown", String::as_str),
            crypto_provider: "tls-aws-lc",
        }
    }
}

/// What the node was started with, under the names and in the forms of ztunnel's, which its readers know; what ztunnel has no
/// name for stands under ours. It holds no secret: of headers it has the names.
#[derive(Serialize)]
pub(super) struct View<'a> {
    #[serde(flatten)]
    ztunnels: Ztunnels<'a>,
    #[serde(flatten)]
    sources: SourcesView<'a>,
    #[serde(flatten)]
    ours: Ours<'a>,
}

impl<'a> From<&'a Config> for View<'a> {
    fn from(config: &'a Config) -> Self {
        Self {
            ztunnels: Ztunnels::from(config),
            sources: SourcesView::from(&config.sources),
            ours: Ours::from(config),
        }
    }
}

/// Where something listens.
#[derive(Serialize)]
enum At {
    /// On loopback, of IPv6 too or not.
    Localhost(bool, u16),
    SocketAddr(SocketAddr),
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Ztunnels<'a> {
    proxy: bool,
    dns_proxy: bool,
    /// Of a stream, at first.
    window_size: u32,
    connection_window_size: u32,
    frame_size: u32,
    pool_max_streams_per_conn: u32,
    pool_unused_release_timeout: Duration,
    socks5_addr: Option<SocketAddr>,
    admin_addr: At,
    stats_addr: At,
    readiness_addr: At,
    inbound_addr: SocketAddr,
    inbound_plaintext_addr: SocketAddr,
    outbound_addr: SocketAddr,
    dns_proxy_addr: At,
    illegal_ports: [u16; 4],
    /// That of each pod is what the mesh says of it.
    network: &'a str,
    local_node: &'a str,
    proxy_mode: &'static str,
    proxy_workload_information: Option<()>,
    cluster_id: &'a str,
    cluster_domain: &'a str,
    #[serde(rename = "preferedServiceNamespace")]
    preferred_service_namespace: Option<&'a str>,
    fake_ca: bool,
    fake_self_inbound: bool,
    self_termination_deadline: Duration,
    num_worker_threads: usize,
    /// Null says "where it can be", which is everywhere.
    require_original_source: Option<()>,
    dns_resolver_cfg: Resolver<'a>,
    dns_resolver_opts: Nothing,
    inpod_uds: Option<&'a Path>,
    inpod_port_reuse: bool,
    packet_mark: u32,
    socket_config: Sockets,
    localhost_app_tunnel: bool,
    ztunnel_identity: Option<()>,
    ztunnel_workload: Option<()>,
    ipv6_enabled: bool,
    enable_enhanced_baggage: bool,
}

impl<'a> From<&'a Config> for Ztunnels<'a> {
    fn from(c: &'a Config) -> Self {
        let any = match c.ipv6 {
            true => IpAddr::from(Ipv6Addr::UNSPECIFIED),
            false => Ipv4Addr::UNSPECIFIED.into(),
        };
        let everywhere = |port| SocketAddr::new(any, port);
        let limits = Limits::default();
        Self {
            proxy: true,
            dns_proxy: c.captures_dns(),
            window_size: limits.stream_window,
            // As wide as HTTP/2 has them: streams are bounded each by itself.
            connection_window_size: i32::MAX as u32,
            frame_size: limits.max_frame,
            pool_max_streams_per_conn: c.pool_streams,
            pool_unused_release_timeout: c.pool_idle,
            socks5_addr: None,
            admin_addr: At::Localhost(c.ipv6, c.admin.port()),
            stats_addr: At::SocketAddr(c.metrics),
            readiness_addr: At::SocketAddr(c.readiness),
            inbound_addr: everywhere(ports::HBONE),
            inbound_plaintext_addr: everywhere(ports::INBOUND_PLAINTEXT),
            outbound_addr: everywhere(ports::OUTBOUND),
            dns_proxy_addr: At::Localhost(c.ipv6, ports::DNS),
            illegal_ports: [ports::OUTBOUND, ports::INBOUND_PLAINTEXT, ports::HBONE, ports::DNS],
            network: c.assumed.network.as_deref().unwrap_or_default(),
            local_node: &c.node,
            proxy_mode: "Shared",
            proxy_workload_information: None,
            cluster_id: &c.cluster_id,
            cluster_domain: &c.cluster_domain,
            preferred_service_namespace: c.preferred_service_namespace.as_deref(),
            fake_ca: false,
            fake_self_inbound: false,
            self_termination_deadline: c.drain,
            num_worker_threads: c.workers,
            require_original_source: None,
            dns_resolver_cfg: Resolver::from(&c.nameservers[..]),
            dns_resolver_opts: Nothing {},
            inpod_uds: c.zds.as_deref(),
            inpod_port_reuse: c.share_ports,
            packet_mark: PROXY_MARK,
            socket_config: Sockets::from(&c.keep_alive),
            localhost_app_tunnel: c.localhost_app_tunnel,
            ztunnel_identity: None,
            ztunnel_workload: None,
            ipv6_enabled: c.ipv6,
            enable_enhanced_baggage: true,
        }
    }
}

#[derive(Serialize)]
struct Nothing {}

/// Where names are asked for if nobody says better.
#[derive(Serialize)]
struct Resolver<'a> {
    domain: Option<&'a str>,
    search: [&'a str; 0],
    name_servers: Vec<Nameserver>,
}

#[derive(Serialize)]
struct Nameserver {
    socket_addr: SocketAddr,
    protocol: &'static str,
    tls_dns_name: Option<()>,
    bind_addr: Option<()>,
}

impl From<&[SocketAddr]> for Resolver<'_> {
    fn from(nameservers: &[SocketAddr]) -> Self {
        let view = |at: &SocketAddr| Nameserver {
            socket_addr: *at,
            protocol: "udp",
            tls_dns_name: None,
            bind_addr: None,
        };
        Self {
            domain: None,
            search: [],
            name_servers: nameservers.iter().map(view).collect(),
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Sockets {
    keepalive_time: Duration,
    keepalive_interval: Duration,
    keepalive_retries: u32,
    keepalive_enabled: bool,
    user_timeout_enabled: bool,
}

impl From<&KeepAlive> for Sockets {
    fn from(keep_alive: &KeepAlive) -> Self {
        Self {
            keepalive_time: keep_alive.time,
            keepalive_interval: keep_alive.interval,
            keepalive_retries: keep_alive.retries,
            keepalive_enabled: keep_alive.enabled,
            user_timeout_enabled: keep_alive.user_timeout,
        }
    }
}

/// Where state and certificates come from.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SourcesView<'a> {
    xds_address: Option<&'a str>,
    xds_root_cert: Roots<'a>,
    alt_xds_hostname: Option<&'a str>,
    xds_headers: Vec<[&'a str; 2]>,
    xds_on_demand: bool,
    ca_address: Option<&'a str>,
    ca_root_cert: Roots<'a>,
    alt_ca_hostname: Option<&'a str>,
    ca_headers: Vec<[&'a str; 2]>,
    secret_ttl: Option<Duration>,
    crl_path: Option<&'a Path>,
    proxy_metadata: &'a BTreeMap<String, String>,
    proxy_args: &'a str,
    /// Ours: each by what says so.
    other_sources: BTreeMap<&'static str, &'a str>,
}

/// Objects all: what else ztunnel writes for some, readers in Go stumble over.
#[derive(Serialize)]
enum Roots<'a> {
    File(&'a Path),
    Static([(); 0]),
    Default([(); 0]),
}

impl<'a> From<&'a Vouchers> for Roots<'a> {
    fn from(vouchers: &'a Vouchers) -> Self {
        match vouchers {
            Vouchers::File(path) => Self::File(path),
            Vouchers::System => Self::Default([]),
            Vouchers::Given => Self::Static([]),
        }
    }
}

impl<'a> From<&'a Sources> for SourcesView<'a> {
    fn from(sources: &'a Sources) -> Self {
        let roots = |of: Option<&'a ControlPlane>| of.map_or(Roots::Static([]), |of| Roots::from(&of.roots));
        let headers = |of: Option<&'a ControlPlane>| of.into_iter().flat_map(|of| &of.headers).map(|name| [&**name, HIDDEN]).collect();
        let (state, certificates) = (sources.state.as_ref(), sources.certificates.as_ref());
        Self {
            xds_address: state.map(|of| &*of.address),
            xds_root_cert: roots(state),
            alt_xds_hostname: state.and_then(|of| of.other_name.as_deref()),
            xds_headers: headers(state),
            xds_on_demand: sources.on_demand,
            ca_address: certificates.map(|of| &*of.address),
            ca_root_cert: roots(certificates),
            alt_ca_hostname: certificates.and_then(|of| of.other_name.as_deref()),
            ca_headers: headers(certificates),
            secret_ttl: sources.certificate_life,
            crl_path: sources.crls.as_deref(),
            proxy_metadata: &sources.metadata,
            proxy_args: &sources.arguments,
            other_sources: sources.others.iter().map(|(by, what)| (*by, &**what)).collect(),
        }
    }
}

/// Stands for the value of a header, which may be a secret.
const HIDDEN: &str = "(hidden)";

/// What ztunnel has no name for.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Ours<'a> {
    netns_dir: &'a Path,
    cni: Option<&'a Path>,
    proc: Option<&'a Path>,
    /// `null` where it is what the mesh says.
    trust_domain: Option<&'a str>,
    istio_exact: bool,
    let_unreadable_policies_go: bool,
    local_shortcut: bool,
    post_quantum_only: bool,
    probes: bool,
    loopback_segments: bool,
    busy_poll: Duration,
    connections: usize,
    connections_per_pod: usize,
    connect_timeout: Duration,
    leave: Duration,
    open_when_unproven: bool,
}

impl<'a> From<&'a Config> for Ours<'a> {
    fn from(c: &'a Config) -> Self {
        Self {
            netns_dir: &c.netns_dir,
            cni: c.cni.as_deref(),
            proc: c.proc.as_deref(),
            trust_domain: (!c.trust_domain_of_mesh).then(|| c.trust_domain.as_str()),
            istio_exact: c.istio_exact,
            let_unreadable_policies_go: c.let_unreadable_policies_go,
            local_shortcut: c.local_shortcut,
            post_quantum_only: c.post_quantum_only,
            probes: c.probes,
            loopback_segments: c.loopback_segments,
            busy_poll: c.busy_poll,
            connections: c.connections,
            connections_per_pod: c.connections_per_pod,
            connect_timeout: c.connect_timeout,
            leave: c.leave,
            open_when_unproven: c.open_when_unproven,
        }
    }
}

#[cfg(test)]
mod tests;

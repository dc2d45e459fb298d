use serde::Deserialize;
use serde_json::{Value, json};

use super::*;

fn config() -> Config {
    let mut config = Config::new("node-1", "/run/netns");
    config.nameservers = vec!["10.96.0.10:53".parse().unwrap()];
    config.sources = Sources {
        state: Some(ControlPlane {
            address: "https://istiod.istio-system.svc:15012".into(),
            roots: Vouchers::File("./root-cert.pem".into()),
            other_name: Some("istiod.example".into()),
            headers: vec!["authorization".into()],
        }),
        certificates: Some(ControlPlane {
            address: "https://ca.example:443".into(),
            roots: Vouchers::System,
            other_name: None,
            headers: vec![],
        }),
        on_demand: true,
        certificate_life: Some(Duration::from_secs(3600)),
        metadata: [("DNS_CAPTURE".to_owned(), "true".to_owned())].into(),
        arguments: "proxy ztunnel".into(),
        ..Sources::default()
    };
    config
}

fn written(config: &Config) -> Value {
    serde_json::to_value(View::from(config)).unwrap()
}

/// ztunnel's names, in ztunnel's forms.
#[test]
fn what_ztunnel_has_a_name_for_stands_under_it() {
    let all = written(&config());
    for (name, value) in [
        ("proxy", json!(true)),
        ("dnsProxy", json!(true)),
        ("frameSize", json!(1_048_576)),
        ("poolMaxStreamsPerConn", json!(100)),
        ("poolUnusedReleaseTimeout", json!({"secs": 300, "nanos": 0})),
        ("socks5Addr", json!(null)),
        ("adminAddr", json!({"Localhost": [true, 15000]})),
        ("statsAddr", json!({"SocketAddr": "[::]:15020"})),
        ("readinessAddr", json!({"SocketAddr": "[::]:15021"})),
        ("inboundAddr", json!("[::]:15008")),
        ("inboundPlaintextAddr", json!("[::]:15006")),
        ("outboundAddr", json!("[::]:15001")),
        ("dnsProxyAddr", json!({"Localhost": [true, 15053]})),
        ("illegalPorts", json!([15001, 15006, 15008, 15053])),
        ("network", json!("")),
        ("localNode", json!("node-1")),
        ("proxyMode", json!("Shared")),
        ("proxyWorkloadInformation", json!(null)),
        ("clusterId", json!("Kubernetes")),
        ("clusterDomain", json!("cluster.local")),
        ("caAddress", json!("https://ca.example:443")),
        ("caRootCert", json!({"Default": []})),
        ("altCaHostname", json!(null)),
        ("xdsAddress", json!("https://istiod.istio-system.svc:15012")),
        ("xdsRootCert", json!({"File": "./root-cert.pem"})),
        ("altXdsHostname", json!("istiod.example")),
        ("preferedServiceNamespace", json!(null)),
        ("secretTtl", json!({"secs": 3600, "nanos": 0})),
        ("xdsOnDemand", json!(true)),
        ("fakeCa", json!(false)),
        ("selfTerminationDeadline", json!({"secs": 5, "nanos": 0})),
        ("proxyMetadata", json!({"DNS_CAPTURE": "true"})),
        ("requireOriginalSource", json!(null)),
        ("proxyArgs", json!("proxy ztunnel")),
        ("inpodUds", json!(null)),
        ("inpodPortReuse", json!(false)),
        ("packetMark", json!(1337)),
        (
            "socketConfig",
            json!({
                "keepaliveTime": {"secs": 180, "nanos": 0},
                "keepaliveInterval": {"secs": 180, "nanos": 0},
                "keepaliveRetries": 9,
                "keepaliveEnabled": true,
                "userTimeoutEnabled": false,
            }),
        ),
        ("xdsHeaders", json!([["authorization", "(hidden)"]])),
        ("caHeaders", json!([])),
        ("localhostAppTunnel", json!(true)),
        ("ztunnelIdentity", json!(null)),
        ("ztunnelWorkload", json!(null)),
        ("ipv6Enabled", json!(true)),
        ("crlPath", json!(null)),
        ("enableEnhancedBaggage", json!(true)),
    ] {
        assert_eq!(all.get(name), Some(&value), "{name}");
    }
    assert!(all["windowSize"].is_u64() && all["connectionWindowSize"].is_u64() && all["numWorkerThreads"].is_u64());
    let v4 = written(&Config { ipv6: false, ..config() });
    assert_eq!(
        (&v4["inboundAddr"], &v4["adminAddr"]),
        (&json!("0.0.0.0:15008"), &json!({"Localhost": [false, 15000]}))
    );
}

#[test]
fn the_version_of_istio_is_what_the_metadata_says() {
    let version = |config: &Config| serde_json::to_value(Version::from(config)).unwrap()["istioVersion"].clone();
    let mut config = config();
    assert_eq!(version(&config), "unknown");
    config.sources.metadata.insert("ISTIO_VERSION".into(), "1.31.0".into());
    assert_eq!(version(&config), "1.31.0");
}

/// The forms that Kiali's reader takes, which knows no other; a null is nothing to it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(dead_code, reason = "only its shape is asked")]
struct Reader {
    admin_addr: Localhost,
    alt_ca_hostname: Option<String>,
    alt_xds_hostname: Option<String>,
    ca_address: Option<String>,
    ca_root_cert: FilePath,
    cluster_domain: String,
    cluster_id: String,
    connection_window_size: i64,
    dns_proxy: bool,
    dns_proxy_addr: Localhost,
    dns_resolver_cfg: ResolverConfig,
    dns_resolver_opts: serde_json::Map<String, Value>,
    fake_ca: bool,
    fake_self_inbound: bool,
    frame_size: i64,
    illegal_ports: Vec<i64>,
    inbound_addr: String,
    inbound_plaintext_addr: String,
    inpod_port_reuse: bool,
    inpod_uds: Option<String>,
    local_node: String,
    network: String,
    num_worker_threads: i64,
    outbound_addr: String,
    packet_mark: i64,
    pool_max_streams_per_conn: i64,
    pool_unused_release_timeout: Time,
    proxy: bool,
    proxy_args: String,
    proxy_metadata: BTreeMap<String, String>,
    proxy_mode: String,
    proxy_workload_information: Option<String>,
    readiness_addr: SocketAddress,
    require_original_source: Option<String>,
    secret_ttl: Option<Time>,
    self_termination_deadline: Time,
    socks5_addr: Option<String>,
    stats_addr: SocketAddress,
    window_size: i64,
    xds_address: Option<String>,
    xds_on_demand: bool,
    xds_root_cert: FilePath,
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "only its shape is asked")]
struct Localhost {
    #[serde(rename = "Localhost")]
    at: Vec<Value>,
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "only its shape is asked")]
struct FilePath {
    #[serde(rename = "File", default)]
    path: String,
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "only its shape is asked")]
struct SocketAddress {
    #[serde(rename = "SocketAddr")]
    at: String,
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "only its shape is asked")]
struct Time {
    secs: i64,
    nanos: i64,
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "only its shape is asked")]
struct ResolverConfig {
    domain: Option<String>,
    search: Vec<String>,
    name_servers: Vec<NameserverConfig>,
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "only its shape is asked")]
struct NameserverConfig {
    socket_addr: String,
    protocol: String,
    tls_dns_name: Option<String>,
    bind_addr: Option<String>,
}

#[test]
fn who_reads_ztunnels_reads_it() {
    let bare = Config::new("node-1", "/run/netns");
    for config in [config(), bare] {
        let text = serde_json::to_string(&View::from(&config)).unwrap();
        let read = serde_json::from_str::<Reader>(&text);
        assert!(read.is_ok(), "{:?}: {text}", read.err());
    }
}

#[test]
fn no_name_stands_twice() {
    let text = serde_json::to_string(&View::from(&config())).unwrap();
    // As readers in Go do, without regard to case.
    let names: Vec<String> = written(&config())
        .as_object()
        .unwrap()
        .keys()
        .map(|name| name.to_lowercase())
        .collect();
    for name in &names {
        let quoted = format!("\"{name}\":");
        assert_eq!(text.to_lowercase().matches(&quoted).count(), 1, "{name}");
    }
}

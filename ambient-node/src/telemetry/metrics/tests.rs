use std::sync::Arc;

use ambient_control::StreamEnd;
use ambient_core::Workload;
use ambient_dns::observe;

use super::*;
use crate::telemetry::ends::{Direction, Ends, Flag};

fn ends(name: &str, direction: Direction) -> Ends {
    Ends {
        direction,
        source: "10.0.0.1:1".parse().unwrap(),
        source_workload: Some(Arc::new(Workload::new("u", "shop", name))),
        source_identity: Some("spiffe://cluster.local/ns/shop/sa/a".parse().unwrap()),
        application: "10.0.0.2:80".parse().unwrap(),
        destination: "10.0.0.2:80".parse().unwrap(),
        hbone: None,
        service: None,
        destination_workload: None,
        destination_identity: None,
        waypoint: false,
        double: false,
        mutual_tls: true,
        local: false,
        retries: 0,
        avoided: 0,
        guessed: false,
    }
}

fn value(text: &str, metric: &str, with: &[&str]) -> Option<u64> {
    let line = text
        .lines()
        .find(|line| line.starts_with(&format!("{metric}{{")) && with.iter().all(|label| line.contains(label)))?;
    line.rsplit_once(' ')?.1.parse().ok()
}

#[test]
fn bytes_stand_under_istios_names_and_labels() {
    let metrics = Metrics::default();
    let ends_of = ends("cart", Direction::Outbound);
    let opened = metrics.opened(&ends_of, clock::steady());
    opened.carried(10, 20);
    metrics.closed(&opened, &ends_of, Flag::None, None);
    let refused = metrics.attempted(&ends_of);
    metrics.closed(&refused, &ends_of, Flag::Deny, Some(Reason::PolicyDenied));
    // Broken off by one of its ends: of what Istio counts it is none that failed.
    let reset = metrics.attempted(&ends_of);
    metrics.closed(&reset, &ends_of, Flag::None, Some(Reason::ClientReset));
    let text = metrics.text().unwrap();
    let cart = [
        "reporter=\"source\"",
        "source_workload=\"cart\"",
        "response_flags=\"-\"",
        "connection_security_policy=\"mutual_tls\"",
    ];
    assert_eq!(value(&text, "istio_tcp_received_bytes_total", &cart), Some(10), "{text}");
    assert_eq!(value(&text, "istio_tcp_sent_bytes_total", &cart), Some(20));
    assert_eq!(value(&text, "istio_tcp_connections_opened_total", &cart), Some(3));
    assert_eq!(
        value(&text, "istio_tcp_connections_closed_total", &["response_flags=\"DENY\""]),
        Some(1)
    );
    assert_eq!(
        value(&text, "istio_tcp_connections_failed_total", &["response_flags=\"DENY\""]),
        Some(1)
    );
    assert_eq!(value(&text, "istio_tcp_connections_failed_total", &cart), None);
    let reset = ["reason=\"client_reset\"", "reporter=\"source\""];
    assert_eq!(value(&text, "ambient_connections_failed_total", &reset), Some(1));
    // Bytes stand under the labels that a connection was opened with, from then on, and under no others.
    assert_eq!(
        value(&text, "istio_tcp_sent_bytes_total", &["response_flags=\"DENY\""]),
        None,
        "{text}"
    );
    assert_eq!(
        value(
            &text,
            "istio_tcp_sent_bytes_total",
            &[
                "response_flags=\"-\"",
                "destination_workload=\"unknown\"",
                "source_principal=\"spiffe://cluster.local/ns/shop/sa/a\""
            ]
        ),
        Some(20)
    );
    assert_eq!(
        value(
            &text,
            "ambient_connections_failed_total",
            &["reason=\"policy_denied\"", "reporter=\"source\""]
        ),
        Some(1)
    );
    // One was open on both sides, two never were.
    assert_eq!(
        value(
            &text,
            "ambient_connect_seconds_count",
            &["connection_security_policy=\"mutual_tls\""]
        ),
        Some(1)
    );
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn zero_bytes_are_told_as_soon_as_a_connection_is_open() {
    let metrics = Metrics::default();
    let of = ends("cart", Direction::Outbound);
    let _opened = metrics.opened(&of, clock::steady());
    let text = metrics.text().unwrap();
    for name in ["istio_tcp_sent_bytes_total", "istio_tcp_received_bytes_total"] {
        assert_eq!(value(&text, name, &["source_workload=\"cart\""]), Some(0), "{text}");
    }
    assert_eq!(value(&text, "istio_tcp_connections_closed_total", &[]), None);
}

#[test]
fn sockets_are_counted_until_they_are_dropped() {
    let metrics = Metrics::default();
    let open = [Direction::Inbound, Direction::Inbound, Direction::Outbound].map(|direction| metrics.socket(direction));
    let now = |reporter: &str| {
        let text = metrics.text().unwrap();
        value(&text, "istio_tcp_sockets_open", &[&format!("reporter=\"{reporter}\"")])
    };
    assert_eq!((now("destination"), now("source")), (Some(2), Some(1)));
    drop(open);
    assert_eq!((now("destination"), now("source")), (Some(0), Some(0)));
}

/// Who stands at both ends, as far as the mesh knows them and TLS proves them: each row gives the principal and the namespace.
#[test]
fn principals_of_sources_are_proven_and_those_of_destinations_are_meant() {
    let workload = |account: &str| {
        let workload = Workload {
            service_account: account.into(),
            ..Workload::new("d", "store", "stock")
        };
        Some(Arc::new(workload))
    };
    let identity = |namespace: &str| Some(format!("spiffe://cluster.local/ns/{namespace}/sa/one").parse().unwrap());
    let (unknown, meant) = ("unknown", "spiffe://cluster.local/ns/store/sa/stock");
    let proven = "spiffe://cluster.local/ns/far/sa/one";
    for (of, proves, destination, source) in [
        // In plaintext nobody proves anything: a source is nobody, a destination who it is meant to be, as Istio says it.
        (workload("stock"), None, (meant, "store"), (unknown, "store")),
        (workload("a/b"), None, (unknown, "store"), (unknown, "store")),
        (None, None, (unknown, unknown), (unknown, unknown)),
        (workload("stock"), identity("far"), (proven, "store"), (proven, "store")),
        // Whom the mesh does not know has a namespace all the same.
        (None, identity("far"), (proven, "far"), (proven, "far")),
    ] {
        let metrics = Metrics::default();
        metrics.attempted(&Ends {
            source_workload: of.clone(),
            source_identity: proves.clone(),
            destination_workload: of,
            destination_identity: proves,
            ..ends("cart", Direction::Outbound)
        });
        let text = metrics.text().unwrap();
        for (end, (principal, namespace)) in [("destination", destination), ("source", source)] {
            let labels = [
                format!(",{end}_principal=\"{principal}\""),
                format!(",{end}_workload_namespace=\"{namespace}\""),
            ];
            let labels = labels.each_ref().map(String::as_str);
            assert_eq!(
                value(&text, "istio_tcp_connections_opened_total", &labels),
                Some(1),
                "{labels:?} {text}"
            );
        }
    }
}

#[test]
fn series_are_bounded_and_nothing_goes_uncounted() {
    let metrics = Metrics::counting(Traffic::new(3));
    for n in 0..10 {
        metrics.attempted(&ends(&format!("w{n}"), Direction::Inbound));
    }
    let text = metrics.text().unwrap();
    let series: Vec<_> = text
        .lines()
        .filter(|line| line.starts_with("istio_tcp_connections_opened_total{"))
        .collect();
    assert_eq!(series.len(), 4, "{text}");
    let total: u64 = series.iter().filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum();
    assert_eq!(total, 10);
    assert!(text.contains("ambient_series_folded_total 7"));
}

/// Whatever the mesh calls a workload, a series stands on a line, and its labels are those that it has.
#[test]
fn no_name_breaks_a_page_apart() {
    let metrics = Metrics::default();
    let names = [
        "quote\"} 1\nistio_build{component=\"ztunnel\"} 7",
        "back\\slash\\",
        "line\nfeed\r\u{2028}\0",
        "\u{feff}caf\u{e9}\u{1f980}",
        "# EOF",
    ];
    for name in names {
        let mut of = Workload::new("u", name, name);
        of.workload_name = name.into();
        let mut ends = ends("cart", Direction::Outbound);
        ends.destination_workload = Some(Arc::new(of));
        metrics.closed(&metrics.attempted(&ends), &ends, Flag::None, None);
    }
    let text = metrics.text().unwrap();
    let of_this = "istio_tcp_connections_opened_total{";
    let lines: Vec<&str> = text.split('\n').filter(|line| line.starts_with(of_this)).collect();
    assert_eq!(lines.len(), names.len(), "{text}");
    for name in names {
        let escaped = name.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let label = format!(",destination_workload=\"{escaped}\",");
        assert!(
            lines.iter().any(|line| line.contains(&label) && line.ends_with("} 1")),
            "{label}: {text}"
        );
    }
    assert_eq!(value(&text, "istio_build", &["component="]), Some(1));
    assert_eq!(text.split('\n').filter(|line| *line == "# EOF").count(), 1);
}

/// What Istio's dashboards for its node proxy, for workloads and for services ask of a proxy that knows TCP.
#[test]
fn istios_dashboards_find_what_they_ask_for() {
    let metrics = Metrics::default();
    let ends = ends("cart", Direction::Outbound);
    let opened = metrics.opened(&ends, clock::steady());
    opened.carried(10, 20);
    drop(metrics.socket(Direction::Outbound));
    metrics.closed(&opened, &ends, Flag::None, None);
    metrics.serve_pods(2);
    metrics.serve_pods(1);
    let streams = StreamCounts::default();
    streams.received("type.googleapis.com/istio.workload.Address", 1_000);
    streams.received("type.googleapis.com/istio.workload.Address", 234);
    streams.ended(StreamEnd::Reconnect);
    metrics.ask_streams(streams);
    let text = metrics.text().unwrap();
    let by_workload = [
        "reporter=",
        "source_workload=",
        "source_workload_namespace=",
        "destination_workload=",
        "destination_workload_namespace=",
        "destination_service=",
        "destination_service_name=",
        "destination_service_namespace=",
        "connection_security_policy=",
        "request_protocol=\"tcp\"",
        "response_flags=",
        "source_canonical_service=",
        "destination_canonical_service=",
        "source_principal=",
        "destination_principal=",
    ];
    for name in [
        "istio_tcp_connections_opened_total",
        "istio_tcp_connections_closed_total",
        "istio_tcp_sent_bytes_total",
        "istio_tcp_received_bytes_total",
    ] {
        assert!(value(&text, name, &by_workload).is_some(), "{name}: {text}");
    }
    assert_eq!(value(&text, "istio_build", &["component=\"ztunnel\"", "tag="]), Some(1));
    assert!(text.contains("\nworkload_manager_active_proxy_count 1\n"));
    assert!(text.contains("\nworkload_manager_proxies_started_total 2\n"));
    assert!(text.contains("\nworkload_manager_proxies_stopped_total 1\n"));
    let address = ["url=\"type.googleapis.com/istio.workload.Address\""];
    assert_eq!(value(&text, "istio_xds_message_total", &address), Some(2));
    assert_eq!(value(&text, "istio_xds_message_bytes_total", &address), Some(1_234));
    let ends = value(&text, "istio_xds_connection_terminations_total", &["reason=\"Reconnect\""]);
    assert_eq!(ends, Some(1));
    assert_eq!(value(&text, "istio_tcp_sockets_open", &["reporter=\"source\""]), Some(0));
    assert!(text.contains("\nprocess_open_fds "));
    assert!(text.contains("\nworkload_manager_pending_proxy_count 0\n"));
    // A family that is told of has its type, and one that is not Istio's own core says that it may change.
    for line in text.lines().filter_map(|line| line.strip_prefix("# HELP ")) {
        let (name, help) = line.split_once(' ').unwrap();
        let core = name.starts_with("istio_tcp_") && name != "istio_tcp_sockets_open" && name != "istio_tcp_connections_failed";
        assert!(core != help.contains("unstable"), "{line}");
        assert!(text.contains(&format!("# TYPE {name} ")), "{name}");
    }
}

/// Whatever of the page a reader is slow to take: a connection that ends as none before, and one that opens, are counted meanwhile.
#[test]
fn nobody_who_counts_waits_for_who_reads() {
    struct Slow {
        metrics: Arc<Metrics>,
        reasons: std::slice::Iter<'static, Reason>,
        counted: usize,
    }
    impl io::Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let text = std::str::from_utf8(bytes).unwrap();
            if text.contains("ambient_connections_failed") || text.contains("ambient_connect_seconds") {
                let (metrics, reason) = (self.metrics.clone(), self.reasons.next().copied());
                let (done, is_done) = std::sync::mpsc::channel();
                std::thread::spawn(move || {
                    if let Some(reason) = reason {
                        metrics.failed(Direction::Inbound, reason);
                    }
                    drop(metrics.opened(&ends("cart", Direction::Outbound), clock::steady()));
                    let _ = done.send(());
                });
                is_done.recv_timeout(Duration::from_secs(5)).map_err(io::Error::other)?;
                self.counted += 1;
            }
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let metrics = Arc::new(Metrics::default());
    metrics.failed(Direction::Outbound, Reason::Drain);
    metrics.opened(&ends("cart", Direction::Outbound), clock::steady());
    let mut slow = Slow {
        metrics: metrics.clone(),
        reasons: Reason::ALL.iter(),
        counted: 0,
    };
    metrics.write(&mut slow).unwrap();
    assert!(slow.counted > 0);
}

#[test]
fn a_page_is_written_piece_by_piece_as_it_is_made() {
    let metrics = Metrics::default();
    for n in 0..100 {
        metrics.attempted(&ends(&format!("w{n}"), Direction::Inbound));
    }
    /// The longest piece, and all of them.
    struct Pieces(usize, Vec<u8>);
    impl io::Write for Pieces {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self.0.max(bytes.len());
            self.1.extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut pieces = Pieces(0, Vec::new());
    metrics.write(&mut pieces).unwrap();
    let text = String::from_utf8(pieces.1).unwrap();
    // What is counted of all together is one piece; what is of each is not.
    assert!(text.len() > 50_000 && pieces.0 < 20_000, "{} of {}", pieces.0, text.len());
    let process = |name: &str| -> f64 {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{name} ")))
            .unwrap_or_else(|| panic!("{name}"));
        line.parse().unwrap()
    };
    assert!(process("process_open_fds") >= 3.0 && process("process_max_fds") >= process("process_open_fds"));
    assert!(process("process_resident_memory_bytes") > 1e6);
    // Nobody takes more: that is the end of it.
    struct Full;
    impl io::Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    assert_eq!(metrics.write(&mut Full).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
}

#[test]
fn the_ages_of_state_and_trust_are_told() {
    let metrics = Metrics::default();
    let (state, trust) = (LastHeard::default(), LastHeard::default());
    metrics.ask_ages(Some(state.clone()), Some(trust.clone()));
    metrics.certificates_missing(3);
    metrics.certificates_refused(4);
    metrics.state_faults(2);
    let ages = || {
        let mut page = Vec::new();
        metrics.write(&mut page).unwrap();
        let page = String::from_utf8(page).unwrap();
        let value = |name: &str| {
            let line = page.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap();
            line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()
        };
        assert_eq!(value("ambient_certificates_missing"), 3);
        assert_eq!(value("ambient_certificates_refused"), 4);
        assert_eq!(value("ambient_state_faults"), 2);
        [
            value("ambient_state_age_seconds"),
            value("ambient_trust_age_seconds"),
            value("ambient_node_certificate_end_seconds"),
        ]
    };
    assert!(ages()[0] < 60, "as old as the node is");
    assert_eq!(ages()[2], 0, "it has none");
    metrics.ask_until(Arc::new(|| Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000))));
    state.is_there();
    trust.at(clock::wall() - Duration::from_secs(3600));
    let [state, trust, until] = ages();
    assert_eq!(until, 1_800_000_000);
    assert!(state == 0 && (3600..3660).contains(&trust), "{state} {trust}");
}

/// What is told stands in the table, with its type, and so does all that Istio's node proxy tells.
#[test]
fn the_table_of_metrics_is_whole() {
    let table = include_str!("../../../TELEMETRY.md");
    let rows = || table.lines().filter(|line| line.starts_with("| `"));
    let is_told = |name: &str, kind: &str| {
        rows().any(|row| {
            let mut cells = row.split('|').skip(1);
            cells.next().is_some_and(|names| names.contains(&format!("`{name}`"))) && cells.next().is_some_and(|types| types.contains(kind))
        })
    };
    let metrics = Metrics::default();
    let ends = ends("cart", Direction::Outbound);
    let opened = metrics.opened(&ends, clock::steady());
    drop(metrics.socket(Direction::Outbound));
    metrics.closed(&opened, &ends, Flag::Deny, Some(Reason::CertRevoked));
    metrics.refused_as_revoked(Direction::Outbound);
    metrics.answered(&ends, Duration::ZERO);
    metrics.handshaken(Direction::Inbound, true, Duration::ZERO);
    metrics.unreadable_policies(std::iter::empty());
    metrics.missing_policies(std::iter::empty());
    let cart = Workload::new("u", "shop", "cart");
    metrics.name_asked(&cart, &"spiffe://cluster.local/ns/shop/sa/a".parse().unwrap(), &"db.example".into());
    let streams = StreamCounts::default();
    streams.received("type.googleapis.com/istio.workload.Address", 1);
    streams.ended(StreamEnd::Reconnect);
    metrics.ask_streams(streams);
    let (query, took) = (
        observe::Query {
            kind: "A",
            transport: ambient_dns::Transport::Udp,
        },
        Duration::ZERO,
    );
    for event in [
        observe::Event::Asked(query),
        observe::Event::Forwarded(query),
        observe::Event::Took { query, took },
        observe::Event::Failed {
            query,
            failure: observe::Failure::Silent,
        },
        observe::Event::Answered {
            query,
            source: observe::Source::Mesh,
            code: "NOERROR",
        },
    ] {
        metrics.dns.count(None, &event);
    }
    let thread = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let counted = Counted {
        runtime: thread.handle().clone(),
        looked: crate::busy_poll::Looked::default(),
    };
    metrics.ask_runtimes(vec![counted]);
    let text = metrics.text().unwrap();
    let mut told = Vec::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (family, kind) = line.split_once(' ').unwrap();
        let name = if kind == "counter" {
            format!("{family}_total")
        } else {
            family.to_owned()
        };
        assert!(is_told(&name, kind), "{name}, a {kind}, does not stand in TELEMETRY.md");
        told.push(name);
    }
    for name in ISTIOS {
        assert!(told.iter().any(|told| told == name), "{name} is not told: {text}");
    }
}

/// What Istio's node proxy tells, but for what there is none of here.
const ISTIOS: [&str; 28] = [
    "istio_tcp_connections_opened_total",
    "istio_tcp_connections_closed_total",
    "istio_tcp_connections_failed_total",
    "istio_tcp_received_bytes_total",
    "istio_tcp_sent_bytes_total",
    "istio_tcp_sockets_open",
    "istio_crl_policy_rejections_total",
    "istio_on_demand_dns_total",
    "istio_dns_requests_total",
    "istio_dns_upstream_requests_total",
    "istio_dns_upstream_failures_total",
    "istio_dns_upstream_request_duration_seconds",
    "istio_xds_connection_terminations_total",
    "istio_xds_message_total",
    "istio_xds_message_bytes_total",
    "istio_build",
    "workload_manager_active_proxy_count",
    "workload_manager_pending_proxy_count",
    "workload_manager_proxies_started_total",
    "workload_manager_proxies_stopped_total",
    "process_open_fds",
    "process_max_fds",
    "tokio_num_workers",
    "tokio_global_queue_depth",
    "tokio_num_alive_tasks",
    "tokio_worker_total_busy_duration_seconds_total",
    "tokio_worker_park_count_total",
    "tokio_worker_park_unpark_count_total",
];

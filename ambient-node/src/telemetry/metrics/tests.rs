use std::sync::Arc;

use ambient_core::Workload;

use super::*;
use crate::telemetry::ends::{Direction, Ends, Flag};

fn labels(name: &str, direction: Direction, flag: Flag) -> TrafficLabels {
    let ends = Ends {
        direction,
        source: "10.0.0.1:1".parse().unwrap(),
        source_workload: Some(Arc::new(Workload::new("u", "shop", name))),
        source_identity: Some("spiffe://cluster.local/ns/shop/sa/a".parse().unwrap()),
        asked: "10.0.0.2:80".parse().unwrap(),
        destination: "10.0.0.2:80".parse().unwrap(),
        hbone: None,
        service: None,
        destination_workload: None,
        destination_identity: None,
        waypoint: false,
        mutual_tls: true,
        retries: 0,
        avoided: 0,
    };
    TrafficLabels::new(&ends, flag)
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
    metrics.opened(&labels("cart", Direction::Outbound, Flag::None));
    metrics.closed(&labels("cart", Direction::Outbound, Flag::None), false, 10, 20);
    metrics.closed(&labels("cart", Direction::Outbound, Flag::Deny), true, 0, 0);
    let text = metrics.text().unwrap();
    let cart = [
        "reporter=\"source\"",
        "source_workload=\"cart\"",
        "response_flags=\"-\"",
        "connection_security_policy=\"mutual_tls\"",
    ];
    assert_eq!(value(&text, "istio_tcp_received_bytes_total", &cart), Some(10), "{text}");
    assert_eq!(value(&text, "istio_tcp_sent_bytes_total", &cart), Some(20));
    assert_eq!(value(&text, "istio_tcp_connections_opened_total", &cart), Some(1));
    assert_eq!(
        value(&text, "istio_tcp_connections_closed_total", &["response_flags=\"DENY\""]),
        Some(1)
    );
    assert_eq!(
        value(&text, "istio_tcp_connections_failed_total", &["response_flags=\"DENY\""]),
        Some(1)
    );
    assert_eq!(value(&text, "istio_tcp_connections_failed_total", &cart), None);
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
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn series_are_bounded_and_nothing_goes_uncounted() {
    let metrics = Metrics::with_most_series(3);
    for n in 0..10 {
        metrics.opened(&labels(&format!("w{n}"), Direction::Inbound, Flag::None));
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

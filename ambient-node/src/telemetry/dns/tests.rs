use std::time::Duration;

use ambient_dns::observe::{Dropped, Failure, Source};
use prometheus_client::encoding::text;

use super::*;

fn workload(name: &str) -> Workload {
    Workload::new(&format!("c//Pod/shop/{name}"), "shop", name)
}

fn told(registry: &Registry) -> String {
    let mut out = String::new();
    text::encode(&mut out, registry).unwrap();
    out
}

const ASKED: Query = Query {
    kind: "AAAA",
    transport: Transport::Udp,
};

#[test]
fn queries_stand_under_istios_names_and_labels() {
    let mut registry = Registry::default();
    let metrics = DnsMetrics::new(&mut registry);
    let source = metrics.source(&workload("cart"));
    let took = Duration::from_millis(7);
    let failure = Failure::Silent;
    for event in [
        Event::Asked(ASKED),
        Event::Asked(ASKED),
        Event::Forwarded(ASKED),
        Event::Took { query: ASKED, took },
        Event::Failed { query: ASKED, failure },
        Event::Answered {
            query: ASKED,
            source: Source::Mesh,
            code: "NOERROR",
        },
        Event::Dropped(Dropped::Busy),
    ] {
        metrics.count(Some(&source), &event);
    }
    metrics.count(None, &Event::Asked(ASKED));
    let text = told(&registry);
    let labels = r#"request_query_type="aaaa",request_protocol="udp",source_canonical_service="cart",source_canonical_revision="latest""#;
    let unknown =
        r#"request_query_type="aaaa",request_protocol="udp",source_canonical_service="unknown",source_canonical_revision="unknown""#;
    for line in [
        format!("istio_dns_requests_total{{{labels}}} 2"),
        format!("istio_dns_requests_total{{{unknown}}} 1"),
        format!("istio_dns_upstream_requests_total{{{labels}}} 1"),
        format!("istio_dns_upstream_failures_total{{{labels}}} 1"),
        format!("istio_dns_upstream_request_duration_seconds_count{{{labels}}} 1"),
        format!("istio_dns_upstream_request_duration_seconds_bucket{{le=\"0.001\",{labels}}} 0"),
        format!("istio_dns_upstream_request_duration_seconds_bucket{{le=\"0.01\",{labels}}} 1"),
        r#"ambient_dns_responses_total{rcode="NOERROR",source="mesh"} 1"#.into(),
        r#"ambient_dns_dropped_total{reason="busy"} 1"#.into(),
    ] {
        assert!(text.contains(&line), "{line} is not in\n{text}");
    }
}

#[test]
fn series_go_with_the_last_pod_of_a_service() {
    let mut registry = Registry::default();
    let metrics = DnsMetrics::new(&mut registry);
    let (first, second) = (metrics.source(&workload("cart")), metrics.source(&workload("cart")));
    for kind in observe::KINDS {
        let query = Query { kind, ..ASKED };
        let took = Duration::ZERO;
        metrics.count(Some(&first), &Event::Asked(query));
        metrics.count(Some(&first), &Event::Took { query, took });
    }
    metrics.release(&first);
    assert!(told(&registry).contains("cart"));
    metrics.release(&second);
    assert!(!told(&registry).contains("cart"), "{}", told(&registry));
    metrics.release(&second);
}

#[test]
fn what_is_of_nobody_in_particular_outlives_whoever_counts_under_it() {
    let mut registry = Registry::default();
    let metrics = DnsMetrics {
        most_sources: 2,
        ..DnsMetrics::new(&mut registry)
    };
    let nameless = Workload {
        canonical_name: "".into(),
        canonical_revision: "".into(),
        ..workload("nameless")
    };
    let all = [nameless, workload("a"), workload("b"), workload("c")].map(|of| metrics.source(&of));
    for source in &all {
        metrics.count(Some(source), &Event::Asked(ASKED));
    }
    metrics.count(None, &Event::Asked(ASKED));
    // One of no name, and one for whom there was no room; the third is a pod that the mesh does not know.
    metrics.release(&all[0]);
    metrics.release(&all[3]);
    let text = told(&registry);
    assert!(
        text.lines().any(|line| line.contains("\"unknown\"") && line.ends_with("} 3")),
        "{text}"
    );
    assert_eq!(metrics.sources.lock().unwrap().len(), 2);
}

#[test]
fn sources_are_bounded() {
    let mut registry = Registry::default();
    let metrics = DnsMetrics {
        most_sources: 2,
        ..DnsMetrics::new(&mut registry)
    };
    let all: Vec<_> = (0..5).map(|n| metrics.source(&workload(&format!("w{n}")))).collect();
    for source in &all {
        metrics.count(Some(source), &Event::Asked(ASKED));
    }
    let text = told(&registry);
    assert_eq!(text.matches("istio_dns_requests_total{").count(), 3, "{text}");
    assert!(text.contains("} 3"), "the others are counted as one: {text}");
    metrics.release(&all[4]);
    metrics.release(&all[0]);
    assert_eq!(
        metrics.source(&workload("w9")),
        DnsSource::of(&workload("w9")),
        "there is room again"
    );
}

//! What the nodes report of the calls: step 4.

use std::collections::{BTreeMap, BTreeSet};

use super::super::{
    evidence::{Entry, Sample, connections},
    ground::{CHANGE_DEADLINE, Lab, Unmet, until},
};

/// One hop of a chain: who called whom, and through which nodes.
struct Hop {
    from: &'static str,
    from_node: &'static str,
    to: &'static str,
    to_node: &'static str,
}

const HOPS: [Hop; 4] = [
    Hop {
        from: "sleep",
        from_node: "node-1",
        to: "web-api",
        to_node: "node-2",
    },
    Hop {
        from: "ingressgateway",
        from_node: "node-1",
        to: "web-api",
        to_node: "node-2",
    },
    Hop {
        from: "web-api",
        from_node: "node-2",
        to: "recommendation",
        to_node: "node-1",
    },
    Hop {
        from: "recommendation",
        from_node: "node-1",
        to: "purchase-history",
        to_node: "node-2",
    },
];

/// Bytes towards the server and back, and connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    requested: u64,
    answered: u64,
    connections: u64,
}

/// Reporter (`source` or `destination`), source workload, destination workload.
type Way = (String, String, String);

pub(super) fn logs_and_metrics(lab: &mut Lab) -> Result<String, Unmet> {
    let mut bytes = 0;
    for hop in &HOPS {
        bytes += reported(lab, hop)?;
    }
    let mut compared = 0;
    for node in ["node-1", "node-2"] {
        // The last connections may be ending this very moment.
        let mut differ = String::new();
        let equal = until(CHANGE_DEADLINE, || {
            let (logged, counted) = (from_log(&connections(&lab.log(node)?)), from_metrics(&lab.metrics(node)?)?);
            differ = difference(&logged, &counted).unwrap_or_default();
            Ok(differ.is_empty().then_some(logged.len()))
        })?;
        compared += equal.ok_or_else(|| Unmet::saw(format!("log and metrics of {node} differ: {differ}")))?;
    }
    Ok(format!(
        "{} hops stand in the logs of both nodes with {bytes} bytes towards servers; {compared} sums of metrics are those of the logs",
        HOPS.len()
    ))
}

/// The first way of which the log tells otherwise than the metrics, or one of the two nothing; of what one of the ends is unknown the log
/// tells without it.
fn difference(logged: &BTreeMap<Way, Tally>, counted: &BTreeMap<Way, Tally>) -> Option<String> {
    let known = |way: &&Way| [&way.1, &way.2].iter().all(|name| !name.is_empty() && *name != UNKNOWN);
    let ways: BTreeSet<&Way> = logged.keys().chain(counted.keys()).filter(known).collect();
    let tallies = ways.into_iter().map(|way| (way, logged.get(way), counted.get(way)));
    // What has only begun has a counter, and no line yet.
    let is_told = |tally: Option<&Tally>| tally.copied().unwrap_or_default();
    let mut differing = tallies.filter(|(_, logged, counted)| is_told(*logged) != is_told(*counted));
    differing
        .next()
        .map(|(way, logged, counted)| format!("{way:?}: logged {logged:?}, counted {counted:?}"))
}

/// Checks the lines of a hop on both nodes; gives the bytes that reached the server.
fn reported(lab: &mut Lab, hop: &Hop) -> Result<u64, Unmet> {
    let mut sums = Vec::new();
    for (node, direction) in [(hop.from_node, "outbound"), (hop.to_node, "inbound")] {
        let log = lab.log(node)?;
        let of_hop = |e: &Entry| is(e, "direction", direction) && is(e, "src.workload", hop.from) && is(e, "dst.workload", hop.to);
        let entries: Vec<Entry> = connections(&log)
            .into_iter()
            .filter(|e| of_hop(e) && e.contains_key("src.identity") && !e.contains_key("error"))
            .collect();
        let Some(entry) = entries.last() else {
            return Err(Unmet::saw(format!(
                "{node} has no {direction} line from {} to {}",
                hop.from, hop.to
            )));
        };
        if let Some(missing) = incomplete(entry, hop) {
            return Err(Unmet::saw(format!(
                "the {direction} line of {node} from {} to {} has {missing}: {entry:?}",
                hop.from, hop.to
            )));
        }
        sums.push(from_log(&entries).into_values().next().unwrap_or_default());
    }
    match sums.as_slice() {
        [near, far] if near.requested == far.requested && near.answered == far.answered => Ok(near.requested),
        _ => Err(Unmet::saw(format!(
            "the two nodes count {} -> {} differently: {sums:?}",
            hop.from, hop.to
        ))),
    }
}

/// What a line does not say as it should.
fn incomplete(entry: &Entry, hop: &Hop) -> Option<String> {
    let namespace = |name: &str| if name == "ingressgateway" { "istio-system" } else { "demo" };
    let account = |name: &str| {
        if name == "ingressgateway" {
            "istio-ingressgateway-service-account".to_owned()
        } else {
            name.to_owned()
        }
    };
    let identity = |name: &str| format!("spiffe://cluster.local/ns/{}/sa/{}", namespace(name), account(name));
    let expected = [
        ("src.identity", identity(hop.from)),
        ("dst.identity", identity(hop.to)),
        ("src.namespace", namespace(hop.from).to_owned()),
        ("dst.namespace", namespace(hop.to).to_owned()),
        ("dst.service", format!("{}.demo.svc.cluster.local", hop.to)),
        ("waypoint", "false".to_owned()),
    ];
    let wrong = expected.into_iter().find(|(key, value)| !is(entry, key, value));
    if let Some((key, value)) = wrong {
        return Some(format!("no {key}={value}"));
    }
    let present = ["src.addr", "dst.addr", "dst.hbone_addr", "duration"]
        .into_iter()
        .find(|key| !entry.contains_key(*key));
    let counted = || ["bytes_sent", "bytes_recv"].into_iter().find(|key| number(entry, key) == 0);
    present.or_else(counted).map(|key| format!("no {key}"))
}

/// The sums of a log's lines. A node calls what it sends to the other end "sent", so the words change sides.
fn from_log(entries: &[Entry]) -> BTreeMap<Way, Tally> {
    let mut sums: BTreeMap<Way, Tally> = BTreeMap::new();
    for entry in entries {
        let outbound = is(entry, "direction", "outbound");
        let text = |key: &str| entry.get(key).cloned().unwrap_or_default();
        let (source, destination) = (text("src.workload"), text("dst.workload"));
        // A line without both ends is of no call of the chain, or of one that failed early.
        if source.is_empty() || destination.is_empty() {
            continue;
        }
        let sum = sums.entry((reporter(outbound).to_owned(), source, destination)).or_default();
        let (sent, received) = (number(entry, "bytes_sent"), number(entry, "bytes_recv"));
        let (requested, answered) = if outbound { (sent, received) } else { (received, sent) };
        sum.requested += requested;
        sum.answered += answered;
        sum.connections += 1;
    }
    sums
}

/// The same sums from the counters: Istio's "received" is what the server received, whoever reports it.
fn from_metrics(samples: &[Sample]) -> Result<BTreeMap<Way, Tally>, Unmet> {
    let mut sums: BTreeMap<Way, Tally> = BTreeMap::new();
    let mut opened: BTreeMap<Way, u64> = BTreeMap::new();
    for sample in samples {
        let way = || {
            ["reporter", "source_workload", "destination_workload"]
                .map(|l| sample.label(l).to_owned())
                .into()
        };
        // Counters are whole numbers, far below what a double holds exactly.
        let value = sample.value as u64;
        match sample.name.as_str() {
            "istio_tcp_received_bytes_total" => sums.entry(way()).or_default().requested += value,
            "istio_tcp_sent_bytes_total" => sums.entry(way()).or_default().answered += value,
            "istio_tcp_connections_closed_total" => sums.entry(way()).or_default().connections += value,
            "istio_tcp_connections_opened_total" => *opened.entry(way()).or_default() += value,
            _ => {}
        }
    }
    for (way, sum) in &sums {
        let opened = opened.get(way).copied().unwrap_or_default();
        if opened < sum.connections {
            return Err(Unmet::saw(format!(
                "{way:?}: {opened} connections opened, {} closed",
                sum.connections
            )));
        }
    }
    Ok(sums)
}

/// What metrics say of an end that nobody knows.
const UNKNOWN: &str = "unknown";

fn reporter(outbound: bool) -> &'static str {
    if outbound { "source" } else { "destination" }
}

fn is(entry: &Entry, key: &str, value: &str) -> bool {
    entry.get(key).is_some_and(|v| v == value)
}

fn number(entry: &Entry, key: &str) -> u64 {
    entry.get(key).and_then(|v| v.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::{super::super::evidence::samples, *};

    #[test]
    fn logs_and_counters_speak_of_the_same_bytes() {
        let log = "connection complete src.workload=\"a\" dst.workload=\"b\" direction=\"outbound\" bytes_sent=10 bytes_recv=20\n\
                   connection complete src.workload=\"a\" dst.workload=\"b\" direction=\"outbound\" bytes_sent=1 bytes_recv=2\n\
                   connection complete src.workload=\"c\" dst.workload=\"d\" direction=\"inbound\" bytes_sent=5 bytes_recv=6\n\
                   connection failed src.addr=1.2.3.4:5 direction=\"inbound\" error=\"x\"\n";
        let of_a = "{reporter=\"source\",source_workload=\"a\",destination_workload=\"b\"}";
        let of_c = "{reporter=\"destination\",source_workload=\"c\",destination_workload=\"d\"}";
        let mut page = String::new();
        for (labels, received, sent, count) in [(of_a, 11, 22, 2), (of_c, 6, 5, 1)] {
            page += &format!("istio_tcp_received_bytes_total{labels} {received}\nistio_tcp_sent_bytes_total{labels} {sent}\n");
            page += &format!("istio_tcp_connections_opened_total{labels} {count}\nistio_tcp_connections_closed_total{labels} {count}\n");
        }
        let logged = from_log(&connections(log));
        assert_eq!(logged.len(), 2);
        assert_eq!(logged, from_metrics(&samples(&page)).unwrap());
        assert!(from_metrics(&samples("istio_tcp_connections_closed_total{reporter=\"source\"} 1")).is_err());
    }

    #[test]
    fn what_one_of_them_alone_tells_is_a_difference() {
        let way = |to: &str| ("source".to_owned(), "a".to_owned(), to.to_owned());
        let tally = Tally {
            requested: 1,
            answered: 2,
            connections: 1,
        };
        let both = BTreeMap::from([(way("b"), tally)]);
        let more = |to: &str, tally| [both.clone(), BTreeMap::from([(way(to), tally)])].into_iter().flatten().collect();
        assert_eq!(difference(&both, &both), None);
        assert!(
            difference(&both, &more("c", tally)).is_some_and(|said| said.contains("\"c\"")),
            "counted alone"
        );
        assert!(difference(&more("c", tally), &both).is_some(), "logged alone");
        assert_eq!(difference(&both, &more("c", Tally::default())), None, "opened alone");
        assert_eq!(difference(&both, &more(UNKNOWN, tally)), None);
    }
}

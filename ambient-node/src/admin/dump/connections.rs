use std::net::SocketAddr;

use ambient_core::Authority;
use serde::Serialize;

use super::Pod;
use crate::{
    state::Snapshot,
    telemetry::{Direction, Ends, Live},
};

/// A pod of this node: how far it is, and what it has open.
#[derive(Serialize)]
pub(super) struct View<'a> {
    state: &'static str,
    connections: Connections,
    info: Info<'a>,
}

#[derive(Default, Serialize)]
struct Connections {
    inbound: Vec<Connection>,
    outbound: Vec<Connection>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Connection {
    src: SocketAddr,
    original_dst: Option<String>,
    actual_dst: String,
    protocol: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Info<'a> {
    name: &'a str,
    namespace: &'a str,
    trust_domain: &'a str,
    service_account: &'a str,
}

/// By the UID of the pod. One pod's connections are looked up at a time.
pub(super) fn by_pod<'a>(
    live: &'a Live,
    now: &'a Snapshot,
    trust_domain: &'a str,
    pods: &'a [Pod],
) -> impl Iterator<Item = (String, View<'a>)> {
    pods.iter().map(move |pod| {
        let workload = now.mesh.workload_by_pod(&pod.spec.uid);
        let mut connections = Connections::default();
        for open in workload.map(|workload| live.of(&workload.uid)).unwrap_or_default() {
            match open.ends.direction {
                Direction::Inbound => connections.inbound.push(inbound(&open.ends)),
                Direction::Outbound => connections.outbound.push(outbound(&open.ends)),
            }
        }
        let view = View {
            state: if pod.up { "Up" } else { "Pending" },
            connections,
            info: Info {
                name: &pod.spec.name,
                namespace: &pod.spec.namespace,
                trust_domain,
                service_account: &pod.spec.service_account,
            },
        };
        (pod.spec.uid.to_string(), view)
    })
}

fn outbound(open: &Ends) -> Connection {
    Connection {
        src: open.source,
        original_dst: Some(open.asked.to_string()),
        actual_dst: open.destination.to_string(),
        protocol: protocol(open),
    }
}

/// Where it is delivered stands in its authority, where it has one; the service that was asked for is told by the peer.
fn inbound(open: &Ends) -> Connection {
    let actual = match &open.hbone {
        Some(Authority::Address(at)) => at.to_string(),
        Some(host) => host.to_string(),
        None => open.destination.to_string(),
    };
    Connection {
        src: open.source,
        original_dst: open.service.as_ref().map(|service| service.name.hostname.to_string()),
        actual_dst: actual,
        protocol: protocol(open),
    }
}

fn protocol(open: &Ends) -> &'static str {
    match open.hbone {
        Some(_) => "HBONE",
        None => "TCP",
    }
}

use std::net::SocketAddr;

use serde::Serialize;

use super::Pod;
use crate::{
    Config, assumed,
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
    /// What the pod dialled; of one that came, the service that was asked for, where that is known.
    original_dst: Option<String>,
    /// The proxy or the application at the other end; of one that came, where it is delivered.
    actual_dst: SocketAddr,
    protocol: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Info<'a> {
    name: &'a str,
    namespace: &'a str,
    trust_domain: String,
    service_account: &'a str,
}

/// By the UID of the pod. One pod's connections are looked up at a time.
pub(super) fn by_pod<'a>(
    live: &'a Live,
    now: &'a Snapshot,
    config: &'a Config,
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
                trust_domain: assumed::trust_domain(config, &pod.spec, Some(&now.mesh)).to_string(),
                service_account: &pod.spec.service_account,
            },
        };
        (pod.spec.uid.to_string(), view)
    })
}

fn outbound(open: &Ends) -> Connection {
    Connection {
        src: open.source,
        original_dst: Some(open.application.to_string()),
        actual_dst: open.destination,
        protocol: protocol(open),
    }
}

fn inbound(open: &Ends) -> Connection {
    Connection {
        src: open.source,
        original_dst: open
            .service
            .as_ref()
            .filter(|_| !open.guessed)
            .map(|service| service.name.hostname.to_string()),
        actual_dst: open.application,
        protocol: protocol(open),
    }
}

fn protocol(open: &Ends) -> &'static str {
    match open.hbone {
        Some(_) if open.double => "DOUBLEHBONE",
        Some(_) => "HBONE",
        None => "TCP",
    }
}

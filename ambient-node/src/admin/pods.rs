//! `/pods`: how each pod of the node stands, and what is wrong with it.

mod look;
mod table;
mod wrong;

use std::{sync::Arc, time::SystemTime};

use ambient_redirect::{
    pods::{PodState, State},
    probes::ProbesState,
};
use http::StatusCode;
use serde::Serialize;

use self::{
    look::{Listener, Look},
    wrong::{Wrong, wrong},
};
use super::{Answer, Asked, Context, answer::JSON};
use crate::{telemetry::Direction, text::rfc3339};

/// `GET /pods`, `?pod=[NAMESPACE/]NAME`; `&format=json` for programs.
pub(super) fn all(at: &Context, asked: &Asked) -> Answer {
    let states = at.captures.borrow().clone();
    let pods: Vec<View> = states.iter().map(|state| View::new(at, state)).collect();
    let probes = Probes::of(at.probes.as_ref().map(|probes| probes.borrow().clone()));
    let named: Vec<&View> = match asked.value("pod") {
        None => return write(asked, &Listed { pods, probes }, table::of_all),
        Some(name) => pods.iter().filter(|pod| pod.is(name)).collect(),
    };
    match named[..] {
        [pod] => write(asked, pod, table::of_one),
        [] => {
            let known: Vec<String> = pods.iter().map(View::full_name).collect();
            let known = match known.len() {
                0 => "it knows of none".to_owned(),
                _ => format!("it knows of {}", known.join(", ")),
            };
            Answer::text(
                StatusCode::NOT_FOUND,
                format!("no pod of this node that is meant to be in the mesh has that name: {known}\n"),
            )
        }
        [..] => {
            let names: Vec<String> = named.iter().map(|pod| pod.full_name()).collect();
            Answer::text(StatusCode::CONFLICT, format!("which of them? {}\n", names.join(", ")))
        }
    }
}

fn write<T: Serialize>(asked: &Asked, view: &T, text: fn(&T) -> String) -> Answer {
    match asked.value("format") {
        None | Some("text") => Answer::text(StatusCode::OK, text(view)),
        Some("json") => match serde_json::to_string_pretty(view) {
            Ok(text) => Answer::whole(StatusCode::OK, JSON, text + "\n"),
            Err(error) => Answer::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        },
        Some(other) => Answer::text(StatusCode::BAD_REQUEST, format!("format is text or json, and not {other:?}\n")),
    }
}

#[derive(Serialize)]
struct Listed {
    pods: Vec<View>,
    probes: Probes,
}

/// The kubelet's probes.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Probes {
    let_through: bool,
    addresses: usize,
    repairs: u64,
    last_repair: Option<Repair>,
    error: Option<String>,
}

/// A pod, and how it stands.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct View {
    namespace: Arc<str>,
    name: Arc<str>,
    uid: String,
    service_account: Arc<str>,
    addresses: Vec<String>,
    /// Whether it is meant to be in the mesh.
    desired: bool,
    /// Whether its capture is proven and announced.
    captured: bool,
    /// `waiting`, `unpaired`, `joining`, `in`, `refused` or `leaving`.
    state: &'static str,
    network_namespace: Option<String>,
    captured_since: Option<String>,
    proven_at: Option<String>,
    proof: Option<Ways>,
    /// `in force`, `refusing`, `not proven` or `damaged`.
    rules: &'static str,
    /// As the kernel lists them now; empty where the node does not serve the pod.
    listeners: Vec<Listener>,
    connections: Connections,
    /// Those from before it joined: outside of the mesh.
    kept: Vec<String>,
    strays: u64,
    repairs: u64,
    last_repair: Option<Repair>,
    /// What was put into its namespace last.
    put: Option<String>,
    asks: Asks,
    wrong: Vec<Wrong>,
}

/// By which connection, or by listing alone.
#[derive(Serialize)]
struct Ways {
    outbound: String,
    inbound: String,
}

#[derive(Default, Serialize)]
struct Connections {
    inbound: usize,
    outbound: usize,
}

#[derive(Clone, Serialize)]
struct Repair {
    at: String,
    what: String,
}

/// What its annotations ask of its capture.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Asks {
    bypass_inbound: bool,
    dns: Option<bool>,
    virtual_interfaces: Vec<String>,
}

impl View {
    fn new(at: &Context, pod: &PodState) -> Self {
        let now = at.node.state.current();
        let workload = now.as_ref().and_then(|now| now.mesh.workload_by_pod(&pod.spec.uid));
        let mut connections = Connections::default();
        for open in workload.map(|w| at.node.metrics.live.of(&w.uid)).unwrap_or_default() {
            match open.direction {
                Direction::Inbound => connections.inbound += 1,
                Direction::Outbound => connections.outbound += 1,
            }
        }
        Self::of(pod, connections, Look::into(at, pod))
    }

    fn of(pod: &PodState, connections: Connections, look: Look) -> Self {
        let spec = &pod.spec;
        let (state, captured_at, proof) = match &pod.state {
            State::In { captured_at, proof } => ("in", Some(*captured_at), Some(*proof)),
            State::Pairing { .. } => ("unpaired", None, None),
            State::Refused { .. } => ("refused", None, None),
            State::Leaving => ("leaving", None, None),
            State::Waiting => ("waiting", None, None),
            _ => ("joining", None, None),
        };
        let captured = state == "in";
        Self {
            namespace: spec.namespace.clone(),
            name: spec.name.clone(),
            uid: spec.uid.to_string(),
            service_account: spec.service_account.clone(),
            addresses: spec.addresses.iter().map(ToString::to_string).collect(),
            desired: !matches!(state, "leaving" | "waiting"),
            captured,
            state,
            network_namespace: pod.namespace.map(|id| id.to_string()),
            captured_since: captured_at.map(time),
            proven_at: pod.proven_at.map(time),
            proof: proof.map(|proof| Ways {
                outbound: proof.outbound.to_string(),
                inbound: proof.inbound.to_string(),
            }),
            rules: match (captured, pod.closed) {
                (true, _) if !look.rules.is_empty() => "damaged",
                (true, _) => "in force",
                (false, true) => "refusing",
                (false, false) => "not proven",
            },
            connections,
            kept: pod.kept.iter().map(ToString::to_string).collect(),
            strays: pod.strays,
            repairs: pod.repairs,
            last_repair: pod.mended.as_ref().map(|mended| Repair {
                at: time(mended.repaired),
                what: mended.what.clone(),
            }),
            put: pod.said.clone(),
            asks: Asks {
                bypass_inbound: spec.capture.bypass_inbound,
                dns: spec.capture.dns,
                virtual_interfaces: spec.capture.virtual_interfaces.iter().map(ToString::to_string).collect(),
            },
            wrong: wrong(pod, &look),
            listeners: look.listeners,
        }
    }

    /// Whether it goes by a name, with or without its namespace.
    fn is(&self, name: &str) -> bool {
        *self.name == *name || self.full_name() == name || self.uid == name
    }

    fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

impl Probes {
    fn of(state: Option<ProbesState>) -> Self {
        let Some(state) = state else {
            return Self {
                let_through: false,
                addresses: 0,
                repairs: 0,
                last_repair: None,
                error: None,
            };
        };
        Self {
            let_through: state.in_force,
            addresses: state.addresses,
            repairs: state.repairs,
            last_repair: state.last_repair.map(|(at, what)| Repair { at: time(at), what }),
            error: state.error,
        }
    }
}

fn time(at: SystemTime) -> String {
    rfc3339(at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs())
}

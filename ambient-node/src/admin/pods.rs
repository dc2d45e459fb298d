//! `/pods`: how each pod of the node stands, and what is wrong with it.

mod look;
mod table;
mod wrong;

use std::{collections::HashSet, fmt::Display, sync::Arc, time::SystemTime};

use ambient_core::{Capture, NetworkMode, Workload};
use ambient_redirect::{
    linux::{Segments, Ways},
    plan::IpFamily,
    pods::{PodState, State},
    probes::ProbesState,
};
use http::StatusCode;
use serde::{Serialize, Serializer};

use self::{
    look::{Listener, Look},
    wrong::{Wrong, flawed, unserved, wrong},
};
use super::{Answer, Asked, Site, Standing, answer::JSON};
use crate::{meant::is_meant, telemetry::Direction, text::rfc3339};

/// `GET /pods`, `?pod=[NAMESPACE/]NAME`; `&format=json` for programs.
pub(super) fn all<C: Site>(at: &C, asked: &Asked) -> Answer {
    let at = at.standing();
    let states = at.captures.as_ref().map(|captures| captures.borrow().clone());
    let mut pods: Vec<View> = states
        .iter()
        .flat_map(|states| states.iter())
        .map(|state| View::new(at, state))
        .collect();
    pods.extend(others(at, &pods));
    pods.sort_by(|a, b| (&a.namespace, &a.name, &a.uid).cmp(&(&b.namespace, &b.name, &b.uid)));
    let probes = Probes::of(at.probes.as_ref().map(|probes| probes.borrow().clone()));
    let Some(name) = asked.value("pod") else {
        return write(asked, &Listed { pods, probes }, table::of_all);
    };
    match named(&pods, name) {
        Ok(pod) => write(asked, pod, table::of_one),
        Err((status, why)) => Answer::text(status, why),
    }
}

/// The pods of the node that are not to be captured, or of which nothing has come yet, or that an agent of others enrols.
fn others(at: &Standing, told: &[View]) -> Vec<View> {
    let Some(now) = at.state.current() else { return Vec::new() };
    let told: HashSet<&str> = told.iter().map(|view| view.uid.as_str()).collect();
    let is_told = |workload: &Workload| workload.pod.as_ref().is_some_and(|pod| told.contains(pod.as_str()));
    let others = now.mesh.workloads_of_node(&at.node).filter(|workload| !is_told(workload));
    others.map(|workload| View::of_other(at, workload)).collect()
}

/// The pod that goes by a name; where there is none, or more than one, what to say.
fn named<'a>(pods: &'a [View], name: &str) -> Result<&'a View, (StatusCode, String)> {
    let named: Vec<&View> = pods.iter().filter(|pod| pod.is(name)).collect();
    let list = |pods: &mut dyn Iterator<Item = String>| pods.collect::<Vec<_>>().join(", ");
    match named[..] {
        [pod] => Ok(pod),
        [] if pods.is_empty() => Err((
            StatusCode::NOT_FOUND,
            format!("no pod of this node is called {name}: it knows of none\n"),
        )),
        [] => {
            let known = list(&mut pods.iter().map(View::full_name));
            let why = format!("no pod of this node is called {name}: it knows of {known}\n");
            Err((StatusCode::NOT_FOUND, why))
        }
        [first, ..] => {
            // One that is leaving, and who comes after it, may have all but the UID in common.
            let (are, by) = match named.iter().all(|pod| pod.full_name() == first.full_name()) {
                true => (list(&mut named.iter().map(|pod| pod.uid.clone())), "their UIDs"),
                false => (list(&mut named.iter().map(|pod| pod.full_name())), "NAMESPACE/NAME"),
            };
            let why = format!(
                "{} pods of this node are called {name}; ask for one of them by {by}: {are}\n",
                named.len()
            );
            Err((StatusCode::CONFLICT, why))
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
    /// `waiting`, `unpaired`, `joining`, `in`, `refused` or `leaving`; of pods that an agent of others enrols `served` or
    /// `not served`; `outside` of those that are not meant to be in the mesh.
    state: &'static str,
    network_namespace: Option<String>,
    captured_since: Option<String>,
    proven_at: Option<String>,
    proof: Option<Proven>,
    /// `in force`, `refusing`, `not proven` or `damaged`; `the agent's` or `none` of pods that are not captured here.
    rules: &'static str,
    /// As the kernel lists them now; empty where the node does not serve the pod.
    listeners: Vec<Listener>,
    /// Those that the proxy has open; none where it is another process.
    connections: Option<Connections>,
    /// Those from before it joined: outside of the mesh.
    kept: Vec<String>,
    strays: u64,
    /// Rules of others in its namespace that come before those that capture it.
    foreign_rules: Vec<String>,
    /// Whose segments what is captured has; none of pods that are not captured here.
    segments: Option<Segmented>,
    repairs: u64,
    last_repair: Option<Repair>,
    /// What was put into its namespace last.
    put: Option<String>,
    /// Why it is not meant to be in the mesh, or what else is to be said of it.
    note: Option<String>,
    asks: Asks,
    wrong: Vec<Wrong>,
}

/// Whose segments what is captured of a pod has, of each family: the loopback device's, or its link's.
#[derive(Serialize)]
struct Segmented {
    /// Whether the loopback device's are asked for.
    wanted: bool,
    /// Until it has been looked at there are none; where they are not asked for, those of which they are left.
    families: Vec<OfFamily>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OfFamily {
    family: String,
    in_force: bool,
    /// Why they are not; or why they are still, where they are not to be.
    why: Option<String>,
}

/// By which connection, or by listing alone.
#[derive(Serialize)]
struct Proven {
    #[serde(serialize_with = "as_text")]
    outbound: Ways,
    #[serde(serialize_with = "as_text")]
    inbound: Ways,
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
    fn new(at: &Standing, pod: &PodState) -> Self {
        let now = at.state.current();
        let workload = now.as_ref().and_then(|now| now.mesh.workload_by_pod(&pod.spec.uid));
        let mut view = Self::of(pod, (connections(at, workload), at.unannounced), Look::into(at, pod));
        view.segments = Some(Segmented::of(pod, at.capture.loopback_segments));
        view.wrong.extend(flawed((at.doubt)(&pod.spec.uid)));
        view
    }

    /// One of which nobody here says how its capture goes.
    fn of_other(at: &Standing, workload: &Arc<Workload>) -> Self {
        let desired = is_meant(workload);
        let pod = workload.pod.clone().or_else(|| (at.named)(workload));
        let served = pod.as_ref().and_then(|pod| (at.namespace)(pod));
        let (state, rules, note) = match (desired, &at.captures) {
            (false, _) => ("outside", "none", Some(why_outside(workload).to_owned())),
            (true, None) if served.is_some() => ("served", "the agent's", Some(AGENTS.to_owned())),
            (true, None) => ("not served", "the agent's", Some(AGENTS.to_owned())),
            (true, Some(_)) => ("joining", "not proven", None),
        };
        let mut wrong = Vec::new();
        if desired && at.captures.is_some() && pod.is_none() {
            wrong.push(Wrong {
                code: "no-uid",
                what: "it is not captured: where state comes from does not tell its UID, or another pod has the same".into(),
                remedy: "see that its metadata.uid is there, and no other pod's".into(),
            });
        } else if desired && at.captures.is_none() {
            let agent = at.agent.as_ref().map(|agent| agent.borrow().clone());
            wrong.extend(unserved(agent.as_ref(), pod.as_ref(), served.is_some()));
            wrong.extend(pod.as_ref().and_then(|pod| flawed((at.doubt)(pod))));
        }
        Self {
            namespace: workload.namespace.clone(),
            name: workload.name.clone(),
            uid: pod.as_ref().map_or_else(String::new, ToString::to_string),
            service_account: workload.service_account.clone(),
            addresses: workload.addresses.iter().map(ToString::to_string).collect(),
            desired,
            captured: false,
            state,
            network_namespace: served.as_ref().map(|namespace| namespace.id().to_string()),
            captured_since: None,
            proven_at: None,
            proof: None,
            rules,
            listeners: Vec::new(),
            connections: served.and_then(|_| connections(at, Some(workload))),
            kept: Vec::new(),
            strays: 0,
            foreign_rules: Vec::new(),
            segments: None,
            repairs: 0,
            last_repair: None,
            put: None,
            note,
            asks: Asks::of(&workload.capture.as_deref().cloned().unwrap_or_default()),
            wrong,
        }
    }

    fn of(pod: &PodState, (connections, unannounced): (Option<Connections>, &str), look: Look) -> Self {
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
            proof: proof.map(|proof| Proven {
                outbound: proof.outbound,
                inbound: proof.inbound,
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
            foreign_rules: pod.strangers.iter().map(ToString::to_string).collect(),
            segments: None,
            repairs: pod.repairs,
            last_repair: pod.mended.as_ref().map(|mended| Repair {
                at: time(mended.repaired),
                what: mended.what.clone(),
            }),
            put: pod.said.clone(),
            note: None,
            asks: Asks::of(&spec.capture),
            wrong: wrong(pod, &look, unannounced),
            listeners: look.listeners,
        }
    }

    /// Whether it goes by a name, with or without its namespace.
    fn is(&self, name: &str) -> bool {
        *self.name == *name || self.full_name() == name || self.uid == name
    }

    fn full_name(&self) -> String {
        match self.name.is_empty() {
            // Nothing is known of it but what an earlier process has left.
            true => self.uid.clone(),
            false => format!("{}/{}", self.namespace, self.name),
        }
    }
}

impl Segmented {
    fn of(pod: &PodState, wanted: bool) -> Self {
        let of_family = |(family, whose): &(IpFamily, Segments)| OfFamily {
            family: family.to_string(),
            in_force: !matches!(whose, Segments::Link(_)),
            why: match whose {
                Segments::Loopback => None,
                Segments::Link(why) => Some(why.to_string()),
                Segments::Left(why) => Some(format!("they cannot be taken away: {why}")),
            },
        };
        Self {
            wanted,
            families: pod.segments.iter().map(of_family).collect(),
        }
    }
}

impl Asks {
    fn of(capture: &Capture) -> Self {
        Self {
            bypass_inbound: capture.bypass_inbound,
            dns: capture.dns,
            virtual_interfaces: capture.virtual_interfaces.iter().map(ToString::to_string).collect(),
        }
    }
}

/// What the proxy of this process has open for a pod; `None` where the proxy is another process.
fn connections(at: &Standing, workload: Option<&Arc<Workload>>) -> Option<Connections> {
    let mut connections = Connections::default();
    for open in workload.map(|w| at.metrics.live.of(&w.uid)).unwrap_or_default() {
        match open.ends.direction {
            Direction::Inbound => connections.inbound += 1,
            Direction::Outbound => connections.outbound += 1,
        }
    }
    at.proxied.then_some(connections)
}

/// Why a pod is not meant to be captured, as far as it is told.
fn why_outside(workload: &Workload) -> &'static str {
    match workload.network_mode {
        NetworkMode::HostNetwork => "it is in its node's network namespace (hostNetwork)",
        NetworkMode::Standard if workload.native_tunnel => "it speaks HBONE itself, as a waypoint does",
        NetworkMode::Standard => {
            "no selector takes it (the label istio.io/dataplane-mode of it or its namespace), it has a sidecar, or its namespace is excluded"
        }
    }
}

const AGENTS: &str =
    "its rules are made, proven and kept by the node agent: ask that (`ambient enrol`: `ambient pods --admin 127.0.0.1:15004`)";

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

fn as_text<S: Serializer>(value: &impl Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn time(at: SystemTime) -> String {
    rfc3339(at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs())
}

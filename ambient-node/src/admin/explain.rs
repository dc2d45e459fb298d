//! `/explain`: what would become of a connection: its way, who would prove what, and what policy says.
//!
//! It is answered from this node's version of the mesh, by the same functions that route and decide a real connection;
//! nothing is dialled. What a connection would have looked up is: the name of an endpoint that has no address, and, where the mesh
//! does not come whole, what the control plane is to be asked for; and waited for as long as the connection would.

use std::{
    fmt::Write as _,
    future::Future,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ambient_authz::{Conn, Explanation, Peer, Policies, explain, explain_all};
use ambient_core::{
    Credentials as _, Identity, Mesh, PodUid, Service, Workload,
    route::{self, Plan, Refusal, Route},
};
use http::StatusCode;
use serde::Serialize;
use tokio::{runtime::Handle, task::JoinHandle};

use super::{Answer, Asked, Context, answer::JSON};
use crate::{
    Config, Shared,
    demand::{self, DemandError},
    entropy,
    outbound::{MOST_LOOKUPS, MOST_NAMES},
    state::Snapshot,
    text::rfc3339,
};

/// `GET /explain?from=NAMESPACE/POD&to=ADDRESS:PORT`, or `HOST:PORT`; `&format=json` for programs, `&all=true` for every policy,
/// rule and key, however many there are.
pub(super) fn explained(at: &Context, asked: &Asked) -> Answer {
    let (Some(from), Some(to)) = (asked.value("from"), asked.value("to")) else {
        return Answer::text(StatusCode::BAD_REQUEST, "?from=NAMESPACE/POD&to=ADDRESS:PORT or &to=HOST:PORT\n");
    };
    let tell = match asked.value("all") {
        None | Some("false") => explain,
        Some("" | "true") => explain_all,
        Some(other) => return Answer::text(StatusCode::BAD_REQUEST, format!("all is true or false, and not {other:?}\n")),
    };
    let unknown = inform(at, from, to).err();
    let Some(now) = at.node.state.current() else {
        return Answer::text(StatusCode::SERVICE_UNAVAILABLE, "the mesh's state has not arrived\n");
    };
    let answer = match Answered::new(at, &now, (from, to), tell) {
        Ok(answer) => answer.unless(unknown),
        Err(wrong) => return Answer::text(StatusCode::NOT_FOUND, wrong + "\n"),
    };
    match asked.value("format") {
        None | Some("text") => Answer::text(StatusCode::OK, answer.to_text()),
        Some("json") => match serde_json::to_string_pretty(&answer) {
            Ok(text) => Answer::whole(StatusCode::OK, JSON, text + "\n"),
            Err(error) => Answer::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        },
        Some(other) => Answer::text(StatusCode::BAD_REQUEST, format!("format is text or json, and not {other:?}\n")),
    }
}

/// A page of it, or all.
type Tell = fn(&Policies, &Workload, &Conn<'_>) -> Explanation;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answered {
    source: Party,
    /// What the application would dial.
    asked: SocketAddr,
    /// The service that was named, where a name was.
    service: Option<String>,
    /// What the way hangs on that has a name alone, and what that means.
    lookup: Option<LookedUp>,
    route: Way,
    /// Whose certificates the tunnel takes, and whether this node has them.
    certificates: Vec<Certificate>,
    policy: Verdict,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Party {
    namespace: Arc<str>,
    name: Arc<str>,
    identity: Option<Identity>,
    node: Arc<str>,
    protocol: &'static str,
}

/// A name, and its addresses as this node's resolver has them.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct LookedUp {
    name: Arc<str>,
    addresses: Vec<IpAddr>,
}

/// The way, in words and in parts.
#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Way {
    kind: &'static str,
    text: String,
    peer: Option<SocketAddr>,
    authority: Option<String>,
    accepted: Vec<Identity>,
    destination: Option<Party>,
    service: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Certificate {
    identity: Identity,
    state: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Verdict {
    /// What there is to say besides, or instead.
    text: String,
    explanation: Option<Explanation>,
}

impl Party {
    fn new(workload: &Workload) -> Self {
        Self {
            namespace: workload.namespace.clone(),
            name: workload.name.clone(),
            identity: workload.identity().ok(),
            node: workload.node.clone(),
            protocol: match workload.tunnel {
                ambient_core::TunnelProtocol::Hbone => "HBONE",
                ambient_core::TunnelProtocol::None => "TCP",
            },
        }
    }
}

/// Sees to it that what a connection would hang on is known, as the connection does.
fn inform(at: &Context, from: &str, to: &str) -> Result<(), DemandError> {
    if at.node.demand.is_none() {
        return Ok(());
    }
    let (mut confirmed, mut learned) = (Vec::new(), false);
    loop {
        let Some(now) = at.node.state.current() else { return Ok(()) };
        let Ok(source) = pod(&now.mesh, &at.node.config, from) else {
            return Ok(());
        };
        let asker = source.pod.clone().unwrap_or_else(|| PodUid::from(source.uid.as_str()));
        let destination = match destination(at, &now.mesh, source, to) {
            Ok((destination, _)) => destination,
            Err(_) if learned => return Ok(()),
            Err(_) => {
                learned = true;
                let (host, _) = to.rsplit_once(':').unwrap_or((to, ""));
                let names = names(at, source, host);
                let names = demand::service_names(&names, &source.namespace, &at.node.config.cluster_domain);
                elsewhere(at, |node| async move {
                    if let Some(demand) = &node.demand {
                        demand.learn(&asker, &names).await;
                    }
                });
                continue;
            }
        };
        let outbound = route::Outbound { source, destination };
        let hints = route::Hints::default();
        let needed = demand::needed(&now.mesh, &outbound, &route::outbound(&now.mesh, &outbound, &hints));
        let Some(name) = needed.filter(|name| !confirmed.contains(name)) else {
            return Ok(());
        };
        let first = demand::destination(&outbound);
        if confirmed.len() >= MOST_NAMES {
            return Err(DemandError::TooFar(first.into()));
        }
        let (named, because) = (name.clone(), (name != first).then_some(first));
        let known = elsewhere(at, |node| async move {
            let Some(demand) = &node.demand else { return Ok(()) };
            demand.know(&asker, &named, because.as_deref()).await
        });
        known.unwrap_or(Ok(()))?;
        confirmed.push(name);
    }
}

/// Has a thread of connections wait for something, and waits for that; none where the node ends before. The threads of pages are
/// few, have what connections leave, and end before those: what connections wait for as well must not hang on them.
fn elsewhere<F>(at: &Context, question: impl FnOnce(Arc<Shared>) -> F) -> Option<F::Output>
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    awaited(at.node.workers.least_loaded().keep(question(at.node.clone())))
}

/// What a task of another runtime gives; none where that ends before. The thread is one that may block.
fn awaited<T>(task: JoinHandle<T>) -> Option<T> {
    // No timer of this runtime is asked, which may have ended meanwhile.
    Handle::current().block_on(task).ok()
}

/// The way as a connection would go, once what it hangs on is looked up as for that: with as much patience, in places apart from the
/// pods'.
fn plan(at: &Context, mesh: &Mesh, outbound: &route::Outbound<'_>) -> (Result<Plan, Refusal>, Option<LookedUp>) {
    let mut hints = route::Hints {
        draw: entropy::word(),
        ..route::Hints::default()
    };
    let mut lookups = 0;
    let planned = loop {
        match route::outbound(mesh, outbound, &hints) {
            Route::Go(plan) => break Ok(plan),
            Route::Refuse(refusal) => break Err(refusal),
            Route::Need(lookup) if lookups >= MOST_LOOKUPS => break Err(Refusal::Unresolved(lookup.0)),
            Route::Need(lookup) => {
                lookups += 1;
                let (asked, own) = (lookup.clone(), at.lookups.clone());
                let found = elsewhere(at, |node| async move { node.lookups.find(&asked, &own).await });
                hints.resolved = Some((lookup, found.unwrap_or_default()));
            }
        }
    };
    let looked_up = hints.resolved.map(|(route::Lookup(name), addresses)| LookedUp { name, addresses });
    (planned, looked_up)
}

impl Answered {
    /// The same, where it is known; else as a connection is refused that nobody says the way of.
    fn unless(self, unknown: Option<DemandError>) -> Self {
        let Some(error) = unknown else { return self };
        Self {
            route: Way {
                kind: "refused",
                text: error.to_string(),
                ..Way::default()
            },
            lookup: None,
            certificates: Vec::new(),
            policy: not_asked("not asked: the connection is refused before"),
            ..self
        }
    }

    fn new(at: &Context, now: &Snapshot, (from, to): (&str, &str), tell: Tell) -> Result<Self, String> {
        let source = pod(&now.mesh, &at.node.config, from)?;
        let (asked, service) = destination(at, &now.mesh, source, to)?;
        let outbound = route::Outbound {
            source,
            destination: asked,
        };
        let (planned, lookup) = plan(at, &now.mesh, &outbound);
        Ok(Self {
            source: Party::new(source),
            asked,
            service: service.map(|service| service.name.to_string()),
            lookup,
            certificates: certificates(at, source, &planned),
            policy: policy(now, source, asked, &planned, tell),
            route: Way::from(planned),
        })
    }

    fn to_text(&self) -> String {
        let mut text = String::new();
        let source = &self.source;
        let named = self.service.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
        let _ = writeln!(
            text,
            "{}/{} on {} to {}{named}",
            source.namespace, source.name, source.node, self.asked
        );
        if let Some(LookedUp { name, addresses }) = &self.lookup {
            let all: Vec<_> = addresses.iter().map(ToString::to_string).collect();
            let found = if all.is_empty() { "no address".to_owned() } else { all.join(", ") };
            let _ = writeln!(text, "lookup: {name}: {found}, as this node's resolver has it");
        }
        let _ = writeln!(text, "route: {}: {}", self.route.kind, self.route.text);
        for certificate in &self.certificates {
            let _ = writeln!(text, "identity: {}: {}", certificate.identity, certificate.state);
        }
        let _ = writeln!(text, "policy: {}", self.policy.text);
        if let Some(explanation) = &self.policy.explanation {
            let _ = writeln!(text, "{explanation}");
        }
        text
    }
}

/// A pod by namespace and name: of this node's cluster, where others of the mesh have one that is called so. Nothing else needs that,
/// so that there is no index for it.
fn pod<'a>(mesh: &'a Mesh, config: &Config, named: &str) -> Result<&'a Arc<Workload>, String> {
    let (namespace, name) = named
        .split_once('/')
        .ok_or_else(|| format!("{named:?} names no pod: NAMESPACE/POD is wanted"))?;
    let all = mesh.workloads();
    let called = all.filter(|workload| *workload.namespace == *namespace && *workload.name == *name);
    let found = called.min_by_key(|workload| (workload.cluster != config.cluster_id, workload.node != config.node, &workload.uid));
    found.ok_or_else(|| format!("the mesh has no workload {name:?} in namespace {namespace:?}"))
}

/// What the application would dial: for a name, the first address that DNS would answer with.
fn destination<'a>(at: &Context, mesh: &'a Mesh, source: &Workload, to: &str) -> Result<(SocketAddr, Option<&'a Arc<Service>>), String> {
    if let Ok(address) = to.parse() {
        return Ok((address, None));
    }
    let wanted = || format!("{to:?} is no destination: ADDRESS:PORT or HOST:PORT is wanted");
    let (host, port) = to.rsplit_once(':').ok_or_else(wanted)?;
    let port: u16 = port.parse().map_err(|_| wanted())?;
    let own = &source.namespace;
    let names = names(at, source, host);
    let service = names.iter().find_map(|name| mesh.service_by_hostname(name, own));
    let service = service.ok_or_else(|| format!("the mesh has no service {:?} that {own} sees", names[0]))?;
    let vip = service.vips.iter().find(|vip| vip.network == source.network).map(|vip| vip.ip);
    let endpoint = || {
        // Headless: DNS answers with the pods themselves.
        let endpoints = mesh.endpoints(&service.name).into_iter().flat_map(|all| all.keys());
        let mut pods = endpoints.filter_map(|uid| mesh.workload(uid));
        pods.find_map(|pod| pod.addresses.first().copied())
    };
    let no_address = || no_address(service, &at.node.config.cluster_domain);
    let ip = vip.or_else(endpoint).ok_or_else(no_address)?;
    Ok((SocketAddr::new(ip, port), Some(service)))
}

/// Why nobody says here what the name of a service means to who dials it.
fn no_address(service: &Service, cluster_domain: &str) -> String {
    let name = &service.name;
    // A name of the cluster is the mesh's, and other nameservers know no more of it.
    let of_cluster = name
        .hostname
        .strip_suffix(cluster_domain)
        .is_some_and(|rest| rest.ends_with(".svc."));
    let why = match of_cluster {
        true => "has no endpoint with an address now",
        false => "has no address in the mesh: whoever dials it has one from the name's own nameservers",
    };
    format!("{name} {why}; ask for ADDRESS:PORT instead")
}

/// What a pod's search list makes of a host's name, that itself first.
fn names(at: &Context, source: &Workload, host: &str) -> [String; 4] {
    let (host, domain) = (host.to_ascii_lowercase(), &at.node.config.cluster_domain);
    let (host, own) = (host.trim_end_matches('.'), &source.namespace);
    [
        host.to_owned(),
        format!("{host}.{own}.svc.{domain}"),
        format!("{host}.svc.{domain}"),
        format!("{host}.{domain}"),
    ]
}

impl From<Result<Plan, Refusal>> for Way {
    fn from(planned: Result<Plan, Refusal>) -> Self {
        match planned {
            Err(refusal) => Self {
                kind: "refused",
                text: refusal.to_string(),
                ..Self::default()
            },
            Ok(Plan::Passthrough(to)) => Self {
                kind: "passthrough",
                text: format!("nobody of the mesh is there: {to} is dialled in plaintext"),
                peer: Some(to),
                ..Self::default()
            },
            Ok(Plan::Direct(direct)) => Self {
                kind: "direct",
                text: format!(
                    "{}/{} is not captured: {} is dialled in plaintext",
                    direct.destination.namespace, direct.destination.name, direct.to
                ),
                peer: Some(direct.to),
                destination: Some(Party::new(&direct.destination)),
                service: direct.service.map(|service| service.name.to_string()),
                ..Self::default()
            },
            Ok(Plan::Tunnel(tunnel)) => {
                let destination = &tunnel.destination;
                let (kind, at) = match &tunnel.inner {
                    Some(_) => ("gateway", "the gateway of another network "),
                    None if tunnel.waypoint => ("waypoint", "the waypoint "),
                    None => ("tunnel", ""),
                };
                Self {
                    kind,
                    text: format!(
                        "CONNECT {} at {}, {at}{}/{} on {}",
                        tunnel.authority, tunnel.peer, destination.namespace, destination.name, destination.node
                    ),
                    peer: Some(tunnel.peer),
                    authority: Some(tunnel.authority.to_string()),
                    accepted: tunnel.accepted,
                    destination: Some(Party::new(&tunnel.destination)),
                    service: tunnel.service.map(|service| service.name.to_string()),
                }
            }
        }
    }
}

/// Who must prove what for this way: the source to the peer, and the peer to the source.
fn certificates(at: &Context, source: &Workload, planned: &Result<Plan, Refusal>) -> Vec<Certificate> {
    let Ok(Plan::Tunnel(tunnel)) = planned else {
        return Vec::new();
    };
    let own = source.identity().ok().map(|identity| Certificate {
        state: match at.node.certificates.credential(&identity) {
            Some(credential) => {
                let until = credential.not_after.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
                let until = rfc3339(until.as_secs());
                match at.node.certificates.why_refused(&identity) {
                    Some(why) => format!("the source's, here until {until}, and peers refuse it ({why}): another is asked for"),
                    None => format!("the source's, here and valid until {until}"),
                }
            }
            None if *source.node == *at.node.config.node => {
                "the source's, and there is no valid certificate of it: a tunnel is refused".into()
            }
            None => format!("the source's, whose certificate the node {} has", source.node),
        },
        identity,
    });
    let peers = tunnel.accepted.iter().map(|identity| Certificate {
        identity: identity.clone(),
        state: "what the peer may prove to be".into(),
    });
    own.into_iter().chain(peers).collect()
}

/// What the destination's node decides.
fn policy(now: &Snapshot, source: &Workload, asked: SocketAddr, planned: &Result<Plan, Refusal>, tell: Tell) -> Verdict {
    let (workload, destination, identity) = match planned {
        Err(_) => return not_asked("not asked: the connection is refused before"),
        Ok(Plan::Passthrough(_)) => return not_asked("not asked: the destination is outside of the mesh"),
        Ok(Plan::Direct(direct)) => return not_asked_of(&direct.destination),
        Ok(Plan::Tunnel(tunnel)) if tunnel.inner.is_some() => {
            return not_asked("asked in the other network, of which nothing is known here");
        }
        Ok(Plan::Tunnel(tunnel)) if tunnel.waypoint => {
            return not_asked(
                "asked at the waypoint, which decides by what is attached to it; and by the destination's node of what the waypoint sends on",
            );
        }
        Ok(Plan::Tunnel(tunnel)) => {
            let inbound = route::Inbound {
                pod: &tunnel.destination,
                at: tunnel.peer.ip(),
                authority: &tunnel.authority,
            };
            match route::inbound(&now.mesh, &inbound) {
                Ok(delivery) => (&tunnel.destination, delivery.to, source.identity().ok()),
                Err(refusal) => {
                    return not_asked(&format!(
                        "not asked: the destination's node answers {}: {refusal}",
                        refusal.status()
                    ));
                }
            }
        }
    };
    let peer = identity.map_or_else(Peer::plaintext, Peer::from);
    let family = |ip: &&IpAddr| ip.is_ipv4() == asked.is_ipv4();
    let from = source.addresses.iter().find(family).or_else(|| source.addresses.first());
    let Some(from) = from else {
        return not_asked("not asked: the source has no address");
    };
    let conn = Conn {
        peer: &peer,
        source: *from,
        destination,
    };
    let explanation = tell(&now.policies, workload, &conn);
    Verdict {
        text: if explanation.allowed { "it may pass" } else { "it is refused" }.into(),
        explanation: Some(explanation),
    }
}

fn not_asked_of(destination: &Workload) -> Verdict {
    not_asked(&format!(
        "not asked: no proxy stands before {}/{}, so that nobody decides",
        destination.namespace, destination.name
    ))
}

fn not_asked(text: &str) -> Verdict {
    Verdict {
        text: text.into(),
        explanation: None,
    }
}

#[cfg(test)]
mod tests;

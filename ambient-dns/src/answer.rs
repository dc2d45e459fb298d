//! What is answered: a pure function of the mesh, who asks, and the query's bytes.

use std::{net::IpAddr, sync::Arc};

use ambient_core::{Endpoint, Health, HealthPolicy, Mesh, Network, Service, Workload, WorkloadUid};

use crate::{
    Transport,
    names::{self, Origin},
    wire::{self, Code, Extras, Header, Question, Reply},
};

#[cfg(test)]
mod tests;

/// What is done with a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// These bytes are sent back.
    Reply(Vec<u8>),
    /// The query is not the mesh's to answer: it goes upstream as it came.
    Forward,
    /// Nothing is said: it is no query. An answer that is sent as one might go in circles.
    Drop,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a> {
    /// Its Kubernetes namespace: where names without one are looked for.
    pub namespace: &'a str,
    /// Its network: addresses of others mean nothing to it.
    pub network: &'a Network,
    /// The domains that its resolver tries behind a name, besides those that every pod has; case and a dot at the end do not
    /// matter. They are what its `resolv.conf` says ([`Resolv::search`](crate::resolv::Resolv::search)).
    pub search: &'a [String],
}

/// The DNS domain in which the cluster's services have their names, and whose service it is that a name means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone {
    domain: Arc<str>,
    /// `.svc.DOMAIN`: how the names of Kubernetes' services end.
    services: Arc<str>,
    preferred: Option<Arc<str>>,
    ipv6: bool,
}

impl Zone {
    /// The zone of a cluster's domain, such as `cluster.local`; case and a dot at the end do not matter. A text that is no DNS
    /// name is the domain of no name: all that is asked for below it is forwarded.
    pub fn new(cluster_domain: impl AsRef<str>) -> Self {
        let domain = cluster_domain.as_ref().trim_matches('.').to_ascii_lowercase();
        Self {
            services: format!(".svc.{domain}").into(),
            domain: domain.into(),
            preferred: None,
            ipv6: true,
        }
    }

    /// The same, in which of several services of one name that of a namespace comes before others, unless the client's own
    /// namespace has one or another is canonical: ztunnel's `PREFERED_SERVICE_NAMESPACE`.
    #[must_use]
    pub fn preferring(self, namespace: Option<Arc<str>>) -> Self {
        Self {
            preferred: namespace,
            ..self
        }
    }

    /// The same, in which the mesh's names have IPv6 addresses only where that is said: for clients whose IPv6 is not captured,
    /// and would go past the mesh.
    #[must_use]
    pub fn with_ipv6(self, ipv6: bool) -> Self {
        Self { ipv6, ..self }
    }

    /// The cluster's domain, in lower case and without a dot at the end.
    pub fn cluster_domain(&self) -> &str {
        &self.domain
    }

    pub(crate) fn services(&self) -> &str {
        &self.services
    }
}

impl Default for Zone {
    /// `cluster.local`.
    fn default() -> Self {
        Self::new("cluster.local")
    }
}

/// Answers a query from a snapshot of the mesh. `draw` is a random word: it says in which order the records come.
///
/// Answered are A and AAAA, class IN, of a service's name, of the short forms of Kubernetes' names (`SERVICE` in the
/// client's own namespace, `SERVICE.NAMESPACE`, `SERVICE.NAMESPACE.svc`), and of what search lists make of all of these:
/// `api.example.com.NAMESPACE.svc.DOMAIN` is answered with a CNAME to `api.example.com`, if that is a service's, because
/// the resolver would come to it. A service `*.example.com` is the answer to all names below `example.com` that are nobody
/// else's. The answer holds the service's virtual addresses in the client's network; for a headless service of the
/// cluster's domain, the first address in the family of each endpoint that may be chosen; for `POD.SERVICE…` of such a
/// one, the address of that pod of a StatefulSet. A family that is missing, or that [`Zone::with_ipv6`] leaves out, is
/// NOERROR without records, so that the client goes on with the other one. Where several services share a name, that of the client's own namespace comes first, then
/// a canonical one, then that of [`Zone::preferring`], then the first by namespace. A record may be kept for 30 s.
///
/// Forwarded is **all that cannot be answered exactly**, without a look at what it means: other names, other types of the
/// mesh's own names (SRV, MX, HTTPS and so on: the cluster's DNS knows them), other classes and operations (UPDATE, NOTIFY),
/// signed queries, several questions, EDNS versions to come, records that a question does not need, and what is malformed;
/// services that have addresses only in networks that are not the client's; and headless services of which the mesh knows
/// no endpoint that may be chosen (theirs may be written by hand). A message too short to have an ID and an answer sent as a
/// query are dropped.
///
/// Replies over UDP keep to what the client says it takes, at least 512 bytes, and are marked as cut when that is too
/// little ([RFC 2181 9](https://www.rfc-editor.org/rfc/rfc2181#section-9)).
pub fn answer(mesh: &Mesh, zone: &Zone, client: &Client<'_>, query: &[u8], transport: Transport, draw: u64) -> Answer {
    let header = match Header::read(query) {
        None => return Answer::Drop,
        Some(header) if header.is_response() => return Answer::Drop,
        Some(header) => header,
    };
    let Some((question, edns)) = asked(query, &header) else {
        return Answer::Forward;
    };
    let Some((found, mut addresses)) = addresses(mesh, zone, client, &question) else {
        return Answer::Forward;
    };
    shuffle(&mut addresses, draw);
    let reply = Reply {
        header,
        questions: question.bytes(),
        count: 1,
        edns,
        code: Code::NoError,
        error: None,
        alias: found.alias.as_deref(),
    };
    let limit = match transport {
        Transport::Udp => usize::from(edns.map_or(wire::SMALLEST_PAYLOAD, |edns| edns.payload)).min(LARGEST_DATAGRAM),
        Transport::Tcp => usize::from(u16::MAX),
    };
    Answer::Reply(reply.write(&addresses, TTL_SECONDS, limit))
}

/// The names of services that a query for addresses may mean; none of another query.
pub(crate) fn meant(zone: &Zone, client: &Client<'_>, query: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    let question = Header::read(query).filter(|header| !header.is_response());
    let question = question.and_then(|header| asked(query, &header));
    let Some(name) = question.and_then(|(question, _)| question.name) else {
        return names;
    };
    names::candidates(zone, client, &name, |name, _| {
        // Without a dot it is no service's whole name.
        if name.contains('.') && names.len() < MEANT && !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
        None::<()>
    });
    names
}

/// What of an answer fits into a datagram of IPv4; what does not is had by TCP.
const LARGEST_DATAGRAM: usize = 65_507;
/// Names that one query may mean, as far as they are looked for.
const MEANT: usize = 8;

/// SERVFAIL to a query whose nameservers are known not to be there; whoever speaks EDNS is told that the network failed.
/// `None` to what is no query.
pub(crate) fn unreachable(query: &[u8]) -> Option<Vec<u8>> {
    let header = Header::read(query).filter(|header| !header.is_response())?;
    let questions = wire::questions(query, &header);
    let reply = Reply {
        header,
        questions: questions.unwrap_or_default(),
        count: questions.map_or(0, |_| header.questions),
        edns: Extras::read(query, &header).ok().and_then(|extras| extras.edns),
        code: Code::ServFail,
        error: Some(wire::NETWORK_ERROR),
        alias: None,
    };
    Some(reply.write(&[], TTL_SECONDS, wire::SMALLEST_PAYLOAD.into()))
}

/// Whether a query asks for the addresses of a name, so that it may be the mesh's to answer.
pub(crate) fn might_be_ours(query: &[u8]) -> bool {
    Header::read(query).is_some_and(|header| !header.is_response() && asked(query, &header).is_some())
}

/// What a query asks, and what it says about the reply, if it is of the one form that is answered here.
fn asked<'a>(query: &'a [u8], header: &Header) -> Option<(Question<'a>, Option<wire::Edns>)> {
    if !header.is_plain_query() {
        return None;
    }
    let question = Question::read(query).ok()?;
    if question.class != wire::INTERNET || !matches!(question.kind, wire::A | wire::AAAA) {
        return None;
    }
    let extras = Extras::read(query, header).ok()?;
    let known = extras.edns.is_none_or(|edns| edns.version == 0);
    (known && !extras.signed && !extras.others).then_some((question, extras.edns))
}

/// What a name is found to mean.
struct Found<'a> {
    service: &'a Arc<Service>,
    /// One endpoint of it alone.
    pod: Option<&'a Arc<Workload>>,
    /// The name that it was found under, where that is another than the client knows it by.
    alias: Option<String>,
}

/// The addresses to answer with, perhaps none; `None` if it is not the mesh's to answer.
fn addresses<'a>(mesh: &'a Mesh, zone: &Zone, client: &Client<'_>, question: &Question<'_>) -> Option<(Found<'a>, Vec<IpAddr>)> {
    let family: fn(&IpAddr) -> bool = match question.kind {
        wire::A => IpAddr::is_ipv4,
        _ => IpAddr::is_ipv6,
    };
    let name = question.name.as_deref()?;
    let found = names::candidates(zone, client, name, |name, origin| find(mesh, zone, client, name, origin))?;
    let service = found.service;
    if question.kind == wire::AAAA && !zone.ipv6 {
        return Some((found, Vec::new()));
    }
    // Endpoints are reached in the families that the service has.
    let of_workload = |workload: &Workload| {
        let mut addresses = workload.addresses.iter().copied();
        addresses.find(|ip| family(ip) && service.ip_families.accepts(*ip))
    };
    if let Some(pod) = found.pod {
        let addresses = of_workload(pod).into_iter().collect();
        return Some((found, addresses));
    }
    if is_headless(service) {
        let mut endpoints = endpoints(mesh, client, service).peekable();
        endpoints.peek()?;
        let mut addresses: Vec<_> = endpoints.filter_map(|workload| of_workload(workload)).collect();
        // Two that share their node's address are one record.
        addresses.sort_unstable();
        addresses.dedup();
        return Some((found, addresses));
    }
    let mut ours = service.vips.iter().filter(|vip| vip.network == *client.network).peekable();
    ours.peek()?;
    let addresses = ours.map(|vip| vip.ip).filter(family).collect();
    Some((found, addresses))
}

fn find<'a>(mesh: &'a Mesh, zone: &Zone, client: &Client<'_>, name: &str, origin: Origin) -> Option<Found<'a>> {
    let alias = || (origin == Origin::Stripped).then(|| name.to_owned());
    if let Some(service) = service(mesh, zone, client, name) {
        return Some(Found {
            service,
            pod: None,
            alias: alias(),
        });
    }
    if let Some((service, pod)) = pod(mesh, zone, client, name) {
        return Some(Found {
            service,
            pod: Some(pod),
            alias: alias(),
        });
    }
    let service = names::wildcards(name, |wildcard| service(mesh, zone, client, wildcard))?;
    Some(Found {
        service,
        pod: None,
        alias: None,
    })
}

/// The service of exactly a name, of those that the client sees and that can be answered with.
fn service<'a>(mesh: &'a Mesh, zone: &Zone, client: &Client<'_>, hostname: &str) -> Option<&'a Arc<Service>> {
    // A name of somewhere else without an address is only a name: its own nameserver knows what it means.
    let answers = |service: &&Arc<Service>| {
        let known = !service.vips.is_empty() || hostname.ends_with(zone.services());
        known && service.is_visible_from(client.namespace)
    };
    let rank = |service: &&Arc<Service>| {
        let namespace = &*service.name.namespace;
        (
            namespace != client.namespace,
            !service.canonical,
            zone.preferred.as_deref() != Some(namespace),
        )
    };
    // The first of the best.
    mesh.services_by_hostname(hostname).filter(answers).min_by_key(rank)
}

/// The pod of a name `POD.SERVICE.NAMESPACE.svc.DOMAIN`, and the headless service.
///
/// Only pods of StatefulSets: they are called `SET-NUMBER`, and have such a name always; other pods have one only where
/// their manifest says so, which the mesh is not told.
fn pod<'a>(mesh: &'a Mesh, zone: &Zone, client: &Client<'_>, name: &str) -> Option<(&'a Arc<Service>, &'a Arc<Workload>)> {
    let (pod, rest) = name.split_once('.')?;
    let (_, number) = pod.rsplit_once('-')?;
    if !rest.ends_with(zone.services()) || number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let service = service(mesh, zone, client, rest).filter(|service| is_headless(service))?;
    let mut named = endpoints(mesh, client, service).filter(|workload| *workload.name == *pod);
    named.next().map(|workload| (service, workload))
}

fn is_headless(service: &Service) -> bool {
    service.vips.is_empty() && service.vip_blocks.is_empty()
}

/// The endpoints of a service that a client may be told of, in no order.
fn endpoints<'a>(mesh: &'a Mesh, client: &Client<'_>, service: &Service) -> impl Iterator<Item = &'a Arc<Workload>> {
    let balancer = service.load_balancer.as_ref();
    let any = balancer.is_some_and(|balancer| balancer.health_policy == HealthPolicy::AllowAll);
    let all = mesh.endpoints(&service.name).into_iter().flat_map(|all| all.iter());
    let may = move |(_, endpoint): &(&WorkloadUid, &Endpoint)| any || endpoint.health == Health::Healthy;
    let workloads = all.filter(may).filter_map(|(uid, _)| mesh.workload(uid));
    workloads.filter(|workload| workload.network == *client.network && workload.capacity > 0)
}

/// Brings addresses into an order that a random word says ([Fisher and Yates](https://en.wikipedia.org/wiki/Fisher–Yates_shuffle)).
fn shuffle(addresses: &mut [IpAddr], mut draw: u64) {
    for last in (1..addresses.len()).rev() {
        // Knuth's generator: no secret is made of it, only an order.
        draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let places = u64::try_from(last).unwrap_or(u64::MAX) + 1;
        let other = usize::try_from((draw >> 33) % places).unwrap_or(last);
        addresses.swap(last, other);
    }
}

/// How long an answer may be kept; ztunnel's.
const TTL_SECONDS: u32 = 30;

//! What is answered: a pure function of the mesh, who asks, and the query's bytes.

use std::{net::IpAddr, sync::Arc};

use ambient_core::{Health, Mesh, Network, Service};

use crate::{
    Transport,
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
    /// Nothing is said: there is nobody who waits for an answer, or saying something might go in circles.
    Drop,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a> {
    /// Its Kubernetes namespace: where names without one are looked for.
    pub namespace: &'a str,
    /// Its network: addresses of others mean nothing to it.
    pub network: &'a Network,
}

/// The DNS domain in which the cluster's services have their names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone {
    domain: Arc<str>,
    /// `.svc.DOMAIN`: how the names of Kubernetes' services end.
    services: Arc<str>,
}

impl Zone {
    /// The zone of a cluster's domain, such as `cluster.local`; case and a dot at the end do not matter.
    pub fn new(cluster_domain: impl AsRef<str>) -> Self {
        let domain = cluster_domain.as_ref().trim_matches('.').to_ascii_lowercase();
        Self {
            services: format!(".svc.{domain}").into(),
            domain: domain.into(),
        }
    }

    /// The cluster's domain, in lower case and without a dot at the end.
    pub fn cluster_domain(&self) -> &str {
        &self.domain
    }
}

impl Default for Zone {
    /// `cluster.local`.
    fn default() -> Self {
        Self::new("cluster.local")
    }
}

/// Answers a query from a snapshot of the mesh.
///
/// Answered are A and AAAA, class IN, of a service's full name and of the short forms that Kubernetes' search lists make
/// of it: `SERVICE` in the client's own namespace, `SERVICE.NAMESPACE`, `SERVICE.NAMESPACE.svc`. The answer holds the
/// service's virtual addresses in the client's network; for a headless service of the cluster's domain, the first
/// address in the family of each endpoint that may be chosen. A family that the service does not have is NOERROR
/// without records, so that the client goes on with the other one. Where two services share a name, the client's own
/// namespace comes first.
///
/// Forwarded is all that cannot be answered exactly: other names, **other types of the mesh's own names** (SRV, MX,
/// HTTPS and so on: the cluster's DNS knows them), other classes, signed queries, services that have addresses only in
/// networks that are not the client's, and headless services of which the mesh knows no endpoint (theirs may be written
/// by hand).
///
/// A query that says something impossible is FORMERR, an operation other than QUERY is NOTIMP, an EDNS version other
/// than 0 is BADVERS ([RFC 6891 6.1.3]), and both a message too short to have an ID and an answer sent as a query are
/// dropped. Replies over UDP keep to what the client says it takes, at least 512 bytes, and are marked as cut when that
/// is too little; records come in an order that the query's ID turns, so that clients spread over them.
///
/// [RFC 6891 6.1.3]: https://www.rfc-editor.org/rfc/rfc6891#section-6.1.3
pub fn answer(mesh: &Mesh, zone: &Zone, client: &Client<'_>, query: &[u8], transport: Transport) -> Answer {
    let header = match admit(query) {
        Ok(header) => header,
        Err(answer) => return answer,
    };
    let Ok(question) = Question::read(query) else {
        return refuse(header, Code::FormErr);
    };
    let Some(addresses) = addresses(mesh, zone, client, &question) else {
        return Answer::Forward;
    };
    let Ok(extras) = Extras::read(query, &header, &question) else {
        return refuse(header, Code::FormErr);
    };
    if extras.signed {
        return Answer::Forward;
    }
    let code = match extras.edns {
        Some(edns) if edns.version != 0 => Code::BadVers,
        _ => Code::NoError,
    };
    let reply = Reply {
        header,
        question: Some(&question),
        edns: extras.edns,
        code,
    };
    let mut addresses = if code == Code::NoError { addresses } else { Vec::new() };
    let turn = usize::from(header.id).checked_rem(addresses.len()).unwrap_or(0);
    addresses.rotate_left(turn);
    Answer::Reply(reply.write(&addresses, TTL_SECONDS, limit(&extras, transport)))
}

/// SERVFAIL to a query that should have been answered or forwarded, and could not be; where even that is too much, what
/// [`answer()`] would say.
pub(crate) fn fail(query: &[u8]) -> Answer {
    let header = match admit(query) {
        Ok(header) => header,
        Err(answer) => return answer,
    };
    let Ok(question) = Question::read(query) else {
        return refuse(header, Code::FormErr);
    };
    let extras = Extras::read(query, &header, &question).unwrap_or_default();
    let reply = Reply {
        header,
        question: Some(&question),
        edns: extras.edns,
        code: Code::ServFail,
    };
    Answer::Reply(reply.write(&[], TTL_SECONDS, limit(&extras, Transport::Udp)))
}

/// How many bytes a reply may have.
pub(crate) fn reply_limit(query: &[u8], transport: Transport) -> usize {
    let extras = Header::read(query).and_then(|header| {
        let question = Question::read(query).ok()?;
        Extras::read(query, &header, &question).ok()
    });
    limit(&extras.unwrap_or_default(), transport)
}

fn limit(extras: &Extras, transport: Transport) -> usize {
    match transport {
        Transport::Udp => extras.edns.map_or(wire::SMALLEST_PAYLOAD, |edns| edns.payload).into(),
        Transport::Tcp => u16::MAX.into(),
    }
}

/// The header of a query that asks one question.
fn admit(query: &[u8]) -> Result<Header, Answer> {
    let header = Header::read(query).ok_or(Answer::Drop)?;
    if header.is_response() {
        return Err(Answer::Drop);
    }
    if !header.is_query() {
        return Err(refuse(header, Code::NotImp));
    }
    // More than one has no meaning (RFC 9619), and none asks nothing.
    if header.questions != 1 {
        return Err(refuse(header, Code::FormErr));
    }
    Ok(header)
}

fn refuse(header: Header, code: Code) -> Answer {
    let reply = Reply {
        header,
        question: None,
        edns: None,
        code,
    };
    Answer::Reply(reply.write(&[], TTL_SECONDS, wire::SMALLEST_PAYLOAD.into()))
}

/// The addresses to answer with, perhaps none; `None` if it is not the mesh's to answer.
fn addresses(mesh: &Mesh, zone: &Zone, client: &Client<'_>, question: &Question<'_>) -> Option<Vec<IpAddr>> {
    if question.class != wire::INTERNET {
        return None;
    }
    let family: fn(&IpAddr) -> bool = match question.kind {
        wire::A => IpAddr::is_ipv4,
        wire::AAAA => IpAddr::is_ipv6,
        _ => return None,
    };
    let service = service(mesh, zone, client, question.name.as_deref()?)?;
    if service.vips.is_empty() {
        return headless(mesh, zone, client, service, family);
    }
    let mut ours = service.vips.iter().filter(|vip| vip.network == *client.network).peekable();
    ours.peek()?;
    Some(ours.map(|vip| vip.ip).filter(family).collect())
}

fn headless(mesh: &Mesh, zone: &Zone, client: &Client<'_>, service: &Service, family: fn(&IpAddr) -> bool) -> Option<Vec<IpAddr>> {
    // A name of somewhere else without an address is only a name: its own nameserver knows what it means.
    if !service.name.hostname.ends_with(&*zone.services) {
        return None;
    }
    let endpoints = mesh.endpoints(&service.name)?;
    let mut addresses = Vec::new();
    for (uid, endpoint) in endpoints {
        let Some(workload) = mesh.workload(uid) else { continue };
        if endpoint.health == Health::Healthy && workload.network == *client.network {
            addresses.extend(workload.addresses.iter().copied().find(family));
        }
    }
    // Two that share their node's address are one record.
    addresses.sort_unstable();
    addresses.dedup();
    Some(addresses)
}

fn service<'a>(mesh: &'a Mesh, zone: &Zone, client: &Client<'_>, name: &str) -> Option<&'a Arc<Service>> {
    let find = |hostname: &str| mesh.service_by_hostname(hostname, client.namespace);
    if let Some(service) = find(name) {
        return Some(service);
    }
    let labels: Vec<&str> = name.split('.').collect();
    match labels[..] {
        [""] => None,
        [_] => find(&format!("{name}.{}{}", client.namespace, zone.services)),
        [_, _] => find(&format!("{name}{}", zone.services)),
        [_, _, "svc"] => find(&format!("{name}.{}", zone.domain)),
        _ => None,
    }
}

/// How long an answer may be kept; ztunnel's.
const TTL_SECONDS: u32 = 30;

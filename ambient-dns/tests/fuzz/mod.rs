//! What the fuzz targets run, and what the replay of their corpora runs too. Each takes any bytes, and panics where what it
//! promises does not hold.

use std::{
    net::IpAddr,
    sync::{Arc, LazyLock},
};

use ambient_core::{Endpoint, Health, Mesh, Network, NetworkAddress, Service, Workload, mesh::Update};
use ambient_dns::{Answer, Client, Transport, Zone};
use hickory_proto::{
    op::{Message, MessageType, OpCode, ResponseCode},
    rr::{DNSClass, RecordType},
};

use crate::exchange::Exchange;

/// A query, whatever it is. The first byte says by what it came and who asks.
pub(crate) fn answer(data: &[u8]) {
    let Some((&first, query)) = data.split_first() else { return };
    let transport = if first & 1 == 0 { Transport::Udp } else { Transport::Tcp };
    let network = Network::default();
    let search = ["corp.example".to_owned()];
    let client = Client {
        namespace: if first & 2 == 0 { "shop" } else { "ops" },
        network: &network,
        search: if first & 4 == 0 { &[] } else { &search },
    };
    let ask = || ambient_dns::answer(&MESH, &Zone::default(), &client, query, transport, first.into());
    let answer = ask();
    assert_eq!(answer, ask(), "nothing but what it is given counts");
    let is_query = query.len() >= 12 && query[2] & 0x80 == 0;
    assert_eq!(answer == Answer::Drop, !is_query);
    let Answer::Reply(bytes) = answer else { return };
    // Another decoder reads both, and finds them to belong together.
    // Options are skipped by their length all together: they may be what another decoder refuses.
    let asked = Message::from_vec(query).or_else(|_| Message::from_vec(&without_options(query)));
    let asked = asked.expect("what is answered is a query");
    let reply = Message::from_vec(&bytes).expect("an answer is one");
    let payload = asked.edns.as_ref().map_or(512, |edns| edns.max_payload().max(512));
    let limit = if transport == Transport::Udp { payload.into() } else { 65_535 };
    assert!(bytes.len() <= limit);
    assert_eq!(
        (asked.metadata.message_type, reply.metadata.message_type),
        (MessageType::Query, MessageType::Response)
    );
    assert_eq!((asked.metadata.op_code, reply.metadata.op_code), (OpCode::Query, OpCode::Query));
    assert_eq!((asked.metadata.id, &asked.queries), (reply.metadata.id, &reply.queries));
    assert_eq!((asked.queries.len(), asked.queries[0].query_class()), (1, DNSClass::IN));
    assert!(matches!(asked.queries[0].query_type(), RecordType::A | RecordType::AAAA));
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
    assert_eq!(asked.edns.is_some(), reply.edns.is_some());
    assert!(asked.answers.is_empty() && asked.authorities.is_empty() && asked.additionals.is_empty());
    assert!(reply.authorities.is_empty() && reply.additionals.is_empty());
    assert!(transport == Transport::Udp || !reply.metadata.truncation);
    let kind = asked.queries[0].query_type();
    let is_alias = |at: usize| at == 0 && reply.answers.len() > 1 || reply.metadata.truncation;
    for (at, record) in reply.answers.iter().enumerate() {
        assert!(record.record_type() == kind || record.record_type() == RecordType::CNAME && is_alias(at));
        assert_eq!((record.ttl, record.dns_class), (30, DNSClass::IN));
    }
}

/// A query of one question and an EDNS record after it, without what that record holds.
fn without_options(query: &[u8]) -> Vec<u8> {
    let mut end = 12;
    while query[end] != 0 {
        end += 1 + usize::from(query[end]);
    }
    // The name's end, type and class; the root's name, type, payload and flags.
    let mut bare = query[..end + 5 + 9].to_vec();
    bare.extend([0, 0]);
    bare
}

/// A query on its way upstream, and what comes back. The first two bytes: how long the query is, and the ID that is drawn.
pub(crate) fn exchange(data: &[u8]) {
    let [length, draw, rest @ ..] = data else { return };
    let (query, reply) = rest.split_at(rest.len().min(usize::from(*length)));
    let is_query = query.len() >= 12 && query[2] & 0x80 == 0;
    let Some((exchange, sent)) = Exchange::new(query, u64::from(*draw) * 0x0101) else {
        assert!(!is_query);
        return;
    };
    assert!(is_query);
    assert_eq!(sent[2..], query[2..], "only the ID changes");
    assert!(sent[..2] == [*draw, *draw] || sent[..2] == query[..2]);
    // Whatever it is: what is no answer stays as it was, an answer has the ID that was sent and gets back the client's.
    let mut taken = reply.to_vec();
    match exchange.settle(&mut taken) {
        Ok(()) => {
            assert_eq!((&reply[..2], &taken[..2], &taken[2..]), (&sent[..2], &query[..2], &reply[2..]));
            assert_eq!((reply[2] & 0x80, reply[2] & 0x78), (0x80, query[2] & 0x78));
        }
        Err(_) => assert_eq!(taken, reply),
    }
    // What repeats the query is its answer, whatever follows.
    let mut repeats = sent;
    repeats[2] |= 0x80;
    repeats.extend(reply);
    exchange.settle(&mut repeats).expect("the query, repeated, is answered");
}

/// A mesh with a name of each kind.
static MESH: LazyLock<Mesh> = LazyLock::new(|| {
    let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
    let service = |namespace: &str, hostname: &str, vips: &[&str]| {
        let mut service = Service::new(namespace, hostname);
        service.vips = vips.iter().map(|vip| NetworkAddress::local(ip(vip))).collect();
        service
    };
    let mut headless = service("shop", "db.shop.svc.cluster.local", &[]);
    let workloads: Vec<Arc<Workload>> = (0..100)
        .map(|n| {
            let mut workload = Workload::new(&format!("c//Pod/shop/db-{n}"), "shop", &format!("db-{n}"));
            workload.addresses = vec![ip(&format!("10.1.0.{n}")), ip(&format!("fd00::{n}"))];
            Arc::new(workload)
        })
        .collect();
    let endpoint = |workload: &Arc<Workload>| {
        let endpoint = Endpoint {
            health: Health::Healthy,
            ..Endpoint::default()
        };
        (workload.uid.clone(), endpoint)
    };
    headless.endpoints = Arc::new(workloads.iter().map(endpoint).collect());
    let services = [
        service("shop", "web.shop.svc.cluster.local", &["10.96.0.7"]),
        service("ops", "web.ops.svc.cluster.local", &["10.96.0.8", "fd00:96::8"]),
        service("ops", "api.example.com", &["240.0.0.1"]),
        service("ops", "*.wild.example.com", &["240.0.0.2"]),
        service("ops", "a", &["240.0.0.3"]),
        headless,
    ];
    let services = services.into_iter().map(|service| Update::Service(service.into()));
    Mesh::default().apply(services.chain(workloads.into_iter().map(Update::Workload)))
});

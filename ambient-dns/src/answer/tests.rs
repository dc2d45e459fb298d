use std::{collections::BTreeMap, net::IpAddr};

use ambient_core::{Endpoint, NetworkAddress, Workload, mesh::Update};
use hickory_proto::{
    op::{Edns, Message, OpCode, Query, ResponseCode},
    rr::{DNSClass, Name, RData, RecordType},
};
use proptest::prelude::*;

use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn workload(name: &str, addresses: &[&str]) -> Arc<Workload> {
    let mut workload = Workload::new(&format!("c//Pod/shop/{name}"), "shop", name);
    workload.addresses = addresses.iter().map(|a| ip(a)).collect();
    workload.into()
}

fn service(namespace: &str, hostname: &str, vips: &[&str], endpoints: &[(&Workload, Health)]) -> Update {
    let mut service = Service::new(namespace, hostname);
    service.vips = vips.iter().map(|a| NetworkAddress::local(ip(a))).collect();
    let endpoints = endpoints.iter().map(|(workload, health)| {
        let endpoint = Endpoint {
            health: *health,
            ..Endpoint::default()
        };
        (workload.uid.clone(), endpoint)
    });
    service.endpoints = Arc::new(endpoints.collect::<BTreeMap<_, _>>());
    Update::Service(service.into())
}

fn mesh() -> Mesh {
    let db0 = workload("db-0", &["10.0.1.1", "fd00:1::1"]);
    let db1 = workload("db-1", &["10.0.2.1"]);
    let db2 = workload("db-2", &["10.0.2.2"]);
    let far = Workload {
        network: Network::from("far"),
        ..Workload::clone(&workload("db-3", &["10.0.9.9"]))
    };
    let far = Arc::new(far);
    let mut elsewhere = Service::new("shop", "elsewhere.shop.svc.cluster.local");
    elsewhere.vips = vec![NetworkAddress::new("far".into(), ip("10.96.0.66"))];
    let healthy = |w: &Arc<Workload>| (w.clone(), Health::Healthy);
    let all = [healthy(&db0), healthy(&db1), (db2.clone(), Health::Unhealthy), healthy(&far)];
    let all: Vec<_> = all.iter().map(|(w, h)| (&**w, *h)).collect();
    let updates = [
        service("shop", "web.shop.svc.cluster.local", &["10.96.0.7"], &[]),
        service("shop", "dual.shop.svc.cluster.local", &["10.96.0.8", "fd00:96::8"], &[]),
        service("shop", "db.shop.svc.cluster.local", &[], &all),
        service("shop", "empty.shop.svc.cluster.local", &[], &[]),
        service("shop", "web.ops.svc.cluster.local", &["10.96.0.99"], &[]),
        service("shop", "api.example.com", &["240.0.0.1"], &[]),
        service("ops", "api.example.com", &["240.0.0.2"], &[]),
        service("ops", "bare.example.com", &[], &all),
        Update::Service(elsewhere.into()),
        Update::Workload(db0),
        Update::Workload(db1),
        Update::Workload(db2),
        Update::Workload(far),
    ];
    Mesh::default().apply(updates)
}

fn ask_as(namespace: &str, query: &[u8], transport: Transport) -> Answer {
    let network = Network::default();
    let client = Client {
        namespace,
        network: &network,
    };
    answer(&mesh(), &Zone::default(), &client, query, transport)
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut query = Message::query();
    query.metadata.id = 0;
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    query
}

fn ask(name: &str, kind: RecordType) -> Answer {
    ask_as("shop", &query(name, kind).to_vec().unwrap(), Transport::Udp)
}

/// The reply as an independent decoder reads it.
fn reply(answer: &Answer) -> Message {
    let Answer::Reply(bytes) = answer else {
        panic!("no reply: {answer:?}")
    };
    Message::from_vec(bytes).unwrap()
}

fn ips(message: &Message) -> Vec<IpAddr> {
    let data = message.answers.iter().map(|record| match &record.data {
        RData::A(a) => IpAddr::V4(a.0),
        RData::AAAA(aaaa) => IpAddr::V6(aaaa.0),
        other => panic!("{other:?}"),
    });
    data.collect()
}

#[test]
fn services_are_answered_by_every_name_that_search_lists_make() {
    for name in [
        "web.",
        "web.shop.",
        "web.shop.svc.",
        "web.shop.svc.cluster.local.",
        "WEB.Shop.svc.CLUSTER.local.",
    ] {
        let reply = reply(&ask(name, RecordType::A));
        assert_eq!(ips(&reply), [ip("10.96.0.7")], "{name}");
        let meta = reply.metadata;
        assert_eq!(meta.response_code, ResponseCode::NoError);
        assert!(meta.authoritative && meta.recursion_desired && meta.recursion_available && !meta.truncation && !meta.authentic_data);
        assert_eq!(reply.answers[0].ttl, 30);
        assert_eq!(reply.answers[0].name.to_ascii(), name, "in the case in which it was asked");
        assert_eq!(reply.queries[0].name().to_ascii(), name);
        assert_eq!(reply.edns, None, "none was asked for");
    }
}

#[test]
fn a_short_name_is_of_the_clients_namespace() {
    let bare = query("web.", RecordType::A).to_vec().unwrap();
    assert_eq!(ips(&reply(&ask_as("ops", &bare, Transport::Udp))), [ip("10.96.0.99")]);
    assert_eq!(ask_as("other", &bare, Transport::Udp), Answer::Forward);
    // With its namespace it is the same for everyone.
    let whole = query("web.shop.", RecordType::A).to_vec().unwrap();
    assert_eq!(ips(&reply(&ask_as("other", &whole, Transport::Udp))), [ip("10.96.0.7")]);
}

#[test]
fn of_two_services_of_one_name_the_clients_own_comes_first() {
    let query = query("api.example.com.", RecordType::A).to_vec().unwrap();
    assert_eq!(ips(&reply(&ask_as("shop", &query, Transport::Udp))), [ip("240.0.0.1")]);
    assert_eq!(ips(&reply(&ask_as("ops", &query, Transport::Udp))), [ip("240.0.0.2")]);
}

#[test]
fn a_family_that_is_missing_is_an_empty_answer() {
    let reply4 = reply(&ask("web.shop.", RecordType::AAAA));
    assert_eq!((reply4.metadata.response_code, reply4.answers.len()), (ResponseCode::NoError, 0));
    assert!(reply4.metadata.authoritative);
    assert_eq!(ips(&reply(&ask("dual.", RecordType::AAAA))), [ip("fd00:96::8")]);
    assert_eq!(ips(&reply(&ask("dual.", RecordType::A))), [ip("10.96.0.8")]);
}

#[test]
fn a_headless_service_is_its_endpoints() {
    // Not the unhealthy one, not the one in another network.
    assert_eq!(ips(&reply(&ask("db.", RecordType::A))), [ip("10.0.1.1"), ip("10.0.2.1")]);
    assert_eq!(ips(&reply(&ask("db.", RecordType::AAAA))), [ip("fd00:1::1")]);
}

#[test]
fn the_id_turns_the_records() {
    let mut turned = query("db.", RecordType::A);
    turned.metadata.id = 7;
    let reply = reply(&ask_as("shop", &turned.to_vec().unwrap(), Transport::Udp));
    assert_eq!(reply.metadata.id, 7);
    assert_eq!(ips(&reply), [ip("10.0.2.1"), ip("10.0.1.1")]);
}

#[test]
fn what_cannot_be_answered_exactly_is_forwarded() {
    for kind in [
        RecordType::SRV,
        RecordType::MX,
        RecordType::TXT,
        RecordType::HTTPS,
        RecordType::ANY,
        RecordType::PTR,
        RecordType::CNAME,
    ] {
        assert_eq!(ask("web.shop.svc.cluster.local.", kind), Answer::Forward, "{kind}");
        assert_eq!(ask("nothing.", kind), Answer::Forward, "{kind}");
    }
    let names = [
        ".",
        "nothing.",
        "web.shop.svc.cluster.local.shop.svc.cluster.local.",
        "web.shop.pod.",
        "web.shop.svc.example.com.",
        "db-0.db.shop.svc.cluster.local.",
        "svc.cluster.local.",
        "empty.",
        "elsewhere.",
        "bare.example.com.",
        "example.com.",
    ];
    for name in names {
        assert_eq!(ask(name, RecordType::A), Answer::Forward, "{name}");
    }
    let mut chaos = query("web.", RecordType::A);
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(ask_as("shop", &chaos.to_vec().unwrap(), Transport::Udp), Answer::Forward);
}

#[test]
fn a_signed_query_is_forwarded() {
    let mut signed = query("web.", RecordType::A).to_vec().unwrap();
    signed[11] = 1;
    signed.extend(b"\x03key\0\0\xfa\0\xff\0\0\0\0\0\x02zz");
    assert_eq!(ask_as("shop", &signed, Transport::Udp), Answer::Forward);
}

#[test]
fn what_is_no_query_is_refused_or_dropped() {
    let good = query("web.", RecordType::A).to_vec().unwrap();
    let code = |bytes: &[u8]| {
        let reply = reply(&ask_as("shop", bytes, Transport::Udp));
        assert_eq!((reply.queries.len(), reply.answers.len()), (0, 0));
        assert!(!reply.metadata.authoritative);
        reply.metadata.response_code
    };
    for opcode in [OpCode::Status, OpCode::Notify, OpCode::Update] {
        let mut message = query("web.", RecordType::A);
        message.metadata.op_code = opcode;
        let bytes = message.to_vec().unwrap();
        assert_eq!(code(&bytes), ResponseCode::NotImp);
        assert_eq!(reply(&ask_as("shop", &bytes, Transport::Udp)).metadata.op_code, opcode);
    }
    for questions in [0, 2] {
        let mut bytes = good.clone();
        bytes[5] = questions;
        assert_eq!(code(&bytes), ResponseCode::FormErr);
    }
    assert_eq!(code(&good[..good.len() - 1]), ResponseCode::FormErr);
    assert_eq!(code(&good[..12]), ResponseCode::FormErr);
    assert_eq!(ask_as("shop", &good[..11], Transport::Udp), Answer::Drop);
    assert_eq!(ask_as("shop", &[], Transport::Tcp), Answer::Drop);
    let mut response = good;
    response[2] |= 0x80;
    assert_eq!(ask_as("shop", &response, Transport::Udp), Answer::Drop);
}

#[test]
fn edns_is_echoed() {
    for (asked, said) in [(100, 512), (512, 512), (1232, 1232), (u16::MAX, u16::MAX)] {
        let mut with = query("web.", RecordType::A);
        let mut edns = Edns::new();
        edns.set_dnssec_ok(true);
        with.edns = Some(edns);
        let mut bytes = with.to_vec().unwrap();
        let class = bytes.len() - 8;
        bytes[class..class + 2].copy_from_slice(&u16::to_be_bytes(asked));
        let edns = reply(&ask_as("shop", &bytes, Transport::Udp)).edns.unwrap();
        assert_eq!((edns.max_payload(), edns.version(), edns.flags().dnssec_ok), (said, 0, true));
    }
}

#[test]
fn an_unknown_edns_version_is_badvers() {
    let mut with = query("web.", RecordType::A);
    let mut edns = Edns::new();
    edns.set_version(1);
    with.edns = Some(edns);
    let reply = reply(&ask_as("shop", &with.to_vec().unwrap(), Transport::Udp));
    let edns = reply.edns.unwrap();
    assert_eq!(
        (
            edns.version(),
            edns.rcode_high(),
            reply.metadata.response_code.low(),
            reply.answers.len()
        ),
        (0, 1, 0, 0)
    );
    // Whether that is known upstream, upstream knows.
    with.queries[0].set_name(Name::from_ascii("nothing.").unwrap());
    assert_eq!(ask_as("shop", &with.to_vec().unwrap(), Transport::Udp), Answer::Forward);
}

#[test]
fn long_answers_are_cut_over_udp_and_whole_over_tcp() {
    let workloads: Vec<_> = (0..200)
        .map(|n| workload(&format!("w{n}"), &[&format!("10.1.0.{n}"), &format!("fd00::{n}")]))
        .collect();
    let endpoints: Vec<_> = workloads.iter().map(|w| (&**w, Health::Healthy)).collect();
    let updates = [service("shop", "many.shop.svc.cluster.local", &[], &endpoints)];
    let mesh = Mesh::default()
        .apply(updates)
        .apply(workloads.iter().cloned().map(Update::Workload));
    let network = Network::default();
    let client = Client {
        namespace: "shop",
        network: &network,
    };
    for kind in [RecordType::A, RecordType::AAAA] {
        for payload in [None, Some(1232), Some(4096), Some(16_000)] {
            let mut query = query("many.", kind);
            query.edns = payload.map(|payload| {
                let mut edns = Edns::new();
                edns.set_max_payload(payload);
                edns
            });
            let query = query.to_vec().unwrap();
            let limit = usize::from(payload.unwrap_or(512));
            let Answer::Reply(bytes) = answer(&mesh, &Zone::default(), &client, &query, Transport::Udp) else {
                panic!()
            };
            let reply = Message::from_vec(&bytes).unwrap();
            assert!(bytes.len() <= limit);
            assert_eq!(reply.metadata.truncation, reply.answers.len() < 200);
            assert_eq!(reply.edns.is_some(), payload.is_some(), "EDNS is not what is cut");
            if reply.metadata.truncation {
                assert!(bytes.len() + 28 > limit, "no more than needed is cut: {} of {limit}", bytes.len());
            }
            let Answer::Reply(bytes) = answer(&mesh, &Zone::default(), &client, &query, Transport::Tcp) else {
                panic!()
            };
            let reply = Message::from_vec(&bytes).unwrap();
            assert_eq!((reply.answers.len(), reply.metadata.truncation), (200, false));
        }
    }
}

#[test]
fn the_zone_is_what_the_cluster_says() {
    let mesh = Mesh::default().apply([service("shop", "web.shop.svc.corp.example", &["10.96.0.7"], &[])]);
    let network = Network::default();
    let client = Client {
        namespace: "shop",
        network: &network,
    };
    let zone = Zone::new("Corp.Example.");
    assert_eq!(zone.cluster_domain(), "corp.example");
    for name in ["web.", "web.shop.", "web.shop.svc.", "web.shop.svc.corp.example."] {
        let query = query(name, RecordType::A).to_vec().unwrap();
        assert!(
            matches!(answer(&mesh, &zone, &client, &query, Transport::Udp), Answer::Reply(_)),
            "{name}"
        );
        assert_eq!(
            answer(&mesh, &Zone::default(), &client, &query, Transport::Udp) == Answer::Forward,
            !name.contains("corp"),
            "{name}"
        );
    }
}

/// What a name means, said another way than by [`service`]: by listing all names that there are.
fn known(name: &str) -> Option<(Vec<IpAddr>, Vec<IpAddr>)> {
    let services: [(&str, &str, &[&str], &[&str]); 4] = [
        ("web", "shop", &["10.96.0.7"], &[]),
        ("dual", "shop", &["10.96.0.8"], &["fd00:96::8"]),
        ("db", "shop", &["10.0.1.1", "10.0.2.1"], &["fd00:1::1"]),
        ("web", "ops", &["10.96.0.99"], &[]),
    ];
    let list = |all: &[&str]| all.iter().map(|a| ip(a)).collect();
    let mut names = BTreeMap::new();
    for (service, namespace, v4, v6) in services {
        for tail in ["", ".svc", ".svc.cluster.local"] {
            names.insert(format!("{service}.{namespace}{tail}."), (list(v4), list(v6)));
        }
        if namespace == "shop" {
            names.insert(format!("{service}."), (list(v4), list(v6)));
        }
    }
    names.insert("api.example.com.".into(), (list(&["240.0.0.1"]), vec![]));
    names.remove(&name.to_ascii_lowercase())
}

fn names() -> impl Strategy<Value = String> {
    let label = prop::sample::select(vec![
        "web", "WEB", "dual", "db", "shop", "ops", "svc", "cluster", "local", "api", "example", "com", "x",
    ]);
    let random = prop::collection::vec(label, 1..8).prop_map(|labels| labels.join(".") + ".");
    let real = prop::sample::select(vec![
        "",
        "shop.",
        "shop.svc.",
        "ops.svc.cluster.local.",
        "shop.svc.cluster.local.",
        "example.com.",
    ]);
    let first = prop::sample::select(vec!["web.", "Dual.", "db.", "api.", "x."]);
    prop_oneof![random, (first, real).prop_map(|(first, rest)| format!("{first}{rest}"))]
}

proptest! {
    #[test]
    fn structured_queries_agree_with_the_list(
        name in names(),
        kind in prop::sample::select(vec![RecordType::A, RecordType::AAAA, RecordType::SRV, RecordType::TXT]),
        id in any::<u16>(),
        payload in prop::option::of(any::<u16>()),
        desired in any::<bool>(),
        tcp in any::<bool>(),
    ) {
        let mut message = query(&name, kind);
        message.metadata.id = id;
        message.metadata.recursion_desired = desired;
        message.edns = payload.map(|payload| {
            let mut edns = Edns::new();
            edns.set_max_payload(payload);
            edns
        });
        let transport = if tcp { Transport::Tcp } else { Transport::Udp };
        let got = ask_as("shop", &message.to_vec().unwrap(), transport);
        let expected = match (known(&name), kind) {
            (Some((v4, _)), RecordType::A) => v4,
            (Some((_, v6)), RecordType::AAAA) => v6,
            _ => {
                prop_assert_eq!(got, Answer::Forward);
                return Ok(());
            }
        };
        let reply = reply(&got);
        let mut seen = ips(&reply);
        seen.sort_unstable();
        prop_assert_eq!(seen, expected);
        prop_assert_eq!(reply.metadata.id, id);
        prop_assert_eq!(reply.metadata.recursion_desired, desired);
        prop_assert_eq!(&reply.queries, &message.queries);
        prop_assert_eq!(reply.edns.map(|edns| edns.max_payload()), payload.map(|payload| payload.max(512)));
    }

    #[test]
    fn any_bytes_are_taken(bytes in prop::collection::vec(any::<u8>(), 0..600), tcp in any::<bool>()) {
        judge(&bytes, if tcp { Transport::Tcp } else { Transport::Udp })?;
    }

    #[test]
    fn broken_queries_are_taken(name in names(), at in any::<prop::sample::Index>(), to in any::<u8>(), end in any::<prop::sample::Index>(), edns in any::<bool>()) {
        let mut message = query(&name, RecordType::A);
        message.edns = edns.then(Edns::new);
        let mut bytes = message.to_vec().unwrap();
        *at.get_mut(&mut bytes) = to;
        judge(&bytes, Transport::Udp)?;
        judge(&bytes[..end.index(bytes.len())], Transport::Udp)?;
    }
}

/// Whatever came, a reply is one that an independent decoder reads, to this query and within its limit.
fn judge(bytes: &[u8], transport: Transport) -> Result<(), TestCaseError> {
    for got in [ask_as("shop", bytes, transport), fail(bytes)] {
        if let Answer::Reply(reply) = got {
            prop_assert!(reply.len() <= reply_limit(bytes, transport));
            let reply = Message::from_vec(&reply).unwrap();
            prop_assert_eq!(reply.metadata.id, u16::from_be_bytes([bytes[0], bytes[1]]));
            prop_assert_eq!(reply.metadata.message_type, hickory_proto::op::MessageType::Response);
        }
    }
    // What an independent decoder takes for a query with one question in IN is not called malformed.
    if let Ok(message) = Message::from_vec(bytes)
        && message.metadata.message_type == hickory_proto::op::MessageType::Query
        && message.metadata.op_code == OpCode::Query
        && message.queries.len() == 1
        && let Answer::Reply(reply) = ask_as("shop", bytes, transport)
    {
        // It follows a compressed first name, which has nothing to point to but the header.
        let compressed = Question::read(bytes).is_err();
        let code = Message::from_vec(&reply).unwrap().metadata.response_code;
        prop_assert!(compressed || code != ResponseCode::FormErr, "{:?}", message);
    }
    Ok(())
}

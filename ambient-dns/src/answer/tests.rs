use std::{collections::BTreeMap, net::IpAddr, sync::LazyLock};

use ambient_core::{Endpoint, NetworkAddress, Workload, mesh::Update};
use hickory_proto::{
    op::{Edns, Message, Query, ResponseCode},
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
        service("ops", "shared.example.com", &["240.0.1.1"], &[]),
        service("team", "shared.example.com", &["240.0.1.2"], &[]),
        service("ops", "*.wild.example.com", &["240.0.2.1", "fd00:96::2"], &[]),
        service("ops", "*.example.com", &["240.0.2.2"], &[]),
        service("ops", "known.wild.example.com", &["240.0.2.3"], &[]),
        Update::Service(elsewhere.into()),
        Update::Workload(db0),
        Update::Workload(db1),
        Update::Workload(db2),
        Update::Workload(far),
    ];
    Mesh::default().apply(updates)
}

fn ask_as(namespace: &str, query: &[u8], transport: Transport) -> Answer {
    answer(&mesh(), &Zone::default(), &client(namespace), query, transport, 0)
}

/// A client in the unnamed network that has a search domain of its own.
fn client(namespace: &str) -> Client<'_> {
    static NETWORK: LazyLock<Network> = LazyLock::new(Network::default);
    static SEARCH: LazyLock<[String; 1]> = LazyLock::new(|| ["corp.example".into()]);
    Client {
        namespace,
        network: &NETWORK,
        search: &*SEARCH,
    }
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
fn where_ipv6_is_not_captured_no_name_of_the_mesh_has_it() {
    let zone = Zone::default().with_ipv6(false);
    let asked = |name: &str, kind| {
        let query = query(name, kind).to_vec().unwrap();
        answer(&mesh(), &zone, &client("shop"), &query, Transport::Udp, 0)
    };
    for name in ["dual.", "db.", "empty.", "elsewhere."] {
        assert!(reply(&asked(name, RecordType::AAAA)).answers.is_empty(), "{name}");
    }
    assert_eq!(ips(&reply(&asked("dual.", RecordType::A))), [ip("10.96.0.8")]);
    assert_eq!(
        asked("example.org.", RecordType::AAAA),
        Answer::Forward,
        "nobody takes it into the mesh"
    );
}

#[test]
fn a_headless_service_is_its_endpoints() {
    // Not the unhealthy one, not the one in another network.
    assert_eq!(ips(&reply(&ask("db.", RecordType::A))), [ip("10.0.1.1"), ip("10.0.2.1")]);
    assert_eq!(ips(&reply(&ask("db.", RecordType::AAAA))), [ip("fd00:1::1")]);
}

#[test]
fn a_pod_of_a_headless_service_has_its_name() {
    for name in ["db-0.db.shop.svc.cluster.local.", "db-0.db.", "db-0.db.shop.", "db-0.db.shop.svc."] {
        assert_eq!(ips(&reply(&ask(name, RecordType::A))), [ip("10.0.1.1")], "{name}");
        assert_eq!(ips(&reply(&ask(name, RecordType::AAAA))), [ip("fd00:1::1")], "{name}");
    }
    let other = reply(&ask("db-1.db.", RecordType::AAAA));
    assert_eq!((other.metadata.response_code, other.answers.len()), (ResponseCode::NoError, 0));
    // Whose names Kubernetes does not make of theirs.
    let pod = workload("db-x7k2p", &["10.0.1.9"]);
    let updates = [
        service("shop", "db.shop.svc.cluster.local", &[], &[(&pod, Health::Healthy)]),
        Update::Workload(pod),
    ];
    let mesh = Mesh::default().apply(updates);
    let query = query("db-x7k2p.db.shop.svc.cluster.local.", RecordType::A).to_vec().unwrap();
    let got = answer(&mesh, &Zone::default(), &client("shop"), &query, Transport::Udp, 0);
    assert_eq!(got, Answer::Forward);
}

#[test]
fn every_order_comes_about() {
    let query = query("db.", RecordType::A).to_vec().unwrap();
    let mut orders = BTreeMap::new();
    for draw in 0..1000 {
        let got = answer(&mesh(), &Zone::default(), &client("shop"), &query, Transport::Udp, draw);
        *orders.entry(ips(&reply(&got))).or_insert(0) += 1;
    }
    assert_eq!(orders.len(), 2);
    assert!(orders.values().all(|count| *count > 300), "{orders:?}");
    let mut many: Vec<IpAddr> = (0..5).map(|n| ip(&format!("10.0.0.{n}"))).collect();
    let mut seen = std::collections::BTreeSet::new();
    for draw in 0..5000 {
        shuffle(&mut many, draw);
        seen.insert(many.clone());
    }
    assert_eq!(seen.len(), 120, "all of them");
    assert!(many.iter().collect::<std::collections::BTreeSet<_>>().len() == 5);
}

#[test]
fn what_search_lists_add_is_seen_through() {
    // What is asked, what it is an alias of, and the address.
    let cases = [
        ("api.example.com.shop.svc.cluster.local.", Some("api.example.com."), "240.0.0.1"),
        ("api.example.com.svc.cluster.local.", Some("api.example.com."), "240.0.0.1"),
        ("api.example.com.cluster.local.", Some("api.example.com."), "240.0.0.1"),
        ("API.Example.com.Shop.svc.cluster.LOCAL.", Some("api.example.com."), "240.0.0.1"),
        ("api.example.com.corp.example.", Some("api.example.com."), "240.0.0.1"),
        ("web.ops.shop.svc.cluster.local.", Some("web.ops.svc.cluster.local."), "10.96.0.99"),
        (
            "web.ops.svc.shop.svc.cluster.local.",
            Some("web.ops.svc.cluster.local."),
            "10.96.0.99",
        ),
        (
            "web.shop.svc.cluster.local.shop.svc.cluster.local.",
            Some("web.shop.svc.cluster.local."),
            "10.96.0.7",
        ),
        (
            "db-0.db.shop.svc.shop.svc.cluster.local.",
            Some("db-0.db.shop.svc.cluster.local."),
            "10.0.1.1",
        ),
        // A wildcard is no name to be an alias of.
        ("a.wild.example.com.shop.svc.cluster.local.", None, "240.0.2.1"),
    ];
    for (name, alias, address) in cases {
        let reply = reply(&ask(name, RecordType::A));
        assert_eq!(reply.queries[0].name().to_ascii(), name);
        let (first, last) = (&reply.answers[0], &reply.answers[reply.answers.len() - 1]);
        assert_eq!(first.name.to_ascii(), name);
        assert_eq!(last.data, RData::A(address.parse::<std::net::Ipv4Addr>().unwrap().into()), "{name}");
        match alias {
            Some(alias) => {
                let RData::CNAME(to) = &first.data else {
                    panic!("{name}: {first:?}")
                };
                assert_eq!((to.to_ascii().as_str(), last.name.to_ascii().as_str()), (alias, alias));
                assert_eq!((reply.answers.len(), first.ttl, last.ttl), (2, 30, 30));
            }
            None => assert_eq!(reply.answers.len(), 1),
        }
        // Of a family that is missing there is nothing to be an alias of.
        assert!(
            self::reply(&ask(name, RecordType::AAAA))
                .answers
                .iter()
                .all(|r| r.record_type() != RecordType::CNAME)
                || name.contains("db-0")
        );
    }
}

#[test]
fn a_wildcard_is_for_what_is_nobody_elses() {
    for (name, address) in [
        ("a.wild.example.com.", "240.0.2.1"),
        ("A.b.Wild.example.com.", "240.0.2.1"),
        ("known.wild.example.com.", "240.0.2.3"),
        ("below.known.wild.example.com.", "240.0.2.1"),
        ("wild.example.com.", "240.0.2.2"),
        ("x.example.com.", "240.0.2.2"),
        ("bare.example.com.", "240.0.2.2"),
        ("api.example.com.", "240.0.0.1"),
    ] {
        let reply = reply(&ask(name, RecordType::A));
        assert_eq!(ips(&reply), [ip(address)], "{name}");
        assert_eq!(reply.answers[0].name.to_ascii(), name);
    }
    assert_eq!(ips(&reply(&ask("a.wild.example.com.", RecordType::AAAA))), [ip("fd00:96::2")]);
    // An asterisk that is asked for is a name like others, and no name of a service's.
    assert_eq!(ask("*.wild.example.com.", RecordType::A), Answer::Forward);
    // However many labels a name has.
    let long = format!("{}wild.example.com.", "a.".repeat(110));
    assert_eq!(ips(&reply(&ask(&long, RecordType::A))), [ip("240.0.2.1")]);
}

#[test]
fn what_the_model_says_of_a_service_is_heeded() {
    use ambient_core::{IpFamilies, LoadBalancer, Membership, NetworkBlock, Visibility};
    let one = Arc::new(Workload {
        // It names its service itself.
        services: vec![Membership {
            service: ambient_core::NamespacedHostname::new("shop", "db.shop.svc.cluster.local"),
            ports: ambient_core::PortMap::default(),
        }],
        ..Workload::clone(&workload("db-0", &["10.0.1.1", "fd00:1::1"]))
    });
    let ready = |capacity| {
        Arc::new(Workload {
            capacity,
            ..Workload::clone(&one)
        })
    };
    let sick = workload("db-1", &["10.0.1.2"]);
    let ask = |namespace: &str, workload: &Arc<Workload>, change: fn(&mut Service), kind| {
        let updates = [
            service("shop", "db.shop.svc.cluster.local", &[], &[(&sick, Health::Unhealthy)]),
            Update::Workload(workload.clone()),
            Update::Workload(sick.clone()),
        ];
        let updates = updates.map(|update| match update {
            Update::Service(service) => {
                let mut service = Service::clone(&service);
                change(&mut service);
                Update::Service(service.into())
            }
            other => other,
        });
        let query = query("db.shop.", kind).to_vec().unwrap();
        let mesh = Mesh::default().apply(updates);
        match answer(&mesh, &Zone::default(), &client(namespace), &query, Transport::Tcp, 0) {
            got @ Answer::Reply(_) => {
                let mut found = ips(&reply(&got));
                found.sort_unstable();
                Some(found)
            }
            _ => None,
        }
    };
    let (a, aaaa) = (RecordType::A, RecordType::AAAA);
    assert_eq!(ask("shop", &ready(1), |_| {}, a), Some(vec![ip("10.0.1.1")]));
    assert_eq!(ask("shop", &ready(1), |_| {}, aaaa), Some(vec![ip("fd00:1::1")]));
    assert_eq!(ask("shop", &ready(0), |_| {}, a), None, "it is never chosen");
    let all = |service: &mut Service| {
        service.load_balancer = Some(LoadBalancer {
            health_policy: HealthPolicy::AllowAll,
            ..LoadBalancer::default()
        });
    };
    assert_eq!(ask("shop", &ready(1), all, a), Some(vec![ip("10.0.1.1"), ip("10.0.1.2")]));
    let v4 = |service: &mut Service| service.ip_families = IpFamilies::Ipv4Only;
    assert_eq!(ask("shop", &ready(1), v4, a), Some(vec![ip("10.0.1.1")]));
    assert_eq!(ask("shop", &ready(1), v4, aaaa), Some(vec![]));
    let own = |service: &mut Service| service.visibility = Visibility::Namespace;
    assert_eq!(ask("shop", &ready(1), own, a), Some(vec![ip("10.0.1.1")]));
    assert_eq!(ask("ops", &ready(1), own, a), None, "nobody else sees it");
    let block =
        |service: &mut Service| service.vip_blocks = NetworkBlock::new(Network::default(), ip("10.3.0.0"), 24).into_iter().collect();
    assert_eq!(
        ask("shop", &ready(1), block, a),
        None,
        "a block is no address, and no headless service has one"
    );
}

#[test]
fn a_canonical_service_comes_before_a_preferred_one() {
    let shared = |namespace: &str, address: &str, canonical| {
        let mut service = Service::new(namespace, "shared.example.com");
        service.vips.push(NetworkAddress::local(ip(address)));
        service.canonical = canonical;
        Update::Service(service.into())
    };
    let updates = [
        shared("a", "240.0.0.1", false),
        shared("b", "240.0.0.2", false),
        shared("c", "240.0.0.3", true),
    ];
    let mesh = Mesh::default().apply(updates);
    let zone = Zone::default().preferring(Some("b".into()));
    let query = query("shared.example.com.", RecordType::A).to_vec().unwrap();
    for (namespace, address) in [("x", "240.0.0.3"), ("a", "240.0.0.1")] {
        let got = answer(&mesh, &zone, &client(namespace), &query, Transport::Udp, 0);
        assert_eq!(ips(&reply(&got)), [ip(address)]);
    }
}

#[test]
fn of_several_of_one_name_the_clients_then_the_preferred_then_the_first() {
    let query = query("shared.example.com.", RecordType::A).to_vec().unwrap();
    for (namespace, preferred, address) in [
        ("shop", None, "240.0.1.1"),
        ("shop", Some("team"), "240.0.1.2"),
        ("shop", Some("nobody"), "240.0.1.1"),
        ("ops", Some("team"), "240.0.1.1"),
        ("team", None, "240.0.1.2"),
        ("team", Some("ops"), "240.0.1.2"),
    ] {
        let zone = Zone::default().preferring(preferred.map(Arc::from));
        let got = answer(&mesh(), &zone, &client(namespace), &query, Transport::Udp, 0);
        assert_eq!(ips(&reply(&got)), [ip(address)], "{namespace} {preferred:?}");
    }
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
        "web.shop.pod.",
        "web.shop.svc.example.net.",
        "svc.cluster.local.",
        "empty.",
        "elsewhere.",
        "example.com.",
        "example.com.shop.svc.cluster.local.",
        "db-2.db.shop.svc.cluster.local.",
        "db-3.db.shop.svc.cluster.local.",
        "db-7.db.shop.svc.cluster.local.",
        "db-.db.shop.svc.cluster.local.",
        "web-0.web.shop.svc.cluster.local.",
        "x-1.api.example.net.",
        "web.corp.example.",
        "web.ops.corp.example.",
        "web.svc.cluster.local.",
        "web.cluster.local.",
        "db-0.db.cluster.local.",
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
fn what_is_no_plain_question_is_forwarded_and_what_is_no_query_dropped() {
    let good = query("web.", RecordType::A).to_vec().unwrap();
    let ask = |bytes: &[u8]| ask_as("shop", bytes, Transport::Udp);
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    assert!(matches!(ask(&good), Answer::Reply(_)));
    for opcode in 1..16 {
        assert_eq!(ask(&with(2, opcode << 3)), Answer::Forward, "operation {opcode}");
    }
    assert_eq!(ask(&with(2, 0x02)), Answer::Forward, "a question that is cut");
    for (at, what) in [(5, "questions"), (7, "answers"), (9, "authorities"), (11, "additionals")] {
        assert_eq!(ask(&with(at, 2)), Answer::Forward, "{what}");
    }
    assert_eq!(ask(&with(5, 0)), Answer::Forward);
    assert_eq!(ask(&[&good[..], b"more"].concat()), Answer::Forward);
    let mut other = with(11, 1);
    other.extend(b"\0\x23\x28\0\xff\0\0\0\0\0\x02zz");
    assert_eq!(ask(&other), Answer::Forward, "a record of an unknown type");
    for end in 12..good.len() {
        assert_eq!(ask(&good[..end]), Answer::Forward, "cut at {end}");
    }
    for end in 0..12 {
        assert_eq!(ask(&good[..end]), Answer::Drop, "cut at {end}");
    }
    assert_eq!(ask(&with(2, 0x80)), Answer::Drop, "an answer");
}

#[test]
fn a_failure_is_of_the_query_and_says_why_to_whom_it_may() {
    let plain = query("example.com.", RecordType::A);
    let mut speaks = plain.clone();
    speaks.edns = Some(Edns::new());
    for (message, speaks) in [(plain, false), (speaks, true)] {
        let bytes = unreachable(&message.to_vec().unwrap()).unwrap();
        let reply = Message::from_vec(&bytes).unwrap();
        assert_eq!(
            (reply.metadata.response_code, &reply.queries),
            (ResponseCode::ServFail, &message.queries)
        );
        assert_eq!(bytes.ends_with(b"\0\x06\0\x0f\0\x02\0\x17"), speaks, "{bytes:?}");
        assert_eq!(reply.edns.is_some(), speaks);
    }
    // As much as can be read of what is malformed, with its operation.
    let update = unreachable(b"\x12\x34\x28\0\0\x01\0\0\0\0\0\0\x03we").unwrap();
    assert_eq!(update, b"\x12\x34\xa8\x82\0\0\0\0\0\0\0\0");
    assert_eq!(unreachable(b"\x12\x34\x80\0\0\x01\0\0\0\0\0\0"), None);
    assert_eq!(unreachable(b"\x12\x34"), None);
}

/// The bytes themselves: what other tests read through a decoder.
#[test]
fn answers_byte_by_byte() {
    let ask = |query: &[u8]| ask_as("shop", query, Transport::Udp);
    let golden = |query: &[u8], reply: &[u8]| assert_eq!(ask(query), Answer::Reply(reply.to_vec()));
    // A of `Web`, recursion desired.
    golden(
        b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03Web\0\0\x01\0\x01",
        b"\x12\x34\x85\x80\0\x01\0\x01\0\0\0\0\x03Web\0\0\x01\0\x01\xc0\x0c\0\x01\0\x01\0\0\0\x1e\0\x04\x0a\x60\0\x07",
    );
    // AAAA of the same: there is none.
    golden(
        b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03web\0\0\x1c\0\x01",
        b"\x12\x34\x85\x80\0\x01\0\0\0\0\0\0\x03web\0\0\x1c\0\x01",
    );
    // AAAA of `dual` with EDNS (1232 bytes, DNSSEC OK), no recursion desired, checking disabled.
    golden(
        b"\0\x01\0\x10\0\x01\0\0\0\0\0\x01\x04dual\0\0\x1c\0\x01\0\0\x29\x04\xd0\0\0\x80\0\0\0",
        b"\0\x01\x84\x90\0\x01\0\x01\0\0\0\x01\x04dual\0\0\x1c\0\x01\
          \xc0\x0c\0\x1c\0\x01\0\0\0\x1e\0\x10\xfd\0\0\x96\0\0\0\0\0\0\0\0\0\0\0\x08\
          \0\0\x29\x04\xd0\0\0\x80\0\0\0",
    );
    // A of `api.example.com` with a search domain behind it: an alias.
    golden(
        b"\0\x02\x01\x20\0\x01\0\0\0\0\0\0\x03api\x07example\x03com\x07cluster\x05local\0\0\x01\0\x01",
        b"\0\x02\x85\x80\0\x01\0\x02\0\0\0\0\x03api\x07example\x03com\x07cluster\x05local\0\0\x01\0\x01\
          \xc0\x0c\0\x05\0\x01\0\0\0\x1e\0\x11\x03api\x07example\x03com\0\
          \xc0\x3b\0\x01\0\x01\0\0\0\x1e\0\x04\xf0\0\0\x01",
    );
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
fn what_a_later_edns_means_is_not_guessed() {
    let mut with = query("web.", RecordType::A);
    let mut edns = Edns::new();
    edns.set_version(1);
    with.edns = Some(edns);
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
    let client = client("shop");
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
            let Answer::Reply(bytes) = answer(&mesh, &Zone::default(), &client, &query, Transport::Udp, 0) else {
                panic!()
            };
            let reply = Message::from_vec(&bytes).unwrap();
            assert!(bytes.len() <= limit);
            assert_eq!(reply.metadata.truncation, reply.answers.len() < 200);
            assert_eq!(reply.edns.is_some(), payload.is_some(), "EDNS is not what is cut");
            if reply.metadata.truncation {
                assert!(bytes.len() + 28 > limit, "no more than needed is cut: {} of {limit}", bytes.len());
            }
            let Answer::Reply(bytes) = answer(&mesh, &Zone::default(), &client, &query, Transport::Tcp, 0) else {
                panic!()
            };
            let reply = Message::from_vec(&bytes).unwrap();
            assert_eq!((reply.answers.len(), reply.metadata.truncation), (200, false));
        }
    }
}

/// Whatever the client says that it takes: no datagram of IPv4 is longer.
#[test]
fn what_is_longer_than_any_datagram_is_cut() {
    let addresses: Vec<String> = (0..5_000).map(|n: u32| format!("10.1.{}.{}", n / 250, n % 250)).collect();
    let vips: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let mesh = Mesh::default().apply([service("shop", "many.shop.svc.cluster.local", &vips, &[])]);
    let mut query = query("many.", RecordType::A);
    let mut edns = Edns::new();
    edns.set_max_payload(u16::MAX);
    query.edns = Some(edns);
    let query = query.to_vec().unwrap();
    let Answer::Reply(bytes) = answer(&mesh, &Zone::default(), &client("shop"), &query, Transport::Udp, 0) else {
        panic!()
    };
    let cut = Message::from_vec(&bytes).unwrap().metadata.truncation;
    assert!(cut && (65_000..=65_507).contains(&bytes.len()), "{cut}, {}", bytes.len());
}

#[test]
fn the_zone_is_what_the_cluster_says() {
    let mesh = Mesh::default().apply([service("shop", "web.shop.svc.corp.example", &["10.96.0.7"], &[])]);
    let client = client("shop");
    let zone = Zone::new("Corp.Example.");
    assert_eq!(zone.cluster_domain(), "corp.example");
    for name in ["web.", "web.shop.", "web.shop.svc.", "web.shop.svc.corp.example."] {
        let query = query(name, RecordType::A).to_vec().unwrap();
        assert!(
            matches!(answer(&mesh, &zone, &client, &query, Transport::Udp, 0), Answer::Reply(_)),
            "{name}"
        );
        assert_eq!(
            answer(&mesh, &Zone::default(), &client, &query, Transport::Udp, 0) == Answer::Forward,
            !name.contains("corp"),
            "{name}"
        );
    }
}

/// What a whole name means, said another way than by the answer: by a list of all names that there are.
fn whole(name: &str) -> Option<&'static [&'static str]> {
    let listed: [(&str, &[&str]); 9] = [
        ("web.shop.svc.cluster.local", &["10.96.0.7"]),
        ("dual.shop.svc.cluster.local", &["10.96.0.8", "fd00:96::8"]),
        ("db.shop.svc.cluster.local", &["10.0.1.1", "10.0.2.1", "fd00:1::1"]),
        ("db-0.db.shop.svc.cluster.local", &["10.0.1.1", "fd00:1::1"]),
        ("db-1.db.shop.svc.cluster.local", &["10.0.2.1"]),
        ("web.ops.svc.cluster.local", &["10.96.0.99"]),
        ("api.example.com", &["240.0.0.1"]),
        ("shared.example.com", &["240.0.1.1"]),
        ("known.wild.example.com", &["240.0.2.3"]),
    ];
    let found = listed.iter().find(|(known, _)| *known == name).map(|(_, addresses)| *addresses);
    let below = |domain| name.strip_suffix(domain).is_some_and(|rest| !rest.is_empty());
    found
        .or_else(|| below(".wild.example.com").then_some(&["240.0.2.1", "fd00:96::2"][..]))
        .or_else(|| below(".example.com").then_some(&["240.0.2.2"][..]))
}

/// What a client in `shop` means by a name: the first whole name on the way of a resolver that goes on from it.
fn known(name: &str) -> Option<&'static [&'static str]> {
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let search = ["shop.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp.example"];
    let mut way = vec![name.clone()];
    for (at, domain) in search.iter().enumerate() {
        let Some(written) = name.strip_suffix(&format!(".{domain}")) else {
            continue;
        };
        way.extend(search[..3].iter().skip(at + 1).map(|next| format!("{written}.{next}")));
        if at < 3 || written.contains('.') {
            way.push(written.to_owned());
        }
    }
    // A name that was written without the rest of it: Kubernetes' own only.
    way.extend(["svc.cluster.local", "shop.svc.cluster.local", "cluster.local"].map(|next| format!("{name}.{next}")));
    way.iter().find_map(|name| whole(name))
}

fn names() -> impl Strategy<Value = String> {
    let label = prop::sample::select(vec![
        "web", "WEB", "dual", "db", "shop", "ops", "svc", "cluster", "local", "api", "example", "com", "x", "wild", "db-0", "db-2",
    ]);
    let random = prop::collection::vec(label, 1..8).prop_map(|labels| labels.join(".") + ".");
    let real = prop::sample::select(vec![
        "",
        "shop.",
        "shop.svc.",
        "ops.svc.cluster.local.",
        "shop.svc.cluster.local.",
        "example.com.",
        "wild.example.com.",
    ]);
    let behind = prop::sample::select(vec![
        "",
        "shop.svc.cluster.local.",
        "svc.cluster.local.",
        "cluster.local.",
        "Corp.example.",
    ]);
    let first = prop::sample::select(vec!["web.", "Dual.", "db.", "api.", "x.", "db-0.db.", "known.", "shared."]);
    prop_oneof![
        random,
        (first, real, behind).prop_map(|(first, rest, behind)| format!("{first}{rest}{behind}"))
    ]
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
        let all: Option<Vec<IpAddr>> = known(&name).map(|all| all.iter().map(|a| ip(a)).collect());
        let expected: Vec<IpAddr> = match (all, kind) {
            (Some(all), RecordType::A) => all.into_iter().filter(IpAddr::is_ipv4).collect(),
            (Some(all), RecordType::AAAA) => all.into_iter().filter(IpAddr::is_ipv6).collect(),
            _ => {
                prop_assert_eq!(got, Answer::Forward);
                return Ok(());
            }
        };
        let mut reply = reply(&got);
        // An alias, or none, leads from the name to the addresses.
        let mut at = message.queries[0].name().clone();
        if let Some(RData::CNAME(to)) = reply.answers.first().map(|first| first.data.clone()) {
            prop_assert_eq!(&reply.answers.remove(0).name, &at);
            prop_assert_eq!(known(&to.to_ascii()), known(&name), "the alias is of the same");
            at = to.0;
        }
        prop_assert!(reply.answers.iter().all(|record| record.name == at));
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
    let answered = ask_as("shop", bytes, transport);
    let limit = match (&answered, transport) {
        (Answer::Reply(_), Transport::Udp) => {
            let asked = Message::from_vec(bytes).unwrap();
            asked.edns.map_or(512, |edns| usize::from(edns.max_payload()).max(512))
        }
        _ => usize::from(u16::MAX),
    };
    let failed = unreachable(bytes).map_or(Answer::Drop, Answer::Reply);
    for (got, limit) in [(answered, limit), (failed, bytes.len() + 11 + 6)] {
        if let Answer::Reply(reply) = got {
            prop_assert!(reply.len() <= limit, "{} of {limit}", reply.len());
            let reply = Message::from_vec(&reply);
            // A failure repeats the questions, and what is compressed in them.
            let Ok(reply) = reply else {
                prop_assert!(Message::from_vec(bytes).is_err());
                continue;
            };
            prop_assert_eq!(reply.metadata.id, u16::from_be_bytes([bytes[0], bytes[1]]));
            prop_assert_eq!(reply.metadata.message_type, hickory_proto::op::MessageType::Response);
        }
    }
    Ok(())
}

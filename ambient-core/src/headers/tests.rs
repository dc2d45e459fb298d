use proptest::prelude::*;

use super::*;

#[test]
fn baggage_comes_back() {
    let mut workload = Workload::new("c//Pod/shop/web-7d-x", "shop", "web-7d-x");
    workload.kind = WorkloadKind::Deployment;
    workload.workload_name = "web".into();
    workload.canonical_name = "web".into();
    workload.canonical_revision = "v1".into();
    workload.locality = ["r1".into(), "z1".into(), "".into()];
    let text = baggage(&workload);
    assert_eq!(
        text,
        "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=web,service.name=web,service.version=v1,cloud.region=r1,cloud.availability_zone=z1"
    );
    let read = Baggage::read([text.as_bytes()]);
    assert_eq!(read.workload, Some((WorkloadKind::Deployment, "web".into())));
    assert_eq!((read.namespace.as_deref(), read.zone.as_deref()), (Some("shop"), Some("z1")));
}

#[test]
fn odd_baggage_is_read_as_far_as_it_goes() {
    let read = Baggage::read([
        b"x=1, k8s.namespace.name = shop ;p=2,,=,k8s.job.name=".as_slice(),
        b"service.name=a=b",
    ]);
    assert_eq!(
        read,
        Baggage {
            namespace: Some("shop".into()),
            service: Some("a=b".into()),
            ..Baggage::default()
        }
    );
    assert_eq!(
        Baggage::read([b"service.name=a".as_slice(), b"service.version=\xff"]),
        Baggage::default()
    );
}

#[test]
fn forwarded_comes_back() {
    let source = "[fd00::1]:5000".parse().unwrap();
    let text = forwarded(source, Some("web.shop.svc.cluster.local"));
    assert_eq!(text, "for=\"[fd00::1]:5000\";host=web.shop.svc.cluster.local");
    assert_eq!(forwarded_host(text.as_bytes()), Some("web.shop.svc.cluster.local"));
    assert_eq!(forwarded_host(b"for=1;Host=\"a:80\""), Some("a:80"));
    for none in [b"".as_slice(), b"for=x", b"host=", b"host", b"host=\xff", b"host=\"\""] {
        assert_eq!(forwarded_host(none), None);
    }
}

#[test]
fn traceparent_comes_back() {
    assert_eq!(read_traceparent(traceparent(7, 9).as_bytes()), Some((7, 9)));
    assert_eq!(read_traceparent(traceparent(0, 0).as_bytes()), Some((1, 1)));
    let zeros = "0".repeat(55);
    for none in [
        "",
        "00",
        zeros.as_str(),
        "00-0-0-00",
        &format!("{}-00", traceparent(1, 1)),
        &traceparent(1, 1).replace("00-", "ff-"),
    ] {
        assert_eq!(read_traceparent(none.as_bytes()), None, "{none}");
    }
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = (Baggage::read([bytes.as_slice()]), forwarded_host(&bytes), read_traceparent(&bytes));
    }

    #[test]
    fn a_workloads_own_baggage_is_always_one_header(name in "\\PC{0,20}", namespace in "[a-z,;=\"\\\\]{0,20}") {
        let text = baggage(&Workload::new("u", &namespace, &name));
        prop_assert!(text.bytes().all(|b| b.is_ascii_graphic()));
        let read = Baggage::read([text.as_bytes()]);
        prop_assert_eq!(read.revision.as_deref(), Some("latest"));
    }
}

#[test]
fn the_network_of_who_speaks_through_a_gateway() {
    for name in ["network-1", ""] {
        assert_eq!(forwarded_network(name), Some(name));
    }
    assert!(is_from_other_network(b"", "network-1") && !is_from_other_network(b"", ""));
    for unfit in [" a", "a\n", "n\u{e4}tz"] {
        assert_eq!(forwarded_network(unfit), None, "{unfit:?}");
    }
    assert!(is_from_other_network(b"network-2", "network-1"));
    assert!(is_from_other_network(b"network-2", ""));
    for same in [&b"network-1"[..], b"NETWORK-1", b" network-1 "] {
        assert!(!is_from_other_network(same, "network-1"));
    }
    // What cannot be read says nothing.
    assert!(!is_from_other_network(b"\xff", "network-1"));
}

use super::*;

#[test]
fn a_route_is_read_as_it_is_written() {
    let gateway = "10.0.0.1".parse().unwrap();
    for route in [
        Route::to("10.1.0.0/16".parse().unwrap()).via(gateway).dev(3).onlink(),
        Route::to("0.0.0.0/0".parse().unwrap()).via(gateway),
        Route::to("fd00::/64".parse().unwrap()).dev(2).table(1000),
        Route::to("10.2.0.0/16".parse().unwrap()).kind(RouteKind::Blackhole),
        Route::local("::/0".parse().unwrap(), 100),
    ] {
        let (bytes, _) = route_message(RTM_NEWROUTE, 0, &route).finish(0);
        assert_eq!(read_route("", &bytes[16..]).unwrap(), Some(route));
    }
}

#[test]
fn a_rule_is_read_as_it_is_written() {
    for ipv6 in [false, true] {
        let plain = Rule {
            ipv6,
            priority: 32764,
            mark: 0x111,
            mask: 0xfff,
            table: 100,
        };
        let net = |v4: &str, v6: &str| Some(if ipv6 { v6 } else { v4 }.parse().unwrap());
        let narrowed = Policy {
            inverted: true,
            from: net("10.0.0.2/32", "fd00::2/128"),
            to: net("10.0.0.0/8", "fd00::/8"),
            service: 0x10,
            input: Some("lo".into()),
            users: Some((1000, 2000)),
            protocol: 6,
            source_ports: Some((8080, 8081)),
            destination_ports: Some((40_000, 40_000)),
            suppresses: true,
            ..Policy::from(plain)
        };
        let elsewhere = Policy {
            leads_to: LeadsTo::Other(6),
            ..Policy::from(plain)
        };
        let far = Policy::from(Rule { table: 51_820, ..plain });
        for (policy, is) in [(Policy::from(plain), Some(plain)), (narrowed, None), (elsewhere, None)] {
            let (bytes, _) = policies::message(RTM_NEWRULE, 0, &policy).finish(0);
            let read = policies::read("", &bytes[16..]).unwrap();
            assert_eq!((read.plain(), read), (is, policy));
            assert!(policies::read("", &bytes[16..20]).is_err());
        }
        let (bytes, _) = policies::message(RTM_NEWRULE, 0, &far).finish(0);
        assert_eq!(policies::read("", &bytes[16..]).unwrap().table(), Some(51_820));
    }
}

#[test]
fn the_bytes_of_a_local_route() {
    let (bytes, _) = route_message(
        RTM_NEWROUTE,
        NLM_F_CREATE | NLM_F_REPLACE,
        &Route::local("0.0.0.0/0".parse().unwrap(), 100),
    )
    .finish(1);
    #[rustfmt::skip]
    let expected = [
        44, 0, 0, 0, 24, 0, 0x01, 0x05, 1, 0, 0, 0, 0, 0, 0, 0,
        2, 0, 0, 0, 100, 3, 254, 2, 0, 0, 0, 0, // AF_INET, table 100, scope host, type local
        8, 0, 15, 0, 100, 0, 0, 0,
        8, 0, 4, 0, 1, 0, 0, 0,
    ];
    assert_eq!(
        bytes,
        if cfg!(target_endian = "little") {
            expected.to_vec()
        } else {
            bytes.clone()
        }
    );
}

#[test]
fn an_ipv6_address_is_usable_at_once() {
    let (bytes, _) = address(RTM_NEWADDR, 0, 7, "fd00::1".parse().unwrap(), 64).finish(0);
    assert_eq!(bytes[16..20], [AF_INET6, 64, IFA_F_NODAD, 0]);
    let (bytes, _) = address(RTM_NEWADDR, 0, 7, "10.0.0.1".parse().unwrap(), 24).finish(0);
    assert_eq!(bytes[16..20], [AF_INET, 24, 0, 0]);
}

#[test]
fn a_rule_that_asks_for_more_than_a_mark_is_none_of_those_listed() {
    let rule = Rule {
        ipv6: false,
        priority: 5,
        mark: 7,
        mask: 7,
        table: 100,
    };
    let plain = || policies::message(RTM_NEWRULE, 0, &Policy::from(rule));
    let read = |message: Writer| policies::read("", &message.finish(0).0[16..]).unwrap().plain();
    assert!(read(plain()).is_some());
    let mut suppressing_nothing = plain();
    suppressing_nothing.ne32(FRA_SUPPRESS_PREFIXLEN, u32::MAX);
    suppressing_nothing.attribute(FRA_L3MDEV, &[0]);
    assert!(read(suppressing_nothing).is_some(), "what the kernel lists of every rule");
    for (kind, value) in [
        (FRA_IIFNAME, &b"eth0\0"[..]),
        (FRA_OIFNAME, b"eth0\0"),
        (FRA_UID_RANGE, &[0; 8]),
        (FRA_IP_PROTO, &[17]),
        (FRA_SPORT_RANGE, &[0; 4]),
        (FRA_SUPPRESS_PREFIXLEN, &[0; 4]),
    ] {
        let mut narrowed = plain();
        narrowed.attribute(kind, value);
        assert_eq!(read(narrowed), None, "attribute {kind}");
    }
    for (at, value) in [(1, 32), (2, 32), (3, 8), (8, FIB_RULE_INVERT as u8)] {
        let (mut bytes, _) = plain().finish(0);
        bytes[16 + at] = value;
        assert_eq!(policies::read("", &bytes[16..]).unwrap().plain(), None, "byte {at} of the header");
    }
}

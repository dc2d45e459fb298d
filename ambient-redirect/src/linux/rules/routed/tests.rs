use super::*;

const OWN: [&str; 4] = ["127.0.0.1", "10.0.0.2", "fd00::2", "fe80::1"];

fn own(family: IpFamily) -> BTreeSet<IpAddr> {
    let own: Vec<_> = OWN.iter().map(|ip| ip.parse().unwrap()).collect();
    own_of(family, &own)
}

fn net(net: &str) -> Option<IpNet> {
    Some(net.parse().unwrap())
}

fn example(way: Way, policy: &Policy) -> Option<Packet> {
    let family = if policy.ipv6 { IpFamily::V6 } else { IpFamily::V4 };
    let listed = Listed {
        family,
        own: &own(family),
        policies: &[],
        tables: &BTreeMap::new(),
    };
    listed.example(way, policy, None)
}

fn v4() -> Policy {
    Policy {
        leads_to: LeadsTo::Table(200),
        ..Policy::default()
    }
}

#[test]
fn a_rule_that_names_answers_has_one_for_an_example() {
    let answer = Packet {
        from: Some("10.0.0.2".parse().unwrap()),
        ..Packet::tcp(IpFamily::V4.probe(), REPLY_MARK)
    };
    let with = |change: fn(&mut Packet)| {
        let mut packet = answer;
        change(&mut packet);
        Some(packet)
    };
    for (policy, wanted) in [
        (Policy { protocol: 6, ..v4() }, with(|_| ())),
        (
            Policy {
                source_ports: Some((8080, 8090)),
                ..v4()
            },
            with(|p| p.source_port = 8080),
        ),
        (
            Policy {
                source_ports: Some((15_001, 15_002)),
                ..v4()
            },
            with(|p| p.source_port = 15_002),
        ),
        (
            Policy {
                destination_ports: Some((1, u16::MAX)),
                ..v4()
            },
            with(|p| p.destination_port = PROXYS_PORTS),
        ),
        (
            Policy {
                from: net("10.0.0.0/8"),
                ..v4()
            },
            with(|_| ()),
        ),
        (
            Policy {
                to: net("10.0.0.0/24"),
                ..v4()
            },
            with(|p| p.to = [10, 0, 0, 1].into()),
        ),
        (
            Policy {
                to: net("10.0.0.2/31"),
                ..v4()
            },
            with(|p| p.to = [10, 0, 0, 3].into()),
        ),
        (
            Policy {
                to: net("0.0.0.0/1"),
                ..v4()
            },
            with(|p| p.to = [1, 0, 0, 1].into()),
        ),
        (
            Policy {
                users: Some((0, 99)),
                ..v4()
            },
            with(|_| ()),
        ),
        (
            Policy {
                input: Some("lo".into()),
                ..v4()
            },
            with(|_| ()),
        ),
        (Policy { service: 0x10, ..v4() }, with(|p| p.service = 0x10)),
        (
            Policy {
                mark: 0x11,
                mask: 0xff,
                ..v4()
            },
            with(|_| ()),
        ),
        (
            Policy {
                inverted: true,
                mark: 0xca6c,
                mask: u32::MAX,
                ..v4()
            },
            with(|_| ()),
        ),
    ] {
        assert_eq!(example(Way::Answers, &policy), wanted, "{policy:?}");
    }
}

#[test]
fn a_user_is_asked_for_where_the_kernel_asks() {
    let of_users = |ipv6| Policy {
        ipv6,
        users: Some((1000, 1000)),
        ..v4()
    };
    assert_eq!(example(Way::Answers, &of_users(true)).unwrap().user, 1000);
    assert_eq!(example(Way::Answers, &of_users(false)), None, "it is not asked whose it is");
}

#[test]
fn a_rule_that_names_no_answer_has_none() {
    for policy in [
        Policy { protocol: 17, ..v4() },
        Policy {
            source_ports: Some((15_008, 15_008)),
            ..v4()
        },
        // What a pod sends by itself, such as to all of the web.
        Policy {
            destination_ports: Some((443, 443)),
            ..v4()
        },
        Policy {
            from: net("10.9.0.0/24"),
            ..v4()
        },
        Policy {
            from: net("127.0.0.0/8"),
            ..v4()
        },
        Policy {
            to: net("10.0.0.2/32"),
            ..v4()
        },
        Policy {
            to: net("224.0.0.0/4"),
            ..v4()
        },
        Policy {
            to: net("fe80::/10"),
            ipv6: true,
            ..v4()
        },
        Policy {
            input: Some("eth0".into()),
            ..v4()
        },
        Policy {
            mark: 0xca6c,
            mask: u32::MAX,
            ..v4()
        },
        // Nothing of ours has that bit.
        Policy {
            mark: 0x80_111,
            mask: 0xff_fff,
            ..v4()
        },
        Policy { asks_more: true, ..v4() },
    ] {
        assert_eq!(example(Way::Answers, &policy), None, "{policy:?}");
    }
}

#[test]
fn what_comes_before_local_addresses_concerns_what_stays_here() {
    let own = own(IpFamily::V4);
    let local = Policy {
        leads_to: LeadsTo::Table(LOCAL),
        ..Policy::default()
    };
    let ours = Policy::from(routing_rule(IpFamily::V4));
    let proxys = Policy {
        mark: PROXY_MARK,
        mask: 0xfff,
        ..v4()
    };
    let ways = |policies: &[Policy]| {
        let listed = Listed {
            family: IpFamily::V4,
            own: &own,
            policies,
            tables: &BTreeMap::new(),
        };
        listed.before().map(|(_, ways)| ways).collect::<Vec<_>>()
    };
    let answers = vec![Way::Answers];
    let [without, last] = [[local.clone(), ours.clone(), v4()], [local.clone(), v4(), ours.clone()]];
    assert_eq!(ways(&without), vec![answers.clone()]);
    assert_eq!(ways(&last), [answers.clone(), answers.clone()]);
    let all = vec![Way::Answers, Way::Redirected, Way::ToApplication];
    assert_eq!(ways(&[v4(), local.clone(), ours.clone()]), [all, answers.clone()]);
    assert_eq!(
        ways(&[local.clone(), proxys, ours.clone()]),
        [vec![Way::Answers, Way::Out], answers.clone()]
    );
    let of_ipv6 = Policy { ipv6: true, ..v4() };
    assert_eq!(ways(&[of_ipv6, local, ours]), [answers]);
}

#[test]
fn each_route_of_a_rules_table_has_an_example() {
    let own = own(IpFamily::V4);
    let to = |net: &str, table| Route::to(net.parse().unwrap()).table(table);
    let routes = [
        to("0.0.0.0/0", 200),
        to("203.0.113.0/24", 200),
        to("198.51.100.0/24", 201),
        to("10.0.0.2/32", 200),
        to("224.0.0.0/4", 200),
        to("192.0.2.255/32", 200).kind(RouteKind::Other(3)),
        to("192.0.2.0/24", 200).kind(RouteKind::Thrown),
        to("fd00::/64", 200),
    ];
    let listed = Listed {
        family: IpFamily::V4,
        own: &own,
        policies: &[],
        tables: &tables_of(IpFamily::V4, &routes),
    };
    let aims = |policy: &Policy| {
        let examples = listed.examples(Way::Answers, policy);
        examples.iter().map(|e| e.packet.to.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(aims(&v4()), ["240.0.0.1", "203.0.113.1"]);
    assert_eq!(
        aims(&Policy {
            to: net("203.0.113.64/26"),
            ..v4()
        }),
        ["203.0.113.65", "203.0.113.65"]
    );
    assert_eq!(
        aims(&Policy {
            to: net("192.0.2.0/24"),
            ..v4()
        }),
        ["192.0.2.1"]
    );
}

/// Of what names a packet and of what names none.
#[test]
fn what_is_read_of_others_is_bounded() {
    let own = own(IpFamily::V4);
    // To groups nobody answers: no rule has a packet to them.
    let nets = (0..10_000_u32).map(|n| IpNet::from(ipnet::Ipv4Net::new((0xe000_0000 + n).into(), 32).unwrap()));
    let routes: Vec<_> = nets.map(|net| Route::to(net).table(200)).collect();
    let tables = tables_of(IpFamily::V4, &routes);
    assert_eq!(tables[&200].len(), ROUTES_READ);
    let asks_more = Policy { asks_more: true, ..v4() };
    for policy in [v4(), asks_more] {
        let policies = vec![policy; 10_000];
        let listed = Listed {
            family: IpFamily::V4,
            own: &own,
            policies: &policies,
            tables: &tables,
        };
        assert_eq!(listed.before().count(), RULES);
    }
}

#[test]
fn a_rule_is_named_by_what_it_takes() {
    assert_eq!(named(&v4()), "");
    assert_eq!(
        named(&Policy {
            source_ports: Some((80, 80)),
            ..v4()
        }),
        ", those from port 80"
    );
    let policy = Policy {
        to: net("10.0.0.0/8"),
        users: Some((1, 9)),
        inverted: true,
        ..v4()
    };
    assert_eq!(named(&policy), ", but those to 10.0.0.0/8 of user 1 to 9");
}

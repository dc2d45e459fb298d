use super::*;

#[test]
fn the_whole_plan_as_text() {
    let plan = Plan::new(&Options::default());
    assert_eq!(plan.to_string(), include_str!("../../tests/vectors/plan.txt"));
}

/// The cases that Istio's own golden files have: what the node is set to, what the pod's annotations say.
type Annotations = &'static [(&'static str, &'static str)];
const CASES: [(&str, bool, Annotations); 6] = [
    ("default", true, &[]),
    ("ingress", true, &[(BYPASS, "true")]),
    ("virtual_interfaces", true, &[(REROUTE, "tap0,br1")]),
    ("ingress_and_virtual_interfaces", true, &[(BYPASS, "1"), (REROUTE, "tap0, br1")]),
    ("dns_pod_enabled_and_off_globally", false, &[(DNS, "T")]),
    ("dns_pod_disabled_and_on_globally", true, &[(DNS, "false")]),
];
const BYPASS: &str = "ambient.istio.io/bypass-inbound-capture";
const REROUTE: &str = "istio.io/reroute-virtual-interfaces";
const DNS: &str = "ambient.istio.io/dns-capture";

fn options(dns: bool, ipv6: bool, annotations: &[(&str, &str)]) -> Options {
    let capture = Capture::read(|key| annotations.iter().find(|(k, _)| *k == key).map(|(_, value)| *value));
    assert_eq!(capture.faults, []);
    let node = Options {
        dns,
        ipv6,
        probes: true,
        ..Options::default()
    };
    node.of(&capture)
}

#[test]
fn every_case_as_text() {
    for (name, dns, annotations) in CASES {
        for (family, ipv6) in [("v4", false), ("v4-v6", true)] {
            let path = format!("{}/tests/vectors/plans/{name}.{family}.txt", env!("CARGO_MANIFEST_DIR"));
            let wanted = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
            let plan = Plan::new(&options(dns, ipv6, annotations)).to_string();
            assert_eq!(plan, wanted, "{path}");
        }
    }
}

#[test]
fn what_a_pod_asks_changes_no_more_than_that() {
    let node = Options::default();
    assert_eq!(node.of(&Capture::default()), node);
    let without_dns = Plan::new(&options(true, true, &[(DNS, "0")]));
    assert_eq!(without_dns, Plan::new(&options(false, true, &[])));
    // The proxy's own connections to the application come by the loopback device, which no pod can name.
    let capture = Capture::read(|key| (key == REROUTE).then_some("lo"));
    assert_eq!(node.of(&capture), node);
    // What comes in goes to the application, and nothing that would refuse it stands in its way.
    let plan = Plan::new(&options(true, true, &[(BYPASS, "true")]));
    let incoming = plan
        .tables
        .iter()
        .flat_map(|t| &t.chains)
        .filter(|c| c.hook == Hook::Input || (c.kind == ChainKind::Nat && c.hook == Hook::Prerouting));
    assert!(incoming.into_iter().all(|c| c.rules.is_empty()));
    assert!(
        plan.listeners.contains(&Port::tcp(ports::HBONE)),
        "HBONE goes to the proxy as before"
    );
}

#[test]
fn what_is_switched_off_leaves_no_rule() {
    let plain = Plan::new(&Options {
        ipv6: false,
        dns: false,
        ..Options::default()
    });
    let text = plain.to_string();
    for absent in ["ip6", "::1", "15053", "53 ", "zone", "169.254.7.127", "ambient-raw", "-6"] {
        assert!(!text.contains(absent), "{absent} in {text}");
    }
    assert_eq!(plain.listeners.len(), 3);
    assert_eq!((plain.rules.len(), plain.routes.len()), (1, 1));
}

#[test]
fn without_ipv6_no_rule_catches_it() {
    // What it catches it must have a listener for: a DNS query by IPv6 would be lost.
    let plan = Plan::new(&Options {
        ipv6: false,
        ..Options::default()
    });
    let queries = plan.tables[0].chains[1]
        .rules
        .iter()
        .find(|r| r.why == "DNS queries by UDP")
        .unwrap();
    assert!(queries.matches.contains(&Match::Family(IpFamily::V4)));
}

#[test]
fn nothing_that_the_proxy_sends_is_redirected() {
    for (ipv6, dns, probes) in [(true, true, true), (true, true, false), (false, false, false)] {
        let plan = Plan::new(&Options {
            ipv6,
            dns,
            probes,
            ..Options::default()
        });
        let rules = plan.tables.iter().flat_map(|t| &t.chains).flat_map(|c| &c.rules);
        for rule in rules.filter(|r| matches!(r.action, Action::Redirect(_))) {
            assert!(rule.matches.contains(&Match::NotMark(PROXY_MARK)), "{rule:?}");
        }
    }
}

#[test]
fn what_is_refused_opens_a_connection_and_nobody_exempt_is_meant() {
    for bits in 0..8 {
        let (ipv6, dns, probes) = (bits & 1 != 0, bits & 2 != 0, bits & 4 != 0);
        let plan = Plan::new(&Options {
            ipv6,
            dns,
            probes,
            ..Options::default()
        });
        let mut refusals = 0;
        for chain in plan.tables.iter().flat_map(|t| &t.chains) {
            let input = chain.hook == Hook::Input;
            for (at, rule) in chain.rules.iter().enumerate().filter(|(_, r)| r.action == Action::Reset) {
                refusals += 1;
                let has = |m: Match| rule.matches.contains(&m);
                assert!(has(Match::Protocol(Protocol::Tcp)) && has(Match::Opens), "{rule:?}");
                assert!(has(Match::NotMark(PROXY_MARK)), "the proxy's own: {rule:?}");
                assert_eq!(
                    has(Match::Family(IpFamily::V4)),
                    !ipv6,
                    "what is not captured goes around: {rule:?}"
                );
                assert!(has(if input { Match::NotFromLoopback } else { Match::NotToLoopback }), "{rule:?}");
                assert_eq!(
                    has(Match::NotDestinationPort(ports::HBONE)),
                    input,
                    "tunnels come in as they are: {rule:?}"
                );
                let before = &chain.rules[..at];
                assert!(before.iter().all(|r| r.action == Action::Accept), "{before:?}");
                let Some((opening, before)) = before.split_last() else {
                    panic!("{before:?}")
                };
                assert_eq!(opening.matches, [Match::ConnectionMark(KEPT_MARK), Match::Unassured]);
                let families = if ipv6 { 2 } else { 1 };
                let redirected = &before[if probes && input { families } else { 0 }..];
                let wanted: Vec<Vec<Match>> = match input {
                    true => vec![vec![
                        Match::Protocol(Protocol::Tcp),
                        Match::Redirected,
                        Match::DestinationPort(ports::INBOUND_PLAINTEXT),
                    ]],
                    false => [IpFamily::V4, IpFamily::V6][..families]
                        .iter()
                        .map(|f| vec![Match::Redirected, Match::Destination(f.loopback())])
                        .collect(),
                };
                assert_eq!(redirected.iter().map(|r| r.matches.clone()).collect::<Vec<_>>(), wanted);
            }
            // It must see what a redirection has done: nothing that redirects comes after it.
            if chain.rules.iter().any(|r| r.action == Action::Reset) {
                let redirecting = plan.tables.iter().flat_map(|t| &t.chains).filter(|c| c.kind == ChainKind::Nat);
                assert!(redirecting.into_iter().all(|c| c.priority < chain.priority));
            }
        }
        assert_eq!(refusals, 2, "one for what comes, one for what goes");
    }
}

/// What machines in the pod send comes in by the guard of what comes to it; and who prefers an open way has it.
#[test]
fn what_is_redirected_to_the_proxy_is_let_through_and_of_others_what_is_asked_for() {
    let accepted = |options: &Options, hook| {
        let plan = Plan::new(options);
        let guard = plan.tables.into_iter().find(|t| t.name == TABLES[3]).unwrap();
        let chain = guard.chains.into_iter().find(|c| c.hook == hook).unwrap();
        let redirected = chain.rules.into_iter().filter(|r| r.matches.contains(&Match::Redirected));
        redirected.map(|r| r.matches).collect::<Vec<_>>()
    };
    let machines = options(true, true, &[(REROUTE, "tap0")]);
    let ports: Vec<Match> = accepted(&machines, Hook::Input).iter().map(|m| m[2]).collect();
    assert_eq!(ports, [15006, 15001].map(Match::DestinationPort));
    let open = Options {
        yields: true,
        ..Options::default()
    };
    for hook in [Hook::Input, Hook::Output] {
        assert_eq!(accepted(&open, hook), [[Match::Redirected]]);
    }
}

#[test]
fn everything_redirected_has_a_listener() {
    let plan = Plan::new(&Options::default());
    for rule in plan.tables.iter().flat_map(|t| &t.chains).flat_map(|c| &c.rules) {
        let Action::Redirect(port) = rule.action else { continue };
        let protocol = rule.matches.iter().find_map(|m| match m {
            Match::Protocol(protocol) => Some(*protocol),
            _ => None,
        });
        assert!(
            plan.listeners.contains(&Port {
                protocol: protocol.unwrap(),
                port
            }),
            "{rule:?}"
        );
    }
}

#[test]
fn to_where_probes_come_from_nothing_is_opened() {
    let plan = Plan::new(&options(true, true, &[]));
    let chains = plan.tables.iter().flat_map(|t| &t.chains).filter(|c| c.hook == Hook::Output);
    let exempt = |rule: &&Rule| {
        [IpFamily::V4, IpFamily::V6]
            .iter()
            .any(|f| rule.matches.contains(&Match::Destination(f.probe_source())))
    };
    let kinds: Vec<ChainKind> = chains.flat_map(|c| c.rules.iter().filter(exempt).map(|_| c.kind)).collect();
    assert_eq!(kinds, [ChainKind::Nat; 2], "its answers are not redirected, and that is all");
}

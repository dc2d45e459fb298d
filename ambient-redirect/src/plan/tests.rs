use super::*;

#[test]
fn the_whole_plan_as_text() {
    let plan = Plan::new(&Options::default());
    assert_eq!(plan.to_string(), include_str!("../../tests/vectors/plan.txt"));
}

#[test]
fn what_is_switched_off_leaves_no_rule() {
    let plain = Plan::new(&Options {
        ipv6: false,
        dns: false,
        probes: false,
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
        let plan = Plan::new(&Options { ipv6, dns, probes });
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
        let plan = Plan::new(&Options { ipv6, dns, probes });
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
                assert_eq!(before.last().map(|r| &r.matches[..]), Some(&[Match::Redirected][..]));
                let exempt = if ipv6 { 2 } else { 1 };
                assert_eq!(before.len(), 1 + if probes { exempt } else { 0 }, "{before:?}");
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

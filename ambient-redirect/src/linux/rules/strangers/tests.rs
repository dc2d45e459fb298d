use super::*;
use crate::{
    netlink::{Batch, Cmp, Expr, MetaKey, PayloadBase, Verdict},
    plan::Options,
};

fn captured() -> Captured {
    Captured::by(&Plan::new(&Options::default()))
}

fn base(hook: u32, priority: i32, kind: &str) -> Chain {
    Chain {
        family: Family::Ip,
        table: "nat".into(),
        name: "base".into(),
        hook: Some((hook, priority)),
        kind: Some(kind.into()),
        policy: Some(1),
    }
}

fn regular(name: &str) -> Chain {
    Chain {
        name: name.into(),
        hook: None,
        kind: None,
        policy: None,
        ..base(0, 0, "nat")
    }
}

fn rule(chain: &str, expressions: &[Expr]) -> NftRule {
    NftRule {
        family: Family::Ip,
        table: "nat".into(),
        chain: chain.into(),
        handle: 1,
        expressions: Batch::list(expressions),
    }
}

fn tcp_to(ip: &str, port: u16) -> Vec<Expr> {
    Expr::tcp_to(ip.parse().unwrap(), port)
}

fn redirect(to: u16) -> Vec<Expr> {
    vec![
        Expr::Immediate {
            reg: 1,
            data: to.to_be_bytes().to_vec(),
        },
        Expr::Redirect { port_reg: 1 },
    ]
}

fn mark(mark: u32) -> Vec<Expr> {
    let data = mark.to_ne_bytes().to_vec();
    let key = MetaKey::Mark;
    vec![Expr::Immediate { reg: 1, data }, Expr::MetaSet { key, reg: 1 }]
}

fn by_loopback() -> Vec<Expr> {
    let (key, data) = (MetaKey::OutputName, b"lo\0".to_vec());
    vec![
        Expr::Meta { key, reg: 1 },
        Expr::Cmp {
            op: Cmp::Equal,
            reg: 1,
            data,
        },
    ]
}

fn to_network(first: [u8; 4], mask: [u8; 4]) -> Vec<Expr> {
    let base = PayloadBase::Network;
    vec![
        Expr::Payload {
            base,
            offset: 16,
            len: 4,
            reg: 1,
        },
        Expr::Bitwise {
            reg: 1,
            mask: mask.to_vec(),
            xor: vec![0; 4],
        },
        Expr::Cmp {
            op: Cmp::Equal,
            reg: 1,
            data: first.to_vec(),
        },
    ]
}

/// What is said of rules in one base chain, and in others that it leads to.
fn of(base: &Chain, rules: &[NftRule]) -> Vec<String> {
    let others = [regular("mine"), regular("other")];
    let chains: Vec<&Chain> = std::iter::once(base).chain(&others).collect();
    of_table(captured(), &chains, rules).iter().map(ToString::to_string).collect()
}

#[test]
fn what_takes_a_port_away_is_told() {
    let out = base(OUTPUT, -100, "nat");
    let all = |expressions: Vec<Expr>| of(&out, &[rule("base", &expressions)]);
    assert_eq!(
        all([tcp_to("10.0.0.9", 5432), redirect(6432)].concat()),
        ["table ip nat, chain base: of what goes out, TCP to port 5432 is redirected to the pod itself, port 6432"]
    );
    assert_eq!(
        all([tcp_to("10.0.0.9", 5432), Expr::dnat("10.0.0.8:1".parse().unwrap())].concat()),
        ["table ip nat, chain base: of what goes out, TCP to port 5432 gets another destination, port 1"]
    );
    assert_eq!(
        all(redirect(1)),
        ["table ip nat, chain base: of what goes out, TCP is redirected to the pod itself, port 1"]
    );
    let comes = base(PREROUTING, -150, "nat");
    let said = of(&comes, &[rule("base", &redirect(8080))]);
    assert_eq!(
        said,
        ["table ip nat, chain base: of what comes in, TCP is redirected to the pod itself, port 8080"]
    );
}

#[test]
fn what_leads_there_counts() {
    let out = base(OUTPUT, -100, "nat");
    let to = |chain: &str, jump: &str, tests: Vec<Expr>| {
        let jump = vec![Expr::Verdict(Verdict::Jump(jump.into()))];
        rule(chain, &[tests, jump].concat())
    };
    let rules = [
        to("base", "mine", Vec::new()),
        to("mine", "other", tcp_to("10.0.0.9", 80)),
        rule("other", &redirect(8080)),
    ];
    let said = of(&out, &rules);
    assert_eq!(
        said,
        ["table ip nat, chain other: of what goes out, TCP to port 80 is redirected to the pod itself, port 8080"]
    );
    // Nothing leads there.
    assert_eq!(of(&out, &rules[1..]), [] as [&str; 0]);
    // In a circle, which the kernel would not take.
    let round = [
        to("base", "mine", Vec::new()),
        to("mine", "mine", Vec::new()),
        rule("mine", &redirect(1)),
    ];
    assert_eq!(of(&out, &round).len(), 1);
}

#[test]
fn what_is_usual_and_takes_nothing_away_is_not_told() {
    let out = base(OUTPUT, -100, "nat");
    let jump = |tests: Vec<Expr>| {
        let rules = [
            rule("base", &[tests, vec![Expr::Verdict(Verdict::Jump("mine".into()))]].concat()),
            rule("mine", &redirect(8080)),
        ];
        of(&out, &rules)
    };
    // The names of containers: Docker answers at 127.0.0.11.
    assert_eq!(jump(tcp_to("127.0.0.11", 53)), [] as [&str; 0]);
    assert_eq!(jump(Expr::udp_to("127.0.0.11".parse().unwrap(), 53)), [] as [&str; 0]);
    assert_eq!(jump(to_network([127, 0, 0, 0], [255, 0, 0, 0])), [] as [&str; 0]);
    assert_eq!(jump(tcp_to("::1", 80)), [] as [&str; 0]);
    assert_eq!(jump(by_loopback()), [] as [&str; 0]);
    // Not captured at all.
    assert_eq!(jump(Expr::udp_to("10.0.0.9".parse().unwrap(), 514)), [] as [&str; 0]);
    let dns = jump(Expr::udp_to("10.0.0.9".parse().unwrap(), 53));
    assert_eq!(dns.len(), 1, "{dns:?}");
    assert!(dns[0].contains("UDP to port 53"), "{dns:?}");
    assert_eq!(jump(to_network([10, 0, 0, 0], [255, 0, 0, 0])).len(), 1);
    // Decides nothing about where it goes.
    for harmless in [Verdict::Accept, Verdict::Return, Verdict::Drop] {
        assert_eq!(of(&out, &[rule("base", &[Expr::Verdict(harmless)])]), [] as [&str; 0]);
    }
    let snat = Expr::Snat { ipv6: false, addr_reg: 1 };
    assert_eq!(of(&out, &[rule("base", &[snat])]), [] as [&str; 0]);
}

#[test]
fn a_mark_is_told_that_is_the_proxys() {
    let mangle = base(OUTPUT, -150, "route");
    assert_eq!(of(&mangle, &[rule("base", &mark(0x10000))]), [] as [&str; 0]);
    for proxys in [PROXY_MARK, 0xab_0000 | PROXY_MARK, REPLY_MARK] {
        let said = of(&mangle, &[rule("base", &mark(proxys))]);
        assert!(said.len() == 1 && said[0].contains("which is the proxy's"), "{said:?}");
    }
}

#[test]
fn where_a_chain_stands_decides() {
    let all = captured();
    let without = |options: Options| Captured::by(&Plan::new(&options));
    for (hook, priority, direction) in [
        (OUTPUT, -100, Some(Direction::Outbound)),
        (OUTPUT, -300, Some(Direction::Outbound)),
        (OUTPUT, -99, None),
        (PREROUTING, -100, Some(Direction::Inbound)),
        (PREROUTING, 0, None),
        (4, -200, None),
        (1, -200, None),
    ] {
        assert_eq!(all.place(&base(hook, priority, "nat")), direction, "{hook} {priority}");
    }
    let bypass = without(Options {
        inbound: false,
        ..Options::default()
    });
    assert_eq!(bypass.place(&base(PREROUTING, -100, "nat")), None);
    let v6 = Chain {
        family: Family::Ip6,
        ..base(OUTPUT, -100, "nat")
    };
    assert_eq!(all.place(&v6), Some(Direction::Outbound));
    let v4_alone = without(Options {
        ipv6: false,
        ..Options::default()
    });
    assert_eq!(v4_alone.place(&v6), None);
    let ours = Chain {
        family: Family::Inet,
        table: TABLES[1].into(),
        ..base(OUTPUT, -150, "route")
    };
    assert_eq!(all.place(&ours), None);
    let of_bridges = Chain {
        family: Family::Other(7),
        ..base(OUTPUT, -100, "filter")
    };
    assert_eq!(all.place(&of_bridges), None);
}

#[test]
fn names_that_others_chose_are_shown_without_harm() {
    let evil = Chain {
        table: format!("x\u{1b}[2J\n{}", "y".repeat(200)),
        ..base(OUTPUT, -100, "nat")
    };
    let named = named(&evil, "chain").place.to_string();
    assert!(named.starts_with("table ip x?[2J?y") && named.len() <= NAME + 30, "{named:?}");
}

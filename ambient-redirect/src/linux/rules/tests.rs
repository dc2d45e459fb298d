use std::{collections::BTreeMap, fmt::Write};

use super::*;
use crate::{
    netlink::{Cmp, CtKey, Expr, MetaKey, PayloadBase, Verdict},
    plan::Options,
};

/// What `nft --debug=netlink` shows of the rules of Istio's node agent: the same expressions, under other names.
const REFERENCE: &str = include_str!("../../../tests/vectors/pod-full.bytecode.txt");

#[test]
fn the_rules_are_those_of_the_reference() {
    let plan = Plan::new(&Options {
        ipv6: true,
        dns: true,
        probes: true,
        ..Options::default()
    });
    let mut ours: BTreeMap<String, Vec<String>> = BTreeMap::new();
    // What guards against going around the rest is no part of the reference.
    for table in plan.tables.iter().filter(|t| t.name != "ambient-guard") {
        for chain in &table.chains {
            let key = format!("istio-{} istio-{}", table.name, chain.hook.name());
            ours.entry(key).or_default().extend(chain.rules.iter().map(|r| shown(&compile(r))));
        }
    }
    let mut theirs: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for block in REFERENCE.split("\n\n") {
        let (steps, heads): (Vec<&str>, Vec<&str>) = block.lines().partition(|l| l.starts_with("  ["));
        // Rules stand under the name of their chain; the lines about chains themselves have no steps.
        let Some(key) = heads.last().and_then(|h| h.strip_prefix("inet ")).filter(|_| !steps.is_empty()) else {
            continue;
        };
        if !steps[0].contains("jump") {
            // The reference was taken when Istio's probes had another IPv6 address.
            let rule = steps.join("\n").replace(
                "0x771eace9 0x9f39ca90 0xe2ec6d4d 0x64319b2f",
                words(&plan::PROBE_SOURCES.1.octets()).trim(),
            );
            theirs.entry(key.trim().into()).or_default().push(rule);
        }
    }
    assert_eq!(theirs.values().map(Vec::len).sum::<usize>(), 18);
    assert_eq!(ours, theirs);
}

/// As `nft --debug=netlink` compiles
/// `ct status & dnat == dnat ip daddr 127.0.0.1 counter accept`, the same of `ip6 daddr ::1`, and
/// `meta l4proto tcp tcp flags & (fin|syn|rst|ack) == syn oifname != lo mark & 0xfff != 0x539 mark & 0xfff != 0x111 counter
/// reject with tcp reset`.
#[test]
fn the_guard_is_what_nft_would_make() {
    let plan = Plan::new(&Options::default());
    let output = &plan.tables.iter().find(|t| t.name == "ambient-guard").unwrap().chains[1];
    let shown: Vec<String> = output.rules.iter().map(|r| shown(&compile(r))).collect();
    assert_eq!(
        shown,
        [
            "  [ ct load status => reg 1 ]
  [ bitwise reg 1 = ( reg 1 & 0x00000020 ) ^ 0x00000000 ]
  [ cmp eq reg 1 0x00000020 ]
  [ meta load nfproto => reg 1 ]
  [ cmp eq reg 1 0x00000002 ]
  [ payload load 4b @ network header + 16 => reg 1 ]
  [ cmp eq reg 1 0x0100007f ]
  [ counter pkts 0 bytes 0 ]
  [ immediate reg 0 accept ]",
            "  [ ct load status => reg 1 ]
  [ bitwise reg 1 = ( reg 1 & 0x00000020 ) ^ 0x00000000 ]
  [ cmp eq reg 1 0x00000020 ]
  [ meta load nfproto => reg 1 ]
  [ cmp eq reg 1 0x0000000a ]
  [ payload load 16b @ network header + 24 => reg 1 ]
  [ cmp eq reg 1 0x00000000 0x00000000 0x00000000 0x01000000 ]
  [ counter pkts 0 bytes 0 ]
  [ immediate reg 0 accept ]",
            "  [ ct load mark => reg 1 ]
  [ bitwise reg 1 = ( reg 1 & 0x00000fff ) ^ 0x00000000 ]
  [ cmp eq reg 1 0x000006b7 ]
  [ ct load status => reg 1 ]
  [ bitwise reg 1 = ( reg 1 & 0x00000004 ) ^ 0x00000000 ]
  [ cmp eq reg 1 0x00000000 ]
  [ counter pkts 0 bytes 0 ]
  [ immediate reg 0 accept ]",
            "  [ meta load l4proto => reg 1 ]
  [ cmp eq reg 1 0x00000006 ]
  [ payload load 1b @ transport header + 13 => reg 1 ]
  [ bitwise reg 1 = ( reg 1 & 0x00000017 ) ^ 0x00000000 ]
  [ cmp eq reg 1 0x00000002 ]
  [ meta load oifname => reg 1 ]
  [ cmp neq reg 1 0x00006f6c 0x00000000 0x00000000 0x00000000 ]
  [ meta load mark => reg 1 ]
  [ bitwise reg 1 = ( reg 1 & 0x00000fff ) ^ 0x00000000 ]
  [ cmp neq reg 1 0x00000539 ]
  [ meta load mark => reg 1 ]
  [ bitwise reg 1 = ( reg 1 & 0x00000fff ) ^ 0x00000000 ]
  [ cmp neq reg 1 0x00000111 ]
  [ counter pkts 0 bytes 0 ]
  [ reject type 1 code 0 ]",
        ]
    );
}

#[test]
fn an_owner_is_read_back() {
    for uid in ["7c0e8f0e-6a8e-4f3e-9c70-0d2f8a5a3a11", "a", &"x".repeat(300), &"ü".repeat(100)] {
        let userdata = comment(&Mark::new("node-1", &uid.into()));
        assert!(userdata.len() <= 128);
        let table = Table {
            family: Family::Inet,
            name: TABLES[0].into(),
            userdata,
            flags: 0,
        };
        let owner = owner_of(&table).unwrap();
        assert!(owner.is_node("node-1") && !owner.is_node("node-2"));
        let read = owner.pod.unwrap();
        assert!(uid.starts_with(read.as_str()) && !read.as_str().is_empty());
    }
    for userdata in [
        &b""[..],
        b"\0",
        b"\0\0",
        b"\0\x30ambient node 00000000 pod x\0",
        b"\x01\x1cambient node 00000000 pod x\0",
        b"\0\x06other\0",
    ] {
        let table = Table {
            family: Family::Inet,
            name: TABLES[0].into(),
            userdata: userdata.to_vec(),
            flags: 0,
        };
        assert_eq!(owner_of(&table), None, "{userdata:?}");
    }
    let table = Table {
        family: Family::Inet,
        name: TABLES[0].into(),
        userdata: b"\0\x0eambient node \0".to_vec(),
        flags: 0,
    };
    assert_eq!(owner_of(&table), Some(Owner { pod: None, node: None }));
}

#[test]
fn a_foreign_table_stops_the_whole_replacement() {
    let theirs = Table {
        family: Family::Inet,
        name: TABLES[2].into(),
        userdata: Vec::new(),
        flags: 0,
    };
    for dns in [true, false] {
        let plan = Plan::new(&Options { dns, ..Options::default() });
        assert!(
            matches!(replacement(&plan, &Mark::new("node-1", &"a".into()), &TABLES, std::slice::from_ref(&theirs), &[]), Err(ApplyError::Foreign { table }) if table == TABLES[2])
        );
    }
    // The same name in another family is another table.
    let elsewhere = Table {
        family: Family::Ip,
        ..theirs
    };
    assert!(
        replacement(
            &Plan::new(&Options::default()),
            &Mark::new("node-1", &"a".into()),
            &TABLES,
            &[elsewhere],
            &[]
        )
        .is_ok()
    );
}

fn shown(expressions: &[Expr]) -> String {
    expressions
        .iter()
        .map(|e| format!("  [ {} ]", step(e)))
        .collect::<Vec<_>>()
        .join("\n")
}

fn step(expression: &Expr) -> String {
    match expression {
        Expr::Meta { key, reg } => format!("meta load {} => reg {reg}", meta(*key)),
        Expr::MetaSet { key, reg } => format!("meta set {} with reg {reg}", meta(*key)),
        Expr::Ct { key, reg } => format!("ct load {} => reg {reg}", ct(*key)),
        Expr::CtSet { key, reg } => format!("ct set {} with reg {reg}", ct(*key)),
        Expr::Payload { base, offset, len, reg } => {
            let base = if *base == PayloadBase::Network { "network" } else { "transport" };
            format!("payload load {len}b @ {base} header + {offset} => reg {reg}")
        }
        Expr::Cmp { op, reg, data } => format!("cmp {} reg {reg}{}", if *op == Cmp::Equal { "eq" } else { "neq" }, words(data)),
        Expr::Bitwise { reg, mask, xor } => format!("bitwise reg {reg} = ( reg {reg} &{} ) ^{}", words(mask), words(xor)),
        Expr::Immediate { reg, data } => format!("immediate reg {reg}{}", words(data)),
        Expr::Verdict(Verdict::Accept) => "immediate reg 0 accept".into(),
        Expr::Counter => "counter pkts 0 bytes 0".into(),
        Expr::RejectReset => "reject type 1 code 0".into(),
        Expr::Redirect { port_reg } => format!("redir proto_min reg {port_reg} flags 0x2"),
        other => panic!("{other:?} is in no plan"),
    }
}

fn meta(key: MetaKey) -> &'static str {
    match key {
        MetaKey::Mark => "mark",
        MetaKey::InputName => "iifname",
        MetaKey::OutputName => "oifname",
        MetaKey::NetworkProtocol => "nfproto",
        MetaKey::TransportProtocol => "l4proto",
        other => panic!("{other:?} is in no plan"),
    }
}

fn ct(key: CtKey) -> &'static str {
    match key {
        CtKey::Mark => "mark",
        CtKey::Zone => "zone",
        CtKey::Status => "status",
        CtKey::State => panic!("the state is in no plan"),
    }
}

fn words(data: &[u8]) -> String {
    data.chunks(4).fold(String::new(), |mut text, chunk| {
        let mut word = [0; 4];
        word[..chunk.len()].copy_from_slice(chunk);
        let _ = write!(text, " 0x{:08x}", u32::from_le_bytes(word));
        text
    })
}

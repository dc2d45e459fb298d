//! The notation of the vectors, and of the wire form as YAML.

use ambient_authz::{Clause, Match, Policy, Rule, Scope, ServiceAccount, StringMatch, wire};
use ipnet::IpNet;
use serde_json::Value;

pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("a text is wanted: {value}"))
}

pub(crate) fn rules(value: &Value) -> Vec<Rule> {
    list(value)
        .iter()
        .map(|rule| Rule {
            clauses: list(rule).iter().map(clause).collect(),
        })
        .collect()
}

fn clause(value: &Value) -> Clause {
    Clause {
        matches: list(value).iter().map(one_match).collect(),
    }
}

fn one_match(value: &Value) -> Match {
    let known = [
        "namespaces",
        "principals",
        "trust_domains",
        "service_accounts",
        "source_ips",
        "destination_ips",
        "destination_ports",
    ];
    for name in value.as_object().into_iter().flat_map(|fields| fields.keys()) {
        assert!(known.contains(&name.trim_start_matches("not_")), "{name}");
    }
    let strings = |name: &str| list(&value[name]).iter().map(string_match).collect();
    let blocks = |name: &str| list(&value[name]).iter().map(|b| text(b).parse::<IpNet>().unwrap()).collect();
    let ports = |name: &str| list(&value[name]).iter().map(port).collect();
    let accounts = |name: &str| list(&value[name]).iter().map(account).collect();
    Match {
        namespaces: strings("namespaces"),
        not_namespaces: strings("not_namespaces"),
        principals: strings("principals"),
        not_principals: strings("not_principals"),
        trust_domains: strings("trust_domains"),
        not_trust_domains: strings("not_trust_domains"),
        service_accounts: accounts("service_accounts"),
        not_service_accounts: accounts("not_service_accounts"),
        source_ips: blocks("source_ips"),
        not_source_ips: blocks("not_source_ips"),
        destination_ips: blocks("destination_ips"),
        not_destination_ips: blocks("not_destination_ips"),
        destination_ports: ports("destination_ports"),
        not_destination_ports: ports("not_destination_ports"),
    }
}

fn port(value: &Value) -> u16 {
    value.as_u64().unwrap().try_into().unwrap()
}

fn account(value: &Value) -> ServiceAccount {
    ServiceAccount {
        namespace: text(&value["namespace"]).into(),
        name: text(&value["name"]).into(),
    }
}

pub(crate) fn string_match(value: &Value) -> StringMatch {
    let (kind, value) = value.as_object().unwrap().iter().next().unwrap();
    match kind.as_str() {
        "exact" => StringMatch::Exact(text(value).into()),
        "prefix" => StringMatch::Prefix(text(value).into()),
        "suffix" => StringMatch::Suffix(text(value).into()),
        "presence" => StringMatch::Presence,
        other => panic!("{other}"),
    }
}

pub(crate) fn scope(name: &str) -> Scope {
    let all = [Scope::Global, Scope::Namespace, Scope::Selector];
    all.into_iter().find(|s| s.to_string() == name).unwrap()
}

/// An `istio.security.Authorization` as YAML prints it, read; one without a namespace is in `default`, as a resource is.
pub(crate) fn wire_policy(value: &Value) -> Policy {
    let rule = |group: &Value| wire::Rule {
        clauses: list(&group["rules"])
            .iter()
            .map(|clause| wire::Clause {
                matches: list(&clause["matches"]).iter().map(wire_match).collect(),
            })
            .collect(),
    };
    let sent = wire::Authorization {
        name: text(&value["name"]).into(),
        namespace: value["namespace"].as_str().unwrap_or("default").into(),
        scope: ["GLOBAL", "NAMESPACE", "WORKLOAD_SELECTOR"]
            .iter()
            .position(|name| value["scope"] == *name)
            .unwrap_or(0) as i32,
        action: (value["action"] == "DENY").into(),
        rules: list(&value["groups"]).iter().map(rule).collect(),
        dry_run: value["dryRun"] == true,
    };
    let exact = wire::read(&sent, &wire::Settings::istio_exact()).unwrap();
    assert_eq!(wire::read(&sent, &wire::Settings::default()).unwrap(), exact);
    exact
}

fn wire_match(value: &Value) -> wire::Match {
    let strings = |name: &str| list(&value[name]).iter().map(wire_string).collect();
    let blocks = |name: &str| list(&value[name]).iter().map(wire_block).collect();
    let ports = |name: &str| list(&value[name]).iter().map(|p| u32::from(port(p))).collect();
    let account = |value: &Value| wire::ServiceAccount {
        namespace: text(&value["namespace"]).into(),
        service_account: text(&value["serviceAccount"]).into(),
    };
    let accounts = |name: &str| list(&value[name]).iter().map(account).collect();
    wire::Match {
        namespaces: strings("namespaces"),
        not_namespaces: strings("notNamespaces"),
        principals: strings("principals"),
        not_principals: strings("notPrincipals"),
        service_accounts: accounts("serviceAccounts"),
        not_service_accounts: accounts("notServiceAccounts"),
        source_ips: blocks("sourceIps"),
        not_source_ips: blocks("notSourceIps"),
        destination_ips: blocks("destinationIps"),
        not_destination_ips: blocks("notDestinationIps"),
        destination_ports: ports("destinationPorts"),
        not_destination_ports: ports("notDestinationPorts"),
    }
}

fn wire_string(value: &Value) -> wire::StringMatch {
    match string_match(value) {
        StringMatch::Exact(text) => wire::StringMatch::Exact(text.to_string()),
        StringMatch::Prefix(text) => wire::StringMatch::Prefix(text.to_string()),
        StringMatch::Suffix(text) => wire::StringMatch::Suffix(text.to_string()),
        StringMatch::Presence => wire::StringMatch::Presence,
    }
}

/// Bytes in base64, and a length.
fn wire_block(value: &Value) -> wire::Address {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bits, mut held, mut address) = (0u32, 0, Vec::new());
    for b in text(&value["address"]).bytes().take_while(|b| *b != b'=') {
        let digit = ALPHABET.iter().position(|a| *a == b).unwrap() as u32;
        (bits, held) = (bits << 6 | digit, held + 6);
        if held >= 8 {
            held -= 8;
            address.push((bits >> held) as u8);
        }
    }
    let length = value["length"].as_u64().unwrap_or(0).try_into().unwrap();
    wire::Address { address, length }
}

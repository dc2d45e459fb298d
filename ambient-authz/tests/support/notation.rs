//! The notation of the vectors, and of the wire form as YAML.

use ambient_authz::{Action, Clause, Match, Policy, Rule, Scope, ServiceAccount, StringMatch};
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
    let accounts = |name: &str| list(&value[name]).iter().map(|a| account(a, "name")).collect();
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

fn account(value: &Value, name: &str) -> ServiceAccount {
    ServiceAccount {
        namespace: text(&value["namespace"]).into(),
        name: text(&value[name]).into(),
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

/// An `istio.security.Authorization` as YAML prints it.
pub(crate) fn wire_policy(value: &Value) -> Policy {
    let namespace = value["namespace"].as_str().unwrap_or("");
    let rule = |group: &Value| Rule {
        clauses: list(&group["rules"])
            .iter()
            .map(|clause| Clause {
                matches: list(&clause["matches"]).iter().map(wire_match).collect(),
            })
            .collect(),
    };
    Policy {
        key: format!("{namespace}/{}", text(&value["name"])).as_str().into(),
        namespace: namespace.into(),
        scope: value["scope"].as_str().map_or(Scope::Global, scope),
        action: if value["action"] == "DENY" { Action::Deny } else { Action::Allow },
        rules: list(&value["groups"]).iter().map(rule).collect(),
        dry_run: value["dryRun"] == true,
    }
}

fn wire_match(value: &Value) -> Match {
    let strings = |name: &str| list(&value[name]).iter().map(string_match).collect();
    let blocks = |name: &str| list(&value[name]).iter().map(wire_block).collect();
    let ports = |name: &str| list(&value[name]).iter().map(port).collect();
    let accounts = |name: &str| list(&value[name]).iter().map(|a| account(a, "serviceAccount")).collect();
    Match {
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
        ..Match::default()
    }
}

/// Four bytes in base64, and a length.
fn wire_block(value: &Value) -> IpNet {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits = text(&value["address"]).bytes().take_while(|b| *b != b'=');
    let bits = digits.fold((0u64, 0), |(bits, n), b| {
        let digit = ALPHABET.iter().position(|a| *a == b).unwrap() as u64;
        (bits << 6 | digit, n + 6)
    });
    let address = u32::try_from(bits.0 >> (bits.1 % 8)).unwrap();
    let length = value["length"].as_u64().unwrap_or(0).try_into().unwrap();
    IpNet::new(std::net::Ipv4Addr::from(address).into(), length).unwrap()
}

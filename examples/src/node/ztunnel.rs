//! ztunnel's environment variables: those that have an effect here are flags' (`CONFIGURATION.md` lists all); of those that
//! have none, and of those that nobody knows, the log says so.

/// Variables of ztunnel's that have no effect here, and why; and the values with which each asks for what is so anyhow.
const WITHOUT_EFFECT: [(&str, &str, &[&str]); 15] = [
    ("ENABLE_PROXY", "a node always carries its pods' traffic", &["true"]),
    (
        "PROXY_MODE",
        "there is the shared mode alone: a node serves all its pods",
        &["shared"],
    ),
    ("INPOD_ENABLED", "pods are always served in their own network namespaces", &["true"]),
    ("PROXY_WORKLOAD_INFO", "it is of the dedicated mode, which there is not", &[]),
    ("FAKE_CA", "--ca-dir is an authority that makes itself", &["false"]),
    ("HTTP2_STREAM_WINDOW_SIZE", WINDOWS, &[]),
    ("HTTP2_CONNECTION_WINDOW_SIZE", WINDOWS, &[]),
    ("HTTP2_FRAME_SIZE", WINDOWS, &[]),
    ("ENABLE_ORIG_SRC", "applications always see the client's address", &["true"]),
    (
        "PACKET_MARK",
        "the mark is 1337, which the rules in the pods' namespaces are made for",
        &["1337"],
    ),
    ("UNSTABLE_ENABLE_SOCKS5", "there is no SOCKS5 listener", &["false"]),
    (
        "ENABLE_RESPONSE_BAGGAGE",
        "baggage is always answered, and never believed",
        &["true"],
    ),
    (
        "ISTIO_META_DNS_PROXY_ADDR",
        "DNS is answered on port 15053 of each pod's loopback",
        &["localhost:15053"],
    ),
    (
        "AUTHZ_POLICY_INFO_LOGGING",
        "a refusal is in the access log with its policy; RUST_LOG sets the level of all else",
        &["false"],
    ),
    ("TLS12_ENABLED", "TLS 1.3 is spoken alone", &["false"]),
];

const WINDOWS: &str = "windows begin at 256 KiB, at 4 MiB through a waypoint or a gateway, and grow as a stream is read, within budgets";

/// What begins so is meant for a proxy like this one.
const PREFIXES: [&str; 8] = ["ZTUNNEL_", "XDS_", "CA_", "HTTP2_", "POOL_", "KEEPALIVE_", "INPOD_", "AMBIENT_"];

/// Prefixes of variables that are metadata for a control plane, whatever their name.
const METADATA: [&str; 4] = ["ISTIO_META_", "ISTIO_METAJSON_", "XDS_HEADER_", "CA_HEADER_"];

/// What to say of the variables that are set. `known` are those that flags read.
pub(crate) fn warnings(set: &[(String, String)], known: &[String]) -> Vec<String> {
    let mut said: Vec<String> = set.iter().filter_map(|(name, value)| warning(name, value, known)).collect();
    said.sort();
    said
}

fn warning(name: &str, value: &str, known: &[String]) -> Option<String> {
    if known.iter().any(|known| known == name) {
        return None;
    }
    if let Some((_, why, is_so)) = WITHOUT_EFFECT.iter().find(|(without, ..)| *without == name) {
        return (!is_so.contains(&value)).then(|| format!("{name} has no effect: {why}"));
    }
    if METADATA.iter().any(|prefix| name.starts_with(prefix)) {
        // Node metadata in passing is no mistake, as every deployment of Istio's has some.
        return None;
    }
    // Kubernetes names each Service of the namespace so in the environment of its pods.
    let is_link = ["_SERVICE_HOST", "_SERVICE_PORT", "_PORT"].iter().any(|part| name.contains(part));
    if is_link || !PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
        return None;
    }
    let all = known
        .iter()
        .map(String::as_str)
        .chain(WITHOUT_EFFECT.iter().map(|(name, ..)| *name));
    let nearest = all
        .map(|other| (distance(name, other), other))
        .min()
        .filter(|(distance, _)| *distance <= 3);
    let meant = nearest
        .map(|(_, other)| format!("; {other} is a name that is known"))
        .unwrap_or_default();
    Some(format!("{name} is set, and nothing reads it{meant}"))
}

/// How many characters must be put in, left out or changed to come from one to the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (at, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], at + 1);
        for (to, y) in b.iter().enumerate() {
            let change = diagonal + usize::from(x != *y);
            diagonal = row[to + 1];
            row[to + 1] = change.min(diagonal + 1).min(row[to] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
pub(super) mod chart;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::CommandFactory as _;

    use super::*;
    use crate::Cli;

    #[test]
    fn what_has_no_effect_says_why_and_what_is_unknown_says_so() {
        let known = ["NODE_NAME".to_owned(), "ZTUNNEL_WORKER_THREADS".to_owned()];
        let set = [
            ("PATH", "/bin"),
            ("NODE_NAME", "n"),
            ("FAKE_CA", "true"),
            ("ZTUNNEL_WORKER_THREAD", "1"),
            ("POOL_COLOUR", "red"),
            ("ZTUNNEL_SERVICE_HOST", "10.0.0.1"),
            ("ISTIO_META_ANYTHING", "x"),
            ("XDS_HEADER_A", "x"),
            // What is asked for is so.
            ("INPOD_ENABLED", "true"),
            ("PROXY_MODE", "shared"),
        ];
        let set = set.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(
            warnings(&set, &known),
            [
                "FAKE_CA has no effect: --ca-dir is an authority that makes itself",
                "POOL_COLOUR is set, and nothing reads it",
                "ZTUNNEL_WORKER_THREAD is set, and nothing reads it; ZTUNNEL_WORKER_THREADS is a name that is known",
            ]
        );
        assert_eq!(
            (distance("", "abc"), distance("abc", "abc"), distance("kitten", "sitting")),
            (3, 0, 3)
        );
    }

    /// What the pods of Istio's chart for its node proxy have by default, and in a mesh of several networks.
    #[test]
    fn nothing_is_said_of_what_istios_chart_sets() {
        let others = [
            ("NETWORK", "net1"),
            ("ZTUNNEL_RESOURCE_CPU_LIMIT", "4"),
            ("ZTUNNEL_RESOURCE_CPU_REQUEST", "1"),
            ("CRL_PATH", "/var/run/secrets/istio/crl/ca-crl.pem"),
            // Of a kubelet.
            ("KUBERNETES_SERVICE_HOST", "10.96.0.1"),
            ("KUBERNETES_PORT_443_TCP_ADDR", "10.96.0.1"),
            ("HOSTNAME", "ztunnel-x"),
        ];
        let set = chart::ENVIRONMENT.iter().chain(&others);
        let set: Vec<_> = set.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        assert_eq!(warnings(&set, &crate::node::known_variables()), [""; 0]);
        let other = [("INPOD_ENABLED", "false"), ("TLS12_ENABLED", "true"), ("PROXY_MODE", "dedicated")];
        let other = other.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(
            warnings(&other, &crate::node::known_variables()).len(),
            3,
            "what is really not so is told"
        );
    }

    /// Every setting and every variable of ztunnel's stands in the table, and nothing else.
    #[test]
    fn the_table_is_complete() {
        let text = include_str!("../../CONFIGURATION.md");
        let cells = |heading: &str, column: usize| -> BTreeSet<String> {
            let table = text.split(&format!("## {heading}")).nth(1).unwrap().split("\n## ").next().unwrap();
            let rows = table.lines().filter(|line| line.starts_with("| `"));
            let cells = rows.filter_map(|row| row.split('|').nth(column)?.split('`').nth(1).map(str::to_owned));
            cells.collect()
        };
        let node = Cli::command().find_subcommand("node").unwrap().clone();
        let arguments = || {
            node.get_arguments()
                .filter(|arg| !["help", "version"].contains(&arg.get_id().as_str()))
        };
        let flags: BTreeSet<_> = arguments()
            .filter_map(|arg| arg.get_long().map(|long| format!("--{long}")))
            .collect();
        assert_eq!(cells("Settings", 1), flags);
        let variables: BTreeSet<_> = arguments()
            .filter_map(|arg| arg.get_env().map(|name| name.to_str().unwrap().to_owned()))
            .collect();
        assert_eq!(cells("Settings", 2), variables);
        let without: BTreeSet<_> = WITHOUT_EFFECT.iter().map(|(name, ..)| (*name).to_owned()).collect();
        assert_eq!(cells("Without effect", 1), without);
        assert!(variables.is_disjoint(&without));
    }
}

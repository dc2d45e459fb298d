//! ztunnel's environment variables: those that have an effect here are flags' (`CONFIGURATION.md` lists all); of those that
//! have none, and of those that nobody knows, the log says so.

/// Variables of ztunnel's that have no effect here, and why.
const WITHOUT_EFFECT: [(&str, &str); 18] = [
    ("ENABLE_PROXY", "a node always carries its pods' traffic"),
    ("PROXY_MODE", "there is the shared mode alone: a node serves all its pods"),
    ("INPOD_ENABLED", "pods are always served in their own network namespaces"),
    ("PROXY_WORKLOAD_INFO", "it is of the dedicated mode, which there is not"),
    ("NETWORK", "a pod's network is what the mesh's state says of it"),
    ("FAKE_CA", "--ca-dir is an authority that makes itself"),
    ("ZTUNNEL_CPU_LIMIT", "the system says how many cores this process may use"),
    ("HTTP2_STREAM_WINDOW_SIZE", WINDOWS),
    ("HTTP2_CONNECTION_WINDOW_SIZE", WINDOWS),
    ("HTTP2_FRAME_SIZE", WINDOWS),
    ("ENABLE_ORIG_SRC", "applications always see the client's address"),
    (
        "PACKET_MARK",
        "the mark is 1337, which the rules in the pods' namespaces are made for",
    ),
    ("UNSTABLE_ENABLE_SOCKS5", "there is no SOCKS5 listener"),
    ("ENABLE_RESPONSE_BAGGAGE", "baggage is always answered, and never believed"),
    ("SERVICE_ACCOUNT", OWN_POD),
    ("ISTIO_META_DNS_PROXY_ADDR", "DNS is answered on port 15053 of each pod's loopback"),
    (
        "AUTHZ_POLICY_INFO_LOGGING",
        "a refusal is in the access log with its policy; RUST_LOG sets the level of all else",
    ),
    ("TLS12_ENABLED", "TLS 1.3 is spoken alone"),
];

const WINDOWS: &str = "windows begin at 256 KiB and grow as a stream is read, within one budget";
const OWN_POD: &str = "the node proxy is no workload of the mesh itself";

/// What begins so is meant for a proxy like this one.
const PREFIXES: [&str; 8] = ["ZTUNNEL_", "XDS_", "CA_", "HTTP2_", "POOL_", "KEEPALIVE_", "INPOD_", "AMBIENT_"];

/// Prefixes of variables that are metadata for a control plane, whatever their name.
const METADATA: [&str; 4] = ["ISTIO_META_", "ISTIO_METAJSON_", "XDS_HEADER_", "CA_HEADER_"];

/// What to say of the variables that are set. `known` are those that flags read.
pub(crate) fn warnings<'a>(set: impl IntoIterator<Item = &'a str>, known: &[String]) -> Vec<String> {
    let mut said: Vec<String> = set.into_iter().filter_map(|name| warning(name, known)).collect();
    said.sort();
    said
}

fn warning(name: &str, known: &[String]) -> Option<String> {
    if known.iter().any(|known| known == name) {
        return None;
    }
    if let Some((_, why)) = WITHOUT_EFFECT.iter().find(|(without, _)| *without == name) {
        return Some(format!("{name} has no effect: {why}"));
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
    let all = known.iter().map(String::as_str).chain(WITHOUT_EFFECT.iter().map(|(name, _)| *name));
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
mod tests {
    use std::collections::BTreeSet;

    use clap::CommandFactory as _;

    use super::*;
    use crate::Cli;

    #[test]
    fn what_has_no_effect_says_why_and_what_is_unknown_says_so() {
        let known = ["NODE_NAME".to_owned(), "ZTUNNEL_WORKER_THREADS".to_owned()];
        let set = [
            "PATH",
            "NODE_NAME",
            "FAKE_CA",
            "ZTUNNEL_WORKER_THREAD",
            "POOL_COLOUR",
            "ZTUNNEL_SERVICE_HOST",
            "ISTIO_META_ANYTHING",
            "XDS_HEADER_A",
        ];
        assert_eq!(
            warnings(set, &known),
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
        let without: BTreeSet<_> = WITHOUT_EFFECT.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(cells("Without effect", 1), without);
        assert!(variables.is_disjoint(&without));
    }
}

//! What is in force as it is written, and is seldom meant so.

use super::{
    AuthorizationPolicy, AuthorizationRule, Condition, Operation, PeerAuthentication, Settings, Source, Warning, join, read, value,
};
use crate::{Action, StringMatch};

#[cfg(test)]
mod tests;

/// Tells what of a policy is in force as it is written, and is seldom meant so.
///
/// Peers in plaintext have no identity, and so pass whatever only says who is not meant; a block of one IP family holds
/// nobody of the other; a wildcard knows no steps. [`read`](super::read()) warns of the opposite: of what is written and not
/// in force. Nothing is told of a policy that cannot be read, or is none at L4.
///
/// ```
/// use ambient_authz::kubernetes::{self, AuthorizationPolicy, Settings};
///
/// let policy: AuthorizationPolicy = serde_json::from_str(
///     r#"{ "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": { "name": "not-guests" },
///          "spec": { "rules": [{ "from": [{ "source": { "notNamespaces": ["guests"] } }] }] } }"#,
/// )?;
/// let traps = kubernetes::traps(&policy, &Settings::default());
/// assert_eq!(traps[0].path, "spec.rules[0].from[0].source.notNamespaces"); // whoever speaks plaintext is in no namespace
/// # Ok::<(), serde_json::Error>(())
/// ```
pub fn traps(policy: &AuthorizationPolicy, settings: &Settings) -> Vec<Warning> {
    let Ok(reading) = read(policy, settings) else { return Vec::new() };
    let (Some(read), Some(spec)) = (reading.policy, &policy.spec) else {
        return Vec::new();
    };
    let mut traps = Traps {
        settings,
        action: read.action,
        found: Vec::new(),
    };
    let written = spec.rules.as_deref().unwrap_or_default();
    for i in reading.rules {
        traps.rule(&written[i], &format!("spec.rules[{i}]"));
    }
    if read.action == Action::Allow && read.rules.is_empty() {
        traps.nobody(spec.rules.as_ref().map(Vec::len));
    }
    traps.found
}

/// The same of a PeerAuthentication.
pub(super) fn of_peer_authentication(resource: &PeerAuthentication, settings: &Settings) -> Vec<Warning> {
    let Some(spec) = &resource.spec else { return Vec::new() };
    let mut found = Vec::new();
    if spec.selector.as_ref().is_some_and(|selector| selector.labels().is_empty()) {
        let root = *resource.metadata.namespace() == *settings.root_namespace;
        let becomes = match (root, settings.istio_exact) {
            (true, true) => "istiod takes it for the workloads of the root namespace alone",
            (true, false) => "it holds for the whole mesh, as if it were absent",
            (false, _) => "it holds for all of its namespace, as if it were absent",
        };
        found.push(warning(
            "spec.selector",
            format!("a selector without labels selects no workloads: {becomes}"),
        ));
    }
    let of_ports = spec.port_level_mtls.iter().flatten();
    let all = spec.mtls.iter().map(|mtls| ("spec.mtls".to_owned(), mtls));
    for (path, mtls) in all.chain(of_ports.map(|(port, mtls)| (format!("spec.portLevelMtls[{port}]"), mtls))) {
        if mtls.mode.as_deref() == Some("DISABLE") {
            let text = "at L4 it is the same as PERMISSIVE: tunnels, and so mutual TLS, are taken as well as plaintext";
            found.push(warning(join(&path, "mode"), text));
        }
    }
    found
}

struct Traps<'a> {
    settings: &'a Settings,
    action: Action,
    found: Vec<Warning>,
}

/// What two lists of values compare.
#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Principal,
    Namespace,
    Account,
    TrustDomain,
    Address,
    Port,
}

/// One thing that is asked about a connection, in two lists: the values that are meant, and those that are not.
struct Pair<'a> {
    what: What,
    yes: Values<'a>,
    no: Values<'a>,
}

struct Values<'a> {
    path: String,
    texts: &'a [String],
}

impl<'a> Pair<'a> {
    fn new(what: What, path: &str, [yes, no]: [(&str, &'a Option<Vec<String>>); 2]) -> Self {
        let values = |(name, list): (&str, &'a Option<Vec<String>>)| Values {
            path: join(path, name),
            texts: list.as_deref().unwrap_or_default(),
        };
        Self {
            what,
            yes: values(yes),
            no: values(no),
        }
    }

    fn of_source(source: &'a Source, path: &str) -> Vec<Self> {
        let s = source;
        [
            (What::Principal, "principals", &s.principals, "notPrincipals", &s.not_principals),
            (What::Namespace, "namespaces", &s.namespaces, "notNamespaces", &s.not_namespaces),
            (
                What::Account,
                "serviceAccounts",
                &s.service_accounts,
                "notServiceAccounts",
                &s.not_service_accounts,
            ),
            (
                What::TrustDomain,
                "trustDomains",
                &s.trust_domains,
                "notTrustDomains",
                &s.not_trust_domains,
            ),
            (What::Address, "ipBlocks", &s.ip_blocks, "notIpBlocks", &s.not_ip_blocks),
        ]
        .into_iter()
        .map(|(what, yes, values, no, not_values)| Self::new(what, path, [(yes, values), (no, not_values)]))
        .collect()
    }

    /// Of a condition that is about the peer.
    fn of_condition(condition: &'a Condition, path: &str) -> Option<Self> {
        let what = match condition.key.as_str() {
            "source.principal" => What::Principal,
            "source.namespace" => What::Namespace,
            "source.serviceAccount" => What::Account,
            "source.trustDomain" => What::TrustDomain,
            "source.ip" => What::Address,
            _ => return None,
        };
        let lists = [("values", &condition.values), ("notValues", &condition.not_values)];
        Some(Self::new(what, path, lists))
    }

    fn is_of_identity(&self) -> bool {
        !matches!(self.what, What::Address | What::Port)
    }

    /// Whether a peer without an identity passes it.
    fn passes_plaintext(&self) -> bool {
        !self.is_of_identity() || self.yes.texts.is_empty()
    }
}

impl Traps<'_> {
    fn rule(&mut self, rule: &AuthorizationRule, path: &str) {
        if self.settings.istio_exact && is_dropped(rule) {
            return;
        }
        let sources: Vec<Vec<Pair<'_>>> = rule
            .from
            .iter()
            .flatten()
            .enumerate()
            .filter_map(|(i, from)| Some(self.counting(Pair::of_source(from.source.as_ref()?, &format!("{path}.from[{i}].source")))))
            .collect();
        let conditions: Vec<_> = rule.when.iter().flatten().enumerate().collect();
        let asked = conditions
            .iter()
            .filter_map(|(i, condition)| Pair::of_condition(condition, &format!("{path}.when[{i}]")));
        let asked = self.counting(asked.collect());
        for (i, condition) in &conditions {
            if condition.key == "destination.ip" {
                let path = format!("{path}.when[{i}]");
                let lists = [("values", &condition.values), ("notValues", &condition.not_values)];
                self.families(&Pair::new(What::Address, &path, lists));
            }
        }
        if self.settings.istio_exact {
            let operations = rule.to.iter().flatten().enumerate();
            for (i, operation) in operations.filter_map(|(i, to)| Some((i, to.operation.as_ref()?))) {
                let path = format!("{path}.to[{i}].operation");
                let lists = [("ports", &operation.ports), ("notPorts", &operation.not_ports)];
                self.left(&Pair::new(What::Port, &path, lists), |text| value::port(text).is_ok());
            }
        }
        for pair in sources.iter().flatten().chain(&asked) {
            match pair.what {
                What::Address => self.families(pair),
                What::Principal => self.principals(pair),
                What::Namespace | What::Account | What::TrustDomain | What::Port => {}
            }
        }
        self.plaintext(&sources, &asked);
    }

    /// Those that are compared: Istiod drops trust domains.
    fn counting<'a>(&self, mut pairs: Vec<Pair<'a>>) -> Vec<Pair<'a>> {
        pairs.retain(|pair| !self.settings.istio_exact || pair.what != What::TrustDomain);
        pairs
    }

    /// Rules that a peer in plaintext passes, as they only say who is not meant.
    fn plaintext(&mut self, sources: &[Vec<Pair<'_>>], asked: &[Pair<'_>]) {
        if !asked.iter().all(Pair::passes_plaintext) {
            return;
        }
        let passed: Vec<_> = sources.iter().filter(|source| source.iter().all(Pair::passes_plaintext)).collect();
        if passed.is_empty() && !sources.is_empty() {
            return;
        }
        let excludes = |pair: &&Pair<'_>| pair.is_of_identity() && !pair.no.texts.is_empty();
        let by_sources = passed.into_iter().filter_map(|source| source.iter().find(excludes));
        let negatives: Vec<_> = by_sources.chain(asked.iter().find(excludes)).collect();
        if negatives.is_empty() {
            return self.nowhere_from(sources, asked);
        }
        for pair in negatives {
            let asking = match (pair.what, pair.no.path.ends_with("notValues")) {
                (What::Account, _) => "the condition source.principal with the values [\"*\"]".to_owned(),
                (_, true) => "values: [\"*\"]".to_owned(),
                (What::Principal, false) => "principals: [\"*\"]".to_owned(),
                (What::Namespace, false) => "namespaces: [\"*\"]".to_owned(),
                (_, false) => "trustDomains: [\"*\"]".to_owned(),
            };
            let anybody = pair.no.texts.iter().any(|text| text == "*");
            let text = match (self.action, anybody) {
                // To refuse plaintext is what it is written for.
                (Action::Deny, true) => continue,
                (Action::Allow, true) => "everybody with an identity is excluded: it admits peers in plaintext alone".to_owned(),
                (Action::Allow, false) => format!(
                    "it only says who is not meant, and peers in plaintext have no identity: they are admitted as well, where no \
                     PeerAuthentication is STRICT; {asking} beside it asks for an identity"
                ),
                (Action::Deny, false) => format!(
                    "peers in plaintext have no identity, and so are not excepted: they are denied as well; where that is not meant, \
                     {asking} beside it leaves them to other policies"
                ),
            };
            self.found.push(warning(&pair.no.path, text));
        }
    }

    /// An ALLOW rule of which all that it says of peers is where they do not come from.
    fn nowhere_from(&mut self, sources: &[Vec<Pair<'_>>], asked: &[Pair<'_>]) {
        let mut all = sources.iter().flatten().chain(asked);
        if self.action == Action::Deny || all.any(|pair| !pair.yes.texts.is_empty()) {
            return;
        }
        let mut excluding = sources.iter().flatten().chain(asked).filter(|pair| !pair.no.texts.is_empty());
        if let Some(pair) = excluding.next() {
            let text = "all that it says of peers is where they do not come from: everybody else is admitted, also in plaintext";
            self.found.push(warning(&pair.no.path, text));
        }
    }

    /// Lists of which istiod drops every value.
    fn left(&mut self, pair: &Pair<'_>, is_read: impl Fn(&str) -> bool) {
        for values in [&pair.yes, &pair.no] {
            if !values.texts.is_empty() && !values.texts.iter().any(|text| is_read(text)) {
                let text = "none of its values can be read, and istiod drops each: what stands beside it counts without it, and alone it never matches";
                self.found.push(warning(&values.path, text));
            }
        }
    }

    /// Blocks that hold all of one IP family, and nobody of the other.
    fn families(&mut self, pair: &Pair<'_>) {
        if self.settings.istio_exact {
            self.left(pair, |text| value::block(value::without_zone(text)).is_ok());
        }
        for (values, excluded) in [(&pair.yes, false), (&pair.no, true)] {
            let blocks = values
                .texts
                .iter()
                .map(|text| value::block(text).map(|block| (block.prefix_len(), block.addr().is_ipv4())));
            let blocks: Vec<_> = blocks.collect();
            let other = |v4: bool| blocks.iter().flatten().any(|(_, family)| *family != v4);
            for (i, block) in blocks.iter().enumerate() {
                let Ok((0, v4)) = *block else { continue };
                if other(v4) {
                    continue;
                }
                let (whole, family, missing) = if v4 {
                    ("IPv4", "IPv6", "::/0")
                } else {
                    ("IPv6", "IPv4", "0.0.0.0/0")
                };
                let becomes = match (self.action, excluded) {
                    (Action::Allow, false) => format!("over {family} it admits nobody"),
                    (Action::Allow, true) => format!("over {family} it admits everybody"),
                    (Action::Deny, false) => format!("over {family} it denies nobody"),
                    (Action::Deny, true) => format!("over {family} it denies everybody"),
                };
                let text = format!("all of {whole} is in it, and nothing of {family}: {becomes}; {missing} is the rest");
                self.found.push(warning(format!("{}[{i}]", values.path), text));
            }
        }
    }

    fn principals(&mut self, pair: &Pair<'_>) {
        for (values, excluded) in [(&pair.yes, false), (&pair.no, true)] {
            // Where to hit more lets through more.
            let opens = excluded == (self.action == Action::Deny);
            for (i, text) in values.texts.iter().enumerate() {
                let told = match self.settings.istio_exact {
                    true if text.starts_with("spiffe://") => {
                        Some("it hits nothing, as identities are compared without spiffe://: write it without".into())
                    }
                    _ => None,
                };
                let told = told.or_else(|| self.other_domain(text));
                let told = told.or_else(|| unanchored(text).filter(|_| opens));
                if let Some(why) = told {
                    self.found.push(warning(format!("{}[{i}]", values.path), why));
                }
            }
        }
    }

    /// Where `cluster.local` is not the mesh's own trust domain, and does not stand for it either.
    fn other_domain(&self, text: &str) -> Option<String> {
        let own = self.settings.trust_domain.as_str();
        let named = text.starts_with("cluster.local/") && own != CLUSTER_LOCAL && !self.settings.cluster_local;
        named.then(|| {
            format!("the mesh's trust domain is {own}, and {CLUSTER_LOCAL} does not stand for it here: it hits no peer of the mesh")
        })
    }

    /// An ALLOW policy of which no rule is in force.
    fn nobody(&mut self, written: Option<usize>) {
        let why = match written {
            // That is how one is written which admits nobody.
            None => return,
            Some(0) => "it has no rules",
            Some(_) => "none of its rules is in force",
        };
        let text = format!("{why}, and it is an ALLOW policy: nobody is admitted to what it applies to whom no other ALLOW policy admits");
        self.found.push(warning("spec.rules", text));
    }
}

/// Whether nothing is left of a clause where istiod drops what L4 cannot check: such a rule never matches.
fn is_dropped(rule: &AuthorizationRule) -> bool {
    let known = [
        "source.ip",
        "source.namespace",
        "source.principal",
        "destination.ip",
        "destination.port",
    ];
    let ports = |operation: &Operation| {
        [&operation.ports, &operation.not_ports]
            .into_iter()
            .flatten()
            .any(|list| !list.is_empty())
    };
    let to = rule.to.as_deref().unwrap_or_default();
    let to_nothing = !to.is_empty() && !to.iter().any(|to| to.operation.as_ref().is_some_and(ports));
    let mut conditions = rule.when.iter().flatten();
    to_nothing || conditions.any(|condition| !known.contains(&condition.key.as_str()))
}

/// A wildcard that begins or ends within the name of a trust domain, namespace or account.
fn unanchored(text: &str) -> Option<String> {
    let within = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    match value::string(text.strip_prefix("spiffe://").unwrap_or(text)) {
        // The name of an account ends the identity: whoever leaves its end open means several.
        StringMatch::Prefix(start) if within(start.chars().next_back()) && start.matches('/').count() < STEPS => {
            let name = start.rsplit('/').next().unwrap_or_default();
            Some(format!(
                "it hits every name that begins with {name}, also a longer one: {start}/* is for {name} alone"
            ))
        }
        StringMatch::Suffix(end) if within(end.chars().next()) && end.matches('/').count() < STEPS => {
            let name = end.split('/').next().unwrap_or_default();
            Some(format!(
                "it hits every name that ends with {name}, also a longer one: */{end} is for {name} alone"
            ))
        }
        _ => None,
    }
}

fn warning(path: impl Into<String>, text: impl Into<String>) -> Warning {
    Warning {
        path: path.into(),
        text: text.into(),
    }
}

const CLUSTER_LOCAL: &str = "cluster.local";
/// `TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT`.
const STEPS: usize = 4;

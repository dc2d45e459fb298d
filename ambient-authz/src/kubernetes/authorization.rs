//! An AuthorizationPolicy into a policy.

use std::sync::Arc;

use ambient_core::PolicyKey;
use ipnet::IpNet;

use super::{
    AuthorizationPolicy, AuthorizationRule, AuthorizationSpec, Condition, Fault, Operation, ReadError, Reading, RuleFrom, RuleTo, Selector,
    Settings, Source, Unknown, Warning, head, in_dry_run, join, key, labelled, unknown_around, unknown_fields, value, whole_scope,
};
use crate::{Action, Clause, Match, Policy, Rule, Scope, ServiceAccount, StringMatch};

#[cfg(test)]
mod tests;

/// Reads an AuthorizationPolicy, all of it or none.
///
/// Every attribute of L4 is read, with its negative; also `trustDomains` and the conditions `source.trustDomain` and
/// `source.serviceAccount`, which istiod drops. An attribute that L4 cannot check makes an ALLOW rule admit nobody, and
/// a DENY rule deny without asking for it; so does a field of a rule that is not known. Each such thing is a warning.
/// One for another revision ([`Settings::concerns`]) is no policy, whatever is in it.
///
/// # Errors
/// At the first value that cannot be read. One in dry run refuses nothing ([`ReadError::dry_run`]).
pub fn read(policy: &AuthorizationPolicy, settings: &Settings) -> Result<Reading, ReadError> {
    if !settings.concerns(&policy.metadata) {
        return Ok(Reading {
            policy: None,
            selector: None,
            rules: Vec::new(),
            warnings: vec![settings.other_revision()],
        });
    }
    let namespace = policy.metadata.namespace();
    let key = key(&namespace, &policy.metadata.name);
    let default = AuthorizationSpec::default();
    let spec = policy.spec.as_ref().unwrap_or(&default);
    let dry_run = in_dry_run(&policy.metadata) == Ok(true);
    let of = |fault: Fault, (key, namespace, scope, selector): (PolicyKey, Arc<str>, Scope, Option<Selector>)| ReadError {
        dry_run,
        ..fault.of(key, namespace, scope, selector.filter(|_| !dry_run))
    };
    // The scope comes first: an error in the rest needs it.
    let whole = whole_scope(&namespace, settings);
    let (scope, selector) = match labelled(spec.selector.as_ref(), settings) {
        Ok(Some(selector)) => (Scope::Selector, Some(selector.clone())),
        // Istiod takes a selector without labels for one that selects nothing.
        Ok(None) if settings.istio_exact && spec.selector.is_some() => (Scope::Selector, None),
        Ok(None) => (whole, None),
        Err(fault) => return Err(of(fault, (key, namespace, whole, None))),
    };
    let mut reader = Reader {
        settings,
        namespace: &namespace,
        action: Action::Allow,
        whole: true,
        rules: Vec::new(),
        warnings: Vec::new(),
    };
    match reader.policy(policy, spec, &key, scope) {
        Ok(policy) => Ok(Reading {
            policy,
            selector,
            rules: reader.rules,
            warnings: reader.warnings,
        }),
        Err(fault) => Err(of(fault, (key, namespace, scope, selector))),
    }
}

struct Reader<'a> {
    settings: &'a Settings,
    namespace: &'a Arc<str>,
    action: Action,
    /// Whether every field of the spec is known.
    whole: bool,
    /// Where each rule that was read stands.
    rules: Vec<usize>,
    warnings: Vec<Warning>,
}

/// A match, and whether L4 checks all that it asks for.
type Partial = (Match, bool);

impl Reader<'_> {
    fn policy(
        &mut self,
        resource: &AuthorizationPolicy,
        spec: &AuthorizationSpec,
        key: &PolicyKey,
        scope: Scope,
    ) -> Result<Option<Policy>, Fault> {
        head(&resource.api_version, [&resource.kind, "AuthorizationPolicy"], &resource.metadata)?;
        unknown_around(&resource.unknown, &resource.metadata, &mut self.warnings);

        let dry_run = self.dry_run(resource);
        if dry_run && !self.settings.dry_run {
            self.warn(DRY_RUN_PATH, "policies in dry run are switched off: it has no effect");
            return Ok(None);
        }
        if spec.target_ref.is_some() || spec.target_refs.as_ref().is_some_and(|refs| !refs.is_empty()) {
            self.warn("spec.targetRefs", "it is for a waypoint or gateway, and has no effect at L4");
            return Ok(None);
        }
        self.action = match spec.action.as_deref() {
            None | Some("" | "ALLOW") => Action::Allow,
            Some("DENY") => Action::Deny,
            Some(action @ ("AUDIT" | "CUSTOM")) => {
                self.warn("spec.action", format!("{action} has no effect at L4"));
                return Ok(None);
            }
            Some(other) => {
                let why = format!("{other:?} is not an action: ALLOW, DENY, AUDIT or CUSTOM is wanted");
                return Err(Fault::new("spec.action", why));
            }
        };
        // One that would narrow the policy, such as a selector with a typing error, must not widen it by its absence.
        self.whole = self.known(&spec.unknown, "spec");
        if let Some(selector) = spec.selector.as_ref().filter(|_| self.settings.istio_exact) {
            unknown_fields(&selector.unknown, "spec.selector", &mut self.warnings);
        }
        if let Some(selector) = spec.selector.as_ref().filter(|selector| selector.labels().is_empty()) {
            let text = match (self.settings.istio_exact, &selector.match_labels) {
                (true, None) => "a selector without labels selects nothing",
                _ => "a selector without labels selects every workload of its scope, as if it were absent",
            };
            self.warn("spec.selector", text);
        }
        let rules = self.rules(spec)?;
        Ok(Some(Policy {
            key: key.clone(),
            namespace: self.namespace.clone(),
            scope,
            action: self.action,
            rules,
            dry_run,
        }))
    }

    fn dry_run(&mut self, resource: &AuthorizationPolicy) -> bool {
        in_dry_run(&resource.metadata).unwrap_or_else(|other| {
            self.warn(DRY_RUN_PATH, format!("{other:?} is neither true nor false: the policy is enforced"));
            false
        })
    }

    fn rules(&mut self, spec: &AuthorizationSpec) -> Result<Vec<Rule>, Fault> {
        let written = spec.rules.as_deref().unwrap_or_default();
        if written.is_empty() && self.action == Action::Deny {
            if let Some(name) = spec.unknown.names().next().filter(|_| !self.settings.istio_exact) {
                let why = "no such field is known, and there are no rules: what it would deny cannot be told";
                return Err(Fault::new(format!("spec.{name}"), why));
            }
            self.warn("spec.rules", "a DENY policy without rules denies nothing");
        }
        let mut rules = Vec::with_capacity(written.len());
        for (i, rule) in written.iter().enumerate() {
            if let Some(rule) = self.rule(rule, &format!("spec.rules[{i}]"))? {
                rules.push(rule);
                self.rules.push(i);
            }
        }
        Ok(rules)
    }

    /// A rule, unless it is one that admits nobody.
    fn rule(&mut self, rule: &AuthorizationRule, path: &str) -> Result<Option<Rule>, Fault> {
        let mut whole = self.whole & self.known(&rule.unknown, path);
        let mut clauses = Vec::new();
        let to = self.each(rule.to.as_deref(), &format!("{path}.to"), Self::operation)?;
        let from = self.each(rule.from.as_deref(), &format!("{path}.from"), Self::source)?;
        for (i, condition) in rule.when.iter().flatten().enumerate() {
            let partial = self.condition(condition, &format!("{path}.when[{i}]"))?;
            clauses.push(vec![partial]);
        }
        // The order of Istio's converter: to, from, when.
        let clauses: Vec<Clause> = [to, from]
            .into_iter()
            .filter(|partials| !partials.is_empty())
            .chain(clauses)
            .filter_map(|partials| {
                whole &= partials.iter().all(|(_, checked)| *checked);
                self.clause(partials)
            })
            .collect();
        Ok((whole || self.action == Action::Deny).then_some(Rule { clauses }))
    }

    /// A clause, unless L4 has to take it for true.
    fn clause(&self, partials: Vec<Partial>) -> Option<Clause> {
        // A match of which nothing is left is never true for the engine; here it stands for what cannot be checked, and
        // under DENY that counts as given.
        let unchecked = |(m, checked): &Partial| !checked && m.is_empty();
        if self.action == Action::Deny && !self.settings.istio_exact && partials.iter().any(unchecked) {
            return None;
        }
        Some(Clause {
            matches: partials.into_iter().map(|(m, _)| m).collect(),
        })
    }

    fn each<T>(
        &mut self,
        items: Option<&[T]>,
        path: &str,
        read: fn(&mut Self, &T, &str) -> Result<Partial, Fault>,
    ) -> Result<Vec<Partial>, Fault> {
        let Some(items) = items else { return Ok(Vec::new()) };
        if items.is_empty() && !self.settings.istio_exact {
            return Err(Fault::new(path, "it is empty: leave it out to mean all"));
        }
        let items = items.iter().enumerate();
        items.map(|(i, item)| read(self, item, &format!("{path}[{i}]"))).collect()
    }

    fn operation(&mut self, to: &RuleTo, path: &str) -> Result<Partial, Fault> {
        let outer = self.known(&to.unknown, path);
        let path = &format!("{path}.operation");
        let Some(operation) = &to.operation else {
            return Err(Fault::new(path, "it is missing"));
        };
        self.not_empty(operation.is_empty(), path)?;
        let Operation {
            ports, not_ports, unknown, ..
        } = operation;
        let mut checked = outer & self.known(unknown, path);
        for (name, list) in [
            ("hosts", &operation.hosts),
            ("notHosts", &operation.not_hosts),
            ("methods", &operation.methods),
            ("notMethods", &operation.not_methods),
            ("paths", &operation.paths),
            ("notPaths", &operation.not_paths),
        ] {
            checked &= self.unsupported(list, path, name);
        }
        let found = Match {
            destination_ports: self.ports(ports, path, "ports")?,
            not_destination_ports: self.ports(not_ports, path, "notPorts")?,
            ..Match::default()
        };
        Ok((found, checked))
    }

    fn source(&mut self, from: &RuleFrom, path: &str) -> Result<Partial, Fault> {
        let outer = self.known(&from.unknown, path);
        let path = &format!("{path}.source");
        let Some(source) = &from.source else {
            return Err(Fault::new(path, "it is missing"));
        };
        self.not_empty(source.is_empty(), path)?;
        let mut checked = outer & self.known(&source.unknown, path);
        for (name, list) in [
            ("requestPrincipals", &source.request_principals),
            ("notRequestPrincipals", &source.not_request_principals),
            ("remoteIpBlocks", &source.remote_ip_blocks),
            ("notRemoteIpBlocks", &source.not_remote_ip_blocks),
        ] {
            checked &= self.unsupported(list, path, name);
        }
        let mut found = Match {
            principals: self.principals(&source.principals, path, "principals", Side::Positive)?,
            not_principals: self.principals(&source.not_principals, path, "notPrincipals", Side::Negative)?,
            namespaces: self.strings(&source.namespaces, path, "namespaces", Side::Positive)?,
            not_namespaces: self.strings(&source.not_namespaces, path, "notNamespaces", Side::Negative)?,
            service_accounts: self.accounts(&source.service_accounts, path, "serviceAccounts")?,
            not_service_accounts: self.accounts(&source.not_service_accounts, path, "notServiceAccounts")?,
            source_ips: self.blocks(&source.ip_blocks, path, "ipBlocks")?,
            not_source_ips: self.blocks(&source.not_ip_blocks, path, "notIpBlocks")?,
            ..Match::default()
        };
        self.source_trust_domains(source, path, &mut found)?;
        self.account_combinations(source, path);
        Ok((found, checked))
    }

    /// What Istio's admission refuses, and so no cluster with it holds; where nobody asks it the fields are read as they stand.
    fn account_combinations(&mut self, source: &Source, path: &str) {
        let is_used = |list: &List| list.as_ref().is_some_and(|list| !list.is_empty());
        let accounts = [
            ("serviceAccounts", &source.service_accounts),
            ("notServiceAccounts", &source.not_service_accounts),
        ];
        let beside = [
            ("principals", &source.principals),
            ("notPrincipals", &source.not_principals),
            ("namespaces", &source.namespaces),
            ("notNamespaces", &source.not_namespaces),
        ];
        let beside: Vec<_> = beside.iter().filter(|(_, list)| is_used(list)).map(|(name, _)| *name).collect();
        if let Some((name, _)) = accounts.iter().find(|(_, list)| is_used(list))
            && !beside.is_empty()
        {
            let text = format!(
                "Istio refuses it beside {} in one source; here all of them must hold",
                beside.join(" and ")
            );
            self.warn(join(path, name), text);
        }
        for (name, list) in accounts {
            let values = list.as_ref().map_or(0, Vec::len);
            if values > MOST_ACCOUNTS {
                self.warn(
                    join(path, name),
                    format!("it has {values} values, and Istio refuses more than {MOST_ACCOUNTS}; here all count"),
                );
            }
        }
    }

    fn source_trust_domains(&mut self, source: &Source, path: &str, found: &mut Match) -> Result<(), Fault> {
        if self.settings.istio_exact {
            for (name, list) in [
                ("trustDomains", &source.trust_domains),
                ("notTrustDomains", &source.not_trust_domains),
            ] {
                if list.as_ref().is_some_and(|l| !l.is_empty()) {
                    self.warn(join(path, name), "trust domains are ignored, as istiod ignores them");
                }
            }
            return Ok(());
        }
        found.trust_domains = self.trust_domains(&source.trust_domains, path, "trustDomains", Side::Positive)?;
        found.not_trust_domains = self.trust_domains(&source.not_trust_domains, path, "notTrustDomains", Side::Negative)?;
        Ok(())
    }

    fn condition(&mut self, condition: &Condition, path: &str) -> Result<Partial, Fault> {
        let known = self.known(&condition.unknown, path);
        let (yes, no) = (&condition.values, &condition.not_values);
        let none = |list: &Option<Vec<String>>| list.as_ref().is_none_or(Vec::is_empty);
        if !self.settings.istio_exact {
            if condition.key.is_empty() {
                return Err(Fault::new(join(path, "key"), "it is missing"));
            }
            self.not_empty(none(yes) && none(no), path)?;
        }
        let mut m = Match::default();
        let (values, not_values) = ("values", "notValues");
        match condition.key.as_str() {
            "source.ip" => {
                m.source_ips = self.blocks(yes, path, values)?;
                m.not_source_ips = self.blocks(no, path, not_values)?;
            }
            "destination.ip" => {
                m.destination_ips = self.blocks(yes, path, values)?;
                m.not_destination_ips = self.blocks(no, path, not_values)?;
            }
            "destination.port" => {
                m.destination_ports = self.ports(yes, path, values)?;
                m.not_destination_ports = self.ports(no, path, not_values)?;
            }
            "source.namespace" => {
                m.namespaces = self.strings(yes, path, values, Side::Positive)?;
                m.not_namespaces = self.strings(no, path, not_values, Side::Negative)?;
            }
            "source.principal" => {
                m.principals = self.principals(yes, path, values, Side::Positive)?;
                m.not_principals = self.principals(no, path, not_values, Side::Negative)?;
            }
            "source.serviceAccount" if !self.settings.istio_exact => {
                m.service_accounts = self.accounts(yes, path, values)?;
                m.not_service_accounts = self.accounts(no, path, not_values)?;
            }
            "source.trustDomain" if !self.settings.istio_exact => {
                m.trust_domains = self.trust_domains(yes, path, values, Side::Positive)?;
                m.not_trust_domains = self.trust_domains(no, path, not_values, Side::Negative)?;
            }
            other => {
                self.warn(path, format!("{other} {}", self.unchecked()));
                return Ok((m, false));
            }
        }
        Ok((m, known))
    }
}

/// Lists of values.
impl Reader<'_> {
    fn strings(&mut self, list: &List, path: &str, name: &str, side: Side) -> Result<Vec<StringMatch>, Fault> {
        self.list(list, path, name, |reader, text, at| {
            reader.not_blank(text)?;
            let found = value::string(text);
            reader.star(&found, side, at)?;
            Ok(vec![found])
        })
    }

    fn principals(&mut self, list: &List, path: &str, name: &str, side: Side) -> Result<Vec<StringMatch>, Fault> {
        self.list(list, path, name, |reader, text, at| {
            if reader.settings.istio_exact {
                return Ok(reader.settings.names().principals(value::string(text)));
            }
            let plain = text.strip_prefix("spiffe://").unwrap_or(text);
            if plain.len() != text.len() {
                reader.warn(at, "principals are written without spiffe://; it is read without");
            }
            reader.not_blank(plain)?;
            let found = value::string(plain);
            reader.star(&found, side, at)?;
            if let Some(why) = value::principal_fault(&found) {
                reader.warn(at, why);
            }
            Ok(reader.settings.names().principals(found))
        })
    }

    fn trust_domains(&mut self, list: &List, path: &str, name: &str, side: Side) -> Result<Vec<StringMatch>, Fault> {
        self.list(list, path, name, |reader, text, at| {
            reader.not_blank(text)?;
            let found = value::string(text);
            reader.star(&found, side, at)?;
            value::trust_domain_fault(&found).map_or(Ok(()), Err)?;
            Ok(reader.settings.names().trust_domains(found))
        })
    }

    fn accounts(&mut self, list: &List, path: &str, name: &str) -> Result<Vec<ServiceAccount>, Fault> {
        self.list(list, path, name, |reader, text, _| {
            let found = value::account(text, reader.namespace);
            match value::account_fault(text, &found).filter(|_| !reader.settings.istio_exact) {
                Some(why) => Err(why),
                None => Ok(vec![found]),
            }
        })
    }

    fn ports(&mut self, list: &List, path: &str, name: &str) -> Result<Vec<u16>, Fault> {
        self.list(list, path, name, |_, text, _| Ok(vec![value::port(text)?]))
    }

    fn blocks(&mut self, list: &List, path: &str, name: &str) -> Result<Vec<IpNet>, Fault> {
        self.list(list, path, name, |reader, text, at| {
            if reader.settings.istio_exact {
                return Ok(vec![value::block(value::without_zone(text))?]);
            }
            let written = value::block(text)?;
            let found = value::canonical(written);
            if found != written {
                reader.warn(at, format!("it is read as {found}: peers are compared by their IPv4 addresses"));
            }
            Ok(vec![found])
        })
    }

    fn list<T>(
        &mut self,
        list: &List,
        path: &str,
        name: &str,
        read: impl Fn(&mut Self, &str, &str) -> Result<Vec<T>, String>,
    ) -> Result<Vec<T>, Fault> {
        if list.as_ref().is_some_and(Vec::is_empty) {
            self.warn(join(path, name), "it is empty, and so asks for nothing");
        }
        let mut found = Vec::new();
        for (i, text) in list.iter().flatten().enumerate() {
            let at = format!("{path}.{name}[{i}]");
            match read(self, text, &at) {
                Ok(values) => found.extend(values),
                Err(why) if self.settings.istio_exact => self.warn(at, format!("{why}; it is dropped, as istiod drops it")),
                Err(why) => return Err(Fault::new(at, why)),
            }
        }
        Ok(found)
    }

    fn not_blank(&self, text: &str) -> Result<(), String> {
        match text.is_empty() && !self.settings.istio_exact {
            true => Err("it is empty".into()),
            false => Ok(()),
        }
    }

    /// A star that is no wildcard hits nothing. That is safe where hitting would let through, and not where it would
    /// refuse.
    fn star(&mut self, value: &StringMatch, side: Side, at: &str) -> Result<(), String> {
        if !value::has_literal_star(value) {
            return Ok(());
        }
        let opens = match self.action {
            Action::Allow => side == Side::Negative,
            Action::Deny => side == Side::Positive,
        };
        if opens && !self.settings.istio_exact {
            return Err("a star is a wildcard only as the first or the last character, and not both; nothing would be hit".into());
        }
        self.warn(
            at,
            "a star is a wildcard only as the first or the last character, and not both: it hits nothing",
        );
        Ok(())
    }
}

/// What is said about what L4 cannot do.
impl Reader<'_> {
    fn warn(&mut self, path: impl Into<String>, text: impl Into<String>) {
        self.warnings.push(Warning {
            path: path.into(),
            text: text.into(),
        });
    }

    fn unchecked(&self) -> &'static str {
        match (self.action, self.settings.istio_exact) {
            (Action::Allow, _) => "cannot be checked at L4: the rule admits nobody (narrower than written)",
            (Action::Deny, false) => "cannot be checked at L4: the rule denies without asking for it (wider than written)",
            (Action::Deny, true) => "cannot be checked at L4: it is dropped; where nothing else is left the rule denies nothing",
        }
    }

    /// Notes an attribute that L4 cannot check; false if it is used.
    fn unsupported(&mut self, list: &List, path: &str, name: &str) -> bool {
        let absent = list.as_ref().is_none_or(Vec::is_empty);
        if !absent {
            self.warn(join(path, name), self.unchecked());
        }
        absent
    }

    /// Notes fields of a rule that are not known; false if there are any.
    fn known(&mut self, unknown: &Unknown, path: &str) -> bool {
        if self.settings.istio_exact {
            unknown_fields(unknown, path, &mut self.warnings);
            return true;
        }
        for name in unknown.names() {
            self.warn(join(path, name), format!("no such field is known; it {}", self.unchecked()));
        }
        unknown.is_empty()
    }

    fn not_empty(&self, empty: bool, path: &str) -> Result<(), Fault> {
        match empty && !self.settings.istio_exact {
            true => Err(Fault::new(path, "it is empty: what it would match cannot be told")),
            false => Ok(()),
        }
    }
}

type List = Option<Vec<String>>;

/// On which side of a field a value stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Positive,
    Negative,
}

/// Of accounts in a list Istio's admission takes so many.
const MOST_ACCOUNTS: usize = 16;
const DRY_RUN_PATH: &str = "metadata.annotations[istio.io/dry-run]";

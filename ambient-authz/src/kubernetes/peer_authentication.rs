//! PeerAuthentication: where peers must prove who they are.
//!
//! A workload that is strict refuses peers in plaintext; there is nothing else to a mode at L4 ([`Mode::Disable`] takes
//! tunnels too). Strictness is published as DENY policies and attached to workloads by key, as istiod does it. But here
//! the [`effective`] mode of each port is worked out first, by the inheritance that Istio documents (port, workload,
//! namespace, mesh), and policies and keys follow from it alone: they cannot disagree. (Istiod works them out apart, and
//! in 152 of 3,125 combinations of modes they do; [`Settings::istio_exact`] reproduces that.)

use std::{collections::BTreeMap, sync::Arc};

use ambient_core::PolicyKey;

use super::{
    Fault, Labels, MutualTls, PeerAuthentication, PeerAuthenticationSpec, ReadError, Selector, Settings, Unknown, Warning, head, join, key,
    labelled, unknown_around, unknown_fields, value, whole_scope,
};
use crate::{Action, Clause, Match, Policy, Rule, Scope, StringMatch};

mod exact;
#[cfg(test)]
mod tests;
mod timestamp;

use timestamp::Timestamp;

/// Whether peers must prove who they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mode {
    /// What the next wider level says.
    #[default]
    Unset,
    /// They need not; at L4 the same as [`Mode::Permissive`].
    Disable,
    /// They need not.
    Permissive,
    /// They must.
    Strict,
}

impl Mode {
    fn or(self, wider: Self) -> Self {
        if self == Self::Unset { wider } else { self }
    }
}

/// A PeerAuthentication that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    name: Arc<str>,
    namespace: Arc<str>,
    /// None before all others, as an object without a time counts as the oldest.
    created: Option<Timestamp>,
    selector: Option<Selector>,
    /// Whether a selector is written that has no labels, and so is none.
    bare: bool,
    mode: Mode,
    ports: BTreeMap<u16, Mode>,
}

impl Object {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The workloads of its namespace that it is for; none, all.
    pub fn selector(&self) -> Option<&Selector> {
        self.selector.as_ref()
    }
}

/// What a [`PeerAuthentication`] was read as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerReading {
    /// To be put into a [`Set`].
    pub object: Object,
    /// What stands in the resource and is not in force as it is written.
    pub warnings: Vec<Warning>,
}

/// Reads a PeerAuthentication, all of it or none.
///
/// # Errors
/// At the first value that cannot be read: a mode that is not known, a port, `portLevelMtls` without a selector (it
/// would have no effect), a field that is not known where not all is strict. The error's key is [`unreadable_key`]. An object that was good before stays in its [`Set`], and
/// the error is told as [`Update::Kept`](crate::policy::Update::Kept); where there was none, as
/// [`Update::Unreadable`](crate::policy::Update::Unreadable), and its selector's workloads list the key.
pub fn read(resource: &PeerAuthentication, settings: &Settings) -> Result<PeerReading, ReadError> {
    let namespace = resource.metadata.namespace();
    let key = unreadable_key(&namespace, &resource.metadata.name);
    let default = PeerAuthenticationSpec::default();
    let spec = resource.spec.as_ref().unwrap_or(&default);
    let whole = whole_scope(&namespace, settings);
    let selector = match labelled(spec.selector.as_ref(), settings) {
        Ok(selector) => selector.filter(|selector| !selector.labels().is_empty()).cloned(),
        Err(fault) => return Err(fault.of(key, namespace, whole, None)),
    };
    let scope = if selector.is_some() { Scope::Selector } else { whole };
    let mut warnings = Vec::new();
    match object(resource, spec, selector.clone(), settings, &mut warnings) {
        Ok(object) => Ok(PeerReading { object, warnings }),
        Err(fault) => Err(fault.of(key, namespace, scope, selector)),
    }
}

/// Tells what of a PeerAuthentication is in force as it is written, and is seldom meant so.
///
/// See [`kubernetes::traps`](super::traps()).
pub fn traps(resource: &PeerAuthentication, settings: &Settings) -> Vec<Warning> {
    match read(resource, settings) {
        Ok(_) if settings.concerns(&resource.metadata) => super::traps::of_peer_authentication(resource, settings),
        _ => Vec::new(),
    }
}

/// The key that a PeerAuthentication goes by where it cannot be read; no resource can have such a name.
pub fn unreadable_key(namespace: &str, name: &str) -> PolicyKey {
    key(namespace, &format!("peer_authentication_{name}"))
}

fn object(
    resource: &PeerAuthentication,
    spec: &PeerAuthenticationSpec,
    selector: Option<Selector>,
    settings: &Settings,
    warnings: &mut Vec<Warning>,
) -> Result<Object, Fault> {
    head(&resource.api_version, [&resource.kind, "PeerAuthentication"], &resource.metadata)?;
    unknown_around(&resource.unknown, &resource.metadata, warnings);
    unknown_fields(&spec.unknown, "spec", warnings);

    let namespace = resource.metadata.namespace();
    let created = resource.metadata.creation_timestamp.as_deref().map(str::parse).transpose();
    let created = created.map_err(|why: String| Fault::new("metadata.creationTimestamp", why))?;
    let mode = spec
        .mtls
        .as_ref()
        .map_or(Ok(Mode::Unset), |mtls| mode(mtls, "spec.mtls", warnings))?;
    let mut ports = BTreeMap::new();
    for (text, mtls) in spec.port_level_mtls.iter().flatten() {
        let path = format!("spec.portLevelMtls[{text}]");
        let port = value::port(text).and_then(|p| match p {
            0 => Err("0 is not a port that can be reached".into()),
            _ => Ok(p),
        });
        let port = port.map_err(|why| Fault::new(&path, why))?;
        if ports.insert(port, self::mode(mtls, &path, warnings)?).is_some() {
            return Err(Fault::new(path, format!("port {port} stands there twice")));
        }
    }
    if selector.is_none() && !ports.is_empty() {
        let why = "it needs a selector with labels: Istio takes modes of ports for selected workloads only";
        if !settings.istio_exact {
            return Err(Fault::new("spec.portLevelMtls", why));
        }
        ports.clear();
        warnings.push(Warning {
            path: "spec.portLevelMtls".into(),
            text: format!("it is ignored, as istiod ignores it: {why}"),
        });
    }
    let strict = mode == Mode::Strict && ports.values().all(|m| matches!(m, Mode::Strict | Mode::Unset));
    if let Some(path) = first_unknown(resource, spec).filter(|_| !strict && !settings.istio_exact) {
        // It could be `mtls` itself with a typing error, or `spec`. Where all is strict already it could not ask for more.
        return Err(Fault::new(
            path,
            "no such field is known, and whether it asks for more than is written here cannot be told",
        ));
    }
    if selector.is_some() && *namespace == *settings.root_namespace {
        warnings.push(Warning {
            path: "spec.selector".into(),
            text: "in the root namespace a PeerAuthentication with a selector has no effect".into(),
        });
    }
    Ok(Object {
        name: resource.metadata.name.as_str().into(),
        namespace,
        created,
        bare: selector.is_none() && spec.selector.is_some(),
        selector,
        mode,
        ports,
    })
}

/// Where the first field stands that is not known, of the spec, or beside it where there is none.
fn first_unknown(resource: &PeerAuthentication, spec: &PeerAuthenticationSpec) -> Option<String> {
    let of = |unknown: &Unknown, path: &str| unknown.names().next().map(|name| join(path, name));
    let of_mtls = spec.mtls.iter().map(|mtls| (mtls, "spec.mtls".to_owned()));
    let ports = spec.port_level_mtls.iter().flatten();
    let mut all = of_mtls.chain(ports.map(|(port, mtls)| (mtls, format!("spec.portLevelMtls[{port}]"))));
    let beside = of(&resource.unknown, "").filter(|_| resource.spec.is_none());
    beside
        .or_else(|| of(&spec.unknown, "spec"))
        .or_else(|| all.find_map(|(mtls, path)| of(&mtls.unknown, &path)))
}

fn mode(mtls: &MutualTls, path: &str, warnings: &mut Vec<Warning>) -> Result<Mode, Fault> {
    unknown_fields(&mtls.unknown, path, warnings);
    Ok(match mtls.mode.as_deref() {
        None | Some("" | "UNSET") => Mode::Unset,
        Some("DISABLE") => Mode::Disable,
        Some("PERMISSIVE") => Mode::Permissive,
        Some("STRICT") => Mode::Strict,
        Some(other) => {
            let why = format!("{other:?} is not a mode: UNSET, DISABLE, PERMISSIVE or STRICT is wanted");
            return Err(Fault::new(join(path, "mode"), why));
        }
    })
}

/// Every PeerAuthentication of a mesh.
#[derive(Clone, Debug)]
pub struct Set {
    root: Arc<str>,
    istio_exact: bool,
    /// By namespace, the oldest first, and of the same age by name.
    objects: BTreeMap<Arc<str>, Vec<Object>>,
}

impl Set {
    /// The set of some objects; of two with the same name and namespace the later counts.
    pub fn new(settings: &Settings, objects: impl IntoIterator<Item = Object>) -> Self {
        let mut by_name: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
        for object in objects {
            let space = by_name.entry(object.namespace.clone()).or_default();
            space.insert(object.name.clone(), object);
        }
        let oldest_first = |space: BTreeMap<Arc<str>, Object>| {
            let mut objects: Vec<_> = space.into_values().collect();
            // Stable: of the same age the first by name.
            objects.sort_by_key(|o| o.created);
            objects
        };
        Self {
            root: settings.root_namespace.clone(),
            istio_exact: settings.istio_exact,
            objects: by_name.into_iter().map(|(ns, space)| (ns, oldest_first(space))).collect(),
        }
    }

    /// Puts one in; it takes the place of one with the same name and namespace.
    pub fn insert(&mut self, object: Object) {
        let space = self.objects.entry(object.namespace.clone()).or_default();
        space.retain(|other| other.name != object.name);
        let at = space.partition_point(|other| (other.created, &other.name) < (object.created, &object.name));
        space.insert(at, object);
    }

    /// Takes one out; whether there was one of this name.
    pub fn remove(&mut self, namespace: &str, name: &str) -> bool {
        let was_there = self.contains(namespace, name);
        if let Some(space) = self.objects.get_mut(namespace) {
            space.retain(|object| *object.name != *name);
            if space.is_empty() {
                self.objects.remove(namespace);
            }
        }
        was_there
    }

    pub(super) fn contains(&self, namespace: &str, name: &str) -> bool {
        self.of(namespace).iter().any(|object| *object.name == *name)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    pub(super) fn is_istio_exact(&self) -> bool {
        self.istio_exact
    }

    /// The mode of a namespace: its own, else the mesh's; permissive where neither says anything.
    fn parent(&self, namespace: &str) -> Mode {
        let mode = |object: Option<&Object>| object.map(|o| o.mode).unwrap_or_default();
        mode(self.for_all_of(namespace))
            .or(mode(self.for_mesh(namespace)))
            .or(Mode::Permissive)
    }

    /// The object for all of a namespace, if there is one.
    fn for_all_of(&self, namespace: &str) -> Option<&Object> {
        self.of(namespace).iter().find(|o| o.selector.is_none())
    }

    /// The object for the whole mesh, as a namespace sees it: istiod has none with a selector for others than the root's own.
    fn for_mesh(&self, namespace: &str) -> Option<&Object> {
        let hidden = |o: &Object| self.istio_exact && o.bare && *namespace != *self.root;
        self.of(&self.root).iter().find(|o| o.selector.is_none() && !hidden(o))
    }

    /// The object for the workloads with these labels alone.
    fn of_workload(&self, namespace: &str, labels: &Labels) -> Option<&Object> {
        let selects = |o: &&Object| o.selector.as_ref().is_some_and(|s| s.selects(labels));
        self.selecting(namespace).find(selects)
    }

    /// The objects that are for some workloads of a namespace; in the root namespace a selector selects nothing.
    pub(super) fn selecting(&self, namespace: &str) -> impl Iterator<Item = &Object> {
        let own = self.of(namespace).iter().filter(|o| o.selector.is_some());
        own.filter(|o| *o.namespace != *self.root)
    }

    fn of(&self, namespace: &str) -> &[Object] {
        self.objects.get(namespace).map_or(&[], Vec::as_slice)
    }

    /// What an object makes of the workloads that it is for.
    fn strictness(&self, object: &Object) -> Strictness {
        let base = object.mode.or(self.parent(&object.namespace));
        Strictness::new(base, &object.ports)
    }
}

/// The mode of a port of a workload, never [`Mode::Unset`].
///
/// The port's own mode, else the workload's, else its namespace's, else the mesh's, else permissive. At each level the
/// oldest object counts, as Istio documents it. A selector in the root namespace selects nothing.
pub fn effective(set: &Set, namespace: &str, labels: &Labels, port: u16) -> Mode {
    let (own, workload) = match set.of_workload(namespace, labels) {
        Some(object) => (object.ports.get(&port).copied().unwrap_or_default(), object.mode),
        None => (Mode::Unset, Mode::Unset),
    };
    own.or(workload).or(set.parent(namespace))
}

/// The object by which peers must prove who they are on a port of a workload, if they must: the nearest that has a mode.
///
/// Without a port, the one by which they must on all ports that have no mode of their own.
pub fn strict_by<'a>(set: &'a Set, namespace: &str, labels: &Labels, port: Option<u16>) -> Option<&'a Object> {
    let workload = set.of_workload(namespace, labels);
    let of_workload = workload.into_iter().flat_map(|object| {
        let own = port.and_then(|port| object.ports.get(&port).copied());
        [own.unwrap_or_default(), object.mode].map(|mode| (object, mode))
    });
    let wider = [set.for_all_of(namespace), set.for_mesh(namespace)].into_iter().flatten();
    let mut all = of_workload.chain(wider.map(|object| (object, object.mode)));
    let (object, mode) = all.find(|(_, mode)| *mode != Mode::Unset)?;
    (mode == Mode::Strict).then_some(object)
}

/// The policies to publish, in the order of their keys: `ROOT/istio_converted_static_strict` while there is any object,
/// and `NAMESPACE/converted_peer_authentication_NAME` for each object whose ports differ.
pub fn policies(set: &Set) -> Vec<Policy> {
    if set.is_empty() {
        return Vec::new();
    }
    let everywhere = vec![Rule {
        clauses: vec![plaintext().into()],
    }];
    let mut all = vec![deny(static_key(&set.root), set.root.clone(), everywhere)];
    for object in set.objects.values().flatten().filter(|o| *o.namespace != *set.root) {
        if object.selector.is_none() {
            continue;
        }
        let rules = match (set.istio_exact, set.strictness(object)) {
            (true, _) => exact::converted(set, object),
            (false, Strictness::Ports(rules)) => rules,
            (false, _) => continue,
        };
        if !rules.is_empty() {
            all.push(deny(converted_key(object), object.namespace.clone(), rules));
        }
    }
    all.sort_by(|a, b| a.key.cmp(&b.key));
    all
}

/// The keys of those [`policies`] that a workload lists.
pub fn keys(set: &Set, namespace: &str, labels: &Labels) -> Vec<PolicyKey> {
    let object = set.of_workload(namespace, labels);
    let listed = match object {
        Some(object) if set.istio_exact => exact::listed(set, object),
        Some(object) => set.strictness(object).listed(),
        None => Strictness::new(set.parent(namespace), &BTreeMap::new()).listed(),
    };
    match (listed, object) {
        (Listed::Static, _) => vec![static_key(&set.root)],
        (Listed::Converted, Some(object)) => vec![converted_key(object)],
        (Listed::Converted | Listed::Nothing, _) => Vec::new(),
    }
}

/// Which ports of a workload refuse plaintext.
enum Strictness {
    Nowhere,
    Everywhere,
    /// Some, by the rules of a DENY policy.
    Ports(Vec<Rule>),
}

/// What a workload lists: never both, for an exemption beside the static policy would be void.
enum Listed {
    Nothing,
    Static,
    Converted,
}

impl Strictness {
    fn listed(&self) -> Listed {
        match self {
            Self::Nowhere => Listed::Nothing,
            Self::Everywhere => Listed::Static,
            Self::Ports(_) => Listed::Converted,
        }
    }

    fn new(base: Mode, ports: &BTreeMap<u16, Mode>) -> Self {
        let strict_base = base == Mode::Strict;
        let differing: Vec<u16> = ports
            .iter()
            .filter(|(_, mode)| (mode.or(base) == Mode::Strict) != strict_base)
            .map(|(port, _)| *port)
            .collect();
        match (strict_base, differing.is_empty()) {
            (true, true) => Self::Everywhere,
            (false, true) => Self::Nowhere,
            (true, false) => Self::Ports(vec![plaintext_except(differing)]),
            (false, false) => Self::Ports(differing.into_iter().map(plaintext_on).collect()),
        }
    }
}

/// Peers without an identity.
fn plaintext() -> Match {
    Match {
        not_principals: vec![StringMatch::Presence],
        ..Match::default()
    }
}

/// A clause for each port, as each must differ.
fn plaintext_except(ports: impl IntoIterator<Item = u16>) -> Rule {
    let not_port = |port| Match {
        not_destination_ports: vec![port],
        ..Match::default()
    };
    let mut clauses: Vec<Clause> = ports.into_iter().map(|port| not_port(port).into()).collect();
    clauses.push(plaintext().into());
    Rule { clauses }
}

/// For several ports a rule each, as any may be the one.
fn plaintext_on(port: u16) -> Rule {
    let found = Match {
        destination_ports: vec![port],
        ..plaintext()
    };
    Rule {
        clauses: vec![found.into()],
    }
}

fn deny(key: PolicyKey, namespace: Arc<str>, rules: Vec<Rule>) -> Policy {
    Policy {
        key,
        namespace,
        scope: Scope::Selector,
        action: Action::Deny,
        rules,
        dry_run: false,
    }
}

fn static_key(root: &str) -> PolicyKey {
    key(root, "istio_converted_static_strict")
}

fn converted_key(object: &Object) -> PolicyKey {
    key(&object.namespace, &format!("converted_peer_authentication_{}", object.name))
}

//! The objects that stand in a file.

use std::io;

use ambient_authz::kubernetes::{AuthorizationPolicy, Envelope, PeerAuthentication};

use super::tree::{Node, TextError, Value, documents};
use crate::objects::{Bare, Kind, Object, ObjectKey, REDIRECTION};

/// What a file holds.
#[derive(Debug, Default)]
pub(crate) struct Content {
    pub(crate) items: Vec<Item>,
    /// `apiVersion kind` of those that are not read, each once.
    pub(crate) unknown: Vec<String>,
    /// What is ignored, and where.
    pub(crate) ignored: Vec<Ignored>,
    /// Objects that are not what they must be. Nothing else of the file is affected.
    pub(crate) broken: Vec<(ObjectKey, TextError)>,
}

/// What is ignored, unless it is of a certain node.
#[derive(Debug)]
pub(crate) struct Ignored {
    /// The node of the pod that it stands at.
    pub(crate) node: Option<String>,
    pub(crate) what: TextError,
}

/// An object, and where it stands.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) key: ObjectKey,
    pub(crate) object: Object,
    pub(crate) line: u64,
    places: Places,
}

impl Item {
    /// The line of a field, or of what is nearest to it.
    pub(crate) fn line_of(&self, path: &str) -> u64 {
        match &self.places {
            Places::Whole(node) => node.line_of(path),
            Places::Lines(lines) => {
                let within = |place: &&(&str, u64)| {
                    let rest = path.strip_prefix(place.0);
                    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[', ' ']))
                };
                let longest = lines.iter().filter(within).max_by_key(|(place, _)| place.len());
                longest.map_or(self.line, |(_, line)| *line)
            }
        }
    }
}

/// Where the fields of an object stand.
#[derive(Debug)]
enum Places {
    /// The text of a policy: a value in it may turn out not to be readable.
    Whole(Node),
    /// Of the fields that something else is said of, their lines.
    Lines(Box<[(&'static str, u64)]>),
}

impl Places {
    fn of(kind: Kind, node: Node) -> Self {
        if kind.is_policy() {
            return Self::Whole(node);
        }
        let more: &[&str] = match kind {
            Kind::Service => &["spec.trafficDistribution"],
            Kind::ServiceEntry => &["spec.addresses", "spec.endpoints"],
            Kind::EndpointSlice => &["endpoints"],
            Kind::Gateway => &["status.addresses"],
            Kind::ConfigMap => &["data.mesh", "data.meshNetworks"],
            _ => &[],
        };
        let fields = ["metadata.name", "metadata.uid", "metadata.labels", "metadata.annotations"];
        let mut lines: Vec<(&'static str, u64)> = fields.iter().chain(more).map(|path| (*path, node.line_of(path))).collect();
        let meta = node.field("metadata");
        for path in KEYED {
            let inner = path.strip_suffix(']').and_then(|path| path.split_once('['));
            let found = inner.and_then(|(of, key)| meta?.field(of.strip_prefix("metadata.")?)?.field(key));
            lines.extend(found.map(|node| (path, node.line)));
        }
        Self::Lines(lines.into())
    }
}

/// See [`crate::fuzz`].
#[cfg(feature = "fuzz")]
pub(crate) fn fuzz(data: &[u8]) {
    let content = match read(data) {
        Ok(Ok(content)) => content,
        Ok(Err(error)) => return assert!(!error.why.is_empty()),
        Err(_) => return,
    };
    assert!(content.broken.iter().all(|(_, error)| !error.why.is_empty()));
    let items: Vec<_> = content.items.into_iter().map(|item| (item.key, item.object)).collect();
    let mut objects = crate::objects::Objects::new(crate::objects::Settings::default());
    for _ in 0..2 {
        items.iter().for_each(|(_, object)| objects.set(object.clone()));
        let _ = (objects.changes(), objects.warnings(), objects.unread().count());
    }
    items.iter().for_each(|(_, object)| objects.set(object.clone()));
    let again = objects.changes();
    assert!(again.is_empty(), "{again:?}");
    items.iter().for_each(|(key, _)| objects.remove(key));
    let _ = (objects.changes(), objects.warnings());
    assert!(objects.is_empty());
}

/// Reads every object of a file, or says what is wrong with the first that is none. The outer error is that of
/// [`documents`].
pub(crate) fn read(content: &[u8]) -> io::Result<Result<Content, TextError>> {
    Ok(documents(content)?.and_then(read_nodes))
}

fn read_nodes(nodes: Vec<Node>) -> Result<Content, TextError> {
    let mut content = Content::default();
    for node in nodes {
        read_node(node, &mut content, 0)?;
    }
    Ok(content)
}

fn read_node(node: Node, content: &mut Content, depth: usize) -> Result<(), TextError> {
    let need = |field: &str, why: &str| TextError {
        line: node.line_of(field),
        path: field.into(),
        why: why.into(),
    };
    if !matches!(node.value, Value::Map(_)) {
        return Err(need("", "a Kubernetes object is wanted here, with apiVersion, kind and metadata"));
    }
    let api_version = node
        .text("apiVersion")
        .ok_or_else(|| need("apiVersion", "is missing, or is not a text"))?;
    let kind = node.text("kind").ok_or_else(|| need("kind", "is missing, or is not a text"))?;
    let (group, _) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    if Kind::is_of_group(group) && kind.ends_with("List") {
        return read_list(node, content, depth);
    }
    let of_kind = match Kind::of(api_version, kind) {
        Ok(of_kind) => of_kind,
        Err(invalid) => {
            let error = need(&invalid.path, &invalid.why);
            let key = Kind::named(group, kind).filter(|kind| !kind.is_policy());
            let key = key.and_then(|kind| key_of(kind, &node)).ok_or_else(|| error.clone())?;
            content.broken.push((key, error));
            return Ok(());
        }
    };
    let Some(kind) = of_kind else {
        let unknown = format!("{api_version} {kind}");
        if !content.unknown.contains(&unknown) {
            content.unknown.push(unknown);
        }
        return Ok(());
    };
    let (key, read) = match object(kind, &node) {
        Ok(object) => match object.check() {
            Ok(()) => (object.key(), Ok(object)),
            Err(invalid) => {
                let error = TextError {
                    line: node.line_of(&invalid.path),
                    path: invalid.path,
                    why: invalid.why,
                };
                (object.key(), Err(error))
            }
        },
        // A policy that does not even say which it is could be any.
        Err(error) if kind.is_policy() => return Err(error),
        Err(error) => (key_of(kind, &node).ok_or_else(|| error.clone())?, Err(error)),
    };
    let object = match read {
        Ok(object) => object,
        Err(error) if kind.is_policy() => return Err(error),
        Err(error) => {
            content.broken.push((key, error));
            return Ok(());
        }
    };
    if REDIRECTED.contains(&kind) && is_redirected(&node) {
        let path = format!("metadata.annotations[{REDIRECTION}]");
        let on = node.field("spec").and_then(|spec| spec.text("nodeName"));
        content.ignored.push(Ignored {
            node: on.filter(|_| kind == Kind::Pod).map(ToOwned::to_owned),
            what: TextError {
                line: node.line_of("metadata.annotations"),
                path,
                why: "is ignored: what is captured is told by status/NODE.json alone, but on the nodes of a ztunnel".into(),
            },
        });
    }
    content.items.push(Item {
        key,
        object,
        line: node.line,
        places: Places::of(kind, node),
    });
    Ok(())
}

/// The key of what cannot be read any further; none where not even that is a key.
fn key_of(kind: Kind, node: &Node) -> Option<ObjectKey> {
    let meta = node.field("metadata")?;
    let name = meta.text("name").filter(|name| !name.is_empty())?;
    let namespace = match meta.field("namespace").map(|node| &node.value) {
        None | Some(Value::Null) => "default",
        Some(Value::Text(namespace)) => namespace,
        Some(_) => return None,
    };
    Some(kind.key(namespace, name))
}

fn is_redirected(node: &Node) -> bool {
    let annotations = node.field("metadata").and_then(|meta| meta.field("annotations"));
    annotations.is_some_and(|annotations| annotations.field(REDIRECTION).is_some())
}

fn read_list(node: Node, content: &mut Content, depth: usize) -> Result<(), TextError> {
    let line = node.line_of("items");
    let error = |why: &str| TextError {
        line,
        path: "items".into(),
        why: why.into(),
    };
    if depth == MAX_LISTS {
        return Err(error("lists within lists within lists are not read"));
    }
    let Value::Map(fields) = node.value else { return Ok(()) };
    let items = fields.into_iter().find(|(key, _)| key == "items").map(|(_, node)| node.value);
    match items {
        Some(Value::List(items)) => {
            for (at, item) in items.into_iter().enumerate() {
                let within = |e: &mut TextError| {
                    let dot = if e.path.is_empty() { "" } else { "." };
                    e.path = format!("items[{at}]{dot}{}", e.path);
                };
                let before = content.broken.len();
                let read = read_node(item, content, depth + 1);
                content.broken[before..].iter_mut().for_each(|(_, e)| within(e));
                read.map_err(|mut e| {
                    within(&mut e);
                    e
                })?;
            }
            Ok(())
        }
        Some(Value::Null) => Ok(()),
        _ => Err(error("is missing, or is not a list")),
    }
}

fn object(kind: Kind, node: &Node) -> Result<Object, TextError> {
    Ok(match kind {
        Kind::Namespace => Object::Namespace(node.read::<Bare>()?),
        Kind::ServiceAccount => Object::ServiceAccount(node.read::<Bare>()?),
        Kind::Pod => Object::Pod(node.read()?),
        Kind::Node => Object::Node(node.read::<Bare>()?),
        Kind::ConfigMap => Object::ConfigMap(node.read()?),
        Kind::Service => Object::Service(node.read()?),
        Kind::EndpointSlice => Object::EndpointSlice(node.read()?),
        Kind::ServiceEntry => Object::ServiceEntry(node.read()?),
        Kind::WorkloadEntry => Object::WorkloadEntry(node.read()?),
        Kind::Gateway => Object::Gateway(node.read()?),
        Kind::GatewayClass => Object::GatewayClass(node.read::<Bare>()?),
        Kind::AuthorizationPolicy => match node.read::<AuthorizationPolicy>() {
            Ok(policy) => Object::AuthorizationPolicy(Box::new(policy)),
            Err(error) => misshapen(node, error)?,
        },
        Kind::PeerAuthentication => match node.read::<PeerAuthentication>() {
            Ok(policy) => Object::PeerAuthentication(Box::new(policy)),
            Err(error) => misshapen(node, error)?,
        },
    })
}

/// A policy that says which it is, and nothing else that can be read, refuses its scope; one that does not even say
/// that refuses the file.
fn misshapen(node: &Node, error: TextError) -> Result<Object, TextError> {
    Ok(Object::Misshapen {
        envelope: Box::new(node.read::<Envelope>()?),
        path: error.path,
        why: error.why,
    })
}

/// Labels and annotations that something may be said of.
const KEYED: [&str; 8] = [
    "metadata.labels[istio.io/use-waypoint]",
    "metadata.labels[istio.io/use-waypoint-canary]",
    "metadata.labels[istio.io/ingress-use-waypoint]",
    "metadata.labels[istio.io/waypoint-for]",
    "metadata.annotations[istio.io/use-waypoint-canary-weight]",
    "metadata.annotations[ambient.istio.io/waypoint-inbound-binding]",
    "metadata.annotations[networking.istio.io/traffic-distribution]",
    "metadata.annotations[ambient.istio.io/redirection]",
];
/// What it could stand at.
const REDIRECTED: [Kind; 3] = [Kind::Pod, Kind::WorkloadEntry, Kind::ServiceEntry];
/// How deep lists may stand in lists.
const MAX_LISTS: usize = 2;

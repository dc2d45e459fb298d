//! The objects that stand in a file.

use std::{io, thread};

use ambient_authz::kubernetes::{AuthorizationPolicy, Envelope, PeerAuthentication};

use super::tree::{Node, TextError, Value, documents};
use crate::objects::{Bare, Kind, Object, ObjectKey};

/// What a file holds.
#[derive(Debug, Default)]
pub(crate) struct Content {
    pub(crate) items: Vec<Item>,
    /// `apiVersion kind` of those that are not read, each once.
    pub(crate) unknown: Vec<String>,
    /// What is ignored, and where.
    pub(crate) ignored: Vec<TextError>,
}

/// An object, and where it stands.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) key: ObjectKey,
    pub(crate) object: Object,
    pub(crate) line: u64,
    /// The text of a policy, to find the line of a value that cannot be read.
    pub(crate) node: Option<Node>,
}

/// Reads every object of a file, or says what is wrong with the first that is none.
///
/// The parser calls itself for every level of nesting, and needs up to 40 kB for each, more than the stack of a runtime's
/// thread holds: it gets a thread of its own. The outer error is that there is none to be had.
pub(crate) fn read(content: &[u8]) -> io::Result<Result<Content, TextError>> {
    let parser = thread::Builder::new().name("manifests".into()).stack_size(PARSER_STACK);
    thread::scope(|scope| {
        let parser = parser.spawn_scoped(scope, || read_bytes(content))?;
        Ok(parser.join().unwrap_or_else(|_| {
            Err(TextError {
                line: 0,
                path: String::new(),
                why: "made its parser fail: please report this with the file".into(),
            })
        }))
    })
}

fn read_bytes(content: &[u8]) -> Result<Content, TextError> {
    let text = std::str::from_utf8(content).map_err(|error| {
        let before = &content[..error.valid_up_to()];
        TextError {
            line: 1 + before.iter().filter(|b| **b == b'\n').count() as u64,
            path: String::new(),
            why: "is no text: a byte is not UTF-8".into(),
        }
    })?;
    let mut content = Content::default();
    for node in documents(text)? {
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
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    if matches!(group, "" | "security.istio.io") && kind.ends_with("List") {
        return read_list(node, content, depth);
    }
    let Some((kind, versions)) = known(group, kind) else {
        if is_almost_policy(group, kind) {
            let why = format!("{api_version} {kind} is no kind: AuthorizationPolicy and PeerAuthentication of security.istio.io/v1 are");
            return Err(need("kind", &why));
        }
        let unknown = format!("{api_version} {kind}");
        if !content.unknown.contains(&unknown) {
            content.unknown.push(unknown);
        }
        return Ok(());
    };
    if !versions.contains(&version) {
        // One that is passed over could be a policy that refuses something.
        let why = format!("{api_version:?} is not known for {kind}: {} is wanted", versions.join(" or "));
        return Err(need("apiVersion", &why));
    }
    let object = object(kind, &node)?;
    object.check().map_err(|invalid| TextError {
        line: node.line_of(&invalid.path),
        path: invalid.path,
        why: invalid.why,
    })?;
    if let Object::Pod(pod) = &object
        && pod.metadata.annotations.contains_key(REDIRECTION)
    {
        let path = format!("metadata.annotations[{REDIRECTION}]");
        content.ignored.push(TextError {
            line: node.line_of("metadata.annotations"),
            path,
            why: "is ignored: what is captured is told by status/NODE.json alone".into(),
        });
    }
    let policy = matches!(kind, Kind::AuthorizationPolicy | Kind::PeerAuthentication);
    content.items.push(Item {
        key: object.key(),
        object,
        line: node.line,
        node: policy.then_some(node),
    });
    Ok(())
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
                read_node(item, content, depth + 1).map_err(|mut e| {
                    let dot = if e.path.is_empty() { "" } else { "." };
                    e.path = format!("items[{at}]{dot}{}", e.path);
                    e
                })?;
            }
            Ok(())
        }
        Some(Value::Null) => Ok(()),
        _ => Err(error("is missing, or is not a list")),
    }
}

fn known(group: &str, kind: &str) -> Option<(Kind, &'static [&'static str])> {
    Some(match (group, kind) {
        ("", "Namespace") => (Kind::Namespace, &["v1"]),
        ("", "ServiceAccount") => (Kind::ServiceAccount, &["v1"]),
        ("", "Pod") => (Kind::Pod, &["v1"]),
        ("", "Service") => (Kind::Service, &["v1"]),
        ("security.istio.io", "AuthorizationPolicy") => (Kind::AuthorizationPolicy, &["v1", "v1beta1"]),
        ("security.istio.io", "PeerAuthentication") => (Kind::PeerAuthentication, &["v1", "v1beta1"]),
        _ => return None,
    })
}

/// Whether what is no policy was surely meant as one: passing it over would let through what it refuses.
fn is_almost_policy(group: &str, kind: &str) -> bool {
    let policy = ["AuthorizationPolicy", "PeerAuthentication"]
        .iter()
        .any(|p| p.eq_ignore_ascii_case(kind));
    match group {
        // It validates tokens, which is not for L4.
        "security.istio.io" => kind != "RequestAuthentication",
        "" => policy,
        _ => policy && group.ends_with("istio.io"),
    }
}

fn object(kind: Kind, node: &Node) -> Result<Object, TextError> {
    Ok(match kind {
        Kind::Namespace => Object::Namespace(node.read::<Bare>()?),
        Kind::ServiceAccount => Object::ServiceAccount(node.read::<Bare>()?),
        Kind::Pod => Object::Pod(node.read()?),
        Kind::Service => Object::Service(node.read()?),
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

/// Where a control plane with an API server finds what is captured.
const REDIRECTION: &str = "ambient.istio.io/redirection";
/// Eight times what the deepest nesting needs that is read at all.
const PARSER_STACK: usize = 32 << 20;
/// How deep lists may stand in lists.
const MAX_LISTS: usize = 2;

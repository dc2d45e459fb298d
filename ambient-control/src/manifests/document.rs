//! The objects that stand in a file.

use std::io;

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
    if matches!(group, "" | "security.istio.io") && kind.ends_with("List") {
        return read_list(node, content, depth);
    }
    let of_kind = Kind::of(api_version, kind).map_err(|invalid| need(&invalid.path, &invalid.why))?;
    let Some(kind) = of_kind else {
        let unknown = format!("{api_version} {kind}");
        if !content.unknown.contains(&unknown) {
            content.unknown.push(unknown);
        }
        return Ok(());
    };
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
/// How deep lists may stand in lists.
const MAX_LISTS: usize = 2;

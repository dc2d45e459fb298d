//! The ConfigMap `istio`: what it says of the whole mesh.

use std::{path::Path, sync::Arc};

use ambient_core::{Network, TrustDomain};

use super::{
    OpenError, directory, document,
    tree::{self, Node, TextError, Value},
};
use crate::objects::{ConfigMap, Object};

/// What the ConfigMap `istio` of `istio-system` says of the mesh: of its text `mesh` the fields `trustDomain`,
/// `trustDomainAliases` and `rootNamespace`, of `meshNetworks` the network whose endpoints come from a registry of the
/// cluster's name. Nothing else of it is read.
///
/// It is read once, before a directory is [opened](super::Manifests::open): what a mesh trusts does not change while it runs.
/// One that says something else later is a fault until the next start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MeshConfig {
    /// The trust domain of every identity.
    pub trust_domain: Option<TrustDomain>,
    /// Other names of the trust domain in policies.
    pub trust_domain_aliases: Vec<TrustDomain>,
    /// The namespace whose policies hold for the whole mesh.
    pub root_namespace: Option<Arc<str>>,
    /// The network of the cluster's addresses.
    pub network: Option<Network>,
}

impl MeshConfig {
    /// Reads the ConfigMap of a directory, if there is one; without one nothing is said. A directory and files that cannot be
    /// read are left to whoever opens the directory.
    ///
    /// # Errors
    /// When the ConfigMap says something that cannot be: it decides who is trusted.
    pub fn read(dir: &Path, cluster_id: &str) -> Result<Self, OpenError> {
        let names = directory::names(dir, &["yaml", "yml", "json"]).unwrap_or_default();
        for name in names {
            let path = dir.join(&name);
            let Ok((content, _)) = directory::read(&path) else { continue };
            let Ok(Ok(content)) = document::read(&content) else { continue };
            for item in content.items {
                let Object::ConfigMap(object) = &item.object else { continue };
                if !is_mesh_config(object) {
                    continue;
                }
                return Self::of(object, cluster_id).map_err(|error| OpenError::File {
                    what: format!("{}:{}: {error}", path.display(), item.line_of(&error.path)),
                });
            }
        }
        Ok(Self::default())
    }

    /// What a ConfigMap says; lines of errors are those of its texts.
    pub(super) fn of(object: &ConfigMap, cluster_id: &str) -> Result<Self, Unfit> {
        let mut config = Self::default();
        if let Some(mesh) = text(object, "mesh")? {
            let unfit = |field: &str, why: String| Unfit {
                path: "data.mesh".into(),
                why: format!("{field}: {why}"),
            };
            if let Some(domain) = said(&mesh, "trustDomain").map_err(|why| unfit("trustDomain", why))? {
                let read = domain
                    .parse()
                    .map_err(|e: ambient_core::TrustDomainError| unfit("trustDomain", e.to_string()))?;
                config.trust_domain = Some(read);
            }
            let aliases = mesh.field("trustDomainAliases").map(|node| node.read::<Vec<String>>()).transpose();
            for alias in aliases.map_err(|e| unfit("trustDomainAliases", e.why))?.unwrap_or_default() {
                let read = alias.parse();
                let read = read.map_err(|e: ambient_core::TrustDomainError| unfit("trustDomainAliases", e.to_string()))?;
                config.trust_domain_aliases.push(read);
            }
            let root = said(&mesh, "rootNamespace").map_err(|why| unfit("rootNamespace", why))?;
            config.root_namespace = root.map(Into::into);
        }
        if let Some(networks) = text(object, "meshNetworks")? {
            config.network = network_of(&networks, cluster_id);
        }
        Ok(config)
    }
}

/// Something in a ConfigMap that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {why}")]
pub(super) struct Unfit {
    pub(super) path: String,
    pub(super) why: String,
}

/// Whether a ConfigMap is the mesh's.
pub(super) fn is_mesh_config(object: &ConfigMap) -> bool {
    object.metadata.name == "istio" && object.metadata.namespace() == "istio-system"
}

/// A text of the ConfigMap, which is YAML itself; none where nothing stands in it.
fn text(object: &ConfigMap, name: &str) -> Result<Option<Node>, Unfit> {
    let Some(text) = object.data.get(name) else { return Ok(None) };
    let unfit = |e: TextError| Unfit {
        path: format!("data.{name}"),
        why: e.to_string(),
    };
    let documents = tree::documents(text.as_bytes()).map_err(|e| Unfit {
        path: format!("data.{name}"),
        why: e.to_string(),
    })?;
    Ok(documents.map_err(unfit)?.into_iter().next())
}

fn said<'a>(node: &'a Node, field: &str) -> Result<Option<&'a str>, String> {
    match node.field(field).map(|node| &node.value) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Text(text)) if text.is_empty() => Ok(None),
        Some(Value::Text(text)) => Ok(Some(text)),
        Some(_) => Err("a text is wanted".into()),
    }
}

/// The network that has the endpoints of a registry.
fn network_of(networks: &Node, cluster_id: &str) -> Option<Network> {
    let Value::Map(all) = &networks.field("networks")?.value else {
        return None;
    };
    let has = |network: &Node| match network.field("endpoints").map(|node| &node.value) {
        Some(Value::List(endpoints)) => endpoints.iter().any(|e| e.text("fromRegistry") == Some(cluster_id)),
        _ => false,
    };
    let found = all.iter().find(|(_, network)| has(network));
    found.map(|(name, _)| Network::from(name.as_str()))
}

//! What holds for the whole mesh: flags, then the ConfigMap `istio` of the directory of manifests, then Istio's defaults.

use std::{
    path::{self, Path, PathBuf},
    sync::Arc,
};

use ambient_control::manifests::{self, MeshConfig};
use ambient_core::{Network, TrustDomain};

/// What flags say of the mesh.
#[derive(Clone, Debug, Default)]
pub(crate) struct Said {
    pub(crate) trust_domain: Option<TrustDomain>,
    pub(crate) trust_domain_aliases: Vec<TrustDomain>,
    pub(crate) root_namespace: Option<Arc<str>>,
}

/// What holds.
#[derive(Clone, Debug)]
pub(crate) struct Mesh {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) trust_domain_aliases: Vec<TrustDomain>,
    pub(crate) root_namespace: Arc<str>,
    network: Option<Network>,
    /// What the ConfigMap said; none where there is no directory.
    config: Option<MeshConfig>,
}

impl Mesh {
    /// What flags say counts before what the ConfigMap of a directory says.
    pub(crate) fn of(said: Said, manifests: Option<&Path>, cluster_id: &str) -> anyhow::Result<Self> {
        let config = manifests.map(|dir| MeshConfig::read(dir, cluster_id)).transpose()?;
        let written = config.clone().unwrap_or_default();
        Ok(Self {
            trust_domain: said.trust_domain.or(written.trust_domain).unwrap_or_default(),
            trust_domain_aliases: match said.trust_domain_aliases {
                none if none.is_empty() => written.trust_domain_aliases,
                said => said,
            },
            root_namespace: said
                .root_namespace
                .or(written.root_namespace)
                .unwrap_or_else(|| "istio-system".into()),
            network: written.network,
            config,
        })
    }

    /// The directory with these settings.
    pub(crate) fn manifests(&self, dir: &Path) -> manifests::Config {
        manifests::Config {
            trust_domain: self.trust_domain.clone(),
            trust_domain_aliases: self.trust_domain_aliases.clone(),
            root_namespace: self.root_namespace.clone(),
            network: self.network.clone(),
            mesh: self.config.clone(),
            ..manifests::Config::new(dir)
        }
    }
}

/// Refuses an authority within the directory of manifests: that is given to others, copied and kept under version control, and
/// the root's key would be as well.
pub(crate) fn keys_apart(manifests: &Path, authority: &Path) -> anyhow::Result<()> {
    anyhow::ensure!(
        !real(authority).starts_with(real(manifests)),
        "the keys of the authority would lie among the manifests, in {}: name a directory for it that is outside of {}",
        authority.display(),
        manifests.display()
    );
    Ok(())
}

/// Where a path leads, as far as it is there.
fn real(path: &Path) -> PathBuf {
    let whole = path::absolute(path).unwrap_or_else(|_| path.into());
    let there = whole.ancestors().find_map(|above| Some((above, above.canonicalize().ok()?)));
    match there {
        Some((above, real)) => real.join(whole.strip_prefix(above).unwrap_or_else(|_| Path::new(""))),
        None => whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_not_put_among_manifests() {
        let dir = std::env::temp_dir().join(format!("ambient-apart-{}", std::process::id()));
        let (mesh, link) = (dir.join("mesh"), dir.join("link"));
        std::fs::create_dir_all(&mesh).unwrap();
        std::os::unix::fs::symlink(&mesh, &link).unwrap();
        for within in [mesh.clone(), mesh.join("ca"), link.join("ca/new"), dir.join("mesh/../mesh/ca")] {
            let error = keys_apart(&mesh, &within).unwrap_err().to_string();
            assert!(error.contains("outside of"), "{error}");
        }
        for outside in [dir.join("ca"), dir.join("mesh-ca"), dir.clone(), link.join("../ca")] {
            keys_apart(&mesh, &outside).unwrap();
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn flags_count_before_the_config_map_before_defaults() {
        let dir = std::env::temp_dir().join(format!("ambient-mesh-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let map = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |\n    \
                   {trustDomain: td.example, trustDomainAliases: [old.example], rootNamespace: roots}\n";
        std::fs::write(dir.join("istio.yaml"), map).unwrap();
        let of = |said: Said, dir: Option<&Path>| {
            let mesh = Mesh::of(said, dir, "Kubernetes").unwrap();
            let aliases = mesh.trust_domain_aliases.iter().map(TrustDomain::to_string).collect::<Vec<_>>();
            (mesh.trust_domain.to_string(), aliases, mesh.root_namespace.to_string())
        };
        let told = |domain: &str, aliases: &[&str], root: &str| {
            let aliases = aliases.iter().map(ToString::to_string).collect::<Vec<_>>();
            (domain.to_owned(), aliases, root.to_owned())
        };
        assert_eq!(of(Said::default(), None), told("cluster.local", &[], "istio-system"));
        assert_eq!(of(Said::default(), Some(&dir)), told("td.example", &["old.example"], "roots"));
        let said = Said {
            trust_domain: Some("flag.example".parse().unwrap()),
            trust_domain_aliases: vec!["a.example".parse().unwrap()],
            root_namespace: Some("flags".into()),
        };
        assert_eq!(of(said, Some(&dir)), told("flag.example", &["a.example"], "flags"));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}

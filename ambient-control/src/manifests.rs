//! A directory of Kubernetes manifests as the control plane.
//!
//! [`Manifests`] reads every `*.yaml`, `*.yml` and `*.json` that lies in the directory itself (names that begin with a
//! dot, and other directories, are left alone), looks again every tenth of a second, and tells what became different. A
//! file holds one object or many, separated by `---` or in a `List`, as `kubectl get -o yaml` prints them. Read are
//! Namespace, Node, ServiceAccount, ConfigMap, Pod, Service, EndpointSlice, ServiceEntry, WorkloadEntry, Gateway,
//! GatewayClass, AuthorizationPolicy and PeerAuthentication; other kinds are passed over, with one line in the log.
//!
//! Of more than 256 files each look takes 256 in turn, which costs less than a hundredth of a processor however many there are; what is
//! put into the directory, renamed, removed or linked anew there is among the next look all the same, and what is changed in its place, or
//! lies elsewhere behind a link, within a round (4 s for 10,000): write a file beside it and rename that.
//!
//! A file is taken, or taken for removed, when two looks a tenth of a second apart agree. One that became empty keeps
//! what it held until it is removed. One that cannot be read keeps it too, and is a [`Fault`](crate::Fault) that names
//! file, line and field; if nothing of it was ever readable, new connections to pods of the mesh are refused until it is
//! mended or removed, as it could be a policy that refuses them. A policy with a value that cannot be read goes on
//! with its last good version; where there is none, it refuses all in its scope. Any other object with a value that is not
//! what it must be goes on with its last good version too, or does not count; nothing else of its file is affected. Where
//! two files hold the same object the first that was seen counts. Where several files go in the same moment and none is left,
//! as where a mount is gone, none of them counts as removed.
//!
//! What is captured is told by the nodes themselves, each in `status/NODE.json` ([`Status`] writes it). Once a pod is
//! known to be captured, only its own node's withdrawal or the removal of the pod ends that: never a report that is
//! missing, that cannot be read, or that a node begins anew. With [`Config::own`] that is kept over a restart too, in
//! `status/.NODE.known.json`, and the own report is written again within about a second when somebody has removed or changed it. An annotation tells
//! it only of the pods of [`Config::ztunnel_nodes`]. Of a pod that has been in no manifest for one to two hours,
//! nothing is kept in the reports that this process writes ([`Config::own`], [`Config::kept`]), unless something in the directory
//! cannot be read, which might be that pod.
//!
//! ```
//! use ambient_control::{manifests::{Config, Manifests}, Source};
//! # let scratch = tempfile::tempdir()?;
//! # let directory = scratch.path();
//! std::fs::write(directory.join("cart.yaml"), r#"
//! apiVersion: v1
//! kind: Pod
//! metadata: { name: cart-0, namespace: shop, uid: 2f1c, labels: { istio.io/dataplane-mode: ambient } }
//! spec: { nodeName: node-1 }
//! status: { podIPs: [{ ip: 10.0.1.2 }] }
//! "#)?;
//! # let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
//! # runtime.block_on(async {
//! let mut manifests = Manifests::open(Config::new(directory)).await?;
//! let batch = manifests.next().await.expect("the first whole state");
//! assert!(batch.synced && batch.faults.is_empty());
//! assert_eq!(batch.changes.len(), 1);
//! # Ok::<(), Box<dyn std::error::Error>>(()) })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::{
    collections::{BTreeSet, HashSet},
    io,
    path::PathBuf,
    sync::Arc,
};

use ambient_core::{Network, PodUid, TrustDomain, mesh};

use crate::{
    Batch, BoxFuture, Change, Source,
    looks::{self, Batches, Looked},
    objects,
};

#[doc(hidden)] // what the binary reads files by
pub mod tree;

pub(crate) mod directory;
mod document;
mod enablement;
mod mesh_config;
mod reported;
mod reports;
mod status;
#[cfg(feature = "serve")]
mod statuses;
#[cfg(test)]
mod tests;

use directory::Directory;
#[cfg(feature = "fuzz")]
pub(crate) use document::fuzz as fuzz_document;
pub use enablement::{EnablementError, read_enablement};
pub use mesh_config::MeshConfig;
use reported::Reported;
#[cfg(feature = "fuzz")]
pub(crate) use reports::fuzz as fuzz_status;
pub use status::Status;
#[cfg(feature = "serve")]
pub use statuses::Statuses;

/// Which directory, and what its objects do not say.
#[derive(Clone, Debug)]
pub struct Config {
    /// The directory.
    pub dir: PathBuf,
    /// What names of services end in; `cluster.local` by default.
    pub cluster_domain: Arc<str>,
    /// The trust domain of every identity; `cluster.local` by default.
    pub trust_domain: TrustDomain,
    /// The namespace whose policies hold for the whole mesh; `istio-system` by default.
    pub root_namespace: Arc<str>,
    /// The name of the cluster; `Kubernetes` by default.
    pub cluster_id: Arc<str>,
    /// The network of its addresses; where there is none, the one that the label `topology.istio.io/network` of the root
    /// namespace names, else the unnamed one. None by default.
    pub network: Option<Network>,
    /// Which pods are meant to be in the mesh.
    pub selection: objects::Selection,
    /// Other names of the trust domain in policies; none by default.
    pub trust_domain_aliases: Vec<TrustDomain>,
    /// Whether `cluster.local` in a policy means the trust domain, whatever its name; none by default, and then it does unless
    /// policies are read as istiod reads them.
    pub cluster_local: Option<bool>,
    /// Whether policies are read as istiod reads them, also where that lets through more than is written; off by default.
    pub istio_exact: bool,
    /// What the ConfigMap `istio` said when these settings were made of it: where it says something else, now or later, that is
    /// a fault. None by default, and then nothing is made of it.
    pub mesh: Option<MeshConfig>,
    /// The revision of the control plane whose place this takes; none by default.
    pub revision: Option<Arc<str>>,
    /// Nodes whose proxy is Istio's ztunnel ([`objects::Settings::ztunnel_nodes`]); none by default.
    pub ztunnel_nodes: BTreeSet<Arc<str>>,
    /// What this node itself reports in the directory: pods that were deleted while it was down are taken out of it at the
    /// start. None by default.
    pub own: Option<Status>,
    /// What this process keeps of what other nodes report, as a control plane does. None by default.
    #[cfg(feature = "serve")]
    pub kept: Option<Arc<Statuses>>,
}

impl Config {
    /// A directory with the defaults of Istio.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        let objects::Settings {
            cluster_domain,
            trust_domain,
            root_namespace,
            cluster_id,
            network,
            selection,
            trust_domain_aliases,
            cluster_local,
            istio_exact,
            revision,
            ztunnel_nodes,
        } = objects::Settings::default();
        Self {
            dir: dir.into(),
            cluster_domain,
            trust_domain,
            root_namespace,
            cluster_id,
            network,
            selection,
            trust_domain_aliases,
            cluster_local,
            istio_exact,
            mesh: None,
            revision,
            ztunnel_nodes,
            own: None,
            #[cfg(feature = "serve")]
            kept: None,
        }
    }

    fn into_parts(self) -> (PathBuf, objects::Settings, Reported) {
        let settings = objects::Settings {
            cluster_domain: self.cluster_domain,
            trust_domain: self.trust_domain,
            root_namespace: self.root_namespace,
            cluster_id: self.cluster_id,
            network: self.network,
            selection: self.selection,
            trust_domain_aliases: self.trust_domain_aliases,
            cluster_local: self.cluster_local,
            istio_exact: self.istio_exact,
            revision: self.revision,
            ztunnel_nodes: self.ztunnel_nodes,
        };
        let reported = Reported {
            own: self.own,
            #[cfg(feature = "serve")]
            kept: self.kept,
            ..Reported::default()
        };
        (self.dir, settings, reported)
    }
}

/// The source of changes that a directory of manifests is.
///
/// A task of its own looks at the directory; it ends when this is dropped. While nobody asks for batches it waits with
/// one that is ready, and looks no further.
#[derive(Debug)]
pub struct Manifests(Batches);

impl Manifests {
    /// Reads the whole directory, which takes a tenth of a second and at most 5 s, and begins to watch it. Must be called
    /// within a tokio runtime that has its timer.
    ///
    /// # Errors
    /// When there is no such directory, when a file in it cannot be read, or when a file is being written all the time.
    /// A policy with a value that cannot be read is no error here but a fault.
    pub async fn open(config: Config) -> Result<Self, OpenError> {
        let mesh = config.mesh.clone();
        let (dir, settings, reported) = config.into_parts();
        let mut directory = Directory::new(dir.clone(), settings);
        directory.expect(mesh);
        if let Some(own) = &reported.own {
            directory.remember(&own.node());
        }
        let mut watched = Watched { directory, reported };
        let mut looks = looks::looks();
        // Two looks must agree on every file.
        let mut settled = false;
        for _ in 0..looks::OPEN_LOOKS {
            looks.tick().await;
            watched = looks::look(watched).await.ok_or_else(|| OpenError::Ended { dir: dir.clone() })?;
            if let Some(error) = watched.directory.unreachable() {
                return Err(refuse_directory(dir, error));
            }
            settled = watched.directory.is_settled();
            if settled {
                break;
            }
        }
        let Watched { directory, reported } = &mut watched;
        if !settled {
            let files = directory.unsettled().join(", ");
            return Err(OpenError::Unsettled { dir, files });
        }
        if let Some(what) = directory.broken_file() {
            let what = format!("{what}; it could hold any policy: mend it or take it out of the directory, and start again");
            return Err(OpenError::File { what });
        }
        let first = directory.batch(true).unwrap_or_default();
        if let Some(own) = &reported.own {
            let pods = pods(&first);
            let kept = own.retain(|uid| pods.contains(uid)).await;
            kept.map_err(|source| OpenError::Status { source })?;
        }
        Ok(Self(Batches::after(first, watched, looks)))
    }
}

impl Source for Manifests {
    fn next(&mut self) -> BoxFuture<'_, Option<Batch>> {
        Box::pin(self.0.next())
    }
}

/// The directory as it was seen last, and what is reported in it.
struct Watched {
    directory: Directory,
    reported: Reported,
}

impl Looked for Watched {
    fn look(&mut self) {
        self.directory.look();
        self.reported.look(&self.directory);
    }

    fn news(&mut self) -> Option<Batch> {
        self.directory.batch(false)
    }

    fn before(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.reported.mend())
    }
}

/// Why a directory cannot be the control plane.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// There is none.
    #[error("there is no directory {}: make it and put the manifests of the mesh there, or name the one that holds them", dir.display())]
    Missing {
        /// What was named.
        dir: PathBuf,
    },
    /// It cannot be listed.
    #[error("cannot read the directory {}", dir.display())]
    Directory {
        /// What was named.
        dir: PathBuf,
        /// The refusal.
        source: io::Error,
    },
    /// A file in it cannot be read, and nothing of it was ever readable.
    #[error("{what}")]
    File {
        /// File, line, field and what is wrong there.
        what: String,
    },
    /// It does not hold still.
    #[error("{}: {files}: still being written after 5 s; write a file beside it and rename that", dir.display())]
    Unsettled {
        /// What was named.
        dir: PathBuf,
        /// The names of the files.
        files: String,
    },
    /// The node's own status file cannot be written.
    #[error(transparent)]
    Status {
        /// Which, and why not.
        source: io::Error,
    },
    /// The runtime is ending.
    #[error("{}: not read, as the program is ending", dir.display())]
    Ended {
        /// What was named.
        dir: PathBuf,
    },
}

fn refuse_directory(dir: PathBuf, error: io::Error) -> OpenError {
    match error.kind() {
        io::ErrorKind::NotFound => OpenError::Missing { dir },
        _ => OpenError::Directory { dir, source: error },
    }
}

/// The pods that a batch announces.
fn pods(batch: &Batch) -> HashSet<PodUid> {
    let workload = |change: &Change| match change {
        Change::Mesh(mesh::Update::Workload(workload)) => workload.pod.clone(),
        _ => None,
    };
    batch.changes.iter().filter_map(workload).collect()
}

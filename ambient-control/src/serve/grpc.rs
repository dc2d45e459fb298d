//! The services, each call by a node that is known by its certificate or its token.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use ambient_core::{Identity, PodUid, SpiffeId};
use prost_types::{Struct, value};
use rcgen::{CertificateSigningRequestParams, PublicKeyData as _};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout},
};
use tonic::{Code, Request, Response, Status, metadata::MetadataMap};

use super::{
    Captures, NodeCertificate,
    admission::{Caller, Door, Shown},
    allowance::Allowance,
    board::Board,
    counts::Refusal,
    guest::Guest,
    limits::Limits,
    nodes,
    per_node::PerNode,
};
use crate::{
    ca::{self, DirectoryCa, Request as ToSign, RequestError, Whom},
    istiod::{node_id, now},
    wire::{
        ambient::control::v1::{
            CaptureReceipt, CaptureReport, JoinRequest, JoinResponse, capture_service_server::CaptureService,
            node_service_server::NodeService,
        },
        envoy::config::core::v3::Node,
        istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse, istio_certificate_service_server::IstioCertificateService},
    },
};

/// What all calls share.
pub(super) struct Shared {
    pub(super) board: RwLock<Board>,
    /// The board's generation.
    pub(super) changed: watch::Sender<u64>,
    pub(super) door: Door,
    /// Counts the changes of what callers are admitted by.
    pub(super) admission: watch::Sender<u64>,
    pub(super) captures: Option<Arc<dyn Captures>>,
    /// Of each node those that are open.
    pub(super) connections: PerNode,
    pub(super) streams: PerNode,
    pub(super) allowance: Allowance,
    pub(super) reports: Allowance,
    pub(super) limits: Limits,
}

impl Shared {
    /// Whether a line that a node can cause at will is to be written now, and then how often it was left out. Whoever has what
    /// one node is known by fills no log, nor takes the lines of others.
    pub(super) fn seldom(&self, node: &str, what: &'static str) -> Option<u64> {
        self.door.seldom.say_of(node, what, Instant::now())
    }
}

/// The services of one connection.
#[derive(Clone)]
pub(super) struct Services {
    pub(super) shared: Arc<Shared>,
    pub(super) shown: Arc<Shown>,
    /// Ends the connection.
    pub(super) cut: Arc<Notify>,
    pub(super) guest: Arc<Guest>,
}

impl Services {
    /// The node that calls, for whatever it may do once it is one.
    pub(super) fn admit(&self, metadata: &MetadataMap) -> Result<Caller, Status> {
        let door = &self.shared.door;
        let caller = self.admit_to_join(metadata)?;
        if caller.once {
            let why = "this token is good for a node's certificate alone";
            if let Some(left_out) = self.shared.seldom(&caller.node, "once") {
                tracing::warn!(node = caller.node, why, left_out, "a caller was refused");
            }
            door.counts.refuse(Refusal::Credential);
            return Err(Status::unauthenticated(why));
        }
        Ok(caller)
    }

    /// The node that calls, for a certificate of its own.
    pub(super) fn admit_to_join(&self, metadata: &MetadataMap) -> Result<Caller, Status> {
        let door = &self.shared.door;
        let caller = door.admit(&self.shown, metadata, now())?;
        if self.guest.is_known(&caller) {
            return Ok(caller);
        }
        let why = format!("the node {} has {} connections open", caller.node, self.shared.connections.most());
        if let Some(left_out) = self.shared.seldom(&caller.node, "connections") {
            tracing::warn!(why, left_out, "a connection was refused");
        }
        Err(self.refuse(Refusal::Room, Status::resource_exhausted(why)))
    }

    pub(super) fn refuse(&self, why: Refusal, status: Status) -> Status {
        self.shared.door.counts.refuse(why);
        status
    }

    /// Has a request signed for a node, within a time.
    async fn sign(&self, node: &str, whom: Whom<'_>, csr: &str, life: Duration) -> Result<Vec<Vec<u8>>, Status> {
        let request = ToSign {
            whom,
            csr,
            life,
            node: Some(node),
        };
        if let Err(wait) = self.shared.allowance.take(node, Instant::now()) {
            let why = format!("more certificates were signed for the node {node} than it can need: ask again in {wait:?}");
            if let Some(left_out) = self.shared.seldom(node, "often") {
                tracing::warn!(node, %whom, ?wait, left_out, "nothing was signed: more was for this node than it can need");
            }
            return Err(self.refuse(Refusal::Often, Status::resource_exhausted(why)));
        }
        let patience = self.shared.limits.signing;
        let signed = timeout(patience, self.shared.door.ca.sign(request)).await;
        let error = match signed {
            Ok(Ok(chain)) if !chain.is_empty() => return Ok(chain),
            Ok(Ok(_)) => RequestError::Signer {
                why: "it gave no certificate".into(),
            },
            Ok(Err(error)) => error,
            Err(_) => RequestError::Signer {
                why: format!("it did not answer within {patience:?}"),
            },
        };
        // What the authority cannot do is told also where the node asks for what nobody would sign.
        let (what, why, code) = match error {
            RequestError::Request { .. } | RequestError::Name { .. } => ("unsigned request", Refusal::Request, Code::InvalidArgument),
            RequestError::Barred { .. } | RequestError::Foreign { .. } => ("unsigned name", Refusal::Authority, Code::PermissionDenied),
            _ => ("unsigned", Refusal::Authority, Code::Unavailable),
        };
        if let Some(left_out) = self.shared.seldom(node, what) {
            tracing::warn!(node, %whom, %error, left_out, "nothing was signed");
        }
        let status = Status::new(code, error.to_string());
        Err(self.refuse(why, status))
    }
}

impl Shared {
    pub(super) fn board(&self) -> std::sync::RwLockReadGuard<'_, Board> {
        self.board.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a pod of an identity is on a node.
    fn is_there(&self, node: &str, identity: &Identity) -> bool {
        self.board().has_account(node, identity)
    }
}

/// The name that a node says of itself.
pub(super) fn node_name(node: &Node) -> Option<&str> {
    text(node.metadata.as_ref()?, "NODE_NAME").filter(|name| !name.is_empty())
}

fn text<'a>(of: &'a Struct, name: &str) -> Option<&'a str> {
    match &of.fields.get(name)?.kind {
        Some(value::Kind::StringValue(text)) => Some(text),
        _ => None,
    }
}

#[tonic::async_trait]
impl NodeService for Services {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let door = &self.shared.door;
        let caller = self.admit_to_join(request.metadata())?;
        let request = request.into_inner();
        let wrong = |why: String| {
            if let Some(left_out) = self.shared.seldom(&caller.node, "joining") {
                tracing::warn!(node = caller.node, why, left_out, "a node was refused a certificate of its own");
            }
            self.refuse(Refusal::Request, Status::invalid_argument(why))
        };
        let csr = CertificateSigningRequestParams::from_pem(&request.csr).map_err(|e| wrong(format!("csr: {e}")))?;
        let id: SpiffeId = node_id(&door.trust_domain, &caller.node).map_err(|e| wrong(e.to_string()))?;
        let asked = Some(request.validity_duration).filter(|seconds| *seconds > 0);
        let life = asked.map_or(NODE_LIFE, Duration::from_secs).min(NODE_LIFE);
        let chain = self.sign(&caller.node, Whom::Id(&id), &request.csr, life).await?;
        let given = self.given(&caller.node, &chain[0])?;
        let (serial, key) = (given.serial.clone(), csr.public_key.der_bytes().to_vec());
        let join = nodes::Join {
            proof: caller.proof.clone(),
            key,
            given,
            now: now(),
        };
        match door.nodes.enrol(join).await {
            Ok(true) => {}
            Ok(false) => {
                let why = "what this node is known by was revoked, or its token was used for another key";
                if let Some(left_out) = self.shared.seldom(&caller.node, "enrolling") {
                    tracing::warn!(node = caller.node, why, left_out, "a node was refused a certificate of its own");
                }
                return Err(self.refuse(Refusal::Credential, Status::unauthenticated(why)));
            }
            Err(error) => {
                if let Some(left_out) = self.shared.seldom(&caller.node, "certificates") {
                    tracing::error!(node = caller.node, %error, left_out, "a node's certificate cannot be kept: it was not given");
                }
                return Err(Status::unavailable("certificates of nodes cannot be kept now"));
            }
        }
        door.counts.join();
        let by = match &caller.proof {
            nodes::Proof::Token(_) => "a token",
            nodes::Proof::Certificate(_) => "the certificate before",
        };
        tracing::info!(node = caller.node, by, serial, "a node was given a certificate");
        let roots = door.ca.bundles().roots(&door.trust_domain).to_vec();
        Ok(Response::new(JoinResponse { chain, roots }))
    }
}

impl Services {
    /// What is noted of a certificate that is about to be given.
    fn given(&self, node: &str, leaf: &[u8]) -> Result<NodeCertificate, Status> {
        let unusable = |why: String| {
            if let Some(left_out) = self.shared.seldom(node, "unusable") {
                tracing::error!(node, why, left_out, "what the authority signed is unusable");
            }
            Status::unavailable("what the authority signed is unusable")
        };
        let (_, parsed) = x509_parser::parse_x509_certificate(leaf).map_err(|e| unusable(e.to_string()))?;
        let hash = self.shared.door.nodes.hash(leaf).map_err(|e| unusable(e.to_string()))?;
        Ok(NodeCertificate {
            node: node.into(),
            serial: parsed.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect(),
            since: nodes::seconds(now()),
            expires: u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0),
            sha256: hash,
        })
    }
}

#[tonic::async_trait]
impl IstioCertificateService for Services {
    async fn create_certificate(&self, request: Request<IstioCertificateRequest>) -> Result<Response<IstioCertificateResponse>, Status> {
        let caller = self.admit(request.metadata())?;
        let node = &*caller.node;
        let request = request.into_inner();
        let metadata = request.metadata.as_ref();
        let wrong = |why: String| {
            if let Some(left_out) = self.shared.seldom(node, "asking") {
                tracing::warn!(node, why, left_out, "a node was refused a certificate");
            }
            self.refuse(Refusal::Request, Status::invalid_argument(why))
        };
        let whom = metadata
            .and_then(|metadata| text(metadata, "ImpersonatedIdentity"))
            .ok_or_else(|| wrong("metadata.ImpersonatedIdentity: it is missing: a node has no identity of its own".into()))?;
        let identity: Identity = whom.parse().map_err(|e| wrong(format!("metadata.ImpersonatedIdentity: {e}")))?;
        if !self.shared.is_there(node, &identity) {
            if let Some(left_out) = self.shared.seldom(node, "identities") {
                tracing::warn!(node, %identity, left_out, "a node was refused a certificate: no pod of that identity is on it");
            }
            let own = &self.shared.door.trust_domain;
            let why = match identity.trust_domain() == own {
                true => format!("no pod of {identity} is on the node {node}"),
                false => format!("{identity} is of another trust domain than this mesh, which is {own}"),
            };
            return Err(self.refuse(Refusal::Identity, Status::permission_denied(why)));
        }
        let wanted = u64::try_from(request.validity_duration).ok().filter(|seconds| *seconds > 0);
        let life = wanted.map_or(DirectoryCa::DEFAULT_TTL, Duration::from_secs);
        let chain = self.sign(node, Whom::Id(identity.spiffe_id()), &request.csr, life).await?;
        // Whoever revokes a node ends first what it is admitted by, and then what was signed for it until then.
        if let Err(status) = self.shared.door.once_more(&caller, now()) {
            if let Some(left_out) = self.shared.seldom(node, "once more") {
                tracing::warn!(
                    node,
                    %identity,
                    why = status.message(),
                    left_out,
                    "a certificate was not given: what its node was admitted by is not good any more, or cannot be read"
                );
            }
            return Err(self.refuse(Refusal::Credential, status));
        }
        self.shared.door.counts.sign();
        tracing::debug!(node, %identity, "a certificate was signed");
        let bundles = self.shared.door.ca.bundles();
        let roots = bundles.roots(identity.trust_domain()).iter().map(|der| ca::pem(der)).collect();
        Ok(Response::new(IstioCertificateResponse {
            // The leaf, intermediates, and all roots together, as istiod has them.
            cert_chain: chain.iter().map(|der| ca::pem(der)).chain([roots]).collect(),
        }))
    }
}

#[tonic::async_trait]
impl CaptureService for Services {
    async fn report(&self, request: Request<CaptureReport>) -> Result<Response<CaptureReceipt>, Status> {
        let node = self.admit(request.metadata())?.node;
        if let Err(wait) = self.shared.reports.take(&node, Instant::now()) {
            let why = format!("the node {node} reports more than it can have to say: say it again in {wait:?}");
            if let Some(left_out) = self.shared.seldom(&node, "reports too often") {
                tracing::warn!(why, left_out, "a node's report was refused");
            }
            return Err(self.refuse(Refusal::Often, Status::resource_exhausted(why)));
        }
        let report = request.into_inner();
        let captures = self
            .shared
            .captures
            .clone()
            .ok_or_else(|| Status::unimplemented("captures are not kept here"))?;
        let (length, addresses) = (report.pod_uid.len(), report.addresses.len());
        if !(1..=LONGEST_UID).contains(&length) || addresses > ADDRESSES {
            let why = format!(
                "pod_uid has {length} bytes and addresses has {addresses} entries: 1 to {LONGEST_UID} bytes, and {ADDRESSES} entries at most, make a report"
            );
            if let Some(left_out) = self.shared.seldom(&node, "sizes") {
                tracing::warn!(node, why, left_out, "a node's report was refused");
            }
            return Err(self.refuse(Refusal::Request, Status::invalid_argument(why)));
        }
        let pod = PodUid::from(report.pod_uid);
        let addresses = report.addresses.iter().enumerate().map(|(at, text)| {
            let wrong = |_| {
                let why = format!("addresses[{at}]: {text:?} is no IP address");
                if let Some(left_out) = self.shared.seldom(&node, "addresses") {
                    tracing::warn!(node, %pod, why, left_out, "a node's report was refused");
                }
                self.refuse(Refusal::Request, Status::invalid_argument(why))
            };
            text.parse().map_err(wrong)
        });
        let addresses = addresses.collect::<Result<Vec<_>, _>>()?;
        // A withdrawal may be of a pod that is gone.
        let at = self
            .shared
            .board()
            .mesh()
            .workload_by_pod(&pod)
            .map(|workload| workload.node.clone());
        if at.as_ref().is_some_and(|at| **at != *node) || (report.captured && at.is_none()) {
            if let Some(left_out) = self.shared.seldom(&node, "pods") {
                tracing::warn!(node, %pod, left_out, "a node was refused: it reports on a pod that is not on it");
            }
            let why = format!("the pod {pod} is not on the node {node}");
            return Err(self.refuse(Refusal::Pod, Status::permission_denied(why)));
        }
        let patience = self.shared.limits.keeping;
        let kept = timeout(patience, captures.report(&node, &pod, &addresses, report.captured)).await;
        match kept {
            Ok(Ok(())) => {
                self.shared.door.counts.report();
                Ok(Response::new(CaptureReceipt {}))
            }
            Ok(Err(error)) => Err(self.not_kept(&node, &pod, Status::internal(error.to_string()))),
            Err(_) => {
                let why = format!("the report could not be kept within {patience:?}");
                Err(self.not_kept(&node, &pod, Status::deadline_exceeded(why)))
            }
        }
    }
}

impl Services {
    /// A node says it again and again: what stands in the way is told once in a while. The status is not `Unavailable`, by which the node
    /// would hold this control plane for away.
    fn not_kept(&self, node: &str, pod: &PodUid, status: Status) -> Status {
        if let Some(left_out) = self.shared.seldom(node, "reports") {
            tracing::error!(node, %pod, why = status.message(), left_out, "a node's report was not kept");
        }
        self.refuse(Refusal::Keeping, status)
    }
}

/// A pod's UID in bytes, as long as Kubernetes lets any name be: withdrawals of pods that nobody knows are kept too.
const LONGEST_UID: usize = 253;
/// Addresses of a pod.
const ADDRESSES: usize = 16;
/// How long a node's certificate is valid, at most.
const NODE_LIFE: Duration = Duration::from_secs(24 * 60 * 60);

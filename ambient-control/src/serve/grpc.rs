//! The services, each call by a node that has shown its token.

use std::{
    pin::Pin,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use ambient_core::{Identity, PodUid, SpiffeId};
use prost_types::{Struct, value};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap};

use super::{Captures, Tokens, board::Board, subscriber::Subscriber};
use crate::{
    ca::{self, DirectoryCa, RequestError},
    wire::{
        ambient::control::v1::{CaptureReceipt, CaptureReport, capture_service_server::CaptureService},
        envoy::{
            config::core::v3::Node,
            service::discovery::v3::{
                DeltaDiscoveryRequest, DeltaDiscoveryResponse, aggregated_discovery_service_server::AggregatedDiscoveryService,
            },
        },
        istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse, istio_certificate_service_server::IstioCertificateService},
    },
};

/// What all calls share.
pub(super) struct Shared {
    pub(super) board: RwLock<Board>,
    /// The board's generation.
    pub(super) changed: watch::Sender<u64>,
    pub(super) ca: DirectoryCa,
    pub(super) tokens: Tokens,
    pub(super) captures: Option<Arc<dyn Captures>>,
}

/// The services of one server.
#[derive(Clone)]
pub(super) struct Services(pub(super) Arc<Shared>);

impl Shared {
    /// The node that calls.
    fn admit(&self, metadata: &MetadataMap) -> Result<String, Status> {
        let shown = metadata.get("authorization").and_then(|value| value.to_str().ok());
        let token = shown.and_then(|text| text.strip_prefix("Bearer "));
        let token = token.ok_or_else(|| Status::unauthenticated("a token is wanted: `authorization: Bearer TOKEN`"))?;
        match self.tokens.node(token.trim(), crate::istiod::now()) {
            Ok(Some(node)) => Ok(node),
            Ok(None) => {
                tracing::warn!("a caller was refused: its token is none, has ended, or was revoked");
                Err(Status::unauthenticated("this token is none, has ended, or was revoked"))
            }
            Err(error) => {
                tracing::error!(%error, "callers cannot be told from others");
                Err(Status::unavailable("tokens cannot be read now"))
            }
        }
    }

    fn board(&self) -> std::sync::RwLockReadGuard<'_, Board> {
        self.board.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a pod of an identity is on a node.
    fn is_there(&self, node: &str, identity: &Identity) -> bool {
        self.board().has_account(node, identity)
    }
}

type Responses = Pin<Box<dyn Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Services {
    type DeltaAggregatedResourcesStream = Responses;

    async fn delta_aggregated_resources(&self, request: Request<Streaming<DeltaDiscoveryRequest>>) -> Result<Response<Responses>, Status> {
        let node = self.0.admit(request.metadata())?;
        let (sender, responses) = mpsc::channel(RESPONSES);
        let client = Client {
            subscriber: Subscriber::new(&node),
            node,
            shared: self.0.clone(),
            responses: sender,
        };
        tokio::spawn(client.run(request.into_inner()));
        Ok(Response::new(Box::pin(ReceiverStream::new(responses))))
    }
}

/// One stream.
struct Client {
    node: String,
    shared: Arc<Shared>,
    subscriber: Subscriber,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
}

impl Client {
    async fn run(mut self, mut requests: Streaming<DeltaDiscoveryRequest>) {
        tracing::info!(node = self.node, "a node has opened a stream");
        let why = self.talk(&mut requests).await;
        if let Err(status) = &why {
            tracing::warn!(node = self.node, why = status.message(), "a node's stream was ended");
            let _ = self.responses.try_send(Err(status.clone()));
        } else {
            tracing::info!(node = self.node, "a node's stream has ended");
        }
    }

    async fn talk(&mut self, requests: &mut Streaming<DeltaDiscoveryRequest>) -> Result<(), Status> {
        let mut changed = self.shared.changed.subscribe();
        loop {
            tokio::select! {
                request = requests.message() => match request {
                    Ok(Some(request)) => self.hear(request)?,
                    // It has hung up, in whatever way.
                    Ok(None) | Err(_) => return Ok(()),
                },
                changed = changed.changed() => if changed.is_err() {
                    return Err(Status::unavailable("the control plane is stopping"));
                },
                () = self.responses.closed() => return Ok(()),
            }
            while let Some(response) = self.next() {
                match timeout(READING, self.responses.send(Ok(response))).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return Ok(()),
                    Err(_) => return Err(Status::deadline_exceeded("nothing was read for a while")),
                }
            }
        }
    }

    fn hear(&mut self, request: DeltaDiscoveryRequest) -> Result<(), Status> {
        if let Some(said) = request.node.as_ref().and_then(node_name)
            && said != self.node
        {
            let why = format!("the token is for the node {}, and not for {said}", self.node);
            return Err(Status::permission_denied(why));
        }
        match self.subscriber.handle_request(request) {
            Ok(None) => Ok(()),
            Ok(Some(refusal)) => {
                let (node, why) = (&self.node, &refusal.why);
                tracing::warn!(node, kind = refusal.kind.type_url(), why, "a node has refused what it was told");
                Ok(())
            }
            Err(error) => Err(Status::invalid_argument(error.to_string())),
        }
    }

    fn next(&mut self) -> Option<DeltaDiscoveryResponse> {
        let board = self.shared.board.read().unwrap_or_else(PoisonError::into_inner);
        self.subscriber.poll_response(&board)
    }
}

/// The name that a node says of itself.
fn node_name(node: &Node) -> Option<&str> {
    text(node.metadata.as_ref()?, "NODE_NAME").filter(|name| !name.is_empty())
}

fn text<'a>(of: &'a Struct, name: &str) -> Option<&'a str> {
    match &of.fields.get(name)?.kind {
        Some(value::Kind::StringValue(text)) => Some(text),
        _ => None,
    }
}

#[tonic::async_trait]
impl IstioCertificateService for Services {
    async fn create_certificate(&self, request: Request<IstioCertificateRequest>) -> Result<Response<IstioCertificateResponse>, Status> {
        let node = self.0.admit(request.metadata())?;
        let request = request.into_inner();
        let metadata = request.metadata.as_ref();
        let whom = metadata
            .and_then(|metadata| text(metadata, "ImpersonatedIdentity"))
            .ok_or_else(|| Status::invalid_argument("metadata.ImpersonatedIdentity: it is missing: a node has no identity of its own"))?;
        let identity: Identity = whom
            .parse()
            .map_err(|e| Status::invalid_argument(format!("metadata.ImpersonatedIdentity: {e}")))?;
        if !self.0.is_there(&node, &identity) {
            tracing::warn!(node, %identity, "a node was refused a certificate: no pod of that identity is on it");
            return Err(Status::permission_denied(format!("no pod of {identity} is on the node {node}")));
        }
        let wanted = u64::try_from(request.validity_duration).ok().filter(|seconds| *seconds > 0);
        let life = wanted.map_or(DirectoryCa::DEFAULT_TTL, Duration::from_secs);
        let shared = self.0.clone();
        let whom: SpiffeId = identity.spiffe_id().clone();
        let signed = tokio::task::spawn_blocking(move || shared.ca.sign_request(&whom, &request.csr, life));
        let chain = match signed.await {
            Ok(Ok(chain)) => chain,
            Ok(Err(error @ (RequestError::Request { .. } | RequestError::Name { .. }))) => {
                return Err(Status::invalid_argument(error.to_string()));
            }
            Ok(Err(error)) => return Err(Status::unavailable(error.to_string())),
            Err(_) => return Err(Status::internal("the authority has failed")),
        };
        tracing::debug!(node, %identity, "a certificate was signed");
        Ok(Response::new(IstioCertificateResponse {
            // The leaf, intermediates, and all roots together, as istiod has them.
            cert_chain: chain.iter().map(|der| ca::pem(der)).chain([self.0.ca.roots_pem()]).collect(),
        }))
    }
}

#[tonic::async_trait]
impl CaptureService for Services {
    async fn report(&self, request: Request<CaptureReport>) -> Result<Response<CaptureReceipt>, Status> {
        let node = self.0.admit(request.metadata())?;
        let report = request.into_inner();
        let captures = self
            .0
            .captures
            .clone()
            .ok_or_else(|| Status::unimplemented("captures are not kept here"))?;
        let pod = PodUid::from(report.pod_uid);
        let addresses = report.addresses.iter().enumerate().map(|(at, text)| {
            let wrong = |_| Status::invalid_argument(format!("addresses[{at}]: {text:?} is no IP address"));
            text.parse().map_err(wrong)
        });
        let addresses = addresses.collect::<Result<Vec<_>, _>>()?;
        // A withdrawal may be of a pod that is gone.
        let at = self.0.board().mesh().workload_by_pod(&pod).map(|workload| workload.node.clone());
        if at.as_ref().is_some_and(|at| **at != *node) || (report.captured && at.is_none()) {
            tracing::warn!(node, %pod, "a node was refused: it reports on a pod that is not on it");
            return Err(Status::permission_denied(format!("the pod {pod} is not on the node {node}")));
        }
        let kept = timeout(KEEPING, captures.report(&node, &pod, &addresses, report.captured)).await;
        match kept {
            Ok(Ok(())) => Ok(Response::new(CaptureReceipt {})),
            Ok(Err(error)) => Err(Status::unavailable(error.to_string())),
            Err(_) => Err(Status::deadline_exceeded("the report could not be kept in time")),
        }
    }
}

/// Responses that wait to be read; each may be a whole mesh.
const RESPONSES: usize = 2;
/// How long a client may take to read a response.
const READING: Duration = Duration::from_secs(60);
/// How long a report may take to be kept.
const KEEPING: Duration = Duration::from_secs(5);

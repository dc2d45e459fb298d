//! The streams of state: what a client asks for is read as it comes, and what it is told is written as it is read.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};
use http_body_util::BodyExt as _;
use hyper::body::{Frame, Incoming};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Instant, sleep, sleep_until, timeout},
};
use tonic::{Code, Status, body::Body, metadata::MetadataMap};

use super::{
    admission::Caller,
    asked::{Asked, Claims},
    counts::Refusal,
    grpc::{Services, Shared, node_name},
    response::Writing,
    subscriber::{RequestError, Subscriber},
};
use crate::{istiod::now, wire::envoy::service::discovery::v3::DeltaDiscoveryRequest};

impl Services {
    /// Answers the call for a stream.
    pub(super) fn open_stream(&self, request: http::Request<Incoming>) -> http::Response<Body> {
        let (head, requests) = request.into_parts();
        let opened = self.admit(&MetadataMap::from_headers(head.headers)).and_then(|caller| {
            let place = self.shared.streams.one_more(&caller.node).ok_or_else(|| {
                let why = format!("the node {} has {STREAMS} streams open", caller.node);
                if let Some(left_out) = self.shared.seldom(&caller.node, "streams") {
                    tracing::warn!(why, left_out, "a stream was refused");
                }
                self.refuse(Refusal::Room, Status::resource_exhausted(why))
            })?;
            Ok((caller, place))
        });
        let (caller, place) = match opened {
            Ok(opened) => opened,
            Err(status) => return status.into_http(),
        };
        let (sender, responses) = mpsc::channel(RESPONSES);
        let flow = Arc::<Flow>::default();
        let client = Client {
            subscriber: Subscriber::new(&caller.node),
            caller,
            shared: self.shared.clone(),
            asked: Asked::new(),
            responses: sender,
            flow: flow.clone(),
            moved: 0,
            moved_at: Instant::now(),
            cut: self.cut.clone(),
        };
        tokio::spawn(async move {
            client.run(requests).await;
            drop(place);
        });
        let mut response = http::Response::new(Body::new(Responses {
            from: responses,
            present: None,
            flow,
            over: false,
        }));
        let grpc = HeaderValue::from_static("application/grpc");
        response.headers_mut().insert(header::CONTENT_TYPE, grpc);
        response
    }
}

/// One stream.
struct Client {
    caller: Caller,
    shared: Arc<Shared>,
    subscriber: Subscriber,
    asked: Asked,
    responses: mpsc::Sender<Result<Writing, Status>>,
    flow: Arc<Flow>,
    /// What had gone when it was looked last, and since when it is no more than that although something waits.
    moved: u64,
    moved_at: Instant,
    cut: Arc<Notify>,
}

impl Client {
    async fn run(mut self, mut requests: Incoming) {
        let shared = self.shared.clone();
        let (node, counts) = (self.caller.node.clone(), &shared.door.counts);
        if let Some(left_out) = shared.seldom(&node, "opened") {
            tracing::info!(node, left_out, "a node has opened a stream");
        }
        counts.open();
        let why = self.talk(&mut requests).await;
        counts.close();
        if let Err(status) = &why {
            if let Some(left_out) = shared.seldom(&node, "cut") {
                tracing::warn!(node, why = status.message(), left_out, "a node's stream was ended");
            }
            let _ = self.responses.try_send(Err(status.clone()));
            if matches!(status.code(), Code::Unauthenticated | Code::DeadlineExceeded) {
                // What waits to be read is not for it any more. It gets a moment to hear why.
                let _ = timeout(PARTING, self.responses.closed()).await;
                self.cut.notify_one();
            }
        } else if let Some(left_out) = shared.seldom(&node, "ended") {
            tracing::info!(node, left_out, "a node's stream has ended");
        }
    }

    async fn talk(&mut self, requests: &mut Incoming) -> Result<(), Status> {
        let (mut changed, mut admission) = (self.shared.changed.subscribe(), self.shared.admission.subscribe());
        // What has changed between its admission and now.
        self.still()?;
        loop {
            // By the wall clock, which may be set: never long.
            let good = self.caller.good_for(now()).clamp(LEAST_LOOK, LONGEST_LOOK);
            let stalled = self.moves()?;
            // What it says that it has is compared with what there is: so long it waits.
            let synced = self.shared.board().is_synced();
            tokio::select! {
                frame = requests.frame(), if synced => match frame {
                    Some(Ok(frame)) => if let Ok(data) = frame.into_data() {
                        self.hear(&data)?;
                    },
                    // It has hung up, in whatever way.
                    None | Some(Err(_)) => return Ok(()),
                },
                changed = changed.changed() => if changed.is_err() {
                    return Err(Status::unavailable("the control plane is stopping"));
                },
                heard = admission.changed() => self.still_after(heard)?,
                () = sleep(good) => self.still()?,
                () = sleep_until(stalled) => {}
                () = self.responses.closed() => return Ok(()),
            }
            self.tell()?;
        }
    }

    /// When to look again whether a response is overdue of which nothing goes any more: whoever reads nothing would keep what it
    /// is told for ever. That something goes is not told, and so is seen by looking.
    fn moves(&mut self) -> Result<Instant, Status> {
        let (waits, moved) = (self.flow.waits.load(Ordering::Relaxed), self.flow.moved.load(Ordering::Relaxed));
        if waits == 0 || moved != self.moved {
            (self.moved, self.moved_at) = (moved, Instant::now());
        }
        let next = if waits == 0 { READING } else { MOVING };
        match self.moved_at.elapsed() < READING {
            true => Ok((self.moved_at + READING).min(Instant::now() + next)),
            false => Err(Status::deadline_exceeded("nothing was read for a while")),
        }
    }

    fn still_after(&self, heard: Result<(), watch::error::RecvError>) -> Result<(), Status> {
        heard.map_err(|_| Status::unavailable("the control plane is stopping"))?;
        self.still()
    }

    /// A stream lives no longer than what its node is known by: whoever is revoked hears nothing more of the mesh.
    fn still(&self) -> Result<(), Status> {
        let door = &self.shared.door;
        door.still(&self.caller, now()).inspect_err(|_| door.counts.cut_one())
    }

    fn hear(&mut self, data: &[u8]) -> Result<(), Status> {
        self.asked.handle_data(data);
        loop {
            let next = self.asked.poll_request(&self.shared.board());
            match next.map_err(|error| self.refuse(&error))? {
                Some((request, claims)) => self.hear_request(request, claims)?,
                None => return Ok(()),
            }
        }
    }

    fn hear_request(&mut self, request: DeltaDiscoveryRequest, claims: Claims) -> Result<(), Status> {
        let (node, counts) = (&self.caller.node, &self.shared.door.counts);
        if let Some(said) = request.node.as_ref().and_then(node_name)
            && said != node
        {
            counts.refuse(Refusal::Node);
            let why = format!("its credential is for the node {node}, and not for {said}");
            return Err(Status::permission_denied(why));
        }
        match self.subscriber.handle_request(request, claims) {
            Ok(None) => Ok(()),
            Ok(Some(refusal)) => {
                let why = &refusal.why;
                if let Some(left_out) = self.shared.seldom(node, "refusals") {
                    tracing::warn!(
                        node,
                        kind = refusal.kind.type_url(),
                        why,
                        left_out,
                        "a node has refused what it was told"
                    );
                }
                Ok(())
            }
            Err(error) => Err(self.refuse(&error)),
        }
    }

    fn refuse(&self, error: &RequestError) -> Status {
        self.shared.door.counts.refuse(Refusal::Request);
        Status::invalid_argument(error.to_string())
    }

    /// Has whatever is to be said written as it is read.
    fn tell(&mut self) -> Result<(), Status> {
        loop {
            let response = self.subscriber.poll_response(&self.shared.board());
            let Some(response) = response.map_err(|behind| Status::aborted(behind.to_string()))? else {
                return Ok(());
            };
            if self.flow.waits.fetch_add(1, Ordering::Relaxed) == 0 {
                self.moved_at = Instant::now();
            }
            // Of each kind one is on its way at most. Where it hangs up meanwhile, that is found out next.
            let _ = self.responses.try_send(Ok(response.write()));
        }
    }
}

/// How far what a client is told has gone.
#[derive(Debug, Default)]
struct Flow {
    /// Responses of which some is still to go.
    waits: AtomicU64,
    /// Parts that have gone.
    moved: AtomicU64,
}

/// What a client is told, as the body of its call's answer.
struct Responses {
    from: mpsc::Receiver<Result<Writing, Status>>,
    present: Option<Writing>,
    flow: Arc<Flow>,
    over: bool,
}

impl hyper::body::Body for Responses {
    type Data = Bytes;
    type Error = Infallible;

    /// Is asked when there is room on the way.
    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        while !this.over {
            if let Some(part) = this.present.as_mut().and_then(Writing::next_part) {
                this.flow.moved.fetch_add(1, Ordering::Relaxed);
                return Poll::Ready(Some(Ok(Frame::data(part))));
            }
            if this.present.take().is_some() {
                this.flow.waits.fetch_sub(1, Ordering::Relaxed);
            }
            match ready!(this.from.poll_recv(cx)) {
                Some(Ok(writing)) => this.present = Some(writing),
                ended => {
                    this.over = true;
                    let status = ended.and_then(Result::err).unwrap_or_else(|| Status::ok(""));
                    let mut trailers = HeaderMap::new();
                    // Ours bear nothing but what can be sent.
                    let _ = status.add_header(&mut trailers);
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                }
            }
        }
        Poll::Ready(None)
    }
}

/// The call for a stream.
pub(super) const PATH: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
/// Streams that a node may have open: its present one, and some that have not been found to be dead yet.
pub(super) const STREAMS: usize = 16;
/// What waits to be read: a response of each kind, and why the stream ends.
const RESPONSES: usize = 4;
/// How long a client may read nothing of what it is told.
const READING: Duration = Duration::from_secs(60);
/// Between two looks whether something goes of what waits.
const MOVING: Duration = Duration::from_secs(1);
/// Between two looks at whether a node is still known, where nothing is told to have changed.
pub(super) const LONGEST_LOOK: Duration = Duration::from_secs(60);
pub(super) const LEAST_LOOK: Duration = Duration::from_millis(50);
/// How long what is cut has to hear why.
pub(super) const PARTING: Duration = Duration::from_millis(500);

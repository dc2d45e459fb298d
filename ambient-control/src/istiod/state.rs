//! The client: connects, lets the session speak, and begins again when the stream ends.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use ambient_authz::wire;
use bytes::Bytes;
use http_body_util::{BodyExt as _, channel};
use prost::Message as _;
use tokio::{
    sync::mpsc,
    time::{self, sleep, timeout},
};
use tonic::{Status, body::Body};

use super::{
    asker::Asker,
    join::{Membership, NodeCredential},
    keeper::Keeper,
    memory::{Entry, Memory},
    pieces::{Piece, Pieces},
    session::{self, Come, Session},
    transport::{Endpoint, EndpointError, LOOKING, OpenError},
};
use crate::{
    AskError, Batch, BoxFuture, Fault, KnownUntil, LastHeard, OnDemand, Source, StreamCounts, StreamEnd,
    backoff::Backoff,
    disk::{MemoryConfig, MemoryError},
    wire::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse},
};

mod end;
#[cfg(test)]
mod tests;

use end::End;

/// How state is asked for.
#[derive(Clone, Debug)]
pub struct StateConfig {
    /// Where.
    pub endpoint: Endpoint,
    /// Who asks.
    pub asker: Asker,
    /// Ask for workloads and services one by one, as they are needed ([`Source::on_demand`]), instead of for all.
    pub on_demand: bool,
    /// Ask for roots and revocations as well, which come as [`Change::Trust`](crate::Change::Trust): of `ambient control`, for
    /// istiod knows no such thing.
    pub trust: bool,
    /// How policies are read.
    pub policies: wire::Settings,
    /// The longest message that is taken, in bytes; 200 MiB, ztunnel's, by default.
    pub longest_message: usize,
    /// For so long after a reconnect the removal of more than half of a kind is not believed at once; 10 s by default.
    pub settling: Duration,
    /// So long such removals wait; 30 s by default.
    pub grace: Duration,
    /// Where what was known last is kept for a restart while istiod is away; nowhere by default.
    pub memory: Option<MemoryConfig>,
}

impl StateConfig {
    /// With the defaults.
    pub fn new(endpoint: Endpoint, asker: Asker) -> Self {
        Self {
            endpoint,
            asker,
            on_demand: false,
            trust: false,
            policies: wire::Settings::default(),
            longest_message: 200 * 1024 * 1024,
            settling: Duration::from_secs(10),
            grace: Duration::from_secs(30),
            memory: None,
        }
    }

    fn of_session(&self) -> session::Settings {
        session::Settings {
            node: self.asker.node(),
            on_demand: self.on_demand,
            trust: self.trust,
            policies: self.policies.clone(),
            settling: self.settling,
            grace: self.grace,
            longest_request: if self.trust { LONGEST_TO_CONTROL } else { LONGEST_TO_ISTIOD },
            remembers: self.memory.is_some(),
        }
    }

    /// Whose state is remembered, and which part of it: what was a whole state for one is none for another.
    fn origin(&self) -> String {
        let whose = self.endpoint.origin();
        let which = if self.on_demand { "what was asked for" } else { "all" };
        let trust = if self.trust { ", and whom to trust" } else { "" };
        format!("{whose} ({which}{trust})")
    }
}

/// Workloads, services and policies as istiod tells them.
///
/// It connects by itself, and again whenever the connection ends; meanwhile what was known stays. A task of the runtime that
/// made it does the work, and ends when it is dropped.
#[derive(Debug)]
pub struct State {
    batches: mpsc::Receiver<Batch>,
    trust: bool,
    asking: Option<Arc<Asking>>,
    membership: Option<Arc<Membership>>,
    last_heard: LastHeard,
    streams: StreamCounts,
}

/// What is needed, or needed no longer, of a mesh that is not sent whole.
#[derive(Debug)]
struct Asking {
    /// Without a bound of its own: what is given back was asked for, and none of it may be lost, nor come before that.
    wishes: mpsc::UnboundedSender<Wish>,
    /// Names that wait to be asked for.
    waiting: Arc<AtomicUsize>,
    /// Whether a stream is open on which the control plane has spoken: one that only takes streams keeps nothing up to date.
    there: Arc<AtomicBool>,
}

#[derive(Debug)]
enum Wish {
    Ask(String),
    GiveBack(Vec<String>),
}

impl OnDemand for Asking {
    fn ask(&self, name: &str) -> Result<(), AskError> {
        let more = |waiting: usize| (waiting < WISHES).then_some(waiting + 1);
        if self.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_err() {
            return Err(AskError::TooMuch);
        }
        self.wishes.send(Wish::Ask(name.to_owned())).map_err(|_| AskError::Ended)
    }

    fn give_back(&self, names: Vec<String>) {
        // Whoever has ended holds nothing.
        let _ = self.wishes.send(Wish::GiveBack(names));
    }

    fn is_there(&self) -> bool {
        self.there.load(Ordering::Relaxed)
    }
}

impl State {
    /// Begins to connect.
    ///
    /// # Errors
    /// When the endpoint cannot be understood, or [`StateConfig::memory`] names no place that can be kept. Whatever may be
    /// otherwise later, such as a file that is not there, is tried again and told as a [`Fault`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn connect(config: StateConfig) -> Result<Self, ConnectError> {
        config.endpoint.check()?;
        let mut session = Session::new(config.of_session());
        let recalled = match &config.memory {
            Some(memory) => Recalled::open(memory, &config.origin(), &mut session)?,
            None => Recalled::default(),
        };
        Ok(Self::begin(config, session, recalled))
    }

    fn begin(config: StateConfig, session: Session, recalled: Recalled) -> Self {
        let (sender, batches) = mpsc::channel(BATCHES);
        let (wishes, wished) = mpsc::unbounded_channel();
        let waiting = Arc::<AtomicUsize>::default();
        let there = Arc::<AtomicBool>::default();
        let asking = config.on_demand.then(|| {
            Arc::new(Asking {
                wishes: wishes.clone(),
                waiting: waiting.clone(),
                there: there.clone(),
            })
        });
        let (trust, last_heard, streams) = (config.trust, LastHeard::default(), StreamCounts::default());
        if let Some(heard) = recalled.heard {
            last_heard.at(heard);
        }
        let membership = config.endpoint.membership.clone();
        let client = Client {
            config,
            session,
            batches: sender,
            wished,
            waiting,
            _wishes: wishes,
            there,
            answered: Vec::new(),
            away: None,
            keeper: recalled.keeper,
            heard: recalled.heard,
            whole: recalled.heard,
            last_heard: last_heard.clone(),
            streams: streams.clone(),
            came: 0,
            spoken: false,
            expired: false,
            told: Vec::new(),
            synced: false,
        };
        tokio::spawn(client.run(recalled.changes));
        Self {
            batches,
            trust,
            asking,
            membership,
            last_heard,
            streams,
        }
    }
}

impl Source for State {
    fn next(&mut self) -> BoxFuture<'_, Option<Batch>> {
        Box::pin(self.batches.recv())
    }

    fn last_heard(&self) -> Option<LastHeard> {
        Some(self.last_heard.clone())
    }

    fn gives_trust(&self) -> bool {
        self.trust
    }

    fn known_until(&self) -> Option<KnownUntil> {
        let membership = self.membership.clone()?;
        Some(Arc::new(move || membership.not_after()))
    }

    fn streams(&self) -> Option<StreamCounts> {
        Some(self.streams.clone())
    }

    fn on_demand(&self) -> Option<Arc<dyn OnDemand>> {
        Some(self.asking.clone()?)
    }
}

/// Why state cannot be asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The endpoint cannot be understood.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// The place where state is to be kept is none.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// What an earlier process left.
#[derive(Default)]
struct Recalled {
    keeper: Option<Keeper>,
    changes: Vec<crate::Change>,
    heard: Option<SystemTime>,
}

impl Recalled {
    fn open(config: &MemoryConfig, origin: &str, session: &mut Session) -> Result<Self, MemoryError> {
        let (memory, remembered) = Memory::open(&config.directory, origin)?;
        let (mut recalled, mut fault) = (Self::default(), None);
        match remembered {
            Ok(remembered) => {
                recalled.heard = remembered.heard;
                recalled.changes = session.remember(remembered).changes;
            }
            Err(error) => {
                tracing::error!(%error, "nothing is known of what the control plane said before");
                fault = Some(error.to_string());
            }
        }
        recalled.keeper = Some(Keeper::new(memory, fault));
        Ok(recalled)
    }
}

struct Client {
    config: StateConfig,
    session: Session,
    batches: mpsc::Sender<Batch>,
    wished: mpsc::UnboundedReceiver<Wish>,
    /// Of these those that ask for something.
    waiting: Arc<AtomicUsize>,
    /// So that the channel stays open where nobody asks.
    _wishes: mpsc::UnboundedSender<Wish>,
    there: Arc<AtomicBool>,
    /// Answers that no batch has brought yet.
    answered: Vec<Arc<str>>,
    /// Why there is no stream.
    away: Option<String>,
    /// Who remembers; `None` where nothing is to be.
    keeper: Option<Keeper>,
    /// When istiod was heard of last.
    heard: Option<SystemTime>,
    /// When all that is known was known to be so: of half a first state, that is as long ago as it was before.
    whole: Option<SystemTime>,
    /// The same for others, with whether it is there now.
    last_heard: LastHeard,
    streams: StreamCounts,
    /// Bytes of the resources of the response that is coming.
    came: u64,
    /// Whether anything has come whole on the present stream.
    spoken: bool,
    /// Whether what was remembered is too old to be gone by.
    expired: bool,
    /// The faults that were told last.
    told: Vec<Fault>,
    synced: bool,
}

impl Client {
    async fn run(mut self, recalled: Vec<crate::Change>) {
        self.expire();
        if self.tell(recalled).await.is_err() {
            return;
        }
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        loop {
            let opened = now();
            let end = self.stream().await;
            self.there.store(false, Ordering::Relaxed);
            if let Some(heard) = self.heard {
                self.last_heard.at(heard);
            }
            self.session.handle_closed();
            let (how, why, usual) = match end {
                End::Usual(how, why) => (how, why, true),
                End::Failed(how, why) => (how, why, false),
                End::Dropped => return,
            };
            self.streams.ended(how);
            // One that takes its leave of each stream as soon as it is open is not to be asked without a pause.
            let lasted = now().duration_since(opened);
            if lasted > LONGEST_WAIT || (usual && lasted > STEADY) {
                backoff.reset();
            }
            let wait = backoff.next();
            match usual {
                true => tracing::debug!(%why, "the stream of the control plane has ended"),
                false => tracing::warn!(%why, ?wait, known = %self.age(), "no stream of the control plane; what is known stays"),
            }
            self.away = Some(format!("no stream from {}: {why}", self.config.endpoint.address));
            self.expire();
            // One that closes in good order is seldom away for longer than the next attempt takes.
            if !usual && self.tell(Vec::new()).await.is_err() {
                return;
            }
            let membership = self.config.endpoint.membership.clone();
            let pause = async {
                match &membership {
                    // Who had no certificate to show goes on with the first.
                    Some(membership) => timeout(wait, membership.comes()).await.unwrap_or_default(),
                    None => sleep(wait).await,
                }
            };
            tokio::pin!(pause);
            let mut look = std::pin::pin!(self.look());
            loop {
                tokio::select! {
                    () = &mut pause => break,
                    () = sleep(FOR_ROOM), if self.owes() => self.remember(Vec::new(), None),
                    () = news(self.keeper.as_ref()) => if self.tell(Vec::new()).await.is_err() {
                        return;
                    },
                    Some(wish) = self.wished.recv() => if self.grant(wish).await.is_err() {
                        return;
                    },
                    () = &mut look => {
                        look.set(self.look());
                        if self.tell(Vec::new()).await.is_err() {
                            return;
                        }
                    }
                    () = self.batches.closed() => return,
                }
            }
        }
    }

    /// Waits a while, and looks at the files by which the control plane is reached.
    fn look(&self) -> impl Future<Output = ()> + use<> {
        let endpoint = self.config.endpoint.clone();
        async move {
            sleep(LOOKING).await;
            endpoint.look().await;
        }
    }

    async fn stream(&mut self) -> End {
        let (mut requests, mut responses, shown) = match self.begin().await {
            Ok(opened) => opened,
            Err(end) => return end,
        };
        let membership = self.config.endpoint.membership.clone();
        let mut replaced = std::pin::pin!(async {
            match (&membership, &shown) {
                (Some(membership), Some(shown)) => membership.replaced(shown).await,
                _ => std::future::pending().await,
            }
        });
        // What has come of a response that is not there whole goes with its stream.
        let (mut pieces, mut come) = (Pieces::new(self.config.longest_message), Vec::new());
        let (mut silence, mut marked) = (now() + FIRST_WORD, now());
        let mut look = std::pin::pin!(self.look());
        loop {
            while let Some(request) = self.session.poll_request() {
                match timeout(ANSWERING, requests.send_data(framed(&request))).await {
                    Ok(Ok(())) => {}
                    // The responses say why.
                    Ok(Err(_)) => break,
                    Err(_) => return End::Failed(StreamEnd::Error, "the control plane reads nothing".into()),
                }
            }
            let wake = self.session.timeout().map(time::Instant::from_std);
            tokio::select! {
                frame = responses.frame() => {
                    let data = match frame.map(|frame| frame.map(|frame| frame.into_data())) {
                        Some(Ok(Ok(data))) => data,
                        Some(Ok(Err(last))) => return self.closed(last.trailers_ref().and_then(Status::from_header_map)),
                        Some(Err(status)) => return self.ended(&status),
                        None => return self.closed(None),
                    };
                    pieces.handle_data(&data);
                    silence = now() + FIRST_WORD;
                    if let Err(end) = self.hear(&mut pieces, &mut come).await {
                        return end;
                    }
                },
                // It answers pings, and hangs all the same: another that has its name may not.
                () = time::sleep_until(silence.into()), if !self.spoken => {
                    return End::Failed(StreamEnd::Error, format!("the control plane has said nothing for {FIRST_WORD:?}"));
                }
                // The control plane ends a stream with the certificate that was shown for it: it goes on with the next.
                () = &mut replaced => return End::Usual(StreamEnd::Reconnect, "this node has another certificate".into()),
                () = async { match wake { Some(at) => time::sleep_until(at).await, None => std::future::pending().await } } => {
                    let received = self.session.handle_timeout(now());
                    if self.pass_on(received).await.is_err() {
                        return End::Dropped;
                    }
                }
                // A control plane that has nothing to say is there all the same.
                () = time::sleep_until((marked + self.marking()).into()) => {
                    marked = now();
                    if self.mark().await.is_err() {
                        return End::Dropped;
                    }
                }
                () = news(self.keeper.as_ref()) => if self.tell(Vec::new()).await.is_err() {
                    return End::Dropped;
                },
                () = &mut look => {
                    look.set(self.look());
                    if self.tell(Vec::new()).await.is_err() {
                        return End::Dropped;
                    }
                }
                Some(wish) = self.wished.recv() => if self.grant(wish).await.is_err() {
                    return End::Dropped;
                },
                () = self.batches.closed() => return End::Dropped,
            }
        }
    }

    /// Opens a stream that begins with what is known.
    async fn begin(&mut self) -> Result<(channel::Sender<Bytes>, Body, Option<Arc<NodeCredential>>), End> {
        let failed = |error: &dyn std::error::Error| End::Failed(StreamEnd::ConnectionError, super::transport::whole(error));
        (self.came, self.spoken) = (0, false);
        let endpoint = self.config.endpoint.clone();
        let (channel, shown) = endpoint
            .connect()
            .await
            .map_err(|error| End::Failed(StreamEnd::ConnectionError, error.to_string()))?;
        let (mut requests, outgoing) = channel::Channel::new(REQUESTS);
        self.session.handle_opened(now());
        // The first requests go along: servers answer the call itself only then. Nobody takes them before, so that there is to be
        // room for all of them.
        for request in std::iter::from_fn(|| self.session.poll_request()).take(REQUESTS) {
            if requests.send_data(framed(&request)).await.is_err() {
                return Err(End::Failed(StreamEnd::Error, "the stream was not opened".into()));
            }
        }
        match timeout(ANSWERING, endpoint.open(channel, STREAM, Body::new(outgoing))).await {
            Ok(Ok(responses)) => Ok((requests, responses, shown)),
            Ok(Err(OpenError::Refused(status))) => Err(self.ended(&status)),
            Ok(Err(error)) => Err(failed(&error)),
            Err(_) => Err(End::Failed(StreamEnd::Error, format!("no answer within {ANSWERING:?}"))),
        }
    }

    /// Takes in what has come whole.
    async fn hear(&mut self, pieces: &mut Pieces, come: &mut Vec<Come>) -> Result<(), End> {
        loop {
            match pieces.poll_piece() {
                Ok(Some(Piece::Resource(resource))) => {
                    self.came += resource.resource.as_ref().map_or(0, |any| any.value.len() as u64);
                    come.push(self.session.read(resource));
                }
                Ok(Some(Piece::End(response))) => self.take_in(&response, std::mem::take(come)).await.map_err(|()| End::Dropped)?,
                Ok(None) => break,
                Err(error) => return Err(End::Failed(StreamEnd::Error, error.to_string())),
            }
        }
        // A mesh may come without a pause: others of this thread are not to wait for its end.
        tokio::task::consume_budget().await;
        Ok(())
    }

    /// A response has come.
    async fn take_in(&mut self, response: &DeltaDiscoveryResponse, come: Vec<Come>) -> Result<(), ()> {
        self.away = None;
        self.spoken = true;
        self.there.store(true, Ordering::Relaxed);
        self.last_heard.is_there();
        let came = std::mem::take(&mut self.came);
        if let Some(kind) = session::Kind::of(&response.type_url) {
            self.streams.received(kind.type_url(), came);
        }
        let received = self.session.handle_response(now(), response, come);
        if received.waiting > 0 {
            let (count, grace) = (received.waiting, self.config.grace);
            tracing::warn!(
                count,
                ?grace,
                "the control plane has come back without much of what it had: removals wait"
            );
        }
        for refused in &received.refused {
            tracing::warn!(%refused, "refused of the control plane");
        }
        self.expired &= !self.session.is_synced();
        tell_empty_matches(&received.changes);
        self.pass_on(received).await
    }

    /// Does what is wished; a batch is sent where that answers or changes anything.
    async fn grant(&mut self, wish: Wish) -> Result<(), ()> {
        match wish {
            Wish::Ask(name) => {
                self.waiting.fetch_sub(1, Ordering::Relaxed);
                match self.session.ask(&name) {
                    session::Ask::Asked => {}
                    session::Ask::Answered => {
                        self.answered.push(name.into());
                        self.tell(Vec::new()).await?;
                    }
                    session::Ask::TooMany => tracing::warn!(name, "too much is asked of the control plane: not asked for"),
                }
            }
            Wish::GiveBack(names) => {
                let received = self.session.give_back(&names);
                // What was wrong with them goes too.
                self.tell(received.changes).await?;
                if !received.entries.is_empty() {
                    self.remember(received.entries, None);
                }
            }
        }
        Ok(())
    }

    /// Passes on what a response has brought. It is remembered behind that: what a disk does is nothing to wait for.
    async fn pass_on(&mut self, received: session::Received) -> Result<(), ()> {
        self.hear_of();
        self.answered.extend(received.answered.into_iter().map(Arc::from));
        self.tell(received.changes).await?;
        self.remember(received.entries, self.whole);
        Ok(())
    }

    /// It is there, and all that is known is so, where all was answered.
    fn hear_of(&mut self) {
        self.heard = Some(super::identity::now());
        if self.session.is_answered() {
            self.whole = self.heard;
        }
    }

    /// It is noted that the control plane is there, where it has spoken on this stream: one that only takes streams is not heard of.
    /// What it has not said yet gets older all the same.
    async fn mark(&mut self) -> Result<(), ()> {
        if self.spoken {
            self.hear_of();
        }
        self.remember(Vec::new(), self.whole);
        self.expire();
        self.tell(Vec::new()).await
    }

    /// How long until it is noted again that istiod is there, or written what there was no room for.
    fn marking(&self) -> Duration {
        if self.owes() { FOR_ROOM } else { MARKING }
    }

    fn owes(&self) -> bool {
        self.keeper.as_ref().is_some_and(Keeper::owes)
    }

    /// Remembers what is to be remembered, once there is anything.
    fn remember(&self, entries: Vec<Entry>, whole: Option<SystemTime>) {
        if let (Some(keeper), Some(_)) = (&self.keeper, self.heard) {
            keeper.note(entries, whole);
        }
    }

    /// What was remembered does not count for ever.
    fn expire(&mut self) {
        let (Some(config), Some(whole)) = (&self.config.memory, self.whole) else {
            return;
        };
        let age = super::identity::now().duration_since(whole).unwrap_or_default();
        if self.session.is_remembered() && age > config.longest {
            tracing::error!(age = %self.age(), "the control plane was not heard of for too long: what was known is not gone by any more");
            self.session.forget();
            self.expired = true;
        }
    }

    /// How old what is known is.
    fn age(&self) -> String {
        match self.whole {
            Some(whole) => spelled(super::identity::now().duration_since(whole).unwrap_or_default()),
            None => "never".to_owned(),
        }
    }

    /// Hands changes on, and what is wrong where that is new.
    async fn tell(&mut self, changes: Vec<crate::Change>) -> Result<(), ()> {
        if let Some(membership) = &self.config.endpoint.membership {
            for change in &changes {
                if let crate::Change::Trust(trust) = change {
                    membership.learn(trust);
                }
            }
        }
        let mut faults = self.session.faults();
        if let Some(away) = &self.away {
            let known = self.whole.map(|_| format!("; what is known is {} old", self.age()));
            faults.push(Fault::from(format!("{away}{}", known.unwrap_or_default())));
        }
        faults.extend(self.config.endpoint.files.faults().into_iter().map(Fault::from));
        faults.extend(self.keeper.iter().flat_map(Keeper::faults).map(Fault::from));
        if self.session.is_remembered() {
            let longest = self.config.memory.as_ref().map(|memory| spelled(memory.longest));
            faults.push(Fault::from(format!(
                "the control plane has not said all since the start: the rest is as remembered, and {} old; new connections are refused once it \
                 is older than {}",
                self.age(),
                longest.unwrap_or_default()
            )));
        }
        if self.expired {
            faults.push(Fault::from(format!(
                "the control plane was not heard of for {}, which is too long to go by what is remembered: new connections are refused until \
                 it answers",
                self.age()
            )));
        }
        let synced = self.session.is_synced();
        if changes.is_empty() && self.answered.is_empty() && faults == self.told && synced == self.synced {
            return Ok(());
        }
        self.told.clone_from(&faults);
        self.synced = synced;
        let batch = Batch {
            changes,
            synced,
            faults: Arc::from(faults),
            answered: std::mem::take(&mut self.answered),
        };
        self.batches.send(batch).await.map_err(|_| ())
    }
}

/// Waits for news of who remembers, if anybody does.
async fn news(keeper: Option<&Keeper>) {
    match keeper {
        Some(keeper) => keeper.news().await,
        None => std::future::pending().await,
    }
}

/// What a control plane could not express of a policy is gone from it, and can only be told.
fn tell_empty_matches(changes: &[crate::Change]) {
    for change in changes {
        let crate::Change::Policy(ambient_authz::policy::Update::Set(policy)) = change else {
            continue;
        };
        if let Some(place) = wire::empty_matches(policy).next() {
            let (policy, action) = (&policy.key, policy.action);
            tracing::warn!(%policy, %action, place, "a match of it holds nothing, and so is never true: what is not for L4 was dropped");
        }
    }
}

/// A time for people; minutes will do, and do not change with every look.
fn spelled(time: Duration) -> String {
    let minutes = time.as_secs() / 60;
    match (minutes / 60, minutes % 60) {
        (0, 0) => "less than a minute".into(),
        (0, minutes) => format!("{minutes} min"),
        (hours @ 0..48, 0) => format!("{hours} h"),
        (hours @ 0..48, minutes) => format!("{hours} h {minutes} min"),
        (hours, _) => format!("{} days", hours / 24),
    }
}

/// A message as gRPC frames it. Room for a long one goes once it is sent.
fn framed(request: &DeltaDiscoveryRequest) -> Bytes {
    let message = request.encode_to_vec();
    let mut framed = Vec::with_capacity(5 + message.len());
    framed.push(0);
    framed.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    framed.extend_from_slice(&message);
    framed.into()
}

fn now() -> Instant {
    // The runtime's clock: a test may have stopped it.
    time::Instant::now().into_std()
}

/// The call.
const STREAM: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
/// Batches that wait to be taken. One may be a whole mesh.
const BATCHES: usize = 4;
/// Requests that wait to be sent.
const REQUESTS: usize = 16;
/// Names that wait to be asked for.
const WISHES: usize = 4096;
/// How often it is noted that the control plane is there.
const MARKING: Duration = Duration::from_secs(60);
/// How often it is looked whether there is room by now for what could not be remembered.
const FOR_ROOM: Duration = Duration::from_secs(2);
/// The longest request that istiod is sent, in bytes. It takes 4 MiB, unless it is told otherwise.
const LONGEST_TO_ISTIOD: usize = 3 << 20;
/// The longest that `ambient control` is sent, which takes 64 MiB.
const LONGEST_TO_CONTROL: usize = 48 << 20;
/// How long the control plane may take to open a stream, or to read a request.
const ANSWERING: Duration = Duration::from_secs(10);
/// How long it may say nothing at all on a stream that it has taken; a whole mesh is on its way sooner.
const FIRST_WORD: Duration = Duration::from_secs(120);
/// How long a stream lasts at least that ends because it is time to.
const STEADY: Duration = Duration::from_secs(1);
const FIRST_WAIT: Duration = Duration::from_millis(10);
const LONGEST_WAIT: Duration = Duration::from_secs(12);

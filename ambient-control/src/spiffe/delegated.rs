//! SPIRE's Delegated Identity API: certificates for the many pods of a node, asked for by one process.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    str::FromStr,
    sync::{Arc, Mutex},
    time::Duration,
};

use ambient_core::{Credential, Identity, PodUid, TrustBundles, TrustDomain};
use rustls::crypto::CryptoProvider;
use tokio::{
    sync::Notify,
    task::AbortHandle,
    time::{sleep, timeout},
};
use tonic::{Code, transport::Channel};
use zeroize::Zeroizing;

use super::{
    Socket, bundles,
    desk::{self, Desk, lock},
    kept::Kept,
    subscription::{ANSWERING, Away, Came, Failure, Presence, follow},
    svid::Raw,
};
use crate::{
    BoxFuture, IssueError, Issuer, LastHeard, Told,
    disk::{MemoryConfig, MemoryError},
    wire::spire::api::{
        agent::delegatedidentity::v1::{
            SubscribeToX509BundlesRequest, SubscribeToX509sviDsRequest, SubscribeToX509sviDsResponse, X509svidWithKey,
            delegated_identity_client::DelegatedIdentityClient,
        },
        types,
    },
};

#[cfg(test)]
mod tests;

/// One property of a workload by which SPIRE finds its registration entries, such as `k8s:ns:shop`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector {
    /// Who vouches for it: the name of SPIRE's attestor, such as `k8s` or `unix`.
    pub kind: String,
    /// What it says, such as `ns:shop`.
    pub value: String,
}

impl Selector {
    /// A selector.
    pub fn new(kind: &str, value: impl Into<String>) -> Self {
        Self {
            kind: kind.into(),
            value: value.into(),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind, self.value)
    }
}

impl FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            Some((kind, value)) if !kind.is_empty() && !value.is_empty() => Ok(Self::new(kind, value)),
            _ => Err(SelectorError { text: text.into() }),
        }
    }
}

/// A text that is not a selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a selector of SPIRE's: the form is TYPE:VALUE, such as k8s:ns:shop")]
pub struct SelectorError {
    text: String,
}

/// How a workload is described to the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// By what is known of it. The agent takes the word of a delegate for it, and finds the entries **all** of whose selectors
    /// are among these.
    Selectors(Vec<Selector>),
    /// By one of its processes, which the agent looks at itself: as the agent numbers it. Whoever says so sees to it that the
    /// number is not another process's before the answer has come.
    Process(i32),
}

impl Subject {
    /// What Kubernetes says of an identity and of the pods of this node that bear it: `k8s:ns`, `k8s:sa`, and `k8s:pod-uid` for
    /// each, at most 256 of them.
    ///
    /// So entries are found that were made by hand for an account, and those that a controller makes for each pod. An entry
    /// that asks for more, such as a label or an image, is found only by a process.
    pub fn kubernetes(identity: &Identity, pods: &[PodUid]) -> Self {
        let mut selectors = vec![
            Selector::new("k8s", format!("ns:{}", identity.namespace())),
            Selector::new("k8s", format!("sa:{}", identity.service_account())),
        ];
        let uids = pods.iter().take(MOST_PODS);
        selectors.extend(uids.map(|pod| Selector::new("k8s", format!("pod-uid:{}", pod.as_str()))));
        Self::Selectors(selectors)
    }

    fn request(self) -> SubscribeToX509sviDsRequest {
        let selector = |s: Selector| types::Selector {
            r#type: s.kind,
            value: s.value,
        };
        match self {
            Self::Selectors(selectors) => SubscribeToX509sviDsRequest {
                selectors: selectors.into_iter().map(selector).collect(),
                pid: 0,
            },
            Self::Process(pid) => SubscribeToX509sviDsRequest {
                selectors: Vec::new(),
                pid,
            },
        }
    }
}

/// Says how an identity, and the pods of this node that bear it, are described to the agent.
pub type Describe = Arc<dyn Fn(&Identity, &[PodUid]) -> Subject + Send + Sync>;

/// How certificates are asked for.
#[derive(Clone)]
#[non_exhaustive]
pub struct DelegatedConfig {
    /// The agent's admin socket.
    pub socket: Socket,
    /// This node's own trust domain, whose roots are never given up.
    pub trust_domain: TrustDomain,
    /// What checks signatures and keys.
    pub provider: Arc<CryptoProvider>,
    /// How a workload is described; [`Subject::kubernetes`] by default.
    pub describe: Describe,
    /// Identities at a time, each of which is a stream; 1,024 by default.
    pub identities: usize,
    /// How long the first certificate of an identity is waited for; 8 s by default.
    pub patience: Duration,
    /// Where roots are kept for a restart while the agent is away; nowhere by default. Never keys, nor certificates.
    pub memory: Option<MemoryConfig>,
}

impl DelegatedConfig {
    /// With the defaults.
    pub fn new(socket: Socket, trust_domain: TrustDomain, provider: Arc<CryptoProvider>) -> Self {
        Self {
            socket,
            trust_domain,
            provider,
            describe: Arc::new(Subject::kubernetes),
            identities: 1024,
            patience: Duration::from_secs(8),
            memory: None,
        }
    }
}

impl fmt::Debug for DelegatedConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DelegatedConfig")
            .field("socket", &self.socket)
            .field("trust_domain", &self.trust_domain)
            .field("identities", &self.identities)
            .field("patience", &self.patience)
            .finish_non_exhaustive()
    }
}

/// The certificates of a node's pods, from a SPIRE agent that takes this process for their delegate.
///
/// Each identity is one stream, whichever pods bear it; it begins when the identity is [asked for](Issuer::issue), and ends
/// after its last pod [has left](Issuer::leaves), when nothing has come and no pod bears it, or when this is dropped. An answer is believed only as far as it gives the
/// identity that is asked for, with its own key, under the roots that the agent tells. What it holds no longer is withdrawn at
/// once. A stream that fails takes nothing away, also where the agent does not let this process ask any more: that says
/// nothing of the pods.
pub struct DelegatedIdentity {
    core: Arc<Core>,
    bundles: AbortHandle,
}

struct Core {
    config: DelegatedConfig,
    channel: Channel,
    desk: Desk,
    presence: Presence,
    streams: Mutex<HashMap<Identity, Stream>>,
}

/// The stream of one identity, and who bears that.
#[derive(Default)]
struct Stream {
    /// A pod that is served anew may be here twice for a moment.
    pods: BTreeMap<PodUid, usize>,
    /// Those that the agent was told of last.
    described: Vec<PodUid>,
    again: Arc<Notify>,
    task: Option<AbortHandle>,
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl fmt::Debug for DelegatedIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DelegatedIdentity")
            .field("config", &self.core.config)
            .finish_non_exhaustive()
    }
}

impl Drop for DelegatedIdentity {
    fn drop(&mut self) {
        self.bundles.abort();
        lock(&self.core.streams).clear();
    }
}

impl DelegatedIdentity {
    /// Begins to ask for roots. That the agent is away is no error: it is looked for until it is there, and those that are
    /// remembered are trusted meanwhile.
    ///
    /// # Errors
    /// When [`DelegatedConfig::memory`] names no place that can be kept.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new(config: DelegatedConfig) -> Result<Self, MemoryError> {
        Self::with_clock(config, desk::system())
    }

    pub(super) fn with_clock(config: DelegatedConfig, clock: desk::Clock) -> Result<Self, MemoryError> {
        let mut kept = config.memory.as_ref().map(|memory| Kept::open(memory, clock())).transpose()?;
        let recalled = kept.as_mut().and_then(Kept::take_recalled);
        let agent = format!("the SPIRE agent at {}", config.socket);
        let own = Some(config.trust_domain.clone());
        let core = Arc::new(Core {
            desk: Desk::new(agent, &config.provider, own, clock, recalled),
            channel: config.socket.channel(),
            presence: Presence::new(),
            streams: Mutex::default(),
            config,
        });
        let of = core.clone();
        let bundles = tokio::spawn(async move {
            let keeping = async {
                match kept {
                    Some(kept) => kept.follow(&of.desk).await,
                    None => std::future::pending().await,
                }
            };
            tokio::join!(of.follow_bundles(), keeping)
        });
        let bundles = bundles.abort_handle();
        Ok(Self { core, bundles })
    }

    async fn ask(&self, identity: &Identity) -> Result<Arc<Credential>, IssueError> {
        let core = &self.core;
        if !core.desk.open(identity, core.config.identities) {
            return Err(IssueError::Unavailable {
                identity: identity.clone(),
                why: format!("{} identities are asked for already, the most that are", core.config.identities),
            });
        }
        core.begin(identity);
        let issued = core.desk.wait(identity, core.config.patience).await;
        if issued.is_err() && core.desk.credential(identity).is_none() {
            core.end_unborne(identity);
        }
        issued
    }
}

impl Issuer for DelegatedIdentity {
    fn issue<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, Result<Arc<Credential>, IssueError>> {
        Box::pin(self.ask(identity))
    }

    /// The bundles that the agent tells; none before it is there.
    fn trust(&self) -> Arc<TrustBundles> {
        self.core.desk.trust()
    }

    fn last_heard(&self) -> Option<LastHeard> {
        Some(self.core.desk.last_heard())
    }

    fn arrives(&self, identity: &Identity, pod: &PodUid) {
        let mut streams = lock(&self.core.streams);
        let stream = streams.entry(identity.clone()).or_default();
        *stream.pods.entry(pod.clone()).or_default() += 1;
        // An entry may be this pod's alone.
        if stream.task.is_some() && self.core.desk.credential(identity).is_none() {
            stream.again.notify_one();
        }
    }

    fn leaves(&self, identity: &Identity, pod: &PodUid) {
        let mut streams = lock(&self.core.streams);
        let Some(stream) = streams.get_mut(identity) else { return };
        if let Some(count) = stream.pods.get_mut(pod) {
            *count -= 1;
            if *count == 0 {
                stream.pods.remove(pod);
            }
        }
        if stream.pods.is_empty() {
            streams.remove(identity);
            self.core.desk.close(identity);
        } else if stream.described.contains(pod) && !stream.pods.contains_key(pod) {
            stream.again.notify_one();
        }
    }

    fn takes_back(&self) -> bool {
        true
    }

    /// That the agent does not answer, and why.
    fn faults(&self) -> Vec<String> {
        self.core.desk.fault().into_iter().collect()
    }

    fn told(&self) -> BoxFuture<'_, Told> {
        Box::pin(self.core.desk.told())
    }
}

impl Core {
    /// Begins the stream of an identity, unless there is one.
    fn begin(self: &Arc<Self>, identity: &Identity) {
        let mut streams = lock(&self.streams);
        let stream = streams.entry(identity.clone()).or_default();
        if stream.task.is_none() {
            let (of, identity, again) = (self.clone(), identity.clone(), stream.again.clone());
            let task = tokio::spawn(async move { of.follow_svids(identity, again).await });
            stream.task = Some(task.abort_handle());
        }
    }

    /// Ends the stream of an identity that no pod bears.
    fn end_unborne(&self, identity: &Identity) {
        let mut streams = lock(&self.streams);
        if streams.get(identity).is_none_or(|stream| stream.pods.is_empty()) {
            streams.remove(identity);
            self.desk.close(identity);
        }
    }

    async fn follow_svids(&self, identity: Identity, again: Arc<Notify>) {
        loop {
            let pods = self.describe(&identity);
            let request = (self.config.describe)(&identity, &pods).request();
            let open = || {
                let (mut client, request) = (self.client(), request.clone());
                async move { client.subscribe_to_x509svi_ds(request).await }
            };
            let hear = |came| match came {
                Came::Answer(answer) => self.answer(&identity, answer, &again),
                Came::Failure(failure) => self.fail(Some(&identity), &failure),
            };
            tokio::select! {
                never = follow(&self.presence, Away::Waits, open, hear) => match never {},
                () = again.notified() => {}
            }
            // Pods come and go in groups.
            sleep(GATHERING).await;
        }
    }

    async fn follow_bundles(&self) {
        let open = || {
            let mut client = self.client();
            async move { client.subscribe_to_x509_bundles(SubscribeToX509BundlesRequest {}).await }
        };
        let never = follow(&self.presence, Away::Looks, open, |came| match came {
            Came::Answer(answer) => {
                self.desk.heard();
                let told = bundles::Told {
                    bundles: answer.ca_certificates.into_iter().collect(),
                    crls: Vec::new(),
                };
                self.desk.bundles(None, told);
            }
            Came::Failure(failure) => self.fail(None, &failure),
        });
        match never.await {}
    }

    /// The pods of an identity, which the agent is told of now.
    fn describe(&self, identity: &Identity) -> Vec<PodUid> {
        let mut streams = lock(&self.streams);
        let Some(stream) = streams.get_mut(identity) else {
            return Vec::new();
        };
        stream.described = stream.pods.keys().cloned().collect();
        stream.described.clone()
    }

    fn answer(&self, identity: &Identity, answer: SubscribeToX509sviDsResponse, again: &Notify) {
        self.desk.heard();
        let given: Vec<_> = answer
            .x509_svids
            .into_iter()
            .take(MOST_SVIDS)
            .map(|svid| raw(svid).read())
            .collect();
        let holds = given.iter().flatten().any(|svid| svid.id == *identity.spiffe_id());
        if !holds && self.bearers_changed(identity) {
            // It speaks of pods that are gone: those that are here are asked for first.
            again.notify_one();
            return;
        }
        self.desk.update(identity, &given);
    }

    fn bearers_changed(&self, identity: &Identity) -> bool {
        let streams = lock(&self.streams);
        streams
            .get(identity)
            .is_some_and(|stream| !stream.pods.keys().eq(&stream.described))
    }

    fn fail(&self, identity: Option<&Identity>, failure: &Failure) {
        let remedy = match failure.code {
            Some(Code::PermissionDenied) => {
                ": this process needs a registration entry of its own, and the SPIFFE ID of that must stand in \
                 authorized_delegates of the agent's configuration"
            }
            Some(Code::Unimplemented) => {
                ": the Delegated Identity API is served on the socket that admin_socket_path of the agent's configuration names"
            }
            Some(Code::InvalidArgument) => ": it cannot read how the workload is described",
            Some(_) => "",
            None => ": is it running, and is this the socket that admin_socket_path of its configuration names?",
        };
        let refused = matches!(
            failure.code,
            Some(Code::PermissionDenied | Code::Unimplemented | Code::InvalidArgument)
        );
        self.desk.failed(identity, &format!("{}{remedy}", failure.text), refused);
    }

    fn client(&self) -> DelegatedIdentityClient<Channel> {
        DelegatedIdentityClient::new(self.channel.clone()).max_decoding_message_size(LONGEST_MESSAGE)
    }
}

impl DelegatedIdentity {
    /// Waits until the agent has told roots, at most as long as it may take to answer. Gives `false` if it has not.
    pub async fn has_roots(&self) -> bool {
        let told = async {
            while self.trust().domains().next().is_none() {
                sleep(GATHERING).await;
            }
        };
        timeout(ANSWERING, told).await.is_ok()
    }
}

fn raw(svid: X509svidWithKey) -> Raw {
    let key = Zeroizing::new(svid.x509_svid_key);
    let svid = svid.x509_svid.unwrap_or_default();
    let named = svid.id.map(|id| format!("spiffe://{}{}", id.trust_domain, id.path));
    Raw {
        named: named.unwrap_or_default(),
        chain: svid.cert_chain.concat(),
        key,
    }
}

/// Between a change of the pods of an identity and telling the agent.
const GATHERING: Duration = Duration::from_millis(20);
/// Pods of one identity that the agent is told of.
const MOST_PODS: usize = 256;
/// SVIDs of one answer that are looked at: one for each pod of an account, where each has an entry.
pub(super) const MOST_SVIDS: usize = 1024;
/// Many trust domains make a long message.
pub(super) const LONGEST_MESSAGE: usize = 16 * 1024 * 1024;

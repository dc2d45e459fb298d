//! The SPIFFE Workload API: what an agent gives to this very process.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use ambient_core::{Credential, Identity, SpiffeId, TrustBundles};
use rustls::crypto::CryptoProvider;
use tokio::task::AbortHandle;
use tonic::{Code, Request, metadata::MetadataValue, transport::Channel};
use zeroize::Zeroizing;

use super::{
    Socket, bundles,
    delegated::{LONGEST_MESSAGE, MOST_SVIDS},
    desk::{self, Desk, lock},
    kept::Kept,
    subscription::{Away, Came, Failure, Presence, follow},
    svid::{Raw, Svid, SvidError},
};
use crate::{
    BoxFuture, IssueError, Issuer, LastHeard, Told,
    disk::{MemoryConfig, MemoryError},
    wire::spiffe::workload::{X509svidRequest, X509svidResponse, spiffe_workload_api_client::SpiffeWorkloadApiClient},
};

#[cfg(test)]
mod tests;

/// How an agent is asked.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct WorkloadConfig {
    /// The agent's socket.
    pub socket: Socket,
    /// What checks signatures and keys.
    pub provider: Arc<CryptoProvider>,
    /// How long the first certificate is waited for; 8 s by default.
    pub patience: Duration,
    /// Where roots are kept for a restart while the agent is away; nowhere by default. Never keys, nor certificates.
    pub memory: Option<MemoryConfig>,
}

impl WorkloadConfig {
    /// With the defaults.
    pub fn new(socket: Socket, provider: Arc<CryptoProvider>) -> Self {
        Self {
            socket,
            provider,
            patience: Duration::from_secs(8),
            memory: None,
        }
    }
}

/// This process's own certificates, from any agent that speaks the [SPIFFE Workload API].
///
/// For a node's own identity, and for a proxy that serves a single workload, beside it or on its machine: the agent decides by
/// the process that asks, and gives it all that is its own. A node of many pods needs a
/// [`DelegatedIdentity`](super::DelegatedIdentity).
///
/// One stream brings certificates, roots and the roots of federated trust domains. A denial is the API's way to say that this
/// process has no identity (any more): what was given is withdrawn. Every other failure takes nothing away.
///
/// [SPIFFE Workload API]: https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE_Workload_API.md
pub struct WorkloadApi {
    core: Arc<Core>,
    stream: AbortHandle,
}

struct Core {
    config: WorkloadConfig,
    channel: Channel,
    desk: Desk,
    given: Mutex<Last>,
    /// How many wait for which identity.
    asking: Mutex<HashMap<Identity, usize>>,
}

/// What the agent has said last.
#[derive(Debug, Default)]
enum Last {
    #[default]
    Nothing,
    /// That this process has no identity, and what to do about it.
    Denied(String),
    /// Whom it takes this process for, and what of it could not be read, which may be anybody's that it does not say.
    Given(Vec<SpiffeId>, Vec<SvidError>),
}

/// Somebody who waits for an identity's certificate. What nobody gives is forgotten with the last of them, also with one who
/// waits no longer.
struct Asking<'a> {
    core: &'a Core,
    identity: &'a Identity,
}

impl<'a> Asking<'a> {
    fn begin(core: &'a Core, identity: &'a Identity) -> Self {
        *lock(&core.asking).entry(identity.clone()).or_default() += 1;
        Self { core, identity }
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let mut asking = lock(&self.core.asking);
        if let Some(count) = asking.get_mut(self.identity).filter(|count| **count > 1) {
            *count -= 1;
            return;
        }
        asking.remove(self.identity);
        self.core.close_unless_given(self.identity);
    }
}

impl fmt::Debug for WorkloadApi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkloadApi")
            .field("config", &self.core.config)
            .finish_non_exhaustive()
    }
}

impl Drop for WorkloadApi {
    fn drop(&mut self) {
        self.stream.abort();
    }
}

impl WorkloadApi {
    /// Begins to ask. That the agent is away is no error: it is looked for until it is there, and roots that are remembered
    /// are trusted meanwhile.
    ///
    /// # Errors
    /// When [`WorkloadConfig::memory`] names no place that can be kept.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new(config: WorkloadConfig) -> Result<Self, MemoryError> {
        Self::with_clock(config, desk::system())
    }

    pub(super) fn with_clock(config: WorkloadConfig, clock: desk::Clock) -> Result<Self, MemoryError> {
        let mut kept = config.memory.as_ref().map(|memory| Kept::open(memory, clock())).transpose()?;
        let recalled = kept.as_mut().and_then(Kept::take_recalled);
        let agent = format!("the SPIFFE agent at {}", config.socket);
        let core = Arc::new(Core {
            desk: Desk::new(agent, &config.provider, None, clock, recalled),
            channel: config.socket.channel(),
            given: Mutex::default(),
            asking: Mutex::default(),
            config,
        });
        let of = core.clone();
        let stream = tokio::spawn(async move {
            let keeping = async {
                match kept {
                    Some(kept) => kept.follow(&of.desk).await,
                    None => std::future::pending().await,
                }
            };
            tokio::join!(of.follow(), keeping)
        });
        let stream = stream.abort_handle();
        Ok(Self { core, stream })
    }

    /// Whom the agent takes this process for now: its default first.
    pub fn identities(&self) -> Vec<SpiffeId> {
        match &*lock(&self.core.given) {
            Last::Given(ids, _) => ids.clone(),
            Last::Nothing | Last::Denied(_) => Vec::new(),
        }
    }

    async fn ask(&self, identity: &Identity) -> Result<Arc<Credential>, IssueError> {
        let core = &self.core;
        let _asking = Asking::begin(core, identity);
        if !core.desk.open(identity, MOST_IDENTITIES) {
            return Err(IssueError::Unavailable {
                identity: identity.clone(),
                why: format!("{MOST_IDENTITIES} identities are asked for already, the most that are"),
            });
        }
        // The answer that would speak of it may have come before it was asked for.
        core.refuse_unless_given(identity);
        core.desk.wait(identity, core.config.patience).await
    }
}

impl Issuer for WorkloadApi {
    fn issue<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, Result<Arc<Credential>, IssueError>> {
        Box::pin(self.ask(identity))
    }

    /// The roots of this process's own trust domains and of those federated with them; none before the agent is there.
    fn trust(&self) -> Arc<TrustBundles> {
        self.core.desk.trust()
    }

    fn last_heard(&self) -> Option<LastHeard> {
        Some(self.core.desk.last_heard())
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
    async fn follow(&self) {
        let open = || {
            let client = SpiffeWorkloadApiClient::new(self.channel.clone());
            let mut client = client.max_decoding_message_size(LONGEST_MESSAGE);
            async move {
                let mut request = Request::new(X509svidRequest {});
                // Without it an agent answers nobody (SPIFFE Workload Endpoint 6).
                request
                    .metadata_mut()
                    .insert("workload.spiffe.io", MetadataValue::from_static("true"));
                client.fetch_x509svid(request).await
            }
        };
        let presence = Presence::new();
        let never = follow(&presence, Away::Looks, open, |came| match came {
            Came::Answer(answer) => self.answer(answer),
            Came::Failure(failure) => self.fail(&failure),
        });
        match never.await {}
    }

    fn answer(&self, answer: X509svidResponse) {
        self.desk.heard();
        let mut told = bundles::Told {
            crls: answer.crl,
            ..bundles::Told::default()
        };
        let mut given = Vec::new();
        for svid in answer.svids.into_iter().take(MOST_SVIDS) {
            let raw = Raw {
                named: svid.spiffe_id,
                chain: svid.x509_svid,
                key: Zeroizing::new(svid.x509_svid_key),
            };
            let svid_of = raw.read();
            if let Ok(read) = &svid_of {
                told.bundles.push((read.id.trust_domain().as_str().into(), svid.bundle));
            }
            given.push(svid_of);
        }
        let own = given.iter().flatten().next().map(|svid| svid.id.trust_domain().clone());
        // A federated bundle of a domain of this process's own says nothing that its own does not.
        let owns: Vec<String> = told.bundles.iter().map(|(name, _)| name.clone()).collect();
        let federated = answer.federated_bundles.into_iter();
        told.bundles
            .extend(federated.filter(|(name, _)| !owns.iter().any(|own| name.strip_prefix("spiffe://").unwrap_or(name) == own)));
        if own.is_some() {
            self.desk.bundles(own, told);
        }
        self.take(&given);
    }

    fn take(&self, given: &[Result<Svid, SvidError>]) {
        let ids = given.iter().flatten().map(|svid| svid.id.clone()).collect();
        let unread = given.iter().filter_map(|svid| svid.as_ref().err().cloned()).collect();
        *lock(&self.given) = Last::Given(ids, unread);
        let known = self.desk.identities();
        for identity in &known {
            self.desk.update(identity, given);
        }
        // First, since they have the room of those that have come.
        self.close_taken_back();
        let mine = given.iter().flatten().filter_map(|svid| Identity::try_from(svid.id.clone()).ok());
        for identity in mine.filter(|one| !known.contains(one)) {
            if self.desk.open(&identity, MOST_IDENTITIES) {
                self.desk.update(&identity, given);
            }
        }
    }

    /// Forgets what nobody gives any more and nobody waits for.
    fn close_taken_back(&self) {
        let asking = lock(&self.asking);
        for identity in self.desk.identities() {
            if !asking.contains_key(&identity) {
                self.close_unless_given(&identity);
            }
        }
    }

    /// Forgets an identity that nobody gives. What is valid stays, as where the agent has given what cannot be read since.
    fn close_unless_given(&self, identity: &Identity) {
        let is_given = matches!(&*lock(&self.given), Last::Given(ids, _) if ids.contains(identity.spiffe_id()));
        if !is_given && self.desk.credential(identity).is_none() {
            self.desk.retire(identity);
        }
    }

    fn refuse_unless_given(&self, identity: &Identity) {
        let why = match &*lock(&self.given) {
            Last::Denied(why) => why.clone(),
            Last::Given(ids, unread) if !ids.contains(identity.spiffe_id()) => {
                // What cannot be read takes nothing away.
                let own = identity.as_str();
                if let Some(error) = unread.iter().find(|error| error.may_be_of(own)) {
                    return self.desk.update(identity, &[Err(error.clone())]);
                }
                let ids: Vec<_> = ids.iter().take(NAMED).map(SpiffeId::as_str).collect();
                format!("it takes this process for {:?} alone", ids.join(", "))
            }
            Last::Nothing | Last::Given(..) => return,
        };
        self.desk.withdraw(identity, &why);
    }

    fn fail(&self, failure: &Failure) {
        match failure.code {
            Some(Code::PermissionDenied) => {
                let why = format!("{}: this process needs a registration entry whose selectors fit it", failure.text);
                *lock(&self.given) = Last::Denied(why.clone());
                for identity in self.desk.identities() {
                    self.desk.withdraw(&identity, &why);
                }
                self.desk.failed(None, &why, true);
                self.close_taken_back();
            }
            Some(_) => self.desk.failed(None, &failure.text, false),
            None => {
                let why = format!("{}: is it running, and is this its socket?", failure.text);
                self.desk.failed(None, &why, false);
            }
        }
    }
}

/// Identities of one process.
const MOST_IDENTITIES: usize = 256;
/// Identities that a message names.
const NAMED: usize = 5;

//! Where mesh state and identity come from: sources of changes, and issuers of credentials.
//!
//! This crate decides nothing about traffic: it routes no connection and judges none, and opens no listener but the
//! control plane's of `serve`. It brings what others decide by. The one entry type is [`Source`], an ordered queue of
//! [`Change`]s that comes in [`Batch`]es; its counterpart for identities is [`Issuer`]. Without features the crate holds these
//! two traits and the values that they give and take. Each implementation is a feature and a module of its own; none is on by default:
//!
//! | feature | module | what it is |
//! |---|---|---|
//! | `objects` | `objects` | Kubernetes objects into changes, pure and incremental |
//! | `manifests` | `manifests` (with `objects`) | a directory of Kubernetes manifests as the control plane |
//! | `local-xds` | `local_xds` (with `manifests`) | a file in the form of ztunnel's `LOCAL_XDS_PATH` |
//! | `istiod` | `istiod`, `crls` | state and certificates from istiod; revocations from a file |
//! | `spiffe` | `spiffe` | certificates from SPIRE, or another agent of SPIFFE |
//! | `ca` | `ca` | a certificate authority in a directory, **for one machine under one administrator** |
//! | `serve` | `serve` (with `ca` and `istiod`) | a control plane of one's own, from any source, in istiod's words |
//!
//! `plain`, which reads files that an operator names, comes with `ca`, `istiod`, `manifests` and `spiffe`. All implementations but `objects`
//! and `ca` need a runtime of tokio with time and I/O. The crate is for Linux, and needs Rust 1.89 or later.
//!
//! A source that is written elsewhere needs no feature:
//!
//! ```
//! use ambient_control::{Batch, BoxFuture, Change, Source};
//! use ambient_core::{mesh::Update, Workload};
//!
//! /// One workload, and then nothing more.
//! struct Once(Option<Workload>);
//!
//! impl Source for Once {
//!     fn next(&mut self) -> BoxFuture<'_, Option<Batch>> {
//!         let batch = self.0.take().map(|workload| Batch {
//!             changes: vec![Change::Mesh(Update::Workload(workload.into()))],
//!             synced: true,
//!             ..Batch::default()
//!         });
//!         Box::pin(std::future::ready(batch))
//!     }
//! }
//!
//! let mut source = Once(Some(Workload::new("cluster//Pod/shop/cart-0", "shop", "cart-0")));
//! # let mut context = std::task::Context::from_waker(std::task::Waker::noop());
//! # let mut poll = |source: &mut Once| source.next().as_mut().poll(&mut context);
//! assert!(matches!(poll(&mut source), std::task::Poll::Ready(Some(batch)) if batch.synced));
//! assert!(matches!(poll(&mut source), std::task::Poll::Ready(None)));
//! ```
#![forbid(unsafe_code)]

use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use ambient_authz::policy;
use ambient_core::{Credential, Identity, PodUid, PolicyKey, TrustBundles, mesh};

#[cfg(any(feature = "istiod", feature = "spiffe"))]
mod backoff;
#[cfg(feature = "ca")]
pub mod ca;
#[cfg(feature = "istiod")]
pub mod crls;
#[cfg(any(feature = "istiod", feature = "spiffe"))]
mod disk;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzz;
#[cfg(feature = "istiod")]
pub mod istiod;
#[cfg(feature = "local-xds")]
pub mod local_xds;
#[cfg(feature = "manifests")]
mod looks;
#[cfg(feature = "manifests")]
pub mod manifests;
#[cfg(feature = "objects")]
pub mod objects;
#[cfg(any(feature = "ca", feature = "istiod", feature = "manifests", feature = "spiffe"))]
pub mod plain;
#[cfg(feature = "serve")]
pub mod serve;
#[cfg(feature = "spiffe")]
pub mod spiffe;
#[cfg(any(feature = "ca", feature = "istiod", feature = "manifests", feature = "spiffe"))]
mod whole;
#[cfg(any(feature = "istiod", feature = "spiffe"))]
mod wire;

/// One change of what the data plane decides by.
#[derive(Clone, Debug)]
pub enum Change {
    /// A workload or a service.
    Mesh(mesh::Update),
    /// A policy.
    Policy(policy::Update),
    /// The roots of every trusted domain; they replace those before.
    Trust(Arc<TrustBundles>),
}

/// Changes that are applied together and in their order: nobody decides on a state in between.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// The changes. A policy stands before the workloads that list it, and its removal after them.
    pub changes: Vec<Change>,
    /// Whether the whole state has been delivered, with this batch or before it, and is not too old to go by. While it is not,
    /// every new connection is to be refused.
    pub synced: bool,
    /// What is wrong now, not only with this batch; empty if nothing is. The source has logged what is new of it.
    pub faults: Arc<[Fault]>,
    /// Names that were asked for ([`OnDemand`]), and are answered with this batch or were before. What none of its changes has
    /// brought, or an earlier one's, is not there.
    pub answered: Vec<Arc<str>>,
}

/// Something that is wrong with what a source reads, until a later batch no longer lists it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    /// What, where (such as file, line and field), and what follows from it or is to be done.
    pub what: String,
    /// The policy that cannot be read, if that is what is wrong: as its updates name it.
    pub policy: Option<PolicyKey>,
}

impl From<String> for Fault {
    /// Something that is wrong with no policy of its own.
    fn from(what: String) -> Self {
        Self { what, policy: None }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

/// A boxed future, so that the traits of this crate can be used as `dyn`.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Where the state of the mesh comes from: one ordered queue of changes. Give it to whoever is to go by it before anything is taken
/// from it: what was taken comes no second time.
pub trait Source: Send {
    /// Waits for the next batch; `None` when there will be no more. A node stops then: a source that has nothing more to say waits.
    ///
    /// Cancel safe: a batch is delivered by the call that returns it, or by a later one. A batch may be without changes
    /// where only the faults are others.
    fn next(&mut self) -> BoxFuture<'_, Option<Batch>>;

    /// When what it tells of was heard of last; `None` where it reads that itself, so that it is never old.
    fn last_heard(&self) -> Option<LastHeard> {
        None
    }

    /// Whether whom to trust comes from it too ([`Change::Trust`]): then that is as old as the rest.
    fn gives_trust(&self) -> bool {
        false
    }

    /// Asks until when the certificate is valid by which a control plane knows this process; `None` where it is known otherwise,
    /// or by nobody.
    fn known_until(&self) -> Option<KnownUntil> {
        None
    }

    /// What it has counted of its streams from a control plane; `None` where it has none.
    fn streams(&self) -> Option<StreamCounts> {
        None
    }

    /// Where workloads and services are asked for one by one; `None` where all of them come unasked, as a rule.
    fn on_demand(&self) -> Option<Arc<dyn OnDemand>> {
        None
    }
}

impl<S: Source + ?Sized> Source for Box<S> {
    fn next(&mut self) -> BoxFuture<'_, Option<Batch>> {
        (**self).next()
    }

    fn last_heard(&self) -> Option<LastHeard> {
        (**self).last_heard()
    }

    fn gives_trust(&self) -> bool {
        (**self).gives_trust()
    }

    fn known_until(&self) -> Option<KnownUntil> {
        (**self).known_until()
    }

    fn streams(&self) -> Option<StreamCounts> {
        (**self).streams()
    }

    fn on_demand(&self) -> Option<Arc<dyn OnDemand>> {
        (**self).on_demand()
    }
}

/// Says until when a certificate is valid; `None` where there is none now.
pub type KnownUntil = Arc<dyn Fn() -> Option<SystemTime> + Send + Sync>;

/// When something was heard of last: shared by whoever hears and whoever asks how old it is. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct LastHeard(Arc<AtomicU64>);

/// What stands for "it is there": no time is so late.
const PRESENT: u64 = u64::MAX;

impl LastHeard {
    /// It was heard of at this time, and is not there now.
    pub fn at(&self, time: SystemTime) {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let millis = u64::try_from(since.as_millis()).unwrap_or(PRESENT - 1).clamp(1, PRESENT - 1);
        self.0.store(millis, Ordering::Relaxed);
    }

    /// It is there, until something else is said.
    pub fn is_there(&self) {
        self.0.store(PRESENT, Ordering::Relaxed);
    }

    /// How long ago it was heard of: no time if it is there, or if the clock has gone back; `None` if it never was.
    #[must_use]
    pub fn age(&self, now: SystemTime) -> Option<Duration> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            PRESENT => Some(Duration::ZERO),
            millis => {
                let heard = SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
                Some(now.duration_since(heard).unwrap_or_default())
            }
        }
    }
}

/// What has come on streams from a control plane, and how they have ended: shared by whoever hears and whoever tells of it.
/// Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct StreamCounts(Arc<Mutex<Counted>>);

#[derive(Debug, Default)]
struct Counted {
    messages: BTreeMap<&'static str, Messages>,
    ends: BTreeMap<StreamEnd, u64>,
}

/// The messages of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Messages {
    /// How many have come.
    pub count: u64,
    /// The bytes of the resources in them.
    pub bytes: u64,
}

/// How a stream has ended. The words are those of Istio's `istio_xds_connection_terminations`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum StreamEnd {
    /// It never came to be: the control plane is not reached.
    ConnectionError,
    /// By an error.
    Error,
    /// As streams end that are to be opened anew: a control plane closes them every half hour, and when it goes.
    Reconnect,
    /// The control plane has closed it in good order.
    Complete,
}

impl StreamEnd {
    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ConnectionError => "ConnectionError",
            Self::Error => "Error",
            Self::Reconnect => "Reconnect",
            Self::Complete => "Complete",
        }
    }
}

impl StreamCounts {
    /// A message of a kind has come, which is told by the type URL of its resources; of so many bytes.
    pub fn received(&self, kind: &'static str, bytes: u64) {
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let messages = counted.messages.entry(kind).or_default();
        messages.count += 1;
        messages.bytes += bytes;
    }

    /// A stream has ended.
    pub fn ended(&self, how: StreamEnd) {
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counted.ends.entry(how).or_default() += 1;
    }

    /// What has come of each kind.
    pub fn messages(&self) -> Vec<(&'static str, Messages)> {
        let counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counted.messages.iter().map(|(kind, messages)| (*kind, *messages)).collect()
    }

    /// How often streams have ended so.
    pub fn ends(&self) -> Vec<(StreamEnd, u64)> {
        let counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counted.ends.iter().map(|(how, count)| (*how, *count)).collect()
    }
}

/// Asks a [`Source`] for what it does not bring by itself.
///
/// Names are `NETWORK/IP`, of a workload or of a service's virtual address, and `NAMESPACE/HOSTNAME` of a service. With a
/// service come its endpoints. What was asked for is kept up to date, its absence too, until it is given back.
pub trait OnDemand: Send + Sync + fmt::Debug {
    /// Asks for a name. The answer comes with a later [`Batch::answered`]; also where it was known already, or is on its way.
    ///
    /// # Errors
    /// When it is not asked for.
    fn ask(&self, name: &str) -> Result<(), AskError>;

    /// These names are not needed any more: what was known of them goes with a later batch.
    fn give_back(&self, names: Vec<String>);

    /// Whether an answer can be expected now, and what was answered is kept up to date: not before the other side has said anything.
    fn is_there(&self) -> bool;
}

/// Why something is not asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AskError {
    /// Too much is being asked for.
    #[error("too much is being asked of the control plane")]
    TooMuch,
    /// The source has ended.
    #[error("the source of the mesh's state has ended")]
    Ended,
}

/// Where credentials come from.
pub trait Issuer: Send + Sync {
    /// Asks for a new credential of an identity, with a new key. When to ask again is the caller's choice: at
    /// [`Credential::half_life`].
    ///
    /// # Errors
    /// When the authority refuses the identity or cannot issue now; each error says which.
    ///
    /// # Cancel safety
    /// A caller drops the future if it takes too long, and asks again later: a credential that was made meanwhile is lost, and nothing else
    /// may be.
    fn issue<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, Result<Arc<Credential>, IssueError>>;

    /// The present roots of every trusted domain.
    fn trust(&self) -> Arc<TrustBundles>;

    /// When the authority has said last which roots these are; `None` where they are its own.
    fn last_heard(&self) -> Option<LastHeard> {
        None
    }

    /// What is wrong with what it goes by, though it may still give credentials, until that is mended: such as a file of which what
    /// was there before is used. Each names the place, and what to do.
    fn faults(&self) -> Vec<String> {
        Vec::new()
    }

    /// A pod of this node bears an identity from now on. Told before a credential is asked for it, for authorities that must
    /// know for whom; most need not.
    fn arrives(&self, _identity: &Identity, _pod: &PodUid) {}

    /// A pod that was told of bears it no more; after its last pod an identity needs no credential.
    fn leaves(&self, _identity: &Identity, _pod: &PodUid) {}

    /// Whether it may [withdraw](Told::Withdrawn) what it gave, and says so of those alone that it was asked for since this process
    /// began; most withdraw nothing. Then what an earlier process was given is asked for at once. Elsewhere that has no
    /// hurry, and many nodes that start together need not ask together.
    fn takes_back(&self) -> bool {
        false
    }

    /// Waits for what the authority says unasked; for ever where it only answers, as most do. There is one listener at a time.
    ///
    /// Cancel safe: what is not delivered by this call is by a later one. Of several words on one identity the last counts.
    fn told(&self) -> BoxFuture<'_, Told> {
        Box::pin(std::future::pending())
    }
}

impl<I: Issuer + ?Sized> Issuer for Arc<I> {
    fn issue<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, Result<Arc<Credential>, IssueError>> {
        (**self).issue(identity)
    }

    fn trust(&self) -> Arc<TrustBundles> {
        (**self).trust()
    }

    fn last_heard(&self) -> Option<LastHeard> {
        (**self).last_heard()
    }

    fn faults(&self) -> Vec<String> {
        (**self).faults()
    }

    fn arrives(&self, identity: &Identity, pod: &PodUid) {
        (**self).arrives(identity, pod);
    }

    fn leaves(&self, identity: &Identity, pod: &PodUid) {
        (**self).leaves(identity, pod);
    }

    fn takes_back(&self) -> bool {
        (**self).takes_back()
    }

    fn told(&self) -> BoxFuture<'_, Told> {
        (**self).told()
    }
}

/// What an authority says unasked.
#[derive(Clone, Debug)]
pub enum Told {
    /// A newer credential, in the place of the one before.
    Renewed(Arc<Credential>),
    /// It does not vouch for an identity any more: its credential is not to be used, however long it is valid.
    Withdrawn {
        /// Whose.
        identity: Identity,
        /// The reason.
        why: String,
    },
}

/// Why there is no credential.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IssueError {
    /// The authority does not vouch for it, and will not if asked again.
    #[error("no certificate for {identity}: {why}")]
    Refused {
        /// Whom it was asked for.
        identity: Identity,
        /// The reason.
        why: String,
    },
    /// The authority cannot issue now; asking again later may help.
    #[error("no certificate for {identity} now: {why}")]
    Unavailable {
        /// Whom it was asked for.
        identity: Identity,
        /// The reason, and what to do.
        why: String,
    },
}

#[cfg(test)]
mod tests;

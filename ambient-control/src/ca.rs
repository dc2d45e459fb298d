//! A certificate authority in a directory: a mesh without istiod and without SPIRE.
//!
//! Whoever can read the directory is the authority. What lies there:
//!
//! * `root.pem`, the certificates of the roots, for anyone to trust, and `root-key.pem` (mode 0600), the key of the one that
//!   signs. It signs intermediates, CRLs and the certificates of servers known by host names, and is read for that only;
//! * `intermediates/NODE/`: for each node what signs the certificates of its workloads. It lives 24 hours at most, is
//!   renewed at half its life, may have nobody below it but workloads, and vouches for no host;
//! * `issued/`: which certificates were issued, until they end;
//! * `revoked.json` and `crl.pem`: what was revoked, and the lists by which others know. A directory that was given to a node
//!   has `revoked-above.json` too: what was revoked where the root's key is.
//!
//! [`DirectoryCa`] issues out of it. [`Authority`] sees to it: it makes one, issues to a node elsewhere, changes the root,
//! revokes, and shows what is there.
//!
//! # Machines apart
//!
//! On one machine under one administrator every process may open the directory itself. Elsewhere let nodes ask
//! `ambient control`, which signs each certificate itself and asks whose pods they are. Where that cannot be, a node may be
//! given an intermediate ([`Authority::issue_to_node`]): a directory like this one without the root's key. Whoever steals
//! that can be any workload of the mesh, not only of that node, until it ends or is revoked: X.509 has no constraint that
//! says more. It is held to the trust domain by the SPIFFE ID that its certificate bears (`spiffe://DOMAIN`), which
//! `ambient-tls` demands of every authority in a chain; constraints on URI names (RFC 5280 4.2.1.10) would say it in X.509's
//! words, but webpki, and with it ztunnel, refuses every chain that has them. That it vouches for no host is said by name
//! constraints, which all hold to.
//!
//! # A new root
//!
//! [`Authority::rotate`] goes on by one stage each time it is called, and refuses to be hurried: first the new root is
//! trusted, then it signs, then the old one is withdrawn. Between two stages lies at least a day by default, in which every
//! node hears of it and every certificate of before ends, so that no handshake is refused.
//!
//! A stolen key of the root's is worth nothing once a root that was made after the theft is the only one: three stages without that
//! day between them ([`Duration::ZERO`]), where no change was under way, two seconds apart. Nodes that hear of each replace what the old
//! root has vouched for as it is withdrawn; tunnels that stand go on until the certificates that they were begun with have ended.
//!
//! # Changes
//!
//! What changes in the directory is in force with the next look at it: [`Issuer::trust`] looks at the dates of the files
//! each time. A file that cannot be used changes nothing, nor does a directory that goes away: it is logged, and one of the
//! [`Issuer::faults`] until it is mended, and what was good stays.
//!
//! ```
//! use std::time::Duration;
//! use ambient_control::{ca::DirectoryCa, Issuer};
//! # let scratch = tempfile::tempdir()?;
//! # let directory = scratch.path().join("ca");
//!
//! let ca = DirectoryCa::open(&directory, "cluster.local".parse()?, DirectoryCa::DEFAULT_TTL)?;
//! let identity = "spiffe://cluster.local/ns/shop/sa/cart".parse()?;
//! # let runtime = tokio::runtime::Builder::new_current_thread().build()?;
//! # let credential = runtime.block_on(async {
//! let credential = ca.issue(&identity).await?;
//! # Ok::<_, ambient_control::IssueError>(credential) })?;
//! assert_eq!(credential.identity, identity);
//! // The leaf, and the intermediate that has signed it.
//! assert_eq!(credential.chain.len(), 2);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ambient_core::{Credential, Identity, PrivateKey, TrustBundles, TrustDomain};
use rcgen::{CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType};
use tokio::{runtime::Handle, sync::Semaphore, task::spawn_blocking};

use crate::{BoxFuture, IssueError, Issuer};

mod authority;
#[cfg(feature = "serve")]
pub(crate) mod directory;
#[cfg(not(feature = "serve"))]
mod directory;
mod intermediates;
mod issued;
mod present;
mod requests;
mod revoked;
mod roots;
mod serial;
mod show;
mod signer;
#[cfg(test)]
mod tests;

pub use authority::{Authority, Given, Revocation, Rotation, Target};
pub use issued::Unreadable;
pub use requests::{RequestError, ServerCredential};
pub use revoked::RevokedCertificate;
pub use show::{Shown, ShownCertificate, ShownIntermediate, ShownRoot, date};
pub use signer::{Request, SignedBy, Signer, Whom};

#[cfg(feature = "fuzz")]
pub(crate) use {requests::fuzz as fuzz_request, revoked::fuzz as fuzz_lists};

#[cfg(feature = "serve")]
pub(crate) use signer::request;

use present::Holder;

/// An authority that issues out of a directory.
pub struct DirectoryCa {
    trust_domain: TrustDomain,
    ttl: Duration,
    holder: Arc<Holder>,
    /// Who may sign at the same time.
    desks: Arc<Semaphore>,
}

impl DirectoryCa {
    /// How long a workload's certificate is valid, unless said otherwise: 24 hours.
    pub const DEFAULT_TTL: Duration = Duration::from_secs(24 * 60 * 60);

    /// Opens the authority in a directory for the node `local`: see [`DirectoryCa::open_for`].
    ///
    /// # Errors
    /// As there.
    pub fn open(directory: impl AsRef<Path>, trust_domain: TrustDomain, ttl: Duration) -> Result<Self, OpenError> {
        Self::open_for(directory, trust_domain, ttl, LOCAL)
    }

    /// Opens the authority in a directory for a node; makes the directory (mode 0700) and the root (ECDSA P-256, 10 years)
    /// where there are none. `ttl` is how long a workload's certificate is valid, to the second; none outlives the
    /// intermediate that has signed it, so that 24 hours are the most. Processes that name the same node share its
    /// intermediate.
    ///
    /// It reads and writes files and may wait for another process that makes the root, at most 10 s: call it before
    /// serving anything.
    ///
    /// # Errors
    /// When the directory or a key can be written or read by others or belongs to another user, when a file in it is
    /// not what it must be, is of another trust domain or is out of date, when there is neither the root's key nor an
    /// intermediate of the node, or when the file system refuses; each error says what to do. What is there is never
    /// overwritten.
    pub fn open_for(directory: impl AsRef<Path>, trust_domain: TrustDomain, ttl: Duration, node: &str) -> Result<Self, OpenError> {
        Self::open_at(directory.as_ref(), trust_domain, ttl, node, now())
    }

    fn open_at(directory: &Path, trust_domain: TrustDomain, ttl: Duration, node: &str, now: SystemTime) -> Result<Self, OpenError> {
        let ttl = Duration::from_secs(ttl.as_secs());
        if ttl.is_zero() || ttl > MAX_TTL {
            return Err(OpenError::Ttl { ttl });
        }
        if ttl > intermediates::LIFE {
            let longest = intermediates::LIFE;
            tracing::warn!(asked = ?ttl, ?longest, "certificates are valid for a shorter time than is asked for: none outlives what signs it");
        }
        Ok(Self {
            holder: Holder::open(directory, &trust_domain, node, now)?.into(),
            trust_domain,
            ttl,
            desks: Arc::new(Semaphore::new(DESKS)),
        })
    }

    /// Does what reads and writes files beside whoever waits for it, in the order in which it is asked for, and so much at a time; at
    /// once where there is no runtime. `None` where the process is ending, or it has failed.
    async fn aside<T: Send + 'static>(&self, work: impl FnOnce(&Self) -> T + Send + 'static) -> Option<T> {
        if Handle::try_current().is_err() {
            return Some(work(self));
        }
        let desk = self.desks.clone().acquire_owned().await.ok()?;
        let ca = Self {
            trust_domain: self.trust_domain.clone(),
            ttl: self.ttl,
            holder: self.holder.clone(),
            desks: self.desks.clone(),
        };
        let worked = spawn_blocking(move || {
            // Also where nobody waits for it any more.
            let _desk = desk;
            work(&ca)
        });
        worked.await.ok()
    }

    fn sign(&self, identity: &Identity, now: SystemTime) -> Result<Credential, IssueError> {
        let unavailable = |why: String| IssueError::Unavailable {
            identity: identity.clone(),
            why,
        };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|e| unavailable(format!("cannot make a key: {e}")))?;
        let signed = self.sign_key(&Whom::Id(identity.spiffe_id()), &key, self.ttl, now).map_err(|e| {
            let why = e.to_string();
            match e {
                RequestError::Barred { .. } | RequestError::Foreign { .. } => IssueError::Refused {
                    identity: identity.clone(),
                    why,
                },
                _ => unavailable(why),
            }
        })?;
        Ok(Credential {
            identity: identity.clone(),
            chain: signed.chain,
            key: Arc::new(PrivateKey::from(key.serialize_der())),
            not_before: signed.not_before,
            not_after: signed.not_after,
        })
    }
}

/// What every certificate of this authority is, but for the authority's own.
fn leaf(names: Vec<SanType>, not_before: SystemTime, not_after: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    // Without a subject the name is critical (RFC 5280 4.2.1.6): who does not know it cannot accept the certificate.
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = names;
    params.not_before = not_before.into();
    params.not_after = not_after.into();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params
}

impl Issuer for DirectoryCa {
    /// Makes a key and signs, in about a tenth of a millisecond, or a millisecond with a new intermediate: beside the runtime's threads,
    /// as a disk may take its time.
    fn issue<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, Result<Arc<Credential>, IssueError>> {
        Box::pin(async move {
            let whom = identity.clone();
            let ended = || IssueError::Unavailable {
                identity: identity.clone(),
                why: ENDED.into(),
            };
            let issued = self.aside(move |ca| ca.sign(&whom, now())).await.ok_or_else(ended)?;
            issued.map(Arc::new)
        })
    }

    /// The roots and CRLs of the directory, as they are there now.
    fn trust(&self) -> Arc<TrustBundles> {
        self.holder.trust(now())
    }

    fn faults(&self) -> Vec<String> {
        self.faults()
    }
}

impl fmt::Debug for DirectoryCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirectoryCa")
            .field("trust_domain", &self.trust_domain)
            .field("ttl", &self.ttl)
            .finish_non_exhaustive()
    }
}

/// Why the directory of an authority cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The life of certificates makes no sense.
    #[error("certificates cannot be valid for {ttl:?}: choose from one second to one year")]
    Ttl {
        /// What was asked for.
        ttl: Duration,
    },
    /// The file system refuses.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// The refusal.
        source: std::io::Error,
    },
    /// Somebody else could be the authority.
    #[error("{}: {why}", path.display())]
    Unsafe {
        /// The directory, or a file in it.
        path: PathBuf,
        /// Why, and what to do.
        why: String,
    },
    /// What is there cannot be used.
    #[error("{}: {why}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why, and what to do.
        why: String,
    },
    /// Another process holds the directory.
    #[error("{}: another process has held this lock for 10 s: end it, or choose another directory", path.display())]
    Locked {
        /// The lock.
        path: PathBuf,
    },
    /// There is an authority already.
    #[error("{}: there is an authority of the trust domain {of} already; `ambient ca show` tells of it", path.display())]
    Exists {
        /// The directory.
        path: PathBuf,
        /// Its trust domain.
        of: TrustDomain,
    },
    /// There is no authority.
    #[error("{}: there is no authority here: `ambient ca init` makes one", path.display())]
    Missing {
        /// The directory.
        path: PathBuf,
    },
    /// There was an authority, and its root is gone.
    #[error(
        "{}: it is not here, though an authority has lived here, as {} says: put it back, or remove all that is in the directory \
         while no node runs for a new authority",
        path.display(),
        trace.display()
    )]
    Lost {
        /// The certificate of the root.
        path: PathBuf,
        /// What is left of it.
        trace: PathBuf,
    },
    /// Something lies there that is none of an authority's.
    #[error("{}: is none of an authority's files: choose a directory that is empty", path.display())]
    Foreign {
        /// The first such file.
        path: PathBuf,
    },
    /// The clock is wrong: a root that is made by it would not hold, nor would anything below it, as soon as it is right.
    #[error(
        "this machine's clock stands {days} days after 1970-01-01, {}: set it, and make the authority then",
        if *days < LAST / (24 * 60 * 60) / 2 { "before this program was written" } else { "when no root can have an end any more" }
    )]
    Clock {
        /// What it says, in days since 1970.
        days: u64,
    },
    /// A key lies where one is to be written.
    #[error("{}: this is the key of {of}: name another directory, or take it away if nobody uses it any more", path.display())]
    Taken {
        /// The key.
        path: PathBuf,
        /// The identity whose it is.
        of: String,
    },
    /// The name is no node's.
    #[error("{node:?} is no name of a node: letters, digits, '.', '-' and '_' make one")]
    Node {
        /// What was given.
        node: String,
    },
    /// The name is one that the authority's own processes sign by.
    #[error("{node:?} is what an authority's own processes are called: name the node otherwise")]
    OwnName {
        /// What was given.
        node: String,
    },
    /// An identity gets no certificate any more, and what it has was not revoked, or not all of it.
    #[error("{name} gets no certificate any more, but what it has is not all revoked: {source}")]
    Barred {
        /// The identity.
        name: String,
        /// Why.
        source: Box<Self>,
    },
    /// Some of what is meant was not revoked.
    #[error("{done} revoked, but not {}", what_is_left(left, source.as_deref()))]
    Left {
        /// How many were revoked.
        done: usize,
        /// The serial numbers of the others, each with its issuer's, whose key is not here.
        left: Vec<(String, String)>,
        /// Why an intermediate that is here cannot be used: it may be meant itself, or have signed some of them.
        source: Option<Box<Self>>,
    },
    /// The root's key is needed, and kept elsewhere.
    #[error("{}: it is not here, and without it there is no {what}: do this where it is", path.display())]
    NoRootKey {
        /// The key.
        path: PathBuf,
        /// What it is wanted for.
        what: &'static str,
    },
    /// A node has nothing to sign with.
    #[error(
        "{}: no intermediate of the node {node} is here that holds now, nor the root's key{}: {}",
        path.display(),
        of_others(others),
        where_it_is(node)
    )]
    NoIntermediate {
        /// The directory.
        path: PathBuf,
        /// The node.
        node: String,
        /// Nodes that have intermediates here.
        others: Vec<String>,
    },
    /// What is to be revoked is not known here.
    #[error("{what}: {hint}")]
    Unknown {
        /// What was asked for.
        what: String,
        /// Why, and what to do.
        hint: &'static str,
    },
    /// The crypto library refuses.
    #[error("the crypto library refuses: {why}")]
    Crypto {
        /// Its words.
        why: String,
    },
}

/// A node by another name than its directory knows is a common mistake.
fn of_others(nodes: &[String]) -> String {
    match nodes {
        [] => String::new(),
        nodes => format!(" (there are some of {})", nodes.join(", ")),
    }
}

/// What gives a node something to sign with. The authority's own processes have it of the root's key alone.
fn where_it_is(node: &str) -> String {
    match is_own(node) {
        true => "do this where that key is".into(),
        false => format!("`ambient ca issue --node {node}` where that key is gives one"),
    }
}

/// Of what a revocation has left: which, why, and what to do.
fn what_is_left(left: &[(String, String)], unusable: Option<&OpenError>) -> String {
    let far = (!left.is_empty()).then(|| {
        format!(
            "{}, as the keys of their issuers are not here: revoke them where those are, or their issuers by serial number where the \
             root's key is (`--serial ISSUER --issuer ROOT`)",
            by_issuers(left)
        )
    });
    let unusable = unusable.map(|error| format!("what an intermediate has to do with that cannot be used: {error}"));
    far.into_iter().chain(unusable).collect::<Vec<_>>().join("; nor ")
}

/// Each with its issuer; of many the first.
fn by_issuers(left: &[(String, String)]) -> String {
    let mut named: Vec<_> = left.iter().take(8).map(|(one, issuer)| format!("{one} of {issuer}")).collect();
    if left.len() > named.len() {
        named.push(format!("and {} more", left.len() - named.len()));
    }
    named.join(", ")
}

/// That nobody else is called as an authority's own processes are.
pub(crate) fn check_not_own(node: &str) -> Result<(), OpenError> {
    match is_own(node) {
        true => Err(OpenError::OwnName { node: node.into() }),
        false => Ok(()),
    }
}

/// Whether processes of an authority's own sign by this name.
fn is_own(node: &str) -> bool {
    [LOCAL, CONTROL].contains(&node)
}

/// See [`crate::fuzz`].
#[cfg(feature = "fuzz")]
pub(crate) fn fuzz(data: &[u8]) {
    use std::{
        os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
        sync::atomic::{AtomicU64, Ordering},
    };
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let name = format!("ambient-fuzz-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let directory = std::env::temp_dir().join(name);
    let mut make = std::fs::DirBuilder::new();
    make.recursive(true).mode(0o700);
    for within in ["", "intermediates/node-1", "issued"] {
        make.create(directory.join(within)).expect("a directory");
    }
    let files = [
        "root.pem",
        "root-key.pem",
        "revoked.json",
        "intermediates/node-1/1.pem",
        "issued/1.jsonl",
    ];
    for (name, content) in files
        .iter()
        .zip(data.split(|byte| *byte == 0))
        .filter(|(_, content)| !content.is_empty())
    {
        // Without the waits for a disk that whoever writes for good makes.
        let mut options = std::fs::OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(directory.join(name));
        std::io::Write::write_all(&mut file.expect("a file"), content).expect("room");
    }
    let shown = Authority::open(&directory).and_then(|authority| authority.show(now()));
    let error = shown.map(drop).err().map(|error| error.to_string());
    std::fs::remove_dir_all(&directory).expect("it goes");
    assert!(error.is_none_or(|error| error.contains("ambient-fuzz-") || error.contains("crypto")));
}

/// A certificate in PEM.
#[cfg(feature = "serve")]
pub(crate) fn pem(der: &[u8]) -> String {
    roots::pem("CERTIFICATE", der)
}

/// Certificates hold whole seconds, and none after the last that they can say.
fn whole_seconds(time: SystemTime) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds(time).min(LAST))
}

/// The end of what begins now, as a certificate holds it.
fn end_of(life: Duration, now: SystemTime) -> SystemTime {
    whole_seconds(now.checked_add(life).unwrap_or(now))
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[expect(
    clippy::disallowed_methods,
    reason = "an authority dates what it signs; all else takes the time as an argument"
)]
fn now() -> SystemTime {
    SystemTime::now()
}

const MAX_TTL: Duration = Duration::from_secs(366 * 24 * 60 * 60);
/// Certificates that are signed at the same time: more would wait for the same disk, and for the same processors.
const DESKS: usize = 4;
/// Why nothing was signed.
const ENDED: &str = "nothing was signed: the process is ending, or something in it has failed";
/// The end of the year 9999, which stands for no end (RFC 5280 4.1.2.5), in seconds since 1970.
const LAST: u64 = 253_402_300_799;
/// By how much clocks of the mesh may differ.
const SKEW: Duration = Duration::from_secs(300);
/// The node of those who name none.
const LOCAL: &str = "local";
/// The node that a control plane signs as, by [`DirectoryCa::open_for`].
pub const CONTROL: &str = "control";

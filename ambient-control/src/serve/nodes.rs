//! By what nodes are known: join tokens, each made for one node and kept as a hash, and the certificates that were given for
//! them.

use std::{
    fmt::Write as _,
    fs::File,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ambient_tls::Moment;
pub(super) use joins::Join;
use joins::Joins;
use list::List;
use rustls::crypto::{
    CryptoProvider,
    hash::{Hash, HashAlgorithm},
};
use serde::{Deserialize, Serialize};

use crate::{
    ca::{
        OpenError, check_not_own,
        directory::{self, Stamp},
    },
    istiod::is_node_name,
};

mod joins;
mod list;
#[cfg(test)]
mod tests;

/// The nodes that a control plane knows: `tokens.json` and `nodes.json` in a directory, beside the root of an authority as a
/// rule, for nobody else to read. Every process that opens it sees what another has changed with its next look.
#[derive(Debug)]
pub struct Nodes {
    directory: PathBuf,
    tokens: List<JoinToken>,
    certificates: List<NodeCertificate>,
    provider: Arc<CryptoProvider>,
    joins: Mutex<Joins>,
}

/// A token, but not what it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinToken {
    /// By which it is revoked; it stands in the token.
    pub id: String,
    /// The node that it is for.
    pub node: String,
    /// Seconds since 1970.
    pub expires: u64,
    /// Whether it is good for certificates of one key alone, and for nothing else.
    #[serde(default)]
    pub once: bool,
    /// SHA-256 of the whole token, in hexadecimal digits.
    sha256: String,
    /// That of the key, where `once` has begun to count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    used_for: Option<String>,
}

/// A certificate that was given to a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeCertificate {
    /// The node that it names.
    pub node: String,
    /// Its serial number, in hexadecimal digits.
    pub serial: String,
    /// When it was given, in seconds since 1970.
    pub since: u64,
    /// Its last moment, in seconds since 1970.
    pub expires: u64,
    /// SHA-256 of it in DER, in hexadecimal digits.
    pub(super) sha256: String,
}

/// How often a token may be exchanged for a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// As often as its node is without one: after each reboot, which leaves no keys. It may be shown in the place of a
    /// certificate as well, as ztunnel does.
    Always,
    /// By the first key that is shown, and nobody else. A node that has lost that key needs another token.
    Once,
}

/// What was revoked of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RevokedNode {
    /// Its tokens.
    pub tokens: usize,
    /// Its certificates.
    pub certificates: usize,
}

/// By what a caller is known, to be asked for again later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Proof {
    /// A token with this hash.
    Token(String),
    /// A certificate with this hash.
    Certificate(String),
}

/// Who is known by a proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) node: String,
    /// Seconds since 1970.
    pub(super) expires: u64,
    /// It is a token that is good for an exchange alone.
    pub(super) once: bool,
}

/// Why nodes cannot be told from others.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodesError {
    /// The name is no node's.
    #[error("{node:?} is no name of a node: letters, digits, '.', '-' and '_' make one, 253 at most, of which '.' is not the first")]
    Node {
        /// What was given.
        node: String,
    },
    /// A file cannot be read or written, or the name is one that the authority's own processes sign by.
    #[error(transparent)]
    File(#[from] OpenError),
    /// A file is not what it must be.
    #[error("{}: {why}: put the right one back, or write [] there and make new tokens", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A file that was there is gone, which takes nothing from whom it named.
    #[error("{}: it is gone: put it back, or write [] there if whom it named is to be known no more", path.display())]
    Gone {
        /// The file.
        path: PathBuf,
    },
    /// There are too many.
    #[error("there are {TOKENS} tokens already: revoke some")]
    Many,
    /// No such token.
    #[error("there is no token {id}: `ambient control tokens` lists those that are good")]
    Unknown {
        /// What was given.
        id: String,
    },
    /// The crypto library refuses.
    #[error("the crypto library gives no {what}")]
    Crypto {
        /// What was asked for.
        what: &'static str,
    },
    /// Whoever was to write it has ended.
    #[error("it was not written: the process is ending, or something in it has failed")]
    Ended,
}

impl Nodes {
    /// Those of a directory, which must be there.
    pub fn new(directory: impl AsRef<Path>, provider: Arc<CryptoProvider>) -> Self {
        let directory = directory.as_ref();
        Self {
            directory: directory.into(),
            tokens: List::new(directory.join("tokens.json")),
            certificates: List::new(directory.join("nodes.json")),
            provider,
            joins: Mutex::default(),
        }
    }

    /// Makes a token for a node. It is given once, here; what is kept tells whether a token is it.
    ///
    /// # Errors
    /// When the name is no node's, there are too many, or the file system refuses.
    pub fn create_token(&self, node: &str, life: Duration, how: Use, now: SystemTime) -> Result<String, NodesError> {
        if !is_node_name(node) {
            return Err(NodesError::Node { node: node.into() });
        }
        check_not_own(node)?;
        let (id, secret) = (self.random::<6>()?, self.random::<32>()?);
        let token = format!("ambient-{id}.{secret}");
        let sha256 = self.hash(token.as_bytes())?;
        let _lock = self.lock()?;
        let mut tokens = self.live_tokens(now)?;
        if tokens.len() >= TOKENS {
            return Err(NodesError::Many);
        }
        tokens.push(JoinToken {
            id,
            node: node.into(),
            expires: seconds(now).saturating_add(life.as_secs()),
            once: how == Use::Once,
            sha256,
            used_for: None,
        });
        self.tokens.store(&tokens)?;
        Ok(token)
    }

    /// Ends a token at once. Certificates that it was exchanged for stay good: [`Nodes::revoke`] ends them.
    ///
    /// # Errors
    /// When there is none of that id, or the file system refuses.
    pub fn revoke_token(&self, id: &str, now: SystemTime) -> Result<(), NodesError> {
        let _lock = self.lock()?;
        let mut tokens = self.live_tokens(now)?;
        let before = tokens.len();
        tokens.retain(|token| token.id != id);
        match tokens.len() < before {
            true => self.tokens.store(&tokens),
            false => Err(NodesError::Unknown { id: id.into() }),
        }
    }

    /// Ends all by which a node is known, at once: its streams end, and it gets no other certificate until it is given another
    /// token.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn revoke(&self, node: &str, now: SystemTime) -> Result<RevokedNode, NodesError> {
        let _lock = self.lock()?;
        let (mut tokens, mut certificates) = (self.live_tokens(now)?, self.live_certificates(now)?);
        let before = (tokens.len(), certificates.len());
        tokens.retain(|token| token.node != node);
        certificates.retain(|certificate| certificate.node != node);
        let revoked = RevokedNode {
            tokens: before.0 - tokens.len(),
            certificates: before.1 - certificates.len(),
        };
        // Tokens first: what is cut short between the two leaves nothing to join with.
        if revoked.tokens > 0 {
            self.tokens.store(&tokens)?;
        }
        if revoked.certificates > 0 {
            self.certificates.store(&certificates)?;
        }
        Ok(revoked)
    }

    /// The tokens that have not ended.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn tokens(&self, now: SystemTime) -> Result<Vec<JoinToken>, NodesError> {
        let all = self.tokens.all()?;
        Ok(all.iter().filter(|token| token.expires > seconds(now)).cloned().collect())
    }

    /// The certificates that have not ended.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn certificates(&self, now: SystemTime) -> Result<Vec<NodeCertificate>, NodesError> {
        let all = self.certificates.all()?;
        Ok(all.iter().filter(|one| one.expires > seconds(now)).cloned().collect())
    }

    /// What a token that is shown would be known by.
    pub(super) fn proof_of_token(&self, token: &str) -> Result<Proof, NodesError> {
        // The time that a search for it takes tells of the hash, from which no token follows.
        self.hash(token.as_bytes()).map(Proof::Token)
    }

    /// What a certificate that is shown would be known by.
    pub(super) fn proof_of_certificate(&self, der: &[u8]) -> Result<Proof, NodesError> {
        self.hash(der).map(Proof::Certificate)
    }

    /// Who is known by a proof now; `None` where nobody is, or is no more, but not where the file that says so is gone.
    pub(super) fn known(&self, proof: &Proof, now: SystemTime) -> Result<Option<Known>, NodesError> {
        let known = match proof {
            Proof::Token(hash) => self.tokens.all()?.iter().find(|one| one.sha256 == *hash).map(|one| Known {
                node: one.node.clone(),
                expires: one.expires,
                once: one.once,
            }),
            Proof::Certificate(hash) => self.certificates.all()?.iter().find(|one| one.sha256 == *hash).map(|one| Known {
                node: one.node.clone(),
                expires: one.expires,
                once: false,
            }),
        };
        Ok(known.filter(|known| known.expires > seconds(now)))
    }

    /// When what is shown ends or has ended, where that is still kept.
    pub(super) fn end_of(&self, proof: &Proof) -> Option<Moment> {
        let end = match proof {
            Proof::Token(hash) => self.tokens.all().ok()?.iter().find(|one| one.sha256 == *hash)?.expires,
            Proof::Certificate(hash) => self.certificates.all().ok()?.iter().find(|one| one.sha256 == *hash)?.expires,
        };
        Some(Moment::of(end))
    }

    /// Takes note of certificates, one after the other, and tells of each whether it counts; on the disk with one write, or none of
    /// them.
    fn note(&self, joins: &[Join]) -> Result<Vec<bool>, NodesError> {
        let Some(now) = joins.iter().map(|join| join.now).max() else {
            return Ok(Vec::new());
        };
        let keys = joins.iter().map(|join| self.hash(&join.key)).collect::<Result<Vec<_>, _>>()?;
        let _lock = self.lock()?;
        let (mut tokens, mut certificates) = (self.live_tokens(now)?, self.live_certificates(now)?);
        let (mut noted, mut used) = (Vec::with_capacity(joins.len()), false);
        for (join, key) in joins.iter().zip(keys) {
            let is_known = match &join.proof {
                Proof::Certificate(hash) => certificates.iter().any(|one| one.sha256 == *hash),
                Proof::Token(hash) => match tokens.iter_mut().find(|token| token.sha256 == *hash) {
                    None => false,
                    Some(token) if !token.once => true,
                    Some(token) => {
                        used |= token.used_for.is_none();
                        *token.used_for.get_or_insert_with(|| key.clone()) == key
                    }
                },
            };
            if is_known {
                add(&mut certificates, join.given.clone());
            }
            noted.push(is_known);
        }
        // A token that was used is so before anything is given for it.
        if used {
            self.tokens.store(&tokens)?;
        }
        if noted.contains(&true) {
            self.certificates.store(&certificates)?;
        }
        Ok(noted)
    }

    /// SHA-256, in hexadecimal digits.
    pub(super) fn hash(&self, of: &[u8]) -> Result<String, NodesError> {
        let suites = self.provider.cipher_suites.iter().filter_map(|suite| suite.tls13());
        let mut providers = suites.map(|suite| suite.common.hash_provider);
        let sha256: &dyn Hash = providers
            .find(|hash| hash.algorithm() == HashAlgorithm::SHA256)
            .ok_or(NodesError::Crypto { what: "SHA-256" })?;
        Ok(hex(sha256.hash(of).as_ref()))
    }

    /// By which it is told that something has changed.
    pub(super) fn stamps(&self) -> [Option<Stamp>; 2] {
        [self.tokens.stamp(), self.certificates.stamp()]
    }

    fn lock(&self) -> Result<File, NodesError> {
        Ok(directory::lock(&self.directory)?)
    }

    fn live_tokens(&self, now: SystemTime) -> Result<Vec<JoinToken>, NodesError> {
        let mut all = self.tokens.load()?;
        all.retain(|token| token.expires > seconds(now));
        Ok(all)
    }

    fn live_certificates(&self, now: SystemTime) -> Result<Vec<NodeCertificate>, NodesError> {
        let mut all = self.certificates.load()?;
        all.retain(|one| one.expires > seconds(now));
        Ok(all)
    }

    fn random<const N: usize>(&self) -> Result<String, NodesError> {
        let mut bytes = [0; N];
        let filled = self.provider.secure_random.fill(&mut bytes);
        filled.map_err(|_| NodesError::Crypto { what: "random bytes" })?;
        Ok(hex(&bytes))
    }
}

/// A node that begins anew again and again fills nothing: its oldest go.
fn add(certificates: &mut Vec<NodeCertificate>, given: NodeCertificate) {
    let mut of_node = certificates.iter().filter(|one| one.node == given.node).count();
    if of_node >= CERTIFICATES {
        certificates.retain(|one| {
            let goes = one.node == given.node && of_node >= CERTIFICATES;
            of_node -= usize::from(goes);
            !goes
        });
    }
    certificates.push(given);
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a text never fails.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

pub(super) fn seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// More nodes than one control plane of this kind is for.
const TOKENS: usize = 4096;
/// Certificates of one node that are good at a time: the present one, the one before, and those of starts that kept none.
const CERTIFICATES: usize = 8;

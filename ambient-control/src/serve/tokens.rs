//! Tokens by which nodes are known: random, kept as hashes, for one node each, until they end or are revoked.

use std::{
    fmt::Write as _,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls::crypto::{
    CryptoProvider,
    hash::{Hash, HashAlgorithm},
};
use serde::{Deserialize, Serialize};

use crate::ca::{OpenError, directory};

#[cfg(test)]
mod tests;

/// The tokens of an authority's directory: `tokens.json`, beside the root that they lead to, for nobody else to read.
#[derive(Debug)]
pub struct Tokens {
    file: PathBuf,
    provider: Arc<CryptoProvider>,
    read: Mutex<Option<(Stamp, Arc<[Entry]>)>>,
}

/// A token, but not what it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// By which it is revoked; it stands in the token.
    pub id: String,
    /// The node that it is for.
    pub node: String,
    /// Seconds since 1970.
    pub expires: u64,
    /// SHA-256 of the whole token, in hexadecimal digits.
    sha256: String,
}

/// By which it is told that the file has changed.
type Stamp = (SystemTime, u64);

/// Why tokens cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// The name is no node's.
    #[error("{node:?} is no name of a node: letters, digits, '.', '-' and '_' make one")]
    Node {
        /// What was given.
        node: String,
    },
    /// The file cannot be read or written.
    #[error(transparent)]
    File(#[from] OpenError),
    /// The file is not what it must be.
    #[error("{}: {why}: put the right one back, or remove it and make new tokens", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// There are too many.
    #[error("there are {TOKENS} tokens already: revoke some")]
    Many,
    /// No such token.
    #[error("there is no token {id}")]
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
}

impl Tokens {
    /// The tokens in the directory of an authority, which must be there.
    pub fn new(directory: impl AsRef<Path>, provider: Arc<CryptoProvider>) -> Self {
        Self {
            file: directory.as_ref().join("tokens.json"),
            provider,
            read: Mutex::default(),
        }
    }

    /// Makes a token for a node. It is given once, here; what is kept tells whether a token is it.
    ///
    /// # Errors
    /// When the name is no node's, there are too many, or the file system refuses.
    pub fn create(&self, node: &str, life: Duration, now: SystemTime) -> Result<String, TokenError> {
        let fits = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        if node.is_empty() || node.len() > 253 || !node.chars().all(fits) || node.starts_with('.') {
            return Err(TokenError::Node { node: node.into() });
        }
        let (id, secret) = (self.random::<6>()?, self.random::<32>()?);
        let token = format!("ambient-{id}.{secret}");
        let sha256 = self.hash(&token)?;
        let entry = Entry {
            id,
            node: node.into(),
            expires: seconds(now + life),
            sha256,
        };
        self.change(now, |entries| {
            if entries.len() >= TOKENS {
                return Err(TokenError::Many);
            }
            entries.push(entry);
            Ok(())
        })?;
        Ok(token)
    }

    /// Ends a token at once.
    ///
    /// # Errors
    /// When there is none of that id, or the file system refuses.
    pub fn revoke(&self, id: &str, now: SystemTime) -> Result<(), TokenError> {
        self.change(now, |entries| {
            let before = entries.len();
            entries.retain(|entry| entry.id != id);
            match entries.len() < before {
                true => Ok(()),
                false => Err(TokenError::Unknown { id: id.into() }),
            }
        })
    }

    /// Those that have not ended.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn list(&self, now: SystemTime) -> Result<Vec<Entry>, TokenError> {
        let all = self.entries()?;
        Ok(all.iter().filter(|entry| entry.expires > seconds(now)).cloned().collect())
    }

    /// The node that a token is for; `None` if it is none, or none any more.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn node(&self, token: &str, now: SystemTime) -> Result<Option<String>, TokenError> {
        let hash = self.hash(token)?;
        // The time that it takes tells of the hash, from which no token follows.
        let found = self.entries()?.iter().find(|entry| entry.sha256 == hash).cloned();
        Ok(found.filter(|entry| entry.expires > seconds(now)).map(|entry| entry.node))
    }

    fn entries(&self) -> Result<Arc<[Entry]>, TokenError> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(stamp) = self.stamp()? else { return Ok(Arc::from([])) };
        if let Some((_, entries)) = read.as_ref().filter(|(of, _)| *of == stamp) {
            return Ok(entries.clone());
        }
        let entries: Arc<[Entry]> = self.load()?.into();
        *read = Some((stamp, entries.clone()));
        Ok(entries)
    }

    fn stamp(&self) -> Result<Option<Stamp>, TokenError> {
        match std::fs::metadata(&self.file) {
            Ok(meta) => Ok(Some((meta.modified().unwrap_or(UNIX_EPOCH), meta.len()))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(self.refused("look at", source)),
        }
    }

    fn load(&self) -> Result<Vec<Entry>, TokenError> {
        let text = match directory::read(&self.file) {
            Err(OpenError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            read => read?,
        };
        serde_json::from_slice(&text).map_err(|e| TokenError::Unusable {
            path: self.file.clone(),
            why: e.to_string(),
        })
    }

    fn change(&self, now: SystemTime, change: impl FnOnce(&mut Vec<Entry>) -> Result<(), TokenError>) -> Result<(), TokenError> {
        let parent = self.file.parent().unwrap_or_else(|| Path::new("."));
        let _lock = directory::lock(parent)?;
        let mut entries = self.load()?;
        entries.retain(|entry| entry.expires > seconds(now));
        change(&mut entries)?;
        let text = serde_json::to_vec_pretty(&entries).map_err(|e| self.refused("write", e.into()))?;
        directory::write(&self.file, 0o600, &text)?;
        // Two changes within one tick of the file system's clock would look alike.
        *self.read.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(())
    }

    fn refused(&self, what: &'static str, source: io::Error) -> TokenError {
        let path = self.file.clone();
        OpenError::Io { what, path, source }.into()
    }

    fn random<const N: usize>(&self) -> Result<String, TokenError> {
        let mut bytes = [0; N];
        let filled = self.provider.secure_random.fill(&mut bytes);
        filled.map_err(|_| TokenError::Crypto { what: "random bytes" })?;
        Ok(hex(&bytes))
    }

    fn hash(&self, token: &str) -> Result<String, TokenError> {
        let suites = self.provider.cipher_suites.iter().filter_map(|suite| suite.tls13());
        let mut providers = suites.map(|suite| suite.common.hash_provider);
        let sha256: &dyn Hash = providers
            .find(|hash| hash.algorithm() == HashAlgorithm::SHA256)
            .ok_or(TokenError::Crypto { what: "SHA-256" })?;
        Ok(hex(sha256.hash(token.as_bytes()).as_ref()))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a text never fails.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// More nodes than one control plane of this kind is for.
const TOKENS: usize = 4096;

//! A node's own certificate, beside those of its pods.

use std::{io, path::PathBuf, sync::Arc};

use ambient_control::istiod::{KeepNode, NodeCredential};
use zeroize::Zeroizing;

use super::{KeysError, Memory, moment, payload, put, seconds, take};
use crate::Keys;

/// Keeps the certificate that a node shows to its control plane where those of its pods are kept ([`Keys`]): in memory, and
/// by the same rules.
#[derive(Debug)]
pub struct NodeKeys(Memory);

impl NodeKeys {
    /// Opens the place for a node; `None` where none is wanted, or [`Keys::IfPossible`] is not possible.
    ///
    /// # Errors
    /// When [`Keys::Below`] names no place where keys can be kept.
    pub fn open(keys: &Keys, node: &str) -> Result<Option<Self>, KeysError> {
        match keys {
            Keys::Nowhere => Ok(None),
            Keys::Below(directory) => Memory::open(directory, node).map(|memory| Some(Self(memory))),
            // The node itself tells of it.
            Keys::IfPossible(directory) => Ok(Memory::open(directory, node).ok().map(Self)),
        }
    }

    #[cfg(test)]
    pub(super) fn of(memory: Memory) -> Self {
        Self(memory)
    }

    fn path(&self) -> PathBuf {
        self.0.0.join(FILE)
    }
}

impl KeepNode for NodeKeys {
    fn load(&self) -> Option<NodeCredential> {
        let why = match self.0.read(FILE) {
            Ok(None) => return None,
            Ok(Some(content)) => match decode(&content) {
                Some(credential) => return Some(credential),
                None => super::DAMAGED.to_owned(),
            },
            Err(why) => why,
        };
        tracing::warn!(why, path = %self.path().display(), "this node's certificate of before this start was dropped");
        None
    }

    fn put(&self, credential: &NodeCredential) -> io::Result<()> {
        Memory::write(&self.path(), &encode(credential))
    }

    fn wipe(&self) {
        if let Err(error) = Memory::wipe(&self.path()) {
            tracing::error!(%error, "this node's key that is needed no more cannot be wiped");
        }
    }
}

fn encode(credential: &NodeCredential) -> Zeroizing<Vec<u8>> {
    let certificates = || {
        credential
            .chain
            .iter()
            .map(|der| (0, der))
            .chain(credential.roots.iter().map(|der| (1, der)))
    };
    // Room for all from the start: a buffer that grows leaves what it was behind.
    let size = certificates().map(|(_, der)| der.len() + 9).sum::<usize>() + credential.key.der().len();
    let mut payload = Zeroizing::new(Vec::with_capacity(size + 64));
    put(&mut payload, &seconds(credential.not_before).to_be_bytes());
    put(&mut payload, &seconds(credential.not_after).to_be_bytes());
    put(&mut payload, credential.key.der());
    for (kind, der) in certificates() {
        put(&mut payload, &[kind]);
        put(&mut payload, der);
    }
    payload
}

fn decode(content: &[u8]) -> Option<NodeCredential> {
    let mut rest = payload(content)?;
    let [not_before, not_after] = [take(&mut rest)?, take(&mut rest)?].map(moment);
    let key = take(&mut rest)?.to_vec();
    let (mut chain, mut roots) = (Vec::new(), Vec::new());
    while !rest.is_empty() {
        match (take(&mut rest)?, take(&mut rest)?.to_vec()) {
            ([0], der) => chain.push(der),
            ([1], der) => roots.push(der),
            _ => return None,
        }
    }
    Some(NodeCredential {
        chain,
        key: Arc::new(key.into()),
        not_before: not_before?,
        not_after: not_after?,
        roots,
    })
}

/// Its name is no identity's.
pub(super) const FILE: &str = "node";

//! Whom to trust, as it was said last, on disk.
//!
//! ```text
//! "ambient roots 1\n" mark (record)*
//! payload: 'O' text                                                whose they are, where that is one of several that may be asked
//!          'T' until (seconds since 1970, u64) trust-domain der     a root; texts and bodies with their lengths (u32) before them
//!          'L' trust-domain der                                     a revocation list
//! ```

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

#[cfg(any(feature = "spiffe", feature = "fuzz", test))]
use ambient_core::TrustBundles;
use ambient_core::TrustDomain;

use super::{MemoryError, fnv, head, mark, own_directory, read_mark, read_own, record, replace, take, text};

#[cfg(test)]
mod tests;

/// The file.
#[derive(Debug)]
pub(crate) struct TrustFile {
    path: PathBuf,
    /// Whose roots it is for.
    origin: Option<String>,
    /// A disk that takes nothing for as long as this is so.
    #[cfg(test)]
    pub(crate) stalls: std::sync::Arc<std::sync::atomic::AtomicBool>,
}

/// What stands there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeptTrust {
    /// When whoever says so was heard of last.
    pub(crate) heard: SystemTime,
    pub(crate) roots: Vec<Root>,
    pub(crate) lists: Vec<(TrustDomain, Vec<u8>)>,
}

/// A root, and until when it is trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Root {
    pub(crate) of: TrustDomain,
    pub(crate) der: Vec<u8>,
    pub(crate) until: SystemTime,
}

impl TrustFile {
    /// The file of a name in a directory, which is made (mode 0700) if it is not there, and what it holds; nothing of a
    /// damaged one, which is told in the log, once: it is removed.
    ///
    /// # Errors
    /// When the file system refuses, or others could have written there.
    #[cfg(any(test, feature = "spiffe"))]
    pub(crate) fn open(directory: &Path, name: &str) -> Result<(Self, Option<KeptTrust>), MemoryError> {
        Self::open_of(directory, name, None)
    }

    /// The same; of another origin than the one that is named, nothing that it holds is gone by, which is told in the log. What bears none
    /// is everybody's: it was written before they did.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn open_of(directory: &Path, name: &str, origin: Option<&str>) -> Result<(Self, Option<KeptTrust>), MemoryError> {
        own_directory(directory)?;
        let file = Self {
            path: directory.join(name),
            origin: origin.map(Into::into),
            #[cfg(test)]
            stalls: std::sync::Arc::default(),
        };
        let Some(bytes) = read_own(&file.path)? else {
            return Ok((file, None));
        };
        let path = file.path.clone();
        match (read(&bytes), origin) {
            (Err(at), _) => {
                let shown = path.display();
                tracing::error!(path = %shown, "damaged at byte {at}, and removed: nothing is known of the roots that came before, until others come");
                // Where it cannot be, it is told again with the next start, and nothing else comes of it.
                let _ = fs::remove_file(&path);
                Ok((file, None))
            }
            (Ok((Some(of), _)), Some(wanted)) if of != wanted => {
                let wanted = wanted.into();
                let error = MemoryError::Another { path, of, wanted };
                tracing::error!(%error, "nobody is trusted for what was remembered");
                Ok((file, None))
            }
            (Ok((_, kept)), _) => Ok((file, Some(kept))),
        }
    }

    /// Writes it anew, whole or not at all.
    ///
    /// # Errors
    /// When the file system refuses.
    pub(crate) fn keep(&self, kept: &KeptTrust) -> Result<(), MemoryError> {
        #[cfg(test)]
        while self.stalls.load(std::sync::atomic::Ordering::Relaxed) {
            std::thread::yield_now();
        }
        replace(&self.path, |file| file.write_all(&write(self.origin.as_deref(), kept))).map(drop)
    }
}

#[cfg(any(feature = "spiffe", feature = "fuzz", test))]
impl KeptTrust {
    /// Those of its roots that are trusted at a time, and its lists.
    pub(crate) fn bundles(&self, now: SystemTime) -> TrustBundles {
        let mut bundles = TrustBundles::default();
        for root in self.roots.iter().filter(|root| root.until > now) {
            bundles.add(root.of.clone(), root.der.clone());
        }
        for (of, list) in &self.lists {
            bundles.add_crl(of.clone(), list.clone());
        }
        bundles
    }
}

fn write(origin: Option<&str>, kept: &KeptTrust) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    record(&mut bytes, &mark(kept.heard));
    if let Some(origin) = origin {
        let mut payload = vec![b'O'];
        text(&mut payload, origin.as_bytes());
        record(&mut bytes, &payload);
    }
    for root in &kept.roots {
        let until = root.until.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut payload = vec![b'T'];
        payload.extend_from_slice(&until.to_be_bytes());
        text(&mut payload, root.of.as_str().as_bytes());
        text(&mut payload, &root.der);
        record(&mut bytes, &payload);
    }
    for (of, list) in &kept.lists {
        let mut payload = vec![b'L'];
        text(&mut payload, of.as_str().as_bytes());
        text(&mut payload, list);
        record(&mut bytes, &payload);
    }
    bytes
}

/// Reads a file's bytes, and whose they are: it is written as a whole, so that any damage is damage, and its place is told.
fn read(bytes: &[u8]) -> Result<(Option<String>, KeptTrust), u64> {
    let mut rest = bytes.strip_prefix(MAGIC).ok_or(0_u64)?;
    let mut origin = None;
    let (mut heard, mut roots, mut lists) = (None, Vec::new(), Vec::new());
    while !rest.is_empty() {
        let at = (bytes.len() - rest.len()) as u64;
        let (length, checksum, body) = head(rest).ok_or(at)?;
        let (payload, after) = body.split_at_checked(length).ok_or(at)?;
        if fnv(payload) != checksum {
            return Err(at);
        }
        match payload.split_first() {
            Some((b'O', whose)) => origin = Some(parse_origin(whose).ok_or(at)?),
            Some((b'T', root)) => roots.push(parse_root(root).ok_or(at)?),
            Some((b'L', list)) => lists.push(parse_list(list).ok_or(at)?),
            _ => heard = Some(read_mark(payload).ok_or(at)?),
        }
        rest = after;
    }
    let heard = heard.ok_or(bytes.len() as u64)?;
    Ok((origin, KeptTrust { heard, roots, lists }))
}

fn parse_origin(mut rest: &[u8]) -> Option<String> {
    let origin = String::from_utf8(take(&mut rest)?.to_vec()).ok()?;
    rest.is_empty().then_some(origin)
}

fn parse_root(payload: &[u8]) -> Option<Root> {
    let (until, rest) = payload.split_first_chunk::<8>()?;
    let (of, der) = parse_list(rest)?;
    let until = UNIX_EPOCH.checked_add(Duration::from_secs(u64::from_be_bytes(*until)))?;
    Some(Root { of, der, until })
}

fn parse_list(mut rest: &[u8]) -> Option<(TrustDomain, Vec<u8>)> {
    let of = std::str::from_utf8(take(&mut rest)?).ok()?.parse().ok()?;
    let der = take(&mut rest)?.to_vec();
    rest.is_empty().then_some((of, der))
}

/// Whatever the bytes are: what is read of them is read again from what would be written.
#[cfg(feature = "fuzz")]
pub(crate) fn fuzz(bytes: &[u8]) {
    if let Ok((origin, kept)) = read(bytes) {
        assert_eq!(read(&write(origin.as_deref(), &kept)), Ok((origin, kept)));
    }
    // Few bytes have a right checksum: as a payload, they need none.
    let mut framed = MAGIC.to_vec();
    record(&mut framed, &mark(UNIX_EPOCH));
    for payload in bytes.split(|byte| *byte == 0xff) {
        record(&mut framed, payload);
    }
    if let Ok((origin, kept)) = read(&framed) {
        let _ = kept.bundles(UNIX_EPOCH);
        assert_eq!(read(&write(origin.as_deref(), &kept)), Ok((origin, kept)));
    }
}

const MAGIC: &[u8] = b"ambient roots 1\n";

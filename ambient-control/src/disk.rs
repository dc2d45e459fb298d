//! What is remembered on disk for a restart: where, and in which form. Its files are the process's own (directory 0700, files
//! 0600), written whole or not at all, and each record has a checksum.
//!
//! ```text
//! record:  length of payload (u32) | FNV-1a of payload (u64) | FNV-1a of those two, lower half (u32) | payload
//!                                                                            all numbers big-endian
//! mark:    'M' seconds since 1970 (u64)        whoever said what is kept was heard of then
//! ```
//!
//! Keys and certificates are never in any.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, BufWriter, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::{plain, whole};

pub(crate) mod trust;

/// Where what was said last is kept, and for how long it is believed after a restart.
#[derive(Clone, Debug)]
pub struct MemoryConfig {
    /// A directory of the process's own; made (mode 0700) if it is not there.
    pub directory: PathBuf,
    /// When whoever said it has not been heard of for so long, what is kept is not taken for the state of things any more, and
    /// new connections are refused rather than decided by guess; 24 hours by default.
    pub longest: Duration,
}

impl MemoryConfig {
    /// A directory, with the defaults.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            longest: Duration::from_secs(24 * 60 * 60),
        }
    }
}

/// Why nothing is remembered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// The file system refuses.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// The refusal.
        source: io::Error,
    },
    /// Somebody else could have written it.
    #[error("{}: {why}", path.display())]
    Unsafe {
        /// The directory or the file.
        path: PathBuf,
        /// Why, and what to do.
        why: &'static str,
    },
    /// It is what another control plane has said, or another part of what this one says.
    #[error("{} holds the state of {of}, and that of {wanted} is wanted: it is not gone by, and begun anew; a directory for each keeps both", path.display())]
    Another {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        of: String,
        /// Whose is asked for.
        wanted: String,
    },
    /// It is not what was written.
    #[error("{} is damaged at byte {at}: it is not read, and begun anew; move it away to keep it", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        at: u64,
    },
}

#[cfg(feature = "istiod")]
impl MemoryError {
    /// Whether there may be room later.
    pub(crate) fn is_want_of_room(&self) -> bool {
        let Self::Io { source, .. } = self else { return false };
        matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}

/// Makes a directory of the process's own, or sees that it is one.
pub(crate) fn own_directory(directory: &Path) -> Result<(), MemoryError> {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(directory).map_err(io_error("make the directory", directory))?;
    own(
        directory,
        "others can write here: chmod go-w, if nobody has, or choose another directory",
    )
}

/// A file's bytes, if it is there and nobody else could have written it.
pub(crate) fn read_own(path: &Path) -> Result<Option<Vec<u8>>, MemoryError> {
    match fs::symlink_metadata(path) {
        Ok(_) => {
            own(path, "others can write it: remove it")?;
            let (bytes, _) = plain::read(path, MOST).map_err(io_error("read", path))?;
            Ok(Some(bytes))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(io_error("look at", path)(e)),
    }
}

/// A name of a file's own: the files of a directory are written at the same time.
pub(crate) fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// Writes a file anew, whole or not at all; gives it, open at its end.
pub(crate) fn replace(path: &Path, write: impl FnOnce(&mut BufWriter<&mut File>) -> io::Result<()>) -> Result<File, MemoryError> {
    let written = whole::replace(path, &beside(path, ".new"), 0o600, |file| {
        let mut file = BufWriter::with_capacity(PART, file);
        write(&mut file)?;
        file.flush()
    });
    written.map_err(io_error("write", path))
}

/// Length and checksum of a payload; `None` if the head is not what was written.
pub(crate) fn head(bytes: &[u8]) -> Option<(usize, u64, &[u8])> {
    let (own, _) = bytes.split_at_checked(12)?;
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (checksum, rest) = rest.split_first_chunk::<8>()?;
    let (check, rest) = rest.split_first_chunk::<4>()?;
    let right = fnv(own).to_be_bytes()[4..] == *check;
    right.then_some((u32::from_be_bytes(*length) as usize, u64::from_be_bytes(*checksum), rest))
}

/// The time that a mark's payload bears.
pub(crate) fn read_mark(payload: &[u8]) -> Option<SystemTime> {
    let seconds = u64::from_be_bytes(payload.strip_prefix(b"M")?.try_into().ok()?);
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

pub(crate) fn take<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, after) = rest.split_first_chunk::<4>()?;
    let (taken, after) = after.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    *rest = after;
    Some(taken)
}

pub(crate) fn mark(heard: SystemTime) -> Vec<u8> {
    let seconds = heard.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut payload = vec![b'M'];
    payload.extend_from_slice(&seconds.to_be_bytes());
    payload
}

pub(crate) fn text(payload: &mut Vec<u8>, bytes: &[u8]) {
    // Nothing that is received is nearly so long.
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    payload.extend_from_slice(&length.to_be_bytes());
    payload.extend_from_slice(bytes);
}

pub(crate) fn record(bytes: &mut Vec<u8>, payload: &[u8]) {
    bytes.extend_from_slice(&head_of(payload));
    bytes.extend_from_slice(payload);
}

pub(crate) fn head_of(payload: &[u8]) -> [u8; HEAD] {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let mut head = [0; HEAD];
    head[..4].copy_from_slice(&length.to_be_bytes());
    head[4..12].copy_from_slice(&fnv(payload).to_be_bytes());
    let check = fnv(&head[..12]).to_be_bytes();
    head[12..].copy_from_slice(&check[4..]);
    head
}

/// FNV-1a: it tells what was torn or has rotted, not what was forged; against that stand the modes of file and directory.
pub(crate) fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Refuses what others could have written.
fn own(path: &Path, why: &'static str) -> Result<(), MemoryError> {
    let meta = fs::symlink_metadata(path).map_err(io_error("look at", path))?;
    let refuse = |why| Err(MemoryError::Unsafe { path: path.into(), why });
    if meta.is_symlink() {
        return refuse("is a link: name the place itself");
    }
    if meta.uid() != rustix::process::geteuid().as_raw() {
        return refuse("belongs to another user: choose another directory");
    }
    match meta.mode() & 0o022 {
        0 => Ok(()),
        _ => refuse(why),
    }
}

pub(crate) fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> MemoryError {
    let path = path.into();
    move |source| MemoryError::Io { what, path, source }
}

/// The bytes before a payload.
pub(crate) const HEAD: usize = 16;
/// Longer than anything that is kept: a mesh of millions.
const MOST: u64 = 4 << 30;
/// What is written at a time, in bytes.
pub(crate) const PART: usize = 64 * 1024;

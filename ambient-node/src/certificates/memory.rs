//! Certificates and keys in memory-backed storage, for a restart of the process while the authority is away.
//!
//! One file for each identity, in a directory of the node's own: a header with a version and a checksum, then texts and
//! octets, each behind its length. Whatever is not exactly what was written is dropped. A reboot leaves nothing.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{self, Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ambient_core::{Credential, Identity, TrustBundles};
use ambient_tls::{Accepted, Role, Trust, Verifier};
use rustix::fs::OFlags;
use zeroize::Zeroizing;

use super::standing;

pub use node::NodeKeys;

mod node;
#[cfg(test)]
mod tests;

/// Where certificates outlive a process.
pub(crate) trait Keep: Send + Sync {
    /// What was kept by those before, and what was not: each report is a line for the log. The trust that was in force
    /// comes first, if it was kept; `present` takes its place where there is any.
    fn load(&self, present: &TrustBundles, now: SystemTime) -> Loaded;

    /// Keeps one, in the place of the one before.
    fn put(&self, credential: &Credential) -> io::Result<()>;

    /// Keeps whom to trust.
    fn put_trust(&self, trust: &TrustBundles) -> io::Result<()>;

    /// Wipes one.
    fn remove(&self, identity: &Identity) -> io::Result<()>;
}

/// What was kept.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    pub(crate) credentials: Vec<Credential>,
    pub(crate) trust: Option<TrustBundles>,
    /// Files that were dropped, and why.
    pub(crate) dropped: Vec<String>,
}

/// Why keys cannot be kept in a directory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeysError {
    /// The file system refuses.
    #[error("cannot {what} {} to keep keys for a restart: {source}; name another directory, or keep none", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// The refusal.
        source: io::Error,
    },
    /// It is on a disk, or cannot be told from one.
    #[error("{}: it is not in memory (tmpfs or ramfs), and keys never touch a disk: name such a directory, or keep none", path.display())]
    Disk {
        /// The directory.
        path: PathBuf,
    },
    /// Others could read or write there.
    #[error("{}: {why}", path.display())]
    Unsafe {
        /// The directory.
        path: PathBuf,
        /// Why, and what to do.
        why: String,
    },
}

/// A directory in memory.
#[derive(Debug)]
pub(crate) struct Memory(PathBuf);

impl Memory {
    /// Makes or takes over the directory of a node.
    pub(crate) fn open(directory: &Path, node: &str) -> Result<Self, KeysError> {
        Self::check(directory)?;
        let memory = Self::open_anywhere(directory, node)?;
        let path = memory.0.clone();
        // That of the node may be another's mount.
        match is_in_memory(&path)? {
            true => Ok(memory),
            false => Err(KeysError::Disk { path }),
        }
    }

    /// Looks whether one can be made here, and makes nothing: where it is not there, it would be where the nearest above it is.
    pub(crate) fn check(directory: &Path) -> Result<(), KeysError> {
        let whole = path::absolute(directory).unwrap_or_else(|_| directory.into());
        let there = whole.ancestors().find(|above| above.symlink_metadata().is_ok());
        match is_in_memory(there.unwrap_or_else(|| Path::new("/")))? {
            true => Ok(()),
            false => Err(KeysError::Disk { path: directory.into() }),
        }
    }

    fn open_anywhere(directory: &Path, node: &str) -> Result<Self, KeysError> {
        if node.is_empty() || node.starts_with('.') || node.contains('/') {
            let why = format!("{node:?} is no name of a directory, and keys are kept under the node's name");
            return Err(KeysError::Unsafe {
                path: directory.into(),
                why,
            });
        }
        let own = directory.join(node);
        if directory.symlink_metadata().is_ok() {
            check(directory, 0o022, true)?;
        }
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(&own).map_err(io_error("make", &own))?;
        // Of a directory that others may write to, another could be put in the place of ours.
        check(directory, 0o022, true)?;
        check(&own, 0o077, false)?;
        Ok(Self(own))
    }

    fn file(&self, identity: &Identity) -> io::Result<PathBuf> {
        // '~' stands in no SPIFFE ID: no two identities have one file.
        let name = identity.as_str().trim_start_matches("spiffe://").replace('/', "~");
        match name.len() <= LONGEST_NAME {
            true => Ok(self.0.join(format!("{name}{ENDING}"))),
            false => Err(of(&self.0)(io::ErrorKind::InvalidFilename.into())),
        }
    }

    fn read(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, String> {
        let path = self.0.join(name);
        let mut options = OpenOptions::new();
        options
            .read(true)
            .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed());
        let mut file = match options.open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(format!("it cannot be opened, or is a link: {e}")),
        };
        let meta = file.metadata().map_err(|e| e.to_string())?;
        if !meta.is_file() {
            return Err("it is no file".into());
        }
        if meta.uid() != rustix::process::geteuid().as_raw() {
            return Err(format!("it belongs to the user {}", meta.uid()));
        }
        if meta.mode() & 0o077 != 0 {
            return Err(format!("others can read or write it (mode {:04o})", meta.mode() & 0o7777));
        }
        let mut content = Zeroizing::new(Vec::with_capacity(usize::try_from(meta.len().min(MOST)).unwrap_or(0) + 1));
        let read = (&mut file).take(MOST + 1).read_to_end(&mut content).map_err(|e| e.to_string())?;
        match u64::try_from(read).is_ok_and(|read| read <= MOST) {
            true => Ok(Some(content)),
            false => Err("it is longer than any that is kept".into()),
        }
    }

    /// Written whole or not at all; what was there before is wiped.
    fn write(path: &Path, payload: &[u8]) -> io::Result<()> {
        Self::replace(path, payload).map_err(of(path))
    }

    fn replace(path: &Path, payload: &[u8]) -> io::Result<()> {
        // No start would read it: what is owed for this is told.
        if (HEADER.len() + size_of::<u64>() + payload.len()) as u64 > MOST {
            let why = format!("longer than the {MOST} bytes that are read again");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, why));
        }
        let draft = path.with_extension("new");
        let _ = fs::remove_file(&draft);
        let before = writable(path).ok();
        let mut options = OpenOptions::new();
        options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
        let written = options.open(&draft).and_then(|mut file| {
            file.write_all(&HEADER)?;
            file.write_all(&fnv(payload).to_be_bytes())?;
            file.write_all(payload)?;
            fs::rename(&draft, path)
        });
        match written {
            Ok(()) => {
                if let Some(before) = before {
                    let _ = wipe(before);
                }
                Ok(())
            }
            Err(error) => {
                // Half of a key is of no use to us.
                if let Ok(half) = writable(&draft) {
                    let _ = wipe(half);
                }
                let _ = fs::remove_file(&draft);
                Err(error)
            }
        }
    }

    fn wipe(path: &Path) -> io::Result<()> {
        match writable(path) {
            Ok(file) => wipe(file).map_err(of(path))?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            // A link: what it leads to is not ours.
            Err(_) => {}
        }
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(of(path)(e)),
            _ => Ok(()),
        }
    }
}

impl Keep for Memory {
    fn load(&self, present: &TrustBundles, now: SystemTime) -> Loaded {
        let mut loaded = Loaded::default();
        let drop_it = |loaded: &mut Loaded, name: &str, why: String| {
            loaded.dropped.push(format!("{}: {why}", self.0.join(name).display()));
            let _ = Self::wipe(&self.0.join(name));
        };
        match self.read(TRUST).map(|read| read.map(|read| decode_trust(&read))) {
            Ok(None) => {}
            Ok(Some(Some(trust))) => loaded.trust = Some(trust),
            Ok(Some(None)) => drop_it(&mut loaded, TRUST, DAMAGED.into()),
            Err(why) => drop_it(&mut loaded, TRUST, why),
        }
        let trust = match present.domains().next() {
            Some(_) => present,
            None => loaded.trust.as_ref().unwrap_or(present),
        };
        let provider = Arc::new(ambient_tls::provider());
        let trust = Arc::new(Trust::new(&provider, trust));
        let entries = match fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(error) => {
                loaded.dropped.push(format!("{}: {error}", self.0.display()));
                return loaded;
            }
        };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        for name in names.filter(|name| name != TRUST && name != node::FILE).take(FILES) {
            let credential = match self.read(&name) {
                Ok(None) => continue,
                Ok(Some(_)) if !name.ends_with(ENDING) => Err("it is none of ours, or was cut short".into()),
                Ok(Some(content)) => decode(&content).ok_or_else(|| DAMAGED.into()),
                Err(why) => Err(why),
            };
            let good = credential.and_then(|credential| {
                let fits = self.file(&credential.identity).is_ok_and(|path| path.ends_with(&name));
                let checked = verify(&credential, &trust, now);
                match fits {
                    true => checked.map(|()| credential),
                    false => Err(format!("it holds the certificate of {}", credential.identity)),
                }
            });
            match good {
                Ok(credential) => loaded.credentials.push(credential),
                Err(why) => drop_it(&mut loaded, &name, why),
            }
        }
        loaded
    }

    fn put(&self, credential: &Credential) -> io::Result<()> {
        Self::write(&self.file(&credential.identity)?, &encode(credential))
    }

    fn put_trust(&self, trust: &TrustBundles) -> io::Result<()> {
        let mut payload = Vec::new();
        for domain in trust.domains() {
            for (kind, all) in [(0, trust.roots(domain)), (1, trust.crls(domain))] {
                for der in all {
                    put(&mut payload, domain.as_str().as_bytes());
                    put(&mut payload, &[kind]);
                    put(&mut payload, der);
                }
            }
        }
        Self::write(&self.0.join(TRUST), &payload)
    }

    fn remove(&self, identity: &Identity) -> io::Result<()> {
        Self::wipe(&self.file(identity)?)
    }
}

/// Whether peers would accept it, and its key is its own.
fn verify(credential: &Credential, trust: &Arc<Trust>, now: SystemTime) -> Result<(), String> {
    if credential.not_after <= now {
        return Err("its certificate has ended".into());
    }
    // One that begins later is accepted then.
    standing::accepted(credential, trust, Role::Server, now.max(credential.not_before)).map_err(|e| e.to_string())?;
    // Refuses a key of another certificate.
    let verifier = Verifier::new(trust, Accepted::any_of([credential.identity.clone()]));
    verifier.server_config(credential).map_err(|e| e.to_string())?;
    Ok(())
}

/// Whether what is at a path is in memory.
fn is_in_memory(path: &Path) -> Result<bool, KeysError> {
    let of = rustix::fs::statfs(path).map_err(|e| io_error("look at the file system of", path)(e.into()))?;
    // A number that has another type on each architecture, and never more than 32 bits.
    let magic = u32::try_from(i128::from(of.f_type) & 0xffff_ffff).unwrap_or(0);
    Ok([TMPFS, RAMFS].contains(&magic))
}

fn check(path: &Path, mask: u32, or_roots: bool) -> Result<(), KeysError> {
    let meta = fs::symlink_metadata(path).map_err(io_error("look at", path))?;
    let refuse = |why: String| Err(KeysError::Unsafe { path: path.into(), why });
    if !meta.is_dir() {
        return refuse("it is no directory, or a link to one: name the directory itself".into());
    }
    let own = rustix::process::geteuid().as_raw();
    if meta.uid() != own && !(or_roots && meta.uid() == 0) {
        return refuse(format!(
            "it belongs to the user {}, and not to {own}: name another directory",
            meta.uid()
        ));
    }
    if meta.mode() & mask != 0 {
        return refuse(format!(
            "others can get at it (mode {:04o}): chmod go-rwx it, if nobody has",
            meta.mode() & 0o7777
        ));
    }
    Ok(())
}

fn writable(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options
        .write(true)
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed());
    options.open(path)
}

fn wipe(mut file: File) -> io::Result<()> {
    let meta = file.metadata()?;
    if !meta.is_file() || meta.nlink() > 1 {
        return Ok(());
    }
    let zeros = vec![0; usize::try_from(meta.len().min(MOST)).unwrap_or(0)];
    file.write_all(&zeros)
}

fn encode(credential: &Credential) -> Zeroizing<Vec<u8>> {
    // Room for all from the start: a buffer that grows leaves what it was behind.
    let size = credential.chain.iter().map(Vec::len).sum::<usize>() + credential.key.der().len() + credential.identity.as_str().len();
    let mut payload = Zeroizing::new(Vec::with_capacity(size + 4 * (credential.chain.len() + 4) + 16));
    put(&mut payload, credential.identity.as_str().as_bytes());
    put(&mut payload, &seconds(credential.not_before).to_be_bytes());
    put(&mut payload, &seconds(credential.not_after).to_be_bytes());
    put(&mut payload, credential.key.der());
    for der in &credential.chain {
        put(&mut payload, der);
    }
    payload
}

fn decode(content: &[u8]) -> Option<Credential> {
    let mut rest = payload(content)?;
    let identity = std::str::from_utf8(take(&mut rest)?).ok()?.parse().ok()?;
    let [not_before, not_after] = [take(&mut rest)?, take(&mut rest)?].map(moment);
    let key = take(&mut rest)?;
    let mut chain = Vec::new();
    while !rest.is_empty() {
        chain.push(take(&mut rest)?.to_vec());
    }
    Some(Credential {
        identity,
        chain,
        key: Arc::new(key.to_vec().into()),
        not_before: not_before?,
        not_after: not_after?,
    })
}

fn decode_trust(content: &[u8]) -> Option<TrustBundles> {
    let mut rest = payload(content)?;
    let mut trust = TrustBundles::default();
    while !rest.is_empty() {
        let domain = std::str::from_utf8(take(&mut rest)?).ok()?.parse().ok()?;
        match (take(&mut rest)?, take(&mut rest)?.to_vec()) {
            ([0], der) => trust.add(domain, der),
            ([1], der) => trust.add_crl(domain, der),
            _ => return None,
        }
    }
    Some(trust)
}

/// What is behind the header, if all of it is as it was written.
fn payload(content: &[u8]) -> Option<&[u8]> {
    let (sum, payload) = content.strip_prefix(&HEADER)?.split_first_chunk::<8>()?;
    (u64::from_be_bytes(*sum) == fnv(payload)).then_some(payload)
}

fn put(to: &mut Vec<u8>, field: &[u8]) {
    to.extend(u32::try_from(field.len()).unwrap_or(u32::MAX).to_be_bytes());
    to.extend(field);
}

fn take<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, after) = rest.split_first_chunk::<4>()?;
    let (field, after) = after.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    *rest = after;
    Some(field)
}

fn moment(field: &[u8]) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::from_secs(u64::from_be_bytes(field.try_into().ok()?)))
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// FNV-1a: against damage, not against anybody.
fn fnv(of: &[u8]) -> u64 {
    of.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Says which file it is about: whoever reads of it must not have to guess.
fn of(path: &Path) -> impl FnOnce(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> KeysError {
    let path = path.into();
    move |source| KeysError::Io { what, path, source }
}

const HEADER: [u8; 12] = *b"ambient-key\x01";
const ENDING: &str = ".kept";
const TRUST: &str = "trust";
const DAMAGED: &str = "it is damaged, or of another version";
/// linux/magic.h.
const TMPFS: u32 = 0x0102_1994;
const RAMFS: u32 = 0x8584_58f6;
/// A name has 255 octets at most.
const LONGEST_NAME: usize = 240;
/// A key and its chain are a few thousand octets; CRLs may be more.
const MOST: u64 = 4 << 20;
/// More identities than pods of a node.
const FILES: usize = 4096;

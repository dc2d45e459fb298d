//! What istiod said last, on disk: for a restart while it is away.
//!
//! One file, written only at its end, and made anew when most of it is out of date. What a response brought counts once the
//! mark behind it is written, so that half of an update is never taken for one. A file whose end is torn is read up to the
//! last mark; one that is damaged elsewhere is not read at all: what is missing could be what refuses.
//!
//! ```text
//! "ambient state 1\n" (record)*
//! record:  length of payload (u32) | FNV-1a of payload (u64) | FNV-1a of those two, lower half (u32) | payload
//!                                                                            all numbers big-endian
//! payload: 'P' kind (u8) name version body     a resource; texts and bodies with their lengths (u32) before them
//!          'R' kind (u8) name                  a removal
//!          'M' seconds since 1970 (u64)        a mark: all before it holds, and istiod was heard of then
//! ```
//!
//! Beside it, the roots that came with certificates (`istiod.roots`), in records of the same form and written anew whenever they
//! change:
//!
//! ```text
//! "ambient roots 1\n" mark (record)*
//! payload: 'T' until (seconds since 1970, u64) trust-domain der
//! ```
//!
//! Keys and certificates are never in either.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, DirBuilder, File, OpenOptions},
    hash::{DefaultHasher, Hash, Hasher},
    io::{self, BufWriter, Read, Seek, SeekFrom, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ambient_core::TrustDomain;

use super::{identity::Root, session::Kind};

#[cfg(test)]
mod tests;

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
    /// It is not what was written.
    #[error("{} is damaged at byte {at}: it is not read, and begun anew; move it away to keep it", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        at: u64,
    },
}

/// A resource as it was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) version: String,
    pub(super) body: Vec<u8>,
}

/// All that was remembered.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Remembered {
    pub(super) resources: BTreeMap<(Kind, String), Kept>,
    /// When istiod was heard of last.
    pub(super) heard: Option<SystemTime>,
}

/// One thing to be remembered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Put(Kind, Arc<str>, Kept),
    Remove(Kind, Arc<str>),
}

/// The file.
#[derive(Debug)]
pub(super) struct Memory {
    path: PathBuf,
    file: File,
    /// How long it is, and how much of that is not out of date.
    length: u64,
    live: u64,
    /// How long the record of each resource is, by a hash of its kind and name.
    records: HashMap<u64, u32>,
}

impl Memory {
    /// Opens the file in a directory, which is made (mode 0700) if it is not there, and reads it.
    ///
    /// # Errors
    /// When the file system refuses, or others could have written there. A damaged file is told in the second value; then the
    /// file is begun anew.
    pub(super) fn open(directory: &Path) -> Result<(Self, Result<Remembered, MemoryError>), MemoryError> {
        own_directory(directory)?;
        let path = directory.join("istiod.state");
        let bytes = read_own(&path)?.unwrap_or_default();
        let read = read(&bytes).map_err(|at| MemoryError::Damaged { path: path.clone(), at });
        let nothing = Said::default();
        let memory = Self::begin(path, read.as_ref().unwrap_or(&nothing))?;
        Ok((memory, read.map(Remembered::from)))
    }

    /// Writes a file anew, whole or not at all.
    fn begin(path: PathBuf, said: &Said<'_>) -> Result<Self, MemoryError> {
        let mut file = replace(&path, |file| said.write(file))?;
        let length = file.stream_position().map_err(io_error("write", &path))?;
        let mut memory = Self {
            path,
            file,
            length,
            live: 0,
            records: HashMap::new(),
        };
        for ((kind, name), payload) in &said.resources {
            memory.account(*kind, name, Some(HEAD + payload.len()));
        }
        Ok(memory)
    }

    /// Remembers what one response has brought, and that istiod was heard of.
    ///
    /// # Errors
    /// When the file system refuses. Nothing of it is remembered then, and what was before still is.
    pub(super) fn note(&mut self, entries: &[Entry], heard: SystemTime) -> Result<(), MemoryError> {
        let written = self.write(entries, heard).and_then(|length| self.file.sync_data().map(|()| length));
        let written = written.map_err(|error| {
            // Half of it may be there: nothing is to stand behind it.
            let _ = self.file.set_len(self.length);
            let _ = self.file.seek(SeekFrom::Start(self.length));
            io_error("write", &self.path)(error)
        })?;
        self.length += written;
        for entry in entries {
            match entry {
                Entry::Put(kind, name, kept) => {
                    let length = HEAD + PUT + name.len() + kept.version.len() + kept.body.len();
                    self.account(*kind, name, Some(length));
                }
                Entry::Remove(kind, name) => self.account(*kind, name, None),
            }
        }
        if self.length > 2 * self.live + SPARE {
            self.tidy()?;
        }
        Ok(())
    }

    /// Writes part by part: what comes at once may be a whole mesh.
    fn write(&mut self, entries: &[Entry], heard: SystemTime) -> io::Result<u64> {
        let mut bytes = Vec::new();
        let mut written = 0;
        for entry in entries {
            record(
                &mut bytes,
                &match entry {
                    Entry::Put(kind, name, kept) => put(*kind, name, kept),
                    Entry::Remove(kind, name) => {
                        let mut payload = vec![b'R', *kind as u8];
                        text(&mut payload, name.as_bytes());
                        payload
                    }
                },
            );
            if bytes.len() > PART {
                self.file.write_all(&bytes)?;
                written += bytes.len() as u64;
                bytes.clear();
            }
        }
        record(&mut bytes, &mark(heard));
        self.file.write_all(&bytes)?;
        Ok(written + bytes.len() as u64)
    }

    /// The record of a resource is another now, or is out of date.
    fn account(&mut self, kind: Kind, name: &str, length: Option<usize>) {
        let mut hasher = DefaultHasher::new();
        (kind as u8, name).hash(&mut hasher);
        let length = length.map(|length| u32::try_from(length).unwrap_or(u32::MAX));
        let before = match length {
            Some(length) => self.records.insert(hasher.finish(), length),
            None => self.records.remove(&hasher.finish()),
        };
        self.live = (self.live + u64::from(length.unwrap_or(0))).saturating_sub(u64::from(before.unwrap_or(0)));
    }

    /// Removes the file: what it holds is not what was said last.
    pub(super) fn discard(self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::error!(path = %self.path.display(), %error, "a state that is out of date cannot be removed: remove it");
        }
    }

    /// Makes the file anew of what of it is not out of date.
    fn tidy(&mut self) -> Result<(), MemoryError> {
        let bytes = fs::read(&self.path).map_err(io_error("read", &self.path))?;
        let said = read(&bytes).map_err(|at| MemoryError::Damaged {
            path: self.path.clone(),
            at,
        })?;
        *self = Self::begin(self.path.clone(), &said)?;
        Ok(())
    }
}

/// The roots that came, on disk.
#[derive(Debug)]
pub(super) struct RootsFile(PathBuf);

/// What stands there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RememberedRoots {
    /// When istiod has said so last.
    pub(super) heard: SystemTime,
    pub(super) roots: Vec<Root>,
}

impl RootsFile {
    /// The file in a directory, which is made (mode 0700) if it is not there, and what it holds; nothing of a damaged one, which
    /// is told in the log.
    ///
    /// # Errors
    /// When the file system refuses, or others could have written there.
    pub(super) fn open(directory: &Path) -> Result<(Self, Option<RememberedRoots>), MemoryError> {
        own_directory(directory)?;
        let path = directory.join("istiod.roots");
        let Some(bytes) = read_own(&path)? else {
            return Ok((Self(path), None));
        };
        let read = read_roots(&bytes).map_err(|at| MemoryError::Damaged { path: path.clone(), at });
        let remembered = read.inspect_err(|error| tracing::error!(%error, "nothing is known of the roots that came before"));
        Ok((Self(path), remembered.ok()))
    }

    /// Writes it anew, whole or not at all.
    pub(super) fn keep(&self, remembered: &RememberedRoots) -> Result<(), MemoryError> {
        replace(&self.0, |file| file.write_all(&write_roots(remembered))).map(drop)
    }
}

fn write_roots(remembered: &RememberedRoots) -> Vec<u8> {
    let mut bytes = ROOTS_MAGIC.to_vec();
    record(&mut bytes, &mark(remembered.heard));
    for root in &remembered.roots {
        let until = root.until.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut payload = vec![b'T'];
        payload.extend_from_slice(&until.to_be_bytes());
        text(&mut payload, root.of.as_str().as_bytes());
        text(&mut payload, &root.der);
        record(&mut bytes, &payload);
    }
    bytes
}

/// Reads a file of roots: it is written as a whole, so that any damage is damage.
fn read_roots(bytes: &[u8]) -> Result<RememberedRoots, u64> {
    let mut rest = bytes.strip_prefix(ROOTS_MAGIC).ok_or(0_u64)?;
    let (mut heard, mut roots) = (None, Vec::new());
    while !rest.is_empty() {
        let at = (bytes.len() - rest.len()) as u64;
        let (length, checksum, body) = head(rest).ok_or(at)?;
        let (payload, after) = body.split_at_checked(length).ok_or(at)?;
        if fnv(payload) != checksum {
            return Err(at);
        }
        match payload.split_first() {
            Some((b'T', root)) => roots.push(parse_root(root).ok_or(at)?),
            _ => match parse(payload) {
                Some(Parsed::Mark(at)) => heard = Some(at),
                _ => return Err(at),
            },
        }
        rest = after;
    }
    let heard = heard.ok_or(bytes.len() as u64)?;
    Ok(RememberedRoots { heard, roots })
}

fn parse_root(payload: &[u8]) -> Option<Root> {
    let (until, mut rest) = payload.split_first_chunk::<8>()?;
    let root = Root {
        until: UNIX_EPOCH.checked_add(Duration::from_secs(u64::from_be_bytes(*until)))?,
        of: std::str::from_utf8(take(&mut rest)?).ok()?.parse::<TrustDomain>().ok()?,
        der: take(&mut rest)?.to_vec(),
    };
    rest.is_empty().then_some(root)
}

/// Makes a directory of the process's own, or sees that it is one.
fn own_directory(directory: &Path) -> Result<(), MemoryError> {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(directory).map_err(io_error("make the directory", directory))?;
    own(
        directory,
        "others can write here: chmod go-w, if nobody has, or choose another directory",
    )
}

/// A file's bytes, if it is there and nobody else could have written it.
fn read_own(path: &Path) -> Result<Option<Vec<u8>>, MemoryError> {
    match fs::symlink_metadata(path) {
        Ok(_) => {
            own(path, "others can write it: remove it")?;
            let mut bytes = Vec::new();
            let mut file = options().open(path).map_err(io_error("open", path))?;
            file.read_to_end(&mut bytes).map_err(io_error("read", path))?;
            Ok(Some(bytes))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(io_error("look at", path)(e)),
    }
}

/// Writes a file anew, whole or not at all; gives it, open at its end.
fn replace(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> Result<File, MemoryError> {
    let draft = path.with_extension("new");
    let written = (|| {
        let _ = fs::remove_file(&draft);
        let mut file = BufWriter::with_capacity(PART, options().create_new(true).open(&draft)?);
        write(&mut file)?;
        let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        fs::rename(&draft, path)?;
        File::open(path.parent().unwrap_or_else(|| Path::new(".")))?.sync_all()?;
        Ok(file)
    })();
    written.map_err(|e| {
        let _ = fs::remove_file(&draft);
        io_error("write", path)(e)
    })
}

/// Whatever the bytes are: what is read of them is read again from what would be written.
#[cfg(feature = "fuzz")]
pub(crate) fn fuzz(bytes: &[u8]) {
    let again = |said: &Said<'_>| {
        let mut bytes = Vec::new();
        said.write(&mut bytes).expect("there is room");
        assert_eq!(read(&bytes).as_ref(), Ok(said));
        let _ = format!("{:?}", read(&bytes).map(Remembered::from));
    };
    if let Ok(said) = read(bytes) {
        again(&said);
    }
    if let Ok(remembered) = read_roots(bytes) {
        assert_eq!(read_roots(&write_roots(&remembered)), Ok(remembered));
    }
    // Few bytes have a right checksum: as a payload, they need none.
    let mut framed = MAGIC.to_vec();
    for payload in bytes.split(|byte| *byte == 0xff) {
        record(&mut framed, payload);
    }
    record(&mut framed, &mark(UNIX_EPOCH));
    if let Ok(said) = read(&framed) {
        again(&said);
    }
}

/// What a file says, in its own bytes.
#[derive(Debug, Default, PartialEq, Eq)]
struct Said<'a> {
    /// The last payload of each resource that is there.
    resources: BTreeMap<(Kind, &'a str), &'a [u8]>,
    heard: Option<SystemTime>,
}

impl Said<'_> {
    /// A file that says nothing else.
    fn write(&self, to: &mut impl Write) -> io::Result<()> {
        to.write_all(MAGIC)?;
        for payload in self.resources.values() {
            to.write_all(&head_of(payload))?;
            to.write_all(payload)?;
        }
        if let Some(heard) = self.heard {
            let payload = mark(heard);
            to.write_all(&head_of(&payload))?;
            to.write_all(&payload)?;
        }
        Ok(())
    }
}

impl From<Said<'_>> for Remembered {
    fn from(said: Said<'_>) -> Self {
        let kept = |((kind, name), payload): ((Kind, &str), &[u8])| match parse(payload) {
            Some(Parsed::Put { version, body, .. }) => Some((
                (kind, name.to_owned()),
                Kept {
                    version: version.into(),
                    body: body.into(),
                },
            )),
            _ => None,
        };
        Self {
            resources: said.resources.into_iter().filter_map(kept).collect(),
            heard: said.heard,
        }
    }
}

/// Reads a file's bytes; the place of damage where there is any.
fn read(bytes: &[u8]) -> Result<Said<'_>, u64> {
    let mut rest = match bytes.strip_prefix(MAGIC) {
        Some(rest) => rest,
        None if MAGIC.starts_with(bytes) => return Ok(Said::default()),
        None => return Err(0),
    };
    let (mut said, mut coming) = (Said::default(), Vec::new());
    while !rest.is_empty() {
        let at = (bytes.len() - rest.len()) as u64;
        // What is too short for what it should be is a torn end, and so are zeroes: a file system may have made room for what
        // it then had no time to write.
        if rest.len() < HEAD || rest.iter().all(|byte| *byte == 0) {
            break;
        }
        let (length, checksum, body) = head(rest).ok_or(at)?;
        let Some((payload, after)) = body.split_at_checked(length) else {
            break;
        };
        if fnv(payload) != checksum {
            // The last thing that was written may have been written in part.
            if after.is_empty() {
                break;
            }
            return Err(at);
        }
        match parse(payload).ok_or(at)? {
            Parsed::Put { kind, name, .. } => coming.push(((kind, name), Some(payload))),
            Parsed::Removal(kind, name) => coming.push(((kind, name), None)),
            Parsed::Mark(heard) => {
                for (of, payload) in coming.drain(..) {
                    match payload {
                        Some(payload) => drop(said.resources.insert(of, payload)),
                        None => drop(said.resources.remove(&of)),
                    }
                }
                said.heard = Some(heard);
            }
        }
        rest = after;
    }
    Ok(said)
}

enum Parsed<'a> {
    Put {
        kind: Kind,
        name: &'a str,
        version: &'a str,
        body: &'a [u8],
    },
    Removal(Kind, &'a str),
    Mark(SystemTime),
}

/// Length and checksum of a payload; `None` if the head is not what was written.
fn head(bytes: &[u8]) -> Option<(usize, u64, &[u8])> {
    let (own, _) = bytes.split_at_checked(12)?;
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (checksum, rest) = rest.split_first_chunk::<8>()?;
    let (check, rest) = rest.split_first_chunk::<4>()?;
    let right = fnv(own).to_be_bytes()[4..] == *check;
    right.then_some((u32::from_be_bytes(*length) as usize, u64::from_be_bytes(*checksum), rest))
}

fn parse(payload: &[u8]) -> Option<Parsed<'_>> {
    let (what, mut rest) = payload.split_first()?;
    if *what == b'M' {
        let seconds = u64::from_be_bytes(rest.try_into().ok()?);
        return Some(Parsed::Mark(UNIX_EPOCH.checked_add(Duration::from_secs(seconds))?));
    }
    let (kind, after) = rest.split_first()?;
    let kind = Kind::ALL.into_iter().find(|k| *k as u8 == *kind)?;
    rest = after;
    let name = std::str::from_utf8(take(&mut rest)?).ok()?;
    let parsed = match what {
        b'P' => Parsed::Put {
            kind,
            name,
            version: std::str::from_utf8(take(&mut rest)?).ok()?,
            body: take(&mut rest)?,
        },
        b'R' => Parsed::Removal(kind, name),
        _ => return None,
    };
    rest.is_empty().then_some(parsed)
}

fn take<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, after) = rest.split_first_chunk::<4>()?;
    let (taken, after) = after.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    *rest = after;
    Some(taken)
}

fn put(kind: Kind, name: &str, kept: &Kept) -> Vec<u8> {
    let mut payload = vec![b'P', kind as u8];
    text(&mut payload, name.as_bytes());
    text(&mut payload, kept.version.as_bytes());
    text(&mut payload, &kept.body);
    payload
}

fn mark(heard: SystemTime) -> Vec<u8> {
    let seconds = heard.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut payload = vec![b'M'];
    payload.extend_from_slice(&seconds.to_be_bytes());
    payload
}

fn text(payload: &mut Vec<u8>, bytes: &[u8]) {
    // Nothing that is received is nearly so long.
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    payload.extend_from_slice(&length.to_be_bytes());
    payload.extend_from_slice(bytes);
}

fn record(bytes: &mut Vec<u8>, payload: &[u8]) {
    bytes.extend_from_slice(&head_of(payload));
    bytes.extend_from_slice(payload);
}

fn head_of(payload: &[u8]) -> [u8; HEAD] {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let mut head = [0; HEAD];
    head[..4].copy_from_slice(&length.to_be_bytes());
    head[4..12].copy_from_slice(&fnv(payload).to_be_bytes());
    let check = fnv(&head[..12]).to_be_bytes();
    head[12..].copy_from_slice(&check[4..]);
    head
}

/// FNV-1a: it tells what was torn or has rotted, not what was forged; against that stand the modes of file and directory.
fn fnv(bytes: &[u8]) -> u64 {
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

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .mode(0o600)
        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed());
    options
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> MemoryError {
    let path = path.into();
    move |source| MemoryError::Io { what, path, source }
}

/// The bytes before a payload.
const HEAD: usize = 16;
/// What a resource's payload has besides its texts and its body.
const PUT: usize = 14;
/// What is written at a time, in bytes.
const PART: usize = 64 * 1024;
const MAGIC: &[u8] = b"ambient state 1\n";
const ROOTS_MAGIC: &[u8] = b"ambient roots 1\n";
/// What may be out of date before the file is made anew, besides as much again as is not.
const SPARE: u64 = if cfg!(test) { 4096 } else { 1 << 20 };

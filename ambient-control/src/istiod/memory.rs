//! What istiod said last, on disk: for a restart while it is away.
//!
//! One file, written only at its end, and made anew when most of it is out of date. What a response brought counts once the
//! mark behind it is written, so that half of an update is never taken for one. A file whose end is torn is read up to the
//! last mark; one that is damaged elsewhere is not read at all: what is missing could be what refuses.
//!
//! ```text
//! "ambient state 1\n" (record)*               records as [`crate::disk`] has them
//! payload: 'P' kind (u8) name version body     a resource; texts and bodies with their lengths (u32) before them
//!          'R' kind (u8) name                  a removal
//!          'M' seconds since 1970 (u64)        a mark: all before it holds, and istiod was heard of then
//! ```
//!
//! Keys and certificates are never in it.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    hash::{DefaultHasher, Hash, Hasher},
    io::{self, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use super::session::Kind;
use crate::disk::{
    HEAD, MemoryError, PART, fnv, head, head_of, io_error, mark, own_directory, read_mark, read_own, record, replace, take, text,
};

#[cfg(test)]
mod tests;

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
    // Few bytes have a right checksum: as a payload, they need none.
    let mut framed = MAGIC.to_vec();
    for payload in bytes.split(|byte| *byte == 0xff) {
        record(&mut framed, payload);
    }
    record(&mut framed, &mark(SystemTime::UNIX_EPOCH));
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

fn parse(payload: &[u8]) -> Option<Parsed<'_>> {
    let (what, mut rest) = payload.split_first()?;
    if *what == b'M' {
        return read_mark(payload).map(Parsed::Mark);
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

fn put(kind: Kind, name: &str, kept: &Kept) -> Vec<u8> {
    let mut payload = vec![b'P', kind as u8];
    text(&mut payload, name.as_bytes());
    text(&mut payload, kept.version.as_bytes());
    text(&mut payload, &kept.body);
    payload
}

/// What a resource's payload has besides its texts and its body.
const PUT: usize = 14;
const MAGIC: &[u8] = b"ambient state 1\n";
/// What may be out of date before the file is made anew, besides as much again as is not.
const SPARE: u64 = if cfg!(test) { 4096 } else { 1 << 20 };

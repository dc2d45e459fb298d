//! What istiod said last, on disk: for a restart while it is away.
//!
//! One file, written only at its end, and made anew when most of it is out of date. What a response brought counts once the
//! mark behind it is written, so that half of an update is never taken for one. A file whose end is torn is read up to the
//! last mark; one that is damaged elsewhere is not read at all: what is missing could be what refuses. For the same reason a file
//! that lacks something because there was no room for it has another name (`istiod.state.behind`, which no start reads) until
//! there is.
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
    fs::{self, File, OpenOptions},
    hash::{DefaultHasher, Hash, Hasher},
    io::{self, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use super::session::Kind;
use crate::disk::{
    HEAD, MemoryError, PART, beside, fnv, head, head_of, io_error, mark, own_directory, read_mark, read_own, record, replace, take, text,
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

impl Entry {
    fn word(&self) -> Word<'_> {
        match self {
            Self::Put(kind, name, kept) => (*kind, name, Some(kept)),
            Self::Remove(kind, name) => (*kind, name, None),
        }
    }
}

/// The same, of one or of what is owed: a resource, or that it is there no more.
type Word<'a> = (Kind, &'a str, Option<&'a Kept>);

/// The file.
#[derive(Debug)]
pub(super) struct Memory {
    path: PathBuf,
    /// `None` as long as there is no room for one.
    file: Option<File>,
    /// How long it is, and how much of that is not out of date.
    length: u64,
    live: u64,
    /// How long the record of each resource is, by a hash of its kind and name.
    records: HashMap<u64, u32>,
    /// The file is not made anew before it is so long: there was no room for another.
    tidy_from: u64,
    /// What the file lacks, where it lacks anything.
    owed: Option<Owed>,
    /// Whether the file has the name that no start reads.
    is_behind: bool,
    /// Whether it can never be right again.
    is_lost: bool,
    /// See [`SPARE`].
    spare: u64,
}

/// What there was no room for: the last word for each resource.
#[derive(Debug, Default)]
struct Owed {
    entries: BTreeMap<(Kind, Arc<str>), Option<Kept>>,
    bytes: usize,
}

impl Owed {
    fn add(&mut self, entries: &[Entry]) {
        let size = |name: &str, kept: Option<&Kept>| name.len() + kept.map_or(0, |kept| kept.version.len() + kept.body.len());
        for (kind, name, kept) in entries.iter().map(Entry::word) {
            self.bytes += size(name, kept);
            if let Some(before) = self.entries.insert((kind, name.into()), kept.cloned()) {
                self.bytes -= size(name, before.as_ref());
            }
        }
    }

    fn words(&self) -> impl Iterator<Item = Word<'_>> + Clone {
        self.entries.iter().map(|((kind, name), kept)| (*kind, &**name, kept.as_ref()))
    }
}

impl Memory {
    /// Opens the file in a directory, which is made (mode 0700) if it is not there, and reads it.
    ///
    /// # Errors
    /// When the file system refuses, or others could have written there. A damaged file is told in the second value; then the
    /// file is begun anew. That there is no room now is no error: what is noted is owed until there is.
    pub(super) fn open(directory: &Path) -> Result<(Self, Result<Remembered, MemoryError>), MemoryError> {
        let path = directory.join("istiod.state");
        match own_directory(directory) {
            Err(error) if error.is_want_of_room() => return Ok((Self::owing(path), Ok(Remembered::default()))),
            other => other?,
        }
        // Of a process that ended before there was room.
        let _ = fs::remove_file(behind(&path));
        let bytes = read_own(&path)?.unwrap_or_default();
        let read = read_up_to(&bytes).map_err(|at| MemoryError::Damaged { path: path.clone(), at });
        let nothing = Said::default();
        let memory = match Self::begin(path.clone(), read.as_ref().map_or(&nothing, |(said, _)| said)) {
            Err(error) if error.is_want_of_room() => match &read {
                Ok((said, end)) if *end > 0 => Self::go_on_with(path, said, *end)?,
                _ => Self::owing(path),
            },
            other => other?,
        };
        Ok((memory, read.map(|(said, _)| Remembered::from(said))))
    }

    /// There is no file, and no room for one.
    fn owing(path: PathBuf) -> Self {
        Self {
            owed: Some(Owed::default()),
            ..Self::of(path, None, 0)
        }
    }

    fn of(path: PathBuf, file: Option<File>, length: u64) -> Self {
        Self {
            path,
            file,
            length,
            live: 0,
            records: HashMap::new(),
            tidy_from: 0,
            owed: None,
            is_behind: false,
            is_lost: false,
            spare: SPARE,
        }
    }

    /// Goes on with the file that is there, of which so much counts.
    fn go_on_with(path: PathBuf, said: &Said<'_>, end: u64) -> Result<Self, MemoryError> {
        let nofollow = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
        let opened = OpenOptions::new().read(true).write(true).custom_flags(nofollow).open(&path);
        let mut file = opened.map_err(io_error("open", &path))?;
        let cut = file.set_len(end).and_then(|()| file.seek(SeekFrom::Start(end)));
        cut.map_err(io_error("write", &path))?;
        let mut memory = Self::of(path, Some(file), end);
        memory.account_all(said);
        Ok(memory)
    }

    /// Writes a file anew, whole or not at all.
    fn begin(path: PathBuf, said: &Said<'_>) -> Result<Self, MemoryError> {
        let mut file = replace(&path, |file| said.write(file))?;
        let length = file.stream_position().map_err(io_error("write", &path))?;
        let mut memory = Self::of(path, Some(file), length);
        memory.account_all(said);
        Ok(memory)
    }

    fn account_all(&mut self, said: &Said<'_>) {
        for ((kind, name), payload) in &said.resources {
            self.account(*kind, name, Some(HEAD + payload.len()));
        }
    }

    /// Remembers what one response has brought, and that istiod was heard of.
    ///
    /// # Errors
    /// When the file system refuses. Then nothing is remembered, so that a start finds nothing instead of what is out of date,
    /// until a later call has written what is owed; it may have no entries of its own.
    pub(super) fn note(&mut self, entries: &[Entry], heard: SystemTime) -> Result<(), MemoryError> {
        if let Some(owed) = &mut self.owed {
            owed.add(entries);
            let too_much = owed.bytes > MOST_OWED;
            let settled = self.settle(heard);
            self.is_lost |= too_much && settled.is_err();
            return settled;
        }
        match self.append(entries.iter().map(Entry::word), heard) {
            Ok(()) => self.tidy_if_long(),
            // All that was said is there.
            Err(error) if entries.is_empty() => Err(error),
            Err(error) => {
                self.step_aside();
                self.owed.get_or_insert_default().add(entries);
                Err(error)
            }
        }
    }

    /// Whether nothing will be remembered any more, whatever is noted.
    pub(super) fn is_lost(&self) -> bool {
        self.is_lost
    }

    /// Writes what is owed, and takes the name again that a start looks for.
    fn settle(&mut self, heard: SystemTime) -> Result<(), MemoryError> {
        let owed = self.owed.take().unwrap_or_default();
        let settled = self.catch_up(&owed, heard);
        if settled.is_err() {
            self.owed = Some(owed);
        }
        settled
    }

    fn catch_up(&mut self, owed: &Owed, heard: SystemTime) -> Result<(), MemoryError> {
        if self.file.is_none() {
            own_directory(self.path.parent().unwrap_or_else(|| Path::new(".")))?;
            *self = Self {
                spare: self.spare,
                ..Self::begin(self.path.clone(), &Said::default())?
            };
        }
        self.append(owed.words(), heard)?;
        if self.is_behind {
            fs::rename(behind(&self.path), &self.path).map_err(io_error("rename to", &self.path))?;
            self.is_behind = false;
        }
        Ok(())
    }

    /// The file lacks something: a start is not to find it.
    fn step_aside(&mut self) {
        match fs::rename(&self.path, behind(&self.path)) {
            Ok(()) => self.is_behind = true,
            Err(_) => self.is_lost = true,
        }
    }

    /// Writes at the end of the file, all or nothing.
    fn append<'a>(&mut self, words: impl Iterator<Item = Word<'a>> + Clone, heard: SystemTime) -> Result<(), MemoryError> {
        let written = self.write(words.clone(), heard).map_err(|error| {
            // Half of it may be there: nothing is to stand behind it.
            if let Some(file) = &mut self.file {
                let _ = file.set_len(self.length);
                let _ = file.seek(SeekFrom::Start(self.length));
            }
            io_error("write", &self.path)(error)
        })?;
        self.length += written;
        for (kind, name, kept) in words {
            self.account(
                kind,
                name,
                kept.map(|kept| HEAD + PUT + name.len() + kept.version.len() + kept.body.len()),
            );
        }
        Ok(())
    }

    /// Makes the file anew where most of it is out of date. Where there is no room for another it stays as it is, right and long.
    fn tidy_if_long(&mut self) -> Result<(), MemoryError> {
        if self.length <= (2 * self.live + self.spare).max(self.tidy_from) {
            return Ok(());
        }
        match self.tidy() {
            Err(error @ MemoryError::Io { .. }) => {
                tracing::warn!(%error, "there is no room to make the remembered state anew: it stays as long as it is");
                self.tidy_from = self.length + self.spare;
                Ok(())
            }
            Err(error) => {
                self.is_lost = true;
                Err(error)
            }
            Ok(()) => Ok(()),
        }
    }

    /// Writes part by part: what comes at once may be a whole mesh.
    fn write<'a>(&mut self, words: impl Iterator<Item = Word<'a>>, heard: SystemTime) -> io::Result<u64> {
        let Some(file) = &mut self.file else {
            return Err(io::ErrorKind::StorageFull.into());
        };
        let mut bytes = Vec::new();
        let mut written = 0;
        for (kind, name, kept) in words {
            let payload = kept.map(|kept| put(kind, name, kept)).unwrap_or_else(|| removal(kind, name));
            record(&mut bytes, &payload);
            if bytes.len() > PART {
                file.write_all(&bytes)?;
                written += bytes.len() as u64;
                bytes.clear();
            }
        }
        record(&mut bytes, &mark(heard));
        file.write_all(&bytes)?;
        file.sync_data()?;
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
        let path = if self.is_behind { behind(&self.path) } else { self.path.clone() };
        if let Err(error) = fs::remove_file(path)
            && error.kind() != io::ErrorKind::NotFound
        {
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
        *self = Self {
            spare: self.spare,
            ..Self::begin(self.path.clone(), &said)?
        };
        Ok(())
    }
}

/// Where a file is that lacks something.
fn behind(path: &Path) -> PathBuf {
    beside(path, ".behind")
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
    read_up_to(bytes).map(|(said, _)| said)
}

/// The same, with how many of the bytes count.
fn read_up_to(bytes: &[u8]) -> Result<(Said<'_>, u64), u64> {
    let mut rest = match bytes.strip_prefix(MAGIC) {
        Some(rest) => rest,
        None if MAGIC.starts_with(bytes) => return Ok((Said::default(), 0)),
        None => return Err(0),
    };
    let mut end = MAGIC.len() as u64;
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
                end = (bytes.len() - after.len()) as u64;
            }
        }
        rest = after;
    }
    Ok((said, end))
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

fn removal(kind: Kind, name: &str) -> Vec<u8> {
    let mut payload = vec![b'R', kind as u8];
    text(&mut payload, name.as_bytes());
    payload
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
/// Names, versions and bodies of what there is no room for on the disk: more is not kept in memory for it, and nothing is
/// remembered any more.
const MOST_OWED: usize = 64 << 20;
const MAGIC: &[u8] = b"ambient state 1\n";
/// What may be out of date before the file is made anew, besides as much again as is not.
const SPARE: u64 = 1 << 20;

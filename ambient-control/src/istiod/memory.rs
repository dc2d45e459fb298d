//! What istiod said last, on disk: for a restart while it is away.
//!
//! One file, written only at its end, and made anew when most of it is out of date. What a response brought counts once the
//! mark behind it is written, so that half of an update is never taken for one. A file whose end is torn is read up to the
//! last mark; one that is damaged elsewhere is not read at all: what is missing could be what refuses. For the same reason a file
//! that lacks something because there was no room for it has another name (`istiod.state.behind`, which no start reads) until
//! there is.
//!
//! ```text
//! "ambient state 1\n" origin (record)*        records as [`crate::disk`] has them
//! origin:  'O' text                            whose state it is, and which part: another's is not read
//! payload: 'P' kind (u8) name version body     a resource; texts and bodies with their lengths (u32) before them
//!          'R' kind (u8) name                  a removal
//!          'M' seconds since 1970 (u64)        a mark: all before it holds, and is the whole state, which was so then
//!          'm'                                 a mark: all before it holds, and was never the whole state
//! ```
//!
//! The time of a mark is when all kinds were known last to be as they stand: what half of a first state has brought is kept, for
//! its versions, and is no state to go by.
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
use crate::{
    disk::{
        HEAD, MemoryError, PART, beside, fnv, head, head_of, io_error, mark, own_directory, read_mark, read_own, record, replace, take,
        text,
    },
    whole,
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
    /// When all of it was so last; `None` where it was never whole.
    pub(super) heard: Option<SystemTime>,
}

/// One thing to be remembered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Put(Kind, Arc<str>, Kept),
    Remove(Kind, Arc<str>),
}

impl Entry {
    /// What it takes while it waits to be written.
    pub(super) fn size(&self) -> usize {
        let (_, name, kept) = self.word();
        size(name, kept)
    }

    fn word(&self) -> Word<'_> {
        match self {
            Self::Put(kind, name, kept) => (*kind, name, Some(kept)),
            Self::Remove(kind, name) => (*kind, name, None),
        }
    }
}

/// The same, of one or of what is owed: a resource, or that it is there no more.
type Word<'a> = (Kind, &'a str, Option<&'a Kept>);

fn size(name: &str, kept: Option<&Kept>) -> usize {
    name.len() + kept.map_or(0, |kept| kept.version.len() + kept.body.len())
}

/// The file.
#[derive(Debug)]
pub(super) struct Memory {
    path: PathBuf,
    /// Whose state it is.
    origin: Arc<str>,
    /// When the whole of it was so last.
    heard: Option<SystemTime>,
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
    /// A disk that takes nothing for as long as this is so.
    #[cfg(test)]
    pub(super) stalls: Arc<std::sync::atomic::AtomicBool>,
}

/// What there was no room for: the last word for each resource.
#[derive(Debug, Default)]
struct Owed {
    entries: BTreeMap<(Kind, Arc<str>), Option<Kept>>,
    bytes: usize,
}

impl Owed {
    fn add(&mut self, entries: &[Entry]) {
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
    /// Opens the file in a directory, which is made (mode 0700) if it is not there, and reads it. It says whose state is kept, and
    /// which part: what is of another origin is no state to begin with.
    ///
    /// # Errors
    /// When the file system refuses, or others could have written there. A file that is damaged, or another's, is told in the
    /// second value; then the file is begun anew. That there is no room now is no error: what is noted is owed until there is.
    pub(super) fn open(directory: &Path, origin: &str) -> Result<(Self, Result<Remembered, MemoryError>), MemoryError> {
        let path = directory.join("istiod.state");
        match own_directory(directory) {
            Err(error) if error.is_want_of_room() => return Ok((Self::owing(path, origin), Ok(Remembered::default()))),
            other => other?,
        }
        // Of a process that ended before there was room.
        let _ = fs::remove_file(behind(&path));
        let bytes = read_own(&path)?.unwrap_or_default();
        let read = match read_up_to(&bytes) {
            Ok((said, _)) if !said.is_of(origin) => Err(MemoryError::Another {
                path: path.clone(),
                of: said.origin.unwrap_or("nobody that it names").into(),
                wanted: origin.into(),
            }),
            read => read.map_err(|at| MemoryError::Damaged { path: path.clone(), at }),
        };
        let nothing = Said::default();
        let memory = match Self::begin(path.clone(), origin, read.as_ref().map_or(&nothing, |(said, _)| said)) {
            Err(error) if error.is_want_of_room() => match &read {
                // What is added to another's would be his.
                Ok((said, end)) if *end > 0 && said.origin == Some(origin) => Self::go_on_with(path, origin, said, *end)?,
                _ => Self::owing(path, origin),
            },
            other => other?,
        };
        Ok((memory, read.map(|(said, _)| Remembered::from(said))))
    }

    /// There is no file, and no room for one.
    fn owing(path: PathBuf, origin: &str) -> Self {
        Self {
            owed: Some(Owed::default()),
            ..Self::of(path, origin, None, 0)
        }
    }

    fn of(path: PathBuf, origin: &str, file: Option<File>, length: u64) -> Self {
        Self {
            path,
            origin: origin.into(),
            heard: None,
            file,
            length,
            live: 0,
            records: HashMap::new(),
            tidy_from: 0,
            owed: None,
            is_behind: false,
            is_lost: false,
            spare: SPARE,
            #[cfg(test)]
            stalls: Arc::default(),
        }
    }

    /// Goes on with the file that is there, of which so much counts.
    fn go_on_with(path: PathBuf, origin: &str, said: &Said<'_>, end: u64) -> Result<Self, MemoryError> {
        let nofollow = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
        let opened = OpenOptions::new().read(true).write(true).custom_flags(nofollow).open(&path);
        let mut file = opened.map_err(io_error("open", &path))?;
        let cut = file.set_len(end).and_then(|()| file.seek(SeekFrom::Start(end)));
        cut.map_err(io_error("write", &path))?;
        let mut memory = Self::of(path, origin, Some(file), end);
        memory.account_all(said);
        Ok(memory)
    }

    /// Writes a file anew, whole or not at all.
    fn begin(path: PathBuf, origin: &str, said: &Said<'_>) -> Result<Self, MemoryError> {
        let mut file = replace(&path, |file| said.write(origin, file))?;
        let length = file.stream_position().map_err(io_error("write", &path))?;
        let mut memory = Self::of(path, origin, Some(file), length);
        memory.account_all(said);
        Ok(memory)
    }

    fn account_all(&mut self, said: &Said<'_>) {
        self.heard = said.heard;
        for ((kind, name), payload) in &said.resources {
            self.account(*kind, name, Some(HEAD + payload.len()));
        }
    }

    /// Remembers what has come, and when the whole state was known to be so: `None` where that is as it was before.
    ///
    /// # Errors
    /// When the file system refuses. Then nothing is remembered, so that a start finds nothing instead of what is out of date,
    /// until a later call has written what is owed; it may have no entries of its own.
    pub(super) fn note(&mut self, entries: &[Entry], heard: Option<SystemTime>) -> Result<(), MemoryError> {
        #[cfg(test)]
        while self.stalls.load(std::sync::atomic::Ordering::Relaxed) {
            std::thread::yield_now();
        }
        self.heard = heard.or(self.heard);
        if let Some(owed) = &mut self.owed {
            owed.add(entries);
            let too_much = owed.bytes > MOST_OWED;
            let settled = self.settle();
            self.is_lost |= too_much && settled.is_err();
            return settled;
        }
        match self.append(entries.iter().map(Entry::word)) {
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

    /// Which file it is.
    pub(super) fn place(&self) -> &Path {
        &self.path
    }

    /// Whether nothing will be remembered any more, whatever is noted.
    pub(super) fn is_lost(&self) -> bool {
        self.is_lost
    }

    /// Writes what is owed, and takes the name again that a start looks for.
    fn settle(&mut self) -> Result<(), MemoryError> {
        let owed = self.owed.take().unwrap_or_default();
        let settled = self.catch_up(&owed);
        if settled.is_err() {
            self.owed = Some(owed);
        }
        settled
    }

    fn catch_up(&mut self, owed: &Owed) -> Result<(), MemoryError> {
        if self.file.is_none() {
            own_directory(self.path.parent().unwrap_or_else(|| Path::new(".")))?;
            *self = Self {
                heard: self.heard,
                ..self.anew(&Said::default())?
            };
        }
        self.append(owed.words())?;
        if self.is_behind {
            whole::rename(&behind(&self.path), &self.path).map_err(io_error("rename to", &self.path))?;
            self.is_behind = false;
        }
        Ok(())
    }

    /// The same, with a new file.
    fn anew(&self, said: &Said<'_>) -> Result<Self, MemoryError> {
        Ok(Self {
            spare: self.spare,
            #[cfg(test)]
            stalls: self.stalls.clone(),
            ..Self::begin(self.path.clone(), &self.origin, said)?
        })
    }

    /// The file lacks something: a start is not to find it.
    fn step_aside(&mut self) {
        match whole::rename(&self.path, &behind(&self.path)) {
            Ok(()) => self.is_behind = true,
            Err(_) => self.is_lost = true,
        }
    }

    /// Writes at the end of the file, all or nothing.
    fn append<'a>(&mut self, words: impl Iterator<Item = Word<'a>> + Clone) -> Result<(), MemoryError> {
        let written = self.write(words.clone()).map_err(|error| {
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
    fn write<'a>(&mut self, words: impl Iterator<Item = Word<'a>>) -> io::Result<u64> {
        let mark = mark_of(self.heard);
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
        record(&mut bytes, &mark);
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
        *self = self.anew(&said)?;
        Ok(())
    }
}

/// What a start would find in a directory.
#[cfg(test)]
pub(super) fn found(directory: &Path) -> Remembered {
    let bytes = fs::read(directory.join("istiod.state")).unwrap_or_default();
    read(&bytes).map(Remembered::from).unwrap_or_default()
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
        let origin = said.origin.unwrap_or_default();
        said.write(origin, &mut bytes).expect("there is room");
        let said = Said {
            origin: Some(origin),
            ..said.clone()
        };
        assert_eq!(read(&bytes), Ok(said));
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Said<'a> {
    /// Whose state it is.
    origin: Option<&'a str>,
    /// The last payload of each resource that is there.
    resources: BTreeMap<(Kind, &'a str), &'a [u8]>,
    heard: Option<SystemTime>,
}

impl Said<'_> {
    /// Whether it may be taken for the state of an origin. What says nothing is everybody's.
    fn is_of(&self, origin: &str) -> bool {
        self.origin == Some(origin) || (self.resources.is_empty() && self.heard.is_none())
    }

    /// A file that says nothing else, of an origin.
    fn write(&self, origin: &str, to: &mut impl Write) -> io::Result<()> {
        let mut whose = vec![b'O'];
        text(&mut whose, origin.as_bytes());
        let mark = mark_of(self.heard);
        to.write_all(MAGIC)?;
        for payload in [&*whose].into_iter().chain(self.resources.values().copied()).chain([&*mark]) {
            to.write_all(&head_of(payload))?;
            to.write_all(payload)?;
        }
        Ok(())
    }
}

/// The mark behind what holds: whether it is the whole state, and when it was.
fn mark_of(heard: Option<SystemTime>) -> Vec<u8> {
    heard.map_or_else(|| vec![b'm'], mark)
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
    let (mut said, mut coming, mut origin) = (Said::default(), Vec::new(), None);
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
            // It says whose all the rest is.
            Parsed::Origin(of) if at == MAGIC.len() as u64 => origin = Some(of),
            Parsed::Origin(_) => return Err(at),
            Parsed::Mark(heard) => {
                said.origin = origin;
                for (of, payload) in coming.drain(..) {
                    match payload {
                        Some(payload) => drop(said.resources.insert(of, payload)),
                        None => drop(said.resources.remove(&of)),
                    }
                }
                said.heard = heard.or(said.heard);
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
    Origin(&'a str),
    /// `None` where the whole state is as old as before.
    Mark(Option<SystemTime>),
}

fn parse(payload: &[u8]) -> Option<Parsed<'_>> {
    let (what, mut rest) = payload.split_first()?;
    match *what {
        b'M' => return read_mark(payload).map(|heard| Parsed::Mark(Some(heard))),
        b'm' => return rest.is_empty().then_some(Parsed::Mark(None)),
        b'O' => {
            let origin = std::str::from_utf8(take(&mut rest)?).ok()?;
            return rest.is_empty().then_some(Parsed::Origin(origin));
        }
        _ => {}
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

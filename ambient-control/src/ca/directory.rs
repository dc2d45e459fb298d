//! The files of an authority's directory: written whole or not at all, and never trusted if others could have written them.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt},
    path::Path,
    thread,
    time::{Duration, SystemTime},
};

use rustix::fs::{FlockOperation, OFlags};
use zeroize::Zeroizing;

use super::OpenError;
use crate::{plain, whole};

/// Whether a path leads into a directory, or to it, as far as it is there.
pub(super) fn is_within(path: &Path, directory: &Path) -> bool {
    let whole = std::path::absolute(path).unwrap_or_else(|_| path.into());
    let there = whole.ancestors().find_map(|above| above.canonicalize().ok());
    there.is_some_and(|there| directory.canonicalize().is_ok_and(|directory| there.starts_with(directory)))
}

/// Makes a directory where there is none, and refuses one that others could write to.
pub(super) fn make(directory: &Path) -> Result<(), OpenError> {
    if stamp(directory).is_some() {
        return check(directory);
    }
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(directory).map_err(io_error("make the directory", directory))?;
    check(directory)
}

/// Refuses what is no directory of our own, or can be written to by others.
pub(super) fn check(directory: &Path) -> Result<(), OpenError> {
    let meta = fs::symlink_metadata(directory).map_err(io_error("look at", directory))?;
    let refuse = |why: String| {
        Err(OpenError::Unsafe {
            path: directory.into(),
            why,
        })
    };
    if !meta.is_dir() {
        return refuse("is no directory, or a link to one: name the directory itself".into());
    }
    check_owner(directory, &meta)?;
    if meta.mode() & 0o022 != 0 {
        return refuse(format!(
            "others can write here (mode {:04o}), and so could be the authority: chmod go-w, if nobody has",
            meta.mode() & 0o7777
        ));
    }
    Ok(())
}

fn check_owner(path: &Path, meta: &fs::Metadata) -> Result<(), OpenError> {
    let own = rustix::process::geteuid().as_raw();
    if meta.uid() == own {
        return Ok(());
    }
    let remedy = match meta.is_dir() {
        true => "call this as that user, or name a directory of your own",
        false => "chown it, if nobody has read or written it who should not",
    };
    Err(OpenError::Unsafe {
        path: path.into(),
        why: format!(
            "belongs to the user {}, who could be the authority, and not to {own}: {remedy}",
            meta.uid()
        ),
    })
}

/// The lock of a directory, waited for at most 10 s: who comes second finds what the first has made.
pub(crate) fn lock(directory: &Path) -> Result<File, OpenError> {
    // There is no clock to ask here: a hundred tries, a tenth of a second apart.
    for _ in 0..100 {
        if let Some(lock) = try_lock(directory)? {
            return Ok(lock);
        }
        thread::sleep(Duration::from_millis(100));
    }
    Err(OpenError::Locked {
        path: directory.join(LOCK),
    })
}

/// The same for whoever only reads; `None` where the directory cannot be written, and so changes under nobody's eyes.
pub(super) fn lock_to_read(directory: &Path) -> Result<Option<File>, OpenError> {
    match lock(directory) {
        Ok(lock) => Ok(Some(lock)),
        Err(OpenError::Io { source, .. }) if source.kind() == io::ErrorKind::ReadOnlyFilesystem => Ok(None),
        Err(error) => Err(error),
    }
}

/// The lock of a directory, if nobody else has it.
pub(super) fn try_lock(directory: &Path) -> Result<Option<File>, OpenError> {
    let path = directory.join(LOCK);
    let file = options()
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(io_error("open the lock", &path))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => Ok(None),
        Err(errno) => Err(io_error("lock", &path)(errno.into())),
    }
}

/// Writes a file whole or not at all.
pub(crate) fn write(path: &Path, mode: u32, content: &[u8]) -> Result<(), OpenError> {
    draft(path, mode, content).map(drop)
}

/// The same, and gives what it is told by from now on.
#[cfg(feature = "serve")]
pub(crate) fn replace(path: &Path, mode: u32, content: &[u8]) -> Result<Option<Stamp>, OpenError> {
    Ok(draft(path, mode, content)?.metadata().ok().map(|meta| Stamp::of(&meta)))
}

fn draft(path: &Path, mode: u32, content: &[u8]) -> Result<File, OpenError> {
    let written = whole::replace(path, &path.with_extension("new"), mode, |file| file.write_all(content));
    written.map_err(io_error("write", path))
}

/// Adds a line to a file that only grows. What was cut short there, as where the disk was full, spoils no line but its own.
pub(super) fn append(path: &Path, line: &str) -> Result<(), OpenError> {
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true).mode(0o600).custom_flags(no_follow());
    let write = |mut file: File| {
        let (length, mut last) = (file.metadata()?.len(), [b'\n']);
        if length > 0 {
            file.read_exact_at(&mut last, length - 1)?;
        }
        // One write: others may add theirs at the same time, and an empty line is none.
        let begin = if last == [b'\n'] { "" } else { "\n" };
        file.write_all(format!("{begin}{line}\n").as_bytes())
    };
    options.open(path).and_then(write).map_err(io_error("write", path))
}

/// The content of a file that nobody else may read or write.
pub(super) fn read_secret(path: &Path) -> Result<Zeroizing<Vec<u8>>, OpenError> {
    let meta = fs::symlink_metadata(path).map_err(io_error("look at the key", path))?;
    check_owner(path, &meta)?;
    if meta.mode() & 0o077 != 0 {
        return Err(OpenError::Unsafe {
            path: path.into(),
            why: format!(
                "others can read or write the key (mode {:04o}): chmod 600, if nobody has",
                meta.mode() & 0o7777
            ),
        });
    }
    read(path)
}

/// The content of a file, of which nobody but its owner may have written.
pub(crate) fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, OpenError> {
    let mut content = Zeroizing::new(Vec::new());
    let read = plain::read_no_link(path, MAX_FILE, &mut content).and_then(|meta| plain::is_its_owners(path, &meta));
    read.map_err(io_error("read", path))?;
    Ok(content)
}

/// The same; `None` if there is no such file.
pub(crate) fn read_if_there(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, OpenError> {
    absent(read(path))
}

/// The lines of a file, of which nobody but its owner may have written, however many there are, until one is enough; none if there is
/// no such file. One that is longer than any that is written comes in pieces.
pub(super) fn lines(path: &Path, mut is_enough: impl FnMut(&[u8]) -> bool) -> Result<(), OpenError> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(no_follow() | OFlags::NONBLOCK.bits().cast_signed());
    let mut read = || {
        let file = options.open(path)?;
        let meta = file.metadata()?;
        plain::is_plain(&meta)?;
        plain::is_its_owners(path, &meta)?;
        let (mut reader, mut line) = (BufReader::new(file), Vec::new());
        while (&mut reader).take(LONGEST_LINE).read_until(b'\n', &mut line)? > 0 {
            if is_enough(line.strip_suffix(b"\n").unwrap_or(&line)) {
                break;
            }
            line.clear();
        }
        Ok::<_, io::Error>(())
    };
    match read() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        read => read.map_err(io_error("read", path)),
    }
}

/// `None` for a file that is not there.
pub(super) fn absent<T>(read: Result<T, OpenError>) -> Result<Option<T>, OpenError> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(OpenError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The names in a directory; none if there is no such directory. What is no text has no place here, and is left out.
pub(super) fn names(directory: &Path) -> Result<Vec<String>, OpenError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(io_error("list", directory)(e)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(io_error("list", directory))?;
        names.extend(entry.file_name().into_string().ok());
    }
    names.sort();
    Ok(names)
}

/// Removes a file, unless it is gone already.
pub(super) fn remove(path: &Path) -> Result<(), OpenError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path)(e)),
        _ => Ok(()),
    }
}

/// By which it is told that a file or directory is another one, or has another content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    inode: u64,
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(meta: &fs::Metadata) -> Self {
        Self {
            inode: meta.ino(),
            length: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

/// `None` for what is not there, or cannot be looked at.
pub(crate) fn stamp(path: &Path) -> Option<Stamp> {
    Some(Stamp::of(&fs::symlink_metadata(path).ok()?))
}

/// Dates a file: until then it bears the date at which it was written.
pub(super) fn date(path: &Path, now: SystemTime) -> Result<(), OpenError> {
    let dated = options().open(path).and_then(|file| file.set_modified(now));
    dated.map_err(io_error("date", path))
}

/// When a file was written.
pub(super) fn written(path: &Path) -> Result<SystemTime, OpenError> {
    let meta = fs::symlink_metadata(path).map_err(io_error("look at", path))?;
    meta.modified().map_err(io_error("look at the date of", path))
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600).custom_flags(no_follow());
    options
}

/// A link could lead what is written, or trusted, to another place.
fn no_follow() -> i32 {
    OFlags::NOFOLLOW.bits().cast_signed()
}

pub(crate) fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.into();
    move |source| OpenError::Io { what, path, source }
}

pub(super) const LOCK: &str = ".lock";
/// Certificates and keys are a few hundred bytes; what is revoked of somebody who was given very many is more.
const MAX_FILE: u64 = 256 << 20;
const LONGEST_LINE: u64 = 64 << 10;

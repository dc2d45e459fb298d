//! A lab that stays up, and how later commands find it, step into it and end it.

mod down;
mod exec;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

pub use self::{
    down::{Down, down},
    exec::exec,
};
use crate::{Namespace, NamespaceId, View, World, sys};

/// The claim of this process to be its user's kept lab. Dropped, it is given up, and the directory is removed.
///
/// There is one for each user at most: `$XDG_RUNTIME_DIR/ambient-lab`, or `/tmp/ambient-UID` where that is not to be
/// had.
#[derive(Debug)]
pub struct Kept {
    directory: PathBuf,
    record: Record,
}

/// What later commands need to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    pid: u32,
    /// Tells it from a later process of the same number.
    started: u64,
    places: BTreeMap<String, Place>,
}

/// Where a program of a pod (or of a node) runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    namespace: PathBuf,
    id: NamespaceId,
    view: PathBuf,
}

impl Kept {
    /// Claims the directory of this user for the world of this process. What a lab that crashed left in it is removed.
    ///
    /// # Errors
    /// [`KeptError::Running`] when another kept lab of this user runs; else when the directory is not safe to use.
    pub fn claim(world: &World) -> Result<Self, KeptError> {
        let directory = directory(world.outer_uid());
        make(&directory)?;
        let lock = lock(&directory)?;
        if let Some(record) = read(&directory)?.filter(Record::is_alive) {
            return Err(KeptError::Running { pid: record.pid });
        }
        empty(&directory)?;
        let pid = std::process::id();
        let started = sys::start_time(pid).map_err(KeptError::io(Path::new("/proc")))?;
        let kept = Self {
            directory,
            record: Record {
                pid,
                started,
                places: BTreeMap::new(),
            },
        };
        kept.write()?;
        drop(lock);
        Ok(kept)
    }

    /// The directory, private to the user, that lives as long as this claim: for what the user should find, such as
    /// manifests to change and logs to read. Visible outside of the world too.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Says which pods and nodes a command can be run in, each with its namespace and what its programs see. Replaces
    /// what was said before.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn publish<'a>(&mut self, places: impl IntoIterator<Item = (&'a str, &'a Namespace, &'a View)>) -> Result<(), KeptError> {
        let place = |(name, namespace, view): (&str, &Namespace, &View)| {
            (
                name.to_owned(),
                Place {
                    namespace: namespace.path().into(),
                    id: namespace.id(),
                    view: view.path().into(),
                },
            )
        };
        self.record.places = places.into_iter().map(place).collect();
        self.write()
    }

    fn write(&self) -> Result<(), KeptError> {
        let (path, fresh) = (self.directory.join(RECORD), self.directory.join("record.new"));
        let text = serde_json::to_vec(&self.record).map_err(|e| KeptError::io(&path)(e.into()))?;
        let write = || {
            fs::OpenOptions::new()
                .create(true)
                .truncate(true)
                .write(true)
                .mode(0o600)
                .open(&fresh)?
                .write_all(&text)?;
            fs::rename(&fresh, &path)
        };
        write().map_err(KeptError::io(&path))
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // The record may be another's by now: only after this process was taken for dead, but then surely.
        if read(&self.directory).is_ok_and(|record| record.is_some_and(|r| r.is_of(&self.record))) {
            let _ = fs::remove_dir_all(&self.directory);
        }
    }
}

impl Record {
    fn is_alive(&self) -> bool {
        sys::start_time(self.pid).is_ok_and(|started| started == self.started)
    }

    fn is_of(&self, other: &Self) -> bool {
        (self.pid, self.started) == (other.pid, other.started)
    }
}

/// A kept lab that cannot be claimed, found or entered.
#[derive(Debug, thiserror::Error)]
pub enum KeptError {
    /// Another one is up.
    #[error("a kept lab of yours is running (process {pid}): use it, or end it with `lab down`")]
    Running {
        /// The lab's process.
        pid: u32,
    },
    /// None is up.
    #[error("no kept lab of yours is running: start one with `lab --keep`")]
    NotRunning,
    /// No such pod or node.
    #[error("the lab has no pod or node {name:?}; it has {known}")]
    NoPlace {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// Somebody else could write there, or it is not a directory.
    #[error("{directory} is not safe to use: {why}; remove it", directory = directory.display())]
    Unsafe {
        /// The directory.
        directory: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The record of the lab cannot be read.
    #[error("the record {path} is damaged ({source}): remove it after `lab down`", path = path.display())]
    Damaged {
        /// The record.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// A step into the lab failed.
    #[error("{doing} failed: {source}")]
    Enter {
        /// What was tried.
        doing: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The program could not be started.
    #[error("running {program:?} failed: {source}")]
    Program {
        /// The program.
        program: OsString,
        /// Why it failed.
        source: io::Error,
    },
    /// A file could not be read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl KeptError {
    /// The exit code by which shells and container runtimes tell such errors from the program's own: 127 where there
    /// is no such program, 126 where it cannot be run, else 125.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Program { source, .. } if source.kind() == io::ErrorKind::NotFound => 127,
            Self::Program { .. } => 126,
            _ => 125,
        }
    }

    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { path: path.into(), source }
    }

    fn enter(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Enter { doing, source }
    }
}

/// Where the kept lab of a user is found. Seen from outside and inside of a world it is the same.
fn directory(uid: u32) -> PathBuf {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    // Someone else's (as after `sudo -E`) is not ours to write to.
    let usable = |dir: &PathBuf| dir.is_absolute() && flaw(dir).is_ok_and(|flaw| flaw.is_none());
    runtime
        .filter(usable)
        .map_or_else(|| PathBuf::from(format!("/tmp/ambient-{uid}")), |dir| dir.join("ambient-lab"))
}

/// Makes the directory, or checks the one that is there.
fn make(directory: &Path) -> Result<(), KeptError> {
    match fs::DirBuilder::new().mode(0o700).create(directory) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => check(directory),
        made => made.map_err(KeptError::io(directory)),
    }
}

fn check(directory: &Path) -> Result<(), KeptError> {
    match flaw(directory).map_err(KeptError::io(directory))? {
        Some(why) => Err(KeptError::Unsafe {
            directory: directory.into(),
            why,
        }),
        None => Ok(()),
    }
}

fn flaw(directory: &Path) -> io::Result<Option<&'static str>> {
    let found = fs::symlink_metadata(directory)?;
    Ok(if !found.is_dir() {
        Some("it is not a directory")
    } else if found.uid() != rustix::process::geteuid().as_raw() {
        Some("it belongs to somebody else")
    } else if found.mode() & 0o077 != 0 {
        Some("others have rights to it")
    } else {
        None
    })
}

/// One at a time looks at the record and replaces it.
fn lock(directory: &Path) -> Result<fs::File, KeptError> {
    let path = directory.join(LOCK);
    let open = || {
        let file = fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)?;
        // Held only for moments.
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)?;
        Ok(file)
    };
    open().map_err(KeptError::io(&path))
}

fn read(directory: &Path) -> Result<Option<Record>, KeptError> {
    let path = directory.join(RECORD);
    match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .map_err(|source| KeptError::Damaged { path, source }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(KeptError::io(&path)(e)),
    }
}

/// Removes everything but the lock.
fn empty(directory: &Path) -> Result<(), KeptError> {
    let remove = || {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            if entry.file_name() == LOCK {
                continue;
            } else if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    };
    remove().map_err(KeptError::io(directory))
}

const RECORD: &str = "record.json";
const LOCK: &str = "lock";

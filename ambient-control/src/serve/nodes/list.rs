//! A list in a file, read again when the file is another.

use std::{
    fs,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Serialize, de::DeserializeOwned};

use super::NodesError;
use crate::ca::directory::{self, Stamp};

/// A list of JSON values, written whole or not at all.
#[derive(Debug)]
pub(super) struct List<T> {
    file: PathBuf,
    read: Mutex<Option<Read<T>>>,
}

/// What was read last, and of which file.
type Read<T> = (Stamp, Arc<[T]>);

impl<T: Clone + Serialize + DeserializeOwned> List<T> {
    pub(super) fn new(file: PathBuf) -> Self {
        Self {
            file,
            read: Mutex::default(),
        }
    }

    /// What is in it now; nothing of a file that never was there.
    pub(super) fn all(&self) -> Result<Arc<[T]>, NodesError> {
        let mut read = self.read();
        let stamp = self.stamp();
        if let Some((_, all)) = read.as_ref().filter(|(of, _)| Some(*of) == stamp) {
            return Ok(all.clone());
        }
        let all: Arc<[T]> = self.content(read.is_some())?.into();
        if let Some(stamp) = stamp {
            *read = Some((stamp, all.clone()));
        }
        Ok(all)
    }

    /// By which it is told that it is another.
    pub(super) fn stamp(&self) -> Option<Stamp> {
        directory::stamp(&self.file)
    }

    /// What the file holds, as whoever changes it must know it: under the lock of its directory.
    pub(super) fn load(&self) -> Result<Vec<T>, NodesError> {
        let was_there = self.read().is_some();
        self.content(was_there)
    }

    /// A file that goes says nothing of whom it named, nor does a directory that is not there, as where a mount is lost: taken for an
    /// empty list, either would end all that is open, and the next change would make that so for good.
    fn content(&self, was_there: bool) -> Result<Vec<T>, NodesError> {
        let Some(text) = directory::read_if_there(&self.file)? else {
            let path = self.file.clone();
            if was_there {
                return Err(NodesError::Gone { path });
            }
            let parent = path.parent().unwrap_or(&path);
            fs::metadata(parent).map_err(directory::io_error("look at", parent))?;
            return Ok(Vec::new());
        };
        serde_json::from_slice(&text).map_err(|e| NodesError::Unusable {
            path: self.file.clone(),
            why: e.to_string(),
        })
    }

    fn read(&self) -> MutexGuard<'_, Option<Read<T>>> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes it anew, under the lock of its directory.
    pub(super) fn store(&self, all: &[T]) -> Result<(), NodesError> {
        let text = serde_json::to_vec_pretty(all).map_err(|e| directory::io_error("write", &self.file)(e.into()))?;
        let stamp = directory::replace(&self.file, 0o600, &text)?;
        // Whoever looks next finds it read.
        if let Some(stamp) = stamp {
            *self.read() = Some((stamp, all.into()));
        }
        Ok(())
    }
}

//! A list in a file, read again when the file is another.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use serde::{Serialize, de::DeserializeOwned};

use super::NodesError;
use crate::ca::directory::{self, Stamp};

/// A list of JSON values, written whole or not at all.
#[derive(Debug)]
pub(super) struct List<T> {
    file: PathBuf,
    read: Mutex<Option<(Stamp, Arc<[T]>)>>,
}

impl<T: Clone + Serialize + DeserializeOwned> List<T> {
    pub(super) fn new(file: PathBuf) -> Self {
        Self {
            file,
            read: Mutex::default(),
        }
    }

    /// What is in it now; nothing of a file that is not there.
    pub(super) fn all(&self) -> Result<Arc<[T]>, NodesError> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(stamp) = self.stamp() else {
            return Ok(self.load()?.into());
        };
        if let Some((_, all)) = read.as_ref().filter(|(of, _)| *of == stamp) {
            return Ok(all.clone());
        }
        let all: Arc<[T]> = self.load()?.into();
        *read = Some((stamp, all.clone()));
        Ok(all)
    }

    /// By which it is told that it is another.
    pub(super) fn stamp(&self) -> Option<Stamp> {
        directory::stamp(&self.file)
    }

    /// What the file holds, as whoever changes it must know it: under the lock of its directory.
    pub(super) fn load(&self) -> Result<Vec<T>, NodesError> {
        let Some(text) = directory::read_if_there(&self.file)? else {
            return Ok(Vec::new());
        };
        serde_json::from_slice(&text).map_err(|e| NodesError::Unusable {
            path: self.file.clone(),
            why: e.to_string(),
        })
    }

    /// Writes it anew, under the lock of its directory.
    pub(super) fn store(&self, all: &[T]) -> Result<(), NodesError> {
        let text = serde_json::to_vec_pretty(all).map_err(|e| directory::io_error("write", &self.file)(e.into()))?;
        Ok(directory::write(&self.file, 0o600, &text)?)
    }
}

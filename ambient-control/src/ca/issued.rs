//! What an authority has issued: one file for each issuer, one line for each certificate, until the issuer has ended.

use std::{
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};

use super::{OpenError, directory, seconds};

/// A certificate that was issued.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issued {
    /// Its serial number, in hexadecimal digits.
    pub serial: String,
    /// Whom it names: a SPIFFE ID, or host names with commas between.
    pub name: String,
    /// Its last moment, in seconds since 1970.
    pub expires: u64,
    /// The node that it was signed for, where one has asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

/// Takes note of one.
pub(super) fn add(directory: &Path, issuer: &str, issued: &Issued) -> Result<(), OpenError> {
    let place = directory.join(ISSUED);
    directory::make(&place)?;
    let line = serde_json::to_string(issued).map_err(|e| OpenError::Crypto { why: e.to_string() })?;
    directory::append(&file(directory, issuer), &line)
}

/// Those of an issuer that have not ended. A line that was cut short tells nothing.
pub(super) fn of(directory: &Path, issuer: &str, now: SystemTime) -> Result<Vec<Issued>, OpenError> {
    let mut all = Vec::new();
    // Of a large mesh there are many in a day.
    directory::lines(&file(directory, issuer), |line| {
        all.extend(good(line, now));
        false
    })?;
    Ok(all)
}

fn good(line: &[u8], now: SystemTime) -> Option<Issued> {
    let issued = serde_json::from_slice::<Issued>(line).ok()?;
    (issued.expires > seconds(now)).then_some(issued)
}

/// Those who have issued something.
pub(super) fn issuers(directory: &Path) -> Result<Vec<String>, OpenError> {
    let names = directory::names(&directory.join(ISSUED))?;
    Ok(names
        .iter()
        .filter_map(|name| name.strip_suffix(".jsonl"))
        .map(Into::into)
        .collect())
}

/// Forgets what has ended.
pub(super) fn tidy(directory: &Path, now: SystemTime) -> Result<(), OpenError> {
    for issuer in issuers(directory)? {
        let path = file(directory, &issuer);
        let mut left = false;
        directory::lines(&path, |line| {
            left = good(line, now).is_some();
            left
        })?;
        if !left {
            directory::remove(&path)?;
        }
    }
    Ok(())
}

fn file(directory: &Path, issuer: &str) -> PathBuf {
    directory.join(ISSUED).join(format!("{issuer}.jsonl"))
}

pub(super) const ISSUED: &str = "issued";

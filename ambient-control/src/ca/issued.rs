//! What an authority has issued: one file for each issuer, one line for each certificate, until the issuer has ended.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};

use super::{OpenError, directory, intermediates, seconds};

/// A certificate that was issued.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Issued {
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

/// What cannot be read of what was issued: which certificates it tells of is not known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unreadable {
    /// The file.
    pub path: PathBuf,
    /// How many of its lines; none where it is empty, as no such file is left to be.
    pub lines: usize,
    /// The first of them, counted from 1.
    pub first: usize,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match self.lines {
            0 => write!(f, "{path} is empty"),
            1 => write!(f, "line {} of {path} cannot be read", self.first),
            lines => write!(f, "{lines} lines of {path} cannot be read, the first of them line {}", self.first),
        }
    }
}

/// Takes note of one.
pub(super) fn add(directory: &Path, issuer: &str, issued: &Issued) -> Result<(), OpenError> {
    let place = directory.join(ISSUED);
    directory::make(&place)?;
    let line = serde_json::to_string(issued).map_err(|e| OpenError::Crypto { why: e.to_string() })?;
    directory::append(&file(directory, issuer), &line)
}

/// Those of an issuer that have not ended. Of lines that cannot be read [`unreadable`] tells.
pub(super) fn of(directory: &Path, issuer: &str, now: SystemTime) -> Result<Vec<Issued>, OpenError> {
    let mut all = Vec::new();
    // Of a large mesh there are many in a day.
    directory::lines(&file(directory, issuer), |line| {
        all.extend(good(line, now));
        false
    })?;
    Ok(all)
}

/// What cannot be read of all that was issued, by file.
pub(super) fn unreadable(directory: &Path) -> Result<Vec<Unreadable>, OpenError> {
    let mut all = Vec::new();
    for issuer in issuers(directory)? {
        let path = file(directory, &issuer);
        let (mut line, mut lines, mut first) = (0, 0, 0);
        directory::lines(&path, |text| {
            line += 1;
            if is_spoilt(text) {
                lines += 1;
                first = if lines == 1 { line } else { first };
            }
            false
        })?;
        if lines > 0 || line == 0 {
            all.push(Unreadable { path, lines, first });
        }
    }
    Ok(all)
}

/// Whether a line tells of something that cannot be read. An empty one tells of nothing.
fn is_spoilt(line: &[u8]) -> bool {
    !line.is_empty() && serde_json::from_slice::<Issued>(line).is_err()
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

/// Forgets what has ended: what cannot be read with all else of its file, a day after that was written last.
pub(super) fn tidy(directory: &Path, now: SystemTime) -> Result<(), OpenError> {
    for issuer in issuers(directory)? {
        let path = file(directory, &issuer);
        let (mut left, mut unreadable) = (false, false);
        directory::lines(&path, |line| {
            left = good(line, now).is_some();
            unreadable |= is_spoilt(line);
            left
        })?;
        let ended = || Ok::<_, OpenError>(directory::written(&path)? + intermediates::LIFE <= now);
        if !left && (!unreadable || ended()?) {
            directory::remove(&path)?;
        }
    }
    Ok(())
}

fn file(directory: &Path, issuer: &str) -> PathBuf {
    directory.join(ISSUED).join(format!("{issuer}.jsonl"))
}

pub(super) const ISSUED: &str = "issued";

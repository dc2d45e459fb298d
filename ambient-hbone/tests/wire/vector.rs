//! The files in `tests/vectors`: what both ends of a tunnel say, in order, as bytes that people can read.
//!
//! `#` begins a comment. A line that begins with `>` (the client speaks) or `<` (the server does) begins a frame, and is
//! its title; the indented lines below are its bytes in hexadecimal. The preface counts as a frame.

use std::{fs, path::PathBuf};

use super::{Frame, PREFACE};

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speaker {
    Client,
    Server,
}

/// One thing that is said.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) speaker: Speaker,
    pub(crate) title: String,
    pub(crate) bytes: Vec<u8>,
}

impl Step {
    /// The frame; none for the preface.
    pub(crate) fn frame(&self) -> Option<Frame> {
        if self.bytes == PREFACE {
            return None;
        }
        let (frame, length) = Frame::read(&self.bytes).unwrap_or_else(|| panic!("{}: not a whole frame", self.title));
        assert_eq!(length, self.bytes.len(), "{}: more than a frame", self.title);
        Some(frame)
    }
}

/// Reads a file.
pub(crate) fn read(name: &str) -> Vec<Step> {
    let path = directory().join(format!("{name}.frames"));
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    parse(&text)
}

/// The names of all files.
pub(crate) fn names() -> Vec<String> {
    let entries = fs::read_dir(directory()).expect("tests/vectors is there");
    let names = entries.map(|entry| {
        entry
            .expect("a readable directory")
            .file_name()
            .into_string()
            .expect("a name in ASCII")
    });
    let mut names: Vec<_> = names.filter_map(|name| name.strip_suffix(".frames").map(str::to_owned)).collect();
    names.sort_unstable();
    names
}

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/vectors")
}

fn parse(text: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for line in text.lines() {
        let speaker = match line.chars().next() {
            Some('>') => Speaker::Client,
            Some('<') => Speaker::Server,
            _ => {
                let code = line.split('#').next().unwrap_or_default();
                let bytes = code
                    .split_whitespace()
                    .map(|byte| u8::from_str_radix(byte, 16).expect("bytes in hexadecimal"));
                let mut bytes = bytes.peekable();
                if bytes.peek().is_some() {
                    steps.last_mut().expect("a title before bytes").bytes.extend(bytes);
                }
                continue;
            }
        };
        steps.push(Step {
            speaker,
            title: line[1..].trim().to_owned(),
            bytes: Vec::new(),
        });
    }
    steps
}

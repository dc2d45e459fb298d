//! Files that whoever calls a command gives it.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use ambient_control::plain;

/// The content of a plain file, at most so many bytes of it; or what comes of that which the caller has open already, as `<(…)` of a
/// shell has.
pub(crate) fn content(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    if OPENED.iter().any(|opened| path.starts_with(opened)) {
        return to_end(File::open(path)?, most);
    }
    plain::read(path, most).map(|(content, _)| content)
}

/// Where a system shows what a process has open.
const OPENED: [&str; 3] = ["/dev/fd", "/dev/stdin", "/proc/self/fd"];

/// What comes until its end, at most so many bytes.
pub(crate) fn to_end(from: impl Read, most: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    from.take(most + 1).read_to_end(&mut content)?;
    match content.len() as u64 <= most {
        true => Ok(content),
        false => Err(plain::too_long(most)),
    }
}

/// The same as text, of what has a few lines: settings, or nameservers.
pub(crate) fn text(path: &Path) -> io::Result<String> {
    String::from_utf8(content(path, FEW_LINES)?).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.utf8_error()))
}

const FEW_LINES: u64 = 1 << 20;

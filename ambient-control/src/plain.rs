//! The files that operators name, read whole: plain ones alone, never more of one than can be meant, and never for ever.
//!
//! A pipe that nobody writes to has no end to wait for, a device may have no end at all, and opening one may do something. Each
//! is refused before it is opened, and a file that is too long before it is read; what is read of one that decides who is trusted, and
//! that others than its owner may write to, is not taken.

use std::{
    fmt,
    fs::{self, File, FileType, Metadata, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
};

use rustix::fs::{OFlags, StatVfsMountFlags, statvfs};

/// The content of a plain file, at most so many bytes of it, and what the file looked like when all of it had been read.
///
/// # Errors
/// When it is no plain file, or is longer, with [`io::ErrorKind::InvalidInput`] and [`io::ErrorKind::FileTooLarge`]: these say
/// what it is, and what is wanted, but not where. When the file system refuses.
pub fn read(path: &Path, most: u64) -> io::Result<(Vec<u8>, Metadata)> {
    let mut content = Vec::new();
    let meta = read_into(path, most, &mut content)?;
    Ok((content, meta))
}

/// The same, behind what is in a vector already: there is room for all of it before any is read, so that a secret leaves no
/// copy where a smaller vector was.
///
/// # Errors
/// As [`read`].
pub fn read_into(path: &Path, most: u64, content: &mut Vec<u8>) -> io::Result<Metadata> {
    read_as(path, OFlags::empty(), most, content)
}

/// The same of what must be no link either.
#[cfg(feature = "ca")]
pub(crate) fn read_no_link(path: &Path, most: u64, content: &mut Vec<u8>) -> io::Result<Metadata> {
    read_as(path, OFlags::NOFOLLOW, most, content)
}

fn read_as(path: &Path, flags: OFlags, most: u64, content: &mut Vec<u8>) -> io::Result<Metadata> {
    // What it is may be another thing by the time that it is opened: it is looked at again then, and never waited for.
    if !flags.contains(OFlags::NOFOLLOW) {
        check(&fs::metadata(path)?, most)?;
    }
    let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY;
    let mut file: File = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    let meta = file.metadata()?;
    check(&meta, most)?;
    // What the kernel makes up as it is read says that it is empty.
    content.reserve(usize::try_from(meta.len()).unwrap_or(0) + 1);
    let length = (&mut file).take(most + 1).read_to_end(content)?;
    match u64::try_from(length).is_ok_and(|length| length <= most) {
        true => file.metadata(),
        false => Err(too_long(most)),
    }
}

/// Whether something is a plain file.
///
/// # Errors
/// When it is not: what it is instead, as [`io::ErrorKind::InvalidInput`].
pub fn is_plain(of: &Metadata) -> io::Result<()> {
    match of.is_file() {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, NotPlain(of.file_type()))),
    }
}

/// Whether nobody but its owner may write to what is at a path, a file or a directory. What is mounted read-only nobody may, as a
/// ConfigMap is, whatever its mode says.
///
/// # Errors
/// When others may: that, and what to do, as [`io::ErrorKind::PermissionDenied`].
pub fn is_its_owners(path: &Path, meta: &Metadata) -> io::Result<()> {
    let mode = meta.permissions().mode() & 0o7777;
    let is_read_only = || statvfs(path).is_ok_and(|of| of.f_flag.contains(StatVfsMountFlags::RDONLY));
    if mode & 0o022 == 0 || is_read_only() {
        return Ok(());
    }
    let why = format!("others than its owner may write to it (mode {mode:04o}), and it decides who is trusted: chmod go-w it");
    Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
}

fn check(meta: &Metadata, most: u64) -> io::Result<()> {
    is_plain(meta)?;
    if meta.len() > most { Err(too_long(most)) } else { Ok(()) }
}

/// Says that there is more than so many bytes, as [`read`] says it.
pub fn too_long(most: u64) -> io::Error {
    let most = match most {
        most if most.is_multiple_of(1 << 20) => format!("{} MiB", most >> 20),
        most if most.is_multiple_of(1 << 10) => format!("{} KiB", most >> 10),
        most => format!("{most} bytes"),
    };
    io::Error::new(io::ErrorKind::FileTooLarge, format!("it is longer than the {most} that are read"))
}

#[derive(Debug)]
struct NotPlain(FileType);

impl std::error::Error for NotPlain {}

impl fmt::Display for NotPlain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = &self.0;
        let word = if of.is_dir() {
            "a directory"
        } else if of.is_fifo() {
            "a pipe"
        } else if of.is_socket() {
            "a socket"
        } else if of.is_char_device() || of.is_block_device() {
            "a device"
        } else {
            "a link, or something else"
        };
        write!(f, "it is {word}, and no plain file")
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::net::UnixListener, time::Duration};

    use rustix::fs::{CWD, FileType as Sort, Mode, mknodat};

    use super::*;

    /// Whatever it is: an answer comes at once.
    fn refused(path: &Path) -> String {
        let path = path.to_owned();
        let (sender, answer) = std::sync::mpsc::channel();
        std::thread::spawn(move || sender.send(read(&path, 1024).map(|(content, _)| content.len())));
        let answer = answer.recv_timeout(Duration::from_secs(10)).expect("it does not wait");
        answer.expect_err("it is refused").to_string()
    }

    #[test]
    fn what_is_no_plain_file_or_too_long_is_refused_and_never_waited_for() {
        let scratch = tempfile::tempdir().unwrap();
        let at = |name: &str| scratch.path().join(name);
        mknodat(CWD, at("pipe"), Sort::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        assert_eq!(refused(&at("pipe")), "it is a pipe, and no plain file");
        std::os::unix::fs::symlink(at("pipe"), at("link")).unwrap();
        assert!(refused(&at("link")).contains("a pipe"));
        let _listening = UnixListener::bind(at("socket")).unwrap();
        assert!(refused(&at("socket")).contains("a socket"));
        assert!(refused(scratch.path()).contains("a directory"));
        assert!(refused(Path::new("/dev/zero")).contains("a device"));
        let long = File::create(at("long")).unwrap();
        // Nothing of it is on the disk.
        long.set_len(1 << 30).unwrap();
        assert_eq!(refused(&at("long")), "it is longer than the 1 KiB that are read");
        assert_eq!(read(&at("none"), 1).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn what_others_may_write_to_is_not_its_owners() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("file");
        fs::write(&path, "").unwrap();
        let told = |mode| {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            is_its_owners(&path, &fs::metadata(&path).unwrap()).map_err(|error| (error.kind(), error.to_string()))
        };
        for mode in [0o600, 0o644, 0o755, 0o444] {
            assert_eq!(told(mode), Ok(()), "{mode:o}");
        }
        for mode in [0o620, 0o602, 0o664, 0o666, 0o777] {
            let (kind, why) = told(mode).unwrap_err();
            assert_eq!(kind, io::ErrorKind::PermissionDenied);
            assert!(why.contains(&format!("mode {mode:04o}")) && why.contains("chmod go-w"), "{why}");
        }
    }

    #[test]
    fn a_plain_file_is_read_to_its_last_byte() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("file");
        for length in [0, 1, 1024] {
            fs::write(&path, vec![7; length]).unwrap();
            let (content, meta) = read(&path, 1024).unwrap();
            assert_eq!((content.len(), meta.len()), (length, length as u64));
        }
        // The kernel says of these that they are empty.
        assert!(!read(Path::new("/proc/self/status"), 1 << 20).unwrap().0.is_empty());
        assert_eq!(
            read(Path::new("/proc/self/status"), 10).unwrap_err().kind(),
            io::ErrorKind::FileTooLarge
        );
        let mut content = b"before ".to_vec();
        fs::write(&path, "behind").unwrap();
        read_into(&path, 6, &mut content).unwrap();
        assert_eq!(content, b"before behind");
    }
}

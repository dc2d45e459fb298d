//! Files that are written whole or not at all.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// Puts a file in the place of whatever has its name, by a draft in the same directory: who reads it sees what was there before or
/// all that is written, also where the process is killed, the machine loses its power, or there is no more room. It is on the disk
/// when this ends. Gives it, open at its end.
///
/// An error says that nothing was written. Where only the directory could not be written to the disk afterwards, the file is there for
/// whoever reads it, and that a loss of power may bring back the one before is told in the log.
///
/// The draft is made anew with this mode, less the process's mask; one that was left behind is removed, and where it is a link what it
/// leads to is not touched. Two that have the same draft at the same time undo each other.
pub(crate) fn replace(path: &Path, draft: &Path, mode: u32, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<File> {
    match fs::remove_file(draft) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            let text = format!("{}, which stands in the way, cannot be removed: {e}", draft.display());
            return Err(io::Error::new(e.kind(), text));
        }
        _ => {}
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(mode);
    let written = options.open(draft).and_then(|mut file| {
        write(&mut file)?;
        file.sync_all()?;
        // While there is a way back: later there may be no descriptor for it.
        let directory = directory_of(path)?;
        fs::rename(draft, path)?;
        Ok((file, directory))
    });
    let (file, directory) = written.inspect_err(|_| {
        // Half of a file is of no use to anybody, least of all half of a key.
        let _ = fs::remove_file(draft);
    })?;
    settle(&directory, path);
    Ok(file)
}

/// Gives a file another name, in the same directory. That needs no descriptor; to have it on the disk does, and that it is not is told.
#[cfg(feature = "istiod")]
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    match directory_of(to) {
        Ok(directory) => settle(&directory, to),
        Err(error) => unsettled(to, &error),
    }
    Ok(())
}

fn directory_of(path: &Path) -> io::Result<File> {
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
    File::open(directory.unwrap_or_else(|| Path::new(".")))
}

/// Writes a directory to the disk after a name of it has changed: else the name may be lost although the content is not.
fn settle(directory: &File, path: &Path) {
    if let Err(error) = directory.sync_all() {
        unsettled(path, &error);
    }
}

fn unsettled(path: &Path, error: &io::Error) {
    let path = path.display();
    tracing::error!(%path, %error, "it is written, and may be what it was before once the machine has lost its power");
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Seek, Write},
        os::unix::fs::{MetadataExt, symlink},
    };

    use super::*;

    #[test]
    fn what_cannot_be_written_whole_changes_nothing() {
        let scratch = tempfile::tempdir().unwrap();
        let (file, draft) = (scratch.path().join("a"), scratch.path().join("a.new"));
        replace(&file, &draft, 0o600, |file| file.write_all(b"before")).unwrap();
        let no_room = |file: &mut File| {
            file.write_all(b"af")?;
            Err(io::ErrorKind::StorageFull.into())
        };
        let error = replace(&file, &draft, 0o600, no_room).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(fs::read(&file).unwrap(), b"before");
        assert!(!draft.exists(), "no half of it is left");
        // Its place is taken by what is no file.
        let taken = scratch.path().join("taken");
        fs::create_dir(&taken).unwrap();
        replace(&taken, &draft, 0o600, |file| file.write_all(b"after")).unwrap_err();
        assert!(taken.is_dir() && !draft.exists());
    }

    /// In a process of its own, which has no descriptor for the directory.
    #[test]
    fn what_is_told_as_not_written_was_not() {
        const ALONE: &str = "AMBIENT_TEST_WITHOUT_DESCRIPTORS";
        if std::env::var_os(ALONE).is_none() {
            let name = "whole::tests::what_is_told_as_not_written_was_not";
            let mut itself = std::process::Command::new(std::env::current_exe().unwrap());
            let run = itself.args([name, "--exact", "--test-threads=1"]).env(ALONE, "1").output().unwrap();
            let told = String::from_utf8_lossy(&run.stdout).into_owned();
            assert!(run.status.success() && told.contains("1 passed"), "{told}");
            return;
        }
        let scratch = tempfile::tempdir().unwrap();
        let (file, draft) = (scratch.path().join("a"), scratch.path().join("a.new"));
        replace(&file, &draft, 0o600, |file| file.write_all(b"before")).unwrap();
        // One is left, for the draft.
        let next = std::os::fd::AsRawFd::as_raw_fd(&File::open("/dev/null").unwrap());
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        let few = rustix::process::Rlimit {
            current: Some(u64::try_from(next).unwrap() + 1),
            ..limit
        };
        rustix::process::setrlimit(rustix::process::Resource::Nofile, few).unwrap();
        let written = replace(&file, &draft, 0o600, |file| file.write_all(b"after"));
        rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
        assert_eq!(written.unwrap_err().raw_os_error(), Some(rustix::io::Errno::MFILE.raw_os_error()));
        assert_eq!(fs::read(&file).unwrap(), b"before");
        assert!(!draft.exists());
    }

    #[test]
    fn what_was_left_behind_is_no_hindrance_and_leads_nowhere() {
        let scratch = tempfile::tempdir().unwrap();
        let (file, draft, other) = (scratch.path().join("a"), scratch.path().join("a.new"), scratch.path().join("other"));
        fs::write(&other, "another's").unwrap();
        symlink(&other, &draft).unwrap();
        let mut written = replace(&file, &draft, 0o640, |file| file.write_all(b"all of it")).unwrap();
        assert_eq!(fs::read(&other).unwrap(), b"another's");
        assert_eq!(fs::read(&file).unwrap(), b"all of it");
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o137, 0, "no more than was asked for");
        // It goes on where it ends.
        assert_eq!(written.stream_position().unwrap(), 9);
        written.write_all(b", and more").unwrap();
        written.rewind().unwrap();
        let mut text = String::new();
        written.read_to_string(&mut text).unwrap();
        assert_eq!(text, "all of it, and more");
        fs::create_dir(&draft).unwrap();
        let error = replace(&file, &draft, 0o600, |file| file.write_all(b"never")).unwrap_err();
        assert!(error.to_string().contains("a.new, which stands in the way"), "{error}");
        assert_eq!(fs::read(&file).unwrap(), b"all of it, and more");
    }
}

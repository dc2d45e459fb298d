//! An `/etc` in which the files that a program's view replaces exist.

use std::{fs, io, path::Path};

use crate::{sys, view};

/// Makes sure that every file a [`view`] covers can be mounted on: a machine may lack one, or have a dangling
/// link there. Where one is missing, `/etc` is covered by a copy of itself made of mounts, with that file added.
pub(super) fn complete(home: &Path) -> io::Result<()> {
    let missing: Vec<&str> = view::COVERED
        .iter()
        .copied()
        .filter(|name| !Path::new("/etc").join(name).is_file())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let copy = home.join("etc");
    fs::create_dir(&copy)?;
    for entry in fs::read_dir("/etc")? {
        let entry = entry?;
        let (from, to) = (entry.path(), copy.join(entry.file_name()));
        let kind = entry.file_type()?;
        if missing.iter().any(|name| entry.file_name() == *name) {
            continue;
        } else if kind.is_symlink() {
            // The text of the link, so that a relative one means what it meant.
            std::os::unix::fs::symlink(fs::read_link(&from)?, &to)?;
            continue;
        } else if kind.is_dir() {
            fs::create_dir(&to)?;
        } else {
            fs::File::create(&to)?;
        }
        sys::bind(&sys::c_path(&from)?, &sys::c_path(&to)?)?;
    }
    for name in missing {
        fs::File::create(copy.join(name))?;
    }
    sys::bind(&sys::c_path(&copy)?, c"/etc")
}

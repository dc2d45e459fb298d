//! What a program sees of the machine's files: its own name resolution, everything else as it is.

use std::{
    ffi::CString,
    fs, io,
    path::{Path, PathBuf},
};

use crate::{World, sys};

/// How a program resolves names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolution {
    /// The text of `/etc/resolv.conf`. Without a name server, the C library would ask `127.0.0.1`.
    pub resolv_conf: String,
    /// Lines of `/etc/hosts` after those of `localhost`.
    pub hosts: String,
}

/// Files that cover the machine's own in the mount namespace of each program started with them: `/etc/resolv.conf`,
/// `/etc/hosts`, and an `/etc/nsswitch.conf` that asks these two alone; the name service cache is out of reach.
///
/// Cheap to clone. Files changed in its directory change for the programs that run with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    dir: PathBuf,
}

impl World {
    /// Lays out files for programs to see. A second call with the same name replaces their content.
    ///
    /// # Errors
    /// When the name is not a file name, or the files cannot be written.
    pub fn view(&self, name: &str, resolution: &Resolution) -> io::Result<View> {
        let dir = self.shared.views_dir().join(plain_name(name)?);
        match fs::create_dir(&dir) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        fs::create_dir(dir.join("nothing")).or_else(|e| if e.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(e) })?;
        fs::write(dir.join("resolv.conf"), &resolution.resolv_conf)?;
        fs::write(
            dir.join("hosts"),
            format!("127.0.0.1 localhost\n::1 localhost\n{}", resolution.hosts),
        )?;
        fs::write(dir.join("nsswitch.conf"), NSSWITCH)?;
        Ok(View { dir })
    }
}

impl View {
    /// A view that was laid out in a directory before.
    pub(crate) fn at(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Where its files are.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// The mounts to make, in a fresh mount namespace, before the program starts.
    pub(crate) fn mounts(&self) -> io::Result<Vec<(CString, CString)>> {
        let mut mounts = Vec::with_capacity(COVERED.len() + 1);
        for name in COVERED {
            mounts.push((sys::c_path(&self.dir.join(name))?, sys::c_path(&Path::new("/etc").join(name))?));
        }
        // The C library asks the cache daemon before it looks at nsswitch.conf.
        let cache = Path::new("/var/run/nscd");
        if cache.is_dir() {
            mounts.push((sys::c_path(&self.dir.join("nothing"))?, sys::c_path(cache)?));
        }
        Ok(mounts)
    }
}

/// A name that is one plain path component.
pub(crate) fn plain_name(name: &str) -> io::Result<&str> {
    let plain = !name.is_empty() && name.len() <= 255 && name != "." && name != ".." && !name.contains(['/', '\0', '\n']);
    if plain {
        Ok(name)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is not a plain name")))
    }
}

/// The files under `/etc` that a view covers.
pub(crate) const COVERED: &[&str] = &["resolv.conf", "hosts", "nsswitch.conf"];

const NSSWITCH: &str = "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nnetworks: files\nprotocols: files\nservices: files\n";

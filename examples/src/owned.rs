//! Whose the directories and files are that decide who is trusted.

use std::{
    collections::VecDeque,
    ffi::OsString,
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Component, Path, PathBuf},
};

use ambient_control::plain;
use anyhow::Context as _;
use rustix::fs::{StatVfsMountFlags, statvfs};

/// Refuses a directory, or a file, that anybody but its owner may write to, or that anybody may put another in the place of: what
/// lies there decides who is trusted. Where there is none yet, nobody may put one there before it is made.
pub(crate) fn owned(path: &Path, flag: &str) -> anyhow::Result<()> {
    if let Ok(found) = std::fs::metadata(path) {
        plain::is_its_owners(path, &found).with_context(|| format!("{}, which {flag} names", path.display()))?;
    }
    let searched = searched(path).with_context(|| format!("{}, which {flag} names", path.display()))?;
    for above in searched {
        let Ok(found) = std::fs::metadata(&above) else { continue };
        let mode = found.permissions().mode() & 0o7777;
        // Kubernetes mounts a ConfigMap so: its mode says that all may write, and nobody may.
        let is_read_only = || statvfs(&above).is_ok_and(|of| of.f_flag.contains(StatVfsMountFlags::RDONLY));
        // Where that bit is set, as on /tmp, names of others are not to be changed.
        anyhow::ensure!(
            mode & 0o002 == 0 || mode & 0o1000 != 0 || is_read_only(),
            "anybody may put another in the place of {}, which {flag} names and which decides who is trusted, as {} may be written to by \
             all (mode {mode:04o}): chmod o-w it",
            path.display(),
            above.display()
        );
    }
    Ok(())
}

/// The directories in which the kernel looks names up to come to a path, as far as it is there: those of every link on the way, and
/// those of what it leads to.
fn searched(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut searched = Vec::new();
    let mut at = PathBuf::new();
    let mut ahead: VecDeque<OsString> = names(&std::path::absolute(path)?);
    let mut links = 0;
    while let Some(name) = ahead.pop_front() {
        let next = at.join(&name);
        match Path::new(&name).components().next() {
            Some(Component::RootDir) => {
                at = next;
                continue;
            }
            Some(Component::ParentDir) => {
                at.pop();
                continue;
            }
            Some(Component::Normal(_)) => searched.push(at.clone()),
            _ => continue,
        }
        // The rest is not there; or whoever is to open it is told why it cannot.
        let Ok(found) = std::fs::symlink_metadata(&next) else { break };
        if !found.is_symlink() {
            at = next;
            continue;
        }
        links += 1;
        if links > MOST_LINKS {
            return Err(rustix::io::Errno::LOOP.into());
        }
        for name in names(&std::fs::read_link(&next)?).into_iter().rev() {
            ahead.push_front(name);
        }
    }
    Ok(searched)
}

fn names(path: &Path) -> VecDeque<OsString> {
    path.components().map(|component| component.as_os_str().to_owned()).collect()
}

/// The kernel follows no more.
const MOST_LINKS: usize = 40;

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn the_directories_of_every_link_on_the_way_are_searched() {
        let scratch = tempfile::tempdir().unwrap();
        let scratch = fs::canonicalize(scratch.path()).unwrap();
        let [real, shared, links] = ["real", "shared", "links"].map(|name| scratch.join(name));
        for directory in [&real, &shared, &links] {
            fs::create_dir(directory).unwrap();
        }
        fs::create_dir(real.join("mesh")).unwrap();
        symlink("../real/mesh", shared.join("to-mesh")).unwrap();
        symlink(shared.join("to-mesh"), links.join("twice")).unwrap();
        let above = |path: &Path| {
            let mut all: Vec<_> = searched(path)
                .unwrap()
                .into_iter()
                .filter(|path| path.starts_with(&scratch))
                .collect();
            all.dedup();
            all
        };
        assert_eq!(above(&real.join("mesh")), [scratch.clone(), real.clone()]);
        assert_eq!(
            above(&links.join("twice")),
            [&scratch, &links, &scratch, &shared, &scratch, &real].map(Clone::clone)
        );
        // What is not there yet will be made in the last of them.
        assert_eq!(above(&shared.join("new/ca")), [scratch.clone(), shared.clone()]);
        assert_eq!(above(&shared.join("../links/./new")), [scratch.clone(), links.clone()]);
        symlink("ring", scratch.join("ring")).unwrap();
        assert!(searched(&scratch.join("ring")).is_err());
    }
}

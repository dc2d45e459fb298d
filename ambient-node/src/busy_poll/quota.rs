//! Whether cgroups limit the processor time of this process.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Whether a group that it is in, or one above that, has a quota: cgroups(7), version 1 or 2, where they are mounted as everywhere, below a root
/// directory. What a container does not see, such as a limit of its whole pod, and what cannot be read, is not known.
pub(super) fn is_limited(root: &Path) -> bool {
    let Ok(groups) = fs::read_to_string(root.join("proc/self/cgroup")) else {
        return false;
    };
    groups.lines().filter_map(|line| quota(root, line)).any(|(mount, group, file)| {
        let group = mount.join(group.trim_start_matches('/'));
        let up_to_mount = group.ancestors().take_while(|group| group.starts_with(&mount));
        up_to_mount.map(|group| group.join(file)).any(|file| is_some_quota(&file))
    })
}

/// Where the quota of a group stands, of which a line of `/proc/self/cgroup` tells: below the mount, its path and the name of the file.
fn quota<'l>(root: &Path, line: &'l str) -> Option<(PathBuf, &'l str, &'static str)> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (controllers, group) = (parts.next()?, parts.next()?);
    let below = |mount| root.join("sys/fs/cgroup").join(mount);
    if controllers.is_empty() {
        return Some((below(""), group, "cpu.max"));
    }
    let is_of_cpu = controllers.split(',').any(|controller| controller == "cpu");
    is_of_cpu.then(|| (below(controllers), group, "cpu.cfs_quota_us"))
}

/// `max 100000` and `-1` are none.
fn is_some_quota(file: &Path) -> bool {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.split_whitespace().next().is_some_and(|first| first.parse::<u64>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limited(groups: &str, files: &[(&str, &str)]) -> bool {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("proc/self/cgroup", groups);
        for (file, text) in files {
            write(&format!("sys/fs/cgroup/{file}"), text);
        }
        is_limited(root.path())
    }

    #[test]
    fn a_quota_is_found_in_either_version_and_above() {
        for (groups, file, text, is) in [
            ("0::/a/b\n", "a/b/cpu.max", "20000 100000\n", true),
            ("0::/a/b\n", "a/cpu.max", "250000 100000\n", true),
            ("0::/\n", "cpu.max", "20000 100000\n", true),
            ("0::/a/b\n", "a/b/cpu.max", "max 100000\n", false),
            ("0::/a/b\n", "a/c/cpu.max", "20000 100000\n", false),
            ("4:memory:/a\n3:cpu,cpuacct:/a\n", "cpu,cpuacct/a/cpu.cfs_quota_us", "20000\n", true),
            ("4:memory:/a\n3:cpu:/a\n", "cpu/a/cpu.cfs_quota_us", "-1\n", false),
            ("3:cpuset:/a\n", "cpuset/a/cpu.cfs_quota_us", "20000\n", false),
            ("nonsense\n", "cpu.max", "20000 100000\n", false),
            ("0::/a\n", "a/cpu.max", "", false),
        ] {
            assert_eq!(limited(groups, &[(file, text)]), is, "{groups} {file} {text}");
        }
        assert!(!is_limited(Path::new("/nowhere")));
    }
}

//! Whose the directories and files are that decide who is trusted.

use std::path::Path;

use ambient_control::plain;
use anyhow::Context as _;
use rustix::fs::{StatVfsMountFlags, statvfs};

/// Refuses a directory, or a file, that anybody but its owner may write to, or that anybody may put another in the place of: what
/// lies there decides who is trusted.
pub(crate) fn owned(directory: &Path, flag: &str) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    // What is not there is told of, or made, by whoever opens it.
    let Ok(found) = std::fs::metadata(directory) else { return Ok(()) };
    plain::is_its_owners(directory, &found).with_context(|| format!("{}, which {flag} names", directory.display()))?;
    let whole = std::fs::canonicalize(directory).unwrap_or_else(|_| directory.to_owned());
    for above in whole.ancestors().skip(1) {
        let Ok(found) = std::fs::metadata(above) else { continue };
        let mode = found.permissions().mode() & 0o7777;
        // Kubernetes mounts a ConfigMap so: its mode says that all may write, and nobody may.
        let is_read_only = || statvfs(above).is_ok_and(|of| of.f_flag.contains(StatVfsMountFlags::RDONLY));
        // Where that bit is set, as on /tmp, names of others are not to be changed.
        anyhow::ensure!(
            mode & 0o002 == 0 || mode & 0o1000 != 0 || is_read_only(),
            "anybody may put another directory in the place of {}, which {flag} names and which decides who is trusted, as {} may be \
             written to by all (mode {mode:04o}): chmod o-w it",
            directory.display(),
            above.display()
        );
    }
    Ok(())
}

//! Whose the directories are that decide who is trusted.

use std::{fs, os::unix::fs::PermissionsExt as _, process::Command};

use super::node;

#[test]
fn directories_that_others_may_write_to_are_refused() {
    let scratch = tempfile::tempdir().unwrap();
    for (name, flag) in [("manifests", "--manifests"), ("ca", "--ca-dir")] {
        let directory = scratch.path().join(name);
        fs::create_dir(&directory).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o775)).unwrap();
        let other = scratch.path().join("other");
        let (directory, other) = (directory.to_str().unwrap(), other.to_str().unwrap());
        let (manifests, ca) = if flag == "--ca-dir" {
            (other, directory)
        } else {
            (directory, other)
        };
        let output = node(
            &[
                "--node",
                "n",
                "--manifests",
                manifests,
                "--ca-dir",
                ca,
                "--no-dns-capture",
                "--netns-dir",
                "/",
            ],
            &[],
        );
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(flag) && said.contains("0775"), "{said}");
        assert!(fs::read_dir(directory).unwrap().next().is_none(), "nothing is touched");
    }
}

/// Whoever may write to the directory above may put another there, and one of theirs would be owned by them alone.
#[test]
fn directories_that_others_may_exchange_are_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let (above, other) = (scratch.path().join("above"), scratch.path().join("other"));
    let inside = above.join("one").join("manifests");
    fs::create_dir_all(&inside).unwrap();
    fs::create_dir(&other).unwrap();
    let said = |mode| {
        fs::set_permissions(&above, fs::Permissions::from_mode(mode)).unwrap();
        let (inside, missing) = (inside.to_str().unwrap(), other.join("ca"));
        let arguments = ["--node", "n", "--manifests", inside, "--no-dns-capture", "--netns-dir", "/nowhere"];
        let output = node(&[&arguments[..], &["--ca-dir", missing.to_str().unwrap()]].concat(), &[]);
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let refused = said(0o777);
    let named = above.display().to_string();
    assert!(
        refused.contains("--manifests") && refused.contains(&format!("{named} may be written to by all (mode 0777)")),
        "{refused}"
    );
    for mode in [0o1777, 0o775, 0o755] {
        let further = said(mode);
        assert!(further.contains("/nowhere"), "{mode:o}: {further}");
    }
    // Nor may anybody lead it elsewhere, or make one before it is made here.
    let (shared, mesh) = (scratch.path().join("shared"), scratch.path().join("mesh"));
    let link = shared.join("link");
    fs::create_dir(&shared).unwrap();
    fs::create_dir(&mesh).unwrap();
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o777)).unwrap();
    std::os::unix::fs::symlink(&mesh, &link).unwrap();
    let new = shared.join("new");
    for (flag, [manifests, ca]) in [("--manifests", [&link, &new]), ("--ca-dir", [&mesh, &new])] {
        let [manifests, ca] = [manifests, ca].map(|path| path.to_str().unwrap());
        let arguments = [
            "--node",
            "n",
            "--manifests",
            manifests,
            "--ca-dir",
            ca,
            "--no-dns-capture",
            "--netns-dir",
            "/",
        ];
        let refused = String::from_utf8(node(&arguments, &[]).stderr).unwrap();
        let named = format!("{} may be written to by all (mode 0777)", shared.display());
        assert!(refused.contains(flag) && refused.contains(&named), "{refused}");
    }
    assert!(!new.exists() && fs::read_dir(&mesh).unwrap().next().is_none());
    fs::set_permissions(&above, fs::Permissions::from_mode(0o777)).unwrap();
    let unshared = |script: &str| {
        let mut command = Command::new("unshare");
        command
            .args(["-rm", "sh", "-ec", script])
            .arg(&above)
            .arg(env!("CARGO_BIN_EXE_ambient"));
        command.env_remove("AMBIENT_CONFIG").output()
    };
    if !unshared("true").is_ok_and(|output| output.status.success()) {
        return ambient_testkit::skipped("what is mounted read-only, as no namespace of mounts can be made here");
    }
    // As a ConfigMap is mounted.
    let read_only = unshared(
        "mount --bind \"$0\" \"$0\"; mount -o remount,bind,ro \"$0\"; \
         exec \"$1\" node --node n --manifests \"$0/one/manifests\" --ca-dir \"$0/ca\" --no-dns-capture --netns-dir /nowhere",
    );
    let further = String::from_utf8(read_only.unwrap().stderr).unwrap();
    assert!(further.contains("/nowhere"), "{further}");
}

//! A node that cannot start says in one line what is wrong and what to do, and leaves nothing behind.
#![allow(clippy::unwrap_used, reason = "a test: its functions outside of #[test] fail it just as well")]

use std::{fs, path::Path, process::Command};

/// Runs `ambient node` with directories below `dir`; its exit code and standard error.
fn start(dir: &Path, manifests: &str, ca: &str) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_ambient"))
        .args(["node", "--node", "node-1", "--no-dns-capture"])
        .args(["--metrics", "127.0.0.1:0", "--readiness", "127.0.0.1:0"])
        .arg("--manifests")
        .arg(dir.join(manifests))
        .arg("--ca-dir")
        .arg(dir.join(ca))
        .arg("--netns-dir")
        .arg(dir.join("no-netns"))
        .output()
        .unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn assert_says(result: &(Option<i32>, String), words: &[&str]) {
    let (code, text) = result;
    assert_eq!(*code, Some(1), "{text}");
    assert_eq!(text.trim_end().lines().count(), 1, "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is not in {text:?}");
    }
}

#[test]
fn a_missing_directory_is_named() {
    let dir = tempfile::tempdir().unwrap();
    assert_says(&start(dir.path(), "none", "ca"), &["none"]);
    fs::create_dir(dir.path().join("manifests")).unwrap();
    assert_says(&start(dir.path(), "manifests", "ca"), &["no-netns", "--netns-dir"]);
}

#[test]
fn a_broken_manifest_is_named_by_file_line_and_field() {
    let dir = tempfile::tempdir().unwrap();
    let manifests = dir.path().join("manifests");
    fs::create_dir(&manifests).unwrap();
    fs::write(manifests.join("broken.yaml"), "apiVersion: v1\nkind: Pod\nmetadata: [\n").unwrap();
    assert_says(&start(dir.path(), "manifests", "ca"), &["broken.yaml"]);
    fs::write(
        manifests.join("broken.yaml"),
        "apiVersion: v1\nkind: Pod\nmetadata:\n  namespace: demo\n",
    )
    .unwrap();
    assert_says(&start(dir.path(), "manifests", "ca"), &["broken.yaml", "name"]);
}

#[cfg(unix)]
#[test]
fn a_ca_directory_that_others_can_write_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("manifests")).unwrap();
    let ca = dir.path().join("ca");
    fs::create_dir(&ca).unwrap();
    fs::set_permissions(&ca, fs::Permissions::from_mode(0o777)).unwrap();
    assert_says(&start(dir.path(), "manifests", "ca"), &["ca", "chmod"]);
    assert_eq!(fs::read_dir(&ca).unwrap().count(), 0, "something was left behind");
}

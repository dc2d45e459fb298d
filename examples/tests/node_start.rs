//! A node that cannot start says in one line what is wrong and what to do, and leaves nothing behind.
#![allow(clippy::unwrap_used, reason = "a test: its functions outside of #[test] fail it just as well")]

use std::{fs, path::Path, process::Command};

/// What stands in a directory, and below it.
fn tree(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(tree(&path));
        }
        found.push(path);
    }
    found.sort();
    found
}

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
    let before = tree(dir.path());
    assert_says(&start(dir.path(), "manifests", "ca"), &["no-netns", "--netns-dir"]);
    assert_eq!(tree(dir.path()), before, "something was left behind");
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
    assert!(!dir.path().join("ca").exists(), "a certificate authority was left behind");
}

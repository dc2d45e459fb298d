//! Where state and certificates come from if several places say it, and what an empty variable says.

use std::{os::unix::ffi::OsStrExt as _, process::Command};

use super::{file, line, node, printed};

fn told(arguments: &[&str], environment: &[(&str, &str)]) -> String {
    let needed = ["--node", "n", "--no-dns-capture", "--keys-dir", "none", "--netns-dir", "/nowhere"];
    let output = node(&[&needed[..], arguments].concat(), environment);
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

/// A flag is to count before the file: it is not left without effect because of what stands there.
#[test]
fn nothing_is_named_beside_a_control_wherever_it_is_named() {
    let scratch = tempfile::tempdir().unwrap();
    let path = file(scratch.path(), "control: localhost:1\n");
    for flag in ["--xds-address", "--ca-address", "--manifests", "--local-xds-path", "--ca-dir"] {
        let value = if flag.ends_with("-address") { "localhost:2" } else { "/somewhere" };
        let why = told(&["--config", &path, flag, value], &[]);
        let both = format!("leave out {path}: control, or {flag}");
        assert!(why.contains("one place") && why.contains(&both), "{flag}: {why}");
    }
    let why = told(&["--control", "localhost:1"], &[("CA_ADDRESS", "localhost:2")]);
    assert!(why.contains("leave out --control, or CA_ADDRESS"), "{why}");
}

#[test]
fn an_empty_variable_names_no_control_no_file_and_no_cluster() {
    let why = told(
        &[],
        &[
            ("AMBIENT_CONTROL", ""),
            ("XDS_ADDRESS", "localhost:1"),
            ("CA_ADDRESS", "localhost:1"),
        ],
    );
    assert!(why.contains("/nowhere"), "as without it: {why}");
    let all = printed(&["--node", "n"], &[("AMBIENT_CONFIG", ""), ("CLUSTER_ID", "")]);
    assert_eq!(line(&all, "cluster-id"), "cluster-id: Kubernetes  # default");
    let of_istio = |control: &[(&str, &str)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ambient"));
        let command = command.args(["proxy", "ztunnel", "--print-config", "--node", "n"]).env_clear();
        let output = command.envs(control.iter().copied()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let all = of_istio(&[("AMBIENT_CONTROL", "")]);
    assert_eq!(line(&all, "xds-address"), "xds-address: \"localhost:15012\"  # ztunnel's default");
}

/// `--no-dns-capture` is but another word for it.
#[test]
fn whoever_captures_no_dns_needs_no_dns_servers() {
    let needed = [
        "--node",
        "n",
        "--keys-dir",
        "none",
        "--netns-dir",
        "/nowhere",
        "--resolv-conf",
        "/no-such-file",
        "--xds-address",
        "localhost:1",
        "--ca-address",
        "localhost:1",
    ];
    let told = |more: &[&str]| String::from_utf8(node(&[&needed[..], more].concat(), &[]).stderr).unwrap();
    assert!(told(&[]).contains("/no-such-file"));
    for more in [&["--no-dns-capture"][..], &["--dns-capture", "false"]] {
        let why = told(more);
        assert!(why.contains("/nowhere") && !why.contains("/no-such-file"), "{why}");
    }
}

#[test]
fn a_node_starts_from_a_path_that_is_no_text() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join(std::ffi::OsStr::from_bytes(b"ambient-\xff"));
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_ambient"), &path).unwrap();
    let needed = ["--node", "n", "--no-dns-capture", "--keys-dir", "none", "--netns-dir", "/nowhere"];
    let mut command = Command::new(&path);
    command
        .arg("node")
        .args(needed)
        .args(["--xds-address", "localhost:1", "--ca-address", "localhost:1"]);
    let output = command.env_clear().output().unwrap();
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(why.contains("/nowhere") && !why.contains("panicked"), "{why}");
}

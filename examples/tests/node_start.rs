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

/// The exit code and standard error of a start that gets as far as its flags let it, and no further than its manifests.
fn start_with(args: &[&str], env: &[(&str, &str)]) -> (Option<i32>, String) {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_ambient"))
        .args([
            "node",
            "--node",
            "node-1",
            "--no-dns-capture",
            "--ca-dir",
            "ca",
            "--manifests",
            "no-manifests",
        ])
        .args(args)
        .envs(env.iter().copied())
        .current_dir(dir.path())
        .output()
        .unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn how_policies_are_read_is_told_by_flags_or_the_environment() {
    for (args, env) in [
        (&[][..], &[][..]),
        (&["--istio-exact", "--let-unreadable-policies-go", "--root-namespace", "mesh"], &[]),
        (&["--trust-domain-alias", "a.example", "--trust-domain-alias", "b.example"], &[]),
        (&["--cluster-local", "literal"], &[]),
        (&[], &[("AMBIENT_CLUSTER_LOCAL", "own")]),
        (&["--revision", "stable"], &[]),
        (&[], &[("REVISION", "stable")]),
        (&[], &[("ISTIO_EXACT", "true"), ("TRUST_DOMAIN_ALIASES", "a.example,b.example")]),
        (
            &[],
            &[
                ("ISTIO_EXACT", "false"),
                ("AMBIENT_LET_UNREADABLE_POLICIES_GO", "true"),
                ("AMBIENT_ROOT_NAMESPACE", "mesh"),
            ],
        ),
    ] {
        assert_says(&start_with(args, env), &["no-manifests"]);
    }
    // A value that is none of them ends the start.
    for (env, words) in [
        (("ISTIO_EXACT", "perhaps"), ["perhaps", "--istio-exact"]),
        (("TRUST_DOMAIN_ALIASES", "a.example,b/c"), ["b/c", "--trust-domain-alias"]),
        (("AMBIENT_CLUSTER_LOCAL", "mine"), ["mine", "--cluster-local"]),
        (("AMBIENT_LET_UNREADABLE_POLICIES_GO", "2"), ["2", "--let-unreadable-policies-go"]),
    ] {
        let (code, text) = start_with(&[], &[env]);
        assert_eq!(code, Some(2), "{text}");
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    }
}

#[test]
fn certificates_come_from_one_place_and_from_a_socket_that_tells_who_listens() {
    let one_place = |text: &str| text.contains("one place") && text.contains("--spire-admin-socket");
    for (args, env) in [
        (&["--spire-admin-socket", "unix:///run/spire/admin.sock"][..], &[][..]),
        (&[], &[("SPIFFE_ENDPOINT_SOCKET", "unix:///run/spire/agent.sock")]),
        (&["--ca-address", "https://ca.example:15012"], &[]),
    ] {
        let (code, text) = start_with(args, env);
        assert!(code == Some(1) && one_place(&text), "{text}");
    }
    // An empty variable names none.
    assert_says(&start_with(&[], &[("SPIRE_ADMIN_ENDPOINT_SOCKET", "")]), &["no-manifests"]);
    let (code, text) = start_with(&["--spire-admin-socket", "tcp://127.0.0.1:8081"], &[]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("only Unix sockets"), "{text}");
}

fn assert_says(result: &(Option<i32>, String), words: &[&str]) {
    let (code, text) = result;
    assert_eq!(*code, Some(1), "{text}");
    assert_eq!(text.trim_end().lines().count(), 1, "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is not in {text:?}");
    }
}

/// Whether a start with these, which comes to nothing, logs a text.
fn logs(args: &[&str], text: &str) -> bool {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("resolv.conf"), "nameserver 127.0.0.1\n").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_ambient"))
        .args([
            "node",
            "--node",
            "node-1",
            "--resolv-conf",
            "resolv.conf",
            "--netns-dir",
            "no-netns",
        ])
        .args(args)
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8_lossy(&output.stdout).contains(text)
}

/// What is told of `--state-dir` by a start with these.
fn of_state_dir(args: &[&str]) -> bool {
    logs(
        &[&["--no-dns-capture", "--state-dir", "state"], args].concat(),
        "--state-dir has no effect",
    )
}

#[test]
fn names_that_are_not_known_where_state_comes_as_it_is_needed_are_told() {
    let told = |args: &[&str]| {
        let istiod = [
            "--xds-address",
            "localhost:1",
            "--ca-address",
            "localhost:1",
            "--ca-root-ca",
            "system",
            "--xds-root-ca",
            "system",
        ];
        logs(&[&istiod, args].concat(), "--xds-on-demand: names of ServiceEntries")
    };
    assert!(told(&["--xds-on-demand", "true"]));
    assert!(!told(&["--xds-on-demand", "true", "--no-dns-capture"]));
    assert!(!told(&[]));
}

#[test]
fn a_directory_in_which_nothing_is_remembered_is_told() {
    let files = ["--manifests", "no-manifests", "--ca-dir", "ca"];
    assert!(of_state_dir(&files));
    let agent = ["--manifests", "no-manifests", "--spire-admin-socket", "unix:///nowhere"];
    assert!(!of_state_dir(&agent), "what an agent of SPIRE has said is kept there");
    let istiod = ["--manifests", "no-manifests", "--ca-address", "nowhere:15012"];
    assert!(!of_state_dir(&istiod), "and istiod's roots are");
}

/// Nor for keys, nor an authority before that is known.
#[test]
fn a_place_for_keys_that_is_refused_leaves_nothing() {
    // A disk, where a directory of temporary files may be none.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    fs::create_dir(dir.path().join("manifests")).unwrap();
    let before = tree(dir.path());
    let output = Command::new(env!("CARGO_BIN_EXE_ambient"))
        .args([
            "node",
            "--node",
            "node-1",
            "--no-dns-capture",
            "--keys-dir",
            "keys",
            "--netns-dir",
            ".",
        ])
        .args([
            "--manifests",
            "manifests",
            "--ca-dir",
            "ca",
            "--metrics",
            "127.0.0.1:0",
            "--readiness",
            "127.0.0.1:0",
        ])
        .args(["--admin", "127.0.0.1:0"])
        .current_dir(dir.path())
        .output()
        .unwrap();
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && why.contains("keys never touch a disk"), "{why}");
    assert!(why.contains("what --keys-dir names: "), "{why}");
    assert_eq!(tree(dir.path()), before);
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

/// A shell in whose limits the binary is run.
fn within(limits: &str, args: &[&str]) -> std::process::Output {
    let line = format!("{limits}; exec \"$0\" \"$@\"");
    Command::new("sh")
        .args(["-c", &line, env!("CARGO_BIN_EXE_ambient")])
        .args(args)
        .env_clear()
        .output()
        .unwrap()
}

#[test]
fn too_few_descriptors_for_any_connection_are_told() {
    let start = [
        "node",
        "--node",
        "node-1",
        "--no-dns-capture",
        "--manifests",
        "no-manifests",
        "--ca-dir",
        "ca",
    ];
    let said = |limits: &str| {
        let output = within(limits, &start);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let told = said("ulimit -n 127");
    for word in ["may have 127 files open", "needs 128", "LimitNOFILE"] {
        assert!(told.contains(word), "{told}");
    }
    assert!(said("ulimit -n 128").contains("no-manifests"));
}

#[test]
fn bytes_where_text_is_wanted_are_told_with_their_place() {
    use std::os::unix::ffi::OsStrExt as _;
    let bytes = std::ffi::OsStr::from_bytes(b"\xff");
    for (command, variable, place) in [
        (
            ["node"].as_slice(),
            Some("RUST_LOG"),
            "ambient node: the environment variable RUST_LOG",
        ),
        (&["node"], Some("NODE_NAME"), "ambient node: the environment variable NODE_NAME"),
        (
            &["control", "--mesh", "m", "--ca", "c"],
            Some("RUST_LOG"),
            "ambient control: the environment variable RUST_LOG",
        ),
        (&["node", "--node"], None, "ambient node: the argument \"\u{fffd}\""),
    ] {
        let mut ambient = Command::new(env!("CARGO_BIN_EXE_ambient"));
        ambient.args(command).env_clear();
        match variable {
            Some(variable) => ambient.env(variable, bytes),
            None => ambient.arg(bytes),
        };
        let output = ambient.output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert!(told.starts_with(place) && told.contains("no UTF-8"), "{told}");
    }
}

/// A log that may not grow any more is as one on a disk without room.
#[test]
fn a_file_that_may_not_grow_ends_no_process() {
    let dir = tempfile::tempdir().unwrap();
    let [mesh, ca, log] = ["mesh", "ca", "log"].map(|name| dir.path().join(name));
    fs::create_dir(&mesh).unwrap();
    let ca = ca.to_str().unwrap();
    let made = Command::new(env!("CARGO_BIN_EXE_ambient"))
        .args(["ca", "init", "--ca", ca])
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let line = format!("ulimit -f 8; exec \"$0\" \"$@\" > {}", log.display());
    let mut control = Command::new("sh")
        .args(["-c", &line, env!("CARGO_BIN_EXE_ambient")])
        .args(["control", "--listen", "127.0.0.1:0", "--mesh"])
        .arg(&mesh)
        .args(["--ca", ca])
        .env_clear()
        .spawn()
        .unwrap();
    // Each is a line of the log, and its file is full after a few.
    let mut names = 0;
    let full = || fs::metadata(&log).is_ok_and(|log| log.len() > 0 && log.len() % 4096 == 0);
    while !full() || names < 20 {
        names += 1;
        fs::write(
            mesh.join(format!("{names}.yaml")),
            format!("apiVersion: v1\nkind: Kind{names}\nmetadata: {{ name: x }}\n"),
        )
        .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(control.try_wait().unwrap().is_none(), "it has ended after {names}");
        assert!(names < 2_000, "{:?}", fs::read_to_string(&log));
    }
    std::thread::sleep(std::time::Duration::from_secs(1));
    let ended = control.try_wait().unwrap();
    control.kill().unwrap();
    control.wait().unwrap();
    assert!(ended.is_none(), "{ended:?}");
}

//! What is wrong is told with what has said it: the flag, the variable, or the field of the file.

use std::os::unix::fs::PermissionsExt as _;

use super::*;

/// What decides who is trusted, and may be written to by others or is not there: told with what names it.
#[test]
fn what_cannot_be_trusted_is_told_with_what_names_it() {
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name).to_str().unwrap().to_owned();
    let (good, open, none) = (at("good"), at("open"), at("none"));
    fs::create_dir(&good).unwrap();
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    let may_write = |by: &str| format!("{open}, which {by} names: others than its owner may write to it");
    let file = at("file");
    fs::write(&file, "").unwrap();
    let no_directory = |by: &str, why: &str| format!("what {by} names: {why}");
    let no_status = |by: &str| format!("cannot keep this node's status in {none}, which {by} names: ");
    let told = |command: &[&str], environment: &[(&str, &str)], words: String| {
        let (code, why) = ended(command, environment);
        assert_eq!(code, Some(1), "{command:?}: {why}");
        assert!(why.contains(&words), "{command:?} {environment:?}: {words}: {why}");
    };
    for (name, variable, others) in [
        ("manifests", "AMBIENT_MANIFESTS", &["--ca-dir", "/nowhere"]),
        ("local-xds-path", "LOCAL_XDS_PATH", &["--ca-dir", "/nowhere"]),
        ("ca-dir", "AMBIENT_CA_DIR", &["--manifests", &*good]),
    ] {
        let node = [&["node", "--node", "n", "--no-dns-capture"][..], others].concat();
        let flag = format!("--{name}");
        let settings = at("settings.yaml");
        let expected = |value: &str, words: &dyn Fn(&str) -> String| {
            told(&[&node[..], &[&*flag, value]].concat(), &[], words(&flag));
            told(&node, &[(variable, value)], words(variable));
            fs::write(&settings, format!("{name}: {value}\n")).unwrap();
            told(
                &[&node[..], &["--config", &*settings]].concat(),
                &[],
                words(&format!("{settings}: {name}")),
            );
        };
        expected(&open, &may_write);
        match name {
            "manifests" => expected(&none, &no_status),
            "local-xds-path" => expected(&none, &|by| no_directory(by, &none)),
            _ => {}
        }
    }
    let on_a_disk = [
        "node",
        "--node",
        "n",
        "--no-dns-capture",
        "--control",
        "localhost:1",
        "--keys-dir",
        &file,
    ];
    told(&on_a_disk, &[], no_directory("--keys-dir", ""));
    let enrol = ["enrol", "--node", "n"];
    let of = |value| [("AMBIENT_MANIFESTS", value)];
    let (good_set, open_set, none_set) = (of(&*good), of(&*open), of(&*none));
    told(&enrol, &open_set, may_write("AMBIENT_MANIFESTS"));
    told(&enrol, &none_set, no_status("AMBIENT_MANIFESTS"));
    // The flag counts before the variable, by either of its names.
    for flag in ["--manifests", "--mesh"] {
        told(&[&enrol[..], &[flag, &*open]].concat(), &good_set, may_write("--manifests"));
    }
    let mesh = ["control", "--mesh", &good];
    let (no_mesh, no_ca) = (format!("there is no directory {none}"), format!("{file}: is no directory"));
    told(&["control", "--ca", &good], &none_set, no_directory("AMBIENT_MANIFESTS", &no_mesh));
    told(&["control", "--ca", &good, "--mesh", &none], &[], no_directory("--mesh", &no_mesh));
    let here = ["--listen", "127.0.0.1:0", "--log", "off"];
    told(
        &[&mesh[..], &here].concat(),
        &[("AMBIENT_CA_DIR", &file)],
        no_directory("AMBIENT_CA_DIR", &no_ca),
    );
    told(&[&mesh[..], &here, &["--ca", &file]].concat(), &[], no_directory("--ca", &no_ca));
    told(&["control", "--ca", &good], &open_set, may_write("AMBIENT_MANIFESTS"));
    told(&mesh, &[("AMBIENT_CA_DIR", &open)], may_write("AMBIENT_CA_DIR"));
    told(
        &[&mesh[..], &["--ca", &*open]].concat(),
        &[("AMBIENT_CA_DIR", &good)],
        may_write("--ca"),
    );
}

/// What is no plain file is refused, whatever would come of it and however long that took.
#[test]
fn settings_and_nameservers_are_read_of_plain_files_alone() {
    let scratch = tempfile::tempdir().unwrap();
    let pipe = scratch.path().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
    let good = scratch.path().join("good");
    fs::create_dir(&good).unwrap();
    let good = good.to_str().unwrap();
    for (file, what) in [
        (pipe.to_str().unwrap(), "it is a pipe, and no plain file"),
        ("/dev/zero", "it is a device, and no plain file"),
    ] {
        let node = ["node", "--node", "n", "--manifests", good, "--ca-dir", "/nowhere"];
        for flag in ["--config", "--resolv-conf"] {
            let (code, why) = ended(&[&node[..], &[flag, file]].concat(), &[]);
            assert!(
                code.is_some_and(|code| code > 0) && why.contains(what) && why.contains(file),
                "{flag}: {why}"
            );
        }
    }
}

/// Of other commands than `node` too.
#[test]
fn a_variable_that_cannot_be_read_is_told_whatever_the_command() {
    for (command, variable, value, flag) in [
        (&["control"][..], "REVISION", "a b", "--revision"),
        (&["control"], "SECRET_TTL_SECONDS", "0", "--secret-ttl"),
        (&["control", "tokens"], "AMBIENT_CA_DIR", "", "--ca"),
        (&["enrol"], "NODE_NAME", "!!", "--node"),
        (&["enrol"], "AMBIENT_MANIFESTS", "", "--manifests"),
        (&["enrol"], "AMBIENT_OPEN_WHEN_UNPROVEN", "maybe", "--open-when-unproven"),
        (&["enrol"], "AMBIENT_PROBES", "maybe", "--probes"),
        (&["ca", "init"], "TRUST_DOMAIN", "a b", "--trust-domain"),
    ] {
        let mut environment = vec![
            ("NODE_NAME", "n"),
            ("AMBIENT_MANIFESTS", "/nowhere"),
            ("AMBIENT_CA_DIR", "/nowhere"),
        ];
        environment.retain(|(name, _)| *name != variable);
        environment.push((variable, value));
        let (code, why) = ended(command, &environment);
        let begins = format!("ambient {}: the environment variable {variable}: ", command[0]);
        assert!(
            code == Some(2) && why.starts_with(&begins) && why.contains(flag),
            "{command:?}: {why}"
        );
        assert_eq!(why.lines().count(), 1, "{why}");
    }
    // What stands on the command line is told as it stands there.
    for (command, variable, flag) in [
        (&["enrol", "--node", "n", "--manifests", ""][..], "AMBIENT_MANIFESTS", "--manifests"),
        (&["enrol", "--node", "n", "--mesh="], "AMBIENT_MANIFESTS", "--manifests"),
        (&["control", "tokens", "--ca", ""], "AMBIENT_CA_DIR", "--ca"),
    ] {
        let (code, why) = ended(command, &[(variable, "/nowhere")]);
        assert!(
            code == Some(2) && why.starts_with("error: ") && why.contains(flag) && !why.contains(variable),
            "{command:?}: {why}"
        );
    }
}

/// Nor is what is no text at all as if nothing were said.
#[test]
fn names_of_the_nodes_pod_that_are_no_text_are_told() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _};
    let scratch = tempfile::tempdir().unwrap();
    let roots = file(scratch.path(), "");
    for variable in ["INSTANCE_IP", "POD_NAME", "POD_NAMESPACE"] {
        let mut ambient = Command::new(env!("CARGO_BIN_EXE_ambient"));
        ambient.args(["node", "--node", "n", "--no-dns-capture", "--keys-dir", "none"]);
        ambient.args(["--control", "https://localhost:1", "--xds-root-ca", &roots]);
        let output = ambient.env_clear().env(variable, OsStr::from_bytes(b"\xff")).output().unwrap();
        let why = String::from_utf8(output.stderr).unwrap();
        let told = format!("the environment variable {variable}: ");
        assert!(output.status.code() == Some(1) && why.contains(&told), "{why}");
    }
}

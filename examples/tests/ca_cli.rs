//! `ambient ca` as a process: what it says, in words and in JSON, and what it refuses.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;

#[expect(clippy::unwrap_used, reason = "a test's own helper")]
fn ca(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ambient"))
        .arg("ca")
        .args(arguments)
        .arg("--ca")
        .arg(directory)
        .env_remove("AMBIENT_CA_DIR")
        .env_remove("TRUST_DOMAIN")
        .output()
        .unwrap()
}

#[expect(clippy::unwrap_used, reason = "a test's own helper")]
fn json(directory: &Path, arguments: &[&str]) -> Value {
    let output = ca(directory, &[arguments, &["--json"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn said(directory: &Path, arguments: &[&str]) -> String {
    let output = ca(directory, arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// One line, which names the verb.
fn refused(directory: &Path, arguments: &[&str]) -> String {
    let output = ca(directory, arguments);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    assert!(text.starts_with("ambient ca: ") && text.lines().count() == 1, "{text}");
    text
}

const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";

#[test]
fn an_authority_from_its_first_day_to_its_second_root() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = &scratch.path().join("ca");
    assert!(refused(dir, &["show"]).contains("`ambient ca init` makes one"));
    let made = said(dir, &["init"]);
    assert!(
        made.contains("trust domain cluster.local") && made.contains("valid until 20"),
        "{made}"
    );
    assert!(refused(dir, &["init"]).contains("already"));

    let out = scratch.path().join("cart");
    let given = json(dir, &["issue", "--identity", CART, "--out", out.to_str().unwrap(), "--life", "10m"]);
    let serial = given["serial"].as_str().unwrap().to_owned();
    assert!(out.join("cert-chain.pem").exists() && out.join("root-cert.pem").exists());
    assert_eq!(std::fs::metadata(out.join("key.pem")).unwrap().permissions().mode() & 0o777, 0o600);
    let node = scratch.path().join("node");
    let issued = said(dir, &["issue", "--node", "node-1", "--out", node.to_str().unwrap()]);
    assert!(issued.contains("root.pem") && !issued.contains("root-key.pem"), "{issued}");

    let shown = said(dir, &["show"]);
    for part in ["cluster.local", "signs", "node-1", &serial, CART, "good"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let revoked = said(dir, &["revoke", "--identity", CART]);
    assert!(
        revoked.contains(&serial) && revoked.contains("crl.pem") && revoked.contains("--lift"),
        "{revoked}"
    );
    let error = refused(dir, &["issue", "--identity", CART, "--out", out.to_str().unwrap()]);
    assert!(error.contains("was revoked"), "{error}");
    let shown = json(dir, &["show"]);
    assert_eq!((&shown["issued"][0]["revoked"], &shown["barred"][0]), (&true.into(), &CART.into()));
    said(dir, &["revoke", "--lift", CART]);
    said(dir, &["issue", "--identity", CART, "--out", out.to_str().unwrap()]);
    assert!(said(dir, &["revoke", "--node", "node-1"]).contains("intermediate of node-1"));
    assert!(refused(dir, &["revoke", "--serial", "00ff"]).contains("name the issuer's too"));

    let stages = [
        &["rotate"][..],
        &["rotate"],
        &["rotate", "--grace", "0"],
        &["rotate", "--grace", "0"],
    ];
    let stages: Vec<_> = stages
        .iter()
        .map(|stage| json(dir, stage)["stage"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(stages, ["trusted", "waits", "used", "withdrawn"]);
    assert_eq!(json(dir, &["show"])["roots"].as_array().unwrap().len(), 1);
}

#[test]
fn what_is_not_its_own_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = &scratch.path().join("ca");
    std::fs::create_dir(dir).unwrap();
    std::fs::write(dir.join("letter.txt"), "").unwrap();
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o770)).unwrap();
    let error = refused(dir, &["init"]);
    assert!(error.contains("mode 0770") && error.contains("chmod go-w"), "{error}");
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700)).unwrap();
    let error = refused(dir, &["init"]);
    assert!(error.contains("letter.txt") && error.contains("empty"), "{error}");
    std::fs::remove_file(dir.join("letter.txt")).unwrap();
    said(dir, &["init", "--trust-domain", "mesh.example"]);
    let error = refused(
        dir,
        &["issue", "--identity", CART, "--out", scratch.path().join("x").to_str().unwrap()],
    );
    assert!(error.contains("mesh.example"), "{error}");
    for life in ["0", "25h"] {
        let out = scratch.path().join("y");
        let error = refused(dir, &["issue", "--node", "a", "--out", out.to_str().unwrap(), "--life", life]);
        assert!(error.contains("24 hours"), "{error}");
    }
    std::fs::write(dir.join("root.pem"), "").unwrap();
    let error = refused(dir, &["show"]);
    assert!(error.contains("root.pem") && error.contains("put the right one back"), "{error}");
    // What is to be done must be said, and once.
    for arguments in [
        &["revoke"][..],
        &["revoke", "--node", "a", "--serial", "00"],
        &["issue", "--out", "/x"],
    ] {
        assert_eq!(ca(dir, arguments).status.code(), Some(2), "{arguments:?}");
    }
}

/// What was named by mistake gets no keys, and is said in a line.
#[test]
fn a_directory_that_was_named_by_mistake_is_left_alone() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = refused(&file, &["init"]);
    assert!(error.contains("is no directory") && !error.contains("os error"), "{error}");
    let dir = &scratch.path().join("ca");
    said(dir, &["init"]);
    let error = refused(dir, &["issue", "--node", "a", "--out", file.to_str().unwrap()]);
    assert!(error.contains("is no directory"), "{error}");
    let error = refused(dir, &["revoke", "--identity", "spiffe://elsewhere/ns/shop/sa/cart"]);
    assert!(error.contains("another trust domain"), "{error}");
    // A cause is told once.
    std::fs::remove_file(dir.join("root-key.pem")).unwrap();
    std::fs::create_dir(dir.join("root-key.pem")).unwrap();
    let error = refused(dir, &["rotate"]);
    assert!(error.contains("root-key.pem") && error.matches("directory").count() <= 1, "{error}");
}

/// What is lost is not made anew over what is left: the key may be the one that all nodes trust.
#[test]
fn an_authority_whose_root_is_gone_is_left_as_it_is() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = &scratch.path().join("ca");
    said(dir, &["init"]);
    let out = scratch.path().join("cart");
    said(dir, &["issue", "--identity", CART, "--out", out.to_str().unwrap()]);
    let key = std::fs::read(dir.join("root-key.pem")).unwrap();
    let certificate = std::fs::read(dir.join("root.pem")).unwrap();
    std::fs::remove_file(dir.join("root.pem")).unwrap();
    let again = scratch.path().join("again");
    for arguments in [
        &["init"][..],
        &["show"],
        &["rotate"],
        &["issue", "--identity", CART, "--out", again.to_str().unwrap()],
    ] {
        let error = refused(dir, arguments);
        assert!(
            error.contains("root.pem: it is not here") && error.contains("intermediates") && error.contains("put it back"),
            "{arguments:?}: {error}"
        );
    }
    assert_eq!(std::fs::read(dir.join("root-key.pem")).unwrap(), key);
    std::fs::write(dir.join("root.pem"), certificate).unwrap();
    said(dir, &["issue", "--identity", CART, "--out", again.to_str().unwrap()]);
    // A key that has signed nothing is what a start that was cut short leaves.
    let begun = &scratch.path().join("begun");
    said(begun, &["init"]);
    std::fs::remove_file(begun.join("root.pem")).unwrap();
    said(begun, &["init"]);
}

/// By its serial number and its issuer's: of a certificate that a node has signed elsewhere nothing is listed.
#[test]
fn what_is_not_listed_is_revoked_by_its_issuer() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = &scratch.path().join("ca");
    said(dir, &["init"]);
    let node = scratch.path().join("node");
    let given = json(dir, &["issue", "--node", "node-1", "--out", node.to_str().unwrap()]);
    let issuer = given["serial"].as_str().unwrap();
    let revoked = json(dir, &["revoke", "--serial", "0a:0b:0c", "--issuer", issuer]);
    assert_eq!(
        (&revoked["certificates"][0]["serial"], &revoked["certificates"][0]["issuer"]),
        (&"0a0b0c".into(), &issuer.into())
    );
    assert_eq!(json(dir, &["show"])["revoked"].as_array().unwrap().len(), 1);
    assert!(refused(dir, &["revoke", "--serial", "0a", "--issuer", "ff"]).contains("the issuer named is not known here"));
    assert_eq!(ca(dir, &["revoke", "--issuer", issuer]).status.code(), Some(2), "of what?");
    let root = json(dir, &["show"])["roots"][0]["serial"].as_str().unwrap().to_owned();
    assert!(refused(dir, &["revoke", "--serial", &root]).contains("it is a root: `ambient ca rotate`"));
    assert!(refused(dir, &["revoke", "--serial", ""]).contains(r#""": it is no serial number"#));
    let error = refused(dir, &["revoke", "--lift", CART]);
    assert!(
        error.ends_with("/cart: it is not barred: `ambient ca show` lists those that are"),
        "{error}"
    );
}

/// What an old root has signed is no good once that is withdrawn, and is not said to be.
#[test]
fn what_a_withdrawn_root_has_signed_is_not_called_good() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = &scratch.path().join("ca");
    said(dir, &["init"]);
    let out = scratch.path().join("cart");
    let given = json(dir, &["issue", "--identity", CART, "--out", out.to_str().unwrap()]);
    for _ in 0..3 {
        assert_eq!(json(dir, &["show"])["issued"][0]["trusted"], true);
        said(dir, &["rotate", "--grace", "0"]);
    }
    let shown = json(dir, &["show"]);
    assert_eq!(
        (&shown["issued"][0]["trusted"], &shown["intermediates"][0]["trusted"]),
        (&false.into(), &false.into())
    );
    let text = said(dir, &["show"]);
    let line = text
        .lines()
        .find(|line| line.starts_with(given["serial"].as_str().unwrap()))
        .unwrap();
    assert!(line.contains("untrusted") && !line.contains("good"), "{line}");
}

/// Killed at any moment: what was begun is taken up, or can be begun again; nothing is left that nobody can use.
#[test]
fn a_command_that_is_killed_leaves_what_the_next_goes_on_with() {
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("out");
    let out = out.to_str().unwrap();
    let issue = ["issue", "--identity", CART, "--out", out];
    let verbs = [&["init"][..], &["rotate", "--grace", "0"], &issue, &["revoke", "--node", "a"]];
    let mut killed = 0;
    for round in 0..10_u64 {
        let dir = &scratch.path().join(round.to_string());
        for (n, verb) in verbs.iter().enumerate() {
            if n == 3 {
                said(dir, &["issue", "--node", "a", "--out", out]);
            }
            let mut process = Command::new(env!("CARGO_BIN_EXE_ambient"))
                .arg("ca")
                .args(*verb)
                .arg("--ca")
                .arg(dir)
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null())
                .spawn()
                .unwrap();
            std::thread::sleep(std::time::Duration::from_millis(round * 7 + 3));
            let _ = process.kill();
            killed += usize::from(!process.wait().unwrap().success());
            if n == 0 {
                // What was done is said to be.
                let again = ca(dir, verb);
                let text = String::from_utf8_lossy(&again.stderr).into_owned();
                assert!(again.status.success() || text.contains("already"), "{text}");
            }
            said(dir, &["show"]);
        }
        for _ in 0..3 {
            said(dir, &["rotate", "--grace", "0"]);
        }
        let shown = json(dir, &["show"]);
        let left = shown["foreign"].as_array().unwrap();
        assert!(left.is_empty() && !shown["roots"].as_array().unwrap().is_empty(), "{shown}");
        said(dir, &issue);
        std::fs::remove_dir_all(out).unwrap();
    }
    assert!(killed > 0, "none was killed");
}

/// Runs a script with a file system of its own at `$DISK`, where the kernel lets us have one; it calls `$AMBIENT`.
fn apart(disk: &Path, script: &str) -> Option<String> {
    let is_root = std::fs::metadata("/proc/self").is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0);
    let run = |script: &str| {
        let mut unshare = Command::new("unshare");
        unshare.arg("--mount");
        if !is_root {
            unshare.args(["--user", "--map-root-user"]);
        }
        unshare
            .args(["sh", "-c", script])
            .env("DISK", disk)
            .env("AMBIENT", env!("CARGO_BIN_EXE_ambient"))
            .env("CART", CART)
            .env_remove("AMBIENT_CA_DIR")
            .env_remove("TRUST_DOMAIN")
            .output()
    };
    let mounted = "mount -t tmpfs -o size=96k,mode=700 none \"$DISK\"";
    if !run(mounted).is_ok_and(|output| output.status.success()) {
        ambient_testkit::skipped("a full disk: there is no `unshare`, or it may mount nothing");
        return None;
    }
    let output = run(&format!("{mounted} && cd \"$DISK\" && {script}")).ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    Some(text)
}

/// Each verb with what it says, in a line, and what it ends with.
const VERBS: &str = r#"
verbs() {
    for verb in "rotate" "issue --identity $CART --out $DISK/out" "issue --node a --out $DISK/a" \
        "revoke --identity $CART" "init --trust-domain other.example --ca $DISK/new"; do
        said=$("$AMBIENT" ca $verb 2>&1) && echo "done: $verb"
        echo "$verb: $said"
    done
    said=$("$AMBIENT" control token a --ca "$DISK/ca" 2>&1) && echo "done: token"
    echo "token: $said"
}
content() { (cd ca && find . -type f | sort | xargs sha256sum); }
export AMBIENT_CA_DIR="$DISK/ca" RUST_LOG=info TRUST_DOMAIN=cluster.local
"$AMBIENT" ca init >/dev/null
before=$(content)
"#;

/// What a verb has said; nothing was done.
fn said_of<'a>(text: &'a str, verb: &str) -> &'a str {
    assert!(!text.contains("done:"), "{text}");
    let line = text.lines().find_map(|line| line.strip_prefix(verb)?.split_once(": "));
    line.unwrap_or_else(|| panic!("nothing of {verb}: {text}")).1
}

const WRITING: [&str; 5] = ["rotate", "issue --identity", "issue --node", "revoke", "token"];

#[test]
fn a_disk_that_cannot_be_written_is_named_and_what_is_there_can_be_shown() {
    let scratch = tempfile::tempdir().unwrap();
    let script = format!(
        r#"{VERBS}
"$AMBIENT" ca issue --node brief --out brief --life 1s >/dev/null && sleep 1.1 && before=$(content) || exit 1
mkdir new && mount --bind ca ca && mount -o remount,ro,bind ca && mount --bind new new && mount -o remount,ro,bind new || exit 1
verbs
"$AMBIENT" ca show && "$AMBIENT" control tokens || exit 1
[ "$before" = "$(content)" ] && [ ! -e out ] && [ ! -e a ] && [ -z "$(ls new)" ] && echo "nothing has changed""#
    );
    let Some(text) = apart(scratch.path(), &script) else { return };
    for verb in WRITING {
        let said = said_of(&text, verb);
        assert!(said.contains("/ca/.lock: Read-only file system"), "{verb}: {said}");
    }
    assert!(said_of(&text, "init").contains("/new"), "{text}");
    assert!(text.contains("cluster.local") && text.contains("signs"), "{text}");
    assert!(text.contains("nothing has changed"), "{text}");
}

#[test]
fn a_disk_without_room_is_named_and_nothing_half_is_left() {
    let scratch = tempfile::tempdir().unwrap();
    let script = format!(
        r#"{VERBS}
dd if=/dev/zero of=fill bs=1k count=128 2>/dev/null
verbs
[ "$before" = "$(content)" ] && [ -z "$(find out a new -name '*.pem*' 2>/dev/null)" ] && echo "nothing has changed"
rm fill
verbs | sed 's/^done:/then:/'
"$AMBIENT" ca show || exit 1"#
    );
    let Some(text) = apart(scratch.path(), &script) else { return };
    let (full, then) = text.split_once("nothing has changed").unwrap_or_else(|| panic!("{text}"));
    for verb in WRITING.iter().chain(&["init"]) {
        let said = said_of(full, verb);
        assert!(
            said.contains("No space left on device") && said.contains("cannot write /"),
            "{verb}: {said}"
        );
    }
    // With room again all of it is done, where it was begun too.
    assert_eq!(then.matches("then: ").count(), 6, "{then}");
    assert!(then.contains(CART), "{then}");
}

#[test]
fn an_authority_is_not_made_or_read_where_anybody_may_put_another() {
    let scratch = tempfile::tempdir().unwrap();
    let (safe, shared) = (scratch.path().join("ca"), scratch.path().join("shared"));
    said(&safe, &["init"]);
    std::fs::create_dir(&shared).unwrap();
    std::fs::set_permissions(&shared, std::fs::Permissions::from_mode(0o777)).unwrap();
    let new = &shared.join("ca");
    let why = refused(new, &["init"]);
    assert!(
        why.contains("--ca") && why.contains("may be written to by all (mode 0777)"),
        "{why}"
    );
    assert!(!new.exists());
    std::fs::rename(&safe, new).unwrap();
    for verb in [&["show"][..], &["rotate"], &["revoke", "--node", "n"]] {
        assert!(refused(new, verb).contains("mode 0777"), "{verb:?}");
    }
    std::fs::set_permissions(&shared, std::fs::Permissions::from_mode(0o1777)).unwrap();
    said(new, &["show"]);
}

#[test]
fn another_user_is_told_whose_it_is() {
    if std::fs::metadata("/proc/self").is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) != 0) {
        ambient_testkit::skipped("an authority of another user: only root can be another");
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let dir = &scratch.path().join("ca");
    said(dir, &["init"]);
    let as_nobody = |verb: &[&str]| {
        let mut ca = Command::new(env!("CARGO_BIN_EXE_ambient"));
        std::os::unix::process::CommandExt::uid(&mut ca, 65_534);
        ca.arg("ca").args(verb).arg("--ca").arg(dir).current_dir("/").output().unwrap()
    };
    let out = scratch.path().join("out");
    let verbs = [
        &["show"][..],
        &["rotate"],
        &["revoke", "--node", "a"],
        &["issue", "--identity", CART, "--out", out.to_str().unwrap()],
    ];
    // First it may not even look there: that is not said to be no authority, as it would be told to make one.
    for (mode, why) in [(0o700, "Permission denied"), (0o755, "belongs to the user 0")] {
        std::fs::set_permissions(scratch.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        for verb in verbs {
            let output = as_nobody(verb);
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(
                !output.status.success() && text.contains(why) && text.contains("/ca"),
                "{verb:?}: {text}"
            );
            assert!(text.lines().count() == 1 && !text.contains("ca init"), "{verb:?}: {text}");
        }
    }
    assert!(!out.exists());
    // Root itself takes none of another user's, who could be the authority.
    std::os::unix::fs::chown(dir, Some(65_534), None).unwrap();
    for verb in [&["rotate"][..], &["show"]] {
        let error = refused(dir, verb);
        assert!(
            error.contains("belongs to the user 65534") && error.contains("call this as that user"),
            "{error}"
        );
    }
}

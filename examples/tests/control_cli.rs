//! `ambient control` as a process: tokens, and serving until told to stop.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{self, Command, Output, Stdio},
    sync::Arc,
    time::Duration,
};

use ambient_control::{
    IssueError, Issuer, Source,
    ca::DirectoryCa,
    istiod::{Asker, Certificates, CertificatesConfig, Endpoint, Membership, MembershipConfig, Reports, Roots, State, StateConfig, Token},
};
use ambient_core::TrustDomain;
use tokio::time::{sleep, timeout};

const POD: &str = r"
apiVersion: v1
kind: Pod
metadata: { name: cart-0, namespace: shop, uid: 2f1c, labels: { istio.io/dataplane-mode: ambient } }
spec: { nodeName: node-1, serviceAccountName: cart }
status: { podIPs: [{ ip: 10.0.1.2 }] }
";

#[expect(clippy::unwrap_used, reason = "a test's own helper")]
fn control(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ambient"))
        .arg("control")
        .args(arguments)
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn tokens_are_made_listed_and_revoked() {
    let scratch = tempfile::tempdir().unwrap();
    let ca = scratch.path().to_str().unwrap();
    // A directory that was named by mistake is told, and nothing is put there.
    for arguments in [&["token", "node-1"][..], &["tokens"], &["revoke", "x"], &["revoke", "--node", "x"]] {
        let refused = control(&[arguments, &["--ca", ca]].concat());
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && text.contains("there is no authority here"), "{text}");
    }
    assert_eq!(std::fs::read_dir(ca).unwrap().count(), 0);
    DirectoryCa::open(ca, TrustDomain::default(), DirectoryCa::DEFAULT_TTL).unwrap();
    for days in ["0", "3651", "x"] {
        let refused = control(&["token", "node-1", "--days", days, "--ca", ca]);
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(refused.status.code() == Some(2) && text.contains("--days"), "{text}");
    }
    let token = said(&control(&["token", "node-1", "--ca", ca]));
    let (id, _) = token.strip_prefix("ambient-").unwrap().split_once('.').unwrap();
    let listed = said(&control(&["tokens", "--ca", ca]));
    assert!(
        listed.contains(id) && listed.contains("node-1") && listed.contains(" days "),
        "{listed}"
    );
    let shown: serde_json::Value = serde_json::from_str(&said(&control(&["tokens", "--json", "--ca", ca]))).unwrap();
    assert_eq!(
        (&shown["tokens"][0]["id"], &shown["tokens"][0]["node"]),
        (&id.into(), &"node-1".into())
    );
    assert_eq!(
        (&shown["tokens"][0]["once"], &shown["certificates"]),
        (&false.into(), &serde_json::json!([]))
    );
    assert!(said(&control(&["revoke", id, "--ca", ca])).contains("revoked"));
    let again = control(&["revoke", id, "--ca", ca]);
    assert!(!again.status.success());
    assert_eq!(
        String::from_utf8_lossy(&again.stderr).trim(),
        format!("ambient control: there is no token {id}: `ambient control tokens` lists those that are good")
    );
    said(&control(&["token", "node-2", "--once", "--ca", ca]));
    let listed = said(&control(&["tokens", "--ca", ca]));
    assert!(listed.contains("node-2") && listed.contains("once"), "{listed}");
    let revoked = said(&control(&["revoke", "--node", "node-2", "--ca", ca]));
    assert!(revoked.contains("node-2: 1 tokens and 0 certificates revoked"), "{revoked}");
    let again = control(&["revoke", "--node", "node-2", "--ca", ca]);
    assert!(
        String::from_utf8_lossy(&again.stderr).contains("no node node-2 is known"),
        "{again:?}"
    );
    let odd = control(&["token", "a/b", "--ca", ca]);
    assert!(
        String::from_utf8_lossy(&odd.stderr).contains("\"a/b\" is no name of a node"),
        "{odd:?}"
    );
    let long = control(&["token", &"n".repeat(300), "--ca", ca]);
    assert!(String::from_utf8_lossy(&long.stderr).contains("253 at most"), "{long:?}");
    let nothing = control(&[]);
    assert!(!nothing.status.success());
    // One that nobody could see is good for nobody.
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut unseen = Command::new(env!("CARGO_BIN_EXE_ambient"));
    unseen.args(["control", "token", "node-3", "--ca", ca]).stdout(full);
    let unseen = unseen.output().unwrap();
    let text = String::from_utf8_lossy(&unseen.stderr).into_owned();
    assert!(!unseen.status.success() && text.contains("it is taken back"), "{text}");
    let listed = said(&control(&["tokens", "--ca", ca]));
    assert!(!listed.contains("node-3"), "{listed}");
}

/// As in a pipe whose other end has failed: it would be good for thirty days, and whoever wanted it makes another.
#[test]
fn a_token_that_nobody_reads_is_taken_back() {
    let scratch = tempfile::tempdir().unwrap();
    let ca = scratch.path().to_str().unwrap();
    DirectoryCa::open(ca, TrustDomain::default(), DirectoryCa::DEFAULT_TTL).unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(env!("CARGO_BIN_EXE_ambient"));
    let command = command.args(["control", "token", "node-1", "--ca", ca]).stdout(writer);
    let output = command.stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && why.contains("it is taken back"), "{why}");
    let listed = said(&control(&["tokens", "--ca", ca]));
    assert!(!listed.contains("node-1"), "{listed}");
    // Neither is one made where anybody may put another authority.
    std::fs::set_permissions(scratch.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let refused = control(&["token", "node-1", "--ca", ca]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("0777"), "{refused:?}");
}

#[test]
fn a_fault_of_the_manifests_is_logged_once() {
    let scratch = tempfile::tempdir().unwrap();
    let (mesh, ca) = (scratch.path().join("mesh"), scratch.path().join("ca"));
    std::fs::create_dir(&mesh).unwrap();
    std::fs::write(mesh.join("pod.yaml"), POD).unwrap();
    let mut child = Child(
        Command::new(env!("CARGO_BIN_EXE_ambient"))
            .args(["control", "--listen", "127.0.0.1:0", "--mesh"])
            .arg(&mesh)
            .arg("--ca")
            .arg(&ca)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    // Whatever comes before a line is there once that is; the process ends with the test, and so do its lines.
    let mut log = BufReader::new(child.0.stdout.take().unwrap()).lines();
    let mut before = |words: &str| {
        let mut lines = Vec::new();
        loop {
            let line = log.next().unwrap().unwrap();
            let found = line.contains(words);
            lines.push(line);
            if found {
                return lines;
            }
        }
    };
    before("serving");
    for file in ["first.yaml", "second.yaml"] {
        std::fs::write(mesh.join(file), "garbage: [").unwrap();
        let lines = before(file);
        let of_first = lines.iter().filter(|line| line.contains("first.yaml")).count();
        assert_eq!(of_first, usize::from(file == "first.yaml"), "{lines:#?}");
    }
}

#[tokio::test]
async fn a_node_lives_on_it() {
    let scratch = tempfile::tempdir().unwrap();
    let (mesh, ca) = (scratch.path().join("mesh"), scratch.path().join("ca"));
    std::fs::create_dir(&mesh).unwrap();
    std::fs::write(mesh.join("pod.yaml"), POD).unwrap();
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let mut child = Child(
        Command::new(env!("CARGO_BIN_EXE_ambient"))
            .args(["control", "--mesh", &path(&mesh), "--ca", &path(&ca), "--listen", "127.0.0.1:0"])
            .args(["--metrics", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let mut log = BufReader::new(child.0.stdout.take().unwrap()).lines();
    let ports = tokio::task::spawn_blocking(move || {
        let mut port = |words: &str| {
            let line = log.find(|line| line.as_ref().is_ok_and(|l| l.contains(words))).unwrap().unwrap();
            let digits = line.split("127.0.0.1:").nth(1).unwrap().chars().take_while(char::is_ascii_digit);
            digits.collect::<String>()
        };
        let ports = [port("/metrics"), port("serving")];
        // Whoever reads no more would stop it.
        std::thread::spawn(move || log.for_each(drop));
        ports
    });
    let [metrics, port] = timeout(Duration::from_secs(30), ports).await.expect("it serves in time").unwrap();
    let token = said(&control(&["token", "node-1", "--ca", &path(&ca)]));
    let endpoint = Endpoint {
        roots: Roots::File(ca.join("root.pem")),
        token: Some(Token::Literal(token)),
        ..Endpoint::new(&format!("https://localhost:{port}"), Arc::new(ambient_tls::provider()))
    };
    let mut state = State::connect(StateConfig::new(endpoint.clone(), Asker::default())).unwrap();
    let mut next = async || {
        timeout(Duration::from_secs(20), state.next())
            .await
            .expect("a batch in time")
            .unwrap()
    };
    while !next().await.synced {}
    let identity = "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap();
    let certificates = Certificates::new(CertificatesConfig::new(endpoint.clone())).unwrap();
    assert_eq!(certificates.issue(&identity).await.unwrap().identity, identity);
    let other = "spiffe://cluster.local/ns/shop/sa/other".parse().unwrap();
    assert!(matches!(certificates.issue(&other).await, Err(IssueError::Refused { .. })));
    // What it says it has captured stands in the directory, and comes back as a change of the mesh.
    Reports::new(endpoint.clone())
        .unwrap()
        .report(&"2f1c".into(), &["10.0.1.2".parse().unwrap()], true)
        .await
        .unwrap();
    assert!(std::fs::read_to_string(mesh.join("status/node-1.json")).unwrap().contains("2f1c"));
    assert_eq!(next().await.changes.len(), 1);

    // It is one of those that it knows, until it is revoked.
    let member = Arc::new(Membership::start(MembershipConfig::new(endpoint.clone(), "node-1")).unwrap());
    let endpoint = Endpoint {
        token: None,
        membership: Some(member),
        ..endpoint
    };
    let mut state = State::connect(StateConfig::new(endpoint, Asker::default())).unwrap();
    let mut next = async || {
        timeout(Duration::from_secs(20), state.next())
            .await
            .expect("a batch in time")
            .unwrap()
    };
    while !next().await.synced {}
    let listed = said(&control(&["tokens", "--ca", &path(&ca)]));
    assert_eq!(listed.lines().filter(|line| line.contains("node-1")).count(), 2, "{listed}");
    let revoked = Command::new(env!("CARGO_BIN_EXE_ambient"))
        .args(["ca", "revoke", "--node", "node-1", "--ca", &path(&ca)])
        .output()
        .unwrap();
    assert!(said(&revoked).contains("1 tokens and 1 certificates revoked"), "{revoked:?}");
    // By its entry among those that are known, or by the list that names its certificate: whichever is seen first.
    while !next().await.faults.iter().any(|fault| fault.what.contains("revoked")) {}
    let scraped = tokio::task::spawn_blocking(move || {
        use std::io::{Read as _, Write as _};
        let mut stream = std::net::TcpStream::connect(format!("127.0.0.1:{metrics}")).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    });
    let scraped = timeout(Duration::from_secs(20), scraped).await.expect("an answer in time").unwrap();
    for line in [
        "ambient_control_refusals_total{reason=\"identity\"} 1",
        "ambient_control_node_certificates_total 1",
    ] {
        assert!(scraped.contains(line), "{line}: {scraped}");
    }

    rustix::process::kill_process(rustix::process::Pid::from_child(&child.0), rustix::process::Signal::TERM).unwrap();
    for _ in 0..200 {
        if child.0.try_wait().unwrap().is_some_and(|status| status.success()) {
            return;
        }
        sleep(Duration::from_millis(50)).await;
    }
    panic!("it does not end when told to");
}

/// It ends with the test, also where that fails.
struct Child(process::Child);

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

//! What others than its owner may write to is not read, and what was read before stays.

use std::os::unix::fs::PermissionsExt as _;

use super::*;

impl Fixture {
    fn chmod(&self, name: &str, mode: u32) {
        fs::set_permissions(self.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
}

#[test]
fn a_manifest_that_others_may_write_to_is_refused() {
    let mut f = Fixture::new();
    f.write(
        "a.yaml",
        &format!("{}---\n{}", pod("cart", "u1", "10.0.0.1"), deny("no", "10.9.0.0/16")),
    );
    f.looks();
    for mode in [0o664, 0o666, 0o602] {
        // Whoever may write to it has.
        f.write("a.yaml", &pod("theirs", "u2", "10.0.0.2"));
        f.chmod("a.yaml", mode);
        f.looks();
        let [fault] = &f.faults[..] else { panic!("{:?}", f.faults) };
        for part in ["a.yaml", &format!("mode {mode:04o}"), "chmod go-w", "last good "] {
            assert!(fault.contains(part), "{part}: {fault}");
        }
        assert!(f.pod("cart").is_some() && f.pod("theirs").is_none());
        assert_eq!(f.policies.len(), 1, "a policy that it held holds");
        assert_eq!(f.looks(), 0, "it is told once");
    }
    f.write("a.yaml", &pod("mended", "u3", "10.0.0.3"));
    f.chmod("a.yaml", 0o644);
    f.looks();
    assert!(f.faults.is_empty(), "{:?}", f.faults);
    assert!(f.pod("mended").is_some() && f.pod("cart").is_none());
}

/// It might have said any policy.
#[test]
fn one_that_was_never_its_owners_alone_refuses_until_it_is() {
    let mut f = Fixture::new();
    f.write("a.yaml", &pod("cart", "u1", "10.0.0.1"));
    f.write("b.yaml", &pod("theirs", "u2", "10.0.0.2"));
    f.chmod("b.yaml", 0o666);
    f.looks();
    let why = f.policies["manifests//b.yaml"].as_ref().unwrap_err();
    assert!(why.contains("b.yaml") && why.contains("chmod go-w"), "{why}");
    assert!(f.pod("cart").is_some() && f.pod("theirs").is_none());
    f.chmod("b.yaml", 0o600);
    f.looks();
    assert!(f.policies.is_empty() && f.faults.is_empty());
    assert!(f.pod("theirs").is_some());
}

/// A report can have a captured pod spoken to in plaintext.
#[test]
fn what_others_may_report_is_not_believed() {
    let report = |withdrawn: &str| format!("{{\"node\": \"node-1\", \"pods\": {{}}, \"withdrawn\": [{withdrawn}]}}");
    for (at, well, bad) in [("status/node-1.json", 0o644, 0o666), ("status", 0o755, 0o777)] {
        let mut f = Fixture::new();
        f.write("a.yaml", &pod("cart", "u1", "10.0.0.1"));
        fs::create_dir(f.path().join("status")).unwrap();
        f.chmod("status", 0o755);
        f.write(
            "status/node-1.json",
            "{\"node\": \"node-1\", \"pods\": {\"u1\": {\"ips\": []}}, \"withdrawn\": []}",
        );
        f.looks();
        assert!(f.captured("cart"));
        f.write("status/node-1.json", &report("\"u1\""));
        f.chmod(at, bad);
        f.looks();
        assert!(f.captured("cart"), "{at}");
        let [fault] = &f.faults[..] else { panic!("{:?}", f.faults) };
        assert!(
            fault.contains(at) && fault.contains("chmod go-w") && fault.contains("in force"),
            "{fault}"
        );
        f.chmod(at, well);
        f.looks();
        assert!(!f.captured("cart") && f.faults.is_empty(), "{at}: {:?}", f.faults);
    }
}

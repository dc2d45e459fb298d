use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

use ambient_authz::{Policies, Scope, policy, policy::Fallback};
use ambient_core::{Mesh, PodUid, TunnelProtocol, Workload, mesh};
use proptest::prelude::*;
use tokio::time;

use super::*;
use crate::{Change, Fault};

#[cfg(feature = "serve")]
mod gone;
mod kinds;
mod owners;

/// A directory, and what its changes add up to.
struct Fixture {
    scratch: tempfile::TempDir,
    directory: Directory,
    mesh: Mesh,
    /// `Ok` for a policy, `Err` for what cannot be read and has no good version.
    policies: BTreeMap<String, Result<(), String>>,
    /// As a node takes them.
    engine: Policies,
    faults: Vec<String>,
}

impl Fixture {
    fn new() -> Self {
        Self::configured(|_| {})
    }

    fn configured(configure: impl FnOnce(&mut Config)) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let mut config = Config::new(scratch.path());
        configure(&mut config);
        let (dir, settings, _) = config.into_parts();
        Self {
            scratch,
            directory: Directory::new(dir, settings),
            mesh: Mesh::default(),
            policies: BTreeMap::new(),
            engine: Policies::default(),
            faults: Vec::new(),
        }
    }

    fn path(&self) -> &Path {
        self.scratch.path()
    }

    fn write(&self, name: &str, content: &str) {
        fs::write(self.path().join(name), content).unwrap();
    }

    /// One look; how many changes it brought.
    fn look(&mut self) -> usize {
        self.directory.look();
        let Some(batch) = self.directory.batch(false) else { return 0 };
        self.faults = batch.faults.iter().map(|f: &Fault| f.what.clone()).collect();
        let count = batch.changes.len();
        for change in batch.changes {
            if let Change::Policy(update) = &change {
                self.engine = self.engine.apply([update.clone()]);
            }
            match change {
                Change::Mesh(update) => self.mesh = self.mesh.apply([update]),
                Change::Policy(policy::Update::Set(p)) => drop(self.policies.insert(p.key.to_string(), Ok(()))),
                Change::Policy(policy::Update::Unreadable(u)) => {
                    let told = self.policies.entry(u.key.to_string()).or_insert_with(|| Err(String::new()));
                    if let Err(error) = told {
                        error.clone_from(&u.error);
                    }
                }
                Change::Policy(policy::Update::Remove(key)) => drop(self.policies.remove(key.as_str())),
                other => panic!("a directory of manifests never says {other:?}"),
            }
        }
        count
    }

    fn looks(&mut self) -> usize {
        self.look() + self.look()
    }

    fn pod(&self, name: &str) -> Option<&Workload> {
        self.mesh
            .workload(&format!("Kubernetes//Pod/shop/{name}").as_str().into())
            .map(AsRef::as_ref)
    }

    fn captured(&self, name: &str) -> bool {
        self.pod(name).unwrap().tunnel == TunnelProtocol::Hbone
    }
}

fn pod(name: &str, uid: &str, ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: shop\n  uid: {uid}\n  labels:\n    app: {name}\n    \
         istio.io/dataplane-mode: ambient\nspec:\n  nodeName: node-1\nstatus:\n  podIPs:\n  - ip: {ip}\n"
    )
}

fn deny(name: &str, ip: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: {name}\n  namespace: shop\nspec:\n  \
         selector:\n    matchLabels:\n      app: cart\n  action: DENY\n  rules:\n  - from:\n    - source:\n        ipBlocks:\n        \
         - {ip}\n"
    )
}

#[test]
fn a_file_is_taken_by_the_second_look_that_agrees() {
    let mut f = Fixture::new();
    f.look();
    f.write("a.yaml", &pod("cart", "u1", "10.0.0.1"));
    assert_eq!(f.look(), 0);
    f.write("a.yaml", &pod("cart", "u1", "10.0.0.11"));
    assert_eq!(f.look(), 0, "changed between the looks");
    assert_eq!(f.look(), 1);
    assert!(f.pod("cart").unwrap().ambient);
    f.write("b.yaml", "# others\n");
    assert_eq!(f.looks(), 0);
    fs::remove_file(f.path().join("a.yaml")).unwrap();
    assert_eq!(f.look(), 0);
    assert_eq!(f.look(), 1);
    assert!(f.pod("cart").is_none());
}

/// What goes one by one is removed; where all of it goes at once that is told, and nothing is taken from the mesh.
#[test]
fn a_directory_that_is_emptied_at_once_keeps_what_it_held() {
    let mut f = Fixture::new();
    let all = [("a.yaml", pod("cart", "u1", "10.0.0.1")), ("b.yaml", deny("no", "10.9.0.1"))];
    for (name, text) in &all {
        f.write(name, text);
    }
    f.looks();
    assert!(f.pod("cart").is_some() && f.policies.len() == 1);
    for (name, _) in &all {
        fs::remove_file(f.path().join(name)).unwrap();
    }
    f.looks();
    assert!(f.pod("cart").is_some() && f.policies.len() == 1);
    let [fault] = &f.faults[..] else { panic!("{:?}", f.faults) };
    assert!(
        fault.contains("none of its manifests is there any more") && fault.contains("stays in force"),
        "{fault}"
    );
    // One that says that nothing is meant, and all of it goes.
    f.write("c.json", r#"{"apiVersion": "v1", "kind": "List", "items": []}"#);
    f.looks();
    assert!(
        f.pod("cart").is_none() && f.policies.is_empty() && f.faults.is_empty(),
        "{:?}",
        f.faults
    );
    for (name, text) in &all {
        f.write(name, text);
    }
    f.looks();
    for name in ["b.yaml", "a.yaml", "c.json"] {
        fs::remove_file(f.path().join(name)).unwrap();
        f.looks();
    }
    assert!(
        f.pod("cart").is_none() && f.policies.is_empty() && f.faults.is_empty(),
        "{:?}",
        f.faults
    );
}

#[test]
fn a_file_that_became_empty_is_told_and_keeps_what_it_held() {
    let mut f = Fixture::new();
    f.write("b.yaml", &deny("no", "10.9.0.1"));
    f.write("a.yaml", &pod("cart", "u1", "10.0.0.1"));
    f.looks();
    f.write("a.yaml", "  \n");
    f.looks();
    let [fault] = &f.faults[..] else { panic!("{:?}", f.faults) };
    assert!(
        fault.contains("a.yaml: became empty") && fault.contains("its last good content stays in force"),
        "{fault}"
    );
    assert!(f.pod("cart").is_some());
    f.write("a.yaml", &pod("cart", "u1", "10.0.0.1"));
    f.looks();
    assert!(f.faults.is_empty() && f.pod("cart").is_some());
    f.write("a.yaml", "");
    f.looks();
    fs::remove_file(f.path().join("a.yaml")).unwrap();
    f.looks();
    assert!(f.faults.is_empty() && f.pod("cart").is_none());
}

#[test]
fn only_manifests_are_read() {
    let mut f = Fixture::new();
    for name in ["a.txt", ".b.yaml", "yaml", "c.yaml~", "d.YAML"] {
        f.write(name, "not: [a manifest");
    }
    fs::create_dir(f.path().join("dir.yaml")).unwrap();
    fs::create_dir(f.path().join("sub")).unwrap();
    f.write("sub/e.yaml", "not: [a manifest");
    f.looks();
    assert!(f.faults.is_empty() && f.policies.is_empty());
    assert!(f.directory.is_settled());
    f.write(
        "g.json",
        r#"{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"shop"}}]}"#,
    );
    f.write(
        "h.yml",
        &format!("{}---\n---\n{}", pod("a", "u1", "10.0.0.1"), pod("b", "u2", "10.0.0.2")),
    );
    f.looks();
    assert!(f.pod("a").is_some() && f.pod("b").is_some() && f.faults.is_empty());
}

#[test]
fn the_last_good_content_stays() {
    let mut f = Fixture::new();
    let both = format!("{}---\n{}", pod("cart", "u1", "10.0.0.1"), deny("no", "10.9.0.0/16"));
    f.write("a.yaml", &both);
    f.looks();
    assert_eq!(f.pod("cart").unwrap().policies, ["shop/no".into()]);
    for (bad, place) in [
        (both.replace("nodeName: node-1", "nodeName: 7"), "a.yaml:11: spec.nodeName: "),
        (both.replace("  name: cart\n", ""), "a.yaml:4: metadata.name: is missing"),
        (both.replace("10.0.0.1", "10.0.0.1.1"), "a.yaml:14: status.podIPs[0].ip: "),
        (
            both.replace("security.istio.io/v1", "security.istio.io/v9"),
            "a.yaml:16: apiVersion: ",
        ),
        (format!("{both}---\nkind: Pod\n"), "a.yaml:32: apiVersion: is missing"),
        (format!("{both}---\n- 1\n"), "a.yaml:32: a Kubernetes object"),
        (format!("{both}---\n\t{{"), "a.yaml:"),
        ("\0\u{1}".into(), "a.yaml:1: "),
    ] {
        f.write("a.yaml", &bad);
        f.looks();
        assert_eq!(f.faults.len(), 1, "{bad}");
        assert!(f.faults[0].contains(place), "{}", f.faults[0]);
        assert!(f.faults[0].contains("last good "), "{}", f.faults[0]);
        assert!(f.pod("cart").is_some());
        assert_eq!(f.policies.len(), 1);
    }
    // Empty is no content, and no mending.
    f.write("a.yaml", "");
    f.looks();
    assert!(f.pod("cart").is_some());
    f.write("a.yaml", &both);
    assert_eq!(f.looks(), 0);
    assert!(f.faults.is_empty());
    f.write("a.yaml", "\n");
    f.looks();
    assert!(f.pod("cart").is_some() && f.faults.len() == 1);
    f.write("a.yaml", "# nothing, on purpose\n");
    f.looks();
    assert!(f.pod("cart").is_none());
}

#[test]
fn a_late_file_that_never_was_good_refuses() {
    let mut f = Fixture::new();
    f.write("a.yaml", &pod("cart", "u1", "10.0.0.1"));
    f.looks();
    for end in ["mended", "removed"] {
        f.write("b.yaml", "kind: [");
        f.looks();
        assert!(f.policies["manifests//b.yaml"].as_ref().unwrap_err().contains("b.yaml:1"));
        assert!(f.faults[0].contains("refused until"), "{:?}", f.faults);
        f.write("b.yaml", "");
        f.looks();
        assert_eq!(f.policies.len(), 1, "empty is not mended");
        match end {
            "mended" => f.write("b.yaml", &pod("stock", "u2", "10.0.0.2")),
            _ => fs::remove_file(f.path().join("b.yaml")).unwrap(),
        }
        f.looks();
        assert!(f.policies.is_empty() && f.faults.is_empty());
        let _ = fs::remove_file(f.path().join("b.yaml"));
        f.looks();
    }
}

#[test]
fn a_file_that_began_empty_was_never_good() {
    let mut f = Fixture::new();
    f.write("a.yaml", &pod("cart", "u1", "10.0.0.1"));
    f.write("deep.yaml", "");
    f.looks();
    assert!(f.policies.is_empty() && f.faults.is_empty());
    f.write("deep.yaml", "kind: [");
    f.looks();
    assert!(f.policies["manifests//deep.yaml"].is_err());
    assert!(f.faults[0].contains("refused until"), "{:?}", f.faults);
    // What is empty on purpose is good, and stays in force.
    f.write("deep.yaml", "# nothing\n");
    f.looks();
    assert!(f.policies.is_empty() && f.faults.is_empty());
    f.write("deep.yaml", "kind: [");
    f.looks();
    assert!(f.policies.is_empty() && f.faults[0].contains("last good content"), "{:?}", f.faults);
}

#[test]
fn an_unreadable_value_refuses_its_scope() {
    let mut f = Fixture::new();
    f.write("a.yaml", &pod("cart", "u1", "10.0.0.1"));
    f.write("b.yaml", &format!("# one\n{}", deny("no", "10.9.0.0/99")));
    f.looks();
    assert!(f.policies["shop/no"].is_err());
    assert_eq!(f.pod("cart").unwrap().policies, ["shop/no".into()]);
    assert!(
        f.faults[0].contains("b.yaml:16: spec.rules[0].from[0].source.ipBlocks[0]: "),
        "{}",
        f.faults[0]
    );
    f.write("b.yaml", &deny("no", "10.9.0.0/16"));
    f.looks();
    assert!(f.policies["shop/no"].is_ok() && f.faults.is_empty());
    let good = f.engine.policy(&"shop/no".into());
    assert!(good.is_some());
    // Made unreadable again it keeps its last good version, attached as that was, and says so.
    for bad in [deny("no", "[1, 2]"), deny("no", "10.9.0.0/99").replace("app: cart", "app: other")] {
        f.write("b.yaml", &bad);
        f.looks();
        assert_eq!(f.engine.fallback(&"shop/no".into()), Some(Fallback::LastGood));
        assert_eq!(f.engine.policy(&"shop/no".into()), good);
        assert_eq!(f.pod("cart").unwrap().policies, ["shop/no".into()]);
        assert!(
            f.faults[0].contains("b.yaml:15: spec.rules[0].from[0].source.ipBlocks"),
            "{}",
            f.faults[0]
        );
        assert!(
            f.faults[0].ends_with("shop/no: its last good version stays in force"),
            "{}",
            f.faults[0]
        );
    }
    // Withdrawn, it has no good version any more.
    fs::remove_file(f.path().join("b.yaml")).unwrap();
    f.looks();
    assert!(f.engine.is_empty() && f.faults.is_empty() && f.pod("cart").unwrap().policies.is_empty());
    f.write("b.yaml", &deny("no", "10.9.0.0/99"));
    f.looks();
    assert_eq!(f.engine.fallback(&"shop/no".into()), Some(Fallback::Refusal));
}

#[test]
fn policies_are_read_as_the_directory_is_configured() {
    let principal = deny("no", "x")
        .replace("ipBlocks", "principals")
        .replace("- x", "- old.example/ns/shop/sa/cart");
    let read = |configure: &dyn Fn(&mut Config), content: &str| {
        let scratch = tempfile::tempdir().unwrap();
        let mut config = Config::new(scratch.path());
        configure(&mut config);
        let (dir, settings, _) = config.into_parts();
        let mut directory = Directory::new(dir, settings);
        fs::write(scratch.path().join("a.yaml"), content).unwrap();
        directory.look();
        directory.look();
        let changes = directory.batch(true).unwrap().changes.into_iter();
        let updates = changes.filter_map(|change| match change {
            Change::Policy(update) => Some(update),
            _ => None,
        });
        Policies::default().apply(updates)
    };
    let plain = |_: &mut Config| {};
    let principals = |policies: &Policies| {
        policies.policy(&"shop/no".into()).unwrap().rules[0].clauses[0].matches[0]
            .principals
            .len()
    };
    assert_eq!(principals(&read(&plain, &principal)), 1);
    let aliased = |config: &mut Config| config.trust_domain_aliases = vec!["old.example".parse().unwrap()];
    assert_eq!(principals(&read(&aliased, &principal)), 2, "the domain's own name, and the other");

    let both = |config: &mut Config| {
        aliased(config);
        config.istio_exact = true;
    };
    assert_eq!(principals(&read(&both, &principal)), 1, "Istio knows no other names");

    // Istio drops a value that it cannot read, and with it what the rule asks for.
    let unreadable = deny("no", "10.9.0.0/99");
    assert!(read(&plain, &unreadable).is_empty());
    let exact = |config: &mut Config| config.istio_exact = true;
    assert_eq!(read(&exact, &unreadable).unreadable().count(), 0);

    let whole = deny("no", "10.0.0.0/8").replace("  selector:\n    matchLabels:\n      app: cart\n", "");
    let scope = |policies: Policies| policies.policy(&"shop/no".into()).unwrap().scope;
    assert_eq!(scope(read(&plain, &whole)), Scope::Namespace);
    let root = |config: &mut Config| config.root_namespace = "shop".into();
    assert_eq!(scope(read(&root, &whole)), Scope::Global);
}

/// Whatever it is, and whether or not it can be read; also one that had counted before it was labelled otherwise.
#[test]
fn what_is_for_another_revision_has_no_effect() {
    let labelled = |policy: &str| {
        let policy = policy.replace("metadata: {", "metadata: { labels: { istio.io/rev: canary },");
        policy.replace("metadata:\n", "metadata:\n  labels: { istio.io/rev: canary }\n")
    };
    let strict = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: { name: strict, namespace: istio-system }\n\
                  spec: { mtls: { mode: STRICT } }\n";
    let not_even_a_map = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: { name: no, namespace: shop }\n\
                          spec: 7\n";
    for (policy, key) in [
        (deny("no", "10.9.0.0/16"), "shop/no"),
        (deny("no", "10.9.0.0/99"), "shop/no"),
        (strict.into(), "istio-system/istio_converted_static_strict"),
        (not_even_a_map.into(), "shop/no"),
    ] {
        assert_ne!(labelled(&policy), policy);
        for (own, counts) in [(None, true), (Some("canary"), true), (Some("stable"), false)] {
            let mut f = Fixture::configured(|config| config.revision = own.map(Into::into));
            let known = |f: &Fixture| f.engine.policy(&key.into()).is_some() || f.engine.fallback(&key.into()).is_some();
            f.write("a.yaml", &policy);
            f.looks();
            assert!(known(&f), "{policy}");
            f.write("a.yaml", &labelled(&policy));
            f.looks();
            assert_eq!(known(&f), counts, "{own:?} {policy}");
        }
    }
}

#[test]
fn the_first_of_two_counts() {
    let mut f = Fixture::new();
    f.write("b.yaml", &pod("cart", "u1", "10.0.0.1"));
    f.looks();
    f.write("a.yaml", &format!("{}---\n{0}", pod("cart", "u1", "10.0.0.2")));
    f.looks();
    assert_eq!(f.pod("cart").unwrap().addresses, ["10.0.0.1".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(f.faults.len(), 2, "{:?}", f.faults);
    assert!(
        f.faults[0].contains("a.yaml:16: metadata.name: Pod shop/cart stands further up"),
        "{:?}",
        f.faults
    );
    assert!(
        f.faults[1].contains("a.yaml:4: metadata.name: Pod shop/cart stands in b.yaml"),
        "{:?}",
        f.faults
    );
    fs::remove_file(f.path().join("b.yaml")).unwrap();
    f.looks();
    assert_eq!(f.pod("cart").unwrap().addresses, ["10.0.0.2".parse::<std::net::IpAddr>().unwrap()]);
    // Under another name it is the same object: nothing changes.
    fs::rename(f.path().join("a.yaml"), f.path().join("c.yaml")).unwrap();
    assert_eq!(f.looks(), 0);
    f.write("d.yaml", &pod("twin", "u1", "10.0.0.3"));
    f.looks();
    assert_eq!(f.pod("twin").unwrap().pod, None);
    assert!(
        f.faults
            .iter()
            .any(|what| what.contains("d.yaml:6: metadata.uid: Pod shop/twin has the UID of Pod shop/cart")),
        "{:?}",
        f.faults
    );
}

#[test]
fn a_report_that_begins_anew_takes_nothing_back() {
    let mut f = Fixture::new();
    f.write("a.yaml", &pod("cart", "u1", "10.0.0.1"));
    f.write("b.yaml", &pod("stock", "u2", "10.0.0.2"));
    fs::create_dir(f.path().join("status")).unwrap();
    let entry = "{\"ips\": []}";
    let report = |pods: &str, withdrawn: &str| format!("{{\"node\": \"node-1\", \"pods\": {{{pods}}}, \"withdrawn\": [{withdrawn}]}}");
    let (one, two) = (format!("\"u1\": {entry}"), format!("\"u2\": {entry}"));
    f.write("status/node-1.json", &report(&format!("{one}, {two}"), ""));
    f.looks();
    assert!(f.captured("cart") && f.captured("stock"));
    // The file was lost, and a node that has started again fills it pod by pod.
    fs::remove_file(f.path().join("status/node-1.json")).unwrap();
    f.looks();
    f.write("status/node-1.json", &report(&one, ""));
    f.looks();
    assert!(f.captured("cart") && f.captured("stock"));
    f.write("status/node-1.json", &report(&one, "\"u2\""));
    f.looks();
    assert!(f.captured("cart") && !f.captured("stock"));
    f.write("status/node-1.json", &report("", "\"u1\", \"u2\""));
    f.looks();
    assert!(!f.captured("cart") && !f.captured("stock"));
}

#[test]
fn what_was_known_of_other_nodes_outlives_a_restart() {
    let mut f = Fixture::new();
    f.directory.remember("node-2");
    f.write("a.yaml", &pod("cart", "u1", "10.0.0.1"));
    f.looks();
    fs::create_dir(f.path().join("status")).unwrap();
    f.write(
        "status/node-1.json",
        "{\"node\": \"node-1\", \"pods\": {\"u1\": {\"ips\": []}}, \"withdrawn\": []}",
    );
    f.looks();
    assert!(f.captured("cart"));
    // Lost while the reader is down; found begun anew, and then without the pod.
    for content in [None, Some("{\"node\": \"node-1\", \"pods\": {}, \"withdrawn\": []}")] {
        let _ = fs::remove_file(f.path().join("status/node-1.json"));
        if let Some(content) = content {
            f.write("status/node-1.json", content);
        }
        let (dir, settings, _) = Config::new(f.path()).into_parts();
        f.directory = Directory::new(dir, settings);
        f.directory.remember("node-2");
        f.mesh = Mesh::default();
        f.looks();
        assert!(f.captured("cart"), "{content:?}");
    }
    f.write(
        "status/node-1.json",
        "{\"node\": \"node-1\", \"pods\": {}, \"withdrawn\": [\"u1\"]}",
    );
    f.looks();
    assert!(!f.captured("cart"));
}

#[test]
fn captured_by_its_own_node_until_that_says_otherwise() {
    let mut f = Fixture::new();
    f.write("a.yaml", &pod("cart", "u1", "10.0.0.1"));
    fs::create_dir(f.path().join("status")).unwrap();
    let report = |node: &str, uids: &[&str]| {
        let pods: Vec<_> = uids.iter().map(|uid| format!("{uid:?}: {{\"ips\": []}}")).collect();
        format!("{{\"node\": {node:?}, \"pods\": {{{}}}}}", pods.join(","))
    };
    f.write("status/node-2.json", &report("node-2", &["u1"]));
    f.looks();
    assert!(!f.captured("cart"), "not by another node");
    f.write("status/node-1.json", &report("node-1", &["u1"]));
    assert_eq!(f.look(), 1, "one look is enough");
    assert!(f.captured("cart"));
    for torn in [
        "",
        "{\"node\": \"node-1\", \"pods\": {",
        "[]",
        "{\"node\":\"node-1\"}",
        &report("node-3", &[]),
    ] {
        f.write("status/node-1.json", torn);
        f.looks();
        assert!(f.captured("cart"), "{torn}");
        assert!(f.faults.len() == 1 && f.faults[0].contains("status/node-1.json"), "{:?}", f.faults);
    }
    fs::remove_file(f.path().join("status/node-1.json")).unwrap();
    f.looks();
    assert!(f.captured("cart") && f.faults.is_empty());
    fs::remove_dir_all(f.path().join("status")).unwrap();
    f.looks();
    assert!(f.captured("cart"));
    // Another pod of the same name is another pod.
    f.write("a.yaml", &pod("cart", "u2", "10.0.0.1"));
    f.looks();
    assert!(!f.captured("cart"));
    f.write("a.yaml", &pod("cart", "u1", "10.0.0.1"));
    f.looks();
    assert!(f.captured("cart"));
    fs::create_dir(f.path().join("status")).unwrap();
    f.write("status/node-1.json", &report("node-1", &[]));
    f.look();
    assert!(!f.captured("cart"));
}

#[test]
fn a_report_that_was_torn_from_the_start_counts_for_all() {
    let mut f = Fixture::new();
    let plain = pod("plain", "u2", "10.0.0.2").replace("dataplane-mode: ambient", "dataplane-mode: none");
    f.write("a.yaml", &format!("{}---\n{plain}", pod("cart", "u1", "10.0.0.1")));
    fs::create_dir(f.path().join("status")).unwrap();
    for torn in ["{", "[]", ""] {
        f.write("status/node-1.json", torn);
        f.looks();
        assert!(f.captured("cart") && !f.captured("plain"));
        assert!(
            f.faults.len() == 1 && f.faults[0].contains("is taken for captured"),
            "{:?}",
            f.faults
        );
    }
    f.write("status/node-1.json", r#"{"node":"node-1","pods":{}}"#);
    f.look();
    assert!(!f.captured("cart") && f.faults.is_empty());
}

#[test]
fn a_directory_that_goes_away_takes_nothing_with_it() {
    let mut f = Fixture::new();
    f.write("a.yaml", &pod("cart", "u1", "10.0.0.1"));
    f.looks();
    let away = f.path().with_extension("away");
    fs::rename(f.path(), &away).unwrap();
    f.looks();
    assert!(f.pod("cart").is_some() && f.faults.len() == 1);
    fs::rename(&away, f.path()).unwrap();
    assert_eq!(f.looks(), 0);
    assert!(f.faults.is_empty());
}

#[tokio::test]
async fn opening_tells_what_to_do() {
    let scratch = tempfile::tempdir().unwrap();
    let error = Manifests::open(Config::new(scratch.path().join("none"))).await.unwrap_err();
    assert!(
        matches!(error, OpenError::Missing { .. }) && error.to_string().contains("make it"),
        "{error}"
    );
    fs::write(scratch.path().join("file"), "").unwrap();
    let error = Manifests::open(Config::new(scratch.path().join("file"))).await.unwrap_err();
    assert!(matches!(error, OpenError::Directory { .. }), "{error}");
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(!error.to_string().contains(&cause), "{error}");
    fs::write(scratch.path().join("a.yaml"), "kind: [").unwrap();
    let error = Manifests::open(Config::new(scratch.path())).await.unwrap_err();
    assert!(error.to_string().contains("a.yaml:1: is neither YAML nor JSON"), "{error}");
    assert!(
        error.to_string().ends_with("take it out of the directory, and start again"),
        "{error}"
    );
    // An object that is not what it must be is its own matter.
    let both = format!("{}---\n{}", pod("cart", "u1", "nonsense"), pod("web", "u2", "10.0.0.2"));
    fs::write(scratch.path().join("a.yaml"), both).unwrap();
    let first = Manifests::open(Config::new(scratch.path())).await.unwrap().next().await.unwrap();
    assert!(first.synced && first.changes.len() == 1);
    let [fault] = &*first.faults else { panic!("{:?}", first.faults) };
    let said = &fault.what;
    assert!(said.contains("a.yaml:14: status.podIPs[0].ip: \"nonsense\""), "{said}");
    assert!(said.contains("Pod shop/cart: it does not count until it is mended"), "{said}");
}

#[tokio::test]
async fn opening_takes_pods_that_were_deleted_meanwhile_out_of_the_own_status() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("pod.yaml"), pod("web", "here", "10.0.0.1")).unwrap();
    let status = Status::open(dir.path(), "node-1").unwrap();
    for uid in ["here", "gone"] {
        status
            .captured(&uid.into(), &["10.0.0.1".parse().unwrap()], UNIX_EPOCH)
            .await
            .unwrap();
    }
    let again = Status::open(dir.path(), "node-1").unwrap();
    let own = Some(again.clone());
    let _source = Manifests::open(Config {
        own,
        ..Config::new(dir.path())
    })
    .await
    .unwrap();
    assert_eq!(again.pods(), ["here".into()]);
    assert_eq!(Status::open(dir.path(), "node-1").unwrap().pods(), ["here".into()]);
}

#[tokio::test]
async fn changes_arrive_and_a_dropped_wait_loses_none() {
    let scratch = tempfile::tempdir().unwrap();
    let mut source = Manifests::open(Config::new(scratch.path())).await.unwrap();
    let first = source.next().await.unwrap();
    assert!(first.synced && first.changes.is_empty() && first.faults.is_empty());
    fs::write(scratch.path().join("a.yaml"), pod("cart", "u1", "10.0.0.1")).unwrap();
    let batch = time::timeout(Duration::from_secs(5), source.next()).await.unwrap().unwrap();
    assert!(matches!(&batch.changes[..], [Change::Mesh(mesh::Update::Workload(w))] if w.tunnel == TunnelProtocol::None));
    let status = Status::open(scratch.path(), "node-1").unwrap();
    let uid = PodUid::from("u1");
    status.captured(&uid, &["10.0.0.1".parse().unwrap()], UNIX_EPOCH).await.unwrap();
    let batch = time::timeout(Duration::from_secs(5), source.next()).await.unwrap().unwrap();
    assert!(matches!(&batch.changes[..], [Change::Mesh(mesh::Update::Workload(w))] if w.tunnel == TunnelProtocol::Hbone));
    // Dropping a wait loses nothing.
    fs::write(scratch.path().join("b.yaml"), pod("stock", "u2", "10.0.0.2")).unwrap();
    let mut waits = 0;
    while time::timeout(Duration::from_millis(20), source.next()).await.is_err() {
        waits += 1;
        assert!(waits < 250);
    }
    status.withdrawn(&uid).await.unwrap();
    let batch = time::timeout(Duration::from_secs(5), source.next()).await.unwrap().unwrap();
    assert!(matches!(&batch.changes[..], [Change::Mesh(mesh::Update::Workload(w))] if w.tunnel == TunnelProtocol::None));
}

/// Manifests with something cut out, put in or doubled.
fn damaged() -> impl Strategy<Value = String> {
    let whole = format!("{}---\n{}", pod("cart", "u1", "10.0.0.1"), deny("no", "10.9.0.0/16"));
    let length = whole.len();
    let piece = prop_oneof![
        "[-\\[\\]{}:,&*!|>'\"%@`# \n\t]{0,6}",
        "\\PC{0,8}",
        Just("null".to_owned()),
        Just("<<: *a".to_owned()),
        Just("&a [*a, *a]".to_owned()),
        Just("9999999999999999999999".to_owned()),
    ];
    (0..length, 0..40usize, piece).prop_map(move |(at, cut, piece)| {
        let end = (at + cut).min(whole.len());
        format!("{}{piece}{}", &whole[..at], &whole[end..])
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn damage_is_read_or_told(text in prop_oneof![damaged(), "\\PC{0,200}", "[-\\[\\]{}:,&*!|>'\"%@`# \n\ta-c0-9]{0,120}"]) {
        if let Err(error) = document::read(text.as_bytes()).unwrap() {
            prop_assert!(!error.why.contains("parser fail"));
            prop_assert!(!error.why.is_empty());
            prop_assert!(!error.to_string().contains('\n'), "{}", error);
            prop_assert!(error.line <= text.lines().count() as u64 + 1, "{}", error);
        }
    }
}

#[test]
fn deep_nesting_and_alias_bombs_end_soon() {
    let refused = |text: &str| {
        let error = document::read(text.as_bytes()).unwrap().unwrap_err();
        assert!(!error.why.contains("parser fail"), "{error}");
        error
    };
    refused(&format!("a: {}", "[".repeat(100_000)));
    refused(&"- ".repeat(100_000));
    for depth in [50, 99, 100, 101, 2_000] {
        let block: String = (0..depth).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
        let error = refused(&block);
        assert_eq!(error.path == "apiVersion", depth <= 100, "{depth}: {error}");
    }
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let before = level - 1;
        bomb.push_str(&format!("a{level}: &a{level} [{}]\n", vec![format!("*a{before}"); 10].join(", ")));
    }
    refused(&bomb);
}

#[test]
fn what_editors_and_printers_write() {
    let cart = pod("cart", "u1", "10.0.0.1");
    let json = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"cart","annotations":{"a":"\u003c\/\ud83d\ude00 \"\n","b":""},"labels":null,
	"managedFields":[{"fieldsV1":{"f:status":{"k:{\"ip\":\"10.0.0.1\"}":{".":{}}}}}]},
	"spec":{},"status":{}}"#;
    for text in [
        cart.replace('\n', "\r\n"),
        format!("\u{feff}{cart}"),
        format!("%YAML 1.2\n---\n{cart}...\n"),
        format!("{cart}---\n"),
        format!("---\n# first\n---\n{cart}"),
        json.to_owned(),
    ] {
        let content = document::read(text.as_bytes()).unwrap().unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(content.items.len(), 1, "{text}");
    }
}

#[test]
fn what_was_meant_as_a_policy_is_never_passed_over() {
    let text = |api_version: &str, kind: &str| format!("apiVersion: {api_version}\nkind: {kind}\nmetadata:\n  name: no\nitems: [{{}}]\n");
    for (api_version, kind) in [
        ("v1", "AuthorizationPolicy"),
        ("istio.io/v1", "PeerAuthentication"),
        ("security.istio.io/v1", "authorizationpolicy"),
        ("security.istio.io/v1", "AuthorizationPolicies"),
        ("security.istio.io/v2", "AuthorizationPolicy"),
        ("security.istio.io/v1", "AuthorizationPolicyList"),
        ("v1", "PodList"),
    ] {
        let read = document::read(text(api_version, kind).as_bytes()).unwrap();
        assert!(read.is_err(), "{api_version} {kind}");
    }
    for (api_version, kind) in [
        ("security.istio.io/v1", "RequestAuthentication"),
        ("policy.linkerd.io/v1alpha1", "AuthorizationPolicy"),
        ("apps/v1", "Deployment"),
        ("serving.knative.dev/v1", "Service"),
    ] {
        let content = document::read(text(api_version, kind).as_bytes()).unwrap().unwrap();
        assert_eq!((content.items.len(), content.unknown.len()), (0, 1), "{api_version} {kind}");
    }
}

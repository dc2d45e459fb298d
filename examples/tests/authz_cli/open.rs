//! What is said where the answer hangs on a pod that is not named, and of names that are not there.

use serde_json::{Value, json};

use super::{Ended, Files, authz};

const CHAIN: &str = r#"apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { name: web, namespace: demo }
spec:
  selector: { matchLabels: { app: web } }
  rules: [{ from: [{ source: { namespaces: [front] } }] }]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { name: told, namespace: demo, annotations: { istio.io/dry-run: "true" } }
spec:
  selector: { matchLabels: { app: told } }
  action: DENY
  rules: [{}]
"#;

const PODS: &str = r#"apiVersion: v1
kind: Pod
metadata: { name: web, namespace: demo, labels: { app: web } }
---
apiVersion: v1
kind: Pod
metadata: { name: idle, namespace: demo, labels: { app: idle, istio.io/dataplane-mode: none } }
---
apiVersion: v1
kind: ServiceAccount
metadata: { name: caller, namespace: demo }
"#;

const STRICT: &str = r#"apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: { name: strict, namespace: demo }
spec: { mtls: { mode: STRICT } }
"#;

fn explain(files: &[(&str, &str)], asked: &str) -> Ended {
    let files = Files::new(files);
    let asked = ["explain", "--policies", ".", "--port", "80"].into_iter().chain(asked.split(' '));
    authz(files.0.path(), &asked.collect::<Vec<_>>(), "")
}

#[test]
fn what_hangs_on_the_pod_is_not_told_as_an_answer() {
    // Without the pods' labels, whether the namespace alone is named or a pod of which nothing is known.
    for (to, exact) in [("demo", ""), ("demo/web", ""), ("demo", " --istio-exact")] {
        let told = explain(&[("a.yaml", CHAIN)], &format!("--from back/x --to {to}{exact}")).out;
        // Istio's own default leaves out what is in dry run.
        let unasked = match exact {
            "" => "2 policies that select pods of demo by their labels were",
            _ => "1 policy that selects pods of demo by their labels was",
        };
        let head = format!("DEPENDS ON THE POD: {unasked} not asked, and may turn the answer\n\nnot asked:\n");
        assert!(told.starts_with(&head), "{to}{exact}: {told}");
        assert!(
            told.contains("\n  ALLOW demo/web (./a.yaml:1), for app=web: ask --to demo --labels app=web\n"),
            "{told}"
        );
        assert_eq!(told.contains("  DENY in dry run demo/told"), exact.is_empty(), "{told}");
        assert!(
            told.contains("\na pod that none of them selects:\n\nALLOWED: no policy applies\n"),
            "{told}"
        );
    }
    // What it says is to be asked gives an answer.
    let told = explain(&[("a.yaml", CHAIN)], "--from front/x --to demo --labels app=web").out;
    assert!(told.starts_with("ALLOWED: by demo/web, rule 0"), "{told}");

    let told = explain(&[("a.yaml", CHAIN), ("pods.yaml", PODS)], "--from back/x --to demo").out;
    let pods = "\nthe pods in the files:\n  \
                demo/idle: ALLOWED: no policy applies (but it is not in the mesh: its label istio.io/dataplane-mode is none)\n  \
                demo/web: DENIED: no ALLOW rule matches; closest: demo/web, rule 0 (source namespace)\n";
    assert!(told.starts_with("DEPENDS ON THE POD") && told.contains(pods), "{told}");
    assert!(told.contains("for app=web: ask --to demo/web\n"), "{told}");

    let told = explain(&[("a.yaml", CHAIN), ("pods.yaml", PODS)], "--from back/x --to demo --json").out;
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!((&told["allowed"], &told["settled"]), (&Value::Null, &json!(false)));
    assert_eq!(
        (&told["pods"][1]["pod"], &told["pods"][1]["allowed"]),
        (&json!("demo/web"), &json!(false))
    );
    assert_eq!(told["unasked"][1]["ask"], "--to demo/web");
    assert!(told["reason"].as_str().unwrap().contains("were not asked"), "{told}");
}

#[test]
fn what_holds_for_every_pod_is_told_as_an_answer() {
    let closed = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: { name: closed, namespace: demo }\n";
    let lifted = STRICT
        .replace("name: strict", "name: lifted")
        .replace("spec: {", "spec: { selector: { matchLabels: { app: old } },")
        .replace("STRICT", "PERMISSIVE");
    let unreadable = CHAIN.replace("namespaces: [front]", "ipBlocks: [everywhere]");
    let denying = CHAIN.replace(
        "spec:\n  selector: { matchLabels: { app: web } }\n",
        "spec:\n  selector: { matchLabels: { app: web } }\n  action: DENY\n",
    );
    let of_addresses = denying.replace("namespaces: [front]", "ipBlocks: [10.0.0.0/8]");
    let to_addresses = denying.replace(
        "from: [{ source: { namespaces: [front] } }]",
        "when: [{ key: destination.ip, values: [10.0.0.0/8] }]",
    );
    let lets_addresses = CHAIN.replace("namespaces: [front]", "ipBlocks: [192.168.0.0/16]");
    let lets_other_addresses = format!("{closed}spec: {{ rules: [{{ from: [{{ source: {{ ipBlocks: [10.0.0.0/8] }} }}] }}] }}\n");
    for (files, from, head) in [
        // What says something of an address that is not known does so of some pods alone.
        (&[&*of_addresses][..], "front/x", "DEPENDS ON THE POD"),
        (&[&to_addresses], "front/x", "DEPENDS ON THE POD"),
        (&[&of_addresses], "front/x --from-ip 11.0.0.0", "ALLOWED"),
        (&[&lets_addresses, &lets_other_addresses], "front/x", "DEPENDS ON THE POD"),
        (&[&lets_other_addresses], "front/x", "DEPENDS ON AN ADDRESS"),
        (&[&lets_addresses, closed], "front/x --from-ip 11.0.0.0", "DENIED"),
        // An ALLOW for some pods that does not match changes nothing where none may.
        (&[CHAIN, closed], "back/x", "DENIED: demo/closed"),
        (&[CHAIN, closed], "front/x", "DEPENDS"),
        // A DENY that does not match changes nothing.
        (&[&denying], "back/x", "ALLOWED"),
        (&[&denying], "front/x", "DEPENDS"),
        (&[&unreadable], "front/x", "DEPENDS"),
        (&[&unreadable, closed], "front/x", "DENIED"),
        // A PeerAuthentication for some pods lifts what holds for the others, but not what else refuses.
        (&[STRICT], "plaintext", "DENIED: by PeerAuthentication demo/strict"),
        (&[STRICT, &lifted], "plaintext", "DEPENDS"),
        (&[STRICT, &lifted], "back/x", "ALLOWED"),
        (&[STRICT, &lifted, closed], "plaintext", "DENIED"),
        // Both have to select the pod before it may be reached.
        (
            &[
                STRICT,
                &lifted,
                closed,
                &CHAIN.replace("{ namespaces: [front] }", "{ notNamespaces: [back] }"),
            ],
            "plaintext",
            "DEPENDS",
        ),
    ] {
        let named: Vec<String> = (0..files.len()).map(|n| format!("{n}.yaml")).collect();
        let files: Vec<(&str, &str)> = named.iter().map(String::as_str).zip(files.iter().copied()).collect();
        let told = explain(&files, &format!("--from {from} --to demo")).out;
        assert!(told.starts_with(head), "{files:?} {from}: {told}");
    }
    let told = explain(&[("a.yaml", CHAIN), ("b.yaml", closed)], "--from back/x --to demo").out;
    assert!(
        told.contains("  note  2 policies that select pods by their labels were not asked: none of them would turn the answer\n"),
        "{told}"
    );
    let told = explain(&[("a.yaml", CHAIN), ("b.yaml", closed)], "--from back/x --to demo --json").out;
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(
        (&told["allowed"], &told["settled"], told["unasked"].as_array().map(Vec::len)),
        (&json!(false), &json!(true), Some(2))
    );
}

#[test]
fn names_that_are_not_there_are_answered_with_those_that_are() {
    let files = [("a.yaml", CHAIN), ("pods.yaml", PODS)];
    for (asked, why) in [
        ("--from a/b --to dmeo", "perhaps demo is meant; write NAMESPACE/NAME"),
        ("--from a/b --to webb", "perhaps web is meant; write NAMESPACE/NAME"),
        (
            "--from a/b --to nowhere",
            "of namespaces there is demo, of workloads there is demo/idle, demo/web; write",
        ),
        (
            "--from a/b --to demo/wbe",
            "is in the files: perhaps web is meant; or give its --labels",
        ),
        ("--from a/b --to dmeo/web", "none is in that namespace, perhaps demo is meant; or"),
        (
            "--from callr --to demo/web",
            "is called so: perhaps caller is meant; plaintext, spiffe://",
        ),
        (
            "--from x --to demo/web",
            "is called so: there is caller, idle, web; plaintext, spiffe://",
        ),
    ] {
        let told = explain(&files, asked);
        assert!(
            told.code == 2 && told.out.is_empty() && told.err.contains(why),
            "{asked}: {}",
            told.err
        );
    }
    // A name alone will do where one namespace has it.
    let told = explain(&files, "--from caller --to web").out;
    assert!(told.contains("  from  spiffe://cluster.local/ns/demo/sa/caller\n"), "{told}");
    let two = PODS.replace("demo", "other");
    let told = explain(&[files[0], files[1], ("two.yaml", &two)], "--from caller --to demo/web");
    assert!(
        told.code == 2 && told.err.contains("demo/caller and other/caller: write which"),
        "{}",
        told.err
    );
    let told = explain(&files, "--from demo/calelr --to web").out;
    assert!(
        told.contains("it is taken for an account; perhaps demo/caller is meant\n"),
        "{told}"
    );

    // Where only policies are known, what they select by is no namespace; nor need any other be.
    let told = explain(&files[..1], "--from a/b --to web");
    assert!(
        told.code == 2 && told.err.contains("ask --to demo --labels app=web"),
        "{}",
        told.err
    );
    let told = explain(&files[..1], "--from a/b --to dmeo").out;
    assert!(
        told.contains(
            "  note  nothing in the files is in a namespace dmeo: only what applies to the whole mesh is asked; perhaps demo is meant\n"
        ),
        "{told}"
    );
}

/// Whoever is not in the mesh proves nothing, and nobody asks policies for it.
#[test]
fn who_is_not_in_the_mesh_by_the_files_is_told() {
    let namespaces = "apiVersion: v1\nkind: Namespace\nmetadata: { name: demo, labels: { istio.io/dataplane-mode: ambient } }\n\
                      ---\napiVersion: v1\nkind: Namespace\nmetadata: { name: old }\n";
    let old = "apiVersion: v1\nkind: Pod\nmetadata: { name: cart, namespace: old }\n---\napiVersion: v1\nkind: Pod\n\
               metadata: { name: joined, namespace: old, labels: { istio.io/dataplane-mode: ambient } }\n---\napiVersion: v1\n\
               kind: Pod\nmetadata: { name: host, namespace: demo }\nspec: { hostNetwork: true }\n---\napiVersion: v1\nkind: Pod\n\
               metadata: { name: side, namespace: old, annotations: { sidecar.istio.io/status: x } }\n";
    let files = [("a.yaml", CHAIN), ("pods.yaml", PODS), ("old.yaml", old)];
    let labelled = [files[0], files[1], files[2], ("namespaces.yaml", namespaces)];
    let unlabelled = "by the files old is not in the mesh (no label istio.io/dataplane-mode: ambient)";
    for (asked, notes) in [
        ("--from demo/web --to demo/web", vec![]),
        ("--from old/joined --to demo/web", vec![]),
        (
            "--from old/cart --to demo/web",
            vec![format!("{unlabelled}: until it is old/cart speaks plaintext, ask --from plaintext")],
        ),
        (
            "--from plaintext --to old/cart",
            vec![format!("{unlabelled}: until it is no node asks policies for old/cart")],
        ),
        (
            "--from old/cart --to old/cart",
            vec![format!("{unlabelled}: this is what holds once it is")],
        ),
        (
            "--from old/cart --to old",
            vec![format!("{unlabelled}: this is what holds once it is")],
        ),
        (
            "--from demo/host --to demo/idle",
            vec![
                "demo/host is not in the mesh (it is in its node's network namespace (hostNetwork)) and speaks plaintext: \
                 ask --from plaintext"
                    .to_owned(),
                "demo/idle is not in the mesh (its label istio.io/dataplane-mode is none): no node asks policies for it".to_owned(),
            ],
        ),
        (
            "--from old/side --to old/side",
            vec!["old/side has a sidecar, which reads policies in its own way: no node asks them for it".to_owned()],
        ),
    ] {
        let told = explain(&labelled, asked).out;
        let said: Vec<&str> = told.lines().filter_map(|line| line.strip_prefix("  note  ")).collect();
        let of_mesh: Vec<&str> = said
            .into_iter()
            .filter(|note| note.contains("mesh (") || note.contains("sidecar"))
            .collect();
        assert_eq!(of_mesh, notes, "{asked}");
    }
    // Files without the namespace say nothing of its labels.
    let told = explain(&files, "--from old/cart --to demo/web").out;
    assert!(!told.contains("not in the mesh"), "{told}");
}

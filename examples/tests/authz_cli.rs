//! `ambient authz` as it is called: what it prints, and how it ends.
#![expect(clippy::unwrap_used, reason = "a test says what is wrong by its panic")]

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::{Value, json};

#[path = "authz_cli/address.rs"]
mod address;
#[path = "authz_cli/decide.rs"]
mod decide;
#[path = "authz_cli/open.rs"]
mod open;
#[path = "authz_cli/sources.rs"]
mod sources;
#[path = "authz_cli/traps.rs"]
mod traps;

struct Files(tempfile::TempDir);

impl Files {
    fn new(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            fs::write(dir.path().join(name), content).unwrap();
        }
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

struct Ended {
    code: i32,
    out: String,
    err: String,
}

/// Runs `ambient authz` in a directory.
fn authz(dir: &Path, arguments: &[&str], input: &str) -> Ended {
    let mut child = Command::new(env!("CARGO_BIN_EXE_ambient"))
        .current_dir(dir)
        .arg("authz")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    // It may end without having read all.
    let writer = std::thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    Ended {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

const SHOP: &str = r#"# the shop
apiVersion: v1
kind: Pod
metadata: { name: stock-0, namespace: shop, labels: { app: stock } }
spec: { serviceAccountName: stock }
status: { podIP: 10.0.2.2 }
---
apiVersion: apps/v1
kind: Deployment
metadata: { name: cart, namespace: shop }
spec:
  template:
    metadata: { labels: { app: cart } }
    spec: { serviceAccountName: buyer }
---
apiVersion: v1
kind: Service
metadata: { name: stock, namespace: shop }
spec: { selector: { app: stock }, ports: [{ port: 80, targetPort: 8080 }] }
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { name: stock, namespace: shop }
spec:
  selector: { matchLabels: { app: stock } }
  rules:
  - to: [{ operation: { methods: [GET] } }]
  - from: [{ source: { principals: [cluster.local/ns/shop/sa/buyer] } }]
    to: [{ operation: { ports: ["8080"] } }]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { name: no-ops, namespace: istio-system }
spec:
  action: DENY
  rules:
  - from: [{ source: { namespaces: [ops] } }]
---
apiVersion: security.istio.io/v1beta1
kind: PeerAuthentication
metadata: { name: strict, namespace: shop }
spec:
  selector: { matchLabels: { app: cart } }
  mtls: { mode: STRICT }
"#;

const BROKEN: &str = r#"apiVersion: v1
kind: List
items:
- apiVersion: security.istio.io/v1
  kind: AuthorizationPolicy
  metadata: { name: blocks, namespace: shop }
  spec:
    action: DENY
    rules:
    - from:
      - source:
          ipBlocks:
          - 10.0.0.0/8
          - 10.0.0.0/33
- apiVersion: security.istio.io/v1
  kind: AuthorizationPolicy
  metadata: { name: shapeless, namespace: ops }
  spec:
    rules: everything
- apiVersion: security.istio.io/v1
  kind: PeerAuthentication
  metadata: { name: typo, namespace: ops }
  spec:
    mTLS: { mode: STRICT }
- { apiVersion: v1, kind: ConfigMap, metadata: { name: other } }
"#;

#[test]
fn check_points_at_file_line_and_field() {
    let files = Files::new(&[("shop.yaml", SHOP), ("broken.yaml", BROKEN)]);
    let fine = authz(files.0.path(), &["check", "shop.yaml"], "");
    assert_eq!(fine.code, 0, "{}", fine.err);
    let lines: Vec<_> = fine.out.lines().collect();
    assert!(
        lines[0].starts_with("shop.yaml:27: warning: AuthorizationPolicy shop/stock: spec.rules[0].to[0].operation.methods: cannot"),
        "{}",
        fine.out
    );
    assert_eq!(
        lines[1],
        "2 AuthorizationPolicies, 1 PeerAuthentication, 0 errors, 1 warning, 3 objects of other kinds skipped"
    );

    let broken = authz(files.0.path(), &["check", "broken.yaml", "shop.yaml"], "");
    assert_eq!(broken.code, 1);
    let lines: Vec<_> = broken.out.lines().collect();
    assert!(
        lines[0].starts_with("broken.yaml:14: error: AuthorizationPolicy shop/blocks: spec.rules[0].from[0].source.ipBlocks[1]: "),
        "{}",
        lines[0]
    );
    assert!(
        lines[1].starts_with("broken.yaml:19: error: AuthorizationPolicy ops/shapeless: spec.rules: "),
        "{}",
        lines[1]
    );
    assert!(
        lines[2].starts_with("broken.yaml:24: error: PeerAuthentication ops/typo: spec.mTLS: "),
        "{}",
        lines[2]
    );
    assert!(lines.last().unwrap().contains("3 errors, 1 warning, 4 objects"), "{}", broken.out);

    let exact = authz(files.0.path(), &["check", "--istio-exact", "broken.yaml"], "");
    assert!(
        exact.out.contains("warning: AuthorizationPolicy shop/blocks") && exact.code == 1,
        "{}",
        exact.out
    );
}

/// Istio's admission would have refused it; a file that no cluster has seen is told so, at its line.
#[test]
fn check_tells_of_accounts_beside_names_in_one_source() {
    let policy = r#"apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { name: both, namespace: shop }
spec:
  rules:
  - from:
    - source:
        namespaces: [shop]
        serviceAccounts:
        - shop/buyer
"#;
    let files = Files::new(&[("both.yaml", policy)]);
    for arguments in [&["check", "both.yaml"][..], &["check", "--istio-exact", "both.yaml"]] {
        let told = authz(files.0.path(), arguments, "");
        let wanted = "both.yaml:10: warning: AuthorizationPolicy shop/both: spec.rules[0].from[0].source.serviceAccounts: \
                      Istio refuses it beside namespaces in one source";
        assert!(told.out.starts_with(wanted) && told.code == 0, "{}", told.out);
    }
    let told = authz(files.0.path(), &["check", "--json", "both.yaml"], "");
    let report: Value = serde_json::from_str(&told.out).unwrap();
    assert_eq!((&report["warnings"], &report["findings"][0]["line"]), (&json!(1), &json!(10)));
}

/// Not even where it cannot be read.
#[test]
fn what_is_for_another_revision_has_no_effect() {
    let labelled = BROKEN.replace("metadata: {", "metadata: { labels: { istio.io/rev: canary },");
    let files = Files::new(&[("broken.yaml", &labelled)]);
    for (own, errors) in [
        (&[][..], "3 errors"),
        (&["--revision", "canary"], "3 errors"),
        (&["--revision", "stable"], "0 errors"),
    ] {
        let told = authz(files.0.path(), &[&["check", "broken.yaml"], own].concat(), "");
        assert!(told.out.contains(errors), "{own:?} {}", told.out);
        assert_eq!(
            told.out.contains("of another revision than \"stable\""),
            !own.is_empty() && told.code == 0,
            "{}",
            told.out
        );
    }
}

#[test]
fn check_as_json_and_from_stdin() {
    let files = Files::new(&[]);
    let told = authz(files.0.path(), &["check", "--json", "-"], BROKEN);
    let report: Value = serde_json::from_str(&told.out).unwrap();
    assert_eq!((told.code, &report["errors"], &report["skipped"]), (1, &json!(3), &json!(1)));
    let first = &report["findings"][0];
    assert_eq!((&first["file"], &first["line"]), (&json!("<stdin>"), &json!(14)));
    assert_eq!(first["path"], "spec.rules[0].from[0].source.ipBlocks[1]");
    assert_eq!(
        (&first["level"], &first["object"]),
        (&json!("error"), &json!("AuthorizationPolicy shop/blocks"))
    );
}

#[test]
fn check_of_what_is_no_manifest() {
    let files = Files::new(&[
        ("syntax.yaml", "a: [1\n"),
        (
            "kind.yaml",
            "apiVersion: security.istio.io/v1\nkind: AuthorisationPolicy\nmetadata: { name: x }\n",
        ),
        (
            "version.yaml",
            "apiVersion: security.istio.io/v2\nkind: AuthorizationPolicy\nmetadata: { name: x }\n",
        ),
        ("scalar.yaml", "hello\n"),
        ("none.yaml", "# nothing\n---\n"),
    ]);
    for (name, line, what) in [
        ("syntax.yaml", "syntax.yaml:", "neither YAML nor JSON"),
        ("kind.yaml", "kind.yaml:2: error: kind: ", "is no kind"),
        ("version.yaml", "version.yaml:1: error: apiVersion: ", "is not known"),
        ("scalar.yaml", "scalar.yaml:1: error: ", "a Kubernetes object is wanted"),
    ] {
        let told = authz(files.0.path(), &["check", name], "");
        assert_eq!(told.code, 1, "{name}");
        assert!(told.out.starts_with(line) && told.out.contains(what), "{}", told.out);
        // What could be any policy is not decided without.
        let asked = ["explain", "--policies", name, "--from", "a/b", "--to", "c", "--port", "1"];
        let told = authz(files.0.path(), &asked, "");
        assert!(
            told.code == 1 && told.out.is_empty() && told.err.contains("nothing is decided"),
            "{}",
            told.err
        );
    }
    assert_eq!(authz(files.0.path(), &["check", "none.yaml"], "").code, 0);
    assert_eq!(authz(files.0.path(), &["check", "missing.yaml"], "").code, 2);
    assert_eq!(authz(files.0.path(), &["check"], "").code, 2);
    let directory = authz(files.0.path(), &["check", "."], "");
    assert!(directory.code == 1 && directory.out.contains("4 errors"), "{}", directory.out);
}

#[test]
fn the_later_of_two_counts_and_says_so() {
    let files = Files::new(&[("a.yaml", SHOP), ("b.yaml", SHOP)]);
    let told = authz(files.0.path(), &["check", "a.yaml", "b.yaml"], "");
    assert!(
        told.out
            .contains("b.yaml:21: warning: AuthorizationPolicy shop/stock: it stands in a.yaml:21 as well"),
        "{}",
        told.out
    );
}

/// Files are no history: of what cannot be read there is no last good version in a file before.
#[test]
fn of_two_of_which_the_later_cannot_be_read_the_earlier_is_not_in_force() {
    let policy = |rules: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{ name: open, namespace: shop }}\nspec: {{ rules: {rules} }}\n"
        )
    };
    for broken in ["[{ to: [{ operation: { ports: [x] } }] }]", "nonsense"] {
        let files = Files::new(&[("a.yaml", &policy("[{}]")), ("b.yaml", &policy(broken))]);
        let asked = [
            "explain",
            "--policies",
            ".",
            "--from",
            "shop/cart",
            "--to",
            "shop/stock",
            "--port",
            "80",
        ];
        let told = authz(files.0.path(), &asked, "");
        assert!(told.out.starts_with("DENIED"), "{broken}: {}{}", told.out, told.err);
    }
}

fn explain(files: &Files, more: &[&str]) -> Ended {
    let arguments = [&["explain", "--policies", "shop.yaml"], more].concat();
    authz(files.0.path(), &arguments, "")
}

#[test]
fn explain_a_refusal() {
    let files = Files::new(&[("shop.yaml", SHOP)]);
    let told = explain(&files, &["--from", "shop/other", "--to", "shop/stock-0", "--port", "8080"]);
    assert_eq!(told.code, 0, "{}", told.err);
    let expected = "\
DENIED: no ALLOW rule matches; closest: shop/stock, rule 1 (source principal)
  from  spiffe://cluster.local/ns/shop/sa/other
  to    shop/stock-0, 10.0.2.2:8080
  log   allow policies exist, but none allowed
  note  no pod and no ServiceAccount of the files is called shop/other: it is taken for an account

to be allowed, the ALLOW rule that came closest has to match, or another:
  shop/stock, rule 1 (shop.yaml:28): 1 field fails
    source principal is cluster.local/ns/shop/sa/other
      wanted: cluster.local/ns/shop/sa/buyer
or the one ALLOW policy that applies has to go
";
    assert!(told.out.starts_with(expected), "{}", told.out);
    assert!(
        told.out
            .contains("DENY istio-system/no-ops  (for the whole mesh; shop.yaml:31)\n    rule 0: no, source namespace is not ops")
    );
    assert!(
        told.out.contains("not in force as written:\n  shop.yaml:27: warning"),
        "{}",
        told.out
    );
}

#[test]
fn explain_finds_the_peer_and_the_workload() {
    let files = Files::new(&[("shop.yaml", SHOP)]);
    // A workload of the files is meant by its account.
    for from in [
        "shop/cart",
        "shop/buyer",
        "cluster.local/ns/shop/sa/buyer",
        "ns/shop/sa/buyer",
        "spiffe://cluster.local/ns/shop/sa/buyer",
    ] {
        for to in [&["--to", "stock-0"][..], &["--to", "shop", "--labels", "app=stock"]] {
            let told = explain(&files, &[&["--from", from, "--port", "8080"], to].concat());
            assert!(
                told.out
                    .starts_with("ALLOWED: by shop/stock, rule 1: source principal is cluster.local/ns/shop/sa/buyer, and 1 more\n")
                    && told.out.contains("\nshop/stock, rule 1 (shop.yaml:28) matches:\n"),
                "{from} {to:?}: {} {}",
                told.out,
                told.err
            );
        }
    }
    let told = explain(&files, &["--from", "plaintext", "--to", "shop/cart", "--port", "80"]);
    assert!(
        told.out
            .starts_with("DENIED: by PeerAuthentication shop/strict (shop.yaml:39), as the peer speaks plaintext\n"),
        "{}",
        told.out
    );
    assert!(
        told.out
            .contains("\n  log   explicitly denied by: istio-system/istio_converted_static_strict\n"),
        "{}",
        told.out
    );
    let told = explain(&files, &["--from", "shop/cart", "--to", "shop/stock-0", "--port", "80"]);
    assert!(
        told.out.contains("80 is the port of the Service stock, whose pods listen on 8080"),
        "{}",
        told.out
    );
    assert!(
        told.out
            .contains("  note  shop/cart is a Deployment of the files, whose account is buyer\n"),
        "{}",
        told.out
    );
    let told = explain(&files, &["--from", "shop/cart", "--to", "shop", "--port", "80"]);
    assert!(told.out.contains("only what applies to all of shop is asked"), "{}", told.out);
    for (wrong, why) in [
        (
            ["--from", "a/b", "--to", "shop/none"],
            "no such pod or workload is in the files: there is cart, stock-0;",
        ),
        (
            ["--from", "a/b", "--to", "none"],
            "no namespace and no workload of the files is called so",
        ),
        (["--from", "a/b", "--to", "none/stock-0"], "none is in that namespace"),
        (["--from", "nobody", "--to", "shop"], "NAMESPACE/ACCOUNT"),
        (["--from", "a/b", "--to", "shop/stock"], "such as --to shop/stock-0"),
        (["--from", "a/b", "--to", "a/b/c"], "NAMESPACE/NAME is wanted"),
    ] {
        let told = explain(&files, &[&wrong[..], &["--port", "80"]].concat());
        assert!(told.code == 2 && told.err.contains(why), "{}", told.err);
    }
}

#[test]
fn explain_as_json() {
    let files = Files::new(&[("shop.yaml", SHOP)]);
    let told = explain(
        &files,
        &[
            "--json",
            "--from",
            "ops/root",
            "--from-ip",
            "10.0.9.9",
            "--to",
            "shop/stock-0",
            "--port",
            "8080",
        ],
    );
    let told: Value = serde_json::from_str(&told.out).unwrap();
    assert_eq!(
        (&told["allowed"], &told["policy"], &told["rule"]),
        (&json!(false), &json!("istio-system/no-ops"), &json!(0))
    );
    assert_eq!(told["turn"]["deny"], json!({ "keys": ["istio-system/no-ops"], "more": 0 }));
    assert_eq!(told["place"], "shop.yaml:37", "where the rule stands");
    assert_eq!(told["turn"]["notAllowed"]["closest"]["rule"], 1, "numbered as it is written");
    assert_eq!(told["connection"]["source"], "10.0.9.9");
    assert_eq!(told["findings"][0]["line"], 27);
}

#[test]
fn explain_what_cannot_be_read() {
    let files = Files::new(&[("shop.yaml", BROKEN)]);
    let told = explain(&files, &["--from", "a/b", "--to", "shop", "--port", "80"]);
    assert!(
        told.out
            .starts_with("DENIED: policy shop/blocks cannot be read, so it refuses all that it applies to\n")
            && told
                .out
                .contains("  log   policy shop/blocks cannot be read: spec.rules[0].from[0].source.ipBlocks[1]: "),
        "{}",
        told.out
    );
    assert!(
        told.out.contains("mended or withdrawn:\n  shop/blocks (shop.yaml:14)\n"),
        "{}",
        told.out
    );
    assert!(told.out.contains("2 errors in policies that do not apply here"), "{}", told.out);
    let asked = [
        "--istio-exact",
        "--from",
        "a/b",
        "--from-ip",
        "192.0.2.1",
        "--to",
        "shop",
        "--port",
        "80",
    ];
    let exact = explain(&files, &asked);
    assert!(exact.out.starts_with("ALLOWED"), "{}", exact.out);
}

/// The object that makes a workload strict is named, not what is made of it, which stands in no file.
#[test]
fn explain_names_the_peer_authentication() {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: { name: web, namespace: shop, labels: { app: web } }\n---\n";
    let strict = |name: &str, namespace: &str, spec: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{ name: {name}, namespace: {namespace} }}\nspec: {spec}\n---\n"
        )
    };
    let mesh = strict("mesh", "istio-system", "{ mtls: { mode: STRICT } }");
    let ports = "{ selector: { matchLabels: { app: web } }, portLevelMtls: { 8080: { mode: DISABLE }, 9090: { mode: STRICT } } }";
    let files = Files::new(&[
        ("shop.yaml", &format!("{pod}{mesh}")),
        ("ports.yaml", &format!("{pod}{mesh}{}", strict("ports", "shop", ports))),
    ]);
    let ask = |file: &str, port: &str| {
        let arguments = [
            "explain",
            "--policies",
            file,
            "--from",
            "plaintext",
            "--to",
            "shop/web",
            "--port",
            port,
        ];
        authz(files.0.path(), &arguments, "").out
    };
    for (file, port, wanted) in [
        (
            "shop.yaml",
            "80",
            "DENIED: by PeerAuthentication istio-system/mesh (shop.yaml:5), as",
        ),
        (
            "ports.yaml",
            "80",
            "DENIED: by PeerAuthentication istio-system/mesh (ports.yaml:5), as",
        ),
        ("ports.yaml", "9090", "DENIED: by PeerAuthentication shop/ports (ports.yaml:10), as"),
        ("ports.yaml", "8080", "ALLOWED: no ALLOW policy applies"),
    ] {
        let told = ask(file, port);
        assert!(told.starts_with(wanted), "{file} {port}: {told}");
    }
}

/// However many policies apply, what is told by default is a page, and says how many more there are.
#[test]
fn explain_tells_a_page_of_very_many() {
    let policy = |n: usize| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{ name: p{n}, namespace: shop }}\n\
             spec: {{ rules: [{{ to: [{{ operation: {{ ports: [\"{}\"] }} }}] }}] }}\n---\n",
            n + 1
        )
    };
    let all: String = (0..500).map(policy).collect();
    let files = Files::new(&[("shop.yaml", &all)]);
    let asked = ["--from", "a/b", "--to", "shop", "--port", "60000"];
    let told = explain(&files, &asked);
    assert!(
        told.out.lines().count() < 60 && told.out.contains("\n500 policies apply:\n"),
        "{}",
        told.out
    );
    assert!(told.out.contains("\n  … and 490 more\n"), "{}", told.out);
    let json: Value = serde_json::from_str(&explain(&files, &[&asked[..], &["--json"]].concat()).out).unwrap();
    assert_eq!(json["policies"].as_array().map(Vec::len), Some(10));
    assert_eq!(
        (&json["morePolicies"], &json["turn"]["notAllowed"]["policies"]["more"]),
        (&json!(490), &json!(490))
    );
    let whole = explain(&files, &[&asked[..], &["--all"]].concat());
    assert!(
        whole.out.lines().count() > 1000 && !whole.out.contains("more\n"),
        "{}",
        whole.out.len()
    );
    let json: Value = serde_json::from_str(&explain(&files, &[&asked[..], &["--all", "--json"]].concat()).out).unwrap();
    assert_eq!(
        (json["policies"].as_array().map(Vec::len), &json["morePolicies"]),
        (Some(500), &json!(0))
    );
}

/// Nobody takes a wrong path, a second stdin or a policy without a name for a mesh without policies.
#[test]
fn what_holds_nothing_is_refused() {
    let files = Files::new(&[("shop.yaml", SHOP), ("none.yaml", "# nothing\n")]);
    fs::create_dir(files.path("empty")).unwrap();
    let asked = ["--from", "a/b", "--to", "shop/stock-0", "--port", "1"];
    for (given, code, why) in [
        (&["empty"][..], 2, "empty: no file in it ends in .yaml, .yml or .json"),
        (&["missing"], 2, "missing: No such file"),
        (&["-", "-"], 2, "stdin can be read but once"),
        (&["-"], 2, "<stdin>: there is no document in it"),
    ] {
        for verb in [&["check"][..], &["explain", "--policies"]] {
            let more = if verb[0] == "check" { &[][..] } else { &asked };
            let told = authz(files.0.path(), &[verb, given, more].concat(), "");
            assert!(told.code == code && told.err.contains(why) && told.out.is_empty(), "{}", told.err);
        }
    }
    let told = authz(files.0.path(), &[&["explain", "--policies", "none.yaml"], &asked[..]].concat(), "");
    assert!(
        told.out
            .contains("  note  no AuthorizationPolicy and no PeerAuthentication is in the files\n"),
        "{}",
        told.out
    );
    for head in [
        "metadata: { namespace: shop }",
        "metadata: { generateName: p-, namespace: shop }",
        "metadata: { name: 7 }",
    ] {
        let unnamed = format!("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n{head}\nspec: {{ rules: [{{}}] }}\n");
        let told = authz(files.0.path(), &["check", "-"], &unnamed);
        assert!(told.code == 1 && told.out.contains("metadata.name: is missing"), "{}", told.out);
        let told = authz(files.0.path(), &[&["explain", "--policies", "-"], &asked[..]].concat(), &unnamed);
        assert!(told.code == 1 && told.err.contains("nothing is decided"), "{}", told.err);
    }
}

/// What others wrote into a policy commands nobody's terminal, and makes no line that looks like another.
#[test]
fn values_are_told_as_text() {
    let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: { name: Odd, namespace: shop }\nspec:\n  \
                  rules: [{ from: [{ source: { namespaces: [\"\\e[2J\\nALLOWED\"], ipBlocks: [\"\\e[1m\"] } }] }]\n";
    let files = Files::new(&[("shop.yaml", policy)]);
    let told = authz(files.0.path(), &["check", "shop.yaml"], "");
    assert!(!told.out.contains('\u{1b}') && told.out.contains("ipBlocks[0]"), "{}", told.out);
    assert!(told.out.contains("metadata.name: no API server takes this name"), "{}", told.out);
    let readable = policy.replace("\"\\e[1m\"", "10.0.0.0/8");
    fs::write(files.path("shop.yaml"), readable).unwrap();
    let told = explain(&files, &["--from", "a/b", "--to", "shop", "--port", "1"]);
    assert!(!told.out.contains('\u{1b}') && !told.out.contains("\nALLOWED"), "{}", told.out);
    assert!(told.out.contains("\\u{1b}[2J\\u{a}ALLOWED"), "{}", told.out);
}

/// Whoever reads the first line has read enough.
#[test]
fn a_reader_that_ends_early_is_no_failure() {
    use std::io::Read;
    let files = Files::new(&[("shop.yaml", SHOP)]);
    let many: String = (0..20_000).map(|id| line(id, None, &json!({}), 80)).collect();
    fs::write(files.path("connections"), many).unwrap();
    for arguments in [
        &["check", "--json", "shop.yaml"][..],
        &["explain", "--policies", "shop.yaml", "--from", "a/b", "--to", "shop", "--port", "1"],
        &["decide", "--policies", "shop.yaml", "--connections", "connections"],
    ] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_ambient"))
            .current_dir(files.0.path())
            .arg("authz")
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let mut err = String::new();
        child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        assert_eq!((child.wait().unwrap().code(), err.as_str()), (Some(0), ""), "{arguments:?}");
    }
}

fn line(id: impl Into<Value>, identity: Option<&str>, labels: &Value, port: u16) -> String {
    let line = json!({
        "id": id.into(),
        "source": { "identity": identity, "ip": "10.0.1.2" },
        "destination": { "namespace": "shop", "labels": labels, "ip": "10.0.2.2", "port": port },
    });
    format!("{line}\n")
}

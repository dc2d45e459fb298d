//! `ambient authz check` on what is in force as it is written, and is seldom meant so.

use serde_json::{Value, json};

use super::{Files, authz};

const SHOP: &str = r#"apiVersion: v1
kind: Service
metadata: { name: stock, namespace: shop }
spec: { selector: { app: stock }, ports: [{ port: 80, targetPort: 8080 }, { port: 81, targetPort: web }] }
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: { name: off, namespace: shop }
spec:
  mtls: { mode: DISABLE }
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { name: stock, namespace: shop }
spec:
  selector: { matchLabels: { app: stock } }
  rules:
  - to:
    - operation:
        ports:
        - "8080"
        - "80"
        - "81"
        methods: [GET]
  - from:
    - source:
        notNamespaces: [guests]
  - from:
    - source:
        principals: ["cluster.local/ns/shop*"]
        ipBlocks:
        - 0.0.0.0/0
"#;

#[test]
fn traps_are_warnings_at_their_lines_and_no_errors() {
    let files = Files::new(&[("shop.yaml", SHOP)]);
    let told = authz(files.0.path(), &["check", "shop.yaml"], "");
    assert_eq!(told.code, 0, "{}", told.out);
    let wanted = [10, 22, 24, 27, 30, 32].map(|line| format!("shop.yaml:{line}"));
    let (found, last) = told.out.trim_end().rsplit_once('\n').unwrap();
    assert!(last.contains("0 errors, 6 warnings"), "{last}");
    let at: Vec<_> = found.lines().map(|line| line.split_once(": warning: ").unwrap().0).collect();
    assert_eq!(at, wanted, "{found}");
    let said = [
        "PERMISSIVE",
        "whose pods listen on",
        "methods",
        "plaintext",
        "also a longer one",
        "over IPv6",
    ];
    for (line, words) in found.lines().zip(said) {
        assert!(line.contains(words), "{line}");
    }

    let told = authz(files.0.path(), &["check", "--json", "shop.yaml"], "");
    let report: Value = serde_json::from_str(&told.out).unwrap();
    let finding = &report["findings"][3];
    assert_eq!((&finding["level"], &finding["line"]), (&json!("warning"), &json!(27)));
    assert_eq!(finding["path"], "spec.rules[1].from[0].source.notNamespaces");
    assert_eq!(finding["object"], "AuthorizationPolicy shop/stock");
}

/// A port of the pod that a service has as well is meant; one that goes by a name could be any.
#[test]
fn a_port_that_only_the_service_has_is_told() {
    let told = |shop: &str| {
        let files = Files::new(&[("shop.yaml", shop)]);
        let told = authz(files.0.path(), &["check", "shop.yaml"], "");
        assert_eq!(told.code, 0, "{}", told.out);
        let of_ports = |line: &&str| line.contains("whose pods listen on");
        told.out.lines().filter(of_ports).map(str::to_owned).collect::<Vec<_>>()
    };
    let shop = SHOP.replace("        methods: [GET]\n", "");
    let found = told(&shop);
    let [one] = &found[..] else { panic!("{found:?}") };
    let wanted = "shop.yaml:22: warning: AuthorizationPolicy shop/stock: spec.rules[0].to[0].operation.ports[1]: \
                  80 is the port of the Service shop/stock, whose pods listen on 8080";
    assert!(one.starts_with(wanted), "{one}");

    let other_pods = shop.replace("matchLabels: { app: stock }", "matchLabels: { app: cart }");
    assert_eq!(told(&other_pods), [""; 0]);
    let of_other_pods = shop.replace("port: 81, targetPort: web", "port: 82, targetPort: 80");
    assert_eq!(told(&of_other_pods), [""; 0]);
    let for_a_waypoint = shop.replace(
        "selector: { matchLabels: { app: stock } }",
        "targetRefs: [{ kind: Service, name: stock }]",
    );
    assert_eq!(told(&for_a_waypoint), [""; 0]);
    // Where the files have pods they say which of them a service and a policy share.
    let pod = "---\napiVersion: v1\nkind: Pod\nmetadata: { name: cart-0, namespace: shop, labels: { app: cart } }\n";
    let no_pod_of_it = format!("{shop}{pod}");
    assert_eq!(told(&no_pod_of_it), [""; 0]);
    let whole = shop.replace("  selector: { matchLabels: { app: stock } }\n", "");
    assert_eq!(told(&whole).len(), 1);
}

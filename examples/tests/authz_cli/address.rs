//! `ambient authz explain` where an address is asked about that nobody has told.

use serde_json::Value;

use super::{Ended, Files, authz};

fn policies(blocks: &str) -> Files {
    let policy = format!(
        r#"apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{ name: not-guests, namespace: shop }}
spec:
  rules:
  - from: [{{ source: {{ namespaces: [shop], {blocks} }} }}]
"#
    );
    Files::new(&[("shop.yaml", &policy)])
}

fn ask(files: &Files, more: &[&str]) -> Ended {
    let arguments = [
        "explain",
        "--policies",
        "shop.yaml",
        "--from",
        "shop/cart",
        "--to",
        "shop",
        "--port",
        "80",
    ];
    let told = authz(files.0.path(), &[&arguments, more].concat(), "");
    assert_eq!(told.code, 0, "{}", told.err);
    told
}

#[test]
fn what_hangs_on_an_address_is_not_told_as_an_answer() {
    let files = policies("notIpBlocks: [10.1.0.0/16]");
    let told = ask(&files, &[]);
    let wanted = "DEPENDS ON AN ADDRESS: it is not known, and with the source IP 10.1.0.0 it is refused\n\n\
                  for the address 0.0.0.0 in its place:\n\nALLOWED: ";
    assert!(told.out.starts_with(wanted), "{}", told.out);
    assert!(
        told.out
            .contains("  note  the source IP counts here and is not known: give --from-ip\n"),
        "{}",
        told.out
    );
    let told: Value = serde_json::from_str(&ask(&files, &["--json"]).out).unwrap();
    assert_eq!((&told["allowed"], &told["settled"]), (&Value::Null, &Value::Bool(false)));
    assert!(told["reason"].as_str().unwrap().contains("10.1.0.0"), "{}", told["reason"]);

    for (ip, answer) in [("10.1.2.3", "DENIED: "), ("10.2.0.0", "ALLOWED: "), ("2001:db8::1", "ALLOWED: ")] {
        let told = ask(&files, &["--from-ip", ip]);
        assert!(told.out.starts_with(answer), "{ip}: {}", told.out);
    }
}

/// Behind the end of a block as well as within it, and in the other IP family.
#[test]
fn an_address_turns_the_answer_wherever_it_lies() {
    for (blocks, turning) in [
        ("ipBlocks: [0.0.0.0/1]", "128.0.0.0"),
        ("ipBlocks: [0.0.0.0/0]", "::"),
        ("ipBlocks: [0.0.0.0/8, 10.1.0.0/16, '::/0']", "1.0.0.0"),
        ("ipBlocks: ['fd00::/8']", "fd00::"),
    ] {
        let told = ask(&policies(blocks), &[]);
        let wanted = format!("with the source IP {turning} it is ");
        assert!(told.out.lines().next().unwrap().contains(&wanted), "{blocks}: {}", told.out);
    }
}

#[test]
fn an_answer_that_no_address_turns_is_one() {
    let told = ask(&policies("ipBlocks: [0.0.0.0/0, '::/0']"), &[]);
    assert!(told.out.starts_with("ALLOWED: "), "{}", told.out);
    assert!(
        told.out
            .contains("  note  the source IP is not known: no other would turn the answer\n"),
        "{}",
        told.out
    );
}

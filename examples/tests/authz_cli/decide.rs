//! `ambient authz decide`: what it takes for a connection, and what it says of the rest.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use super::{Ended, Files, SHOP, authz, line};

#[test]
fn a_hundred_bad_lines_are_told_and_the_rest_counted() {
    let files = Files::new(&[("shop.yaml", SHOP)]);
    let arguments = ["decide", "--policies", "shop.yaml", "--connections", "-"];
    let told = authz(files.0.path(), &arguments, &"{ \"id\": 1 }\n".repeat(250));
    assert_eq!((told.code, told.err.lines().count()), (1, 101), "{}", told.err);
    assert!(told.err.ends_with("150 more lines cannot be read\n"), "{}", told.err);
}

#[test]
fn answers_come_in_order_also_after_a_bad_line() {
    let files = Files::new(&[("shop.yaml", SHOP)]);
    let (buyer, ops) = (
        Some("spiffe://cluster.local/ns/shop/sa/buyer"),
        Some("spiffe://cluster.local/ns/ops/sa/root"),
    );
    let stock = json!({ "app": "stock" });
    let questions = [
        line(1, buyer, &stock, 8080),
        line("two", buyer, &stock, 80),
        "\n".into(),
        "{ \"id\": 3 }\n".into(),
        line(4, Some("spiffe://nobody"), &stock, 80),
        line(5, ops, &Value::Null, 80),
        line(6, None, &json!({ "app": "cart" }), 80),
        line(json!({ "x": [7] }), None, &json!({}), 80),
        line(8, buyer, &stock, 8080).replace("\"identity\"", "\"identiti\""),
        line(9, buyer, &stock, 8080).trim_end().to_owned(),
    ];
    fs::write(files.path("connections"), questions.concat()).unwrap();
    let arguments = ["decide", "--policies", "shop.yaml", "--connections", "connections"];
    let told = authz(files.0.path(), &arguments, "");
    assert_eq!(told.code, 1);
    let answers: Vec<Value> = told.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let expected = json!([
        { "id": 1, "allowed": true, "policy": "shop/stock", "reason": "allowed by: shop/stock" },
        { "id": "two", "allowed": false, "policy": null, "reason": "allow policies exist, but none allowed" },
        { "id": 5, "allowed": false, "policy": "istio-system/no-ops", "reason": "explicitly denied by: istio-system/no-ops" },
        {
            "id": 6, "allowed": false, "policy": "istio-system/istio_converted_static_strict",
            "reason": "explicitly denied by: istio-system/istio_converted_static_strict",
        },
        { "id": { "x": [7] }, "allowed": true, "policy": null, "reason": "allowed, as no allow policy applies" },
        { "id": 9, "allowed": true, "policy": "shop/stock", "reason": "allowed by: shop/stock" },
    ]);
    assert_eq!(Value::from(answers), expected, "{}", told.out);
    let errors: Vec<_> = told.err.lines().map(|line| line.split(": ").next().unwrap()).collect();
    assert_eq!(errors, ["connections:4", "connections:5", "connections:9"], "{}", told.err);

    let piped = authz(
        files.0.path(),
        &["decide", "--policies", "shop.yaml", "--connections", "-"],
        &line(1, buyer, &stock, 8080),
    );
    assert_eq!((piped.code, piped.out.lines().count()), (0, 1), "{}", piped.err);
}

/// Who waits for an answer gets it.
#[test]
fn a_question_is_answered_before_the_next_is_asked() {
    let files = Files::new(&[("shop.yaml", SHOP)]);
    let mut child = Command::new(env!("CARGO_BIN_EXE_ambient"))
        .current_dir(files.0.path())
        .args(["authz", "decide", "--policies", "shop.yaml", "--connections", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    let (send, answers) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
    for id in 0..3 {
        stdin.write_all(line(id, None, &json!({}), 80).as_bytes()).unwrap();
        let answer = answers
            .recv_timeout(std::time::Duration::from_secs(20))
            .expect("an answer before the next question");
        assert!(answer.starts_with(&format!("{{\"id\":{id},")), "{answer}");
    }
    drop(stdin);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    reader.join().unwrap().unwrap();
}

#[test]
fn names_of_the_mesh_count_as_they_are_set() {
    let policy = r#"{ "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": { "name": "p", "namespace": "roots" },
        "spec": { "rules": [{ "from": [{ "source": { "principals": ["cluster.local/ns/a/sa/b"] } }] }] } }"#;
    let files = Files::new(&[("p.json", policy)]);
    let ask = |more: &[&str], identity| {
        let arguments = [
            &["decide", "--policies", "p.json", "--connections", "-", "--root-namespace", "roots"],
            more,
        ]
        .concat();
        let told = authz(files.0.path(), &arguments, &line(1, Some(identity), &json!({}), 80));
        assert_eq!(told.code, 0, "{}", told.err);
        let answer: Value = serde_json::from_str(&told.out).unwrap();
        answer["allowed"].as_bool().unwrap()
    };
    let named = &["--trust-domain", "mesh.example", "--trust-domain-alias", "old.example"];
    assert!(ask(named, "spiffe://mesh.example/ns/a/sa/b") && ask(named, "spiffe://old.example/ns/a/sa/b"));
    assert!(!ask(named, "spiffe://mesh.example/ns/a/sa/c") && !ask(named, "spiffe://cluster.local/ns/a/sa/b"));
    let exact = &[&named[..], &["--istio-exact"]].concat();
    assert!(!ask(exact, "spiffe://mesh.example/ns/a/sa/b") && ask(exact, "spiffe://cluster.local/ns/a/sa/b"));
    for literal in [
        &["--trust-domain", "mesh.example", "--cluster-local", "literal"][..],
        &["--cluster-local", "own"],
    ] {
        assert!(!ask(literal, "spiffe://mesh.example/ns/a/sa/b") && ask(literal, "spiffe://cluster.local/ns/a/sa/b"));
    }
    let own = &["--trust-domain", "mesh.example", "--cluster-local", "own", "--istio-exact"];
    assert!(ask(own, "spiffe://mesh.example/ns/a/sa/b") && !ask(own, "spiffe://cluster.local/ns/a/sa/b"));
}

/// Decides on lines in a file, by the policies of the shop.
fn decide(lines: &[u8]) -> Ended {
    let files = Files::new(&[("shop.yaml", SHOP)]);
    fs::write(files.path("connections"), lines).unwrap();
    let arguments = ["decide", "--policies", "shop.yaml", "--connections", "connections"];
    authz(files.0.path(), &arguments, "")
}

/// A connection, with an id as it is written.
fn question(id: &str) -> String {
    format!(
        "{{\"id\":{id},\"source\":{{\"identity\":null,\"ip\":\"10.0.1.2\"}},\
         \"destination\":{{\"namespace\":\"shop\",\"labels\":{{}},\"ip\":\"10.0.2.2\",\"port\":80}}}}"
    )
}

/// What is answered to it.
fn answer(id: &str) -> String {
    format!("{{\"id\":{id},\"allowed\":true,\"policy\":null,\"reason\":\"allowed, as no allow policy applies\"}}\n")
}

/// Numbers that no type of Rust's holds among them, and the same id twice.
#[test]
fn an_id_is_given_back_as_it_is_written() {
    let ids = [
        "18446744073709551616",
        "-123456789012345678901234567890",
        "0.1000000000000000055511151231257827",
        "1e400",
        "-0",
        "1.0",
        r#""aA\/\ud83d\ude00""#,
        "\"é\"",
        "[ 1, {\"b\" : 2, \"a\":null} ]",
        "null",
        "7",
        "7",
    ];
    let lines: String = ids.iter().map(|id| question(id) + "\n").collect();
    let told = decide(lines.as_bytes());
    assert_eq!((told.code, told.err.as_str()), (0, ""));
    assert_eq!(told.out, ids.iter().map(|id| answer(id)).collect::<String>());
    let nameless = question("null").replacen("\"id\":null,", "", 1);
    assert!(!nameless.contains("id\":n"), "{nameless}");
    assert_eq!(decide(nameless.as_bytes()).out, answer("null"));
}

/// As editors of other systems write them, with blank lines between, and without an end of the last.
#[test]
fn lines_end_as_any_editor_ends_them() {
    let (one, two) = (question("1"), question("2"));
    for lines in [
        format!("{one}\r\n{two}\r\n"),
        format!("{one}\r\n\r\n \t\r\n\n{two}"),
        format!("\u{feff}{one}\n{two}\r\n"),
        format!("\u{feff}\n{one}\n  {two}  \n\n"),
    ] {
        let told = decide(lines.as_bytes());
        assert_eq!((told.code, told.err.as_str()), (0, ""), "{lines:?}");
        assert_eq!(told.out, answer("1") + &answer("2"), "{lines:?}");
    }
    for none in ["", "\n", "\r\n\n", "\u{feff}"] {
        let told = decide(none.as_bytes());
        assert_eq!((told.code, told.out.as_str(), told.err.as_str()), (0, "", ""), "{none:?}");
    }
}

/// A line that cannot be read is named with its field, or with the place in it, and the next one is answered.
#[test]
fn a_bad_line_is_told_with_its_field() {
    let with = |was: &str, is: &str| {
        let (good, bad) = (question("1"), question("1").replacen(was, is, 1));
        assert_ne!(good, bad, "{was}");
        bad.into_bytes()
    };
    let mut latin = question("1").into_bytes();
    latin.splice(1..1, *b"\"n\":\"caf\xe9\",");
    let cases = [
        (
            with("\"identity\":null,", ""),
            "source.identity: is missing; null says that it is plaintext",
        ),
        (with("null", "7"), "source.identity: "),
        (with("null", "\"spiffe://x\""), "source.identity: "),
        (with("\"10.0.1.2\"", "\"10.0.1\""), "source.ip: "),
        (with(",\"ip\":\"10.0.1.2\"", ""), "source.ip: is missing"),
        (with("\"identity\"", "\"Identity\""), "source.Identity: "),
        (
            with("80", "\"80\""),
            "destination.port: string \"80\" stands where a number from 0 to 65535 is wanted",
        ),
        (with("80", "65536"), "`65536` stands where a number from 0 to 65535 is wanted"),
        (with("80", "-1"), "destination.port: "),
        (with("\"labels\":{}", "\"labels\":{\"v\":1}"), "destination.labels.v: "),
        (with("\"labels\":{}", "\"labels\":[]"), "destination.labels: "),
        (
            with("\"labels\":{}", "\"labels\":{\"v\":\"1\",\"v\":\"2\"}"),
            "the label v is given twice",
        ),
        (with("\"labels\"", "\"label\""), "destination.label: "),
        (with("\"id\":1", "\"id\":1,\"id\":2"), "duplicate field `id`"),
        (with("\"id\":1", "\"id\":01"), "column 8: "),
        (with("80}}", "80}"), "column "),
        (with("80}}", "80}} {}"), "column "),
        (with("{\"id\"", "[\"id\""), "column "),
        (b"hello".to_vec(), "where an object with id, source and destination is wanted"),
        (latin, "byte 10 is not UTF-8"),
        ([0xff, 0xfe, b'{', 0].to_vec(), "byte 1 is not UTF-8"),
    ];
    for (bad, wanted) in cases {
        let lines = [question("0").into_bytes(), bad.clone(), question("2").into_bytes()].join(&b'\n');
        let told = decide(&lines);
        let shown = String::from_utf8_lossy(&bad);
        assert_eq!((told.code, told.err.lines().count()), (1, 1), "{shown}: {}", told.err);
        assert!(
            told.err.starts_with("connections:2: error: ") && told.err.contains(wanted) && !told.err.contains(" at line "),
            "{shown}: {}",
            told.err
        );
        assert_eq!(told.out, answer("0") + &answer("2"), "{shown}");
    }
}

/// One byte more than a line may have, and one less.
#[test]
fn a_line_is_read_up_to_its_bound() {
    let of = |len: usize| {
        let mut line = question("1");
        line.insert_str(1, &format!("\"pad\":\"{}\",", "x".repeat(len - line.len() - 9)));
        assert_eq!(line.len(), len);
        line
    };
    let most = 1 << 20;
    let told = decide(format!("{}\n{}\n{}", of(most - 1), of(most), of(most)).as_bytes());
    assert_eq!((told.code, told.out), (1, answer("1") + &answer("1")), "{}", told.err);
    assert_eq!(told.err, "connections:2: error: it is longer than 1048576 bytes\n");
    let told = decide(format!("{}\n{}", of(5 * most), question("2")).as_bytes());
    assert_eq!((told.code, told.out), (1, answer("2")), "{}", told.err);
}

/// More workloads and identities than are remembered: every line is answered, in order.
#[test]
fn very_many_lines_are_all_answered() {
    const LINES: usize = (1 << 16) + 1000;
    let lines: String = (0..LINES)
        .map(|at| {
            format!(
                "{{\"id\":{at},\"source\":{{\"identity\":\"spiffe://cluster.local/ns/n{at}/sa/a\",\"ip\":\"10.0.1.2\"}},\
                 \"destination\":{{\"namespace\":\"m{at}\",\"ip\":\"10.0.2.2\",\"port\":80}}}}\n"
            )
        })
        .collect();
    let told = decide(lines.as_bytes());
    assert_eq!((told.code, told.err.as_str()), (0, ""));
    let wrong = told
        .out
        .lines()
        .enumerate()
        .find(|(at, line)| format!("{line}\n") != answer(&at.to_string()));
    assert_eq!((wrong, told.out.lines().count()), (None, LINES));
}

/// Nobody takes a part of the answers for all of them, and what went wrong is told of the end where it did.
#[test]
fn an_end_that_fails_is_told() {
    let files = Files::new(&[("shop.yaml", SHOP)]);
    fs::write(files.path("connections"), question("1")).unwrap();
    fs::create_dir(files.path("directory")).unwrap();
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    for (connections, out, code, why) in [
        ("connections", Stdio::from(full), 1, "ambient authz: <stdout>: No space left"),
        ("directory", Stdio::null(), 1, "ambient authz: directory: Is a directory"),
        ("missing", Stdio::null(), 2, "ambient authz: missing: No such file"),
    ] {
        let ended = Command::new(env!("CARGO_BIN_EXE_ambient"))
            .current_dir(files.0.path())
            .args(["authz", "decide", "--policies", "shop.yaml", "--connections", connections])
            .stdout(out)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
            .wait_with_output()
            .unwrap();
        let err = String::from_utf8(ended.stderr).unwrap();
        assert!(ended.status.code() == Some(code) && err.starts_with(why), "{err}");
    }
}

/// Answers go on where nobody hears what is wrong with a line.
#[test]
fn nobody_has_to_read_what_is_wrong() {
    let files = Files::new(&[("shop.yaml", SHOP)]);
    let mut child = Command::new(env!("CARGO_BIN_EXE_ambient"))
        .current_dir(files.0.path())
        .args(["authz", "decide", "--policies", "shop.yaml", "--connections", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    drop(child.stderr.take());
    stdin.write_all(format!("hello\n{}\n", question("2")).as_bytes()).unwrap();
    drop(stdin);
    let mut out = String::new();
    child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    assert_eq!((child.wait().unwrap().code(), out), (Some(1), answer("2")));
}

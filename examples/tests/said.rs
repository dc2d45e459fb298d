//! What commands say, and to whom: a reader that has gone, one that has no room, and a node that answers with nothing.

use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
    process::{Command, Output, Stdio},
    thread,
};

#[expect(clippy::unwrap_used, reason = "a test's own helper")]
fn ambient(arguments: &[&str], out: Stdio, err: Stdio) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ambient"));
    command.args(arguments).env_clear().stdin(Stdio::null()).stdout(out).stderr(err);
    command.spawn().unwrap().wait_with_output().unwrap()
}

/// Nobody reads it, and nobody will.
#[expect(clippy::unwrap_used, reason = "a test's own helper")]
fn closed() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

#[test]
fn whoever_has_gone_is_no_failure_and_who_has_no_room_is_one() {
    let scratch = tempfile::tempdir().unwrap();
    let ca = scratch.path().join("ca");
    let ca = ca.to_str().unwrap();
    let made = ambient(&["ca", "init", "--ca", ca], Stdio::piped(), Stdio::piped());
    assert!(made.status.success(), "{made:?}");
    let config = ["node", "--print-config", "--manifests", "/m", "--ca-dir", "/c", "--node", "n"];
    for arguments in [
        &["ca", "show", "--ca", ca][..],
        &["ca", "show", "--json", "--ca", ca],
        &["control", "token", "n", "--ca", ca],
        &["control", "tokens", "--ca", ca],
        &["control", "tokens", "--json", "--ca", ca],
        &config,
    ] {
        let told = ambient(arguments, closed(), Stdio::piped());
        let err = String::from_utf8_lossy(&told.stderr).into_owned();
        // A token that nobody has is good for nobody.
        match arguments.contains(&"token") {
            true => assert!(told.status.code() == Some(1) && err.contains("it is taken back"), "{err}"),
            false => assert_eq!((told.status.code(), err.as_str()), (Some(0), ""), "{arguments:?}"),
        }
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let told = ambient(arguments, full.into(), Stdio::piped());
        let err = String::from_utf8_lossy(&told.stderr).into_owned();
        assert_eq!(told.status.code(), Some(1), "{arguments:?}: {err}");
        assert!(
            err.starts_with(&format!("ambient {}: <stdout>: No space left", arguments[0])) && err.lines().count() == 1,
            "{arguments:?}: {err}"
        );
    }
}

/// The code says it still where nobody can be told.
#[test]
fn a_failure_that_nobody_can_be_told_of_is_a_failure() {
    for arguments in [
        &["ca", "show", "--ca", "/nowhere"][..],
        &["control", "tokens", "--ca", "/nowhere"],
        &["node", "--node", "n", "--manifests", "/nowhere", "--ca-dir", "/nowhere"],
        &["pods", "--admin", "127.0.0.1:1"],
    ] {
        let told = ambient(arguments, Stdio::piped(), closed());
        assert_eq!(told.status.code(), Some(1), "{arguments:?}: {told:?}");
    }
    let told = ambient(&["node", "--drain", "soon"], Stdio::piped(), closed());
    assert_eq!(told.status.code(), Some(2), "{told:?}");
}

/// What `ambient pods` comes to where this is answered, and at which address.
#[expect(clippy::unwrap_used, reason = "a test's own helper")]
fn pods_of(answer: Vec<u8>) -> (String, Output) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let node = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut asked = [0; 4096];
        let _ = stream.read(&mut asked).unwrap();
        // Of what is too long not all is taken.
        let _ = stream.write_all(&answer);
    });
    let told = ambient(&["pods", "--admin", &address], Stdio::piped(), Stdio::piped());
    node.join().unwrap();
    (address, told)
}

#[test]
fn half_of_an_answer_is_none() {
    let long = ["HTTP/1.1 200 OK\r\n\r\n", &"x".repeat(17 << 20)].concat();
    for (answer, wanted) in [
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nhalf of it".to_owned(),
            "before all of it came",
        ),
        (long, "longer than 16 MiB"),
    ] {
        let (address, told) = pods_of(answer.into());
        let err = String::from_utf8_lossy(&told.stderr);
        assert_eq!((told.status.code(), told.stdout.len()), (Some(1), 0), "{err}");
        assert!(err.contains(wanted) && err.contains(&address), "{err}");
    }
    let (_, told) = pods_of("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nall of it\n".into());
    assert_eq!((told.status.code(), &told.stdout[..]), (Some(0), &b"all of it\n"[..]), "{told:?}");
}

/// Something listens where a node's admin pages are looked for, and is none, or says nothing more than that it will not.
#[test]
fn an_answer_without_words_is_told_in_words() {
    for (answer, wanted) in [
        ("", "the answer is not HTTP"),
        ("HTTP/1.1 200 OK\r\n\r\n", "200"),
        ("HTTP/1.1 404 Not Found\r\n\r\n", "404"),
        ("HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n \n", "500"),
    ] {
        let (address, told) = pods_of(answer.into());
        let err = String::from_utf8_lossy(&told.stderr).trim().to_owned();
        assert_eq!(told.status.code(), Some(1), "{err}");
        assert!(
            err.contains(wanted) && err.contains(&address) && err.contains("--admin"),
            "{answer:?}: {err}"
        );
    }
}

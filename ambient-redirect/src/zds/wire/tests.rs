use proptest::prelude::*;

use super::*;

fn info(name: &str, namespace: &str, service_account: &str) -> WorkloadInfo {
    WorkloadInfo {
        name: name.into(),
        namespace: namespace.into(),
        service_account: service_account.into(),
    }
}

fn add(uid: &str, info: Option<WorkloadInfo>) -> Request {
    Request::Add { uid: uid.into(), info }
}

/// Each message and its bytes, as `protoc --encode` writes them from Istio's `zds.proto`.
#[test]
fn bytes_are_istios() {
    assert_eq!(Hello { version: 1 }.encode(), [0x08, 0x01]);
    assert_eq!(Hello::decode(&[0x08, 0x01]), Ok(Hello { version: 1 }));
    let requests: [(Request, &[u8]); 6] = [
        (
            add("u1", Some(info("web", "shop", "sa"))),
            b"\x0a\x15\x0a\x02u1\x12\x0f\x0a\x03web\x12\x04shop\x1a\x02sa",
        ),
        (add("u1", Some(info("", "", ""))), b"\x0a\x06\x0a\x02u1\x12\x00"),
        (add("u1", None), b"\x0a\x04\x0a\x02u1"),
        (Request::Del { uid: "u1".into() }, b"\x12\x04\x12\x02u1"),
        (Request::SnapshotSent, b"\x1a\x00"),
        (Request::Keep { uid: "u1".into() }, b"\x2a\x04\x0a\x02u1"),
    ];
    for (request, bytes) in requests {
        assert_eq!(request.encode(), bytes, "{request:?}");
        assert_eq!(Request::decode(bytes), Ok(request));
    }
    assert_eq!(Ack::well().encode(), [0x0a, 0x00]);
    assert_eq!(Ack::decode(&[0x0a, 0x00]), Ok(Ack::well()));
    assert_eq!(Ack::refusal("no").encode(), b"\x0a\x04\x0a\x02no");
    assert_eq!(Ack::decode(b"\x0a\x04\x0a\x02no"), Ok(Ack::refusal("no")));
}

#[test]
fn what_a_later_version_adds_is_passed_over() {
    let unknown = b"\x30\x96\x01\x39\x01\x02\x03\x04\x05\x06\x07\x08\x42\x01x\x4d\x01\x02\x03\x04";
    let mut packet = unknown.to_vec();
    packet.extend_from_slice(b"\x12\x09\x30\x01\x0a\x01x\x12\x02u1");
    packet.extend_from_slice(unknown);
    // The UID of a removal is its field 2, whatever its field 1 may be one day.
    assert_eq!(Request::decode(&packet), Ok(Request::Del { uid: "u1".into() }));
    assert_eq!(
        Request::decode(unknown),
        Err(DecodeError::Empty),
        "and is not taken for what is known"
    );
    assert_eq!(Hello::decode(b"\x08\x02\x10\x05"), Ok(Hello { version: 2 }));
}

#[test]
fn the_last_counts_and_the_same_is_merged() {
    let mut packet = add("u1", Some(info("web", "", ""))).encode();
    packet.extend(add("u2", Some(info("", "shop", ""))).encode());
    assert_eq!(Request::decode(&packet), Ok(add("u2", Some(info("web", "shop", "")))));
    packet.extend(Request::SnapshotSent.encode());
    assert_eq!(Request::decode(&packet), Ok(Request::SnapshotSent));
    packet.extend(add("u3", None).encode());
    assert_eq!(Request::decode(&packet), Ok(add("u3", None)), "what was overruled is forgotten");
}

#[test]
fn what_is_no_message_is_refused() {
    let cases: [(&[u8], DecodeError); 13] = [
        (b"", DecodeError::Empty),
        (b"\x0a", DecodeError::Truncated),
        (b"\x0a\x05\x0a\x02u1", DecodeError::Truncated),
        (b"\x0a\x04\x0a\x03u1", DecodeError::Truncated),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", DecodeError::Truncated),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", DecodeError::Varint),
        (b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x00", DecodeError::Varint),
        (b"\x02\x00", DecodeError::Key),
        (b"\x0b\x0c", DecodeError::Key),
        (b"\x08\x01", DecodeError::Type(1)),
        (b"\x0a\x02\x08\x01", DecodeError::Type(1)),
        (b"\x0a\x04\x0a\x02\xff\xfe", DecodeError::Text),
        (b"\x12\x04\x0a\x02u1", DecodeError::Uid),
    ];
    for (packet, error) in cases {
        assert_eq!(Request::decode(packet), Err(error), "{packet:x?}");
    }
    assert_eq!(Ack::decode(b""), Err(DecodeError::Empty));
    assert_eq!(
        Hello::decode(b""),
        Ok(Hello { version: 0 }),
        "no version is version 0, which is none"
    );
}

#[test]
fn errors_are_cut_between_characters() {
    let ack = Ack::refusal(&"ä".repeat(600));
    assert_eq!(ack.error.len(), LONGEST_ERROR);
    assert!(ack.encode().len() <= LONGEST_PACKET);
    assert_eq!(cut("äb", 1), "");
    assert!(!Ack::refusal("").error.is_empty(), "a refusal without a reason is one still");
}

proptest! {
    #[test]
    fn what_is_written_is_read(uid in "[a-z0-9-]{1,40}", texts in any::<Option<(String, String, String)>>(), error in any::<String>()) {
        let info = texts.map(|(name, namespace, account)| info(&name, &namespace, &account));
        for request in [
            add(&uid, info),
            Request::Del { uid: uid.as_str().into() },
            Request::Keep { uid: uid.as_str().into() },
        ] {
            prop_assert_eq!(Request::decode(&request.encode()), Ok(request));
        }
        let ack = Ack { error };
        prop_assert_eq!(Ack::decode(&ack.encode()), Ok(ack));
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(packet in proptest::collection::vec(any::<u8>(), 0..200)) {
        // What is understood is understood again once it is written.
        if let Ok(request) = Request::decode(&packet) {
            prop_assert_eq!(Request::decode(&request.encode()), Ok(request));
        }
        if let Ok(ack) = Ack::decode(&packet) {
            prop_assert_eq!(Ack::decode(&ack.encode()), Ok(ack));
        }
        let _ = Hello::decode(&packet);
    }
}

use super::*;

#[test]
fn a_name_is_read_in_lower_case() {
    let question = Question::read(b"............\x03WeB\x04shop\0\0\x01\0\x01rest").unwrap();
    assert_eq!(question.name.as_deref(), Some("web.shop"));
    assert_eq!((question.kind, question.class), (A, INTERNET));
    assert_eq!(question.bytes(), b"\x03WeB\x04shop\0\0\x01\0\x01");
}

#[test]
fn a_dot_within_a_label_is_no_separator() {
    assert_eq!(Question::read(b"............\x08web.shop\0\0\x01\0\x01").unwrap().name, None);
}

#[test]
fn broken_names_are_malformed() {
    let name = |bytes: &[u8]| Question::read(&[b"............", bytes].concat()).map(|_| ());
    assert_eq!(name(b""), Err(Malformed));
    assert_eq!(name(b"\x03we"), Err(Malformed));
    assert_eq!(name(b"\x03web"), Err(Malformed));
    assert_eq!(name(b"\x03web\0\0\x01\0"), Err(Malformed));
    assert_eq!(name(b"\xc0\x0c\0\x01\0\x01"), Err(Malformed), "a pointer to itself");
    assert_eq!(name(b"\x40aaaa"), Err(Malformed));
    let long = |labels| [b"\x01a".repeat(labels), b"\0\0\x01\0\x01".to_vec()].concat();
    assert_eq!(name(&long(127)), Ok(()), "255 bytes");
    assert_eq!(name(&long(128)), Err(Malformed));
}

#[test]
fn records_are_skipped_by_their_length() {
    let head = b"\0\0\x01\0\0\x01\0\0\0\0\0\x02";
    let question = b"\x01a\0\0\x01\0\x01";
    let opt = b"\0\0\x29\x10\0\0\0\x80\0\0\x05\0\x0a\0\x01z";
    let other = b"\xc0\x0c\0\x63\0\x01\0\0\0\0\0\x02zz";
    let read = |parts: &[&[u8]]| {
        let message = parts.concat();
        Extras::read(&message, &Header::read(&message).unwrap())
    };
    let edns = Some(Edns {
        payload: 4096,
        version: 0,
        dnssec_ok: true,
    });
    let all = |others, signed| Ok(Extras { edns, signed, others });
    assert_eq!(read(&[head, question, other, opt]), all(true, false));
    assert_eq!(read(&[head, question, opt, b"\0\0\xfa\0\xff\0\0\0\0\0\0"]), all(false, true));
    assert_eq!(read(&[b"\0\0\x01\0\0\x01\0\0\0\0\0\x01", question, opt, b"more"]), all(true, false));
    assert_eq!(read(&[head, question, opt, opt]), Err(Malformed), "two of them");
    assert_eq!(read(&[head, question, opt]), Err(Malformed), "one is missing");
    assert_eq!(read(&[head, question, opt, &other[..13]]), Err(Malformed));
}

#[test]
fn questions_are_found_whatever_their_names_are() {
    let head = |count| Header::read(b"\0\0\x01\0\0\0\0\0\0\0\0\0").unwrap().with_questions(count);
    let two = b"............\x01a\0\0\x10\0\x01\xc0\x0c\0\x01\0\x01rest";
    assert_eq!(questions(two, &head(2)), Some(&two[12..25]));
    assert_eq!(questions(two, &head(1)), Some(&two[12..19]));
    assert_eq!(questions(two, &head(0)), Some(&[][..]));
    assert_eq!(questions(two, &head(3)), None);
    assert_eq!(questions(two, &head(u16::MAX)), None);
    assert_eq!(
        (kind(two, &head(2)), kind(two, &head(0)), kind(&two[..18], &head(1))),
        (Some(16), None, None)
    );
    assert_eq!(
        questions(b"............\x80\0\0\0\0\0", &head(1)),
        None,
        "neither a length nor a pointer"
    );
}

#[test]
fn a_name_that_cannot_be_written_is_none() {
    assert_eq!(encode("a.bc"), Some(b"\x01a\x02bc\0".to_vec()));
    for name in ["", "a..b", ".a", "a."] {
        assert_eq!(encode(name), None, "{name}");
    }
    assert!(encode(&"a".repeat(63)).is_some() && encode(&"a".repeat(64)).is_none());
    let long = "a.".repeat(126) + "a";
    assert_eq!(encode(&long).map(|bytes| bytes.len()), Some(255));
    assert_eq!(encode(&(long + "a")), None);
}

#[test]
fn a_name_is_told_as_zone_files_write_it() {
    let told = |question: &[u8]| {
        let message = [&b"\0\x07\x81\x80\0\x01\0\0\0\0\0\0"[..], question].concat();
        asked(&message, &Header::read(&message).unwrap())
    };
    for (question, name) in [
        (&b"\x03WeB\x04shop\0\0\x01\0\x01"[..], Some("WeB.shop.")),
        (b"\0\0\x02\0\x01", Some(".")),
        // Nothing in it ends a line of the log, or looks like another name.
        (b"\x05a.b\\\n\x02\xff \0\0\x01\0\x01", Some("a\\.b\\\\\\010.\\255\\032.")),
        (b"\x03we", None),
        (b"\xc0\x0c\0\x01\0\x01", None),
    ] {
        assert_eq!(told(question).as_deref(), name, "{question:?}");
    }
    assert_eq!(asked(b"\0\x07\x81\x80\0\0\0\0\0\0\0\0", &Header::read(&[0; 12]).unwrap()), None);
}

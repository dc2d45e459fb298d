use super::*;

#[test]
fn a_name_is_read_in_lower_case() {
    let question = Question::read(b"............\x03WeB\x04shop\0\0\x01\0\x01rest").unwrap();
    assert_eq!(question.name.as_deref(), Some("web.shop"));
    assert_eq!((question.kind, question.class), (A, INTERNET));
    assert!(question.is_asked_by(b"............\x03wEb\x04SHOP\0\0\x01\0\x01"));
    assert!(!question.is_asked_by(b"............\x03wEb\x04SHOP\0\0\x1c\0\x01"));
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
        let question = Question::read(&message).unwrap();
        Extras::read(&message, &Header::read(&message).unwrap(), &question)
    };
    let edns = Some(Edns {
        payload: 4096,
        version: 0,
        dnssec_ok: true,
    });
    assert_eq!(read(&[head, question, other, opt]), Ok(Extras { edns, signed: false }));
    assert_eq!(read(&[head, question, opt, opt]), Err(Malformed), "two of them");
    assert_eq!(read(&[head, question, opt]), Err(Malformed), "one is missing");
    assert_eq!(read(&[head, question, opt, &other[..13]]), Err(Malformed));
}

#[test]
fn a_cut_reply_keeps_its_question() {
    let reply = b"\x12\x34\x81\x80\0\x01\0\x01\0\0\0\0\x01a\0\0\x01\0\x01\xc0\x0c\0\x01\0\x01\0\0\0\x1e\0\x04\x0a\0\0\x01";
    assert_eq!(cut(reply.to_vec()), b"\x12\x34\x83\x80\0\x01\0\0\0\0\0\0\x01a\0\0\x01\0\x01");
    assert_eq!(cut(reply[..14].to_vec()), b"\x12\x34\x83\x80\0\0\0\0\0\0\0\0");
}

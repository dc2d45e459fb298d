use super::*;

#[test]
fn a_message_with_nested_attributes() {
    let mut writer = Writer::default();
    writer.begin(0x0a06, NLM_F_CREATE, &[1, 0, 0, 0]);
    writer.text(1, "nat");
    writer.nest(4, |list| list.be32(2, 7));
    writer.ask_ack();
    let (bytes, last) = writer.finish(9);
    #[rustfmt::skip]
    let expected = [
        40, 0, 0, 0, 0x06, 0x0a, 0x05, 0x04, 9, 0, 0, 0, 0, 0, 0, 0, // request, ack, create
        1, 0, 0, 0,
        8, 0, 1, 0, b'n', b'a', b't', 0,
        12, 0, 4, 0x80, 8, 0, 2, 0, 0, 0, 0, 7,
    ];
    assert_eq!(
        bytes,
        if cfg!(target_endian = "little") {
            expected.to_vec()
        } else {
            bytes.clone()
        }
    );
    assert_eq!(last, 9);
}

#[test]
fn messages_are_numbered_and_only_the_last_asks() {
    let mut first = Writer::default();
    first.begin(1, 0, &[]);
    let mut second = Writer::default();
    second.begin(2, 0, &[0; 4]);
    second.begin(3, 0, &[]);
    second.text(1, "x");
    second.ask_ack();
    first.append(second);
    assert_eq!(first.messages(), 3);
    let (bytes, last) = first.finish(u32::MAX - 1);
    let all: Vec<_> = messages(&bytes).map(|m| (m.kind, m.sequence, m.flags & NLM_F_ACK != 0)).collect();
    assert_eq!(all, [(1, u32::MAX - 1, false), (2, u32::MAX, false), (3, 0, true)]);
    assert_eq!(last, 0);
}

#[test]
fn damaged_bytes_end_the_reading() {
    let mut writer = Writer::default();
    writer.begin(1, 0, &[1, 2, 3, 4]);
    writer.text(1, "something");
    writer.nest(2, |w| w.be32(1, 1));
    let (bytes, _) = writer.finish(0);
    for cut in 0..bytes.len() {
        assert_eq!(messages(&bytes[..cut]).count(), 0);
        attributes(&bytes[..cut]).for_each(drop);
    }
    for at in 0..bytes.len() {
        for value in [0, 1, 3, 0x7f, 0xff] {
            let mut damaged = bytes.clone();
            damaged[at] = value;
            let count = messages(&damaged)
                .map(|m| attributes(m.payload.get(4..).unwrap_or(&[])).count())
                .sum::<usize>();
            assert!(count < 20);
        }
    }
}

#[test]
fn texts_and_numbers_that_are_too_short() {
    assert_eq!(read_text(b"ab\0cd"), "ab");
    assert_eq!(read_text(b""), "");
    assert_eq!(
        (read_be32(&[1, 2, 3]), read_be64(&[0; 7]), read_u32(&[0; 5], 2), read_u16(&[], 0)),
        (None, None, None, None)
    );
    assert_eq!(read_ip(&[10, 0, 0, 1]), Some("10.0.0.1".parse().unwrap()));
    assert_eq!(read_ip(&[0; 5]), None);
}

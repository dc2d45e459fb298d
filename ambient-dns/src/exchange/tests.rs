use proptest::prelude::*;

use super::*;

/// ID 0x1234, one question: `aB`, type TXT.
const QUERY: &[u8] = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x02aB\0\0\x10\0\x01";

fn sent(query: &[u8]) -> (Exchange, Vec<u8>) {
    Exchange::new(query, 0xffff_ffff_ffff_abcd).unwrap()
}

/// The answer to what was sent, with what a server sets.
fn answered(sent: &[u8]) -> Vec<u8> {
    let mut reply = sent.to_vec();
    reply[2] |= 0x80;
    reply.extend(b"whatever else it says");
    reply
}

#[test]
fn only_the_id_is_exchanged_there_and_back() {
    let (exchange, bytes) = sent(QUERY);
    assert_eq!(bytes, [b"\xab\xcd", &QUERY[2..]].concat());
    let mut reply = answered(&bytes);
    exchange.settle(&mut reply).unwrap();
    assert_eq!(reply, [b"\x12\x34", &answered(&bytes)[2..]].concat());
}

#[test]
fn what_is_signed_keeps_its_id() {
    for kind in [250, 24] {
        let mut signed = QUERY.to_vec();
        signed[11] = 1;
        signed.extend([0, 0, kind, 0, 255, 0, 0, 0, 0, 0, 0]);
        assert_eq!(sent(&signed).1, signed);
    }
}

#[test]
fn what_is_no_query_is_not_sent() {
    assert!(Exchange::new(b"", 0).is_none());
    assert!(Exchange::new(&QUERY[..11], 0).is_none());
    assert!(Exchange::new(&answered(QUERY), 0).is_none());
}

#[test]
fn what_is_no_answer_is_told_from_one() {
    let (exchange, bytes) = sent(QUERY);
    let changed = |at: usize, to: u8| {
        let mut reply = answered(&bytes);
        reply[at] = to;
        let before = reply.clone();
        let settled = exchange.settle(&mut reply);
        assert!(settled.is_ok() || reply == before);
        settled
    };
    assert_eq!(exchange.settle(&mut bytes[..11].to_vec()), Err(Mismatch::Short));
    assert_eq!(changed(2, 0x01), Err(Mismatch::Query));
    assert_eq!(changed(0, 0xac), Err(Mismatch::Id));
    assert_eq!(changed(1, 0), Err(Mismatch::Id));
    assert_eq!(changed(2, 0x81 | 5 << 3), Err(Mismatch::Operation));
    assert_eq!(changed(13, b'x'), Err(Mismatch::Question));
    assert_eq!(changed(13, b'A'), Ok(()), "in any case");
    assert_eq!(changed(17, 0x11), Err(Mismatch::Question), "another type");
    assert_eq!(changed(19, 3), Err(Mismatch::Question), "another class");
    assert_eq!(changed(5, 2), Err(Mismatch::Question), "one more");
    assert_eq!(changed(12, 0xc0), Err(Mismatch::Question));
    assert_eq!(
        exchange.settle(&mut answered(&bytes)[..15]),
        Err(Mismatch::Question),
        "it ends within"
    );
}

#[test]
fn a_question_may_be_left_out_by_who_refuses_only() {
    let (exchange, bytes) = sent(QUERY);
    for code in 0..16 {
        let mut reply = [&bytes[..2], &[0x81, code], &[0; 8]].concat();
        assert_eq!(exchange.settle(&mut reply).is_ok(), code != 0, "code {code}");
    }
    // An update's answer often is a header alone.
    let update = b"\x12\x34\x28\0\0\x01\0\0\0\0\0\0\x02aB\0\0\x06\0\x01";
    let (exchange, bytes) = sent(update);
    exchange.settle(&mut [&bytes[..2], b"\xa8", &[0; 9]].concat()).unwrap();
}

#[test]
fn several_questions_and_none_are_exchanged_as_one() {
    let two = [&QUERY[..5], b"\x02", &QUERY[6..], b"\xc0\x0c\0\x01\0\x01"].concat();
    let (exchange, bytes) = sent(&two);
    exchange.settle(&mut answered(&bytes)).unwrap();
    let none = [&QUERY[..5], b"\0", &QUERY[6..12]].concat();
    let (exchange, bytes) = sent(&none);
    exchange.settle(&mut answered(&bytes)).unwrap();
}

proptest! {
    #[test]
    fn whatever_is_sent_its_answer_is_known_and_restored(query in prop::collection::vec(any::<u8>(), 0..200), draw in any::<u64>(), rest in prop::collection::vec(any::<u8>(), 0..50)) {
        let Some((exchange, bytes)) = Exchange::new(&query, draw) else {
            prop_assert!(query.len() < 12 || query[2] & 0x80 != 0);
            return Ok(());
        };
        prop_assert_eq!(&bytes[2..], &query[2..]);
        let mut reply = bytes;
        reply[2] |= 0x80;
        reply.extend(rest);
        let mut settled = reply.clone();
        prop_assert_eq!(exchange.settle(&mut settled), Ok(()));
        prop_assert_eq!(&settled[..2], &query[..2]);
        prop_assert_eq!(&settled[2..], &reply[2..]);
    }

    #[test]
    fn any_bytes_for_an_answer_are_taken(query in prop::collection::vec(any::<u8>(), 12..100), reply in prop::collection::vec(any::<u8>(), 0..100), draw in any::<u64>()) {
        if let Some((exchange, bytes)) = Exchange::new(&query, draw) {
            let mut taken = reply.clone();
            if exchange.settle(&mut taken).is_ok() {
                prop_assert_eq!((&reply[..2], &taken[..2]), (&bytes[..2], &query[..2]));
            } else {
                prop_assert_eq!(taken, reply);
            }
        }
    }
}

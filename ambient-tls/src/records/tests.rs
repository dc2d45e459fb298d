#![cfg(feature = "aws-lc-rs")]

use std::io::Write;

use proptest::prelude::*;

use super::*;
use crate::handshake::tests::{BOTH, Ours, hear, pair, said};

/// Opens all records at the front; gives the data, and what is left.
fn open(records: &mut Records, mut bytes: Vec<u8>, replies: &mut Sealed) -> Result<(Vec<u8>, Vec<u8>), Error> {
    let mut all = Vec::new();
    loop {
        match records.open(&mut bytes, replies)? {
            Opened::Record { length, data } => {
                all.extend_from_slice(&bytes[data]);
                bytes.drain(..length);
            }
            Opened::Incomplete | Opened::End => return Ok((all, bytes)),
        }
    }
}

fn flat(sealed: &mut Sealed) -> Vec<u8> {
    sealed.drain(..).flatten().collect()
}

/// Seals all of it.
fn seal(records: &mut Records, data: &[u8], sealed: &mut Sealed) {
    let mut n = 0;
    while n < data.len() {
        n += records.seal(&data[n..].into(), sealed).unwrap();
    }
}

/// Two of our ends, so that one may say what rustls never would.
fn two() -> (Records, Records) {
    // Keys of one direction are those of the other's other: the client's of one handshake, the server's of the same.
    let (mut a, mut b) = crate::handshake::tests::both_ours();
    let mut sealed = Sealed::new();
    seal(&mut a, b"hello", &mut sealed);
    assert_eq!(open(&mut b, flat(&mut sealed), &mut Sealed::new()).unwrap().0, b"hello");
    (a, b)
}

/// Says so in a record of that kind, and gives what came of it, and the alert.
fn tell(kind: ContentType, payload: &[u8], times: usize) -> Result<(), (Error, AlertDescription)> {
    let (mut a, mut b) = two();
    let mut sealed = Sealed::new();
    for _ in 0..times {
        a.seal_one(kind, OutboundChunks::Single(payload), &mut sealed).unwrap();
    }
    let mut replies = Sealed::new();
    let Err(error) = open(&mut b, flat(&mut sealed), &mut replies) else {
        return Ok(());
    };
    let alert = match open(&mut a, flat(&mut replies), &mut Sealed::new()) {
        Err(Error::AlertReceived(alert)) => alert,
        _ => AlertDescription::CloseNotify,
    };
    Err((error, alert))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    /// Beside rustls: what one end says is what the other hears, whatever its size, however it comes, and with keys that change.
    #[test]
    fn rustls_understands_and_is_understood(
        server in any::<bool>(),
        steps in proptest::collection::vec((0_u8..5, 0_usize..40_000, 1_usize..20_000), 1..30),
    ) {
        let (mut records, mut peer) = pair(BOTH[usize::from(server)]);
        let mut sealed = Sealed::new();
        let (mut sent, mut heard) = (Vec::new(), Vec::new());
        let (mut sent_back, mut heard_back, mut left) = (Vec::new(), Vec::new(), Vec::new());
        for (value, (step, n, cut)) in steps.into_iter().enumerate() {
            let data = vec![value as u8; n];
            match step {
                0 => records.update_keys(&mut sealed).unwrap(),
                1 => peer.refresh_traffic_keys().unwrap(),
                2 | 3 => {
                    seal(&mut records, &data, &mut sealed);
                    sent.extend(data);
                }
                _ => {
                    peer.writer().write_all(&data).unwrap();
                    sent_back.extend(data);
                }
            }
            for piece in said(&mut peer).chunks(cut) {
                left.extend_from_slice(piece);
                let (data, rest) = open(&mut records, std::mem::take(&mut left), &mut sealed).unwrap();
                heard_back.extend(data);
                left = rest;
            }
            records.answer(&mut sealed).unwrap();
            heard.extend(hear(&mut peer, &flat(&mut sealed)).unwrap());
            prop_assert!(left.is_empty());
            prop_assert!(heard == sent && heard_back == sent_back);
        }
    }

    /// Whatever bytes come, and whatever is changed of those that were sealed, never is anything opened that was not said.
    #[test]
    fn nothing_is_opened_that_was_not_sealed(at in 0_usize..64, change in 1_u8..=255, garbage in proptest::collection::vec(any::<u8>(), 0..64)) {
        let (mut records, mut peer) = pair(Ours::Server);
        peer.writer().write_all(&[7; 40]).unwrap();
        let mut bytes = said(&mut peer);
        let at = at % bytes.len();
        bytes[at] ^= change;
        bytes.extend(&garbage);
        // Version bytes mean nothing; a longer or shorter record is waited for or does not open.
        if let Ok((data, _)) = open(&mut records, bytes, &mut Sealed::new()) {
            prop_assert!(data.is_empty() || (1..3).contains(&at));
        }
        let (mut records, _) = pair(Ours::Server);
        if let Ok((data, _)) = open(&mut records, garbage, &mut Sealed::new()) {
            prop_assert!(data.is_empty());
        }
    }
}

#[test]
fn worn_out_keys_are_changed_in_time() {
    for ours in BOTH {
        let (mut records, mut peer) = pair(ours);
        (records.worn_out, records.sealed) = (4, records.sealed.min(1));
        let mut sealed = Sealed::new();
        let mut heard = Vec::new();
        for value in 0..40 {
            seal(&mut records, &[value; 100], &mut sealed);
            assert!(records.sealed < 4);
            heard.extend(hear(&mut peer, &flat(&mut sealed)).unwrap());
        }
        assert_eq!(heard.len(), 4000);
        // A number that is used up is not used again.
        records.worn_out = u64::MAX;
        records.sealed = LAST;
        assert!(records.seal(&b"x"[..].into(), &mut sealed).is_err() && sealed.is_empty());
    }
}

#[test]
fn an_end_is_told_and_heard() {
    for ours in BOTH {
        let (mut records, mut peer) = pair(ours);
        let mut sealed = Sealed::new();
        seal(&mut records, b"last", &mut sealed);
        records.close(&mut sealed);
        records.close(&mut sealed);
        assert_eq!(sealed.len(), 2, "once");
        assert!(records.seal(&b"more"[..].into(), &mut sealed).is_err());
        assert!(records.update_keys(&mut sealed).is_err());
        assert_eq!(sealed.len(), 2, "nothing goes behind it");
        assert_eq!(hear(&mut peer, &flat(&mut sealed)).unwrap(), b"last");
        assert!(peer.process_new_packets().unwrap().peer_has_closed());

        peer.writer().write_all(b"its last").unwrap();
        peer.send_close_notify();
        let mut bytes = said(&mut peer);
        let behind = bytes.clone();
        bytes.extend(behind);
        let (data, _) = open(&mut records, bytes, &mut sealed).unwrap();
        assert_eq!(data, b"its last", "what follows does not count");
        assert_eq!(records.open(&mut [1, 2, 3], &mut sealed).unwrap(), Opened::End);
    }
}

#[test]
fn what_was_changed_on_the_way_is_told() {
    for ours in BOTH {
        let (mut records, mut peer) = pair(ours);
        peer.writer().write_all(&[7; 100]).unwrap();
        let mut bytes = said(&mut peer);
        bytes[50] ^= 1;
        let mut replies = Sealed::new();
        assert_eq!(open(&mut records, bytes, &mut replies).unwrap_err(), Error::DecryptError);
        let told = hear(&mut peer, &flat(&mut replies)).unwrap_err();
        assert_eq!(told, Error::AlertReceived(AlertDescription::BadRecordMac));
        assert!(
            records.seal(&b"x"[..].into(), &mut replies).is_err(),
            "an alert is the last that goes"
        );
    }
}

#[test]
fn a_peer_that_breaks_the_rules_is_told_which() {
    use AlertDescription as Alert;
    let handshake = |payload: &[u8]| tell(ContentType::Handshake, payload, 1).unwrap_err().1;
    assert_eq!(handshake(&[24, 0, 0, 1, 2]), Alert::DecodeError, "a request of no kind");
    assert_eq!(handshake(&[24, 0, 0, 0]), Alert::DecodeError, "an empty one");
    assert_eq!(handshake(&[24, 0, 0, 1, 0, 4]), Alert::UnexpectedMessage, "something behind it");
    assert_eq!(handshake(&[4, 0, 0, 1, 0]), Alert::UnexpectedMessage, "a server takes no ticket");
    assert_eq!(handshake(&[1, 0, 0, 0]), Alert::UnexpectedMessage, "no handshake is begun anew");
    assert_eq!(handshake(&[24, 1, 0, 0]), Alert::DecodeError, "64 KiB are enough");
    let alert = |payload: &[u8]| tell(ContentType::Alert, payload, 1);
    assert_eq!(alert(&[2]).unwrap_err().1, Alert::DecodeError);
    assert!(alert(&[1, 90]).is_ok(), "user_canceled");
    let (error, told) = alert(&[2, 80]).unwrap_err();
    assert_eq!(
        (error, told),
        (Error::AlertReceived(Alert::InternalError), Alert::CloseNotify),
        "nothing is said to it"
    );
    assert_eq!(tell(ContentType::Alert, &[1, 90], 5).unwrap_err().1, Alert::UnexpectedMessage);
    assert!(tell(ContentType::ApplicationData, &[], 32).is_ok());
    assert_eq!(tell(ContentType::ApplicationData, &[], 33).unwrap_err().1, Alert::UnexpectedMessage);
    assert_eq!(tell(ContentType::Heartbeat, &[1], 1).unwrap_err().1, Alert::UnexpectedMessage);
    assert_eq!(
        tell(ContentType::ChangeCipherSpec, &[1], 1).unwrap_err().1,
        Alert::UnexpectedMessage
    );
    assert_eq!(
        tell(ContentType::ApplicationData, &[0; (1 << 14) + 1], 1).unwrap_err().1,
        Alert::RecordOverflow
    );
}

/// It has said that it would.
fn go_on_with_next_keys(records: &mut Records) {
    let (next, secrets) = records.schedule.next_sending().unwrap();
    let (key, iv) = parts(secrets).unwrap();
    (records.encrypter, records.sealed) = (records.suite.aead_alg.encrypter(key, iv), next);
}

/// Asks for new keys, as one does who changes its own.
fn ask_for_keys(records: &mut Records, sealed: &mut Sealed) {
    let requested = OutboundChunks::Single(&[24, 0, 0, 1, 1]);
    records.seal_one(ContentType::Handshake, requested, sealed).unwrap();
    go_on_with_next_keys(records);
}

#[test]
fn messages_may_come_in_parts_but_nothing_between_them() {
    let (mut a, mut b) = two();
    let (mut sealed, mut replies) = (Sealed::new(), Sealed::new());
    for part in [&[24, 0][..], &[0, 1], &[0]] {
        a.seal_one(ContentType::Handshake, OutboundChunks::Single(part), &mut sealed)
            .unwrap();
    }
    go_on_with_next_keys(&mut a);
    seal(&mut a, b"with the next keys", &mut sealed);
    let (data, _) = open(&mut b, flat(&mut sealed), &mut replies).unwrap();
    assert_eq!(data, b"with the next keys");
    assert!(replies.is_empty() && b.fragments.capacity() == 0);

    a.seal_one(ContentType::Handshake, OutboundChunks::Single(&[24, 0]), &mut sealed)
        .unwrap();
    seal(&mut a, b"between", &mut sealed);
    let error = open(&mut b, flat(&mut sealed), &mut replies).unwrap_err();
    assert_eq!(error, PeerMisbehaved::MessageInterleavedWithHandshakeMessage.into());
}

#[test]
fn keys_are_not_changed_without_end() {
    let (mut a, mut b) = two();
    let mut sealed = Sealed::new();
    for round in 0..3 {
        for _ in 0..32 {
            a.update_keys(&mut sealed).unwrap();
        }
        if round < 2 {
            seal(&mut a, b"between", &mut sealed);
        }
    }
    open(&mut b, flat(&mut sealed), &mut Sealed::new()).unwrap();
    a.update_keys(&mut sealed).unwrap();
    let error = open(&mut b, flat(&mut sealed), &mut Sealed::new()).unwrap_err();
    assert_eq!(error, PeerMisbehaved::TooManyKeyUpdateRequests.into());
}

#[test]
fn who_asks_for_keys_and_does_not_read_has_one_answer_waiting() {
    let (mut a, mut b) = two();
    let (mut sealed, mut replies) = (Sealed::new(), Sealed::new());
    for _ in 0..100 {
        for _ in 0..32 {
            ask_for_keys(&mut a, &mut sealed);
        }
        seal(&mut a, b"between", &mut sealed);
        open(&mut b, flat(&mut sealed), &mut replies).unwrap();
    }
    assert!(replies.is_empty());
    b.answer(&mut replies).unwrap();
    b.answer(&mut replies).unwrap();
    assert_eq!(replies.len(), 1);
    seal(&mut b, b"with the next keys", &mut replies);
    assert_eq!(open(&mut a, flat(&mut replies), &mut sealed).unwrap().0, b"with the next keys");
    // Data is not sent before the answer either.
    ask_for_keys(&mut a, &mut sealed);
    open(&mut b, flat(&mut sealed), &mut replies).unwrap();
    seal(&mut b, b"behind it", &mut replies);
    assert_eq!(replies.len(), 2);
    b.answer(&mut replies).unwrap();
    assert_eq!(replies.len(), 2);
    assert_eq!(open(&mut a, flat(&mut replies), &mut sealed).unwrap().0, b"behind it");
}

#[test]
fn an_empty_record_is_no_data_between_changes_of_keys() {
    let (mut a, mut b) = two();
    let mut sealed = Sealed::new();
    for _ in 0..32 {
        ask_for_keys(&mut a, &mut sealed);
    }
    a.seal_one(ContentType::ApplicationData, OutboundChunks::Single(&[]), &mut sealed)
        .unwrap();
    open(&mut b, flat(&mut sealed), &mut Sealed::new()).unwrap();
    ask_for_keys(&mut a, &mut sealed);
    let error = open(&mut b, flat(&mut sealed), &mut Sealed::new()).unwrap_err();
    assert_eq!(error, PeerMisbehaved::TooManyKeyUpdateRequests.into());
}

#[test]
fn tickets_do_not_come_without_end() {
    let (mut client, mut server) = two();
    let mut sealed = Sealed::new();
    // Of a lifetime, an age, a nonce, a name and no extensions.
    let ticket = [&[4, 0, 0, 15][..], &[0, 0, 1, 0], &[0; 4], &[1, 7], &[0, 1, 7], &[0, 0]].concat();
    let mut tell = |times: usize, data: &[u8]| {
        for _ in 0..times {
            server
                .seal_one(ContentType::Handshake, OutboundChunks::Single(&ticket), &mut sealed)
                .unwrap();
        }
        server
            .seal_one(ContentType::ApplicationData, OutboundChunks::Single(data), &mut sealed)
            .unwrap();
        open(&mut client, flat(&mut sealed), &mut Sealed::new())
    };
    for _ in 0..3 {
        tell(32, b"between").unwrap();
    }
    tell(32, b"").unwrap();
    assert!(matches!(tell(1, b""), Err(Error::General(why)) if why.contains("tickets")));
}

#[test]
fn what_is_not_sealed_is_refused_by_its_head() {
    for (head, alert) in [
        ([23, 3, 3, 0x41, 1], AlertDescription::RecordOverflow),
        ([21, 3, 3, 0, 2], AlertDescription::UnexpectedMessage),
        ([20, 3, 3, 0, 1], AlertDescription::UnexpectedMessage),
    ] {
        let (mut records, mut peer) = pair(Ours::Server);
        let mut replies = Sealed::new();
        records.open(&mut head.to_vec(), &mut replies).unwrap_err();
        let told = hear(&mut peer, &flat(&mut replies)).unwrap_err();
        assert_eq!(told, Error::AlertReceived(alert));
    }
}

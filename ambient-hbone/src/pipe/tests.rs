use std::time::Duration;

use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};

use super::*;
use crate::relay::{End, RelayLimits, relay};

#[tokio::test]
async fn bytes_arrive_in_order_and_the_end_after_them() {
    let (mut near, mut far) = pipe();
    let sent: Vec<u8> = (0..3 * MOST).map(|n| (n % 251) as u8).collect();
    let expected = sent.clone();
    let writing = async move {
        near.write_all(&sent).await.unwrap();
        near.shutdown().await.unwrap();
        let mut back = String::new();
        near.read_to_string(&mut back).await.unwrap();
        assert_eq!(back, "done");
    };
    let reading = async move {
        let mut got = Vec::new();
        far.read_to_end(&mut got).await.unwrap();
        assert!(got == expected);
        far.write_all(b"done").await.unwrap();
        far.shutdown().await.unwrap();
    };
    tokio::join!(writing, reading);
}

#[tokio::test]
async fn who_does_not_read_holds_the_writer_up() {
    let (mut near, far) = pipe();
    let written = timeout(Duration::from_millis(20), near.write_all(&[0; MOST + 1]));
    assert!(written.await.is_err());
    assert_eq!(far.coming().len(), MOST);
}

#[tokio::test]
async fn what_ends_without_a_word_is_a_reset_for_reader_and_writer() {
    let (mut near, far) = pipe();
    drop(far);
    for error in [near.read(&mut [0]).await.unwrap_err(), near.write(&[0]).await.unwrap_err()] {
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
    // Also for one that waits.
    let (mut near, far) = pipe();
    let waiting = tokio::spawn(async move { near.read(&mut [0]).await });
    tokio::task::yield_now().await;
    drop(far);
    assert_eq!(waiting.await.unwrap().unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn after_its_own_end_nothing_is_lost() {
    let (mut near, mut far) = pipe();
    far.write_all(b"last words").await.unwrap();
    far.shutdown().await.unwrap();
    near.shutdown().await.unwrap();
    drop(far);
    let mut got = String::new();
    near.read_to_string(&mut got).await.unwrap();
    assert_eq!(got, "last words");
}

#[tokio::test]
async fn both_ends_are_told_of_a_cut() {
    #[derive(Debug, PartialEq, thiserror::Error)]
    #[error("somebody said so")]
    struct Because;
    let (mut near, mut far) = pipe();
    let cutter = near.cutter();
    cutter.cut(Because);
    // The first reason stands.
    cutter.cut("another");
    for error in [near.read(&mut [0]).await.unwrap_err(), far.read(&mut [0]).await.unwrap_err()] {
        let Some(PipeLost::Cut { reason }) = PipeLost::of(&error) else {
            panic!("{error:?}");
        };
        assert_eq!(reason.downcast_ref(), Some(&Because));
        assert_eq!(error.to_string(), "somebody said so");
    }
    drop((near, far));
    cutter.cut("nobody is there");
}

/// A relay that waits for the other side of a pipe, whatever for, goes on once that is cut.
#[tokio::test]
async fn a_relay_that_is_held_up_is_told_of_a_cut() {
    for (full_here, full_there) in [(false, false), (true, false), (false, true), (true, true)] {
        let (mut application, mut local) = tokio::io::duplex(64);
        let (mut near, mut far) = pipe();
        let cutter = near.cutter();
        let limits = RelayLimits::default();
        let held_up = async {
            if full_there {
                // What has come cannot go on: nobody reads from the application.
                far.write_all(&[0; 1000]).await.unwrap();
            }
            if full_here {
                let _ = timeout(Duration::from_millis(50), application.write_all(&vec![0; 2 * MOST])).await;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            cutter.cut("cut");
        };
        let (tally, ()) = tokio::join!(timeout(Duration::from_secs(5), relay(&mut local, &mut near, &limits)), held_up);
        let End::Failed { error, .. } = tally.unwrap().end else {
            panic!("it was cut");
        };
        assert_eq!(error.to_string(), "cut", "{full_here} {full_there}");
    }
}

/// Two relays and what is between them, as between two pods of a node: all arrives, as it was sent, and each end.
#[tokio::test]
async fn two_relays_carry_all_of_it() {
    let (mut client, mut client_side) = tokio::io::duplex(300_000);
    let (mut server, mut server_side) = tokio::io::duplex(300_000);
    let (mut near, mut far) = pipe();
    let limits = RelayLimits::default();
    let sent: Vec<u8> = (0..5_000_000_u32).map(|n| (n % 249) as u8).collect();
    let talking = async {
        let (mut from_client, mut to_server) = tokio::io::split(&mut client);
        let sending = async {
            let mut rest = &sent[..];
            // Small and large, so that pieces of either kind follow each other.
            for n in [1, 100_000, 10, 9_000, 70_000, 3, 1_000_000].into_iter().cycle() {
                let (now, later) = rest.split_at(rest.len().min(n));
                to_server.write_all(now).await.unwrap();
                rest = later;
                if rest.is_empty() {
                    break;
                }
            }
            to_server.shutdown().await.unwrap();
        };
        let mut answer = String::new();
        let (_, read) = tokio::join!(sending, from_client.read_to_string(&mut answer));
        read.unwrap();
        assert_eq!(answer, "had all");
    };
    let serving = async {
        let mut got = Vec::new();
        server.read_to_end(&mut got).await.unwrap();
        assert!(got == sent);
        server.write_all(b"had all").await.unwrap();
        server.shutdown().await.unwrap();
    };
    let (one, other, (), ()) = tokio::join!(
        relay(&mut client_side, &mut near, &limits),
        relay(&mut far, &mut server_side, &limits),
        talking,
        serving
    );
    for tally in [one, other] {
        assert_eq!((tally.a_to_b, tally.b_to_a), (sent.len() as u64, 7));
        assert!(matches!(tally.end, End::Orderly { .. }), "{:?}", tally.end);
    }
}

#[test]
fn a_large_piece_goes_through_where_it_lies() {
    let cx = Context::from_waker(Waker::noop());
    for length in [AS_IT_LIES, LARGE, MOST] {
        let (mut near, mut far) = pipe();
        let piece = Bytes::from(vec![7; length]);
        let at = piece.as_ptr();
        let mut pieces = Pieces::default();
        pieces.push(piece);
        near.put(&mut pieces, length).unwrap();
        let Poll::Ready(Ok(taken)) = far.poll_take(&cx) else {
            panic!("it is there");
        };
        assert_eq!((taken.front().as_ptr(), taken.len()), (at, length));
    }
}

proptest! {
    /// Whatever is written and read in whatever pieces: the bytes are those of a queue, no more of them wait than may, and they are few pieces.
    #[test]
    fn it_is_a_queue(steps in proptest::collection::vec((0_u8..4, 0_usize..150_000), 0..60)) {
        let mut cx = Context::from_waker(Waker::noop());
        let (mut near, mut far) = pipe();
        let (mut written, mut read) = (Vec::new(), Vec::new());
        for (value, (step, n)) in steps.into_iter().enumerate() {
            match step {
                0 => if let Poll::Ready(wrote) = Pin::new(&mut near).poll_write(&mut cx, &vec![value as u8; n % 100]) {
                    written.extend(std::iter::repeat_n(value as u8, wrote.unwrap()));
                },
                1 => if let Poll::Ready(room) = near.poll_room(&cx) {
                    let n = n.min(room.unwrap());
                    let mut pieces = Pieces::default();
                    pieces.push(vec![value as u8; n].into());
                    near.put(&mut pieces, n).unwrap();
                    written.extend(std::iter::repeat_n(value as u8, n));
                },
                2 => {
                    let mut place = vec![0; n];
                    let mut place = ReadBuf::new(&mut place);
                    if Pin::new(&mut far).poll_read(&mut cx, &mut place).is_ready() {
                        read.extend_from_slice(place.filled());
                    }
                }
                _ => if let Poll::Ready(pieces) = far.poll_take(&cx) {
                    pieces.unwrap().chunks().for_each(|piece| read.extend_from_slice(piece));
                },
            }
            let waiting = far.coming();
            prop_assert!(waiting.len() <= MOST);
            prop_assert!(waiting.pieces.chunks().count() <= 2 * MOST / LARGE + 1);
            prop_assert_eq!(written.len() - read.len(), waiting.len());
            prop_assert!(written.starts_with(&read));
        }
    }
}

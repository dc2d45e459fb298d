use std::{pin::Pin, task::Context};

use proptest::prelude::*;
use tokio::io::{DuplexStream, ReadBuf, duplex};

use super::*;

/// Both applications, and the relay between them at work.
fn relayed(pipe: usize) -> (DuplexStream, DuplexStream, tokio::task::JoinHandle<Tally>) {
    let (a, mut near) = duplex(pipe);
    let (mut far, b) = duplex(pipe);
    let relay = tokio::spawn(async move { relay(&mut near, &mut far, &RelayLimits::default()).await });
    (a, b, relay)
}

#[tokio::test]
async fn each_side_may_end_first() {
    for first in [Side::A, Side::B] {
        let (a, b, relay) = relayed(64);
        let (mut one, mut other) = if first == Side::A { (a, b) } else { (b, a) };
        one.write_all(b"question").await.unwrap();
        one.shutdown().await.unwrap();
        let mut text = String::new();
        other.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "question");
        other.write_all(b"a longer answer").await.unwrap();
        other.shutdown().await.unwrap();
        text.clear();
        one.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "a longer answer");
        let tally = relay.await.unwrap();
        assert!(matches!(tally.end, End::Orderly { first: f } if f == first), "{tally:?}");
        let (there, back) = if first == Side::A { (8, 15) } else { (15, 8) };
        assert_eq!((tally.a_to_b, tally.b_to_a), (there, back));
        assert!(tally.first_byte.is_some());
    }
}

#[tokio::test]
async fn a_failed_write_names_its_side() {
    let (mut a, b, relay) = relayed(64);
    drop(b);
    // The far side has ended its direction; writing to it fails.
    let mut rest = Vec::new();
    a.read_to_end(&mut rest).await.unwrap();
    a.write_all(b"into the void").await.unwrap();
    let tally = relay.await.unwrap();
    assert!(
        matches!(
            tally.end,
            End::Failed {
                side: Side::B,
                phase: Phase::Write,
                ..
            }
        ),
        "{tally:?}"
    );
    assert_eq!((tally.first_closed, tally.a_to_b, tally.first_byte), (Some(Side::B), 0, None));
}

#[tokio::test]
async fn a_failed_read_names_its_side() {
    struct Broken;
    impl AsyncRead for Broken {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
        }
    }
    impl AsyncWrite for Broken {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(buf.len()))
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }
    let (_a, mut near) = duplex(64);
    let tally = relay(&mut near, &mut Broken, &RelayLimits::default()).await;
    assert!(
        matches!(
            tally.end,
            End::Failed {
                side: Side::B,
                phase: Phase::Read,
                ..
            }
        ),
        "{tally:?}"
    );
    let tally = relay(&mut Broken, &mut near, &RelayLimits::default()).await;
    assert!(
        matches!(
            tally.end,
            End::Failed {
                side: Side::A,
                phase: Phase::Read,
                ..
            }
        ),
        "{tally:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_quiet_refusal_is_an_empty_reply() {
    let (mut client, mut server) = duplex(1 << 20);
    client.write_all(&[7; 1000]).await.unwrap();
    let refused = tokio::spawn(async move {
        refuse_quietly(&mut server).await;
        server
    });
    let mut reply = Vec::new();
    client.read_to_end(&mut reply).await.unwrap();
    assert!(reply.is_empty());
    client.shutdown().await.unwrap();
    let mut server = refused.await.unwrap();
    assert_eq!(server.read(&mut [0; 1]).await.unwrap(), 0, "what the client sent was read away");

    // A client that goes on for ever is not listened to for ever.
    let (mut client, mut server) = duplex(64);
    let start = Instant::now();
    let mut endless = tokio::io::repeat(7);
    tokio::select! {
        () = refuse_quietly(&mut server) => {}
        _ = tokio::io::copy(&mut endless, &mut client) => {}
    }
    let (_silent, mut server) = duplex(64);
    refuse_quietly(&mut server).await;
    assert!(start.elapsed() <= Duration::from_millis(2100), "{:?}", start.elapsed());
}

#[derive(Clone, Debug)]
enum Step {
    Write(bool, usize),
    Shut(bool),
    Yield,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (any::<bool>(), 1..20_000_usize).prop_map(|(a, n)| Step::Write(a, n)),
        1 => any::<bool>().prop_map(Step::Shut),
        2 => Just(Step::Yield),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever both sides write, in whatever order and pieces, comes out whole at the other side, and is counted.
    #[test]
    fn every_byte_is_moved_and_counted(steps in proptest::collection::vec(step(), 0..30), pipe in 1_usize..10_000) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (a, b, relay) = relayed(pipe);
            let mut sent = [Vec::new(), Vec::new()];
            let mut reads = Vec::new();
            let mut writes = Vec::new();
            for side in [a, b] {
                let (mut from, to) = tokio::io::split(side);
                reads.push(tokio::spawn(async move {
                    let mut got = Vec::new();
                    from.read_to_end(&mut got).await.map(|_| got)
                }));
                writes.push(Some(to));
            }
            for (i, step) in steps.iter().enumerate() {
                match *step {
                    Step::Write(a, n) => if let Some(to) = &mut writes[usize::from(a)] {
                        let data = vec![i as u8; n];
                        to.write_all(&data).await.unwrap();
                        sent[usize::from(a)].extend(data);
                    },
                    Step::Shut(a) => if let Some(mut to) = writes[usize::from(a)].take() {
                        to.shutdown().await.unwrap();
                    },
                    Step::Yield => tokio::task::yield_now().await,
                }
            }
            for mut to in writes.into_iter().flatten() {
                to.shutdown().await.unwrap();
            }
            let at_b = reads.pop().unwrap().await.unwrap().unwrap();
            let at_a = reads.pop().unwrap().await.unwrap().unwrap();
            prop_assert!(at_b == sent[0] && at_a == sent[1]);
            let tally = relay.await.unwrap();
            let orderly = matches!(tally.end, End::Orderly { .. });
            prop_assert!(orderly);
            prop_assert_eq!((tally.a_to_b, tally.b_to_a), (sent[0].len() as u64, sent[1].len() as u64));
            Ok(())
        })?;
    }
}

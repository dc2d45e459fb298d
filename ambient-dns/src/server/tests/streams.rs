use super::*;
use nameserver::{answer, next, write};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

fn brief() -> Limits {
    Limits {
        connections: 2,
        idle: Duration::from_millis(300),
        forward: Duration::from_millis(600),
        ..Limits::default()
    }
}

async fn over(stream: &mut TcpStream, query: &[u8]) -> Vec<u8> {
    write(stream, query).await;
    time::timeout(PATIENCE, next(stream)).await.unwrap().expect("the connection ends")
}

async fn ends(stream: &mut TcpStream) {
    assert_eq!(time::timeout(PATIENCE, next(stream)).await.unwrap(), None);
}

#[tokio::test]
async fn a_connection_carries_names_of_the_mesh_and_everything_else() {
    let nameserver = Nameserver::start(Say::Bytes(|query| vec![answer(query)])).await;
    let bench = bench(&[nameserver.at], Limits::default()).await;
    let mut stream = TcpStream::connect(bench.tcp).await.unwrap();
    assert_eq!(over(&mut stream, &web(1)).await, webs_answer(1));
    assert!(nameserver.heard().is_empty(), "a connection is made when it is needed");
    assert_eq!(over(&mut stream, &example(2)).await, answer(&example(2)));
    assert_eq!(over(&mut stream, &web(3)).await, webs_answer(3));
    let odd = [example(4), vec![0xee; 60_000]].concat();
    assert_eq!(over(&mut stream, &odd).await, answer(&odd));
    let update = [b"\0\x05\x28".to_vec(), example(5)[3..].to_vec()].concat();
    assert_eq!(over(&mut stream, &update).await, answer(&update));
    assert_eq!(nameserver.heard(), [example(2), odd, update], "to the letter");
    assert_eq!(nameserver.ports(), 1, "and one is enough");
}

#[tokio::test]
async fn a_zone_of_many_messages_comes_whole() {
    let nameserver = Nameserver::start(Say::Bytes(|query| {
        (0..200).map(|n| [answer(query), vec![n; 500]].concat()).collect()
    }))
    .await;
    let bench = bench(&[nameserver.at], Limits::default()).await;
    let mut stream = TcpStream::connect(bench.tcp).await.unwrap();
    let transfer = query(1, &["example", "com"], 252);
    write(&mut stream, &transfer).await;
    // Nothing more is asked; what was is answered still.
    stream.shutdown().await.unwrap();
    for n in 0..200 {
        let message = time::timeout(PATIENCE, next(&mut stream)).await.unwrap();
        assert_eq!(message, Some([answer(&transfer), vec![n; 500]].concat()), "{n}");
    }
    assert_eq!(bench.count(|event| matches!(event, Event::Answered { .. })), 1);
}

#[tokio::test]
async fn many_queries_at_once_are_all_answered() {
    let nameserver = Nameserver::start(Say::Bytes(|query| vec![answer(query)])).await;
    let bench = bench(&[nameserver.at], Limits::default()).await;
    let stream = TcpStream::connect(bench.tcp).await.unwrap();
    let (mut reads, mut writes) = stream.into_split();
    let writer = tokio::spawn(async move {
        for id in 0..500 {
            let query = if id % 3 == 0 { web(id) } else { example(id) };
            // In pieces, as the network may cut it.
            let whole = [&u16::try_from(query.len()).unwrap().to_be_bytes()[..], &query].concat();
            for piece in whole.chunks(usize::from(id % 7) + 1) {
                writes.write_all(piece).await.unwrap();
            }
        }
        writes
    });
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..500 {
        let read = async {
            let mut message = vec![0; reads.read_u16().await.unwrap().into()];
            reads.read_exact(&mut message).await.unwrap();
            message
        };
        let message = time::timeout(PATIENCE, read).await.unwrap();
        let id = u16::from_be_bytes([message[0], message[1]]);
        assert_eq!(message, if id % 3 == 0 { webs_answer(id) } else { answer(&example(id)) });
        assert!(seen.insert(id));
    }
    drop(writer.await);
}

/// What is asked one after the other may be answered in any order, by the mesh before all: as [RFC 7766 6.2.1.1] has it.
///
/// [RFC 7766 6.2.1.1]: https://www.rfc-editor.org/rfc/rfc7766#section-6.2.1.1
#[tokio::test]
async fn answers_come_in_the_order_in_which_they_are_given() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let bench = bench(&[listener.local_addr().unwrap()], Limits::default()).await;
    let mut stream = TcpStream::connect(bench.tcp).await.unwrap();
    // Two of one ID, too: whoever asks so tells the answers apart by their questions.
    let asked = [example(1), example(2), query(2, &["example", "net"], 16)];
    for query in &asked {
        write(&mut stream, query).await;
    }
    write(&mut stream, &web(4)).await;
    let (mut nameserver, _) = listener.accept().await.unwrap();
    for query in &asked {
        assert_eq!(next(&mut nameserver).await.as_ref(), Some(query));
    }
    assert_eq!(next(&mut stream).await, Some(webs_answer(4)));
    for query in asked.iter().rev() {
        write(&mut nameserver, &answer(query)).await;
    }
    for query in asked.iter().rev() {
        assert_eq!(time::timeout(PATIENCE, next(&mut stream)).await.unwrap(), Some(answer(query)));
    }
    let is_answered = |event: &Event| {
        matches!(
            event,
            Event::Answered {
                source: Source::Upstream,
                ..
            }
        )
    };
    assert_eq!(bench.count(is_answered), 3);
}

#[tokio::test]
async fn the_longest_message_that_there_is_goes_both_ways() {
    let nameserver = Nameserver::start(Say::Bytes(|query| {
        let mut reply = query.to_vec();
        reply[2] |= 0x80;
        vec![reply]
    }))
    .await;
    let bench = bench(&[nameserver.at], Limits::default()).await;
    let mut stream = TcpStream::connect(bench.tcp).await.unwrap();
    let longest = [example(1), vec![0xab; 65_535 - example(1).len()]].concat();
    let mut reply = over(&mut stream, &longest).await;
    reply[2] &= 0x7f;
    assert_eq!(reply, longest);
    assert_eq!(nameserver.heard(), [longest]);
    // One that promises as much and brings little holds nobody up, and ends by its deadline.
    stream.write_all(&[0xff, 0xff, 0, 5]).await.unwrap();
    let mut other = TcpStream::connect(bench.tcp).await.unwrap();
    assert_eq!(over(&mut other, &web(3)).await, webs_answer(3));
}

#[tokio::test]
async fn what_the_nameserver_does_to_a_connection_the_client_sees() {
    let closes = Nameserver::start(Say::Close).await;
    let bench1 = bench(&[closes.at], Limits::default()).await;
    let mut stream = TcpStream::connect(bench1.tcp).await.unwrap();
    write(&mut stream, &example(1)).await;
    ends(&mut stream).await;

    let nobody = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let bench2 = bench(&[nobody], Limits::default()).await;
    let mut stream = TcpStream::connect(bench2.tcp).await.unwrap();
    write(&mut stream, &example(1)).await;
    ends(&mut stream).await;

    // But one that is there is found behind one that is not.
    let good = Nameserver::start(Say::Bytes(|query| vec![answer(query)])).await;
    let bench3 = bench(&[nobody, good.at], Limits::default()).await;
    let mut stream = TcpStream::connect(bench3.tcp).await.unwrap();
    assert_eq!(over(&mut stream, &example(1)).await, answer(&example(1)));

    let silent = Nameserver::start(Say::Nothing).await;
    let bench4 = bench(&[silent.at], brief()).await;
    let mut stream = TcpStream::connect(bench4.tcp).await.unwrap();
    write(&mut stream, &example(1)).await;
    assert_eq!(over(&mut stream, &web(2)).await, webs_answer(2), "names of the mesh are answered");
    ends(&mut stream).await;
    let failure = Failure::Silent;
    assert_eq!(
        bench4.count(|event| matches!(event, Event::Failed { failure: f, .. } if *f == failure)),
        1
    );
}

#[tokio::test]
async fn connections_that_idle_or_dawdle_end_and_make_room() {
    let nameserver = Nameserver::start(Say::Bytes(|query| vec![answer(query)])).await;
    let bench = bench(&[nameserver.at], brief()).await;
    // One says nothing, the other half a query: both places are taken.
    let mut idle = TcpStream::connect(bench.tcp).await.unwrap();
    let mut slow = TcpStream::connect(bench.tcp).await.unwrap();
    slow.write_all(&[0, 200, 1, 2, 3]).await.unwrap();
    let mut third = TcpStream::connect(bench.tcp).await.unwrap();
    assert_eq!(over(&mut third, &web(1)).await, webs_answer(1));
    ends(&mut idle).await;
    ends(&mut slow).await;
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_let_go() {
    let nameserver = Nameserver::start(Say::Bytes(|query| vec![[answer(query), vec![0; 60_000]].concat(); 200])).await;
    let bench = bench(&[nameserver.at], brief()).await;
    let mut stuck = TcpStream::connect(bench.tcp).await.unwrap();
    for id in 0..20 {
        write(&mut stuck, &example(id)).await;
    }
    let start = Instant::now();
    // It makes room for others, and its nameserver's connection is gone with it.
    let mut others = Vec::new();
    for id in 0..2 {
        let mut other = TcpStream::connect(bench.tcp).await.unwrap();
        assert_eq!(over(&mut other, &web(id)).await, webs_answer(id));
        others.push(other);
    }
    assert!(start.elapsed() < PATIENCE);
}

#[tokio::test]
async fn what_is_no_query_ends_the_connection() {
    let nameserver = Nameserver::start(Say::Bytes(|query| vec![answer(query)])).await;
    let bench = bench(&[nameserver.at], Limits::default()).await;
    for nonsense in [&[][..], &[0; 11], &webs_answer(1)] {
        let mut stream = TcpStream::connect(bench.tcp).await.unwrap();
        write(&mut stream, nonsense).await;
        ends(&mut stream).await;
    }
    // What comes behind it makes the end no reset, which would take answers along that the client has not read yet.
    let mut stream = TcpStream::connect(bench.tcp).await.unwrap();
    let behind = [&[0; 2][..], &[7; 5000]].concat();
    stream.write_all(&behind).await.unwrap();
    assert_eq!(time::timeout(PATIENCE, stream.read(&mut [0])).await.unwrap().unwrap(), 0);
    // Once there is a nameserver, what it may have asked for is between the two.
    let mut stream = TcpStream::connect(bench.tcp).await.unwrap();
    over(&mut stream, &example(1)).await;
    write(&mut stream, &webs_answer(2)).await;
    assert_eq!(
        time::timeout(PATIENCE, next(&mut stream)).await.unwrap(),
        Some(answer(&webs_answer(2)))
    );
}

#[tokio::test]
async fn all_servers_together_keep_to_their_connections() {
    let budget = Budget::new(1, 1);
    let mut benches = Vec::new();
    for number in 0..2 {
        let setup = Setup {
            budget: budget.clone(),
            limits: Limits {
                idle: Duration::from_millis(500 + 500 * number),
                ..Limits::default()
            },
            ..Setup::default()
        };
        benches.push(setup.start().await);
    }
    let mut first = TcpStream::connect(benches[0].tcp).await.unwrap();
    assert_eq!(over(&mut first, &web(1)).await, webs_answer(1));
    let mut second = TcpStream::connect(benches[1].tcp).await.unwrap();
    write(&mut second, &web(2)).await;
    let early = time::timeout(Duration::from_millis(100), next(&mut second)).await;
    assert!(early.is_err(), "it waits for the first to end: {early:?}");
    assert_eq!(time::timeout(PATIENCE, next(&mut second)).await.unwrap(), Some(webs_answer(2)));
    ends(&mut first).await;
}

#[tokio::test]
async fn what_is_asked_at_once_is_answered_before_a_connection_ends_that_stood_for_long() {
    // It closes no connection of its own accord.
    let nameserver = Nameserver::start(Say::Bytes(|query| vec![answer(query)])).await;
    let setup = Setup {
        servers: &[nameserver.at],
        limits: Limits {
            life: Duration::ZERO,
            idle: 10 * PATIENCE,
            ..Limits::default()
        },
        ..Setup::default()
    };
    let bench = setup.start().await;
    for query in [web, example] {
        let mut stream = TcpStream::connect(bench.tcp).await.unwrap();
        let mut at_once = Vec::new();
        for id in 0..50 {
            let query = query(id);
            at_once.extend(u16::try_from(query.len()).unwrap().to_be_bytes());
            at_once.extend(query);
        }
        stream.write_all(&at_once).await.unwrap();
        for id in 0..50 {
            let expected = if query(id) == web(id) {
                webs_answer(id)
            } else {
                answer(&example(id))
            };
            assert_eq!(time::timeout(PATIENCE, next(&mut stream)).await.unwrap(), Some(expected), "{id}");
        }
        ends(&mut stream).await;
    }
}

#[tokio::test]
async fn a_zone_that_is_asked_for_last_comes_whole() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let setup = Setup {
        servers: &[listener.local_addr().unwrap()],
        limits: Limits {
            life: Duration::ZERO,
            ..Limits::default()
        },
        ..Setup::default()
    };
    let bench = setup.start().await;
    let mut stream = TcpStream::connect(bench.tcp).await.unwrap();
    let transfer = query(1, &["example", "com"], 252);
    write(&mut stream, &transfer).await;
    let (mut nameserver, _) = listener.accept().await.unwrap();
    assert_eq!(next(&mut nameserver).await, Some(transfer.clone()));
    for n in 0..20 {
        let message = [answer(&transfer), vec![n; 500]].concat();
        write(&mut nameserver, &message).await;
        // It is here before there is more to come: only the question says that there will be.
        assert_eq!(time::timeout(PATIENCE, next(&mut stream)).await.unwrap(), Some(message), "{n}");
    }
    drop(nameserver);
    ends(&mut stream).await;
}

#[test]
fn a_connection_on_which_there_is_always_something_under_way_ends_too() {
    let limits = Limits::default();
    let ends = |age: Duration, quiet: bool| !stream::may_ask(&limits, age, || quiet);
    let moment = Duration::from_nanos(1);
    assert!(!ends(limits.life - moment, true));
    assert!(ends(limits.life, true) && !ends(limits.life, false));
    assert!(!ends(limits.life + limits.idle - moment, false));
    assert!(ends(limits.life + limits.idle, false));
    let endless = Limits {
        life: Duration::MAX,
        ..limits
    };
    assert!(stream::may_ask(&endless, Duration::from_secs(1 << 40), || true));
}

#[tokio::test]
async fn limits_may_be_endless() {
    let nameserver = Nameserver::start(Say::Bytes(|query| vec![answer(query)])).await;
    let limits = Limits {
        forward: Duration::MAX,
        patience: Duration::MAX,
        idle: Duration::MAX,
        life: Duration::MAX,
        ..Limits::default()
    };
    let bench = bench(&[nameserver.at, nameserver.at], limits).await;
    assert_eq!(by_udp(&bench, &example(1)).await, answer(&example(1)));
    let mut stream = TcpStream::connect(bench.tcp).await.unwrap();
    for id in 0..3 {
        assert_eq!(over(&mut stream, &web(id)).await, webs_answer(id));
        assert_eq!(over(&mut stream, &example(id)).await, answer(&example(id)));
    }
}

/// Whoever asks again and again keeps a place for his connection's life, and who has waited for one too long is let go.
#[tokio::test]
async fn a_connection_has_a_last_query_and_a_place_is_not_waited_for_for_ever() {
    let nameserver = Nameserver::start(Say::Bytes(|query| vec![answer(query)])).await;
    for life in [Duration::ZERO, Duration::from_secs(60)] {
        let setup = Setup {
            servers: &[nameserver.at],
            limits: Limits { life, ..brief() },
            ..Setup::default()
        };
        let bench = setup.start().await;
        for [query, reply] in [[web(1), webs_answer(1)], [example(2), answer(&example(2))]] {
            let mut stream = TcpStream::connect(bench.tcp).await.unwrap();
            assert_eq!(over(&mut stream, &query).await, reply, "the last is answered as well");
            match life.is_zero() {
                true => ends(&mut stream).await,
                false => assert_eq!(over(&mut stream, &query).await, reply),
            }
        }
    }
    let (budget, mut benches) = (Budget::new(1, 1), Vec::new());
    for idle in [Duration::from_secs(60), Duration::from_millis(50)] {
        let setup = Setup {
            budget: budget.clone(),
            limits: Limits { idle, ..Limits::default() },
            ..Setup::default()
        };
        benches.push(setup.start().await);
    }
    let mut first = TcpStream::connect(benches[0].tcp).await.unwrap();
    assert_eq!(over(&mut first, &web(1)).await, webs_answer(1));
    let mut second = TcpStream::connect(benches[1].tcp).await.unwrap();
    ends(&mut second).await;
    assert_eq!(over(&mut first, &web(2)).await, webs_answer(2), "it goes on");
}

#[test]
fn one_client_has_a_quarter_at_most() {
    let limits = |forwards, connections| {
        let limits = Limits::default().within(&Budget::new(forwards, connections));
        (limits.forwards, limits.connections)
    };
    assert_eq!(limits(4096, 2048), (256, 64));
    assert_eq!(limits(224, 112), (56, 14));
    assert_eq!(limits(1, 1), (1, 1), "nobody goes without");
}

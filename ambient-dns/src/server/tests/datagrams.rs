use super::*;
use nameserver::answer;

fn brief() -> Limits {
    Limits {
        forwards: 2,
        forward: Duration::from_millis(600),
        patience: Duration::from_millis(100),
        connections: 2,
        idle: Duration::from_millis(300),
        ..Limits::default()
    }
}

#[tokio::test]
async fn names_of_the_mesh_are_answered_here_and_others_upstream() {
    let nameserver = Nameserver::start(Say::Bytes(|query| vec![answer(query)])).await;
    let bench = bench(&[nameserver.at], Limits::default()).await;
    assert_eq!(by_udp(&bench, &web(7)).await, webs_answer(7));
    assert!(nameserver.heard().is_empty());
    assert_eq!(by_udp(&bench, &example(8)).await, answer(&example(8)));
}

#[tokio::test]
async fn whatever_it_is_it_goes_there_and_back_byte_for_byte() {
    let nameserver = Nameserver::start(Say::Bytes(|query| vec![answer(query)])).await;
    let bench = bench(&[nameserver.at], Limits::default()).await;
    let mut edns = query(3, &["web"], 1);
    edns[11] = 1;
    // Version 0, DNSSEC OK, a cookie, padding and an option that nobody knows; and one of version 1.
    let options = b"\0\x0a\0\x08cookie!!\0\x0c\0\x02\0\0\xfd\xe9\0\x01x";
    edns.extend(b"\0\0\x29\x04\xd0\0\0\x80\0\0\x17");
    edns.extend(options);
    let mut later = edns.clone();
    later[27] = 1;
    let with = |mut query: Vec<u8>, at: usize, byte: u8| {
        query[at] = byte;
        query
    };
    let mut signed = web(11);
    signed[11] = 1;
    signed.extend(b"\x03key\0\0\xfa\0\xff\0\0\0\0\0\x02zz");
    let mut queries = vec![
        query(1, &["web", "shop", "svc", "cluster", "local"], 33),
        query(2, &["web"], 65),
        query(2, &["web"], 0xffff),
        query(3, &["EXAMPLE", "com"], 1),
        query(4, &["a b", "\0\u{1}"], 1),
        query(5, &[], 2),
        later,
        with(web(6), 5, 2),
        with(web(7), 5, 0),
        with(web(8), 3, 0xff),
        with(web(9), 2, 0x7f),
        [web(10), b"trailing".to_vec()].concat(),
        signed,
        web(12)[..14].to_vec(),
        web(13)[..12].to_vec(),
        [example(14), vec![0xff; 1400]].concat(),
        [example(15), vec![0xff; 40_000]].concat(),
    ];
    queries.extend((1..16).map(|operation| with(web(100), 2, operation << 3)));
    queries.extend([3, 4, 254, 255].map(|class| with(web(200), 20, class)));
    for (at, query) in queries.iter().enumerate() {
        let reply = by_udp(&bench, query).await;
        assert_eq!(reply, answer(query), "{query:02x?}");
        let heard = nameserver.heard();
        assert_eq!(heard.len(), at + 1);
        assert_eq!(&heard[at][2..], &query[2..]);
        assert_eq!(
            heard[at][..2] == query[..2],
            query.windows(4).any(|w| w == b"\x03key"),
            "{query:02x?}"
        );
    }
    assert_eq!(nameserver.ports(), queries.len(), "each has a port of its own");
    let ids: std::collections::HashSet<_> = nameserver.heard().iter().map(|query| [query[0], query[1]]).collect();
    assert!(ids.len() > queries.len() - 3, "and an ID");
}

#[tokio::test]
async fn large_and_cut_answers_come_as_they_are() {
    let nameserver = Nameserver::start(Say::Bytes(|query| {
        let mut reply = answer(query);
        match query[12] {
            // However little the client has said that it takes: it is between the two.
            1 => reply.resize(60_000, 0xaa),
            _ => reply[2] |= 0x02,
        }
        vec![reply]
    }))
    .await;
    let bench = bench(&[nameserver.at], Limits::default()).await;
    let large = by_udp(&bench, &query(1, &["l"], 1)).await;
    assert_eq!((large.len(), large[2] & 0x02), (60_000, 0));
    assert_eq!(by_udp(&bench, &query(1, &["cut"], 1)).await[2], 0x83);
}

#[tokio::test]
async fn who_guesses_is_not_heard() {
    let nameserver = Nameserver::start(Say::Bytes(|query| {
        let spoof = |change: fn(&mut Vec<u8>)| {
            let mut reply = answer(query);
            reply.extend(b"spoofed");
            change(&mut reply);
            reply
        };
        vec![
            Vec::new(),
            vec![0xff; 3],
            spoof(|reply| reply[0] ^= 1),
            spoof(|reply| reply[1] ^= 1),
            spoof(|reply| reply[2] &= 0x7f),
            spoof(|reply| reply[2] |= 0x28),
            spoof(|reply| reply[13] ^= 1),
            spoof(|reply| reply[25] ^= 1),
            spoof(|reply| reply[5] = 2),
            spoof(|reply| reply[5] = 0),
            // Its name is a pointer to itself, or to what follows.
            spoof(|reply| reply[12..14].copy_from_slice(&[0xc0, 12])),
            spoof(|reply| reply[12..14].copy_from_slice(&[0xc0, 30])),
            spoof(|reply| reply.truncate(20)),
            answer(query),
            spoof(|_| {}),
        ]
    }))
    .await;
    let bench = bench(&[nameserver.at], Limits::default()).await;
    let socket = client(&bench).await;
    socket.send(&example(5)).await.unwrap();
    assert_eq!(receive(&socket).await, answer(&example(5)));
    assert_eq!(heard(&socket, Duration::from_millis(200)).await, None, "one answer");
    // From elsewhere not even the right one.
    let nameserver = Nameserver::start(Say::FromElsewhere).await;
    let bench = self::bench(&[nameserver.at], brief()).await;
    let socket = client(&bench).await;
    socket.send(&example(5)).await.unwrap();
    nameserver.hears(1).await;
    assert_eq!(heard(&socket, Duration::from_millis(200)).await, None);
}

#[tokio::test]
async fn a_silent_upstream_makes_nothing_up_and_harms_no_name_of_the_mesh() {
    let nameserver = Nameserver::start(Say::Nothing).await;
    let bench = bench(&[nameserver.at], brief()).await;
    let socket = client(&bench).await;
    for id in 0..3 {
        socket.send(&example(id)).await.unwrap();
    }
    // Two wait; the third is dropped.
    bench.until(1, |event| *event == Event::Dropped(Dropped::Busy)).await;
    nameserver.hears(2).await;
    assert_eq!(by_udp(&bench, &web(9)).await, webs_answer(9));
    bench.until(2, |event| *event == Event::Dropped(Dropped::Silent)).await;
    assert_eq!(heard(&socket, Duration::from_millis(100)).await, None);
    assert_eq!(nameserver.heard().len(), 2);
    // The places are free again.
    socket.send(&example(4)).await.unwrap();
    nameserver.hears(3).await;
}

#[tokio::test]
async fn ten_thousand_that_wait_are_bounded() {
    let nameserver = Nameserver::start(Say::Nothing).await;
    let patient = Limits {
        forward: Duration::from_secs(60),
        patience: Duration::from_secs(60),
        ..Limits::default()
    };
    let bench = bench(&[nameserver.at], patient).await;
    let socket = client(&bench).await;
    let is_taken = |event: &Event| matches!(event, Event::Asked(_));
    for burst in 0..100 {
        for id in 0..100 {
            socket.send(&example(burst * 100 + id)).await.unwrap();
        }
        // No faster than they are taken: the kernel would drop them.
        bench.until(usize::from(burst + 1) * 100, is_taken).await;
    }
    nameserver.hears(patient.forwards).await;
    assert_eq!(by_udp(&bench, &web(9)).await, webs_answer(9));
    let forwarded = bench.count(|event| matches!(event, Event::Forwarded(_)));
    let dropped = bench.count(|event| *event == Event::Dropped(Dropped::Busy));
    assert_eq!((forwarded, dropped), (patient.forwards, 10_000 - patient.forwards));
    assert_eq!(nameserver.heard().len(), patient.forwards);
    assert_eq!(heard(&socket, Duration::from_millis(50)).await, None, "nothing is made up");
}

#[tokio::test]
async fn a_nameserver_that_is_not_there_is_a_failure_at_once() {
    let nobody = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let patient = Limits {
        forward: Duration::from_secs(60),
        ..Limits::default()
    };
    let bench = bench(&[nobody], patient).await;
    let mut asked = example(5);
    asked[11] = 1;
    asked.extend(b"\0\0\x29\x04\xd0\0\0\0\0\0\0");
    let reply = by_udp(&bench, &asked).await;
    assert_eq!((&reply[..2], code(&reply), reply[2] & 0x80), (&asked[..2], 2, 0x80));
    assert!(reply.ends_with(b"\0\x0f\0\x02\0\x17"), "the network failed: {reply:02x?}");
    assert_eq!(by_udp(&bench, &web(9)).await, webs_answer(9));
    let failure = Failure::Unreachable;
    bench
        .until(1, |event| matches!(event, Event::Failed { failure: f, .. } if *f == failure))
        .await;
}

#[tokio::test]
async fn what_fails_on_this_machine_is_not_the_nameservers_failure() {
    let nameserver = Nameserver::start(Say::Nothing).await;
    let bench = Setup {
        servers: &[nameserver.at],
        broken: true,
        ..Setup::default()
    };
    let bench = bench.start().await;
    let socket = client(&bench).await;
    socket.send(&example(5)).await.unwrap();
    bench.until(1, |event| *event == Event::Dropped(Dropped::Silent)).await;
    assert_eq!(heard(&socket, Duration::from_millis(100)).await, None);
}

#[tokio::test]
async fn of_several_nameservers_the_next_is_asked_when_one_fails() {
    let refuses = |code: u8| {
        move |query: &[u8]| {
            let mut reply = answer(query);
            reply[3] = code;
            vec![reply]
        }
    };
    let nobody = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let silent = Nameserver::start(Say::Nothing).await;
    let servfail = Nameserver::start(Say::Bytes(|query| {
        let mut reply = answer(query);
        reply[3] = 2;
        vec![reply]
    }))
    .await;
    let refused = Nameserver::start(Say::Bytes(|query| {
        let mut reply = answer(query);
        reply[3] = 5;
        vec![reply]
    }))
    .await;
    let good = Nameserver::start(Say::Bytes(|query| vec![answer(query)])).await;
    let cases: [(&[SocketAddr], u8); 7] = [
        (&[nobody, good.at], 0),
        (&[silent.at, good.at], 0),
        (&[servfail.at, good.at], 0),
        (&[refused.at, nobody, good.at], 0),
        // Nobody has a better answer: the last that there was, to the letter.
        (&[servfail.at, refused.at], 5),
        (&[servfail.at, nobody], 2),
        (&[servfail.at, silent.at], 2),
    ];
    for (servers, expected) in cases {
        let bench = bench(servers, brief()).await;
        let reply = by_udp(&bench, &example(5)).await;
        assert_eq!(
            reply,
            refuses(if expected == 0 { 0 } else { expected })(&example(5))[0],
            "{servers:?}"
        );
    }
    // Of one the network says that it is not there, and the other is silent: so is this.
    for servers in [[nobody, silent.at], [silent.at, nobody]] {
        let bench = bench(&servers, brief()).await;
        let socket = client(&bench).await;
        socket.send(&example(5)).await.unwrap();
        bench.until(1, |event| *event == Event::Dropped(Dropped::Silent)).await;
        assert_eq!(heard(&socket, Duration::from_millis(10)).await, None, "{servers:?}");
    }
    // What is right is not asked for twice.
    let asked = good.heard().len();
    let bench = bench(&[good.at, silent.at], brief()).await;
    by_udp(&bench, &example(5)).await;
    time::sleep(2 * brief().patience).await;
    assert_eq!(good.heard().len(), asked + 1);
}

#[tokio::test]
async fn before_the_mesh_is_known_only_its_names_wait() {
    let nameserver = Nameserver::start(Say::Bytes(|query| vec![answer(query)])).await;
    let bench = Setup {
        servers: &[nameserver.at],
        known: false,
        ..Setup::default()
    };
    let bench = bench.start().await;
    let socket = client(&bench).await;
    for query in [web(1), example(2), query(3, &["example", "com"], 28)] {
        socket.send(&query).await.unwrap();
    }
    bench.until(3, |event| *event == Event::Dropped(Dropped::NotReady)).await;
    assert_eq!(heard(&socket, Duration::from_millis(100)).await, None);
    assert!(nameserver.heard().is_empty());
    let srv = query(4, &["web"], 33);
    assert_eq!(by_udp(&bench, &srv).await, answer(&srv));
}

#[tokio::test]
async fn all_servers_together_keep_to_their_budget() {
    let nameserver = Nameserver::start(Say::Nothing).await;
    let budget = Budget::new(3, 1);
    let mut benches = Vec::new();
    for _ in 0..2 {
        let setup = Setup {
            servers: &[nameserver.at],
            budget: budget.clone(),
            ..Setup::default()
        };
        benches.push(setup.start().await);
    }
    let (first, second) = (client(&benches[0]).await, client(&benches[1]).await);
    for id in 0..2 {
        first.send(&example(id)).await.unwrap();
    }
    nameserver.hears(2).await;
    for id in 0..4 {
        second.send(&example(id)).await.unwrap();
    }
    benches[1].until(3, |event| *event == Event::Dropped(Dropped::Busy)).await;
    nameserver.hears(3).await;
    assert_eq!(by_udp(&benches[1], &web(9)).await, webs_answer(9));
}

#[tokio::test]
async fn who_is_meant_is_not_waited_for_without_end() {
    let setup = Setup {
        limits: brief(),
        hangs: true,
        ..Setup::default()
    };
    let bench = setup.start().await;
    let socket = client(&bench).await;
    // Each place is had again.
    for id in 0..3 * 2 {
        socket.send(&example(id)).await.unwrap();
        if id % 2 == 1 {
            bench
                .until(1 + usize::from(id), |event| *event == Event::Dropped(Dropped::Silent))
                .await;
        }
    }
    assert_eq!(bench.count(|event| *event == Event::Dropped(Dropped::Busy)), 0);
    let mut stream = TcpStream::connect(bench.tcp).await.unwrap();
    nameserver::write(&mut stream, &example(2)).await;
    assert_eq!(time::timeout(PATIENCE, nameserver::next(&mut stream)).await.unwrap(), None);
}

#[tokio::test]
async fn what_is_no_query_is_not_answered() {
    let nameserver = Nameserver::start(Say::Bytes(|query| vec![answer(query)])).await;
    let bench = bench(&[nameserver.at], Limits::default()).await;
    let socket = client(&bench).await;
    // Too short, and answers: of the mesh, and of anybody's.
    for bytes in [&[][..], &[7; 5], &web(1)[..11], &webs_answer(2), &answer(&example(3))] {
        socket.send(bytes).await.unwrap();
    }
    socket.send(&web(4)).await.unwrap();
    assert_eq!(receive(&socket).await, webs_answer(4));
    assert_eq!(bench.count(|event| *event == Event::Dropped(Dropped::NoQuery)), 5);
    assert!(nameserver.heard().is_empty());
}

#[tokio::test]
async fn dropping_the_server_abandons_what_waits() {
    let nameserver = Nameserver::start(Say::Nothing).await;
    let bench = bench(&[nameserver.at], Limits::default()).await;
    client(&bench).await.send(&example(1)).await.unwrap();
    let mut stream = TcpStream::connect(bench.tcp).await.unwrap();
    nameserver::write(&mut stream, &example(2)).await;
    nameserver.hears(2).await;
    bench.server.abort();
    assert_eq!(time::timeout(PATIENCE, nameserver::next(&mut stream)).await.unwrap(), None);
}

#[tokio::test]
async fn after_a_burst_it_is_the_turn_of_others() {
    let bench = bench(&[], Limits::default()).await;
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    // The server has the same thread, and no turn before this is done.
    for id in 0..100 {
        socket.send_to(&web(id), bench.udp).unwrap();
    }
    let asked = |event: &Event| matches!(event, Event::Asked(_));
    let mut seen = 0;
    while seen < 100 {
        tokio::task::yield_now().await;
        let now = bench.count(asked);
        assert!(now - seen <= BURST, "{} at a time", now - seen);
        seen = now;
    }
}

#[tokio::test]
async fn floods_leave_others_their_turn() {
    // Of clients, and of somebody who guesses at answers: as fast as a thread can send.
    let flood = |to: SocketAddr, what: Vec<u8>| {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.connect(to).unwrap();
            while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                let _ = socket.send(&what);
            }
        });
        (stop, thread)
    };
    let nameserver = Nameserver::start(Say::Bytes(|query| vec![answer(query)])).await;
    let bench = bench(&[nameserver.at], Limits::default()).await;
    for what in [web(1), answer(&example(1)), example(2)] {
        let (stop, flooding) = flood(bench.udp, what);
        // All on one thread, as these tests have it: what does not let go has all of it.
        for _ in 0..20 {
            time::sleep(Duration::from_millis(2)).await;
        }
        // Another socket of the same server is served.
        let mut stream = TcpStream::connect(bench.tcp).await.unwrap();
        nameserver::write(&mut stream, &web(3)).await;
        assert_eq!(
            time::timeout(PATIENCE, nameserver::next(&mut stream)).await.unwrap(),
            Some(webs_answer(3))
        );
        drop(stop);
        flooding.join().unwrap();
    }
}

#[tokio::test]
async fn everything_is_told() {
    let nameserver = Nameserver::start(Say::Bytes(|query| vec![answer(query)])).await;
    let bench = bench(&[nameserver.at], Limits::default()).await;
    by_udp(&bench, &web(1)).await;
    by_udp(&bench, &query(2, &["example", "com"], 65)).await;
    let told = bench.told.0.lock().unwrap().clone();
    let of = |kind| Query {
        kind,
        transport: Transport::Udp,
    };
    let answered = |kind, source| Event::Answered {
        query: of(kind),
        source,
        code: "NOERROR",
    };
    assert_eq!(told[..2], [Event::Asked(of("A")), answered("A", Source::Mesh)]);
    assert_eq!(told[2..4], [Event::Asked(of("HTTPS")), Event::Forwarded(of("HTTPS"))]);
    assert!(matches!(told[4], Event::Took { query, took } if query == of("HTTPS") && took < PATIENCE));
    assert_eq!(told[5..], [answered("HTTPS", Source::Upstream)]);
}

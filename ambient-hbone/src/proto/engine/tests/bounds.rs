//! What is kept for a peer that does not read, for streams that nobody holds, and for those who wait.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Wake,
};

use super::*;

/// How often it was woken.
#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Asks for a stream on behalf of one who is to be woken.
fn ask(engine: &mut Engine, wakes: &Arc<Wakes>) -> Poll<Result<Key, Cut>> {
    let waker = Waker::from(Arc::clone(wakes));
    engine.poll_open(&Context::from_waker(&waker), &authority(), &HeaderMap::new(), false)
}

fn answer(stream: u32, status: &str, end: bool) -> Vec<u8> {
    let mut block = BytesMut::new();
    hpack::literal(&mut block, b":status", status.as_bytes());
    framed(kind::HEADERS, flag::END_HEADERS | Engine::flags_of_end(end), stream, &block)
}

fn settings(id: u16, value: u32) -> Vec<u8> {
    let payload = [&id.to_be_bytes()[..], &value.to_be_bytes()].concat();
    framed(kind::SETTINGS, 0, 0, &payload)
}

fn window(stream: u32, more: u32) -> Vec<u8> {
    framed(kind::WINDOW_UPDATE, 0, stream, &more.to_be_bytes())
}

#[test]
fn refusals_that_nobody_reads_are_kept_up_to_a_bound() {
    let mut engine = server();
    let mut most = 0;
    let outcome = (0..100_000).try_for_each(|n| {
        engine.tick();
        most = most.max(engine.control.len());
        feed(&mut engine, &request(2 * n + 1))?;
        let key = accepted(&mut engine);
        engine.respond(key, StatusCode::UNAUTHORIZED, &HeaderMap::new()).unwrap();
        engine.release(key);
        Ok(())
    });
    assert_eq!(outcome, Err(Broken(Code::ENHANCE_YOUR_CALM)));
    assert!(most < 300 << 10, "{most}");
}

#[test]
fn requests_that_are_taken_back_unread_are_kept_up_to_a_bound() {
    let (mut engine, wakes) = (client(), Arc::default());
    let mut asked = 0;
    while let Poll::Ready(key) = ask(&mut engine, &wakes) {
        engine.release(key.unwrap());
        asked += 1;
        assert!(engine.control.len() < 200 << 10, "{asked}");
    }
    assert!(asked > 1000, "{asked}");
    // It is not the peer's fault, as long as it is not known to be.
    feed(&mut engine, &window(0, 1)).unwrap();
    feed(&mut engine, &framed(kind::PING, flag::ACK, 0, &ROUND)).unwrap();
    assert_eq!(wakes.0.load(Ordering::Relaxed), 0);
    output(&mut engine);
    assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
    assert!(ask(&mut engine, &wakes).is_ready());
}

#[test]
fn who_waits_for_a_place_is_woken_when_there_will_be_none() {
    let (mut engine, wakes) = (client(), Arc::default());
    feed(&mut engine, &settings(setting::MAX_CONCURRENT_STREAMS, 1)).unwrap();
    let _held = open(&mut engine);
    assert!(ask(&mut engine, &wakes).is_pending());
    engine.retire();
    assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
    assert_eq!(ask(&mut engine, &wakes), Poll::Ready(Err(Cut::Unprocessed)));
}

#[test]
fn a_client_leaves_a_server_that_has_said_goaway_behind_its_last_stream() {
    let goaway = framed(kind::GOAWAY, 0, 0, &[[0x7f, 0xff, 0xff, 0xff], [0; 4]].concat());
    let mut engine = client();
    let key = open(&mut engine);
    feed(&mut engine, &[answer(1, "200", true), goaway.clone()].concat()).unwrap();
    output(&mut engine);
    assert!(engine.is_refusing() && !engine.is_finished());
    engine.finish(key).unwrap();
    let sent = frames(&output(&mut engine));
    assert_eq!(sent.last().map(|frame| frame.0), Some(kind::GOAWAY));
    assert!(engine.is_finished());
    // At once, where there is none; and however often it is said.
    let mut engine = client();
    feed(&mut engine, &goaway.repeat(3)).unwrap();
    assert_eq!(frames(&output(&mut engine)).len(), 1);
    assert!(engine.is_finished());
    // A server waits for its client to go.
    let mut engine = server();
    feed(&mut engine, &goaway).unwrap();
    assert!(!engine.is_finished());
}

#[test]
fn a_server_that_takes_no_streams_is_known_to_refuse() {
    let mut engine = client();
    assert!(!engine.is_refusing());
    feed(&mut engine, &settings(setting::MAX_CONCURRENT_STREAMS, 0)).unwrap();
    assert!(engine.is_refusing() && engine.most_streams() == 0);
    feed(&mut engine, &settings(setting::MAX_CONCURRENT_STREAMS, 1)).unwrap();
    assert!(!engine.is_refusing());
}

/// Another task may have lost it between two pieces of one read.
#[test]
fn what_comes_of_a_lost_connection_is_nobodys() {
    let asks = [request(1), framed(kind::DATA, 0, 1, b"early")].concat();
    for cut in [0, 5, 20, asks.len() - 2] {
        let mut engine = server();
        feed(&mut engine, &asks[..cut]).unwrap();
        let given_out = engine.accept();
        engine.lose();
        feed(&mut engine, &asks[cut..]).unwrap();
        feed(&mut engine, &request(3)).unwrap();
        // Not even what broke the rules, which nobody is told any more.
        feed(&mut engine, b"whatever it may be").unwrap();
        assert!(!engine.has_incoming() && engine.accept().is_none(), "{cut}");
        if let Some(Incoming::Request(key, _)) = given_out {
            assert_eq!(engine.respond(key, StatusCode::OK, &HeaderMap::new()), Err(Cut::Lost));
            assert!(matches!(
                engine.poll_take(key, &cx()),
                Poll::Ready(Err(Cut::Lost)) | Poll::Ready(Ok(_))
            ));
            engine.release(key);
        }
        assert_eq!((engine.active, engine.streams.keys().len()), (0, 0), "{cut}");
    }
}

#[test]
fn what_nobody_holds_waits_for_a_peer_that_takes_some_of_it_and_for_no_other() {
    for takes in [false, true] {
        let mut engine = client();
        feed(&mut engine, &settings(setting::INITIAL_WINDOW_SIZE, 0)).unwrap();
        let key = open(&mut engine);
        feed(&mut engine, &answer(1, "200", true)).unwrap();
        engine.send(key, vec![7; 16_000].into()).unwrap();
        engine.finish(key).unwrap();
        output(&mut engine);
        assert_eq!(engine.orphans(), 0, "somebody holds it");
        for _ in 0..1000 {
            assert_eq!(engine.tick(), 0);
        }
        engine.release(key);
        assert_eq!((engine.orphans(), engine.active), (1, 1));
        let mut given_up = 0;
        for n in 0..1000 {
            given_up += engine.tick();
            if takes && n % 20 == 0 {
                feed(&mut engine, &window(1, 1)).unwrap();
                assert_eq!(frames(&output(&mut engine)).len(), 1);
            }
            assert!(n >= 29 || engine.active == 1, "{n}");
        }
        assert_eq!((engine.orphans(), engine.active), (usize::from(takes), usize::from(takes)));
        assert_eq!(given_up, usize::from(!takes));
        if takes {
            feed(&mut engine, &window(1, 16_000)).unwrap();
            let sent = frames(&output(&mut engine));
            assert_eq!((sent[0].1, sent[0].3.len()), (flag::END_STREAM, 16_000 - 50), "all of it comes");
        } else {
            let sent = frames(&output(&mut engine));
            assert_eq!((sent[0].0, sent[0].2), (kind::RST_STREAM, 1));
        }
        assert_eq!((engine.orphans(), engine.active, engine.streams.keys().len()), (0, 0, 0));
    }
}

/// How much the windows of eight streams grow by that are read as fast as they may be filled.
fn grown(engine: &mut Engine) -> u32 {
    let before = engine.terms.spare.left();
    for _ in 0..8 {
        let key = open(engine);
        let (window, mut rounds) = (&mut engine.streams.get(key).unwrap().window, Rounds::default());
        let mut may = frame::DEFAULT_WINDOW;
        for turn in 0..20 {
            let now = Duration::from_millis(2 * turn);
            assert!(rounds.begin(now) && rounds.end(now + Duration::from_millis(1)));
            window.arrive(may, rounds.present());
            rounds.end(now + Duration::from_millis(2));
            may = window.read(may, 1 << 20, rounds.last());
        }
    }
    (before - engine.terms.spare.left()) as u32
}

#[test]
fn a_tunnel_that_has_grown_first_does_not_keep_the_next_from_growing() {
    let terms = terms();
    let mut engines = [(); 2].map(|()| Engine::new(Role::Client, terms.clone()));
    let all = terms.spare.left() as u32;
    let [first, second] = engines.each_mut().map(grown);
    assert!(first <= all / 2 && first > all / 3, "{first}");
    assert!(second <= all / 4 && second > all / 6, "{second}");
    drop(engines);
    assert_eq!(terms.spare.left() as u32, all);
}

#[test]
fn the_text_of_a_refusal_is_passed_over_and_costs_nothing() {
    let mut engine = client();
    // As Envoy answers, in one piece; 20,000 times between two ticks.
    for n in 0..20_000 {
        let key = open(&mut engine);
        let id = 2 * n + 1;
        output(&mut engine);
        let refusal = [
            answer(id, "503", false),
            framed(kind::DATA, 0, id, &[b'x'; 90]),
            framed(kind::DATA, flag::END_STREAM, id, b"y"),
        ];
        feed(&mut engine, &refusal.concat()).unwrap();
        assert!(matches!(engine.poll_answer(key, &cx()), Poll::Ready(Ok(answer)) if answer.status == 503));
        assert!(!engine.has_something_to_send(), "nothing is said of that");
        engine.release(key);
        assert_eq!(engine.active, 0);
    }
    // No more than its window of one.
    let key = open(&mut engine);
    output(&mut engine);
    let text = framed(kind::DATA, 0, key.id(), &vec![b'x'; frame::DEFAULT_FRAME as usize]);
    feed(&mut engine, &[answer(key.id(), "503", false), text.repeat(3)].concat()).unwrap();
    assert!(!engine.has_something_to_send());
    feed(&mut engine, &text.repeat(2)).unwrap();
    let sent = frames(&output(&mut engine));
    assert_eq!(
        (sent[0].0, &*sent[0].3),
        (kind::RST_STREAM, &Code::FLOW_CONTROL_ERROR.0.to_be_bytes()[..])
    );
}

//! Two engines and a wire between them that delivers in pieces.

use std::collections::{HashMap, VecDeque};

use super::*;

/// Client and server, and the bytes on their way.
struct Pair {
    ends: [Engine; 2],
    wires: [VecDeque<u8>; 2],
    now: Duration,
}

impl Pair {
    fn new() -> Self {
        Self {
            ends: [Engine::new(Role::Client, terms()), Engine::new(Role::Server, terms())],
            wires: Default::default(),
            now: Duration::ZERO,
        }
    }

    /// Delivers up to `n` bytes to an end.
    fn deliver(&mut self, to: usize, n: usize) {
        self.now += Duration::from_micros(100);
        let from = 1 - to;
        let sent = output(&mut self.ends[from]);
        self.wires[to].extend(sent);
        let n = n.min(self.wires[to].len());
        let bytes: Bytes = self.wires[to].drain(..n).collect();
        self.ends[to].begin_read();
        self.ends[to].receive(&bytes, self.now).unwrap();
    }

    /// Until nothing is on its way.
    fn settle(&mut self) {
        for _ in 0..200 {
            for to in [0, 1] {
                self.deliver(to, usize::MAX);
            }
        }
        assert!(self.wires.iter().all(VecDeque::is_empty));
    }

    /// A stream, as both ends hold it.
    fn open(&mut self) -> [Key; 2] {
        self.open_as(false)
    }

    fn open_as(&mut self, ample: bool) -> [Key; 2] {
        let near = open_as(&mut self.ends[0], ample);
        self.settle();
        let far = accepted(&mut self.ends[1]);
        self.ends[1].respond(far, StatusCode::OK, &HeaderMap::new()).unwrap();
        self.settle();
        let answer = self.ends[0].poll_answer(near, &cx());
        assert!(matches!(
            answer,
            Poll::Ready(Ok(Answer {
                status: StatusCode::OK,
                ..
            }))
        ));
        [near, far]
    }
}

#[derive(Clone, Debug)]
enum Step {
    Send(usize, usize, usize),
    Finish(usize, usize),
    Cut(usize, usize),
    Read(usize, usize),
    Deliver(usize, usize),
}

fn step() -> impl Strategy<Value = Step> {
    let (side, stream) = (0..2_usize, 0..3_usize);
    prop_oneof![
        6 => (side.clone(), stream.clone(), 1..90_000_usize).prop_map(|(s, k, n)| Step::Send(s, k, n)),
        1 => (side.clone(), stream.clone()).prop_map(|(s, k)| Step::Finish(s, k)),
        1 => (side.clone(), stream.clone()).prop_map(|(s, k)| Step::Cut(s, k)),
        6 => (side.clone(), stream).prop_map(|(s, k)| Step::Read(s, k)),
        8 => (side, prop_oneof![1..40_usize, 1..200_000_usize]).prop_map(|(s, n)| Step::Deliver(s, n)),
    ]
}

/// What one end has done with a stream, and has seen of it.
#[derive(Default)]
struct Side {
    sent: Vec<u8>,
    finished: bool,
    cut: bool,
    read: Vec<u8>,
    ended: bool,
    failed: bool,
}

/// Reads what is there.
fn read(engine: &mut Engine, key: Key, side: &mut Side) {
    while !side.ended && !side.failed {
        match engine.poll_take(key, &cx()) {
            Poll::Ready(Ok(pieces)) if pieces.is_empty() => side.ended = true,
            Poll::Ready(Ok(mut pieces)) => {
                let n = pieces.len();
                pieces.take(n, |piece| side.read.extend_from_slice(&piece));
                engine.give_back(key, n);
            }
            Poll::Ready(Err(_)) => side.failed = true,
            Poll::Pending => return,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever two ends do: bytes arrive in order, an end is seen only behind all of them, and a reset is never an end.
    #[test]
    fn bytes_and_ends_are_exact(steps in proptest::collection::vec(step(), 0..80)) {
        let mut pair = Pair::new();
        let keys = [pair.open(), pair.open_as(true), pair.open()];
        let mut sides: HashMap<(usize, usize), Side> = HashMap::new();
        let mut value = 0_u8;
        for step in steps {
            match step {
                Step::Deliver(to, n) => pair.deliver(to, n),
                Step::Read(at, k) => read(&mut pair.ends[at], keys[k][at], sides.entry((at, k)).or_default()),
                Step::Send(at, k, n) => {
                    let side = sides.entry((at, k)).or_default();
                    if let (false, Poll::Ready(Ok(room))) = (side.finished, pair.ends[at].poll_room(keys[k][at], &cx())) {
                        value = value.wrapping_add(1);
                        let bytes = vec![value; n.min(room)];
                        side.sent.extend_from_slice(&bytes);
                        pair.ends[at].send(keys[k][at], bytes.into()).unwrap();
                    }
                }
                Step::Finish(at, k) => {
                    let finished = pair.ends[at].finish(keys[k][at]).is_ok();
                    sides.entry((at, k)).or_default().finished |= finished;
                }
                Step::Cut(at, k) => {
                    let side = sides.entry((at, k)).or_default();
                    // One that is over already is not cut.
                    side.cut |= pair.ends[at].poll_cut(keys[k][at], &cx()).is_pending();
                    pair.ends[at].cut(keys[k][at], Code::CONNECT_ERROR);
                }
            }
        }
        for _ in 0..40 {
            pair.settle();
            for (k, keys) in keys.iter().enumerate() {
                for at in [0, 1] {
                    read(&mut pair.ends[at], keys[at], sides.entry((at, k)).or_default());
                }
            }
        }
        for k in 0..3 {
            let cut = [0, 1].map(|at| sides[&(at, k)].cut);
            for at in [0, 1] {
                let (here, there) = (&sides[&(at, k)], &sides[&(1 - at, k)]);
                prop_assert!(there.sent.starts_with(&here.read), "stream {k}, end {at}");
                if here.ended {
                    prop_assert!(there.finished && here.read == there.sent, "an end stands behind all");
                } else if !cut[0] && !cut[1] {
                    prop_assert!(!here.failed && here.read == there.sent && !there.finished);
                } else {
                    prop_assert!(here.failed, "a reset is seen");
                }
            }
            for at in [0, 1] {
                pair.ends[at].release(keys[k][at]);
            }
        }
        pair.settle();
        prop_assert_eq!(pair.ends.each_ref().map(|end| (end.active, end.streams.keys().len())), [(0, 0), (0, 0)]);
        // Every window that has grown has given its growth back.
        prop_assert_eq!(pair.ends.each_ref().map(|end| end.terms.spare.left()), [1 << 22, 1 << 22]);
        prop_assert_eq!(pair.ends[0].terms.ample.1.left(), 1 << 26);
    }
}

#[test]
fn one_who_does_not_read_holds_up_nobody() {
    let mut pair = Pair::new();
    let (stalled, moving) = (pair.open(), pair.open());
    let (mut sent, mut side) = (0, Side::default());
    for _ in 0..200 {
        for keys in [stalled, moving] {
            while let Poll::Ready(Ok(room)) = pair.ends[1].poll_room(keys[1], &cx()) {
                pair.ends[1].send(keys[1], vec![7; room].into()).unwrap();
                sent += if keys == moving { room } else { 0 };
            }
        }
        pair.deliver(0, usize::MAX);
        read(&mut pair.ends[0], moving[0], &mut side);
        pair.deliver(1, usize::MAX);
    }
    assert!(
        side.read.len() > 10 << 20 && sent - side.read.len() < 2 << 20,
        "{} of {sent}",
        side.read.len()
    );
    let Poll::Ready(Ok(held)) = pair.ends[0].poll_take(stalled[0], &cx()) else {
        panic!()
    };
    assert_eq!(held.len(), frame::DEFAULT_WINDOW as usize, "and its window has not grown");
}

#[test]
fn what_comes_on_an_ample_stream_need_not_wait_to_be_read() {
    let mut pair = Pair::new();
    let [near, far] = pair.open_as(true);
    let all = 1 << 20;
    let mut sent = 0;
    // The server ends first, and nobody has read anything yet.
    while sent < all {
        let Poll::Ready(Ok(room)) = pair.ends[1].poll_room(far, &cx()) else {
            panic!("{sent} were sent")
        };
        let n = room.min(all - sent);
        pair.ends[1].send(far, vec![7; n].into()).unwrap();
        sent += n;
        pair.deliver(0, usize::MAX);
    }
    pair.ends[1].finish(far).unwrap();
    pair.deliver(0, usize::MAX);
    assert!(!pair.ends[1].has_something_to_send());
    let mut side = Side::default();
    read(&mut pair.ends[0], near, &mut side);
    assert_eq!((side.read.len(), side.ended), (all, true));
}

#[test]
fn streams_take_turns() {
    let mut pair = Pair::new();
    let keys: Vec<_> = (0..4).map(|_| pair.open()).collect();
    for keys in &keys {
        pair.ends[0].send(keys[0], vec![7; 60_000].into()).unwrap();
    }
    let sent = output(&mut pair.ends[0]);
    let order: Vec<_> = frames(&sent).iter().map(|(_, _, stream, _)| *stream).collect();
    let ids: Vec<_> = keys.iter().map(|keys| keys[0].id()).collect();
    assert_eq!(order[..8], [ids.clone(), ids].concat());
}

#[test]
fn a_leave_lets_streams_finish_and_takes_no_new_ones() {
    let mut pair = Pair::new();
    let [near, far] = pair.open();
    pair.ends[1].announce_leave();
    pair.settle();
    assert_eq!(pair.ends[0].goaway(), Some(Code::NO_ERROR));
    let refused = pair.ends[0].poll_open(&cx(), &authority(), &HeaderMap::new(), false);
    assert_eq!(refused, Poll::Ready(Err(Cut::Unprocessed)));
    assert!(!pair.ends[1].is_finished());
    for (end, key) in [(0, near), (1, far)] {
        pair.ends[end].finish(key).unwrap();
        pair.settle();
    }
    assert!(pair.ends[1].is_finished());
}

#[test]
fn a_request_that_crosses_a_leave_is_served_and_one_behind_it_is_unprocessed() {
    let mut pair = Pair::new();
    pair.open();
    pair.ends[1].announce_leave();
    // Sent before the leave was heard of.
    let crossing = open(&mut pair.ends[0]);
    pair.settle();
    let far = accepted(&mut pair.ends[1]);
    pair.ends[1].respond(far, StatusCode::OK, &HeaderMap::new()).unwrap();
    pair.settle();
    assert!(matches!(pair.ends[0].poll_answer(crossing, &cx()), Poll::Ready(Ok(_))));

    let mut pair = Pair::new();
    pair.open();
    pair.ends[1].name_last(Code::NO_ERROR);
    let behind = open(&mut pair.ends[0]);
    pair.settle();
    assert!(matches!(
        pair.ends[0].poll_answer(behind, &cx()),
        Poll::Ready(Err(Cut::Unprocessed))
    ));
}

#[test]
fn more_streams_than_the_peer_takes_wait() {
    let mut pair = Pair::new();
    let keys: Vec<_> = (0..8).map(|_| pair.open()).collect();
    assert!(pair.ends[0].poll_open(&cx(), &authority(), &HeaderMap::new(), false).is_pending());
    pair.ends[0].cut(keys[3][0], Code::CANCEL);
    pair.open();
}

#[test]
fn a_lost_connection_tells_what_never_left() {
    let mut pair = Pair::new();
    let [near, _] = pair.open();
    let handed_out = open(&mut pair.ends[0]);
    output(&mut pair.ends[0]);
    let kept = open(&mut pair.ends[0]);
    pair.ends[0].lose();
    assert!(matches!(pair.ends[0].poll_take(near, &cx()), Poll::Ready(Err(Cut::Lost))));
    assert!(matches!(pair.ends[0].poll_answer(handed_out, &cx()), Poll::Ready(Err(Cut::Lost))));
    assert!(matches!(pair.ends[0].poll_answer(kept, &cx()), Poll::Ready(Err(Cut::Unprocessed))));
    assert_eq!(
        pair.ends[0].poll_open(&cx(), &authority(), &HeaderMap::new(), false),
        Poll::Ready(Err(Cut::Unprocessed))
    );
}

#[test]
fn what_is_dropped_after_its_end_is_still_sent() {
    let mut pair = Pair::new();
    let [near, far] = pair.open();
    pair.ends[0].send(near, vec![7; 16_000].into()).unwrap();
    pair.ends[0].finish(near).unwrap();
    pair.ends[0].release(near);
    pair.settle();
    let mut side = Side::default();
    read(&mut pair.ends[1], far, &mut side);
    assert!(side.ended && side.read.len() == 16_000);
    // Nobody reads what the other side would say.
    assert_eq!(pair.ends[1].poll_cut(far, &cx()), Poll::Ready(Cut::ByPeer(Code::CONNECT_ERROR)));
    assert_eq!(pair.ends[0].active, 0);
}

#[test]
fn a_server_that_has_ended_may_want_no_more() {
    // With something of ours on its way, before its end, or with another code, it is a failure.
    for (code, ended, unsent, fails) in [
        (Code::NO_ERROR, true, false, false),
        (Code::CONNECT_ERROR, true, false, true),
        (Code::NO_ERROR, true, true, true),
        (Code::NO_ERROR, false, false, true),
    ] {
        let mut pair = Pair::new();
        let [near, far] = pair.open();
        if unsent {
            pair.ends[0].credit = 0;
            pair.ends[0].send(near, vec![7; 10].into()).unwrap();
        }
        if ended {
            pair.ends[1].finish(far).unwrap();
        }
        pair.settle();
        pair.ends[1].cut(far, code);
        pair.settle();
        let cut = Cut::ByPeer(code);
        let engine = &mut pair.ends[0];
        assert_eq!(engine.poll_cut(near, &cx()).is_ready(), fails, "{code:?} {ended} {unsent}");
        assert_eq!(
            matches!(engine.poll_room(near, &cx()), Poll::Ready(Err(_))),
            fails,
            "{code:?} {ended} {unsent}"
        );
        assert_eq!(
            engine.finish(near),
            if fails { Err(cut) } else { Ok(()) },
            "{code:?} {ended} {unsent}"
        );
        assert_eq!(engine.send(near, vec![7; 10].into()), Err(cut), "{code:?} {ended} {unsent}");
        assert!(output(engine).is_empty(), "nothing is said of it any more");
        assert_eq!(engine.active, 0);
    }
    // Of a client it is one always.
    let mut pair = Pair::new();
    let [near, far] = pair.open();
    pair.ends[0].finish(near).unwrap();
    pair.settle();
    pair.ends[0].cut(near, Code::NO_ERROR);
    pair.settle();
    assert_eq!(pair.ends[1].finish(far), Err(Cut::ByPeer(Code::NO_ERROR)));
}

#[test]
fn a_server_that_resets_behind_its_end_has_last_words_and_a_client_has_none() {
    for (from, has_some) in [(1, true), (0, false)] {
        let mut pair = Pair::new();
        let keys = pair.open();
        pair.ends[from].send(keys[from], vec![7; 10].into()).unwrap();
        pair.ends[from].finish(keys[from]).unwrap();
        pair.settle();
        pair.ends[from].cut(keys[from], Code::CONNECT_ERROR);
        pair.settle();
        let (to, key) = (&mut pair.ends[1 - from], keys[1 - from]);
        assert_eq!(to.has_last_words(key), has_some);
        assert_eq!(to.poll_unreadable(key, &cx()).is_pending(), has_some);
    }
}

#[test]
fn a_wide_window_in_a_narrow_one_starves_nobody_for_good() {
    let mut pair = Pair::new();
    let [near, far] = pair.open();
    // As a peer would have it that keeps its connection's window at the default.
    pair.ends[0].credit = 1000;
    pair.ends[0].send(near, vec![7; 5000].into()).unwrap();
    let sent = output(&mut pair.ends[0]);
    assert_eq!(frames(&sent).iter().map(|f| f.3.len()).collect::<Vec<_>>(), [1000]);
    feed(&mut pair.ends[0], &framed(kind::WINDOW_UPDATE, 0, 0, &4000_u32.to_be_bytes())).unwrap();
    assert_eq!(frames(&output(&mut pair.ends[0]))[0].3.len(), 4000);
    let _ = far;
}

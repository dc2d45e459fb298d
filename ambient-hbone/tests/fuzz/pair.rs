//! Two engines and a wire between them that delivers in pieces, against a model of what both ends do.

use std::{collections::VecDeque, task::Poll, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use super::{
    input::Input,
    wire::{SPARE, Said, assert_empty, cx, output, terms},
};
use crate::proto::{
    code::Code,
    engine::{Cut, Engine, Incoming, Key, Role, Spare},
    frame,
};

/// Whatever two ends do: bytes arrive in order, an end is seen only behind all of them, and a reset is never an end. Neither
/// end is ever found to break a rule, and nothing stays behind.
pub(crate) fn pair(data: &[u8]) {
    let mut input = Input::new(data);
    let mut pair = Pair::new(&mut input);
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        pair.step(&mut input);
    }
    pair.finish();
}

struct Pair {
    ends: [Engine; 2],
    said: [Said; 2],
    wires: [VecDeque<u8>; 2],
    spares: [Spare; 2],
    streams: Vec<[End; 2]>,
    now: Duration,
    value: u8,
}

/// What one end has done with a stream, and has seen of it.
#[derive(Default)]
struct End {
    /// None before it has it, and once it has let it go.
    key: Option<Key>,
    sent: Vec<u8>,
    finished: bool,
    /// It has reset the stream, refused it, or let it go before its end.
    cut: bool,
    read: Vec<u8>,
    /// Bytes that were taken and not given back.
    taken: usize,
    answered: bool,
    ended: bool,
    failed: bool,
    unprocessed: bool,
}

impl Pair {
    fn new(input: &mut Input<'_>) -> Self {
        let spares = [Spare::new(SPARE), Spare::new(SPARE)];
        let mut end = |role, spare| {
            let window = [frame::DEFAULT_WINDOW, 1 << 17][input.below(2)];
            let send_buffer = [1, 100, 1 << 14, 1 << 16][input.below(4)];
            Engine::new(role, terms(spare, window, send_buffer))
        };
        Self {
            ends: [end(Role::Client, &spares[0]), end(Role::Server, &spares[1])],
            said: [Said::new(true), Said::new(false)],
            wires: Default::default(),
            spares,
            streams: Vec::new(),
            now: Duration::ZERO,
            value: 0,
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let what = input.byte();
        let (at, index) = (usize::from(what & 1), usize::from(what >> 1 & 7));
        match what >> 4 {
            0..=2 => drop(self.deliver(at, input.size())),
            3 => drop(self.deliver(at, usize::MAX)),
            4 => self.open(),
            5 => drop(self.accept(index > 0)),
            6 if index == 7 => self.ends[at].announce_leave(),
            6 => self.ends[at].ping(),
            _ if self.streams.is_empty() => {}
            what => self.work(at, index % self.streams.len(), what, input.size()),
        }
    }

    /// Delivers up to `n` bytes to an end. Gives whether there were any.
    fn deliver(&mut self, to: usize, n: usize) -> bool {
        self.now += Duration::from_micros(100);
        let sent = output(&mut self.ends[1 - to]);
        self.said[1 - to].hear(&sent);
        self.wires[to].extend(sent);
        let n = n.min(self.wires[to].len());
        let bytes: Bytes = self.wires[to].drain(..n).collect();
        self.ends[to].begin_read();
        self.ends[to].receive(&bytes, self.now).expect("an engine keeps the rules");
        n > 0
    }

    fn open(&mut self) {
        if self.streams.len() == MOST {
            return;
        }
        // Each is known by its port.
        let authority = format!("10.0.2.2:{}", PORT + self.streams.len());
        let authority = authority.parse().expect("host and port");
        let ample = self.streams.len() % 2 == 1;
        if let Poll::Ready(Ok(key)) = self.ends[0].poll_open(&cx(), &authority, &HeaderMap::new(), ample) {
            let near = End {
                key: Some(key),
                ..End::default()
            };
            self.streams.push([near, End::default()]);
        }
    }

    /// The server takes the next request. Gives whether there was one.
    fn accept(&mut self, allow: bool) -> bool {
        let Some(incoming) = self.ends[1].accept() else { return false };
        let Incoming::Request(key, request) = incoming else {
            panic!("a client asks for connections alone: {incoming:?}");
        };
        let index = usize::from(request.authority.port()) - PORT;
        let far = &mut self.streams[index][1];
        assert!(!far.answered, "a stream is asked for once");
        let status = if allow { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let engine = &mut self.ends[1];
        engine
            .respond(key, status, &HeaderMap::new())
            .expect("what is over is not given out");
        far.answered = true;
        if allow {
            far.key = Some(key);
        } else {
            far.cut = true;
            engine.release(key);
        }
        true
    }

    fn work(&mut self, at: usize, index: usize, what: u8, n: usize) {
        let (engine, end) = (&mut self.ends[at], &mut self.streams[index][at]);
        let Some(key) = end.key else { return };
        match what {
            7 => drop(end.take(engine)),
            8 => engine.give_back(key, std::mem::take(&mut end.taken)),
            9..=11 => {
                if let (false, Poll::Ready(Ok(room))) = (end.finished, engine.poll_room(key, &cx())) {
                    self.value = self.value.wrapping_add(1);
                    let bytes = vec![self.value; n.min(room)];
                    end.sent.extend_from_slice(&bytes);
                    engine.send(key, Bytes::from(bytes)).expect("there was room");
                }
            }
            12 => end.finished |= engine.finish(key).is_ok(),
            13 => {
                // One that is over already is not cut.
                end.cut |= engine.poll_cut(key, &cx()).is_pending();
                engine.cut(key, Code::CONNECT_ERROR);
            }
            14 => {
                end.cut = true;
                end.key = None;
                engine.release(key);
            }
            _ => {
                end.take(engine);
                engine.give_back(key, std::mem::take(&mut end.taken));
            }
        }
    }

    /// Lets everything come to its end, and compares.
    fn finish(mut self) {
        for round in 0.. {
            assert!(round < 10_000, "it comes to rest");
            let moved = self.deliver(0, usize::MAX) | self.deliver(1, usize::MAX) | self.accept(true);
            let mut read = false;
            for stream in &mut self.streams {
                for (engine, end) in self.ends.iter_mut().zip(stream) {
                    let Some(key) = end.key else { continue };
                    read |= end.take(engine);
                    // Also what was taken before makes room for more.
                    read |= end.taken > 0;
                    engine.give_back(key, std::mem::take(&mut end.taken));
                }
            }
            if !moved && !read {
                break;
            }
        }
        self.streams.iter().for_each(|[near, far]| compare(near, far));
        for stream in &self.streams {
            for (engine, end) in self.ends.iter_mut().zip(stream) {
                end.key.into_iter().for_each(|key| engine.release(key));
            }
        }
        while self.deliver(0, usize::MAX) | self.deliver(1, usize::MAX) {}
        for (engine, spare) in self.ends.iter_mut().zip(&self.spares) {
            assert_empty(engine, spare);
        }
    }
}

impl End {
    /// Takes what is there. Gives whether there was something.
    fn take(&mut self, engine: &mut Engine) -> bool {
        let Some(key) = self.key.filter(|_| !self.ended && !self.failed) else {
            return false;
        };
        if !self.answered {
            match engine.poll_answer(key, &cx()) {
                Poll::Ready(Ok(answer)) if answer.status.is_success() => self.answered = true,
                Poll::Ready(outcome) => {
                    self.failed = true;
                    self.unprocessed = matches!(outcome, Err(Cut::Unprocessed));
                    return true;
                }
                Poll::Pending => return false,
            }
        }
        match engine.poll_take(key, &cx()) {
            Poll::Ready(Ok(pieces)) if pieces.is_empty() => self.ended = true,
            Poll::Ready(Ok(mut pieces)) => {
                self.taken += pieces.len();
                pieces.take(pieces.len(), |piece| self.read.extend_from_slice(&piece));
            }
            Poll::Ready(Err(_)) => self.failed = true,
            Poll::Pending => return false,
        }
        true
    }
}

fn compare(near: &End, far: &End) {
    assert!(!near.unprocessed || !far.answered, "what was served is never called unprocessed");
    let cut = near.cut || far.cut || near.unprocessed;
    for (here, there) in [(near, far), (far, near)] {
        assert!(there.sent.starts_with(&here.read), "what comes was sent, in order");
        if here.ended {
            assert!(there.finished && here.read == there.sent, "an end stands behind all");
        } else if here.key.is_some() && cut {
            assert!(here.failed, "a reset is seen");
        } else if here.key.is_some() {
            assert!(!here.failed && here.read == there.sent && !there.finished, "what was sent comes");
        }
    }
}

/// Things that happen to one pair.
const STEPS: usize = 1000;

/// Streams in one pair.
const MOST: usize = 12;

/// The first is asked for at this port.
const PORT: usize = 1000;

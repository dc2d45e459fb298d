//! One engine, a peer that sends whatever it likes, and an application that does whatever it may.

use std::{task::Poll, time::Duration};

use ambient_core::Authority;
use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use super::{
    input::Input,
    wire::{SPARE, STREAMS, Said, assert_empty, cx, framed, left, output, request, terms},
};
use crate::proto::{
    code::Code,
    engine::{Engine, Incoming, Key, Role, Spare},
    frame::{self, flag, kind},
    hpack,
};

/// A client of any manners before a server.
pub(crate) fn server(data: &[u8]) {
    Endpoint::new(Role::Server, data).run();
}

/// A server of any manners behind a client.
pub(crate) fn client(data: &[u8]) {
    Endpoint::new(Role::Client, data).run();
}

struct Endpoint<'a> {
    role: Role,
    engine: Engine,
    spare: Spare,
    input: Input<'a>,
    said: Said,
    held: Vec<Held>,
    now: Duration,
    /// The size of the pieces in which bytes come.
    cut: usize,
    /// What the peer sent last, and the number of its next stream.
    last: Vec<u8>,
    next: u32,
    /// What the application itself has made the engine say since it last could.
    asked: usize,
    broken: bool,
}

/// A stream that the application holds.
struct Held {
    key: Key,
    /// Bytes that were taken and not given back.
    taken: usize,
    handles: usize,
    /// Whether it may be written to: once it was asked for or answered, and until its end.
    writes: bool,
}

impl<'a> Endpoint<'a> {
    fn new(role: Role, data: &'a [u8]) -> Self {
        let spare = Spare::new(SPARE);
        let mut input = Input::new(data);
        let first = input.byte();
        let engine = Engine::new(
            role,
            terms(&spare, frame::DEFAULT_WINDOW, [1, 1 << 14, 1 << 16][usize::from(first >> 1) % 3]),
        );
        let mut endpoint = Self {
            role,
            engine,
            spare,
            input,
            said: Said::new(role == Role::Client),
            held: Vec::new(),
            now: Duration::ZERO,
            cut: usize::MAX,
            last: Vec::new(),
            next: 1,
            asked: 0,
            broken: false,
        };
        if first & 1 == 0 {
            // Most of what there is to see lies behind a greeting.
            if role == Role::Server {
                endpoint.receive(frame::PREFACE);
            }
            endpoint.receive(&framed(kind::SETTINGS, 0, 0, &[]));
        }
        endpoint
    }

    fn run(mut self) {
        for _ in 0..STEPS {
            if self.input.is_empty() || self.broken {
                break;
            }
            self.step();
            self.bounds();
        }
        self.end();
    }

    fn step(&mut self) {
        match self.input.below(32) {
            0..=2 => self.raw(),
            3..=9 => self.frame(),
            10..=12 => self.ask(),
            13 => self.repeat(),
            14 => self.cut = self.input.size().max(1),
            15 => self.now += Duration::from_micros(self.input.size() as u64),
            16..=18 => self.say(),
            19 => {
                let orphans = self.engine.orphans();
                assert!(self.engine.tick() <= orphans);
            }
            20 => self.leave(),
            21..=22 => self.open(),
            _ => self.work(),
        }
    }

    // The peer.

    fn raw(&mut self) {
        let bytes = self.input.text();
        self.receive(bytes);
    }

    /// A frame that is one, with whatever in it.
    fn frame(&mut self) {
        let (kind, flags, stream) = (self.input.byte() % 11, self.input.byte(), self.input.below(24));
        let payload = match kind {
            kind::DATA => vec![flags; self.input.size().min(frame::DEFAULT_FRAME as usize)],
            _ => self.input.text().to_vec(),
        };
        self.receive(&framed(kind, flags, stream as u32, &payload));
    }

    /// What opens a stream: a request, or its answer.
    fn ask(&mut self) {
        let end = self.input.flag();
        let flags = if end { flag::END_STREAM } else { 0 };
        let bytes = match self.role {
            Role::Server => request(self.next, flags),
            Role::Client => {
                let mut block = bytes::BytesMut::new();
                let status = [StatusCode::OK, StatusCode::CONTINUE, StatusCode::SERVICE_UNAVAILABLE][self.input.below(3)];
                hpack::literal_named(&mut block, hpack::names::STATUS, status.as_str().as_bytes());
                let stream = 2 * self.input.below(12) as u32 + 1;
                framed(kind::HEADERS, flag::END_HEADERS | flags, stream, &block)
            }
        };
        self.next += 2;
        self.receive(&bytes);
    }

    fn repeat(&mut self) {
        let bytes = std::mem::take(&mut self.last);
        for _ in 0..self.input.below(64) {
            self.receive(&bytes);
        }
    }

    fn receive(&mut self, bytes: &[u8]) {
        self.now += Duration::from_micros(100);
        for piece in bytes.chunks(self.cut) {
            if self.broken {
                return;
            }
            if let Err(broken) = self.engine.receive(&Bytes::copy_from_slice(piece), self.now) {
                self.broken = true;
                self.engine.name_last(broken.0);
            }
        }
        self.last = bytes.to_vec();
    }

    /// The peer takes what there is for it.
    fn say(&mut self) {
        let sent = output(&mut self.engine);
        let overhead = self.said.hear(&sent);
        assert!(overhead <= MOST_SAID + std::mem::take(&mut self.asked), "{overhead} bytes waited");
    }

    // The application.

    fn leave(&mut self) {
        match self.input.below(4) {
            0 => self.engine.announce_leave(),
            1 => self.engine.name_last(Code::NO_ERROR),
            2 if self.role == Role::Client => self.engine.retire(),
            _ => {
                self.engine.ping();
                self.asked += 17;
            }
        }
    }

    fn open(&mut self) {
        if self.held.len() >= MOST_HELD {
            return;
        }
        let key = match self.role {
            Role::Server => match self.engine.accept() {
                Some(Incoming::Request(key, _)) => key,
                _ => return,
            },
            Role::Client => {
                let authority: Authority = "10.0.2.2:8080".parse().expect("host and port");
                let Poll::Ready(Ok(key)) = self.engine.poll_open(&cx(), &authority, &HeaderMap::new(), false) else {
                    return;
                };
                self.asked += 100;
                key
            }
        };
        let answer = self.input.byte();
        let writes = self.role == Role::Client || answer & 3 > 0;
        if self.role == Role::Server && answer & 3 > 0 {
            let status = [StatusCode::OK, StatusCode::OK, StatusCode::SERVICE_UNAVAILABLE][usize::from(answer >> 2) % 3];
            let _ = self.engine.respond(key, status, &HeaderMap::new());
            self.asked += 100;
        }
        self.held.push(Held {
            key,
            taken: 0,
            handles: 1,
            writes,
        });
    }

    /// Something is done with a stream that is held.
    fn work(&mut self) {
        let what = self.input.byte();
        if self.held.is_empty() {
            return;
        }
        let index = usize::from(what >> 4) % self.held.len();
        let Held {
            key,
            taken,
            handles,
            writes,
        } = &mut self.held[index];
        let key = *key;
        match what & 0x0f {
            0..=2 => {
                if let Poll::Ready(Ok(pieces)) = self.engine.poll_take(key, &cx()) {
                    *taken += pieces.len();
                }
            }
            3..=5 => {
                self.asked += 13;
                self.engine.give_back(key, std::mem::take(taken));
            }
            6..=8 if *writes => {
                let n = self.input.size();
                if let Poll::Ready(Ok(room)) = self.engine.poll_room(key, &cx()) {
                    self.asked += 9 * n;
                    self.engine.send(key, Bytes::from(vec![7; n.min(room)])).expect("there was room");
                }
            }
            9 if *writes => {
                *writes = false;
                let _ = self.engine.finish(key);
                self.asked += 9;
            }
            10 => {
                self.engine.cut(key, Code::CONNECT_ERROR);
                self.asked += 13;
            }
            11 => {
                let _ = self.engine.poll_answer(key, &cx());
            }
            12 if *handles < 4 => {
                self.engine.hold(key);
                *handles += 1;
            }
            13 => {
                let _ = self.engine.poll_cut(key, &cx());
            }
            14.. => {
                self.engine.release(key);
                self.asked += 13;
                *handles -= 1;
                if *handles == 0 {
                    self.held.swap_remove(index);
                }
            }
            _ => {}
        }
    }

    // What must hold.

    fn bounds(&mut self) {
        let grown = SPARE - left(&self.spare);
        let taken: usize = self.held.iter().map(|held| held.taken).sum();
        let most = self.held.len() * frame::DEFAULT_WINDOW as usize + grown;
        assert!(taken <= most, "{taken} bytes of {most}");
    }

    fn end(mut self) {
        if !self.broken && self.input.byte() == 0 {
            self.say();
        }
        // What waits for the application is within the windows, and so is what it has taken.
        let grown = SPARE - left(&self.spare);
        let (mut waits, streams) = (0, self.held.len());
        for held in &self.held {
            let mut of_stream = held.taken;
            while let Poll::Ready(Ok(pieces)) = self.engine.poll_take(held.key, &cx()) {
                if pieces.is_empty() {
                    break;
                }
                of_stream += pieces.len();
            }
            assert!(of_stream <= 1 << 20, "{of_stream} bytes in a window");
            waits += of_stream;
        }
        assert!(
            waits <= streams * frame::DEFAULT_WINDOW as usize + grown,
            "{waits} bytes of {streams} streams"
        );

        self.engine.lose();
        // What was on its way still comes, and begins nothing.
        self.cut = usize::MAX;
        self.receive(&request(self.next, 0));
        assert!(
            self.engine.accept().is_none(),
            "nothing is asked for on a connection that is no more"
        );
        for held in std::mem::take(&mut self.held) {
            for _ in 0..held.handles {
                self.engine.release(held.key);
            }
        }
        self.say();
        assert_empty(&mut self.engine, &self.spare);
    }
}

/// Things that happen to one engine.
const STEPS: usize = 2000;

/// Streams that the application holds, of which some may be over.
const MOST_HELD: usize = 3 * STREAMS as usize;

/// What may wait to be said beside data and what the application has asked for: 256 KiB, 1 KiB for each stream, and what one
/// frame brings about.
const MOST_SAID: usize = (260 + STREAMS as usize) << 10;

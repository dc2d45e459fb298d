//! Plays one end of a tunnel from a vector, and holds the other end to it.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};

use super::{
    ACK, DATA, END_HEADERS, END_STREAM, Frame, GOAWAY, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS, WINDOW_UPDATE,
    hpack::Decoder,
    vector::{self, Speaker, Step},
};

/// One end of a tunnel, above TLS.
pub(crate) struct Player<IO> {
    io: IO,
    speaker: Speaker,
    /// Bytes that came and are not looked at.
    bytes: Vec<u8>,
    /// Frames that came while one about the connection was waited for.
    early: VecDeque<Seen>,
    decoder: Decoder,
    /// What came of each stream's DATA beyond what was expected so far, and whether it has ended.
    data: HashMap<u32, (Vec<u8>, bool)>,
    ping: Vec<u8>,
}

/// A frame that came, and what its header block says: order matters to HPACK, so that it is read at once.
struct Seen {
    frame: Frame,
    fields: Vec<(String, String)>,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Player<IO> {
    /// Speaks for `speaker`.
    pub(crate) fn new(io: IO, speaker: Speaker) -> Self {
        Self {
            io,
            speaker,
            bytes: Vec::new(),
            early: VecDeque::new(),
            decoder: Decoder::default(),
            data: HashMap::new(),
            ping: Vec::new(),
        }
    }

    /// Says what this end has to say in a vector, and sees that the other end says the rest.
    pub(crate) async fn play(&mut self, name: &str) {
        for step in vector::read(name) {
            if step.speaker == self.speaker {
                self.say(&step).await;
            } else {
                let heard = timeout(DEADLINE, self.hear(&step)).await;
                heard.unwrap_or_else(|_| panic!("{name}: nobody says {}", step.title));
            }
        }
    }

    /// Ends the connection in good order, as far as the other end still listens.
    pub(crate) async fn close(&mut self) {
        let _ = self.io.shutdown().await;
    }

    async fn say(&mut self, step: &Step) {
        let mut bytes = step.bytes.clone();
        if step.frame().is_some_and(|frame| frame.kind == PING && frame.has(ACK)) && !self.ping.is_empty() {
            // The bytes of a PING are for the other end to choose, and come back as they were.
            let at = bytes.len() - self.ping.len();
            bytes[at..].copy_from_slice(&self.ping);
        }
        self.send(&bytes).await;
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.io.write_all(bytes).await.expect("the other end reads");
        self.io.flush().await.expect("the other end reads");
    }

    async fn hear(&mut self, step: &Step) {
        let title = &step.title;
        let Some(expected) = step.frame() else {
            while self.bytes.len() < PREFACE.len() {
                self.receive().await.expect("a preface");
            }
            assert_eq!(self.bytes.drain(..PREFACE.len()).as_slice(), PREFACE);
            return;
        };
        if expected.kind == DATA {
            return self.hear_data(title, &expected).await;
        }
        let Seen { frame, fields } = self.next(&expected, title).await;
        assert_eq!(
            (frame.kind, frame.stream),
            (expected.kind, expected.stream),
            "expected {title}, got {frame:?}"
        );
        match expected.kind {
            HEADERS => {
                assert_eq!(sorted(fields), sorted(Decoder::default().decode(&expected.payload)), "{title}");
                let ended = frame.has(END_STREAM);
                // An end may also come behind the headers, in a frame of its own.
                if ended || expected.has(END_STREAM) {
                    self.data.entry(frame.stream).or_default().1 |= ended;
                    let nothing = Frame {
                        kind: DATA,
                        flags: END_STREAM,
                        payload: Vec::new(),
                        ..expected
                    };
                    Box::pin(self.hear_data(title, &nothing)).await;
                }
            }
            RST_STREAM => assert_eq!(frame.code(), expected.code(), "{title}"),
            GOAWAY => assert_eq!(frame.payload[..8], expected.payload[..8], "{title}"),
            PING if frame.has(ACK) => assert_eq!(frame, expected, "{title}"),
            PING => self.ping = frame.payload,
            // What an end sets is its own affair.
            SETTINGS => {}
            other => panic!("{title}: this test does not know what is right for a frame of type {other}"),
        }
    }

    /// However it is cut into frames.
    async fn hear_data(&mut self, title: &str, expected: &Frame) {
        let stream = expected.stream;
        let wanted = expected.data().to_vec();
        loop {
            let (got, ended) = self.data.entry(stream).or_default();
            let n = got.len().min(wanted.len());
            assert!(got[..n] == wanted[..n], "expected {title}, got {:?}", String::from_utf8_lossy(got));
            // What goes on without an end may have the next words in the same frame.
            let whole = if expected.has(END_STREAM) { *ended && got.len() == n } else { true };
            if n == wanted.len() && whole {
                got.drain(..n);
                return;
            }
            assert!(!*ended, "expected {title}, got an early end");
            let Seen { frame, .. } = self.next(expected, title).await;
            assert_eq!((frame.kind, frame.stream), (DATA, stream), "expected {title}, got {frame:?}");
            let (got, ended) = self.data.entry(stream).or_default();
            got.extend(frame.data());
            *ended |= frame.has(END_STREAM);
        }
    }

    /// The next frame of the expected one's sort: those about the connection may come at any time between others.
    async fn next(&mut self, expected: &Frame, title: &str) -> Seen {
        let about_connection = is_about_connection(expected);
        if let Some(seen) = (!about_connection).then(|| self.early.pop_front()).flatten() {
            return seen;
        }
        loop {
            let seen = self
                .receive_frame()
                .await
                .unwrap_or_else(|| panic!("expected {title}, got the connection's end"));
            let frame = &seen.frame;
            let same = frame.kind == expected.kind && frame.has(ACK) == expected.has(ACK);
            match (about_connection, is_about_connection(frame)) {
                (true, true) if same => return seen,
                (_, true) => self.answer(frame.clone()).await,
                (true, false) => self.early.push_back(seen),
                (false, false) => return seen,
            }
        }
    }

    /// What any end does with what it did not wait for.
    async fn answer(&mut self, frame: Frame) {
        let ack = match frame.kind {
            PING if !frame.has(ACK) => frame.payload,
            SETTINGS if !frame.has(ACK) => Vec::new(),
            _ => return,
        };
        let mut bytes = vec![0, 0, ack.len() as u8, frame.kind, ACK, 0, 0, 0, 0];
        bytes.extend(ack);
        self.send(&bytes).await;
    }

    /// `None` when the connection has ended.
    async fn receive_frame(&mut self) -> Option<Seen> {
        loop {
            if let Some((frame, length)) = Frame::read(&self.bytes) {
                self.bytes.drain(..length);
                let mut fields = Vec::new();
                if frame.kind == HEADERS {
                    assert!(
                        frame.has(END_HEADERS) && frame.flags & !(END_HEADERS | END_STREAM) == 0,
                        "{frame:?}"
                    );
                    fields = self.decoder.decode(&frame.payload);
                }
                return Some(Seen { frame, fields });
            }
            self.receive().await?;
        }
    }

    async fn receive(&mut self) -> Option<()> {
        let got = self.io.read_buf(&mut self.bytes).await.unwrap_or(0);
        (got > 0).then_some(())
    }
}

fn is_about_connection(frame: &Frame) -> bool {
    matches!(frame.kind, SETTINGS | PING | WINDOW_UPDATE)
}

fn sorted(mut fields: Vec<(String, String)>) -> Vec<(String, String)> {
    fields.sort_unstable();
    fields
}

/// For the other end to say what it should.
const DEADLINE: Duration = Duration::from_secs(10);

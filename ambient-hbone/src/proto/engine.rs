//! One connection of HTTP/2 that knows CONNECT and nothing else, without I/O and without a clock.
//!
//! Bytes from the peer go into [`Engine::receive`], bytes for it come out of [`Engine::transmit`]; both are called by
//! whoever drives the connection, as long as either has something to do. Streams are worked by their [`Key`]: what has come
//! is [taken](Engine::poll_take) and then [given back](Engine::give_back) as credit; what is to go is put
//! [in](Engine::send) where there is [room](Engine::poll_room). A call that gives the driver something to do wakes it.
//!
//! ```text
//!                 open (client)                 respond 2xx (server)
//!   (nothing) ------------------> unanswered ----------------------> established
//!        \     HEADERS (server)  ^           \     HEADERS 2xx (client)    |
//!         `---------------------'             \                            | each direction ends by END_STREAM
//!                                              v                           v
//!    RST_STREAM, GOAWAY below it, the end:    cut                        closed
//! ```
//!
//! A stream keeps its place until both directions have ended, or it was cut, and nobody holds it any more.

use std::{
    collections::VecDeque,
    task::{Context, Poll, Waker},
    time::Duration,
};

use ambient_core::Authority;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode};

use self::{
    manners::Manners,
    receive::Reading,
    streams::{Sending, Slot, Streams},
    window::{Rounds, Share, Window},
};
use super::{
    code::Code,
    connect::{self, Answer, MalformedRequest, Request},
    frame::{self, flag, kind, setting},
    hpack,
};

mod manners;
mod pieces;
mod receive;
mod streams;
#[cfg(test)]
mod tests;
mod transmit;
mod window;

pub(crate) use pieces::{Buffers, Frames, Pieces};
pub(crate) use streams::Key;
pub(crate) use window::Spare;

/// Which end of the connection this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Client,
    Server,
}

/// What this end allows its peer and itself.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    /// Streams that the peer may have open; read by a server.
    pub(crate) streams: u32,
    /// The window of a stream at first, and at most.
    pub(crate) windows: [u32; 2],
    pub(crate) spare: Spare,
    /// The window at first of a stream that is opened with an ample one, and what of it there is for all of them.
    pub(crate) ample: (u32, Spare),
    /// The largest frame.
    pub(crate) frame: u32,
    /// Decoded bytes of a header list.
    pub(crate) header_list: u32,
    /// Bytes of a stream that may wait to be sent.
    pub(crate) send_buffer: usize,
}

/// Why a stream has ended otherwise than in good order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// The peer reset it.
    ByPeer(Code),
    /// This end did.
    Here(Code),
    /// The peer has said that it did nothing with it, or it never left.
    Unprocessed,
    /// With the whole connection.
    Lost,
}

/// The peer has broken the rules of HTTP/2, or our patience: the connection is over, and the peer is told so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Broken(pub(crate) Code);

/// What a server was asked.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// To connect; whoever takes it holds the stream.
    Request(Key, Box<Request>),
    /// Something else; it was answered 400.
    Unfit(MalformedRequest),
}

/// One end of a connection.
#[derive(Debug)]
pub(crate) struct Engine {
    role: Role,
    terms: Terms,
    peer: PeerTerms,
    streams: Streams,
    /// Streams that are neither closed nor cut, and those of them that nobody holds.
    active: usize,
    orphans: usize,
    incoming: VecDeque<Incoming>,
    openers: Vec<Waker>,
    driver: Option<Waker>,

    reading: Reading,
    hpack: hpack::Decoder,
    manners: Manners,
    /// For what comes and is copied, and for what is read at once; and whether anything came since the last tick.
    buffers: Buffers,
    reads: Buffers,
    came: bool,
    /// Which read it is that brings what comes now.
    read: u64,
    /// What the peer may send on the whole connection.
    window: u32,
    /// What the windows of its streams may grow by.
    spare: Share,
    rounds: Rounds,
    /// When the peer's latest bytes came.
    now: Duration,

    /// Frames that go before any data.
    control: BytesMut,
    /// How much of them is what the connection begins with.
    greeting: usize,
    /// Streams with data, or an end, and credit to send it.
    ready: VecDeque<Key>,
    /// Streams that wait for the connection's window.
    starved: VecDeque<Key>,
    credit: i64,
    /// Data went since the peer last said that it takes more on the whole connection.
    sent: bool,

    next_id: u32,
    /// The highest stream of ours whose HEADERS were handed out to be sent.
    handed_out: u32,
    last_of_peer: u32,
    retiring: bool,
    leaving: Leaving,
    /// The last stream that the peer will look at, and why.
    goaway: Option<(u32, Code)>,
    /// The connection is no more: whatever still comes of it is nobody's.
    lost: bool,
}

/// What the peer allows.
#[derive(Debug)]
struct PeerTerms {
    /// Its SETTINGS have come.
    greeted: bool,
    streams: usize,
    window: u32,
    frame: usize,
}

/// How far this end has come in taking its leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaving {
    No,
    /// It was said that there will be a last stream; a PING asks whether that was heard.
    Announced,
    /// The last stream was named.
    Named,
}

impl Engine {
    pub(crate) fn new(role: Role, terms: Terms) -> Self {
        let mut control = BytesMut::new();
        if role == Role::Client {
            control.extend_from_slice(frame::PREFACE);
        }
        let mut settings = vec![
            (setting::INITIAL_WINDOW_SIZE, terms.windows[0]),
            (setting::MAX_FRAME_SIZE, terms.frame),
            (setting::MAX_HEADER_LIST_SIZE, terms.header_list),
        ];
        settings.push(match role {
            Role::Client => (setting::ENABLE_PUSH, 0),
            Role::Server => (setting::MAX_CONCURRENT_STREAMS, terms.streams),
        });
        frame::settings(&mut control, &settings);
        // Streams are bounded one by one, and never by each other.
        frame::word(&mut control, kind::WINDOW_UPDATE, 0, frame::WIDEST_WINDOW - frame::DEFAULT_WINDOW);
        Self {
            role,
            spare: terms.spare.share(),
            terms,
            peer: PeerTerms {
                greeted: false,
                streams: usize::MAX,
                window: frame::DEFAULT_WINDOW,
                frame: frame::DEFAULT_FRAME as usize,
            },
            streams: Streams::default(),
            active: 0,
            orphans: 0,
            incoming: VecDeque::new(),
            openers: Vec::new(),
            driver: None,
            reading: Reading::new(role),
            hpack: hpack::Decoder::default(),
            manners: Manners::default(),
            buffers: Buffers::default(),
            reads: Buffers::default(),
            came: false,
            read: 1,
            greeting: control.len(),
            window: frame::WIDEST_WINDOW,
            rounds: Rounds::default(),
            now: Duration::ZERO,
            control,
            ready: VecDeque::new(),
            starved: VecDeque::new(),
            credit: i64::from(frame::DEFAULT_WINDOW),
            sent: false,
            next_id: 1,
            handed_out: 0,
            last_of_peer: 0,
            retiring: false,
            leaving: Leaving::No,
            goaway: None,
            lost: false,
        }
    }

    // What the driver asks and does.

    /// Whom to wake when there is something to send.
    pub(crate) fn set_driver(&mut self, cx: &Context<'_>) {
        match &mut self.driver {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
    }

    /// Whether the peer's SETTINGS have come.
    pub(crate) fn is_greeted(&self) -> bool {
        self.peer.greeted
    }

    /// How many streams the peer takes at a time; none once it takes no new ones.
    pub(crate) fn most_streams(&self) -> usize {
        match self.goaway {
            None if self.next_id <= frame::LAST_STREAM && !self.retiring => self.peer.streams,
            _ => 0,
        }
    }

    /// Whether the peer has said that it takes no new streams, be it for now.
    pub(crate) fn is_refusing(&self) -> bool {
        self.goaway.is_some() || self.peer.streams == 0
    }

    /// Why the peer takes no new streams, if it said so.
    pub(crate) fn goaway(&self) -> Option<Code> {
        self.goaway.map(|(_, code)| code)
    }

    /// Asks the peer whether it lives: whatever it sends next is an answer.
    pub(crate) fn ping(&mut self) {
        frame::ping(&mut self.control, 0, *b"alive?  ");
        self.wake_driver();
    }

    /// How many streams there are that nobody holds any more, and whose last words the peer has not taken yet.
    pub(crate) fn orphans(&self) -> usize {
        self.orphans
    }

    /// To be called every few seconds. Gives how many streams were given up that nobody held: what they still had to say is lost.
    pub(crate) fn tick(&mut self) -> usize {
        self.manners.forgive();
        let stuck = if self.orphans > 0 { self.streams.stuck() } else { Vec::new() };
        for key in &stuck {
            self.cut(*key, Code::CONNECT_ERROR);
        }
        if !std::mem::take(&mut self.came) {
            self.buffers.clear();
            self.reads.clear();
        }
        stuck.len()
    }

    /// Where whoever reads for it has buffers from, which are given back to the system while nothing comes.
    pub(crate) fn reads(&self) -> Buffers {
        self.reads.clone()
    }

    /// What comes next lies in another buffer than what came before.
    pub(crate) fn begin_read(&mut self) {
        self.read += 1;
    }

    /// Tells the peer to open no new streams. Those on their way are still taken.
    pub(crate) fn announce_leave(&mut self) {
        if self.leaving == Leaving::No {
            self.leaving = Leaving::Announced;
            frame::goaway(&mut self.control, frame::LAST_STREAM, Code::NO_ERROR.0);
            frame::ping(&mut self.control, 0, LEAVING);
            self.wake_driver();
        }
    }

    /// No new streams are opened: the connection ends with the last one.
    pub(crate) fn retire(&mut self) {
        self.retiring = true;
        // Whoever waits for a place goes elsewhere.
        self.openers.drain(..).for_each(Waker::wake);
        if self.active == 0 {
            self.name_last(Code::NO_ERROR);
        }
    }

    /// Tells the peer what it did wrong, and nothing else any more.
    pub(crate) fn break_off(&mut self, code: Code) {
        // But for our SETTINGS, which are the first that any peer may hear (RFC 9113 3.4).
        self.control.truncate(self.greeting);
        self.leaving = Leaving::Announced;
        self.name_last(code);
    }

    /// Tells the peer which stream was the last, and why.
    pub(crate) fn name_last(&mut self, code: Code) {
        if self.leaving != Leaving::Named {
            self.leaving = Leaving::Named;
            frame::goaway(&mut self.control, self.last_of_peer, code.0);
            self.wake_driver();
        }
    }

    /// Whether nothing more is to come: this end has taken its leave and the last stream has ended.
    pub(crate) fn is_finished(&self) -> bool {
        self.leaving == Leaving::Named && self.active == 0
    }

    /// The connection is no more.
    pub(crate) fn lose(&mut self) {
        self.lost = true;
        for key in self.streams.keys() {
            let unsent = self.role == Role::Client && self.streams.get(key).is_some_and(|slot| slot.id > self.handed_out);
            self.end(key, if unsent { Cut::Unprocessed } else { Cut::Lost });
        }
        self.goaway.get_or_insert((0, Code::NO_ERROR));
        for incoming in std::mem::take(&mut self.incoming) {
            if let Incoming::Request(key, _) = incoming {
                self.release(key);
            }
        }
        self.openers.drain(..).for_each(Waker::wake);
        // It may be another task that says so.
        self.wake_driver();
    }

    // What a server asks and does.

    /// Whether there may be a next request.
    pub(crate) fn has_incoming(&self) -> bool {
        !self.incoming.is_empty()
    }

    /// The next request.
    pub(crate) fn accept(&mut self) -> Option<Incoming> {
        while let Some(incoming) = self.incoming.pop_front() {
            match incoming {
                // Reset before anybody has seen it.
                Incoming::Request(key, _) if self.streams.get(key).is_none_or(|slot| slot.cut.is_some()) => self.release(key),
                incoming => return Some(incoming),
            }
        }
        None
    }

    /// Answers a request. With another status than success that ends the stream.
    pub(crate) fn respond(&mut self, key: Key, status: StatusCode, headers: &HeaderMap) -> Result<(), Cut> {
        let established = status.is_success();
        let slot = self.streams.get(key).ok_or(Cut::Lost)?;
        if let Some(cut) = slot.cut {
            return Err(cut);
        }
        slot.established = established;
        let mut block = BytesMut::new();
        connect::write_answer(&mut block, status, headers);
        frame::headers(&mut self.control, key.id(), &block, !established, self.peer.frame);
        if !established {
            // What the peer has sent with it is of no use to anybody (RFC 9113 8.1).
            self.cut(key, Code::NO_ERROR);
        }
        self.wake_driver();
        Ok(())
    }

    // What a client asks and does.

    /// Opens a stream, with an ample window or as all others, once the peer takes one more, and has taken most of what was asked of it:
    /// what is asked and taken back before a peer reads it is kept for it all the same.
    pub(crate) fn poll_open(
        &mut self,
        cx: &Context<'_>,
        authority: &Authority,
        headers: &HeaderMap,
        ample: bool,
    ) -> Poll<Result<Key, Cut>> {
        if self.goaway.is_some() || self.retiring || self.next_id > frame::LAST_STREAM {
            return Poll::Ready(Err(Cut::Unprocessed));
        }
        if self.active >= self.peer.streams || self.control.len() >= MOST_ASKED {
            if !self.openers.iter().any(|waker| waker.will_wake(cx.waker())) {
                self.openers.push(cx.waker().clone());
            }
            return Poll::Pending;
        }
        let id = self.next_id;
        self.next_id += 2;
        let mut block = BytesMut::with_capacity(512);
        connect::write_request(&mut block, authority, headers);
        frame::headers(&mut self.control, id, &block, false, self.peer.frame);
        let key = self.insert(id);
        if let (true, Some(slot)) = (ample, self.streams.get(key)) {
            let (size, spare) = &self.terms.ample;
            let more = slot.window.begin_ample(*size, spare);
            if more > 0 {
                frame::word(&mut self.control, kind::WINDOW_UPDATE, id, more);
            }
        }
        self.wake_driver();
        Poll::Ready(Ok(key))
    }

    /// The answer to a request, once.
    pub(crate) fn poll_answer(&mut self, key: Key, cx: &Context<'_>) -> Poll<Result<Answer, Cut>> {
        let Some(slot) = self.streams.get(key) else {
            return Poll::Ready(Err(Cut::Lost));
        };
        match (slot.answer.take(), slot.cut) {
            (Some(answer), _) => Poll::Ready(Ok(*answer)),
            (None, Some(cut)) => Poll::Ready(Err(cut)),
            (None, None) => register(&mut slot.reader, cx),
        }
    }

    // What both do with a stream.

    /// What has come; nothing if the peer has ended its direction. What is taken is to be [given back](Self::give_back).
    pub(crate) fn poll_take(&mut self, key: Key, cx: &Context<'_>) -> Poll<Result<Pieces, Cut>> {
        let Some(slot) = self.streams.get(key) else {
            return Poll::Ready(Err(Cut::Lost));
        };
        if !slot.inbox.is_empty() {
            return Poll::Ready(Ok(slot.inbox.take(&self.buffers)));
        }
        match slot.cut {
            // What had come was thrown away: that must not look like the peer's end.
            Some(cut @ Cut::Here(_)) => Poll::Ready(Err(cut)),
            _ if slot.ended_by_peer => Poll::Ready(Ok(Pieces::default())),
            Some(cut) => Poll::Ready(Err(cut)),
            None => register(&mut slot.reader, cx),
        }
    }

    /// `n` bytes that were taken have found their reader: the peer may send more.
    pub(crate) fn give_back(&mut self, key: Key, n: usize) {
        let (largest, last) = (self.terms.windows[1], self.rounds.last());
        let Some(slot) = self.streams.get(key) else { return };
        // No more than a window, and that is 31 bits.
        let more = slot.window.read(n as u32, largest, last);
        if more > 0 && !slot.closed && !slot.ended_by_peer {
            frame::word(&mut self.control, kind::WINDOW_UPDATE, key.id(), more);
            self.wake_driver();
        }
    }

    /// How many bytes may be put in, once any may.
    pub(crate) fn poll_room(&mut self, key: Key, cx: &Context<'_>) -> Poll<Result<usize, Cut>> {
        let most = self.terms.send_buffer;
        let Some(slot) = self.streams.get(key) else {
            return Poll::Ready(Err(Cut::Lost));
        };
        match (slot.cut, slot.room(most)) {
            // Whoever has more to say is told then, and who has not ends in good order.
            (Some(_), _) if slot.declined => Poll::Ready(Ok(most)),
            (Some(cut), _) => Poll::Ready(Err(cut)),
            (None, 0) => register(&mut slot.writer, cx),
            (None, room) => Poll::Ready(Ok(room)),
        }
    }

    /// Ready once reading fails, however much waits to be read. It does not where the peer has [last words](Self::has_last_words).
    pub(crate) fn poll_unreadable(&mut self, key: Key, cx: &Context<'_>) -> Poll<Cut> {
        let role = self.role;
        let Some(slot) = self.streams.get(key) else {
            return Poll::Ready(Cut::Lost);
        };
        match slot.cut {
            Some(cut) if !slot.has_last_words(role) => Poll::Ready(cut),
            _ => register(&mut slot.writer, cx),
        }
    }

    /// Whether the peer, a server, has said all that it had to say, and wants no more: what it said is there to be read.
    pub(crate) fn has_last_words(&mut self, key: Key) -> bool {
        let role = self.role;
        self.streams.get(key).is_some_and(|slot| slot.has_last_words(role))
    }

    /// Ready once the stream is cut.
    pub(crate) fn poll_cut(&mut self, key: Key, cx: &Context<'_>) -> Poll<Cut> {
        let Some(slot) = self.streams.get(key) else {
            return Poll::Ready(Cut::Lost);
        };
        match slot.cut {
            Some(cut) if !slot.declined => Poll::Ready(cut),
            _ => register(&mut slot.writer, cx),
        }
    }

    /// Puts bytes in; no more than there is [room](Self::poll_room) for.
    pub(crate) fn send(&mut self, key: Key, bytes: Bytes) -> Result<(), Cut> {
        let slot = self.streams.get(key).ok_or(Cut::Lost)?;
        if let Some(cut) = slot.cut {
            // There was more, and it stays a failure.
            slot.declined = false;
            return Err(cut);
        }
        slot.outbox.push(bytes);
        self.queue(key);
        Ok(())
    }

    /// Ends our direction behind all that was put in.
    pub(crate) fn finish(&mut self, key: Key) -> Result<(), Cut> {
        let slot = self.streams.get(key).ok_or(Cut::Lost)?;
        match slot.cut {
            Some(_) if slot.declined => return Ok(()),
            Some(cut) => return Err(cut),
            None => {}
        }
        if slot.sending == Sending::Open {
            slot.sending = Sending::Ending;
            self.queue(key);
        }
        Ok(())
    }

    /// Resets a stream; what was not sent yet is not sent.
    pub(crate) fn cut(&mut self, key: Key, code: Code) {
        if self.streams.get(key).is_some_and(|slot| !slot.closed) {
            frame::word(&mut self.control, kind::RST_STREAM, key.id(), code.0);
            self.end(key, Cut::Here(code));
            self.wake_driver();
        }
    }

    /// One more holds the stream.
    pub(crate) fn hold(&mut self, key: Key) {
        if let Some(slot) = self.streams.get(key) {
            slot.handles += 1;
        }
    }

    /// One less does. The last leaves it as TCP leaves a socket that is closed: what was put in before the end is still
    /// sent, for as long as the peer takes some of it [now and then](streams::PATIENCE); a stream that has not ended is reset.
    pub(crate) fn release(&mut self, key: Key) {
        let Some(slot) = self.streams.get(key) else { return };
        slot.handles -= 1;
        if slot.handles > 0 {
            return;
        }
        if slot.closed {
            self.streams.remove(key);
        } else if slot.sending == Sending::Ending {
            slot.orphan = Some(0);
            self.orphans += 1;
        } else {
            let code = if slot.established { Code::CONNECT_ERROR } else { Code::CANCEL };
            self.cut(key, code);
        }
    }

    // Common ground.

    fn insert(&mut self, id: u32) -> Key {
        self.active += 1;
        let window = Window::new(self.terms.windows[0], &self.spare);
        self.streams.insert(Slot::new(id, window, self.peer.window))
    }

    /// Notes that a stream may have something to send.
    fn queue(&mut self, key: Key) {
        let Some(slot) = self.streams.get(key) else { return };
        if !slot.queued && slot.may_send() {
            slot.queued = true;
            self.ready.push_back(key);
            self.wake_driver();
        }
    }

    /// A stream is over, whatever the state it was in.
    fn end(&mut self, key: Key, cut: Cut) {
        let Some(slot) = self.streams.get(key) else { return };
        if slot.closed {
            return;
        }
        slot.cut = Some(cut);
        slot.outbox.clear();
        if matches!(cut, Cut::Here(_)) {
            slot.inbox.clear();
        }
        self.close(key);
    }

    /// Both directions of a stream have ended.
    fn close(&mut self, key: Key) {
        let Some(slot) = self.streams.get(key) else { return };
        slot.closed = true;
        slot.wake_reader();
        slot.wake_writer();
        if slot.queued && !self.starved.is_empty() {
            // The connection's window may stay shut for ever.
            self.starved.retain(|starved| *starved != key);
        }
        self.active -= 1;
        self.orphans -= usize::from(slot.orphan.is_some());
        if slot.handles == 0 {
            self.streams.remove(key);
        }
        self.openers.drain(..).for_each(Waker::wake);
        if self.active == 0 && self.retiring {
            self.name_last(Code::NO_ERROR);
        }
        if self.is_finished() {
            self.wake_driver();
        }
    }

    fn wake_driver(&mut self) {
        self.driver.take().into_iter().for_each(Waker::wake);
    }

    fn flags_of_end(end: bool) -> u8 {
        if end { flag::END_STREAM } else { 0 }
    }
}

fn register<T>(place: &mut Option<Waker>, cx: &Context<'_>) -> Poll<T> {
    match place {
        Some(waker) => waker.clone_from(cx.waker()),
        none => *none = Some(cx.waker().clone()),
    }
    Poll::Pending
}

/// Bytes of frames that wait to be sent, from which on nothing more is asked of the peer: far less than what it is [cut
/// off](receive::MOST_CONTROL) for.
const MOST_ASKED: usize = 128 << 10;

/// The PING that goes with the announcement that this end leaves.
const LEAVING: [u8; 8] = *b"leaving ";

/// The PING that measures a round trip.
const ROUND: [u8; 8] = *b"round?  ";

//! What comes from the peer: frames cut out of whatever pieces the transport brings, and what they mean.

use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;

use super::{
    Broken, Cut, Engine, Incoming, Key, LEAVING, Leaving, ROUND, Role, Sending, StatusCode,
    manners::{ABANDONED, FRAME},
};
use crate::proto::{
    code::Code,
    connect::{FieldList, Refused},
    frame::{self, HEAD, Head, flag, kind, setting},
};

/// Where in the peer's bytes we are.
#[derive(Debug)]
pub(super) struct Reading {
    state: State,
    /// The part of a frame that has come, where it came in parts.
    partial: Vec<u8>,
    /// Bytes to be skipped behind the frame that is looked at.
    behind: u32,
    /// A header block that goes on in the next frame: its stream and whether it ends it.
    block: Option<(u32, bool)>,
    fragments: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// So many bytes of the preface have come.
    Preface(usize),
    Head,
    /// A frame that is looked at as a whole.
    Whole(Head),
    /// The length of a DATA frame's padding comes next.
    Padding(Head),
    Data(Data),
    /// Bytes that mean nothing here.
    Skip(u32),
}

/// The rest of a DATA frame.
#[derive(Clone, Copy, Debug)]
struct Data {
    stream: Option<Key>,
    left: u32,
    padding: u32,
    end: bool,
}

impl Reading {
    pub(super) fn new(role: Role) -> Self {
        Self {
            state: match role {
                Role::Client => State::Head,
                Role::Server => State::Preface(0),
            },
            partial: Vec::new(),
            behind: 0,
            block: None,
            fragments: Vec::new(),
        }
    }
}

impl Engine {
    /// Takes in what the peer has sent, in pieces of whatever size, at this time on any clock that only goes forward. Large
    /// pieces of data are not copied.
    pub(crate) fn receive(&mut self, piece: &Bytes, now: Duration) -> Result<(), Broken> {
        // It may have been lost by another task while this was on its way.
        if self.lost {
            return Ok(());
        }
        let mut bytes = &**piece;
        self.now = now;
        while !bytes.is_empty() {
            let used = match self.reading.state {
                State::Preface(seen) => self.preface(seen, bytes)?,
                State::Head => self.head(bytes)?,
                State::Whole(head) => self.whole(head, bytes)?,
                State::Padding(head) => self.padding(head, bytes[0])?,
                State::Data(data) => self.data(data, bytes, piece)?,
                State::Skip(left) => {
                    let n = bytes.len().min(left as usize);
                    self.reading.state = match left - n as u32 {
                        0 => State::Head,
                        left => State::Skip(left),
                    };
                    n
                }
            };
            bytes = &bytes[used..];
        }
        Ok(())
    }

    fn preface(&mut self, seen: usize, bytes: &[u8]) -> Result<usize, Broken> {
        let wanted = &frame::PREFACE[seen..];
        let n = wanted.len().min(bytes.len());
        if bytes[..n] != wanted[..n] {
            return Err(Broken(Code::PROTOCOL_ERROR));
        }
        self.reading.state = if n == wanted.len() { State::Head } else { State::Preface(seen + n) };
        Ok(n)
    }

    fn head(&mut self, bytes: &[u8]) -> Result<usize, Broken> {
        let partial = &mut self.reading.partial;
        let n = (HEAD - partial.len()).min(bytes.len());
        let head = match (bytes.first_chunk(), partial.is_empty()) {
            (Some(whole), true) => Head::read(whole),
            _ => {
                partial.extend_from_slice(&bytes[..n]);
                let Ok(whole) = partial.as_slice().try_into() else { return Ok(n) };
                let head = Head::read(whole);
                partial.clear();
                head
            }
        };
        self.begin(head)?;
        Ok(n)
    }

    /// A frame begins: what can be judged by its head is judged now.
    fn begin(&mut self, head: Head) -> Result<(), Broken> {
        let fault = |code| Err(Broken(code));
        // Whatever it is that makes us say something: who says more without reading that does not make us keep it.
        self.bound_control()?;
        if head.length > self.terms.frame {
            return fault(Code::FRAME_SIZE_ERROR);
        }
        match self.reading.block {
            Some((stream, _)) if head.kind != kind::CONTINUATION || head.stream != stream => return fault(Code::PROTOCOL_ERROR),
            None if head.kind == kind::CONTINUATION => return fault(Code::PROTOCOL_ERROR),
            _ => {}
        }
        if !self.peer.greeted && (head.kind != kind::SETTINGS || head.has(flag::ACK)) {
            return fault(Code::PROTOCOL_ERROR);
        }
        let fits = match head.kind {
            kind::PRIORITY => head.length == 5,
            kind::RST_STREAM | kind::WINDOW_UPDATE => head.length == 4,
            kind::SETTINGS if head.has(flag::ACK) => head.length == 0,
            kind::SETTINGS => head.length.is_multiple_of(6) && head.length <= LONGEST_CONTROL,
            kind::PING => head.length == 8,
            kind::GOAWAY => head.length >= 8,
            _ => true,
        };
        if !fits {
            return fault(Code::FRAME_SIZE_ERROR);
        }
        let of_stream = matches!(
            head.kind,
            kind::DATA | kind::HEADERS | kind::PRIORITY | kind::RST_STREAM | kind::CONTINUATION
        );
        let of_connection = matches!(head.kind, kind::SETTINGS | kind::PING | kind::GOAWAY);
        if of_stream && head.stream == 0 || of_connection && head.stream != 0 || head.kind == kind::PUSH_PROMISE {
            return fault(Code::PROTOCOL_ERROR);
        }
        self.reading.state = match head.kind {
            kind::DATA if head.has(flag::PADDED) && head.length == 0 => return fault(Code::FRAME_SIZE_ERROR),
            kind::DATA if head.has(flag::PADDED) => State::Padding(head),
            kind::DATA => return self.begin_data(head, 0, head.length),
            kind::HEADERS | kind::CONTINUATION => {
                // A list that is too large is answered; a block that has no end is not read to it.
                if self.reading.fragments.len() + head.length as usize > self.longest_block() {
                    return fault(Code::ENHANCE_YOUR_CALM);
                }
                if head.kind == kind::CONTINUATION {
                    self.spend(FRAME)?;
                }
                State::Whole(head)
            }
            kind::RST_STREAM | kind::SETTINGS | kind::PING | kind::WINDOW_UPDATE => State::Whole(head),
            // The text behind a GOAWAY is for debugging, and nobody's here.
            kind::GOAWAY => {
                self.reading.behind = head.length - 8;
                State::Whole(Head { length: 8, ..head })
            }
            _ => {
                self.spend(FRAME)?;
                if head.length == 0 { State::Head } else { State::Skip(head.length) }
            }
        };
        match self.reading.state {
            State::Whole(head) if head.length == 0 => {
                self.reading.state = State::Head;
                self.frame(head, &[])
            }
            _ => Ok(()),
        }
    }

    fn whole(&mut self, head: Head, bytes: &[u8]) -> Result<usize, Broken> {
        let length = head.length as usize;
        let have = self.reading.partial.len();
        let n = (length - have).min(bytes.len());
        if have + n < length {
            self.reading.partial.extend_from_slice(&bytes[..n]);
            return Ok(n);
        }
        self.reading.state = match std::mem::take(&mut self.reading.behind) {
            0 => State::Head,
            behind => State::Skip(behind),
        };
        if have == 0 {
            self.frame(head, &bytes[..n])?;
            return Ok(n);
        }
        let mut payload = std::mem::take(&mut self.reading.partial);
        payload.extend_from_slice(&bytes[..n]);
        self.frame(head, &payload)?;
        Ok(n)
    }

    fn frame(&mut self, head: Head, payload: &[u8]) -> Result<(), Broken> {
        match head.kind {
            kind::HEADERS => self.headers(head, payload),
            kind::CONTINUATION => self.continuation(head, payload),
            kind::RST_STREAM => self.reset(head.stream, word(payload)),
            kind::SETTINGS if head.has(flag::ACK) => Ok(()),
            kind::SETTINGS => self.settings(payload),
            kind::PING => self.pinged(head, payload),
            kind::WINDOW_UPDATE => self.window_update(head.stream, word(payload) & frame::WIDEST_WINDOW),
            _ => self.going_away(payload),
        }
    }

    // DATA.

    fn padding(&mut self, head: Head, padding: u8) -> Result<usize, Broken> {
        let padding = u32::from(padding);
        let data = (head.length - 1).checked_sub(padding).ok_or(Broken(Code::PROTOCOL_ERROR))?;
        self.begin_data(head, padding + 1, data)?;
        Ok(1)
    }

    /// `overhead` bytes of it are padding and its length, which count as data does and are read at once.
    fn begin_data(&mut self, head: Head, overhead: u32, data: u32) -> Result<(), Broken> {
        self.window = self.window.checked_sub(head.length).ok_or(Broken(Code::FLOW_CONTROL_ERROR))?;
        if self.window < frame::WIDEST_WINDOW / 2 {
            frame::word(&mut self.control, kind::WINDOW_UPDATE, 0, frame::WIDEST_WINDOW - self.window);
            self.window = frame::WIDEST_WINDOW;
        }
        let end = head.has(flag::END_STREAM);
        if data == 0 && !end {
            self.spend(FRAME)?;
        }
        let stream = self.receiver(head.stream, head.length)?;
        if let (Some(key), 1..) = (stream, overhead) {
            if let Some(slot) = self.streams.get(key) {
                slot.window.arrive(overhead, None);
            }
            self.give_back(key, overhead as usize);
        }
        let data = Data {
            stream,
            left: data,
            padding: overhead.saturating_sub(1),
            end,
        };
        self.go_on(data);
        Ok(())
    }

    /// The stream that takes a DATA frame of this length; none if it is passed over.
    fn receiver(&mut self, id: u32, length: u32) -> Result<Option<Key>, Broken> {
        let Some(key) = self.streams.key(id) else {
            // Of a stream that we have reset, or that was never opened.
            if self.is_idle(id) {
                return Err(Broken(Code::PROTOCOL_ERROR));
            }
            self.spend(FRAME)?;
            return Ok(None);
        };
        let Some(slot) = self.streams.get(key).filter(|slot| !slot.closed) else {
            self.spend(FRAME)?;
            return Ok(None);
        };
        let fault = if slot.ended_by_peer {
            Code::STREAM_CLOSED
        } else if self.role == Role::Client && !slot.established && !slot.refused {
            Code::PROTOCOL_ERROR
        } else if !slot.window.has(length) {
            Code::FLOW_CONTROL_ERROR
        } else if slot.refused {
            // The text of a refusal, which nobody reads: it gets no credit.
            slot.window.arrive(length, None);
            return Ok(None);
        } else {
            return Ok(Some(key));
        };
        self.fault(key, fault)?;
        Ok(None)
    }

    fn data(&mut self, mut data: Data, bytes: &[u8], piece: &Bytes) -> Result<usize, Broken> {
        let n = (data.left as usize).min(bytes.len());
        data.left -= n as u32;
        self.manners.earn(n as u32);
        self.came = true;
        if let Some(slot) = data.stream.and_then(|key| self.streams.get(key)) {
            // Meanwhile it may have been reset here.
            if !slot.closed {
                if slot.window.arrive(n as u32, self.rounds.present()) && self.rounds.begin(self.now) {
                    frame::ping(&mut self.control, 0, ROUND);
                }
                if slot.handles > 0 {
                    slot.inbox.push(&bytes[..n], piece, self.read, data.left as usize, &self.buffers);
                }
                slot.wake_reader();
            }
        }
        self.go_on(data);
        Ok(n)
    }

    /// What comes next of a DATA frame.
    fn go_on(&mut self, data: Data) {
        if data.left > 0 {
            self.reading.state = State::Data(data);
            return;
        }
        self.reading.state = match data.padding {
            0 => State::Head,
            padding => State::Skip(padding),
        };
        let Some(key) = data.stream else { return };
        if let Some(slot) = self.streams.get(key) {
            slot.inbox.settle(&self.buffers);
        }
        if data.end {
            self.ended_by_peer(key);
        }
    }

    fn ended_by_peer(&mut self, key: Key) {
        let Some(slot) = self.streams.get(key) else { return };
        if slot.closed {
            return;
        }
        slot.ended_by_peer = true;
        slot.wake_reader();
        if slot.sending == Sending::Ended {
            self.close(key);
        }
    }

    // HEADERS.

    fn headers(&mut self, head: Head, mut payload: &[u8]) -> Result<(), Broken> {
        let fault = Broken(Code::PROTOCOL_ERROR);
        if head.has(flag::PADDED) {
            let (&padding, rest) = payload.split_first().ok_or(fault)?;
            let length = rest.len().checked_sub(usize::from(padding)).ok_or(fault)?;
            payload = &rest[..length];
        }
        if head.has(flag::PRIORITY) {
            payload = payload.get(5..).ok_or(fault)?;
        }
        let end = head.has(flag::END_STREAM);
        if head.has(flag::END_HEADERS) {
            return self.header_block(head.stream, end, payload);
        }
        self.reading.block = Some((head.stream, end));
        self.reading.fragments.extend_from_slice(payload);
        Ok(())
    }

    fn continuation(&mut self, head: Head, payload: &[u8]) -> Result<(), Broken> {
        self.reading.fragments.extend_from_slice(payload);
        match self.reading.block {
            Some((stream, end)) if head.has(flag::END_HEADERS) => {
                self.reading.block = None;
                let block = std::mem::take(&mut self.reading.fragments);
                self.header_block(stream, end, &block)
            }
            _ => Ok(()),
        }
    }

    fn header_block(&mut self, id: u32, end: bool, block: &[u8]) -> Result<(), Broken> {
        // Read whatever the stream: the table must follow.
        let mut list = FieldList::new(self.terms.header_list as usize);
        let read = self.hpack.decode(block, |name, value| list.add(name, value));
        read.map_err(|_| Broken(Code::COMPRESSION_ERROR))?;
        match self.streams.key(id) {
            Some(key) => return self.more_headers(key, end, list),
            None if self.role == Role::Server && id % 2 == 1 && id > self.last_of_peer => return self.request(id, end, list),
            None if self.is_idle(id) => return Err(Broken(Code::PROTOCOL_ERROR)),
            None => self.spend(FRAME)?,
        }
        Ok(())
    }

    fn request(&mut self, id: u32, end: bool, list: FieldList) -> Result<(), Broken> {
        self.last_of_peer = id;
        if self.leaving == Leaving::Named || self.active >= self.terms.streams as usize {
            self.spend(FRAME)?;
            frame::word(&mut self.control, kind::RST_STREAM, id, Code::REFUSED_STREAM.0);
            return Ok(());
        }
        let refused = match list.into_request() {
            Ok(request) => {
                let key = self.insert(id);
                self.incoming.push_back(Incoming::Request(key, Box::new(request)));
                if end {
                    self.ended_by_peer(key);
                }
                return Ok(());
            }
            Err(refused) => refused,
        };
        self.spend(ABANDONED)?;
        let status = match refused {
            Refused::Malformed => {
                frame::word(&mut self.control, kind::RST_STREAM, id, Code::PROTOCOL_ERROR.0);
                return Ok(());
            }
            Refused::TooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Refused::Unfit(reason) => {
                self.incoming.push_back(Incoming::Unfit(reason));
                StatusCode::BAD_REQUEST
            }
        };
        let key = self.insert(id);
        // It was opened a moment ago: nothing can have cut it.
        let _ = self.respond(key, status, &HeaderMap::new());
        self.release(key);
        Ok(())
    }

    fn more_headers(&mut self, key: Key, end: bool, list: FieldList) -> Result<(), Broken> {
        let Some(slot) = self.streams.get(key).filter(|slot| !slot.closed) else {
            return self.spend(FRAME);
        };
        if slot.refused {
            // Behind the text of a refusal.
            self.spend(FRAME)?;
        } else if self.role == Role::Client && !slot.established && slot.answer.is_none() {
            match list.into_answer() {
                // Not the last word (RFC 9110 15.2).
                Ok(answer) if answer.status.is_informational() && !end => return self.spend(FRAME),
                Ok(answer) if !answer.status.is_informational() => {
                    slot.established = answer.status.is_success();
                    slot.refused = !slot.established;
                    slot.answer = Some(Box::new(answer));
                    slot.wake_reader();
                }
                _ => self.fault(key, Code::PROTOCOL_ERROR)?,
            }
        } else if slot.ended_by_peer {
            self.fault(key, Code::STREAM_CLOSED)?;
        } else if !end || !list.is_trailers() {
            self.fault(key, Code::PROTOCOL_ERROR)?;
        }
        if end {
            self.ended_by_peer(key);
        }
        Ok(())
    }

    // The others.

    fn reset(&mut self, id: u32, code: u32) -> Result<(), Broken> {
        let key = self.streams.key(id);
        let Some((key, slot)) = key
            .and_then(|key| Some((key, self.streams.get(key)?)))
            .filter(|(_, slot)| !slot.closed)
        else {
            if self.is_idle(id) {
                return Err(Broken(Code::PROTOCOL_ERROR));
            }
            return self.spend(FRAME);
        };
        let unanswered = !slot.established;
        let ended = self.role == Role::Client && slot.established && slot.ended_by_peer;
        slot.declined = ended && Code(code) == Code::NO_ERROR && slot.outbox.is_empty();
        if self.role == Role::Server && unanswered {
            self.spend(ABANDONED)?;
        }
        let cut = match Code(code) {
            Code::REFUSED_STREAM if unanswered => Cut::Unprocessed,
            code => Cut::ByPeer(code),
        };
        self.end(key, cut);
        Ok(())
    }

    fn settings(&mut self, payload: &[u8]) -> Result<(), Broken> {
        // Any of them may be one that changes every stream.
        let entries = payload.len() as u32 / 6;
        self.spend(FRAME * entries.max(1))?;
        self.peer.greeted = true;
        for entry in payload.chunks_exact(6) {
            let value = word(&entry[2..]);
            match u16::from_be_bytes([entry[0], entry[1]]) {
                setting::ENABLE_PUSH if value > 1 || self.role == Role::Client && value > 0 => {
                    return Err(Broken(Code::PROTOCOL_ERROR));
                }
                setting::MAX_CONCURRENT_STREAMS => self.peer.streams = value as usize,
                setting::INITIAL_WINDOW_SIZE => self.resize_windows(value)?,
                setting::MAX_FRAME_SIZE => match value {
                    frame::DEFAULT_FRAME..=0xff_ffff => self.peer.frame = value as usize,
                    _ => return Err(Broken(Code::PROTOCOL_ERROR)),
                },
                _ => {}
            }
        }
        self.openers.drain(..).for_each(std::task::Waker::wake);
        frame::head(&mut self.control, 0, kind::SETTINGS, flag::ACK, 0);
        Ok(())
    }

    fn resize_windows(&mut self, size: u32) -> Result<(), Broken> {
        if size > frame::WIDEST_WINDOW {
            return Err(Broken(Code::FLOW_CONTROL_ERROR));
        }
        let change = i64::from(size) - i64::from(self.peer.window);
        self.peer.window = size;
        for key in self.streams.keys() {
            self.widen(key, change).map_err(|()| Broken(Code::FLOW_CONTROL_ERROR))?;
        }
        Ok(())
    }

    fn pinged(&mut self, head: Head, payload: &[u8]) -> Result<(), Broken> {
        self.spend(FRAME)?;
        let mut opaque = [0; 8];
        opaque.copy_from_slice(payload);
        if head.has(flag::ACK) {
            // Whatever was on its way before the peer heard of our leave has come by now.
            match opaque {
                LEAVING if self.leaving == Leaving::Announced => self.name_last(Code::NO_ERROR),
                ROUND if self.rounds.end(self.now) => frame::ping(&mut self.control, 0, ROUND),
                _ => {}
            }
            return Ok(());
        }
        frame::ping(&mut self.control, flag::ACK, opaque);
        Ok(())
    }

    fn window_update(&mut self, id: u32, more: u32) -> Result<(), Broken> {
        if id == 0 {
            if !std::mem::take(&mut self.sent) {
                self.spend(FRAME)?;
            }
            self.credit += i64::from(more);
            if more == 0 || self.credit > i64::from(frame::WIDEST_WINDOW) {
                let code = if more == 0 {
                    Code::PROTOCOL_ERROR
                } else {
                    Code::FLOW_CONTROL_ERROR
                };
                return Err(Broken(code));
            }
            self.feed_starved();
            return Ok(());
        }
        let key = self.streams.key(id);
        let asked = key
            .and_then(|key| self.streams.get(key))
            .is_some_and(|slot| std::mem::take(&mut slot.sent));
        if !asked {
            self.spend(FRAME)?;
        }
        match key {
            Some(key) if more == 0 => self.fault(key, Code::PROTOCOL_ERROR)?,
            Some(key) if self.widen(key, i64::from(more)).is_err() => self.fault(key, Code::FLOW_CONTROL_ERROR)?,
            Some(_) => {}
            None if self.is_idle(id) => return Err(Broken(Code::PROTOCOL_ERROR)),
            None => {}
        }
        Ok(())
    }

    /// The peer takes more of a stream, or less.
    fn widen(&mut self, key: Key, change: i64) -> Result<(), ()> {
        let most = self.terms.send_buffer;
        let Some(slot) = self.streams.get(key) else { return Ok(()) };
        slot.credit += change;
        if slot.credit > i64::from(frame::WIDEST_WINDOW) {
            return Err(());
        }
        if slot.writer.is_some() && slot.room(most) > 0 {
            slot.wake_writer();
        }
        self.queue(key);
        Ok(())
    }

    fn going_away(&mut self, payload: &[u8]) -> Result<(), Broken> {
        self.spend(FRAME)?;
        let (last, code) = (word(payload) & frame::LAST_STREAM, Code(word(&payload[4..])));
        self.goaway = Some((last, code));
        if self.role == Role::Client {
            for key in self.streams.keys() {
                if key.id() > last {
                    self.end(key, Cut::Unprocessed);
                }
            }
            // Of no use beyond the streams it has, and a peer need not close what it has left.
            self.retire();
        }
        self.wake_driver();
        Ok(())
    }

    // Common ground.

    /// Whether nobody has opened a stream of this number.
    fn is_idle(&self, id: u32) -> bool {
        let ours = (id % 2 == 1) == (self.role == Role::Client);
        if ours { id >= self.next_id } else { id > self.last_of_peer }
    }

    /// Resets a stream for what the peer did with it: that has cost us as much as one that it resets itself.
    fn fault(&mut self, key: Key, code: Code) -> Result<(), Broken> {
        self.cut(key, code);
        self.spend(ABANDONED)
    }

    fn spend(&mut self, points: u32) -> Result<(), Broken> {
        if self.manners.spend(points) {
            Ok(())
        } else {
            Err(Broken(Code::ENHANCE_YOUR_CALM))
        }
    }

    /// A peer that asks for answers and does not read them does not make us keep them. Each stream may have a header list
    /// among them, of its request or of its answer.
    fn bound_control(&self) -> Result<(), Broken> {
        let heads = self.active * self.terms.header_list as usize;
        if self.control.len() <= MOST_CONTROL + heads {
            Ok(())
        } else {
            Err(Broken(Code::ENHANCE_YOUR_CALM))
        }
    }

    /// Encoded, a list is no longer than decoded, as far as honest encoders go.
    fn longest_block(&self) -> usize {
        2 * self.terms.header_list as usize + (16 << 10)
    }
}

fn word(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |word| u32::from_be_bytes(*word))
}

/// The longest SETTINGS that is read: far more than there are settings.
const LONGEST_CONTROL: u32 = 1 << 12;

/// Bytes of frames that wait to be sent and are not data.
pub(super) const MOST_CONTROL: usize = 256 << 10;

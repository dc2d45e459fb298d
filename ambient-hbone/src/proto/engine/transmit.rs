//! What goes to the peer, and in which order.

use super::{Engine, Frames, Key, MOST_ASKED, Sending, streams::Slot};
use crate::proto::{
    code::Code,
    frame::{self, kind},
};

impl Engine {
    /// Puts what is to be sent next behind `frames`: all control frames, and data until about [`BATCH`] bytes stand there.
    /// Streams take turns.
    pub(crate) fn transmit(&mut self, frames: &mut Frames) {
        if !self.control.is_empty() {
            if self.control.len() >= MOST_ASKED {
                // Who has waited until there is less of it.
                self.openers.drain(..).for_each(std::task::Waker::wake);
            }
            frames.head().extend_from_slice(&self.control);
            // Nothing of it is kept: a tunnel is idle most of its life.
            self.control = bytes::BytesMut::new();
            self.greeting = 0;
            self.handed_out = self.next_id.saturating_sub(2);
        }
        while frames.len() < BATCH {
            let Some(key) = self.ready.pop_front() else { break };
            self.transmit_stream(key, frames);
        }
    }

    /// Whether [`Engine::transmit`] has something to give.
    pub(crate) fn has_something_to_send(&self) -> bool {
        !self.control.is_empty() || !self.ready.is_empty()
    }

    fn transmit_stream(&mut self, key: Key, frames: &mut Frames) {
        let (most, largest) = (self.terms.send_buffer, self.peer.frame.min(LARGEST));
        let connection = usize::try_from(self.credit).unwrap_or(0);
        let Some(slot) = self.streams.get(key) else { return };
        if !slot.may_send() {
            slot.queued = false;
            return;
        }
        let waiting = slot.outbox.len();
        let n = waiting.min(usize::try_from(slot.credit).unwrap_or(0)).min(connection).min(largest);
        if n == 0 && waiting > 0 {
            // It stays marked as queued: it waits, only elsewhere.
            self.starved.push_back(key);
            return;
        }
        let end = slot.sending == Sending::Ending && n == waiting;
        frame::head(frames.head(), n, kind::DATA, Self::flags_of_end(end), key.id());
        slot.outbox.take(n, |piece| frames.push(piece));
        slot.credit -= n as i64;
        slot.orphan = slot.orphan.map(|_| 0);
        self.credit -= n as i64;
        (slot.sent, self.sent) = (true, true);
        self.manners.earn(n as u32);
        if slot.writer.is_some() && slot.room(most) > 0 {
            slot.wake_writer();
        }
        if end {
            slot.sending = Sending::Ended;
        }
        slot.queued = slot.may_send();
        if slot.queued {
            self.ready.push_back(key);
        } else if end {
            self.after_end(key);
        }
    }

    /// Our direction has ended.
    fn after_end(&mut self, key: Key) {
        match self.streams.get(key) {
            Some(Slot { ended_by_peer: true, .. }) => self.close(key),
            // Nobody reads what the peer still sends.
            Some(Slot { handles: 0, .. }) => self.cut(key, Code::CONNECT_ERROR),
            _ => {}
        }
    }

    /// The connection's window has opened.
    pub(super) fn feed_starved(&mut self) {
        if self.credit > 0 {
            self.ready.append(&mut self.starved);
        }
    }
}

/// Enough for one write to be worth its system call, and little enough for a stream that comes late to have its turn soon.
const BATCH: usize = 256 << 10;

/// The most that a stream sends in its turn.
const LARGEST: usize = 64 << 10;

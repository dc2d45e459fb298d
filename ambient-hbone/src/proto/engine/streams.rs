//! The streams of a connection.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    task::Waker,
};

use super::{
    Cut, Role,
    pieces::{Inbox, Pieces},
    window::Window,
};
use crate::proto::connect::Answer;

/// A stream, for as long as somebody holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    index: u32,
    /// Its number: a place is used again, a number never.
    id: u32,
}

impl Key {
    pub(super) fn id(self) -> u32 {
        self.id
    }
}

/// What is known of a stream.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) id: u32,
    /// Halves, requests and openings that hold it.
    pub(super) handles: u8,
    pub(super) established: bool,
    /// The peer, a server, has answered with another status than success.
    pub(super) refused: bool,
    /// No frame of it is expected or owed any more.
    pub(super) closed: bool,
    /// It stands in a queue of those who have something to send.
    pub(super) queued: bool,
    pub(super) ended_by_peer: bool,
    /// The peer, a server that has ended, wants nothing more, and all that was put in has been sent: no failure, unless there is more.
    pub(super) declined: bool,
    /// Data went since the peer last said that it takes more.
    pub(super) sent: bool,
    /// Nobody holds it, and for so many ticks the peer has taken nothing of what it still has to say.
    pub(super) orphan: Option<u8>,
    pub(super) sending: Sending,
    pub(super) cut: Option<Cut>,
    pub(super) answer: Option<Box<Answer>>,
    pub(super) inbox: Inbox,
    pub(super) window: Window,
    pub(super) outbox: Pieces,
    /// What the peer takes beyond what was sent; negative after it has made its windows smaller.
    pub(super) credit: i64,
    pub(super) reader: Option<Waker>,
    pub(super) writer: Option<Waker>,
}

/// Our direction of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sending {
    Open,
    /// Ends behind what still waits to be sent.
    Ending,
    Ended,
}

impl Slot {
    pub(super) fn new(id: u32, window: Window, credit: u32) -> Self {
        Self {
            id,
            handles: 1,
            established: false,
            refused: false,
            closed: false,
            queued: false,
            ended_by_peer: false,
            declined: false,
            sent: false,
            orphan: None,
            sending: Sending::Open,
            cut: None,
            answer: None,
            inbox: Inbox::default(),
            window,
            outbox: Pieces::default(),
            credit: i64::from(credit),
            reader: None,
            writer: None,
        }
    }

    pub(super) fn wake_reader(&mut self) {
        self.reader.take().into_iter().for_each(Waker::wake);
    }

    pub(super) fn wake_writer(&mut self) {
        self.writer.take().into_iter().for_each(Waker::wake);
    }

    /// Whether the peer, a server, has reset it behind its end. A client that does is gone, and no answer reaches it: what waits for
    /// its words to be read would be kept for nobody.
    pub(super) fn has_last_words(&self, role: Role) -> bool {
        role == Role::Client && self.ended_by_peer && matches!(self.cut, Some(Cut::ByPeer(_)))
    }

    /// Bytes that may wait to be sent: about what the peer takes, so that a stream whose reader has stopped holds little.
    pub(super) fn outbox_limit(&self, most: usize) -> usize {
        let taken = usize::try_from(self.credit).unwrap_or(0);
        taken.clamp(LEAST_OUTBOX.min(most), most)
    }

    /// What may be put in. Nothing until half of it is free, so that writers come back for more than crumbs.
    pub(super) fn room(&self, most: usize) -> usize {
        let limit = self.outbox_limit(most);
        let room = limit.saturating_sub(self.outbox.len());
        if room * 2 >= limit { room } else { 0 }
    }

    /// Whether a frame of it can be sent, as far as its own window goes.
    pub(super) fn may_send(&self) -> bool {
        !self.closed
            && if self.outbox.is_empty() {
                self.sending == Sending::Ending
            } else {
                self.credit > 0
            }
    }
}

/// Ticks for which a stream that nobody holds waits for its peer to take some more: two minutes, as ticks are by default.
pub(super) const PATIENCE: u8 = 30;

/// What may wait of a stream that the peer does not take from.
const LEAST_OUTBOX: usize = 16 << 10;

/// The streams by place and by number.
#[derive(Debug, Default)]
pub(super) struct Streams {
    places: Vec<Option<Box<Slot>>>,
    free: Vec<u32>,
    by_id: HashMap<u32, u32, BuildHasherDefault<ById>>,
}

/// Numbers of streams ascend, and there are a few hundred at most: whatever a peer chooses, little more than its bits need
/// be mixed. It is asked for each frame.
#[derive(Debug, Default)]
struct ById(u64);

impl Hasher for ById {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u32(u32::from(*byte)));
    }

    fn write_u32(&mut self, id: u32) {
        self.0 = (self.0 ^ u64::from(id)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl Streams {
    pub(super) fn insert(&mut self, slot: Slot) -> Key {
        let id = slot.id;
        let slot = Some(Box::new(slot));
        let index = match self.free.pop() {
            Some(index) => {
                self.places[index as usize] = slot;
                index
            }
            None => {
                self.places.push(slot);
                // As many as there are streams, and those are numbered with 31 bits.
                (self.places.len() - 1) as u32
            }
        };
        self.by_id.insert(id, index);
        Key { index, id }
    }

    pub(super) fn remove(&mut self, key: Key) {
        if self.get(key).is_some() {
            self.places[key.index as usize] = None;
            self.free.push(key.index);
            self.by_id.remove(&key.id);
            if self.by_id.is_empty() {
                // An idle tunnel keeps no memory of its busiest hour.
                *self = Self::default();
            }
        }
    }

    pub(super) fn key(&self, id: u32) -> Option<Key> {
        self.by_id.get(&id).map(|&index| Key { index, id })
    }

    pub(super) fn get(&mut self, key: Key) -> Option<&mut Slot> {
        let slot = self.places.get_mut(key.index as usize)?.as_deref_mut();
        slot.filter(|slot| slot.id == key.id)
    }

    /// A tick has passed: those orphans of which the peer takes nothing.
    pub(super) fn stuck(&mut self) -> Vec<Key> {
        let mut stuck = Vec::new();
        for (index, place) in self.places.iter_mut().enumerate() {
            let Some(Slot {
                id, orphan: Some(ticks), ..
            }) = place.as_deref_mut()
            else {
                continue;
            };
            *ticks += 1;
            if *ticks > PATIENCE {
                stuck.push(Key {
                    index: index as u32,
                    id: *id,
                });
            }
        }
        stuck
    }

    pub(super) fn keys(&self) -> Vec<Key> {
        self.by_id.iter().map(|(&id, &index)| Key { index, id }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One of each stream is in memory as long as somebody holds it.
    #[test]
    fn what_is_known_of_a_stream_is_small() {
        assert!(size_of::<Slot>() <= 272, "{}", size_of::<Slot>());
    }
}

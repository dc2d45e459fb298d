//! Bytes in pieces: what waits to be read, and what waits to be sent.

use std::{
    collections::VecDeque,
    io::IoSlice,
    num::NonZeroU64,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::{Buf, Bytes, BytesMut};

/// Bytes in pieces, in order. A single piece costs no allocation beside its own.
#[derive(Debug, Default)]
pub(crate) struct Pieces {
    /// Empty only when all are.
    first: Bytes,
    /// Apart: every stream has room for several of these, and nearly all of them are empty.
    #[expect(clippy::box_collection, reason = "nothing takes 8 bytes so, and 32 otherwise")]
    rest: Option<Box<VecDeque<Bytes>>>,
    len: usize,
}

impl Pieces {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn push(&mut self, piece: Bytes) {
        self.len += piece.len();
        if self.first.is_empty() {
            self.first = piece;
        } else if !piece.is_empty() {
            self.rest.get_or_insert_default().push_back(piece);
        }
    }

    /// They, from the first.
    pub(crate) fn chunks(&self) -> impl Iterator<Item = &[u8]> {
        std::iter::once(&self.first)
            .chain(self.rest.iter().flat_map(|rest| &**rest))
            .map(|piece| &**piece)
    }

    /// As many of them as there is room for, from the first.
    pub(crate) fn slices<'p>(&'p self, into: &mut [IoSlice<'p>]) -> usize {
        let mut count = 0;
        for (place, piece) in into.iter_mut().zip(self.chunks()) {
            *place = IoSlice::new(piece);
            count += 1;
        }
        count
    }

    /// Whether the front is all.
    pub(crate) fn is_single(&self) -> bool {
        self.rest.as_ref().is_none_or(|rest| rest.is_empty())
    }

    /// The front of them, contiguous.
    pub(crate) fn front(&self) -> &[u8] {
        &self.first
    }

    /// Drops the first `n` bytes.
    pub(crate) fn advance(&mut self, n: usize) {
        self.take(n, drop);
    }

    /// Gives away the first `n` bytes, piece by piece.
    pub(crate) fn take(&mut self, mut n: usize, mut to: impl FnMut(Bytes)) {
        debug_assert!(n <= self.len, "no more than there is");
        self.len -= n;
        while n > 0 {
            if n < self.first.len() {
                to(self.first.split_to(n));
                return;
            }
            n -= self.first.len();
            let next = self.rest.as_mut().and_then(|rest| rest.pop_front()).unwrap_or_default();
            to(std::mem::replace(&mut self.first, next));
        }
        if self.len == 0 {
            // An idle stream keeps no memory.
            self.rest = None;
        }
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Large buffers that go from hand to hand: to give one back to the system and ask for the next costs as much as to fill it.
/// Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Buffers(Arc<Mutex<VecDeque<BytesMut>>>);

impl Buffers {
    /// A buffer with room for `size` bytes.
    pub(crate) fn take(&self, size: usize) -> BytesMut {
        if size >= LARGE {
            let mut kept = self.kept();
            // The latest comes first, since it is the likeliest to be in a cache; while its bytes are on their way it
            // cannot be had.
            let looked_at = kept.len().min(TRIES);
            for index in (kept.len() - looked_at..kept.len()).rev() {
                if kept[index].try_reclaim(size) {
                    return kept.swap_remove_back(index).unwrap_or_default();
                }
            }
            // All of these are busy: others are looked at next time.
            kept.rotate_right(looked_at);
        }
        BytesMut::with_capacity(size)
    }

    /// Takes a buffer back; bytes that were split off it may still be on their way.
    pub(crate) fn keep(&self, mut buffer: BytesMut) {
        buffer.clear();
        let mut kept = self.kept();
        if kept.len() < KEPT {
            kept.push_back(buffer);
        }
    }

    /// Gives all of them back to the system.
    pub(super) fn clear(&self) {
        *self.kept() = VecDeque::new();
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<BytesMut>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What has come for a stream and was not taken yet. Large pieces stay where they were read to, for as long as what waits is of one
/// read: a reader that keeps up gets all so. Everything else is copied, so that what waits here holds nothing else in memory,
/// and that many small frames cost no more than their bytes.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    pieces: Pieces,
    /// The last, still open for more.
    tail: BytesMut,
    /// How much of the pieces was copied.
    copied: usize,
    /// The read whose buffer is held. The first has the number 1.
    held: Option<NonZeroU64>,
}

impl Inbox {
    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.tail.is_empty()
    }

    /// Takes bytes in that lie in `whole`, which that read has brought, of a frame that has `more` of them to come.
    pub(super) fn push(&mut self, bytes: &[u8], whole: &Bytes, read: u64, more: usize, buffers: &Buffers) {
        if bytes.len() >= AS_IT_LIES && self.held.is_none_or(|held| held.get() == read) {
            self.close_tail(buffers);
            self.held = NonZeroU64::new(read);
            self.pieces.push(whole.slice_ref(bytes));
            return;
        }
        if self.tail.capacity() - self.tail.len() < bytes.len() {
            self.close_tail(buffers);
            // Where nobody reads, pieces grow with what waits: thousands of tiny frames are a handful of pieces. What is left of
            // a large piece is not followed by more of its kind.
            let more = if bytes.len() < AS_IT_LIES { more.min(AS_IT_LIES) } else { more };
            let expected = (bytes.len() + more).max(self.copied).min(PIECE);
            self.tail = buffers.take(expected.max(bytes.len()));
        }
        self.tail.extend_from_slice(bytes);
        self.copied += bytes.len();
    }

    /// All that is there.
    pub(super) fn take(&mut self, buffers: &Buffers) -> Pieces {
        (self.copied, self.held) = (0, None);
        if self.tail.len() == self.tail.capacity() {
            self.close_tail(buffers);
        } else if !self.tail.is_empty() {
            let last = self.tail.split().freeze();
            self.pieces.push(last);
        }
        std::mem::take(&mut self.pieces)
    }

    /// The frame that the tail was for is whole: if nothing is in it, its place is given back.
    pub(super) fn settle(&mut self, buffers: &Buffers) {
        if self.tail.is_empty() {
            self.close_tail(buffers);
        }
    }

    fn close_tail(&mut self, buffers: &Buffers) {
        let mut tail = std::mem::take(&mut self.tail);
        if tail.capacity() < LARGE {
            self.pieces.push(tail.freeze());
            return;
        }
        self.pieces.push(tail.split().freeze());
        buffers.keep(tail);
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Frames on their way into TLS: heads and small pieces gathered, larger pieces as they are.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    pieces: Pieces,
    gathered: BytesMut,
}

impl Frames {
    pub(crate) fn len(&self) -> usize {
        self.pieces.len() + self.gathered.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where heads are written.
    pub(super) fn head(&mut self) -> &mut BytesMut {
        &mut self.gathered
    }

    pub(super) fn push(&mut self, piece: Bytes) {
        if piece.len() < GATHER {
            self.gathered.extend_from_slice(&piece);
            return;
        }
        if !self.gathered.is_empty() {
            self.pieces.push(self.gathered.split().freeze());
        }
        self.pieces.push(piece);
    }

    /// The chunks of what is to be written, from the first, as many as there is room for.
    pub(crate) fn chunks<'p>(&'p self, into: &mut [&'p [u8]]) -> usize {
        let all = self.pieces.chunks().chain(std::iter::once(&*self.gathered));
        let mut count = 0;
        for (place, chunk) in into.iter_mut().zip(all.filter(|chunk| !chunk.is_empty())) {
            *place = chunk;
            count += 1;
        }
        count
    }

    /// The first `n` bytes were written.
    pub(crate) fn advance(&mut self, n: usize) {
        let of_pieces = n.min(self.pieces.len());
        self.pieces.advance(of_pieces);
        self.gathered.advance(n - of_pieces);
        if self.is_empty() && self.gathered.capacity() > IDLE {
            self.gathered = BytesMut::new();
        }
    }
}

/// Pieces from this size on are not copied: smaller ones would be too many of them, and hold a buffer each.
const AS_IT_LIES: usize = 8 << 10;

/// The largest piece that is allocated for what comes.
const PIECE: usize = 64 << 10;

/// Buffers from this size on go from hand to hand.
const LARGE: usize = 64 << 10;

/// How many of them are kept, and how many are looked at for one that is free.
const KEPT: usize = 16;
const TRIES: usize = 8;

/// Pieces below this are copied between their heads: cheaper than one more slice for TLS to look at.
const GATHER: usize = 4 << 10;

/// What a tunnel keeps of its buffer for heads while it has nothing to send.
const IDLE: usize = 4 << 10;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(pieces: &Pieces) -> Vec<u8> {
        let all: Vec<_> = pieces.chunks().collect();
        all.concat()
    }

    proptest! {
        #[test]
        fn pieces_are_what_they_are_made_of(lengths in proptest::collection::vec(0_usize..9, 0..40), takes in proptest::collection::vec(0_usize..20, 0..40)) {
            let mut pieces = Pieces::default();
            let mut model = Vec::new();
            for (value, length) in lengths.into_iter().enumerate() {
                model.extend(std::iter::repeat_n(value as u8, length));
                pieces.push(vec![value as u8; length].into());
            }
            for n in takes {
                prop_assert_eq!(text(&pieces), &*model);
                prop_assert_eq!(pieces.front().is_empty(), model.is_empty());
                let mut taken = Vec::new();
                let n = n.min(model.len());
                pieces.take(n, |piece| taken.extend_from_slice(&piece));
                prop_assert_eq!(taken, model.drain(..n).collect::<Vec<_>>());
            }
            prop_assert_eq!(pieces.len(), model.len());
        }

        #[test]
        fn an_inbox_keeps_every_byte(steps in proptest::collection::vec((0_usize..30_000, 0_usize..100_000, any::<bool>(), 0_u64..3), 0..40)) {
            let (buffers, mut inbox, mut model, mut read) = (Buffers::default(), Inbox::default(), Vec::new(), Vec::new());
            let mut reads = 0;
            for (value, (length, more, take, step)) in steps.into_iter().enumerate() {
                reads += step / 2;
                let bytes = Bytes::from(vec![value as u8; length]);
                inbox.push(&bytes, &bytes, reads, more, &buffers);
                model.extend(bytes);
                if take {
                    read.extend(text(&inbox.take(&buffers)));
                    inbox.settle(&buffers);
                    prop_assert!(inbox.is_empty());
                    prop_assert_eq!(&read, &model);
                }
            }
            read.extend(text(&inbox.take(&buffers)));
            prop_assert_eq!(&read, &model);
        }

        #[test]
        fn frames_are_written_in_order(lengths in proptest::collection::vec((any::<bool>(), 0_usize..9000), 0..12), writes in proptest::collection::vec(0_usize..20_000, 1..20)) {
            let (mut frames, mut model) = (Frames::default(), Vec::new());
            for (value, (head, length)) in lengths.into_iter().enumerate() {
                let bytes = vec![value as u8; length];
                model.extend_from_slice(&bytes);
                if head { frames.head().extend_from_slice(&bytes) } else { frames.push(bytes.into()) }
            }
            for n in writes {
                let mut chunks = [&[][..]; 64];
                let count = frames.chunks(&mut chunks);
                prop_assert_eq!(chunks[..count].concat(), &*model);
                let n = n.min(model.len());
                model.drain(..n);
                frames.advance(n);
                prop_assert_eq!(frames.len(), model.len());
            }
        }
    }

    #[test]
    fn a_buffer_is_had_again_once_its_bytes_are_gone() {
        let buffers = Buffers::default();
        let mut buffer = buffers.take(LARGE);
        buffer.extend_from_slice(&[7; 100]);
        let (place, bytes) = (buffer.as_ptr(), buffer.split().freeze());
        buffers.keep(buffer);
        assert_ne!(buffers.take(LARGE).as_ptr(), place, "somebody holds its bytes");
        drop(bytes);
        assert_eq!(buffers.take(LARGE).as_ptr(), place);
        for _ in 0..2 * KEPT {
            buffers.keep(BytesMut::new());
        }
        assert_eq!(buffers.kept().len(), KEPT);
    }

    #[test]
    fn tiny_frames_that_nobody_reads_are_few_pieces() {
        let mut inbox = Inbox::default();
        for _ in 0..100_000 {
            inbox.push(b"x", &Bytes::new(), 0, 0, &Buffers::default());
        }
        let pieces = inbox.pieces.chunks().count();
        assert!(pieces < 40, "{pieces}");
    }
}

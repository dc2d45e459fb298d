//! TCP streams put together from segments.

use std::collections::BTreeMap;

use super::{frame::Segment, tls::Walk};

/// One direction of a connection: the bytes of the present window in order, and where the stream stands.
#[derive(Debug, Clone, Default)]
pub(super) struct Stream {
    /// Bytes of this window, in order and without gaps.
    bytes: Vec<u8>,
    /// Offset in the stream of the first of `bytes`.
    window: i64,
    /// Segments beyond a gap, by offset; they may overlap.
    ahead: BTreeMap<i64, Vec<u8>>,
    /// Bytes that are not the stream's as it stands in this window: others at the same place, or from before it.
    stray: Vec<Vec<u8>>,
    /// A segment said something else than one before it.
    contradicted: bool,
    /// The sequence number of offset 0, once a segment was seen.
    origin: Option<u32>,
    /// Whether offset 0 is the stream's begin: its SYN was seen.
    from_start: bool,
    /// An offset not far from the newest, to tell which turn of the 32-bit sequence a segment belongs to.
    near: i64,
    walk: Walk,
}

impl Stream {
    /// Whether a SYN begins another connection between the same ends.
    pub(super) fn is_begun_anew(&self, segment: &Segment<'_>) -> bool {
        segment.syn
            && self
                .origin
                .is_some_and(|origin| !self.from_start || origin != segment.sequence.wrapping_add(1))
    }

    /// Takes a segment; gives the number of bytes that are now kept and were not before.
    pub(super) fn take(&mut self, segment: &Segment<'_>) -> usize {
        let first = if segment.syn {
            segment.sequence.wrapping_add(1)
        } else {
            segment.sequence
        };
        let origin = *self.origin.get_or_insert_with(|| {
            self.from_start = segment.syn;
            first
        });
        let here = origin.wrapping_add(self.near as u32);
        let offset = self.near + i64::from(first.wrapping_sub(here) as i32);
        if segment.payload.is_empty() || segment.rst {
            // A reset's bytes are a text for people (RFC 9293, 3.5.2), never the stream's.
            return if segment.payload.is_empty() {
                0
            } else {
                self.strand(segment.payload)
            };
        }
        self.near = self.near.max(offset);
        let kept = self.insert(offset, segment.payload);
        kept + self.catch_up()
    }

    /// The end of what is in order.
    fn end(&self) -> i64 {
        self.window + self.bytes.len() as i64
    }

    fn insert(&mut self, offset: i64, payload: &[u8]) -> usize {
        let end = self.end();
        if offset > end {
            let known = self.ahead.get(&offset).map_or(0, Vec::len);
            return if payload.len() > known {
                self.ahead.insert(offset, payload.to_vec());
                payload.len() - known
            } else {
                0
            };
        }
        // What lies before `end` is a repetition, or says something else than before: then it is kept as well.
        let repeated = usize::try_from(end - offset).unwrap_or(usize::MAX).min(payload.len());
        let (old, new) = payload.split_at(repeated);
        let stranded = if old.is_empty() || self.repeats(offset, old) {
            0
        } else {
            self.strand(old)
        };
        self.bytes.extend_from_slice(new);
        self.walk.feed(new);
        stranded + new.len()
    }

    /// Whether these bytes stand in this window at that offset. What lies before the window cannot be compared.
    fn repeats(&mut self, offset: i64, bytes: &[u8]) -> bool {
        let Ok(at) = usize::try_from(offset - self.window) else {
            return false;
        };
        let same = self.bytes.get(at..at + bytes.len()) == Some(bytes);
        self.contradicted |= !same;
        same
    }

    fn strand(&mut self, bytes: &[u8]) -> usize {
        self.stray.push(bytes.to_vec());
        bytes.len()
    }

    /// Moves what is no longer beyond a gap. Gives what was kept anew (a contradiction found late).
    fn catch_up(&mut self) -> usize {
        let mut kept = 0;
        while let Some((&offset, _)) = self.ahead.first_key_value()
            && offset <= self.end()
            && let Some((_, payload)) = self.ahead.pop_first()
        {
            // They were counted when they came.
            kept += self.insert(offset, &payload).saturating_sub(payload.len());
        }
        kept
    }

    /// Begins another window: forgets the bytes, not where the stream stands.
    pub(super) fn clear(&mut self) {
        self.window = self.end();
        self.bytes = Vec::new();
        self.stray.clear();
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Everything seen in this window, in pieces: what is in order, what waits beyond a gap, what contradicts.
    pub(super) fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        std::iter::once(self.bytes.as_slice())
            .chain(self.ahead.values().map(Vec::as_slice))
            .chain(self.stray.iter().map(Vec::as_slice))
    }

    pub(super) fn has_gap(&self) -> bool {
        !self.ahead.is_empty()
    }

    /// Whether its first byte ever was seen, so that it can be told what it speaks.
    pub(super) fn is_from_start(&self) -> bool {
        self.from_start
    }

    /// Whether it has carried no byte, in any window.
    pub(super) fn is_silent(&self) -> bool {
        self.end() == 0 && self.ahead.is_empty()
    }

    pub(super) fn is_tls(&self) -> bool {
        self.walk.is_tls() && !self.contradicted
    }
}

//! The frames of HTTP/2 (RFC 9113 4 and 6), as far as CONNECT needs them.

use bytes::{BufMut, BytesMut};

/// What a client's connection begins with (RFC 9113 3.4).
pub(crate) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bytes of a frame before its payload.
pub(crate) const HEAD: usize = 9;

/// The largest payload where nothing else was agreed on.
pub(crate) const DEFAULT_FRAME: u32 = 1 << 14;

/// The window of a stream and of a connection where nothing else was agreed on.
pub(crate) const DEFAULT_WINDOW: u32 = (1 << 16) - 1;

/// The widest window.
pub(crate) const WIDEST_WINDOW: u32 = (1 << 31) - 1;

/// The highest number of a stream.
pub(crate) const LAST_STREAM: u32 = (1 << 31) - 1;

/// Types of frames.
pub(crate) mod kind {
    pub(crate) const DATA: u8 = 0;
    pub(crate) const HEADERS: u8 = 1;
    pub(crate) const PRIORITY: u8 = 2;
    pub(crate) const RST_STREAM: u8 = 3;
    pub(crate) const SETTINGS: u8 = 4;
    pub(crate) const PUSH_PROMISE: u8 = 5;
    pub(crate) const PING: u8 = 6;
    pub(crate) const GOAWAY: u8 = 7;
    pub(crate) const WINDOW_UPDATE: u8 = 8;
    pub(crate) const CONTINUATION: u8 = 9;
}

/// Flags, each for the frames that have it.
pub(crate) mod flag {
    pub(crate) const END_STREAM: u8 = 0x1;
    /// Of SETTINGS and PING.
    pub(crate) const ACK: u8 = 0x1;
    pub(crate) const END_HEADERS: u8 = 0x4;
    pub(crate) const PADDED: u8 = 0x8;
    pub(crate) const PRIORITY: u8 = 0x20;
}

/// Settings.
pub(crate) mod setting {
    pub(crate) const ENABLE_PUSH: u16 = 2;
    pub(crate) const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub(crate) const INITIAL_WINDOW_SIZE: u16 = 4;
    pub(crate) const MAX_FRAME_SIZE: u16 = 5;
    pub(crate) const MAX_HEADER_LIST_SIZE: u16 = 6;
}

/// The head of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) length: u32,
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    /// Without the reserved bit.
    pub(crate) stream: u32,
}

impl Head {
    pub(crate) fn read(bytes: &[u8; HEAD]) -> Self {
        let [a, b, c, kind, flags, stream @ ..] = *bytes;
        Self {
            length: u32::from_be_bytes([0, a, b, c]),
            kind,
            flags,
            stream: u32::from_be_bytes(stream) & LAST_STREAM,
        }
    }

    pub(crate) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Writes the head of a frame.
pub(crate) fn head(out: &mut BytesMut, length: usize, kind: u8, flags: u8, stream: u32) {
    // No payload here comes near 2^24.
    out.put_uint(length as u64, 3);
    out.put_u8(kind);
    out.put_u8(flags);
    out.put_u32(stream);
}

/// Writes a frame of four bytes: WINDOW_UPDATE or RST_STREAM.
pub(crate) fn word(out: &mut BytesMut, kind: u8, stream: u32, value: u32) {
    head(out, 4, kind, 0, stream);
    out.put_u32(value);
}

/// Writes SETTINGS.
pub(crate) fn settings(out: &mut BytesMut, values: &[(u16, u32)]) {
    head(out, values.len() * 6, kind::SETTINGS, 0, 0);
    for (name, value) in values {
        out.put_u16(*name);
        out.put_u32(*value);
    }
}

/// Writes PING or its answer.
pub(crate) fn ping(out: &mut BytesMut, flags: u8, payload: [u8; 8]) {
    head(out, 8, kind::PING, flags, 0);
    out.put_slice(&payload);
}

/// Writes GOAWAY without a text.
pub(crate) fn goaway(out: &mut BytesMut, last: u32, code: u32) {
    head(out, 8, kind::GOAWAY, 0, 0);
    out.put_u32(last);
    out.put_u32(code);
}

/// Writes a header block as HEADERS and as many CONTINUATIONs as it takes.
pub(crate) fn headers(out: &mut BytesMut, stream: u32, block: &[u8], end: bool, largest: usize) {
    let end = if end { flag::END_STREAM } else { 0 };
    let (first, mut rest) = block.split_at(block.len().min(largest));
    let last = |rest: &[u8]| if rest.is_empty() { flag::END_HEADERS } else { 0 };
    head(out, first.len(), kind::HEADERS, end | last(rest), stream);
    out.put_slice(first);
    while !rest.is_empty() {
        let (next, after) = rest.split_at(rest.len().min(largest));
        rest = after;
        head(out, next.len(), kind::CONTINUATION, last(rest), stream);
        out.put_slice(next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_as_it_was_written() {
        let mut out = BytesMut::new();
        head(&mut out, 0x01_02_03, kind::DATA, flag::END_STREAM | flag::PADDED, 0x7fff_fffe);
        let read = Head::read(out[..].try_into().unwrap());
        assert_eq!(
            read,
            Head {
                length: 0x01_02_03,
                kind: kind::DATA,
                flags: 9,
                stream: 0x7fff_fffe
            }
        );
        out[5] |= 0x80;
        assert_eq!(
            Head::read(out[..].try_into().unwrap()).stream,
            0x7fff_fffe,
            "the reserved bit is nobody's"
        );
    }

    #[test]
    fn a_long_block_is_continued() {
        let mut out = BytesMut::new();
        headers(&mut out, 1, &[7; 25], true, 10);
        let heads: Vec<_> = [0, 19, 38]
            .map(|at| Head::read(out[at..at + HEAD].try_into().unwrap()))
            .iter()
            .map(|h| (h.kind, h.flags, h.length))
            .collect();
        let ends = [(kind::HEADERS, 1, 10), (kind::CONTINUATION, 0, 10), (kind::CONTINUATION, 4, 5)];
        assert_eq!(heads, ends);
    }
}

//! HTTP/2 as bytes, for tests that play one end of a tunnel by hand. Nothing of it comes from the library under test.

pub(crate) mod hpack;
pub(crate) mod player;
pub(crate) mod vector;

/// A frame as it stands on the wire (RFC 9113 4.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 0x1;
pub(crate) const ACK: u8 = 0x1;
pub(crate) const END_HEADERS: u8 = 0x4;
pub(crate) const PADDED: u8 = 0x8;

/// What a client says before its first frame (RFC 9113 3.4).
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The bytes of a frame's header.
pub(crate) const HEAD: usize = 9;

impl Frame {
    /// The first frame of some bytes, and how many of them it takes; `None` while it is not whole.
    pub(crate) fn read(bytes: &[u8]) -> Option<(Self, usize)> {
        let head = bytes.first_chunk::<HEAD>()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let payload = bytes.get(HEAD..HEAD + length)?.to_vec();
        let frame = Self {
            kind: head[3],
            flags: head[4],
            stream: u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]),
            payload,
        };
        Some((frame, HEAD + length))
    }

    pub(crate) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The bytes of a DATA frame without its padding.
    pub(crate) fn data(&self) -> &[u8] {
        if !self.has(PADDED) {
            return &self.payload;
        }
        let padding = usize::from(self.payload[0]);
        &self.payload[1..self.payload.len() - padding]
    }

    /// The number in the last four bytes: an error code, of RST_STREAM as of GOAWAY.
    pub(crate) fn code(&self) -> u32 {
        u32::from_be_bytes(*self.payload.last_chunk().expect("a frame that ends in a code"))
    }
}

//! A delta stream taken apart as it comes: pure.
//!
//! Of a response no more is held than what has come of one resource, and never the whole: that may be a mesh. What a response
//! says counts once its end has come.
//!
//! ```text
//! stream:   (compressed (u8, 0) | length (u32, big-endian) | DeltaDiscoveryResponse)*        gRPC over HTTP/2
//! response: (resources = 2: Resource | any other field)*                                     protobuf
//! ```

use bytes::{Buf, BytesMut};
use prost::{DecodeError, Message};

use crate::wire::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource};

#[cfg(test)]
mod tests;

/// What has come.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Piece {
    /// A resource of the response that is coming.
    Resource(Resource),
    /// The end of a response: all of it but its resources, which have come before.
    End(DeltaDiscoveryResponse),
}

/// What comes is no delta stream: nothing more of it can be understood.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PieceError {
    #[error("a response is compressed, which was not asked for")]
    Compressed,
    #[error("a response has {length} bytes, and {longest} are the most that is taken")]
    TooLong { length: usize, longest: usize },
    #[error("a response is no DeltaDiscoveryResponse")]
    Malformed,
    #[error("a response is no DeltaDiscoveryResponse: {0}")]
    Unreadable(#[from] DecodeError),
}

/// What has come of a stream and was not given yet.
///
/// [`Pieces::handle_data`] whenever something comes, then [`Pieces::poll_piece`] until it gives nothing.
#[derive(Debug)]
pub(crate) struct Pieces {
    longest: usize,
    come: BytesMut,
    /// How much of the present response is still to be taken; `None` between two.
    left: Option<usize>,
    /// Its fields but resources, as they came.
    others: Vec<u8>,
}

impl Pieces {
    /// Of a stream that begins; of responses that are longer nothing is taken.
    pub(crate) fn new(longest: usize) -> Self {
        Self {
            longest,
            come: BytesMut::new(),
            left: None,
            others: Vec::new(),
        }
    }

    /// Some bytes have come.
    pub(crate) fn handle_data(&mut self, data: &[u8]) {
        if self.come.is_empty() && self.come.capacity() > ROOM {
            self.come = BytesMut::new();
        }
        self.come.extend_from_slice(data);
    }

    /// The next piece, if it has come whole.
    pub(crate) fn poll_piece(&mut self) -> Result<Option<Piece>, PieceError> {
        loop {
            let left = match self.left {
                Some(0) => return self.end().map(Some),
                Some(left) => left,
                None => match self.begin()? {
                    Some(length) => {
                        self.left = Some(length);
                        continue;
                    }
                    None => return Ok(None),
                },
            };
            let here = &self.come[..left.min(self.come.len())];
            let Some(field) = field(here, left)? else {
                return Ok(None);
            };
            let piece = match field.is_resource {
                true => Some(Piece::Resource(Resource::decode(&here[field.head..field.length])?)),
                false => {
                    self.others.extend_from_slice(&here[..field.length]);
                    None
                }
            };
            self.come.advance(field.length);
            self.left = Some(left - field.length);
            if piece.is_some() {
                return Ok(piece);
            }
        }
    }

    /// The length of the next response.
    fn begin(&mut self) -> Result<Option<usize>, PieceError> {
        let Some((head, _)) = self.come.split_first_chunk::<5>() else {
            return Ok(None);
        };
        let [compressed, length @ ..] = *head;
        let length = u32::from_be_bytes(length) as usize;
        let longest = self.longest;
        if compressed != 0 {
            return Err(PieceError::Compressed);
        }
        if length > longest {
            return Err(PieceError::TooLong { length, longest });
        }
        self.come.advance(head.len());
        Ok(Some(length))
    }

    fn end(&mut self) -> Result<Piece, PieceError> {
        self.left = None;
        let others = std::mem::take(&mut self.others);
        Ok(Piece::End(DeltaDiscoveryResponse::decode(&*others)?))
    }
}

/// A field that has come whole.
struct Field {
    is_resource: bool,
    /// Its key, and the length of its value where one is said.
    head: usize,
    /// All of it.
    length: usize,
}

/// The first field of a response of which so many bytes are left and these are here.
fn field(here: &[u8], left: usize) -> Result<Option<Field>, PieceError> {
    let Some((key, head)) = varint(here, left)? else {
        return Ok(None);
    };
    let (head, length) = match key & 7 {
        VARINT => match varint(&here[head..], left - head)? {
            Some((_, length)) => (head, length),
            None => return Ok(None),
        },
        FIXED_64 => (head, 8),
        FIXED_32 => (head, 4),
        DELIMITED => match varint(&here[head..], left - head)? {
            Some((length, more)) => (head + more, usize::try_from(length).map_err(|_| PieceError::Malformed)?),
            None => return Ok(None),
        },
        // Groups were never in this form of the language.
        _ => return Err(PieceError::Malformed),
    };
    let length = length
        .checked_add(head)
        .filter(|length| *length <= left)
        .ok_or(PieceError::Malformed)?;
    let is_resource = key == RESOURCES << 3 | DELIMITED;
    Ok((length <= here.len()).then_some(Field { is_resource, head, length }))
}

/// A number and how many bytes it takes, if it is here.
fn varint(here: &[u8], left: usize) -> Result<Option<(u64, usize)>, PieceError> {
    let mut number = 0;
    for (at, byte) in here.iter().enumerate().take(LONGEST_VARINT) {
        number |= u64::from(byte & 0x7f) << (7 * at);
        if *byte < 0x80 {
            // The last of ten has one bit.
            let fits = at + 1 < LONGEST_VARINT || *byte < 2;
            return if fits {
                Ok(Some((number, at + 1)))
            } else {
                Err(PieceError::Malformed)
            };
        }
    }
    match here.len() < left.min(LONGEST_VARINT) {
        true => Ok(None),
        false => Err(PieceError::Malformed),
    }
}

/// Whatever the bytes are, and wherever they are parted: what is understood of them is what they are as a whole.
#[cfg(feature = "fuzz")]
pub(crate) fn fuzz(data: &[u8]) {
    let Some((step, response)) = data.split_first() else { return };
    let mut stream = vec![0];
    stream.extend_from_slice(&u32::try_from(response.len()).unwrap_or(u32::MAX).to_be_bytes());
    stream.extend_from_slice(response);
    let mut pieces = Pieces::new(1 << 20);
    let (mut resources, mut end) = (Vec::new(), None);
    'stream: for part in stream.chunks(usize::from(*step) + 1) {
        pieces.handle_data(part);
        loop {
            match pieces.poll_piece() {
                Ok(Some(Piece::Resource(resource))) => resources.push(resource),
                Ok(Some(Piece::End(rest))) => assert!(end.replace(rest).is_none(), "one response"),
                Ok(None) => break,
                Err(_) => break 'stream,
            }
        }
    }
    if let Some(mut whole) = end {
        whole.resources = resources;
        assert_eq!(DeltaDiscoveryResponse::decode(response).ok(), Some(whole));
    }
    // As they are, they are mostly no stream.
    let mut pieces = Pieces::new(1 << 10);
    pieces.handle_data(response);
    while let Ok(Some(_)) = pieces.poll_piece() {}
}

const RESOURCES: u64 = 2;
const VARINT: u64 = 0;
const FIXED_64: u64 = 1;
const DELIMITED: u64 = 2;
const FIXED_32: u64 = 5;
const LONGEST_VARINT: usize = 10;
/// Room that is kept for what comes next, in bytes.
const ROOM: usize = 64 * 1024;

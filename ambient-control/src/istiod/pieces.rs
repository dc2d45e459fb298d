//! A delta stream taken apart as it comes: pure.
//!
//! Of a message no more is held than what has come of one field, and never the whole: that may be a mesh. What a response
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
    #[error("a message is compressed, which was not asked for")]
    Compressed,
    #[error("a message has {length} bytes, and {longest} are the most that is taken")]
    TooLong { length: usize, longest: usize },
    #[error("a field of a message has more than the {longest} bytes that are taken")]
    FieldTooLong { longest: usize },
    #[error("a message is none of the delta protocol")]
    Malformed,
    #[error("a message is none of the delta protocol: {0}")]
    Unreadable(#[from] DecodeError),
}

/// What has come of a stream of responses and was not given yet.
///
/// [`Pieces::handle_data`] whenever something comes, then [`Pieces::poll_piece`] until it gives nothing.
#[derive(Debug)]
pub(crate) struct Pieces {
    fields: Fields,
    /// The fields of the present response but resources, as they came.
    others: Vec<u8>,
}

/// What has come of a stream of messages and was not given yet, whatever they say.
///
/// [`Fields::handle_data`] whenever something comes, then [`Fields::poll_field`] until it gives nothing.
#[derive(Debug)]
pub(crate) struct Fields {
    longest: usize,
    longest_field: usize,
    come: BytesMut,
    /// How much of the present message is still to be taken; `None` between two.
    left: Option<usize>,
}

/// What comes next of a stream of messages.
#[derive(Debug)]
pub(crate) enum Next<T> {
    /// A field, as what it was made.
    Field(T),
    /// The end of the message.
    End,
}

impl Pieces {
    /// Of a stream that begins; of responses that are longer nothing is taken.
    pub(crate) fn new(longest: usize) -> Self {
        Self {
            fields: Fields::new(longest),
            others: Vec::new(),
        }
    }

    /// Some bytes have come.
    pub(crate) fn handle_data(&mut self, data: &[u8]) {
        self.fields.handle_data(data);
    }

    /// The next piece, if it has come whole.
    pub(crate) fn poll_piece(&mut self) -> Result<Option<Piece>, PieceError> {
        loop {
            let Self { fields, others } = self;
            let next = fields.poll_field(|field| {
                if field.is(RESOURCES) {
                    return Ok(Some(Piece::Resource(Resource::decode(field.value())?)));
                }
                others.extend_from_slice(field.bytes);
                Ok(None)
            })?;
            match next {
                None => return Ok(None),
                Some(Next::Field(None)) => {}
                Some(Next::Field(piece)) => return Ok(piece),
                Some(Next::End) => {
                    let others = std::mem::take(&mut self.others);
                    return Ok(Some(Piece::End(DeltaDiscoveryResponse::decode(&*others)?)));
                }
            }
        }
    }
}

impl Fields {
    /// Of a stream that begins; of messages that are longer nothing is taken.
    pub(crate) fn new(longest: usize) -> Self {
        Self {
            longest,
            longest_field: longest,
            come: BytesMut::new(),
            left: None,
        }
    }

    /// Of fields that are longer nothing is taken either: so much is held at a time.
    #[cfg(feature = "serve")]
    pub(crate) fn with_longest_field(self, longest_field: usize) -> Self {
        Self { longest_field, ..self }
    }

    /// Some bytes have come.
    pub(crate) fn handle_data(&mut self, data: &[u8]) {
        if self.come.is_empty() && self.come.capacity() > ROOM {
            self.come = BytesMut::new();
        }
        self.come.extend_from_slice(data);
    }

    /// What is made of the next field, if that has come whole, or the end of a message.
    pub(crate) fn poll_field<T>(&mut self, make: impl FnOnce(Field<'_>) -> Result<T, PieceError>) -> Result<Option<Next<T>>, PieceError> {
        let left = match self.left {
            Some(left) => left,
            None => match self.begin()? {
                Some(length) => *self.left.insert(length),
                None => return Ok(None),
            },
        };
        if left == 0 {
            self.left = None;
            return Ok(Some(Next::End));
        }
        let here = &self.come[..left.min(self.come.len())];
        let Some(field) = field(here, left)? else {
            let longest = self.longest_field;
            return if here.len() > longest {
                Err(PieceError::FieldTooLong { longest })
            } else {
                Ok(None)
            };
        };
        let length = field.bytes.len();
        let made = make(field)?;
        self.come.advance(length);
        self.left = Some(left - length);
        Ok(Some(Next::Field(made)))
    }

    /// The length of the next message.
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
}

/// A field that has come whole.
#[derive(Debug)]
pub(crate) struct Field<'a> {
    key: u64,
    /// Its key, and the length of its value where one is said.
    head: usize,
    /// All of it, as it stands in the message.
    pub(crate) bytes: &'a [u8],
}

impl<'a> Field<'a> {
    /// Whether it is the text, the bytes or the message of a number.
    pub(crate) fn is(&self, number: u64) -> bool {
        self.key == number << 3 | DELIMITED
    }

    /// What it says.
    pub(crate) fn value(&self) -> &'a [u8] {
        &self.bytes[self.head..]
    }
}

/// The first field of a message of which so many bytes are left and these are here.
fn field(here: &[u8], left: usize) -> Result<Option<Field<'_>>, PieceError> {
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
    Ok(here.get(..length).map(|bytes| Field { key, head, bytes }))
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

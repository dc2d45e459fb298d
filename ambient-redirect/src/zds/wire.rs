//! What is on the wire: the messages of Istio's `pkg/zdsapi/zds.proto`, one to a packet and without a frame, written and
//! read by hand.
//!
//! As protobuf has it: a field that is not known is passed over, the last of several scalars counts, and a message that
//! stands there twice is merged. `DelWorkload.uid` is field 2, all other UIDs are field 1.

use std::sync::Arc;

use ambient_core::PodUid;

/// The longest packet that either side may send: real proxies and agents read no more.
pub const LONGEST_PACKET: usize = 1024;
/// The longest error that is sent in an acknowledgement, in bytes; what is longer is cut.
pub const LONGEST_ERROR: usize = 1000;
/// The one version of the protocol.
pub const VERSION: u64 = 1;

/// What a proxy says first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The version that it speaks; [`VERSION`], or it is not understood.
    pub version: u64,
}

/// Who a workload is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkloadInfo {
    /// The pod's name.
    pub name: Arc<str>,
    /// Its Kubernetes namespace.
    pub namespace: Arc<str>,
    /// Its service account.
    pub service_account: Arc<str>,
}

/// What a node agent asks of a proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Serve a workload; its network namespace goes along as a descriptor.
    Add {
        /// The pod's UID.
        uid: PodUid,
        /// Who it is; `None` is an error of the sender's.
        info: Option<WorkloadInfo>,
    },
    /// Serve a workload no longer.
    Del {
        /// The pod's UID.
        uid: PodUid,
    },
    /// All workloads have been named: what was not is there no more.
    SnapshotSent,
    /// Before [`Request::SnapshotSent`]: go on with a workload, if it is served; its namespace is not known here.
    Keep {
        /// The pod's UID.
        uid: PodUid,
    },
}

/// A proxy's answer to one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ack {
    /// Why the request cannot be fulfilled; empty when it is.
    pub error: String,
}

/// A packet that is no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// It ends within a field.
    #[error("the packet ends within a field")]
    Truncated,
    /// A number is longer than ten bytes or more than 64 bits.
    #[error("a number is too long")]
    Varint,
    /// A field has a number that no field has, or a wire type that there is not.
    #[error("a field's key is not one")]
    Key,
    /// A known field has another's wire type.
    #[error("field {0} is of another type")]
    Type(u32),
    /// A text is not UTF-8.
    #[error("a text is not UTF-8")]
    Text,
    /// There is nothing in it that is known: the sender speaks a later version, or something else.
    #[error("it holds no message that is known here")]
    Empty,
    /// A workload without a UID.
    #[error("it names a workload without a UID")]
    Uid,
}

impl Hello {
    /// As it is sent.
    pub fn encode(self) -> Vec<u8> {
        let mut packet = Vec::new();
        if self.version != 0 {
            put_key(&mut packet, 1, VARINT);
            put_varint(&mut packet, self.version);
        }
        packet
    }

    /// Reads what a proxy says first; whether its version is spoken here is the caller's to ask.
    ///
    /// # Errors
    /// When the packet is no such message.
    pub fn decode(packet: &[u8]) -> Result<Self, DecodeError> {
        let mut version = 0;
        each_field(packet, |number, value| {
            if number == 1 {
                version = value.number(number)?;
            }
            Ok(())
        })?;
        Ok(Self { version })
    }
}

impl Request {
    /// As it is sent.
    pub fn encode(&self) -> Vec<u8> {
        let mut inner = Vec::new();
        let number = match self {
            Self::Add { uid, info } => {
                put_text(&mut inner, 1, uid.as_str());
                if let Some(info) = info {
                    let mut who = Vec::new();
                    put_text(&mut who, 1, &info.name);
                    put_text(&mut who, 2, &info.namespace);
                    put_text(&mut who, 3, &info.service_account);
                    put_bytes(&mut inner, 2, &who);
                }
                ADD
            }
            Self::Del { uid } => {
                put_text(&mut inner, 2, uid.as_str());
                DEL
            }
            Self::SnapshotSent => SNAPSHOT_SENT,
            Self::Keep { uid } => {
                put_text(&mut inner, 1, uid.as_str());
                KEEP
            }
        };
        let mut packet = Vec::new();
        put_bytes(&mut packet, number, &inner);
        packet
    }

    /// Reads what an agent asks.
    ///
    /// # Errors
    /// When the packet is no such message, or names a workload without a UID.
    pub fn decode(packet: &[u8]) -> Result<Self, DecodeError> {
        let mut asked: Option<Asked> = None;
        each_field(packet, |number, value| {
            if !matches!(number, ADD | DEL | SNAPSHOT_SENT | KEEP) {
                return Ok(());
            }
            let inner = value.bytes(number)?;
            // Of several that differ the last counts; of the same one each adds to what it said before.
            let so_far = asked.take().filter(|asked| asked.number == number);
            let mut now = so_far.unwrap_or_else(|| Asked::new(number));
            now.read(inner)?;
            asked = Some(now);
            Ok(())
        })?;
        let asked = asked.ok_or(DecodeError::Empty)?;
        if asked.number != SNAPSHOT_SENT && asked.uid.is_empty() {
            return Err(DecodeError::Uid);
        }
        let uid = PodUid::from(asked.uid.as_str());
        Ok(match asked.number {
            ADD => Self::Add { uid, info: asked.info },
            DEL => Self::Del { uid },
            KEEP => Self::Keep { uid },
            _ => Self::SnapshotSent,
        })
    }
}

impl Ack {
    /// All is well.
    pub fn well() -> Self {
        Self { error: String::new() }
    }

    /// It cannot be done; never empty, and no longer than [`LONGEST_ERROR`].
    pub fn refusal(why: &str) -> Self {
        let error = match cut(why, LONGEST_ERROR) {
            "" => "it cannot be done",
            why => why,
        };
        Self { error: error.into() }
    }

    /// As it is sent.
    pub fn encode(&self) -> Vec<u8> {
        let mut inner = Vec::new();
        put_text(&mut inner, 1, &self.error);
        let mut packet = Vec::new();
        put_bytes(&mut packet, ACK, &inner);
        packet
    }

    /// Reads a proxy's answer.
    ///
    /// # Errors
    /// When the packet is no such message.
    pub fn decode(packet: &[u8]) -> Result<Self, DecodeError> {
        let mut error: Option<String> = None;
        each_field(packet, |number, value| {
            if number != ACK {
                return Ok(());
            }
            let text = error.get_or_insert_default();
            each_field(value.bytes(number)?, |number, value| {
                if number == 1 {
                    *text = value.text(number)?.into();
                }
                Ok(())
            })
        })?;
        error.map(|error| Self { error }).ok_or(DecodeError::Empty)
    }
}

/// The beginning of a text, at most so many bytes of it, that ends with a whole character.
pub fn cut(text: &str, most: usize) -> &str {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// One of the messages with a UID, as far as it is read.
struct Asked {
    number: u32,
    uid: String,
    info: Option<WorkloadInfo>,
}

impl Asked {
    fn new(number: u32) -> Self {
        Self {
            number,
            uid: String::new(),
            info: None,
        }
    }

    fn read(&mut self, message: &[u8]) -> Result<(), DecodeError> {
        let (kind, uid, info) = (self.number, &mut self.uid, &mut self.info);
        each_field(message, |number, value| {
            match (kind, number) {
                (ADD | KEEP, 1) | (DEL, 2) => *uid = value.text(number)?.into(),
                (ADD, 2) => read_info(value.bytes(number)?, info.get_or_insert_default())?,
                _ => (),
            }
            Ok(())
        })
    }
}

fn read_info(message: &[u8], info: &mut WorkloadInfo) -> Result<(), DecodeError> {
    each_field(message, |number, value| {
        match number {
            1 => info.name = value.text(number)?.into(),
            2 => info.namespace = value.text(number)?.into(),
            3 => info.service_account = value.text(number)?.into(),
            _ => (),
        }
        Ok(())
    })
}

/// A field's value, as far as the wire tells.
enum Value<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    Other,
}

impl<'a> Value<'a> {
    fn number(&self, field: u32) -> Result<u64, DecodeError> {
        match self {
            Self::Varint(number) => Ok(*number),
            _ => Err(DecodeError::Type(field)),
        }
    }

    fn bytes(&self, field: u32) -> Result<&'a [u8], DecodeError> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            _ => Err(DecodeError::Type(field)),
        }
    }

    fn text(&self, field: u32) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.bytes(field)?).map_err(|_| DecodeError::Text)
    }
}

fn each_field<'a>(mut message: &'a [u8], mut take: impl FnMut(u32, Value<'a>) -> Result<(), DecodeError>) -> Result<(), DecodeError> {
    while !message.is_empty() {
        let key = varint(&mut message)?;
        let number = u32::try_from(key >> 3).ok().filter(|n| (1..1 << 29).contains(n));
        let number = number.ok_or(DecodeError::Key)?;
        let value = match key & 7 {
            VARINT => Value::Varint(varint(&mut message)?),
            FIXED64 => split(&mut message, 8).map(|_| Value::Other)?,
            BYTES => {
                let length = usize::try_from(varint(&mut message)?).map_err(|_| DecodeError::Truncated)?;
                Value::Bytes(split(&mut message, length)?)
            }
            FIXED32 => split(&mut message, 4).map(|_| Value::Other)?,
            // Groups, which the third version of the language has not.
            _ => return Err(DecodeError::Key),
        };
        take(number, value)?;
    }
    Ok(())
}

fn split<'a>(message: &mut &'a [u8], length: usize) -> Result<&'a [u8], DecodeError> {
    let (head, tail) = message.split_at_checked(length).ok_or(DecodeError::Truncated)?;
    *message = tail;
    Ok(head)
}

fn varint(message: &mut &[u8]) -> Result<u64, DecodeError> {
    let mut number = 0u64;
    for shift in (0..70).step_by(7) {
        let (byte, rest) = message.split_first().ok_or(DecodeError::Truncated)?;
        *message = rest;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            return Err(DecodeError::Varint);
        }
        number |= bits << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(DecodeError::Varint)
}

fn put_varint(packet: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        packet.push(number as u8 | 0x80);
        number >>= 7;
    }
    packet.push(number as u8);
}

fn put_key(packet: &mut Vec<u8>, number: u32, wire: u64) {
    put_varint(packet, u64::from(number) << 3 | wire);
}

fn put_bytes(packet: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_key(packet, number, BYTES);
    put_varint(packet, bytes.len() as u64);
    packet.extend_from_slice(bytes);
}

/// An empty text is as good as none, and none is shorter.
fn put_text(packet: &mut Vec<u8>, number: u32, text: &str) {
    if !text.is_empty() {
        put_bytes(packet, number, text.as_bytes());
    }
}

// The fields of `WorkloadRequest` and `WorkloadResponse`.
const ADD: u32 = 1;
const DEL: u32 = 2;
const SNAPSHOT_SENT: u32 = 3;
const KEEP: u32 = 5;
const ACK: u32 = 1;

const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;
const FIXED32: u64 = 5;

#[cfg(test)]
mod tests;

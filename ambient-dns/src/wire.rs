//! Messages on the wire ([RFC 1035 4]), as far as they must be understood: the header, the questions, and whether there is
//! an EDNS record or a signature. Everything else is skipped by its length and never interpreted, and no pointer is ever
//! followed.
//!
//! Read by hand, because a query that a full decoder does not like may still be one that the real nameserver likes.
//!
//! [RFC 1035 4]: https://www.rfc-editor.org/rfc/rfc1035#section-4

use std::net::IpAddr;

#[cfg(test)]
mod tests;

/// A message that is not one: it ends too early, or its name is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// The fixed head of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) id: u16,
    flags: u16,
    pub(crate) questions: u16,
    /// Answers, authorities and additionals.
    records: [u16; 3],
}

impl Header {
    /// The header of a message, if it is long enough to have one.
    pub(crate) fn read(message: &[u8]) -> Option<Self> {
        let (head, _) = message.split_first_chunk::<HEADER>()?;
        let field = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
        Some(Self {
            id: field(0),
            flags: field(2),
            questions: field(4),
            records: [field(6), field(8), field(10)],
        })
    }

    pub(crate) fn is_response(&self) -> bool {
        self.flags & RESPONSE != 0
    }

    /// Whether it asks a question, and no other operation.
    pub(crate) fn is_query(&self) -> bool {
        !self.is_response() && self.opcode() == QUERY
    }

    /// The same for another number of questions.
    pub(crate) fn with_questions(&self, questions: u16) -> Self {
        Self { questions, ..*self }
    }

    /// The operation ([RFC 1035 4.1.1](https://www.rfc-editor.org/rfc/rfc1035#section-4.1.1)).
    pub(crate) fn opcode(&self) -> u16 {
        self.flags & OPCODE
    }

    /// What became of the query, without the upper bits that an EDNS record may add.
    pub(crate) fn code(&self) -> u8 {
        self.flags.to_be_bytes()[1] & 0xf
    }

    /// Records that answer.
    pub(crate) fn answers(&self) -> u16 {
        self.records[0]
    }

    /// Whether it is of the form in which addresses are asked for, and of no other: one question, no records but
    /// additional ones, the operation QUERY ([`QUERY`]), and no flag that a query has no use for.
    pub(crate) fn is_plain_query(&self) -> bool {
        let usual = RECURSION_DESIRED | AUTHENTIC_DATA | CHECKING_DISABLED;
        self.flags & !usual == QUERY && self.questions == 1 && self.records[..ADDITIONAL] == [0, 0]
    }

    /// The flags of a reply: opcode, RD and CD as they came ([RFC 4035 3.2.2] for CD); recursion is to be had, upstream.
    ///
    /// [RFC 4035 3.2.2]: https://www.rfc-editor.org/rfc/rfc4035#section-3.2.2
    fn reply_flags(&self, code: Code) -> u16 {
        let own = match code {
            Code::NoError => RESPONSE | RECURSION_AVAILABLE | AUTHORITATIVE,
            _ => RESPONSE | RECURSION_AVAILABLE,
        };
        (self.flags & (OPCODE | RECURSION_DESIRED | CHECKING_DISABLED)) | own | (code as u16 & 0xf)
    }
}

/// What became of a query ([RFC 1035 4.1.1]); everything else is said by others.
///
/// [RFC 1035 4.1.1]: https://www.rfc-editor.org/rfc/rfc1035#section-4.1.1
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    NoError = 0,
    ServFail = 2,
}

/// The first question of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Question<'a> {
    /// The name in lower case, without the dot at its end; `None` where it holds what no service's name holds.
    pub(crate) name: Option<String>,
    pub(crate) kind: u16,
    pub(crate) class: u16,
    /// The question as it stands in the message: a reply repeats it to the letter, in whatever case it was asked.
    bytes: &'a [u8],
}

impl<'a> Question<'a> {
    pub(crate) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Reads the first question.
    ///
    /// # Errors
    /// When the message ends within it, or its name is compressed: it is the first name, there is none to point to.
    pub(crate) fn read(message: &'a [u8]) -> Result<Self, Malformed> {
        let rest = message.get(HEADER..).ok_or(Malformed)?;
        let mut name = Some(String::new());
        let mut at = 0;
        loop {
            let length = usize::from(*rest.get(at).ok_or(Malformed)?);
            at += 1;
            if length == 0 {
                break;
            }
            if length > LONGEST_LABEL {
                return Err(Malformed);
            }
            let label = rest.get(at..at + length).ok_or(Malformed)?;
            at += length;
            if at >= LONGEST_NAME {
                return Err(Malformed);
            }
            name = name.and_then(|name| append(name, label));
        }
        let tail = rest.get(at..at + 4).ok_or(Malformed)?;
        Ok(Self {
            name,
            kind: u16::from_be_bytes([tail[0], tail[1]]),
            class: u16::from_be_bytes([tail[2], tail[3]]),
            bytes: &rest[..at + 4],
        })
    }
}

/// The questions of a message as they stand in it; `None` where it ends within them.
pub(crate) fn questions<'a>(message: &'a [u8], header: &Header) -> Option<&'a [u8]> {
    let all = message.get(HEADER..)?;
    let mut rest = all;
    for _ in 0..header.questions {
        rest = skip_name(rest).ok()?.get(4..)?;
    }
    all.get(..all.len() - rest.len())
}

/// The type that the first question asks for, if there is one that can be read.
pub(crate) fn kind(message: &[u8], header: &Header) -> Option<u16> {
    let first = questions(message, &header.with_questions(header.questions.min(1)))?;
    let (kind, _) = first.last_chunk::<4>()?.split_first_chunk::<2>()?;
    Some(u16::from_be_bytes(*kind))
}

/// The name that the first question asks for as zone files write it, with a dot at its end, if it can be read.
pub(crate) fn asked(message: &[u8], header: &Header) -> Option<String> {
    let mut rest = questions(message, &header.with_questions(header.questions.min(1)))?;
    let mut name = String::new();
    loop {
        let (&length, after) = rest.split_first()?;
        match length {
            0 if name.is_empty() => return Some(".".into()),
            0 => return Some(name),
            1..=63 => {
                let (label, after) = after.split_at_checked(length.into())?;
                for &byte in label {
                    match byte {
                        b'.' | b'\\' => name.extend(['\\', byte.into()]),
                        b'!'..=b'~' => name.push(byte.into()),
                        _ => name.push_str(&format!("\\{byte:03}")),
                    }
                }
                name.push('.');
                rest = after;
            }
            _ => return None,
        }
    }
}

/// A name with one label more; `None` if the label holds a byte that would be read as something else, such as a dot.
fn append(mut name: String, label: &[u8]) -> Option<String> {
    if !name.is_empty() {
        name.push('.');
    }
    for byte in label {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => name.push(byte.to_ascii_lowercase().into()),
            _ => return None,
        }
    }
    Some(name)
}

/// What the records of a query say about how to reply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extras {
    pub(crate) edns: Option<Edns>,
    /// The query is signed (TSIG, SIG(0)): only who has the key can answer it, and its ID is part of what is signed.
    pub(crate) signed: bool,
    /// There are records or bytes of which nothing is known.
    pub(crate) others: bool,
}

/// The client's EDNS record ([RFC 6891 6.1.2]).
///
/// [RFC 6891 6.1.2]: https://www.rfc-editor.org/rfc/rfc6891#section-6.1.2
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Edns {
    /// How many bytes of UDP payload the client takes, 512 or more.
    pub(crate) payload: u16,
    pub(crate) version: u8,
    pub(crate) dnssec_ok: bool,
}

impl Extras {
    /// Reads past the questions and the records of a message.
    ///
    /// # Errors
    /// When the message ends within them, or has two EDNS records or one in a wrong place.
    pub(crate) fn read(message: &[u8], header: &Header) -> Result<Self, Malformed> {
        let questions = questions(message, header).ok_or(Malformed)?;
        let mut rest = message.get(HEADER + questions.len()..).ok_or(Malformed)?;
        let mut extras = Self::default();
        for (section, count) in header.records.into_iter().enumerate() {
            for _ in 0..count {
                let root = rest.first() == Some(&0);
                rest = skip_name(rest)?;
                let (head, after) = rest.split_first_chunk::<10>().ok_or(Malformed)?;
                let kind = u16::from_be_bytes([head[0], head[1]]);
                let length = usize::from(u16::from_be_bytes([head[8], head[9]]));
                rest = after.get(length..).ok_or(Malformed)?;
                match kind {
                    OPT => {
                        if section != ADDITIONAL || !root || extras.edns.is_some() {
                            return Err(Malformed);
                        }
                        extras.edns = Some(Edns {
                            payload: u16::from_be_bytes([head[2], head[3]]).max(SMALLEST_PAYLOAD),
                            version: head[5],
                            dnssec_ok: head[6] & 0x80 != 0,
                        });
                    }
                    SIG | TSIG => extras.signed = true,
                    _ => extras.others = true,
                }
            }
        }
        extras.others |= !rest.is_empty();
        Ok(extras)
    }
}

/// Past a name, which ends with the root or with a pointer that nobody needs to follow.
fn skip_name(mut rest: &[u8]) -> Result<&[u8], Malformed> {
    loop {
        let (&length, after) = rest.split_first().ok_or(Malformed)?;
        rest = match length {
            0 => return Ok(after),
            1..=63 => after.get(usize::from(length)..).ok_or(Malformed)?,
            192.. => return after.get(1..).ok_or(Malformed),
            _ => return Err(Malformed),
        };
    }
}

/// A reply in the making.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reply<'a> {
    pub(crate) header: Header,
    /// The questions, which are repeated in the reply; empty where they could not be read.
    pub(crate) questions: &'a [u8],
    /// How many questions that are.
    pub(crate) count: u16,
    pub(crate) edns: Option<Edns>,
    pub(crate) code: Code,
    /// Why it failed ([RFC 8914](https://www.rfc-editor.org/rfc/rfc8914)), told to whoever speaks EDNS.
    pub(crate) error: Option<u16>,
    /// The name whose addresses follow, if it is not the one that was asked for: said by a CNAME.
    pub(crate) alias: Option<&'a str>,
}

impl Reply<'_> {
    /// The reply's bytes with an address record for each address, all of one family; when they are more than `limit`
    /// bytes, as many as fit, with the flag that says so.
    pub(crate) fn write(&self, addresses: &[IpAddr], ttl: u32, limit: usize) -> Vec<u8> {
        let each = match addresses.first() {
            Some(IpAddr::V6(_)) => RECORD + 16,
            _ => RECORD + 4,
        };
        let option: usize = if self.error.is_some() { EXTENDED_ERROR } else { 0 };
        let edns = if self.edns.is_some() { EDNS + option } else { 0 };
        // Where the CNAME's own data begins, which the records after it point to: never far from the beginning.
        let target = HEADER + self.questions.len() + RECORD;
        let alias = self.alias.filter(|_| !addresses.is_empty()).and_then(encode).unwrap_or_default();
        let owner = match u16::try_from(target) {
            Ok(target) if !alias.is_empty() && target < FARTHEST => POINTER | target,
            _ => NAME_OF_QUESTION,
        };
        let aliased = usize::from(owner != NAME_OF_QUESTION) * (RECORD + alias.len());
        let fixed = HEADER + self.questions.len() + edns + aliased;
        let room = limit.min(LONGEST_MESSAGE).saturating_sub(fixed) / each;
        let (whole, addresses) = match addresses.get(..room) {
            Some(fitting) if fitting.len() < addresses.len() => (false, fitting),
            _ => (true, addresses),
        };

        let mut out = Vec::with_capacity(fixed + each * addresses.len());
        let cut = if whole { 0 } else { TRUNCATED };
        let flags = self.header.reply_flags(self.code) | cut;
        let answers = addresses.len() + usize::from(aliased > 0);
        for field in [
            self.header.id,
            flags,
            self.count,
            // It fits: the records are within a message of 65,535 bytes.
            u16::try_from(answers).unwrap_or(u16::MAX),
            0,
            u16::from(self.edns.is_some()),
        ] {
            out.extend(field.to_be_bytes());
        }
        out.extend(self.questions);
        if aliased > 0 {
            out.extend(NAME_OF_QUESTION.to_be_bytes());
            record(&mut out, CNAME, ttl, &alias);
        }
        for address in addresses {
            out.extend(owner.to_be_bytes());
            match address {
                IpAddr::V4(v4) => record(&mut out, A, ttl, &v4.octets()),
                IpAddr::V6(v6) => record(&mut out, AAAA, ttl, &v6.octets()),
            }
        }
        if let Some(edns) = self.edns {
            out.push(0);
            out.extend(OPT.to_be_bytes());
            out.extend(edns.payload.to_be_bytes());
            // We speak version 0, whatever was asked.
            out.extend([0, 0, if edns.dnssec_ok { 0x80 } else { 0 }, 0]);
            out.extend(u16::try_from(option).unwrap_or(0).to_be_bytes());
            if let Some(error) = self.error {
                out.extend(EXTENDED_ERROR_OPTION.to_be_bytes());
                out.extend(2u16.to_be_bytes());
                out.extend(error.to_be_bytes());
            }
        }
        out
    }
}

/// A name as it stands on the wire; `None` if it is none.
fn encode(name: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(name.len() + 2);
    for label in name.split('.') {
        let length = u8::try_from(label.len()).ok().filter(|n| (1..=63).contains(n))?;
        out.push(length);
        out.extend(label.as_bytes());
    }
    out.push(0);
    (out.len() <= LONGEST_NAME).then_some(out)
}

fn record(out: &mut Vec<u8>, kind: u16, ttl: u32, data: &[u8]) {
    out.extend(kind.to_be_bytes());
    out.extend(INTERNET.to_be_bytes());
    out.extend(ttl.to_be_bytes());
    out.extend([0, u8::try_from(data.len()).unwrap_or(0)]);
    out.extend(data);
}

/// The ID of a message, exchanged for another; a message without one stays as it is.
pub(crate) fn set_id(message: &mut [u8], id: u16) {
    if let Some(field) = message.first_chunk_mut::<2>() {
        *field = id.to_be_bytes();
    }
}

pub(crate) const HEADER: usize = 12;
/// The type of an IPv4 address.
pub(crate) const A: u16 = 1;
/// The type of an IPv6 address ([RFC 3596](https://www.rfc-editor.org/rfc/rfc3596)).
pub(crate) const AAAA: u16 = 28;
/// The class of everything that is not a curiosity.
pub(crate) const INTERNET: u16 = 1;
/// What a client takes over UDP without EDNS.
pub(crate) const SMALLEST_PAYLOAD: u16 = 512;

/// No nameserver could be reached: an extended error.
pub(crate) const NETWORK_ERROR: u16 = 23;
/// The operation that asks for records.
pub(crate) const QUERY: u16 = 0;

const CNAME: u16 = 5;
const OPT: u16 = 41;
const SIG: u16 = 24;
const TSIG: u16 = 250;
const ADDITIONAL: usize = 2;

const RESPONSE: u16 = 0x8000;
const OPCODE: u16 = 0x7800;
const AUTHORITATIVE: u16 = 0x0400;
const TRUNCATED: u16 = 0x0200;
const RECURSION_DESIRED: u16 = 0x0100;
const RECURSION_AVAILABLE: u16 = 0x0080;
const AUTHENTIC_DATA: u16 = 0x0020;
const CHECKING_DISABLED: u16 = 0x0010;

const LONGEST_LABEL: usize = 63;
/// With the lengths and the root ([RFC 1035 2.3.4](https://www.rfc-editor.org/rfc/rfc1035#section-2.3.4)).
const LONGEST_NAME: usize = 255;
const LONGEST_MESSAGE: usize = 65_535;
/// What makes a pointer of an offset.
const POINTER: u16 = 0xc000;
/// The first offset that a pointer cannot hold.
const FARTHEST: u16 = 0x4000;
/// A pointer to the name right after the header.
const NAME_OF_QUESTION: u16 = POINTER | 12;
/// A record without its data, its name a pointer.
const RECORD: usize = 12;
/// An EDNS record without options.
const EDNS: usize = 11;
/// The option of an extended error, without words.
const EXTENDED_ERROR: usize = 6;
const EXTENDED_ERROR_OPTION: u16 = 15;

//! Messages on the wire ([RFC 1035 4]), as far as they must be understood: the header, the question, and whether there is
//! an EDNS record or a signature. Everything else in a query is skipped by its length and never interpreted.
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

    /// Whether the operation is QUERY, the only one that asks for records.
    pub(crate) fn is_query(&self) -> bool {
        self.flags & OPCODE == 0
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

/// What became of a query ([RFC 1035 4.1.1], [RFC 6891 6.1.3]).
///
/// [RFC 1035 4.1.1]: https://www.rfc-editor.org/rfc/rfc1035#section-4.1.1
/// [RFC 6891 6.1.3]: https://www.rfc-editor.org/rfc/rfc6891#section-6.1.3
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    NoError = 0,
    FormErr = 1,
    ServFail = 2,
    NotImp = 4,
    /// Its upper bits stand in the EDNS record.
    BadVers = 16,
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

    /// Whether another message asks the same: type and class to the letter, the name in any case.
    pub(crate) fn is_asked_by(&self, other: &[u8]) -> bool {
        Question::read(other).is_ok_and(|other| other.bytes.eq_ignore_ascii_case(self.bytes))
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
    /// The query is signed (TSIG, SIG(0)): only who has the key can answer it.
    pub(crate) signed: bool,
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
    /// Reads past the records of a message with one question.
    ///
    /// # Errors
    /// When the message ends within a record, or has two EDNS records.
    pub(crate) fn read(message: &[u8], header: &Header, question: &Question<'_>) -> Result<Self, Malformed> {
        let mut rest = message.get(HEADER + question.bytes.len()..).ok_or(Malformed)?;
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
                    _ => {}
                }
            }
        }
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
    /// Repeated in the reply; `None` where the query's could not be read.
    pub(crate) question: Option<&'a Question<'a>>,
    pub(crate) edns: Option<Edns>,
    pub(crate) code: Code,
}

impl Reply<'_> {
    /// The reply's bytes with an address record for each address, all of one family; when they are more than `limit`
    /// bytes, as many as fit, with the flag that says so.
    pub(crate) fn write(&self, addresses: &[IpAddr], ttl: u32, limit: usize) -> Vec<u8> {
        let question = self.question.map_or(&[][..], |q| q.bytes);
        let each = match addresses.first() {
            Some(IpAddr::V6(_)) => RECORD + 16,
            _ => RECORD + 4,
        };
        let fixed = HEADER + question.len() + if self.edns.is_some() { EDNS } else { 0 };
        let room = limit.min(LONGEST_MESSAGE).saturating_sub(fixed) / each;
        let (whole, addresses) = match addresses.get(..room) {
            Some(fitting) if fitting.len() < addresses.len() => (false, fitting),
            _ => (true, addresses),
        };

        let mut out = Vec::with_capacity(fixed + each * addresses.len());
        let cut = if whole { 0 } else { TRUNCATED };
        let flags = self.header.reply_flags(self.code) | cut;
        // Both fit: the records are within a message of 65,535 bytes.
        let answers = u16::try_from(addresses.len()).unwrap_or(u16::MAX);
        for field in [
            self.header.id,
            flags,
            u16::from(self.question.is_some()),
            answers,
            0,
            u16::from(self.edns.is_some()),
        ] {
            out.extend(field.to_be_bytes());
        }
        out.extend(question);
        for address in addresses {
            out.extend(NAME_OF_QUESTION.to_be_bytes());
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
            let upper = u8::try_from(self.code as u16 >> 4).unwrap_or(0);
            out.extend([upper, 0, if edns.dnssec_ok { 0x80 } else { 0 }, 0, 0, 0]);
        }
        out
    }
}

fn record(out: &mut Vec<u8>, kind: u16, ttl: u32, data: &[u8]) {
    out.extend(kind.to_be_bytes());
    out.extend(INTERNET.to_be_bytes());
    out.extend(ttl.to_be_bytes());
    out.extend([0, u8::try_from(data.len()).unwrap_or(0)]);
    out.extend(data);
}

/// A reply of someone else's, cut to nothing but its question, with the flag that says so.
pub(crate) fn cut(mut reply: Vec<u8>) -> Vec<u8> {
    let end = Question::read(&reply).map_or(HEADER, |q| HEADER + q.bytes.len());
    reply.truncate(end);
    if let Some(flags) = reply.get_mut(2) {
        *flags |= TRUNCATED.to_be_bytes()[0];
    }
    if let Some(counts) = reply.get_mut(4..HEADER) {
        counts.fill(0);
        counts[1] = u8::from(end > HEADER);
    }
    reply
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
const CHECKING_DISABLED: u16 = 0x0010;

const LONGEST_LABEL: usize = 63;
/// With the lengths and the root ([RFC 1035 2.3.4](https://www.rfc-editor.org/rfc/rfc1035#section-2.3.4)).
const LONGEST_NAME: usize = 255;
const LONGEST_MESSAGE: usize = 65_535;
/// A pointer to the name right after the header.
const NAME_OF_QUESTION: u16 = 0xc000 | 12;
/// A record without its data, its name a pointer.
const RECORD: usize = 12;
/// An EDNS record without options.
const EDNS: usize = 11;

//! A response as it is on its way, written a part at a time: pure.
//!
//! What it says of resources stands on the board already, as fields of whatever response. So the first answer to a client,
//! which may be a whole mesh, is no copy of it: only a part is ever written out, when there is room for it on the way.

use std::{collections::HashSet, sync::Arc};

use bytes::{BufMut, Bytes};
use prost::{Message, encode_length_delimiter, length_delimiter_len};

use super::board::{All, Resource};
use crate::{istiod::Kind, wire::envoy::service::discovery::v3 as wire};

#[cfg(test)]
pub(super) mod tests;

/// What a client is told.
#[derive(Debug)]
pub(super) struct Response {
    pub(super) kind: Kind,
    /// The board's generation.
    pub(super) generation: u64,
    pub(super) nonce: String,
    /// Resources, as fields.
    pub(super) some: Vec<Arc<[u8]>>,
    /// Many more.
    pub(super) scan: Option<Scan>,
    /// Names of what is there no more.
    pub(super) removed: Vec<Arc<str>>,
}

/// All resources that a client has not, or not as they are.
#[derive(Debug)]
pub(super) struct Scan {
    pub(super) of: All,
    /// It knows what has changed until this generation.
    pub(super) after: u64,
    /// Of that it has these alone; all of it where that is `None`.
    pub(super) has: Option<HashSet<Arc<str>>>,
}

impl Scan {
    pub(super) fn tells(&self, name: &str, resource: &Resource) -> bool {
        resource.changed > self.after || self.has.as_ref().is_some_and(|has| !has.contains(name))
    }

    fn fields(&self) -> impl Iterator<Item = &Arc<[u8]>> {
        let told = self.of.iter().filter(|(name, resource)| self.tells(name, resource));
        told.map(|(_, resource)| &resource.field)
    }
}

impl Response {
    /// Whether it says nothing of any resource.
    pub(super) fn is_empty(&self) -> bool {
        self.some.is_empty() && self.removed.is_empty() && self.scan.as_ref().is_none_or(|scan| scan.fields().next().is_none())
    }

    /// It on its way.
    pub(super) fn write(self) -> Writing {
        Writing {
            response: self,
            next: Next::Head,
        }
    }

    fn length(&self) -> usize {
        let resources = self.some.iter().chain(self.scan.iter().flat_map(Scan::fields));
        let removed = self.removed.iter().map(|name| text_length(name));
        text_length(&self.generation.to_string())
            + resources.map(|field| field.len()).sum::<usize>()
            + text_length(self.kind.type_url())
            + text_length(&self.nonce)
            + removed.sum::<usize>()
    }
}

/// A response of which some is written.
#[derive(Debug)]
pub(super) struct Writing {
    response: Response,
    next: Next,
}

/// What is to be written next.
#[derive(Clone, Copy, Debug)]
enum Next {
    Head,
    Some(usize),
    /// Whatever stands at this place, and behind it.
    Scan(usize),
    Foot,
    Removed(usize),
    Nothing,
}

impl Writing {
    /// The next bytes, as gRPC frames them: about [`PART`], or one resource that is longer. `None` at the end.
    pub(super) fn next_part(&mut self) -> Option<Bytes> {
        let mut part = Vec::with_capacity(PART);
        while part.len() < PART {
            match self.write(&mut part) {
                Some(next) => self.next = next,
                None => break,
            }
        }
        (!part.is_empty()).then(|| part.into())
    }

    /// Writes a field or some; gives what is next.
    fn write(&self, part: &mut Vec<u8>) -> Option<Next> {
        let Self { response, next } = self;
        match *next {
            Next::Head => {
                part.put_u8(0);
                // What is served is never so long.
                part.put_u32(u32::try_from(response.length()).unwrap_or(u32::MAX));
                put_text(part, VERSION, &response.generation.to_string());
                Some(Next::Some(0))
            }
            Next::Some(at) => Some(match response.some.get(at) {
                Some(field) => {
                    part.extend_from_slice(field);
                    Next::Some(at + 1)
                }
                None => Next::Scan(0),
            }),
            Next::Scan(at) => Some(match response.scan.as_ref().and_then(|scan| Some((scan, scan.of.nth(at)?))) {
                Some((scan, (name, resource))) => {
                    if scan.tells(name, resource) {
                        part.extend_from_slice(&resource.field);
                    }
                    Next::Scan(at + 1)
                }
                None => Next::Foot,
            }),
            Next::Foot => {
                put_text(part, TYPE_URL, response.kind.type_url());
                put_text(part, NONCE, &response.nonce);
                Some(Next::Removed(0))
            }
            Next::Removed(at) => Some(match response.removed.get(at) {
                Some(name) => {
                    put_text(part, REMOVED, name);
                    Next::Removed(at + 1)
                }
                None => Next::Nothing,
            }),
            Next::Nothing => None,
        }
    }
}

/// A resource as a field of a response.
pub(super) fn field(kind: Kind, name: &str, version: u64, aliases: &[String], body: Vec<u8>) -> Arc<[u8]> {
    let resource = wire::Resource {
        name: name.into(),
        version: version_text(version),
        resource: Some(prost_types::Any {
            type_url: kind.type_url().into(),
            value: body,
        }),
        aliases: aliases.to_vec(),
    };
    let length = resource.encoded_len();
    let mut field = Vec::with_capacity(1 + length_delimiter_len(length) + length);
    put_head(&mut field, RESOURCES, length);
    // There is room for it in any vector.
    let _ = resource.encode(&mut field);
    field.into()
}

/// A version as it is told.
pub(super) fn version_text(version: u64) -> String {
    format!("{version:016x}")
}

fn put_text(part: &mut Vec<u8>, number: u8, text: &str) {
    put_head(part, number, text.len());
    part.extend_from_slice(text.as_bytes());
}

fn put_head(part: &mut Vec<u8>, number: u8, length: usize) {
    part.put_u8(number << 3 | DELIMITED);
    let _ = encode_length_delimiter(length, part);
}

fn text_length(text: &str) -> usize {
    1 + length_delimiter_len(text.len()) + text.len()
}

/// The fields of a response.
const VERSION: u8 = 1;
const RESOURCES: u8 = 2;
const TYPE_URL: u8 = 4;
const NONCE: u8 = 5;
const REMOVED: u8 = 6;
const DELIMITED: u8 = 2;
/// What is written of a response at a time, in bytes.
pub(super) const PART: usize = 32 * 1024;

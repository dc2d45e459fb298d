//! What a client asks for, read as it comes: pure.
//!
//! A client that comes back says of each resource that it has in which version it has it, and so may say as much as it was
//! told. Each of that is compared with the board as it comes, and not kept in the client's words.

use std::{collections::HashSet, sync::Arc};

use prost::Message as _;

use super::{
    board::Board,
    response::version_text,
    subscriber::{CLAIMS, LONGEST_NAME, NAMES, RequestError},
};
use crate::{
    istiod::{
        Kind,
        pieces::{Fields, Next},
    },
    wire::envoy::service::discovery::v3::DeltaDiscoveryRequest,
};

#[cfg(test)]
mod tests;

/// What a client says that it has, compared with the board.
#[derive(Debug, Default)]
pub(super) struct Claims {
    /// The board's generation at which the first of them was looked at; `None` where there is none.
    pub(super) since: Option<u64>,
    /// What it has as it was then.
    pub(super) has: HashSet<Arc<str>>,
    /// What it has otherwise.
    pub(super) stale: HashSet<Arc<str>>,
    /// What there was not then.
    pub(super) unknown: HashSet<Arc<str>>,
    /// What it asks for, and knows no version of.
    pub(super) without_version: HashSet<Arc<str>>,
}

impl Claims {
    /// It has these, as they were in a generation.
    pub(super) fn of(since: u64, has: HashSet<Arc<str>>) -> Self {
        Self {
            since: Some(since),
            has,
            ..Self::default()
        }
    }

    /// A client says that it has a version of a resource.
    pub(super) fn note(&mut self, board: &Board, kind: Kind, name: &str, version: &str) -> Result<(), RequestError> {
        self.since.get_or_insert_with(|| board.generation());
        let known = board.all(kind).entry(name);
        let name = known.map_or_else(|| name.into(), |(name, _)| name.clone());
        match known {
            _ if version.is_empty() => &mut self.without_version,
            Some((_, resource)) if version_text(resource.version) == version => &mut self.has,
            Some(_) => &mut self.stale,
            None => &mut self.unknown,
        }
        .insert(name);
        let others = self.stale.len() + self.unknown.len() + self.without_version.len();
        // What it has is on the board.
        if others > CLAIMS { Err(RequestError::Claims) } else { Ok(()) }
    }

    /// Whether it says that it has something of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        [&self.has, &self.stale, &self.unknown].iter().any(|names| names.contains(name))
    }

    /// Every name.
    pub(super) fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        let all = [&self.has, &self.stale, &self.unknown, &self.without_version];
        all.into_iter().flatten()
    }
}

/// The requests of a stream.
///
/// [`Asked::handle_data`] whenever something comes, then [`Asked::poll_request`] until it gives nothing.
#[derive(Debug)]
pub(super) struct Asked {
    fields: Fields,
    /// What has come of the present one.
    request: DeltaDiscoveryRequest,
    claims: Claims,
}

impl Asked {
    /// Of a stream that begins.
    pub(super) fn new() -> Self {
        Self {
            fields: Fields::new(LONGEST_REQUEST).with_longest_field(LONGEST_FIELD),
            request: DeltaDiscoveryRequest::default(),
            claims: Claims::default(),
        }
    }

    /// Some bytes have come.
    pub(super) fn handle_data(&mut self, data: &[u8]) {
        self.fields.handle_data(data);
    }

    /// The next request, if it has come whole, and what it says that the client has.
    pub(super) fn poll_request(&mut self, board: &Board) -> Result<Option<(DeltaDiscoveryRequest, Claims)>, RequestError> {
        loop {
            let Self { fields, request, claims } = self;
            let next = fields.poll_field(|field| {
                if field.is(VERSIONS) {
                    let mut one = DeltaDiscoveryRequest::default();
                    one.merge(field.bytes)?;
                    return Ok(Some(one));
                }
                request.merge(field.bytes)?;
                Ok(None)
            })?;
            match next {
                None => return Ok(None),
                Some(Next::Field(Some(entry))) => {
                    for (name, version) in entry.initial_resource_versions {
                        named(&name)?;
                        match Kind::of(&request.type_url) {
                            Some(kind) => claims.note(board, kind, &name, &version)?,
                            // Of what it is said may come behind it.
                            None => drop(request.initial_resource_versions.insert(name, version)),
                        }
                    }
                }
                Some(Next::Field(None)) => {
                    let lists = [&request.resource_names_subscribe, &request.resource_names_unsubscribe];
                    if lists.iter().any(|list| list.len() > NAMES) {
                        return Err(RequestError::Names);
                    }
                    lists.iter().filter_map(|list| list.last()).try_for_each(|name| named(name))?;
                }
                Some(Next::End) => {
                    let (mut request, mut claims) = (std::mem::take(request), std::mem::take(claims));
                    if let Some(kind) = Kind::of(&request.type_url) {
                        for (name, version) in std::mem::take(&mut request.initial_resource_versions) {
                            claims.note(board, kind, &name, &version)?;
                        }
                    }
                    return Ok(Some((request, claims)));
                }
            }
        }
    }
}

fn named(name: &str) -> Result<(), RequestError> {
    if name.len() > LONGEST_NAME {
        Err(RequestError::Name)
    } else {
        Ok(())
    }
}

/// Whatever the bytes are, and wherever they are parted: what is understood of them is what they are as a whole.
#[cfg(feature = "fuzz")]
pub(crate) fn fuzz(data: &[u8]) {
    let Some((step, message)) = data.split_first() else { return };
    let mut stream = vec![0];
    stream.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    stream.extend_from_slice(message);
    let (board, mut asked, mut read) = (Board::default(), Asked::new(), None);
    for part in stream.chunks(usize::from(*step) + 1) {
        asked.handle_data(part);
        loop {
            match asked.poll_request(&board) {
                Ok(Some(request)) => assert!(read.replace(request).is_none(), "one request"),
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
    let (request, claims) = read.expect("all of it has come");
    let mut whole = DeltaDiscoveryRequest::decode(message).expect("it is one, as it was read");
    let said: HashSet<Arc<str>> = whole.initial_resource_versions.keys().map(|name| name.as_str().into()).collect();
    let noted: HashSet<Arc<str>> = claims.names().cloned().collect();
    assert!(noted.is_subset(&said));
    if Kind::of(&whole.type_url).is_some() {
        assert_eq!(noted, said);
    }
    whole.initial_resource_versions.clone_from(&request.initial_resource_versions);
    assert_eq!(request, whole);
}

/// The field of the versions that a client has.
const VERSIONS: u64 = 5;
/// The longest request, in bytes: a client that knows a mesh of 100,000 says so by name.
pub(crate) const LONGEST_REQUEST: usize = 64 * 1024 * 1024;
/// The longest of its fields: what a client refuses it may say a lot of.
const LONGEST_FIELD: usize = 4 * 1024 * 1024;

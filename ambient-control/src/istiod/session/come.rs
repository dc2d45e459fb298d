//! A resource as it comes: what it says, before its response says that it counts.

use std::{borrow::Cow, sync::Arc};

use super::{
    super::read::{self, Key, Read},
    Kind, Session,
};
use crate::{disk::fnv, wire::envoy::service::discovery::v3::Resource};

/// A resource that has come and was read; the rest of its response may still be on its way.
#[derive(Debug)]
pub(crate) struct Come {
    pub(super) name: Arc<str>,
    pub(super) version: Box<str>,
    pub(super) aliases: Vec<String>,
    pub(super) content: Content,
    /// As it was sent, where it is to be remembered.
    pub(super) sent: Option<Vec<u8>>,
}

/// What a resource says.
#[derive(Debug)]
pub(super) enum Content {
    /// Nothing: a sign of life for what is known.
    Empty,
    /// Something of a kind, as it was read.
    Of(Kind, Result<Read, read::Refused>),
    /// Something of a type that is not asked for.
    Foreign(String),
}

impl Session {
    /// Reads a resource. It counts with [`Session::handle_response`].
    pub(crate) fn read(&self, resource: Resource) -> Come {
        let name = &*known_by(&resource.name);
        let (content, sent) = match resource.resource {
            None => (Content::Empty, None),
            Some(body) => {
                let content = match Kind::of(&body.type_url) {
                    Some(Kind::Address) => Content::Of(Kind::Address, read::address(name, &body.value)),
                    Some(Kind::Authorization) => {
                        let read = read::authorization(name, &body.value, &self.settings.policies);
                        Content::Of(Kind::Authorization, read)
                    }
                    Some(Kind::Trust) => Content::Of(Kind::Trust, read::trust(name, &body.value)),
                    None => Content::Foreign(body.type_url),
                };
                (content, self.settings.remembers.then_some(body.value))
            }
        };
        Come {
            // The one text for both: most of what is known are workloads.
            name: match &content {
                Content::Of(
                    _,
                    Ok(Read {
                        key: Key::Workload(uid), ..
                    }),
                ) => uid.to_shared(),
                _ => name.into(),
            },
            version: resource.version.into(),
            aliases: resource.aliases,
            content,
            sent,
        }
    }
}

/// The name that a resource is known by: its own, or what is kept of one that is too long. That is no resource's name, so that it
/// is refused, and another one's for each, so that each is taken back by itself. It is known by itself, too: a new stream says
/// it, and it is remembered.
pub(super) fn known_by(name: &str) -> Cow<'_, str> {
    match name.len() <= LONGEST_NAME {
        true => name.into(),
        false => format!("{}{:016x}", read::brief(name, LONGEST_BEGINNING), fnv(name.as_bytes())).into(),
    }
}

/// The longest name that a resource can have, in bytes: of hostnames, clusters, namespaces and the like together.
const LONGEST_NAME: usize = 2048;
/// As much as is kept of a longer one: the mark that it was cut and 16 digits follow.
const LONGEST_BEGINNING: usize = LONGEST_NAME - '…'.len_utf8() - 16;

/// Why what is of one type cannot be of another.
pub(super) fn of_another(type_url: &str) -> read::Refused {
    format!("its body is of the type {type_url:?}").into()
}

//! What one client of a delta stream has asked for and been told: pure.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use super::board::Board;
use crate::{
    istiod::Kind,
    wire::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource},
};

#[cfg(test)]
mod tests;

/// One client's side of a stream.
#[derive(Debug, Default)]
pub(super) struct Subscriber {
    kinds: [Option<Subscription>; 2],
    nonce: u64,
}

/// What is wrong with a request: the stream ends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum RequestError {
    /// It asks for what is not served.
    #[error("resources of the type {0:?} are not served here")]
    Type(String),
    /// It asks for too much by name.
    #[error("more than {NAMES} names are asked for")]
    Names,
}

/// What a client has refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) kind: Kind,
    pub(super) why: String,
}

#[derive(Debug, Default)]
struct Subscription {
    /// All of it, or what is named.
    wildcard: bool,
    names: BTreeSet<String>,
    /// Names to be answered even where nothing of them is new.
    owed: BTreeSet<String>,
    /// What the client has, by name and version.
    sent: HashMap<Arc<str>, Arc<str>>,
    /// Up to where it was compared with the board; `None` where it was not yet.
    seen: Option<u64>,
    /// The response that is not answered yet.
    in_flight: Option<String>,
}

impl Subscriber {
    /// A request has come: a subscription, an answer to a response, or both.
    pub(super) fn handle_request(&mut self, request: DeltaDiscoveryRequest) -> Result<Option<Refusal>, RequestError> {
        let kind = Kind::of(&request.type_url).ok_or(RequestError::Type(request.type_url))?;
        let slot = &mut self.kinds[kind as usize];
        let first = slot.is_none();
        let subscription = slot.get_or_insert_with(Subscription::default);
        if first {
            // Nothing named is everything, and only in the first request.
            subscription.wildcard = request.resource_names_subscribe.is_empty();
            let known = request.initial_resource_versions.into_iter();
            subscription.sent = known
                .filter(|(_, version)| !version.is_empty())
                .map(|(name, version)| (name.into(), version.into()))
                .collect();
        }
        for name in request.resource_names_subscribe {
            if name == "*" {
                subscription.wildcard = true;
                continue;
            }
            subscription.owed.insert(name.clone());
            subscription.names.insert(name);
        }
        for name in request.resource_names_unsubscribe {
            if name == "*" {
                subscription.wildcard = false;
                continue;
            }
            subscription.names.remove(&name);
            subscription.owed.remove(&name);
        }
        if subscription.names.len() > NAMES {
            return Err(RequestError::Names);
        }
        if !request.response_nonce.is_empty() && subscription.in_flight.as_ref() == Some(&request.response_nonce) {
            subscription.in_flight = None;
        }
        Ok(request.error_detail.map(|status| Refusal { kind, why: status.message }))
    }

    /// The next response, if there is anything to say that the client can take now.
    pub(super) fn poll_response(&mut self, board: &Board) -> Option<DeltaDiscoveryResponse> {
        if !board.is_synced() {
            return None;
        }
        // Policies before the workloads that list them.
        for kind in [Kind::Authorization, Kind::Address] {
            let Some(subscription) = &mut self.kinds[kind as usize] else {
                continue;
            };
            if subscription.in_flight.is_some() {
                continue;
            }
            let first = subscription.seen.is_none();
            let (resources, removed) = subscription.differences(kind, board);
            // The first answer is owed, if it is that there is nothing: until then the client knows of nothing.
            if resources.is_empty() && removed.is_empty() && !(first && subscription.wildcard) {
                continue;
            }
            self.nonce += 1;
            let nonce = self.nonce.to_string();
            subscription.in_flight = Some(nonce.clone());
            return Some(DeltaDiscoveryResponse {
                system_version_info: board.generation().to_string(),
                resources,
                type_url: kind.type_url().into(),
                nonce,
                removed_resources: removed,
            });
        }
        None
    }
}

impl Subscription {
    /// What the client is to be told, which counts as told.
    fn differences(&mut self, kind: Kind, board: &Board) -> (Vec<Resource>, Vec<String>) {
        let mut names: BTreeSet<Arc<str>> = BTreeSet::new();
        let recent = self.seen.and_then(|seen| board.since(seen));
        match recent {
            Some(changes) => names.extend(changes.filter(|(of, _)| *of == kind).map(|(_, name)| name.clone())),
            None => {
                names.extend(board.all(kind).map(|(name, _)| name.clone()));
                names.extend(self.sent.keys().cloned());
            }
        }
        self.seen = Some(board.generation());
        let owed = std::mem::take(&mut self.owed);
        let (mut resources, mut removed) = (Vec::new(), Vec::new());
        for name in owed {
            match board.get(kind, &name) {
                Some((name, resource)) => {
                    names.remove(name);
                    self.sent.insert(name.clone(), resource.version.clone());
                    resources.push(wire(name, resource, kind));
                }
                // Asked for by name it is to be told that there is nothing.
                None => removed.push(name),
            }
        }
        for name in names {
            match board.get(kind, &name) {
                Some((name, resource)) if self.wants(name, resource) => {
                    if self.sent.get(name) != Some(&resource.version) {
                        self.sent.insert(name.clone(), resource.version.clone());
                        resources.push(wire(name, resource, kind));
                    }
                }
                Some(_) => {}
                None => {
                    if self.sent.remove(&*name).is_some() {
                        removed.push(name.to_string());
                    }
                }
            }
        }
        (resources, removed)
    }

    fn wants(&self, name: &Arc<str>, resource: &super::board::Resource) -> bool {
        self.wildcard
            || self.sent.contains_key(name)
            || self.names.contains(&**name)
            || resource.aliases.iter().any(|alias| self.names.contains(alias))
    }
}

fn wire(name: &Arc<str>, resource: &super::board::Resource, kind: Kind) -> Resource {
    Resource {
        version: resource.version.to_string(),
        resource: Some(prost_types::Any {
            type_url: kind.type_url().into(),
            value: resource.body.to_vec(),
        }),
        name: name.to_string(),
        aliases: resource.aliases.to_vec(),
    }
}

/// Names that one client may ask for.
const NAMES: usize = 100_000;

//! What one client of a delta stream has asked for and been told: pure.
//!
//! A client that asks for everything is told everything. One that asks by name is told of what it names, by a resource's
//! name or an alias; of the endpoints of the services that it names; and of the workloads of its own node, which it cannot
//! know to ask for.

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
    /// The node that asks.
    node: String,
    kinds: [Option<Subscription>; 3],
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
    /// Names that are asked for no longer; what is given back by its own name the client holds no more.
    forgotten: Vec<String>,
    /// What the client has, by name and version.
    sent: HashMap<Arc<str>, Arc<str>>,
    /// Up to where it was compared with the board; `None` where it was not yet.
    seen: Option<u64>,
    /// The response that is not answered yet.
    in_flight: Option<String>,
}

impl Subscriber {
    /// Nothing is asked for yet.
    pub(super) fn new(node: &str) -> Self {
        Self {
            node: node.into(),
            ..Self::default()
        }
    }

    /// A request has come: a subscription, an answer to a response, or both.
    pub(super) fn handle_request(&mut self, request: DeltaDiscoveryRequest) -> Result<Option<Refusal>, RequestError> {
        let kind = Kind::of(&request.type_url).ok_or(RequestError::Type(request.type_url))?;
        let slot = &mut self.kinds[kind as usize];
        let first = slot.is_none();
        let subscription = slot.get_or_insert_with(Subscription::default);
        if first {
            // Nothing named is everything, and only in the first request.
            subscription.wildcard = request.resource_names_subscribe.is_empty();
            for (name, version) in request.initial_resource_versions {
                // What a client knows it asks for, or would not say that it does.
                if !subscription.wildcard {
                    subscription.names.insert(name.clone());
                }
                if !version.is_empty() {
                    subscription.sent.insert(name.into(), version.into());
                } else if !subscription.wildcard {
                    subscription.owed.insert(name);
                }
            }
        }
        for name in request.resource_names_subscribe {
            if name == "*" {
                subscription.wildcard = true;
                continue;
            }
            // Of what it has just said to have it is told where that is out of date.
            if !(first && subscription.sent.contains_key(&*name)) {
                subscription.owed.insert(name.clone());
            }
            subscription.names.insert(name);
        }
        for name in request.resource_names_unsubscribe {
            if name == "*" {
                subscription.wildcard = false;
                continue;
            }
            subscription.names.remove(&name);
            subscription.owed.remove(&name);
            subscription.forgotten.push(name);
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
        // Whom to trust, and policies before the workloads that list them.
        for kind in [Kind::Trust, Kind::Authorization, Kind::Address] {
            let Some(subscription) = &mut self.kinds[kind as usize] else {
                continue;
            };
            if subscription.in_flight.is_some() {
                continue;
            }
            let first = subscription.seen.is_none();
            let (resources, removed) = subscription.differences(&self.node, kind, board);
            // The first answer is owed, if it is that there is nothing: until then the client knows of nothing.
            if resources.is_empty() && removed.is_empty() && !first {
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
    fn differences(&mut self, node: &str, kind: Kind, board: &Board) -> (Vec<Resource>, Vec<String>) {
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
        for given in std::mem::take(&mut self.forgotten) {
            // By an alias nothing is forgotten that may be held for something else.
            if let Some((name, resource)) = board.get(kind, &given)
                && **name == *given
            {
                self.sent.remove(name);
                // Let go before it knew that something else leads there.
                if self.asks_for(node, board, name, resource) {
                    names.insert(name.clone());
                }
            }
        }
        let mut told = Told::default();
        for name in std::mem::take(&mut self.owed) {
            match board.get(kind, &name) {
                Some((name, resource)) => {
                    names.remove(name);
                    self.tell(kind, board, (name, resource), &mut told);
                }
                // Asked for by name it is to be told that there is nothing.
                None => told.removed.push(name),
            }
        }
        for name in names {
            match board.get(kind, &name) {
                Some((name, resource)) if self.wants(node, board, name, resource) => {
                    if self.sent.get(name) != Some(&resource.version) {
                        self.tell(kind, board, (name, resource), &mut told);
                    }
                }
                Some(_) => {}
                None => {
                    if self.sent.remove(&*name).is_some() {
                        told.removed.push(name.to_string());
                    }
                }
            }
        }
        (told.resources, told.removed)
    }

    /// Tells of a resource; of a service that it did not know to a client that asks by name, with its endpoints.
    fn tell(&mut self, kind: Kind, board: &Board, (name, resource): (&Arc<str>, &super::board::Resource), told: &mut Told) {
        let new = self.sent.insert(name.clone(), resource.version.clone()).is_none();
        if told.names.insert(name.clone()) {
            told.resources.push(wire(name, resource, kind));
        }
        if !new || self.wildcard || kind != Kind::Address {
            return;
        }
        for endpoint in board.endpoints_of(name) {
            let Some((name, resource)) = board.get(kind, endpoint) else {
                continue;
            };
            if self.sent.get(name) != Some(&resource.version) {
                self.sent.insert(name.clone(), resource.version.clone());
                if told.names.insert(name.clone()) {
                    told.resources.push(wire(name, resource, kind));
                }
            }
        }
    }

    fn wants(&self, node: &str, board: &Board, name: &Arc<str>, resource: &super::board::Resource) -> bool {
        self.sent.contains_key(name) || self.asks_for(node, board, name, resource)
    }

    fn asks_for(&self, node: &str, board: &Board, name: &Arc<str>, resource: &super::board::Resource) -> bool {
        self.wildcard || self.names_it(name, resource) || {
            let workload = board.workload(name);
            workload.is_some_and(|workload| {
                let mut services = board.services_of(workload);
                let is_named = |service: String| {
                    let found = board.get(Kind::Address, &service);
                    found.is_some_and(|(name, resource)| self.names_it(name, resource))
                };
                !node.is_empty() && *workload.node == *node || services.any(is_named)
            })
        }
    }

    /// Whether it is asked for by its name or by an alias.
    fn names_it(&self, name: &Arc<str>, resource: &super::board::Resource) -> bool {
        self.names.contains(&**name) || resource.aliases.iter().any(|alias| self.names.contains(alias))
    }
}

/// What a response says.
#[derive(Debug, Default)]
struct Told {
    names: BTreeSet<Arc<str>>,
    resources: Vec<Resource>,
    removed: Vec<String>,
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

//! What one client of a delta stream has asked for and been told: pure.
//!
//! A client that asks for everything is told everything. One that asks by name is told of what it names, by a resource's
//! name or an alias; of the endpoints of the services that it names; and of the workloads of its own node, which it cannot
//! know to ask for.
//!
//! Of a client that asks for everything nothing is kept but up to where it was told: it has what the board has, and whatever
//! has changed since it is told. Of one that asks by name its names are kept, and those of what it has.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use super::{
    asked::Claims,
    board::{Board, Resource},
    response::{Response, Scan},
};
use crate::{
    istiod::{Kind, pieces::PieceError},
    wire::envoy::service::discovery::v3::DeltaDiscoveryRequest,
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
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    /// It asks for what is not served.
    #[error("resources of the type {0:?} are not served here")]
    Type(String),
    /// It asks for too much by name, or gives too much back before it has heard what became of that.
    #[error("more than {NAMES} names, or {} MiB of them, are asked for or given back", MOST_NAMES >> 20)]
    Names,
    /// A name is none.
    #[error("a name of more than {LONGEST_NAME} bytes is no resource's")]
    Name,
    /// It says that it has more than can be.
    #[error("a client cannot have more than {CLAIMS} resources")]
    Claims,
    /// It cannot be read.
    #[error(transparent)]
    Unreadable(#[from] PieceError),
}

/// A client is so far behind that it is not remembered what was taken away since: it has to say what it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more was removed since the last answer than is remembered: begin again with what is known")]
pub(super) struct Behind;

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
    /// It was told all until now, and asks by name from now on.
    was_wildcard: bool,
    names: Names,
    /// Names to be answered even where nothing of them is new.
    owed: BTreeSet<Arc<str>>,
    /// Names that are asked for no longer; what is given back by its own name the client holds no more.
    forgotten: Names,
    /// What a client has that asks by name.
    has: HashSet<Arc<str>>,
    /// What it has said that it has, and was not yet looked at.
    claims: Claims,
    /// Up to where it was compared with the board; `None` where it was not yet.
    seen: Option<u64>,
    /// The same, of what it has answered.
    taken: u64,
    /// The response that is not answered yet.
    in_flight: Option<String>,
    /// What is gone, and as of when, while the client may have workloads that list it: to them it would be a policy that has not come,
    /// which refuses.
    held_back: BTreeMap<Arc<str>, u64>,
}

impl Subscriber {
    /// Nothing is asked for yet.
    pub(super) fn new(node: &str) -> Self {
        Self {
            node: node.into(),
            ..Self::default()
        }
    }

    /// A request has come: a subscription, an answer to a response, or both; what it says that it has, apart.
    pub(super) fn handle_request(&mut self, request: DeltaDiscoveryRequest, claims: Claims) -> Result<Option<Refusal>, RequestError> {
        let kind = Kind::of(&request.type_url).ok_or(RequestError::Type(request.type_url))?;
        let slot = &mut self.kinds[kind as usize];
        let first = slot.is_none();
        let subscription = slot.get_or_insert_with(Subscription::default);
        if first {
            // Nothing named is everything, and only in the first request.
            subscription.wildcard = request.resource_names_subscribe.is_empty();
        }
        subscription.subscribe(request.resource_names_subscribe, first.then_some(&claims));
        subscription.unsubscribe(request.resource_names_unsubscribe);
        if first {
            subscription.claim(claims);
        }
        if subscription.is_too_much() {
            return Err(RequestError::Names);
        }
        if !request.response_nonce.is_empty() && subscription.in_flight.as_ref() == Some(&request.response_nonce) {
            subscription.in_flight = None;
            subscription.taken = subscription.seen.unwrap_or(0);
        }
        Ok(request.error_detail.map(|status| Refusal { kind, why: status.message }))
    }

    /// The next response, if there is anything to say that the client can take now.
    pub(super) fn poll_response(&mut self, board: &Board) -> Result<Option<Response>, Behind> {
        if !board.is_synced() {
            return Ok(None);
        }
        // Whom to trust, and policies before the workloads that list them; that a policy is gone only after them.
        for kind in [Kind::Trust, Kind::Authorization, Kind::Address, Kind::Authorization] {
            let listed = self.lists_as_of();
            let Some(subscription) = &mut self.kinds[kind as usize] else {
                continue;
            };
            if subscription.in_flight.is_some() {
                continue;
            }
            let first = subscription.seen.is_none();
            let mut response = subscription.differences(&self.node, kind, board)?;
            if kind == Kind::Authorization {
                subscription.hold_back(&mut response, listed, board);
            }
            // The first answer is owed, if it is that there is nothing: until then the client knows of nothing.
            if response.is_empty() && !first {
                continue;
            }
            self.nonce += 1;
            response.nonce = self.nonce.to_string();
            subscription.in_flight = Some(response.nonce.clone());
            return Ok(Some(response));
        }
        Ok(None)
    }

    /// Up to where the client is known to have taken the workloads, and with them which policies they list; all that there is, where
    /// it has asked for none.
    fn lists_as_of(&self) -> u64 {
        match &self.kinds[Kind::Address as usize] {
            None => u64::MAX,
            Some(addresses) if addresses.in_flight.is_some() => addresses.taken,
            Some(addresses) => addresses.seen.unwrap_or(0),
        }
    }
}

/// Names, and how long they are together.
#[derive(Debug, Default)]
struct Names {
    all: BTreeSet<Arc<str>>,
    bytes: usize,
}

impl Names {
    fn insert(&mut self, name: Arc<str>) {
        let length = name.len();
        if self.all.insert(name) {
            self.bytes += length;
        }
    }

    fn remove(&mut self, name: &str) {
        if self.all.remove(name) {
            self.bytes -= name.len();
        }
    }

    fn contains(&self, name: &str) -> bool {
        self.all.contains(name)
    }
}

impl Subscription {
    /// What is given back is kept until the next answer, which whoever takes none puts off.
    fn is_too_much(&self) -> bool {
        let many = |names: &Names| names.all.len() > NAMES;
        many(&self.names) || many(&self.forgotten) || self.names.bytes + self.forgotten.bytes > MOST_NAMES
    }

    fn subscribe(&mut self, names: Vec<String>, claims: Option<&Claims>) {
        for name in names {
            if name == "*" {
                self.become_wildcard();
                continue;
            }
            let name: Arc<str> = name.into();
            // Of what it has just said to have it is told where that is out of date.
            if claims.is_none_or(|claims| !claims.has(&name)) {
                self.owed.insert(name.clone());
            }
            self.names.insert(name);
        }
    }

    fn unsubscribe(&mut self, names: Vec<String>) {
        for name in names {
            if name == "*" {
                self.was_wildcard |= std::mem::take(&mut self.wildcard) && self.seen.is_some();
                continue;
            }
            self.names.remove(&name);
            self.owed.remove(&*name);
            self.forgotten.insert(name.into());
        }
    }

    /// What it has it need not be told.
    fn become_wildcard(&mut self) {
        if std::mem::replace(&mut self.wildcard, true) || std::mem::take(&mut self.was_wildcard) {
            return;
        }
        if let Some(seen) = self.seen.take() {
            self.claims = Claims::of(seen, std::mem::take(&mut self.has));
        }
    }

    /// What a client says that it has, as it comes.
    fn claim(&mut self, mut claims: Claims) {
        if !self.wildcard {
            // What a client knows it asks for, or would not say that it does.
            claims.names().for_each(|name| self.names.insert(name.clone()));
            self.owed.extend(claims.without_version.drain());
        }
        self.claims = claims;
    }

    /// What the client is to be told, which counts as told.
    fn differences(&mut self, node: &str, kind: Kind, board: &Board) -> Result<Response, Behind> {
        let mut told = Told::new(kind, board);
        let wildcard = self.wildcard || self.was_wildcard;
        let claims = std::mem::take(&mut self.claims);
        let after = self.seen.or(claims.since).unwrap_or(0);
        match wildcard {
            true => self.whole(claims, after, board, &mut told)?,
            false => self.named(claims, after, (node, board), &mut told),
        }
        self.seen = Some(board.generation());
        if std::mem::take(&mut self.was_wildcard) && !self.wildcard {
            self.has = board.all(kind).keys().cloned().collect();
        }
        Ok(told.response)
    }

    /// Holds back that policies are gone until the client has taken the workloads that list them no more, as of `listed`. So many may
    /// be held back; more go at once, and a node gives the connections of whoever lists them a moment for that.
    fn hold_back(&mut self, response: &mut Response, listed: u64, board: &Board) {
        let (kind, generation) = (response.kind, board.generation());
        // What is there again was told again.
        self.held_back.retain(|name, _| board.get(kind, name).is_none());
        let gone = std::mem::take(&mut response.removed).into_iter();
        self.held_back.extend(gone.map(|name| (name, generation)));
        self.held_back.retain(|name, gone| {
            let is_free = *gone <= listed;
            if is_free {
                response.removed.push(name.clone());
            }
            !is_free
        });
        if self.held_back.len() > NAMES {
            response.removed.extend(std::mem::take(&mut self.held_back).into_keys());
        }
    }

    /// Of everything what has changed.
    fn whole(&mut self, claims: Claims, after: u64, board: &Board, told: &mut Told) -> Result<(), Behind> {
        let kind = told.response.kind;
        let recent = self.seen.and_then(|_| board.few_since(after));
        if let Some(recent) = recent {
            for (_, name) in recent.filter(|(of, _)| *of == kind) {
                match board.get(kind, name) {
                    Some((name, resource)) => told.tell(name, resource),
                    None => told.remove(name),
                }
            }
        } else {
            // At first it has nothing, or what it says.
            let has = (self.seen.is_none() && claims.since.is_some()).then_some(claims.has);
            let gone = board.removed_since(kind, after).ok_or(Behind);
            if has.is_some() || self.seen.is_some() {
                gone?.for_each(|name| told.remove(name));
            }
            told.response.scan = Some(Scan {
                of: board.all(kind).clone(),
                after,
                has,
            });
        }
        // What it knows no version of it has refused, and holds that against it until it hears that it is gone.
        for name in claims.unknown.iter().chain(&claims.without_version) {
            if board.get(kind, name).is_none() {
                told.remove(name);
            }
        }
        for name in std::mem::take(&mut self.forgotten).all {
            if let Some((name, resource)) = board.get(kind, &name).filter(|(of, _)| ***of == *name) {
                told.tell(name, resource);
            }
        }
        for name in std::mem::take(&mut self.owed) {
            board.meant(kind, &name).for_each(|(name, resource)| told.tell(name, resource));
            // Asked for by name it is to be told that there is nothing.
            if board.get(kind, &name).is_none() {
                told.remove(&name);
            }
        }
        Ok(())
    }

    /// Of what is named, and what comes along with that, what has changed.
    fn named(&mut self, claims: Claims, after: u64, (node, board): (&str, &Board), told: &mut Told) {
        let kind = told.response.kind;
        for name in &claims.unknown {
            if board.get(kind, name).is_none() {
                told.remove(name);
            }
        }
        self.has.extend(claims.has);
        self.has.extend(claims.stale.iter().cloned());
        let owed = std::mem::take(&mut self.owed);
        let recent = self.seen.and_then(|seen| board.since(seen));
        let mut names: BTreeSet<Arc<str>> = claims.stale.into_iter().collect();
        let all = recent.is_none();
        names.extend(
            recent
                .into_iter()
                .flatten()
                .filter(|(of, _)| *of == kind)
                .map(|(_, name)| name.clone()),
        );
        for given in std::mem::take(&mut self.forgotten).all {
            // By an alias nothing is forgotten that may be held for something else.
            if let Some((name, resource)) = board.get(kind, &given)
                && **name == *given
            {
                self.has.remove(name);
                // Let go before it knew that something else leads there.
                if self.asks_for(node, board, name, resource) {
                    names.insert(name.clone());
                }
            }
        }
        for name in owed {
            for found in board.meant(kind, &name) {
                self.tell(after, board, found, told);
            }
            // Asked for by name it is to be told that there is nothing.
            if board.get(kind, &name).is_none() {
                told.remove(&name);
            }
        }
        if all {
            let gone = self.has.extract_if(|name| !board.all(kind).contains_key(&**name));
            gone.for_each(|name| told.remove(&name));
            for (name, resource) in board.all(kind) {
                let has = self.has.contains(name);
                if (has && resource.changed > after) || (!has && self.asks_for(node, board, name, resource)) {
                    self.tell(after, board, (name, resource), told);
                }
            }
        }
        for name in names {
            match board.all(kind).entry(&*name) {
                Some((name, resource)) if self.has.contains(name) || self.asks_for(node, board, name, resource) => {
                    self.tell(after, board, (name, resource), told);
                }
                Some(_) => {}
                None => {
                    if self.has.remove(&*name) {
                        told.remove(&name);
                    }
                }
            }
        }
    }

    /// Tells of a resource; of a service that it did not know with its endpoints.
    fn tell(&mut self, after: u64, board: &Board, (name, resource): (&Arc<str>, &Resource), told: &mut Told) {
        let kind = told.response.kind;
        told.tell(name, resource);
        if !self.has.insert(name.clone()) || kind != Kind::Address {
            return;
        }
        for endpoint in board.endpoints_of(name) {
            let Some((name, resource)) = board.get(kind, endpoint) else {
                continue;
            };
            if self.has.insert(name.clone()) || resource.changed > after {
                told.tell(name, resource);
            }
        }
    }

    /// Whether what is named, or comes along with that, is this.
    fn asks_for(&self, node: &str, board: &Board, name: &Arc<str>, resource: &Resource) -> bool {
        self.names_it(name, resource) || {
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
    fn names_it(&self, name: &Arc<str>, resource: &Resource) -> bool {
        self.names.contains(name) || resource.aliases.iter().any(|alias| self.names.contains(alias))
    }
}

/// A response that is being made, in which nothing stands twice.
struct Told {
    response: Response,
    names: HashSet<Arc<str>>,
}

impl Told {
    fn new(kind: Kind, board: &Board) -> Self {
        let response = Response {
            kind,
            generation: board.generation(),
            nonce: String::new(),
            some: Vec::new(),
            scan: None,
            removed: Vec::new(),
        };
        Self {
            response,
            names: HashSet::new(),
        }
    }

    fn tell(&mut self, name: &Arc<str>, resource: &Resource) {
        let scanned = self.response.scan.as_ref().is_some_and(|scan| scan.tells(name, resource));
        if !scanned && self.names.insert(name.clone()) {
            self.response.some.push(resource.field.clone());
        }
    }

    fn remove(&mut self, name: &Arc<str>) {
        if self.names.insert(name.clone()) {
            self.response.removed.push(name.clone());
        }
    }
}

/// Names that one client may ask for.
pub(super) const NAMES: usize = 100_000;
/// The same, in bytes: of each kind, and those that were given back and are not seen to yet among them.
const MOST_NAMES: usize = 16 << 20;
/// The longest name of a resource, in bytes: of hostnames, clusters, namespaces and the like together.
pub(super) const LONGEST_NAME: usize = 2048;
/// Resources that a client may say to have.
pub(super) const CLAIMS: usize = 1_000_000;

//! How a stream begins: with what is known, as far as a control plane takes that in one message.
//!
//! What a first request does not name the server does not know to be held, and so never says of it that it is gone. A request
//! that would be too long names nothing of what is held: all is then told anew, and what is not is missed, and waits as what a control
//! plane has lost does.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use prost::{Message as _, length_delimiter_len};

use super::{Come, Held, Kind, Known, Received, Session, claims::Waiting};
use crate::wire::envoy::service::discovery::v3::DeltaDiscoveryRequest;

impl Session {
    /// A stream is open: it begins with what is known already.
    pub(crate) fn handle_opened(&mut self, now: Instant) {
        self.handle_closed();
        self.opened = Some(now);
        for kind in self.asked_for() {
            let on_demand = self.settings.on_demand && kind == Kind::Address;
            let known = &mut self.kinds[kind as usize];
            known.at_opening = [0; 2];
            known.held.values().for_each(|held| known.at_opening[held.sort()] += 1);
            known.removed_early = [0; 2];
            let mut request = DeltaDiscoveryRequest {
                node: Some(self.settings.node.clone()),
                type_url: kind.type_url().into(),
                initial_resource_versions: known.versions(),
                ..DeltaDiscoveryRequest::default()
            };
            let mut names: Vec<String> = Vec::new();
            if on_demand {
                // Subscribed to all and to none in one breath: neither is then taken for the other.
                request.resource_names_subscribe = vec!["*".into()];
                request.resource_names_unsubscribe = vec!["*".into()];
                names.extend(known.asked.iter().chain(&known.subscribed).map(ToString::to_string));
            }
            let length = request.encoded_len() + names.iter().map(|name| as_field(name)).sum::<usize>();
            if length > self.settings.longest_request {
                request.initial_resource_versions = HashMap::new();
                known.begin_anew();
            }
            self.name(request, names, |request| &mut request.resource_names_subscribe);
        }
    }

    /// Asks for names, or gives them back, with a request that may have more to say: in as many as it takes.
    pub(super) fn name(
        &mut self,
        mut request: DeltaDiscoveryRequest,
        names: Vec<String>,
        list: impl Fn(&mut DeltaDiscoveryRequest) -> &mut Vec<String>,
    ) {
        let mut length = request.encoded_len();
        for name in names {
            let more = as_field(&name);
            if length + more > self.settings.longest_request && !list(&mut request).is_empty() {
                let next = DeltaDiscoveryRequest {
                    type_url: request.type_url.clone(),
                    ..DeltaDiscoveryRequest::default()
                };
                length = next.encoded_len();
                self.requests.push_back(std::mem::replace(&mut request, next));
            }
            length += more;
            list(&mut request).push(name);
        }
        self.requests.push_back(request);
    }

    /// Of what the stream did not begin with some is told. What is left once nothing is owed any more is missed.
    pub(super) fn miss(&mut self, now: Instant, kind: Kind, come: &[Come], received: &mut Received) {
        let known = &mut self.kinds[kind as usize];
        if known.waiting.as_ref().is_none_or(|waiting| waiting.until.is_some()) {
            return;
        }
        for one in come {
            known.return_of(&one.name);
        }
        let until = known.waits_until(now, self.settings.grace);
        if let Some(waiting) = &mut known.waiting
            && waiting.owed.is_empty()
        {
            waiting.until = Some(until);
            let mut missed = [0; 2];
            let held = waiting.names().filter_map(|name| known.held.get(name));
            held.for_each(|held| missed[held.sort()] += 1);
            waiting.is_much = missed.iter().zip(known.at_opening).any(|(missed, of)| missed * 2 > of);
            received.waiting = if waiting.is_much { waiting.len() } else { 0 };
        }
    }
}

impl Known {
    /// What the control plane is told to be known already.
    fn versions(&self) -> HashMap<String, String> {
        let said = |(name, held): (&Arc<str>, &Held)| {
            // What has not changed is not sent again, and an answer is owed by whichever of its names it was asked for.
            let mut aliases = held.reasons.iter().flat_map(|reasons| reasons.aliases());
            let owed = aliases.any(|alias| self.asked.contains(alias));
            let version = if owed { "" } else { &*held.version };
            (name.to_string(), version.to_owned())
        };
        let mut versions: HashMap<String, String> = self.held.iter().map(said).collect();
        for held in self.held.values() {
            let aliases = held.reasons.iter().flat_map(|reasons| reasons.aliases());
            for alias in aliases.filter(|alias| self.subscribed.contains(*alias)) {
                versions.insert(alias.to_string(), held.version.to_string());
            }
        }
        // What was refused too: whoever is not told that it was seen would not say that it is gone.
        for name in self.refused.keys().chain(&self.subscribed) {
            versions.entry(name.to_string()).or_default();
        }
        versions.extend(self.asked.iter().map(|name| (name.to_string(), String::new())));
        versions
    }

    /// The stream begins as that of a client that has nothing: what it has may be missed, once every name is answered.
    fn begin_anew(&mut self) {
        let mut waiting = Waiting::default();
        for (name, held) in &self.held {
            waiting.add(name, &held.claims);
        }
        for name in self.refused.keys().filter(|name| !self.held.contains_key(&***name)) {
            waiting.add(&(&**name).into(), &Default::default());
        }
        waiting.owed = self.asked.iter().chain(&self.subscribed).cloned().collect();
        self.waiting = (waiting.len() > 0).then_some(waiting);
    }

    /// Until when what is missed from now on waits. Of long ago it is another time that it is missed.
    pub(super) fn waits_until(&self, now: Instant, grace: Duration) -> Instant {
        let before = self.waited.filter(|until| now < *until + grace);
        before.map_or(now + grace, |until| until.min(now + grace))
    }
}

/// How long a name is in a list of a request.
fn as_field(name: &str) -> usize {
    1 + length_delimiter_len(name.len()) + name.len()
}

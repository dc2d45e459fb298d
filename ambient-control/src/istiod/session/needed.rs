//! What is asked for one by one: why each resource is held, and what goes once a name is given back.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

use ambient_core::{NamespacedHostname, mesh::Update};

use super::{Held, Key, Kind, Known, Received, Refused, Session, Settings};
use crate::{Change, wire::envoy::service::discovery::v3::DeltaDiscoveryRequest};

/// What has become of a name that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    /// The answer will come.
    Asked,
    /// It has come, or is known already, and what it says is kept up to date.
    Answered,
    /// Too many are asked for already.
    TooMany,
}

impl Session {
    /// Asks for a resource that is needed, by `NETWORK/IP`, by UID or by `NAMESPACE/HOSTNAME`.
    pub(crate) fn ask(&mut self, name: &str) -> Ask {
        let known = &mut self.kinds[Kind::Address as usize];
        if known.subscribed.contains(name) {
            return Ask::Answered;
        }
        if known.asked.contains(name) {
            return Ask::Asked;
        }
        if known.asked.len() + known.subscribed.len() >= ASKED {
            return Ask::TooMany;
        }
        // What is held is kept up to date for whatever it is held for. Control planes that have subscribed a client to all that it was
        // sent have no answer for one that asks for it by its own name.
        let held = known.held.contains_key(name);
        match held {
            true => known.subscribed.insert(name.into()),
            false => known.asked.insert(name.into()),
        };
        if self.opened.is_some() {
            self.requests.push_back(DeltaDiscoveryRequest {
                type_url: Kind::Address.type_url().into(),
                resource_names_subscribe: vec![name.into()],
                ..DeltaDiscoveryRequest::default()
            });
        }
        if held { Ask::Answered } else { Ask::Asked }
    }

    /// These names are needed no longer. Gives what goes with them: what is held for no other reason. What was refused goes too.
    pub(crate) fn give_back(&mut self, names: &[String]) -> Received {
        let mut received = Received::default();
        let known = &mut self.kinds[Kind::Address as usize];
        let mut given = Vec::new();
        for name in names {
            let asked = known.asked.remove(name.as_str());
            if known.subscribed.remove(name.as_str()) || asked {
                given.push(name.clone());
            }
        }
        if given.is_empty() {
            return received;
        }
        // What is held for something else is given back by its own name once it is not: until then its changes matter.
        given.retain(|name| !known.held.contains_key(name.as_str()));
        // Some servers take what a stream began with for asked for, each by its own name.
        for name in known.needless() {
            known.let_go(Kind::Address, &name, &mut received);
            known.refused.remove(&*name);
            given.push(name.to_string());
        }
        given.extend(known.forget_refused());
        known.waiting.iter_mut().for_each(|waiting| waiting.answer(&given));
        if self.opened.is_some() && !given.is_empty() {
            let request = DeltaDiscoveryRequest {
                type_url: Kind::Address.type_url().into(),
                ..DeltaDiscoveryRequest::default()
            };
            self.name(request, given, |request| &mut request.resource_names_unsubscribe);
        }
        received
    }
}

/// What a resource is sent for, besides its name.
#[derive(Debug)]
pub(super) struct Reasons {
    aliases: Vec<Box<str>>,
    /// A workload is sent along with the services that it is an endpoint of.
    services: Vec<NamespacedHostname>,
    /// Workloads of the node's own are sent unasked.
    ours: bool,
}

impl Reasons {
    pub(super) fn of(aliases: &[String], change: &Change, asks: &Settings) -> Self {
        let mut names: BTreeSet<Box<str>> = aliases.iter().map(|alias| alias.as_str().into()).collect();
        let (mut services, mut ours) = (Vec::new(), false);
        // What was remembered has its addresses alone, which are the same.
        match change {
            Change::Mesh(Update::Workload(workload)) => {
                let at = |ip| format!("{}/{ip}", workload.network.as_str()).into();
                names.extend(workload.addresses.iter().map(at));
                services = workload.services.iter().map(|membership| membership.service.clone()).collect();
                ours = asks.is_own_node(&workload.node);
            }
            Change::Mesh(Update::Service(service)) => {
                names.extend(service.vips.iter().map(|vip| format!("{}/{}", vip.network.as_str(), vip.ip).into()));
            }
            _ => {}
        }
        Self {
            aliases: names.into_iter().collect(),
            services,
            ours,
        }
    }

    pub(super) fn aliases(&self) -> &[Box<str>] {
        &self.aliases
    }
}

impl Settings {
    /// Whether it is the node that asks, by what that says of itself.
    pub(super) fn is_own_node(&self, node: &str) -> bool {
        let name = self.node.metadata.as_ref().and_then(|metadata| metadata.fields.get("NODE_NAME"));
        match name.and_then(|value| value.kind.as_ref()) {
            Some(prost_types::value::Kind::StringValue(name)) => !name.is_empty() && name == node,
            _ => false,
        }
    }
}

impl Known {
    /// A name is answered, if it is one that was asked for.
    pub(super) fn answer(&mut self, name: &str, received: &mut Received) {
        self.waiting.iter_mut().for_each(|waiting| waiting.answer(&[name]));
        if let Some(name) = self.asked.take(name) {
            received.answered.push(name.to_string());
            self.subscribed.insert(name);
        }
    }

    fn is_wanted(&self, name: &str) -> bool {
        self.subscribed.contains(name) || self.asked.contains(name)
    }

    /// By which of its names something was asked for.
    pub(super) fn asked_by(&self, name: &str, aliases: &[String]) -> Vec<Box<str>> {
        let names = [name].into_iter().chain(aliases.iter().map(String::as_str));
        names.filter(|name| self.is_wanted(name)).map(Box::from).collect()
    }

    /// Whether what is held is so for a name of its own that is subscribed to.
    fn is_meant(&self, name: &str, held: &Held) -> bool {
        let mut aliases = held.reasons.iter().flat_map(|reasons| reasons.aliases());
        self.is_wanted(name) || aliases.any(|alias| self.is_wanted(alias))
    }

    /// The services that are subscribed to.
    fn services_meant(&self) -> HashSet<&NamespacedHostname> {
        let meant = self.held.iter().filter(|(name, held)| self.is_meant(name, held));
        let services = meant.filter_map(|(_, held)| match &held.key {
            Key::Service(name) => Some(&**name),
            _ => None,
        });
        services.collect()
    }

    /// What is held for nothing that is subscribed to.
    fn needless(&self) -> Vec<Arc<str>> {
        let services = self.services_meant();
        let needed = |name: &str, held: &Held| {
            let for_others = |reasons: &Reasons| reasons.ours || reasons.services.iter().any(|service| services.contains(service));
            self.is_meant(name, held) || held.reasons.as_deref().is_none_or(for_others)
        };
        let needless = self.held.iter().filter(|(name, held)| !needed(name, held));
        needless.map(|(name, _)| name.clone()).collect()
    }

    /// Forgets what was refused, is not held, and came for nothing but what was given back; gives their names.
    fn forget_refused(&mut self) -> Vec<String> {
        let services = self.services_meant();
        let is_needless = |name: &str, refused: &Refused| {
            let came_for = !refused.asked_by.is_empty() || !refused.along_with.is_empty();
            let needed = refused.asked_by.iter().any(|name| self.is_wanted(name))
                || refused.along_with.iter().any(|service| services.contains(service));
            came_for && !needed && !self.held.contains_key(name)
        };
        let gone = self.refused.iter().filter(|(name, refused)| is_needless(name, refused));
        let gone: Vec<Box<str>> = gone.map(|(name, _)| name.clone()).collect();
        for name in &gone {
            self.refused.remove(name);
        }
        gone.into_iter().map(String::from).collect()
    }
}

/// Names that may be asked for or subscribed to.
pub(super) const ASKED: usize = 20_000;

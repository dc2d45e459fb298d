//! Equal texts of many workloads, held once.

use std::{
    collections::HashSet,
    hash::{BuildHasherDefault, Hash},
    sync::Arc,
};

use super::Update;
use crate::shards::Quick;
use crate::{
    GatewayAddress, GatewayTarget, Membership, NamespacedHostname, Network, NetworkAddress, PolicyKey, PortMap, Service, Workload,
};

/// Looks for what nobody holds any more once there are twice as many as were held the last time, and these more.
const FEWEST: usize = 1024;

/// Holds equal texts of many workloads once: namespaces, accounts, nodes, names of services and so on.
///
/// Whoever applies updates gives them to [`Sharing::share`] first; sources need not care. What no workload and no snapshot
/// holds any more is let go as more comes.
#[derive(Debug, Default)]
pub struct Sharing {
    texts: Held<Arc<str>>,
    ports: Held<Arc<[(u16, u16)]>>,
}

#[derive(Debug)]
struct Held<T> {
    all: HashSet<T, BuildHasherDefault<Quick>>,
    next_look: usize,
}

impl<T> Default for Held<T> {
    fn default() -> Self {
        Self {
            all: HashSet::default(),
            next_look: FEWEST,
        }
    }
}

impl Sharing {
    /// The same update, its texts shared with those of the updates before.
    #[must_use]
    pub fn share(&mut self, mut update: Update) -> Update {
        match &mut update {
            // One that somebody else holds too is left as it is.
            Update::Workload(workload) => {
                if let Some(workload) = Arc::get_mut(workload) {
                    self.workload(workload);
                }
            }
            Update::Service(service) => {
                if let Some(service) = Arc::get_mut(service) {
                    self.service(service);
                }
            }
            Update::RemoveWorkload(_) | Update::RemoveService(_) => {}
        }
        self.texts.let_go(|text| Arc::strong_count(text) > 1);
        self.ports.let_go(|ports| Arc::strong_count(ports) > 1);
        update
    }

    fn workload(&mut self, workload: &mut Workload) {
        // A pod's name stands in nothing else, unless it has no owner: then its owner's name is the same.
        if workload.workload_name == workload.name {
            workload.workload_name = workload.name.clone();
        } else {
            self.text(&mut workload.workload_name);
        }
        for text in [
            &mut workload.namespace,
            &mut workload.service_account,
            &mut workload.node,
            &mut workload.cluster,
            &mut workload.canonical_name,
            &mut workload.canonical_revision,
            &mut workload.hostname,
        ] {
            self.text(text);
        }
        workload.locality.iter_mut().for_each(|text| self.text(text));
        self.text(&mut workload.trust_domain.0);
        self.network(&mut workload.network);
        workload.policies.iter_mut().for_each(|PolicyKey(key)| self.text(key));
        let gateways = [&mut workload.waypoint, &mut workload.network_gateway];
        gateways.into_iter().flatten().for_each(|gateway| self.gateway(gateway));
        for Membership { service, ports } in &mut workload.services {
            self.hostname(service);
            self.ports(ports);
        }
        workload.addresses.shrink_to_fit();
        workload.services.shrink_to_fit();
        workload.policies.shrink_to_fit();
    }

    fn service(&mut self, service: &mut Service) {
        self.hostname(&mut service.name);
        for vip in &mut service.vips {
            self.network(&mut vip.network);
        }
        let weighted = service.weighted_waypoints.iter_mut().map(|w| &mut w.destination);
        service
            .waypoint
            .iter_mut()
            .chain(weighted)
            .for_each(|gateway| self.gateway(gateway));
        if let Some(endpoints) = Arc::get_mut(&mut service.endpoints) {
            endpoints.values_mut().for_each(|endpoint| self.ports(&mut endpoint.ports));
        }
    }

    fn gateway(&mut self, gateway: &mut GatewayAddress) {
        match &mut gateway.target {
            GatewayTarget::Address(NetworkAddress { network, .. }) => self.network(network),
            GatewayTarget::Hostname(name) => self.hostname(name),
        }
    }

    fn hostname(&mut self, name: &mut NamespacedHostname) {
        self.text(&mut name.namespace);
        self.text(&mut name.hostname);
    }

    fn network(&mut self, network: &mut Network) {
        self.text(&mut network.0);
    }

    fn text(&mut self, text: &mut Arc<str>) {
        self.texts.share(text);
    }

    fn ports(&mut self, ports: &mut PortMap) {
        self.ports.share(&mut ports.0);
    }
}

impl<T: Clone + Eq + Hash> Held<T> {
    fn share(&mut self, value: &mut T) {
        match self.all.get(value) {
            Some(held) => *value = held.clone(),
            None => drop(self.all.insert(value.clone())),
        }
    }

    fn let_go(&mut self, is_held: impl Fn(&T) -> bool) {
        if self.all.len() > self.next_look {
            self.all.retain(is_held);
            self.next_look = self.all.len() * 2 + FEWEST;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(n: usize) -> Update {
        let mut workload = Workload::new(&format!("c//Pod/shop/{n}"), "shop", &n.to_string());
        workload.service_account = format!("account-{}", n / 2).into();
        workload.services.push(Membership {
            service: NamespacedHostname::new("shop", "web.shop"),
            ports: [(80, 8080)].into_iter().collect(),
        });
        Update::Workload(workload.into())
    }

    fn workload(update: &Update) -> &Workload {
        let Update::Workload(workload) = update else { panic!("{update:?}") };
        workload
    }

    #[test]
    fn equal_texts_are_held_once_and_change_nothing() {
        let mut sharing = Sharing::default();
        let [one, two] = [0, 1].map(|n| sharing.share(update(n)));
        assert_eq!(workload(&one), workload(&update(0)));
        let (one, two) = (workload(&one), workload(&two));
        assert!(Arc::ptr_eq(&one.namespace, &two.namespace) && Arc::ptr_eq(&one.service_account, &two.service_account));
        assert!(Arc::ptr_eq(&one.services[0].service.hostname, &two.services[0].service.hostname));
        assert!(Arc::ptr_eq(&one.services[0].ports.0, &two.services[0].ports.0));
    }

    #[test]
    fn what_nobody_holds_is_let_go() {
        let mut sharing = Sharing::default();
        for n in 0..100_000 {
            drop(sharing.share(update(n)));
        }
        assert!(sharing.texts.all.len() <= 2 * FEWEST + 20, "{}", sharing.texts.all.len());
    }
}

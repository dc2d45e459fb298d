//! The nodes: a network namespace each, a link between them, and the process that makes one part of the mesh.

use std::{net::IpAddr, path::PathBuf};

use crate::{End, Namespace, Output, Process, Program, Resolution, View, World, link};

use super::{
    ClusterError,
    plan::{self, Addresses, Families, Pair, net},
    services::resolv_conf,
};

/// A node of the cluster.
#[derive(Debug)]
pub struct Node {
    name: String,
    number: u8,
    families: Families,
    namespace: Namespace,
    view: View,
    log: PathBuf,
    process: Option<Process>,
    pub(super) addresses: Addresses,
}

impl Node {
    pub(super) fn new(world: &World, number: u8, families: Families, logs: &std::path::Path) -> Result<Self, ClusterError> {
        let name = format!("node-{number}");
        let namespace = world.namespace(&name)?;
        namespace.forward()?;
        without_ipv6(families, &namespace)?;
        let resolution = Resolution {
            resolv_conf: resolv_conf(families.cluster_dns(), "default"),
            hosts: String::new(),
        };
        let view = world
            .view(&name, &resolution)
            .map_err(ClusterError::io("laying out a node's files"))?;
        let log = logs.join(format!("{name}.log"));
        Ok(Self {
            name,
            number,
            families,
            namespace,
            view,
            log,
            process: None,
            addresses: Addresses::new(number),
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its network namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// What its programs see.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Its addresses on the link between the nodes, in a cluster of both families.
    pub fn addresses(&self) -> Pair {
        plan::node(self.number)
    }

    /// Those that it has; IPv4 first.
    pub fn ips(&self) -> Vec<IpAddr> {
        self.families.of(self.addresses())
    }

    /// Those of the cluster.
    pub(super) fn families(&self) -> Families {
        self.families
    }

    /// The file that everything goes to which its mesh process writes.
    pub fn log(&self) -> &std::path::Path {
        &self.log
    }

    /// Its mesh process, while there is one.
    pub fn process(&mut self) -> Option<&mut Process> {
        self.process.as_mut()
    }

    /// Starts its mesh process; what it writes is added to [`Node::log`].
    ///
    /// # Errors
    /// When it cannot be started. It may end at once all the same.
    pub fn start(&mut self, program: Program) -> Result<(), ClusterError> {
        let program = program
            .view(&self.view)
            .stdout(Output::File(self.log.clone()))
            .stderr(Output::File(self.log.clone()));
        self.process = Some(self.namespace.spawn(&program)?);
        Ok(())
    }

    /// Ends its mesh process by SIGKILL.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn kill(&mut self) -> Result<(), ClusterError> {
        match self.process.take() {
            Some(mut process) => process.kill().map(drop).map_err(ClusterError::io("killing a node's mesh process")),
            None => Ok(()),
        }
    }

    /// Makes an interface to a namespace of a pod on this node: the pod's end is `eth0`, with the addresses as its own
    /// and everything else through the node.
    pub(super) fn attach(&self, pod: &Namespace, interface: &str, addresses: &[IpAddr]) -> Result<(), ClusterError> {
        let mut inner = End::new(pod, POD_INTERFACE);
        for address in addresses {
            inner = inner.address(*address);
        }
        // The same on every interface: a pod knows only this one next hop of each family.
        let gateways = [net(plan::GATEWAY_V4, 32), net(plan::GATEWAY_V6, 64)];
        let outer = gateways
            .into_iter()
            .filter(|gateway| self.families.has(gateway.addr()))
            .fold(End::new(&self.namespace, interface), End::address);
        without_ipv6(self.families, pod)?;
        link(&inner, &outer)?;
        for address in addresses {
            self.namespace.add_route(*address, None, interface)?;
            let (everything, gateway) = match address {
                IpAddr::V4(_) => (net([0; 4], 0), IpAddr::from(plan::GATEWAY_V4)),
                IpAddr::V6(_) => (net([0_u16; 8], 0), plan::GATEWAY_V6.into()),
            };
            pod.add_route(everything, Some(gateway), POD_INTERFACE)?;
        }
        Ok(())
    }
}

/// A node's end of the link between them.
fn end(node: &Node) -> End<'_> {
    let Pair { v4, v6 } = plan::node(node.number);
    let addresses = [net(v4, 24), net(v6, 64), net(plan::node_link_local(node.number), 64)];
    addresses
        .into_iter()
        .filter(|address| node.families.has(address.addr()))
        .fold(End::new(&node.namespace, NODE_INTERFACE), End::address)
}

/// Joins two nodes, and tells each where the other's pods are.
pub(super) fn join(a: &Node, b: &Node) -> Result<(), ClusterError> {
    link(&end(a), &end(b))?;
    for (here, there) in [(a, b), (b, a)] {
        for (network, via) in plan::pod_networks(there.number).into_iter().zip(plan::node(there.number).both()) {
            if here.families.has(via) {
                here.namespace.add_route(network, Some(via), NODE_INTERFACE)?;
            }
        }
        for network in plan::service_networks()
            .into_iter()
            .filter(|network| here.families.has(network.addr()))
        {
            here.namespace.add_route(network, None, NODE_INTERFACE)?;
        }
    }
    Ok(())
}

fn without_ipv6(families: Families, namespace: &Namespace) -> Result<(), ClusterError> {
    if families == Families::V4 {
        for which in ["all", "default"] {
            namespace.sysctl(&format!("net/ipv6/conf/{which}/disable_ipv6"), "1")?;
        }
    }
    Ok(())
}

/// The interface of each node to the link between them.
pub const NODE_INTERFACE: &str = "eth0";
const POD_INTERFACE: &str = "eth0";

//! What in a namespace turns packets from their way.

use std::io;

use ambient_redirect::{
    netlink::{Error, Nftables, Policy, Routing, Rule},
    plan::{ROUTE_TABLE, SEGMENTS_TABLE},
};

use super::ClusterError;
use crate::Namespace;

/// Every nftables table of a namespace, every routing rule that the kernel has not made itself, and every route of the tables that
/// captures use: that of Istio's ambient mode and that of loopback segments. Empty for a pod that nobody has touched.
///
/// # Errors
/// When the namespace cannot be looked at.
pub fn residue(namespace: &Namespace) -> Result<Vec<String>, ClusterError> {
    let found = namespace.run(list)?;
    found.map_err(|e| ClusterError::io("listing rules and routes")(io::Error::other(e)))
}

fn list() -> Result<Vec<String>, Error> {
    let mut found: Vec<String> = Nftables::open()?
        .tables()?
        .into_iter()
        .map(|t| format!("nftables table {:?} {}", t.family, t.name))
        .collect();
    let mut routing = Routing::open()?;
    let made = routing.policies()?.into_iter().filter(|policy| !is_kernels(policy));
    found.extend(made.map(|policy| {
        let family = if policy.ipv6 { "IPv6" } else { "IPv4" };
        let (priority, mark, to) = (policy.priority, policy.mark, policy.leads_to);
        format!("{family} routing rule {priority} for mark {mark:#x}, to {to:?}")
    }));
    for table in [ROUTE_TABLE, SEGMENTS_TABLE] {
        let routes = routing.routes(table)?;
        found.extend(
            routes
                .into_iter()
                .map(|route| format!("route to {} in table {table}", route.destination)),
        );
    }
    Ok(found)
}

/// Whether it is one that stands in every namespace; IPv6 has no default table.
fn is_kernels(policy: &Policy) -> bool {
    let of = |(priority, table)| Rule {
        ipv6: policy.ipv6,
        priority,
        mark: 0,
        mask: 0,
        table,
    };
    policy.plain().is_some_and(|rule| KERNELS.map(of).contains(&rule))
}

/// The priorities and tables of the kernel's own: local, main and default.
const KERNELS: [(u32, u32); 3] = [(0, 255), (32_766, 254), (32_767, 253)];

//! What in a namespace turns packets from their way.

use std::io;

use ambient_redirect::netlink::{Error, Nftables, Routing};

use super::ClusterError;
use crate::Namespace;

/// Every nftables table of a namespace, every rule that looks at marks, and every route of the table that Istio's
/// ambient mode uses (100). Empty for a pod that nobody has touched.
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
    let marked = routing.rules()?.into_iter().filter(|rule| rule.mark != 0);
    found.extend(marked.map(|rule| format!("rule for mark {:#x}, table {}", rule.mark, rule.table)));
    found.extend(
        routing
            .routes(AMBIENT_TABLE)?
            .into_iter()
            .map(|route| format!("route to {} in table {AMBIENT_TABLE}", route.destination)),
    );
    Ok(found)
}

const AMBIENT_TABLE: u32 = 100;

//! Who is at the other end of a connection through the gateway of another network: what they say of themselves, looked up.

use std::sync::Arc;

use ambient_core::{Identity, Mesh, Workload, headers::Baggage};
use http::HeaderMap;

/// The workload that the other end is, if the mesh knows one of which all that is said is so, and that is who is proven. Where
/// it may be another of the same owner, it has no name of a pod.
pub(crate) fn workload(mesh: &Mesh, headers: &HeaderMap, proven: Option<&Identity>) -> Option<Arc<Workload>> {
    let said = Baggage::read(headers.get_all("baggage").iter().map(|value| value.as_bytes()));
    let workload = mesh.workload_afar(&said, proven?)?;
    Some(match workload.name == workload.workload_name {
        true => workload.clone(),
        false => Arc::new(Workload {
            name: "".into(),
            ..Workload::clone(workload)
        }),
    })
}

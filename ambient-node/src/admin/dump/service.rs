use std::{collections::BTreeMap, fmt};

use ambient_core::{Endpoints, NetworkAddress, Service, ServicePort};
use serde::{
    Serialize, Serializer,
    ser::{SerializeMap as _, SerializeSeq as _},
};

use super::workload::{Gateway, health};

/// A service with its endpoints.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct View<'a> {
    name: &'a str,
    namespace: &'a str,
    hostname: &'a str,
    #[serde(serialize_with = "addresses")]
    vips: &'a [NetworkAddress],
    #[serde(serialize_with = "ports")]
    ports: &'a [ServicePort],
    #[serde(serialize_with = "endpoints")]
    endpoints: &'a Endpoints,
    #[serde(skip_serializing_if = "Option::is_none")]
    waypoint: Option<Gateway<'a>>,
}

impl<'a> From<&'a Service> for View<'a> {
    fn from(s: &'a Service) -> Self {
        Self {
            name: s.short_name(),
            namespace: &s.name.namespace,
            hostname: &s.name.hostname,
            vips: &s.vips,
            ports: &s.ports,
            endpoints: &s.endpoints,
            waypoint: s.waypoint.as_ref().map(Gateway::from),
        }
    }
}

/// `NETWORK/IP`, with an empty network for the one that has no name.
pub(super) fn address(address: &NetworkAddress) -> impl fmt::Display {
    format!("{}/{}", address.network.as_str(), address.ip)
}

fn addresses<S: Serializer>(list: &&[NetworkAddress], to: S) -> Result<S::Ok, S::Error> {
    let mut seq = to.serialize_seq(Some(list.len()))?;
    for one in *list {
        seq.serialize_element(&address(one).to_string())?;
    }
    seq.end()
}

fn ports<S: Serializer>(list: &&[ServicePort], to: S) -> Result<S::Ok, S::Error> {
    to.collect_map(list.iter().map(|port| (port.port, port.target)))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EndpointView<'a> {
    workload_uid: &'a str,
    port: BTreeMap<u16, u16>,
    status: &'static str,
}

fn endpoints<S: Serializer>(list: &&Endpoints, to: S) -> Result<S::Ok, S::Error> {
    let mut map = to.serialize_map(Some(list.len()))?;
    for (uid, endpoint) in list.iter() {
        let view = EndpointView {
            workload_uid: uid.as_str(),
            port: endpoint.ports.clone(),
            status: health(endpoint.health),
        };
        map.serialize_entry(uid.as_str(), &view)?;
    }
    map.end()
}

//! The Gateway API's kinds: waypoints, and gateways of other networks.

use serde::Deserialize;

use super::{Invalid, Metadata, absent_if_null, address, dns_name, port_number};
use crate::objects::LabelSelector;

/// A waypoint, or the gateway of another network.
#[derive(Clone, Debug, Deserialize)]
pub struct Gateway {
    /// Name, labels and so on.
    pub metadata: Metadata,
    /// What it shall be.
    pub spec: GatewaySpec,
    /// What it is.
    #[serde(default, deserialize_with = "absent_if_null")]
    pub status: GatewayStatus,
}

/// What a gateway shall be.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewaySpec {
    /// Its class, such as `istio-waypoint`.
    #[serde(default, deserialize_with = "absent_if_null")]
    pub gateway_class_name: String,
    /// Where it listens.
    #[serde(default, deserialize_with = "absent_if_null")]
    pub listeners: Vec<Listener>,
}

/// Where a gateway listens.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Listener {
    /// The port.
    pub port: u16,
    /// What is spoken, such as `HBONE`.
    #[serde(default, deserialize_with = "absent_if_null")]
    pub protocol: String,
    /// Who may use it.
    #[serde(default, deserialize_with = "absent_if_null")]
    pub allowed_routes: AllowedRoutes,
}

/// Who may use a listener.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct AllowedRoutes {
    /// Those of which namespaces.
    #[serde(default, deserialize_with = "absent_if_null")]
    pub namespaces: RouteNamespaces,
}

/// Namespaces whose services and workloads may use a waypoint.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct RouteNamespaces {
    /// `Same`, `All` or `Selector`; absent, `Same`.
    #[serde(default)]
    pub from: Option<String>,
    /// Which, where `from` is `Selector`.
    #[serde(default)]
    pub selector: Option<LabelSelector>,
}

/// What a gateway is.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct GatewayStatus {
    /// Where it is reached; without one it is not ready, and nobody is sent there.
    #[serde(default, deserialize_with = "absent_if_null")]
    pub addresses: Vec<GatewayStatusAddress>,
}

/// Where a gateway is reached.
#[derive(Clone, Debug, Deserialize)]
pub struct GatewayStatusAddress {
    /// `Hostname` or `IPAddress`; absent, `IPAddress`.
    #[serde(default, rename = "type")]
    pub kind: Option<String>,
    /// The name or address.
    pub value: String,
}

impl GatewayStatusAddress {
    pub(in super::super) fn is_hostname(&self) -> bool {
        self.kind.as_deref() == Some("Hostname")
    }

    /// Whether it is an address, as it is where it does not say.
    pub(in super::super) fn is_ip(&self) -> bool {
        matches!(self.kind.as_deref(), None | Some("IPAddress"))
    }
}

impl Gateway {
    pub(super) fn check(&self) -> Result<(), Invalid> {
        for (at, listener) in self.spec.listeners.iter().enumerate() {
            port_number(format!("spec.listeners[{at}].port"), listener.port)?;
            let namespaces = &listener.allowed_routes.namespaces;
            let path = format!("spec.listeners[{at}].allowedRoutes.namespaces");
            match namespaces.from.as_deref() {
                None | Some("Same" | "All") => {}
                Some("Selector") if namespaces.selector.is_some() => {}
                Some("Selector") => return Err(Invalid::new(format!("{path}.selector"), "is missing")),
                Some(other) => {
                    let why = format!("{other:?} is not known: Same, All or Selector is wanted");
                    return Err(Invalid::new(format!("{path}.from"), why));
                }
            }
            let selector = namespaces.selector.as_ref().map(LabelSelector::check);
            if let Some(Err((at, why))) = selector {
                return Err(Invalid::new(format!("{path}.selector.{at}"), why));
            }
        }
        for (at, reached) in self.status.addresses.iter().enumerate() {
            let path = format!("status.addresses[{at}].value");
            if reached.is_hostname() {
                dns_name(&path, &reached.value)?;
            } else if reached.is_ip() {
                address(&path, &reached.value)?;
            }
        }
        Ok(())
    }
}

//! Istio's kinds for what is in the mesh and is no pod and no Service of Kubernetes.

use std::{collections::BTreeMap, net::IpAddr};

use ambient_authz::kubernetes::Labels;
use ambient_core::Identity;
use serde::Deserialize;

use super::{Invalid, Metadata, absent_if_null, dns_name, name_of, port_number, word};

/// Names and addresses that services go by which Kubernetes does not know.
#[derive(Clone, Debug, Deserialize)]
pub struct ServiceEntry {
    /// Name, labels and so on.
    pub metadata: Metadata,
    /// What it shall be.
    pub spec: ServiceEntrySpec,
    /// What a controller has given it.
    #[serde(default, deserialize_with = "absent_if_null")]
    pub status: ServiceEntryStatus,
}

/// What a ServiceEntry shall be. `exportTo` is not read: ambient mode does not go by it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceEntrySpec {
    /// DNS names, each a service of its own.
    #[serde(default, deserialize_with = "absent_if_null")]
    pub hosts: Vec<String>,
    /// Addresses and blocks of addresses that mean each of them.
    #[serde(default, deserialize_with = "absent_if_null")]
    pub addresses: Vec<String>,
    /// The ports of each of them.
    #[serde(default, deserialize_with = "absent_if_null")]
    pub ports: Vec<EntryPort>,
    /// `MESH_EXTERNAL` or `MESH_INTERNAL`; nothing is made of it.
    #[serde(default)]
    pub location: Option<String>,
    /// How endpoints are found; absent, `NONE`: what goes to an address goes there.
    #[serde(default)]
    pub resolution: Option<String>,
    /// The endpoints, where they are written here.
    #[serde(default, deserialize_with = "absent_if_null")]
    pub endpoints: Vec<WorkloadEntrySpec>,
    /// The pods and WorkloadEntries of its namespace that are endpoints.
    #[serde(default)]
    pub workload_selector: Option<WorkloadSelector>,
    /// Identities that its endpoints may prove besides their own; what is no SPIFFE ID is left alone.
    #[serde(default, deserialize_with = "absent_if_null")]
    pub subject_alt_names: Vec<String>,
}

/// What a controller has given a ServiceEntry.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct ServiceEntryStatus {
    /// Virtual addresses for hosts that have none of their own.
    #[serde(default, deserialize_with = "absent_if_null")]
    pub addresses: Vec<HostAddress>,
}

/// A virtual address that a controller has given a host.
#[derive(Clone, Debug, Deserialize)]
pub struct HostAddress {
    /// The address.
    pub value: String,
    /// Whose it is.
    #[serde(default)]
    pub host: Option<String>,
}

/// Pods and WorkloadEntries by their labels.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct WorkloadSelector {
    /// Labels, all of which must be there.
    #[serde(default, deserialize_with = "absent_if_null")]
    pub labels: Labels,
}

/// A port of a ServiceEntry.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EntryPort {
    /// The port that clients name.
    pub number: u16,
    /// Its name, by which endpoints may have another.
    #[serde(default)]
    pub name: Option<String>,
    /// What is spoken; nothing is made of it.
    #[serde(default)]
    pub protocol: Option<String>,
    /// The port of the endpoints; absent or 0, the same.
    #[serde(default, deserialize_with = "absent_if_null")]
    pub target_port: u16,
}

/// A workload that is no pod.
#[derive(Clone, Debug, Deserialize)]
pub struct WorkloadEntry {
    /// Name, labels and so on.
    pub metadata: Metadata,
    /// What it shall be.
    pub spec: WorkloadEntrySpec,
    /// What a controller says of it.
    #[serde(default, deserialize_with = "absent_if_null")]
    pub status: WorkloadEntryStatus,
}

/// What a workload that is no pod shall be; in a ServiceEntry, one of its endpoints.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadEntrySpec {
    /// Its IP address, or a DNS name.
    #[serde(default, deserialize_with = "absent_if_null")]
    pub address: String,
    /// Its ports by the names of ports of services.
    #[serde(default, deserialize_with = "absent_if_null")]
    pub ports: BTreeMap<String, u16>,
    /// Labels; those of the metadata count before them.
    #[serde(default, deserialize_with = "absent_if_null")]
    pub labels: Labels,
    /// The network of its address; absent, that of the cluster.
    #[serde(default)]
    pub network: Option<String>,
    /// `REGION/ZONE/SUBZONE`.
    #[serde(default)]
    pub locality: Option<String>,
    /// Its weight among the endpoints of a service; absent or 0, 1.
    #[serde(default, deserialize_with = "absent_if_null")]
    pub weight: u32,
    /// Its account; absent, `default`.
    #[serde(default)]
    pub service_account: Option<String>,
}

/// What a controller says of a WorkloadEntry.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct WorkloadEntryStatus {
    /// What holds of it; `Healthy` is read.
    #[serde(default, deserialize_with = "absent_if_null")]
    pub conditions: Vec<super::Condition>,
}

/// How a ServiceEntry's endpoints are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Resolution {
    None,
    Static,
    Dns,
}

impl ServiceEntry {
    pub(super) fn check(&self) -> Result<(), Invalid> {
        let spec = &self.spec;
        if spec.hosts.is_empty() {
            return Err(Invalid::new("spec.hosts", "is missing: a ServiceEntry needs a name"));
        }
        for (at, host) in spec.hosts.iter().enumerate() {
            let name = host.strip_prefix("*.").unwrap_or(host);
            dns_name(&format!("spec.hosts[{at}]"), name)?;
        }
        for (at, text) in spec.addresses.iter().enumerate() {
            if block(text).is_none() {
                let why = format!("{text:?} is neither an IP address nor a block of them such as 192.0.2.0/24");
                return Err(Invalid::new(format!("spec.addresses[{at}]"), why));
            }
        }
        for (at, port) in spec.ports.iter().enumerate() {
            port_number(format!("spec.ports[{at}].number"), port.number)?;
        }
        if let Some(location) = &spec.location {
            word("spec.location", location, &["MESH_EXTERNAL", "MESH_INTERNAL"])?;
        }
        if let Some(resolution) = &spec.resolution {
            word(
                "spec.resolution",
                resolution,
                &["NONE", "STATIC", "DNS", "DNS_ROUND_ROBIN", "DYNAMIC_DNS"],
            )?;
        }
        if !spec.endpoints.is_empty() && spec.workload_selector.is_some() {
            return Err(Invalid::new(
                "spec.workloadSelector",
                "stands beside endpoints: one of the two is wanted",
            ));
        }
        for (at, endpoint) in spec.endpoints.iter().enumerate() {
            let path = format!("spec.endpoints[{at}].");
            endpoint.check(&path, self.metadata.namespace())?;
            if self.resolution() == Resolution::Static && endpoint.address.parse::<IpAddr>().is_err() {
                let why = format!("{:?} is no IP address, which resolution STATIC wants", endpoint.address);
                return Err(Invalid::new(format!("{path}address"), why));
            }
        }
        for (at, address) in self.status.addresses.iter().enumerate() {
            super::address(&format!("status.addresses[{at}].value"), &address.value)?;
        }
        Ok(())
    }

    pub(in super::super) fn resolution(&self) -> Resolution {
        match self.spec.resolution.as_deref() {
            None | Some("NONE") => Resolution::None,
            Some("STATIC") => Resolution::Static,
            Some(_) => Resolution::Dns,
        }
    }

    pub(in super::super) fn is_dynamic(&self) -> bool {
        self.spec.resolution.as_deref() == Some("DYNAMIC_DNS")
    }

    /// The labels that select its endpoints; none where nothing does.
    pub(in super::super) fn selector(&self) -> Option<&Labels> {
        let labels = &self.spec.workload_selector.as_ref()?.labels;
        (!labels.is_empty()).then_some(labels)
    }
}

impl WorkloadEntry {
    pub(super) fn check(&self) -> Result<(), Invalid> {
        self.spec.check("spec.", self.metadata.namespace())
    }
}

impl WorkloadEntrySpec {
    fn check(&self, path: &str, namespace: &str) -> Result<(), Invalid> {
        let field = |name: &str| format!("{path}{name}");
        if self.address.is_empty() {
            return Err(Invalid::new(field("address"), "is missing: an IP address or a DNS name is wanted"));
        }
        if self.address.starts_with("unix:") {
            let why = format!("{:?} is a socket of one machine, which nobody reaches over a network", self.address);
            return Err(Invalid::new(field("address"), why));
        }
        if self.address.parse::<IpAddr>().is_err() {
            let why = format!("{:?} is neither an IP address nor a DNS name", self.address);
            dns_name("", &self.address).map_err(|_| Invalid::new(field("address"), why))?;
        }
        for (name, port) in &self.ports {
            port_number(field(&format!("ports.{name}")), *port)?;
        }
        let account = self.service_account.as_deref().filter(|account| !account.is_empty());
        if let Some(account) = account {
            name_of(&field("serviceAccount"), account)?;
            Identity::new(&ambient_core::TrustDomain::default(), namespace, account)
                .map_err(|e| Invalid::new(field("serviceAccount"), e.to_string()))?;
        }
        Ok(())
    }
}

/// An address or a block, and the length of its prefix where it is a block.
pub(in super::super) fn block(text: &str) -> Option<(IpAddr, Option<u8>)> {
    let Some((ip, length)) = text.split_once('/') else {
        return Some((text.parse().ok()?, None));
    };
    let ip: IpAddr = ip.parse().ok()?;
    let whole = if ip.is_ipv4() { 32 } else { 128 };
    let length: u8 = length.bytes().all(|b| b.is_ascii_digit()).then(|| length.parse().ok()).flatten()?;
    match length {
        length if length == whole => Some((ip, None)),
        length if length < whole => Some((ip, Some(length))),
        _ => None,
    }
}

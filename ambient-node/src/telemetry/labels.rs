//! The labels of Istio's TCP metrics, from what the mesh knows of both ends.

use std::{
    fmt,
    sync::{Arc, LazyLock},
};

use ambient_core::{Identity, Workload};
use prometheus_client::encoding::{EncodeLabelSet, LabelSetEncoder};

use super::ends::{Direction, Ends, Flag};

/// What an absent value is called.
static UNKNOWN: LazyLock<Arc<str>> = LazyLock::new(|| "unknown".into());

/// The values of the labels; [`EncodeLabelSet::encode`] gives them their names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TrafficLabels {
    reporter: &'static str,
    flag: &'static str,
    security: &'static str,
    source: End,
    destination: End,
    /// Hostname, namespace and short name of the service.
    service: [Arc<str>; 3],
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct End {
    workload: Arc<str>,
    canonical: Arc<str>,
    revision: Arc<str>,
    namespace: Arc<str>,
    principal: Arc<str>,
    cluster: Arc<str>,
    region: Arc<str>,
    zone: Arc<str>,
}

impl TrafficLabels {
    pub(crate) fn new(ends: &Ends, flag: Flag) -> Self {
        let service = ends.service.as_deref();
        let part = |text: Option<Arc<str>>| text.unwrap_or_else(|| UNKNOWN.clone());
        // Who the destination is meant to be, where it has not proven it: Istio's, and what tells that it is no proof is `security`.
        let meant = match (&ends.destination_identity, &ends.destination_workload) {
            (None, Some(workload)) => workload.identity().ok(),
            _ => None,
        };
        let destination = ends.destination_identity.as_ref().or(meant.as_ref());
        Self {
            reporter: ends.direction.reporter(),
            flag: flag.as_str(),
            security: if ends.mutual_tls { "mutual_tls" } else { "unknown" },
            source: End::new(ends.source_workload.as_deref(), ends.source_identity.as_ref()),
            destination: End::new(ends.destination_workload.as_deref(), destination),
            service: [
                part(service.map(|s| s.name.hostname.clone())),
                part(service.map(|s| s.name.namespace.clone())),
                part(service.map(|s| s.short_name().into())),
            ],
        }
    }

    /// What stands for everything when no more series may be made.
    pub(crate) fn overflow(direction: Direction) -> Self {
        Self {
            reporter: direction.reporter(),
            flag: "-",
            security: "unknown",
            source: End::new(None, None),
            destination: End::new(None, None),
            service: [UNKNOWN.clone(), UNKNOWN.clone(), UNKNOWN.clone()],
        }
    }

    pub(crate) fn direction(&self) -> Direction {
        if self.reporter == Direction::Outbound.reporter() {
            Direction::Outbound
        } else {
            Direction::Inbound
        }
    }
}

/// The values of the labels of names that are looked up.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct LookupLabels {
    source: End,
    hostname: Arc<str>,
}

impl LookupLabels {
    pub(super) fn new(source: &Workload, identity: &Identity, hostname: &Arc<str>) -> Self {
        Self {
            source: End::new(Some(source), Some(identity)),
            hostname: hostname.clone(),
        }
    }

    /// What stands for everything when no more series may be made.
    pub(super) fn overflow() -> Self {
        Self {
            source: End::new(None, None),
            hostname: UNKNOWN.clone(),
        }
    }
}

impl EncodeLabelSet for LookupLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        let source = &self.source;
        // Istio's names, in Istio's order.
        let pairs: [(&str, &str); 9] = [
            ("source_workload", &source.workload),
            ("source_canonical_service", &source.canonical),
            ("source_canonical_revision", &source.revision),
            ("source_workload_namespace", &source.namespace),
            ("source_principal", &source.principal),
            ("source_app", &source.canonical),
            ("source_version", &source.revision),
            ("source_cluster", &source.cluster),
            ("hostname", &self.hostname),
        ];
        pairs.encode(encoder)
    }
}

impl End {
    fn new(workload: Option<&Workload>, identity: Option<&Identity>) -> Self {
        let take = |value: Option<&Arc<str>>| value.filter(|v| !v.is_empty()).unwrap_or(&UNKNOWN).clone();
        // Whom the mesh does not know has proven that much.
        let proven = || identity.map_or_else(|| UNKNOWN.clone(), |id| id.namespace().into());
        Self {
            workload: take(workload.map(|w| &w.workload_name)),
            canonical: take(workload.map(|w| &w.canonical_name)),
            revision: take(workload.map(|w| &w.canonical_revision)),
            namespace: workload.map_or_else(proven, |w| take(Some(&w.namespace))),
            principal: identity.map_or_else(|| UNKNOWN.clone(), Identity::shared),
            cluster: take(workload.map(|w| &w.cluster)),
            region: take(workload.map(|w| &w.locality[0])),
            zone: take(workload.map(|w| &w.locality[1])),
        }
    }
}

impl EncodeLabelSet for TrafficLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        let (source, destination) = (&self.source, &self.destination);
        // Istio's names, in Istio's order.
        let pairs: [(&str, &str); 27] = [
            ("reporter", self.reporter),
            ("source_workload", &source.workload),
            ("source_canonical_service", &source.canonical),
            ("source_canonical_revision", &source.revision),
            ("source_workload_namespace", &source.namespace),
            ("source_principal", &source.principal),
            ("source_app", &source.canonical),
            ("source_version", &source.revision),
            ("source_cluster", &source.cluster),
            ("destination_service", &self.service[0]),
            ("destination_service_namespace", &self.service[1]),
            ("destination_service_name", &self.service[2]),
            ("destination_workload", &destination.workload),
            ("destination_canonical_service", &destination.canonical),
            ("destination_canonical_revision", &destination.revision),
            ("destination_workload_namespace", &destination.namespace),
            ("destination_principal", &destination.principal),
            ("destination_app", &destination.canonical),
            ("destination_version", &destination.revision),
            ("destination_cluster", &destination.cluster),
            ("request_protocol", "tcp"),
            ("response_flags", self.flag),
            ("connection_security_policy", self.security),
            ("source_region", &source.region),
            ("source_zone", &source.zone),
            ("destination_region", &destination.region),
            ("destination_zone", &destination.zone),
        ];
        for pair in pairs {
            prometheus_client::encoding::EncodeLabel::encode(&pair, encoder.encode_label())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// They are made for each connection, as a rule to find a series that is there.
    #[test]
    fn texts_of_the_mesh_are_shared_and_not_copied() {
        let workload = Workload::new("uid", "shop", "cart");
        let identity = workload.identity().unwrap();
        let end = End::new(Some(&workload), Some(&identity));
        assert_eq!(&*end.principal, "spiffe://cluster.local/ns/shop/sa/default");
        assert!(std::ptr::eq(&*end.principal, identity.as_str()));
        assert!(Arc::ptr_eq(&end.namespace, &workload.namespace));
    }
}

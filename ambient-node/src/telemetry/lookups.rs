//! Istio's count of names that were looked up because an endpoint has a name alone.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use ambient_core::{Identity, Mesh, Workload, WorkloadUid};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter},
};

use super::{labels::LookupLabels, series::KEPT};

/// The most label sets: who asks times what is asked for. What comes after is counted under `unknown`.
const MOST: usize = 1_000;

/// What is counted.
#[derive(Debug)]
pub(super) struct NamesAsked {
    all: Mutex<HashMap<LookupLabels, Asked>>,
    most: usize,
}

#[derive(Debug)]
struct Asked {
    count: u64,
    /// Whose it was last, and when; the overflow is nobody's.
    of: Option<WorkloadUid>,
    used: Instant,
}

impl Default for NamesAsked {
    fn default() -> Self {
        Self {
            all: Mutex::default(),
            most: MOST,
        }
    }
}

impl NamesAsked {
    /// A connection of a workload has had a name looked up.
    pub(super) fn count(&self, source: &Workload, identity: &Identity, hostname: &Arc<str>, now: Instant) {
        let mut labels = LookupLabels::new(source, identity, hostname);
        let mut of = Some(source.uid.clone());
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= self.most && !all.contains_key(&labels) {
            (labels, of) = (LookupLabels::overflow(), None);
        }
        let entry = all.entry(labels).or_insert(Asked {
            count: 0,
            of: None,
            used: now,
        });
        *entry = Asked {
            count: entry.count + 1,
            of,
            used: now,
        };
    }

    /// Lets go the sets under which nothing was counted for as long as Istio's other series stay: those whose workload has gone, and
    /// all of them where there is little room left.
    pub(super) fn sweep(&self, mesh: &Mesh, now: Instant) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let is_short = all.len() > self.most - self.most / 4;
        all.retain(|_, asked| {
            let gone = asked.of.as_ref().is_some_and(|uid| mesh.workload(uid).is_none());
            !(gone || is_short) || now.saturating_duration_since(asked.used) < KEPT
        });
    }
}

/// Writes all of it into a page.
#[derive(Debug)]
pub(super) struct Written(pub(super) Arc<NamesAsked>);

impl Collector for Written {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // Copied, so that no connection waits for whoever reads the page.
        let all: Vec<(LookupLabels, u64)> = {
            let all = self.0.all.lock().unwrap_or_else(PoisonError::into_inner);
            all.iter().map(|(labels, asked)| (labels.clone(), asked.count)).collect()
        };
        if all.is_empty() {
            return Ok(());
        }
        let help = "The total number of requests that looked up the name of an endpoint (unstable)";
        let mut family = encoder.encode_descriptor("istio_on_demand_dns", help, None, MetricType::Counter)?;
        for (labels, count) in &all {
            ConstCounter::new(*count).encode(family.encode_family(labels)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use ambient_core::mesh::Update;
    use prometheus_client::{encoding::text, registry::Registry};

    use super::*;
    use crate::clock;

    fn workload(name: &str) -> Workload {
        let mut workload = Workload::new(name, "shop", name);
        workload.workload_name = format!("{name}-deployment").as_str().into();
        workload.canonical_name = name.into();
        workload.canonical_revision = "v1".into();
        workload.cluster = "c1".into();
        workload
    }

    fn identity() -> Identity {
        "spiffe://cluster.local/ns/shop/sa/a".parse().unwrap()
    }

    fn page(names: &Arc<NamesAsked>) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Written(names.clone())));
        let mut page = String::new();
        text::encode(&mut page, &registry).unwrap();
        page
    }

    #[test]
    fn a_name_is_counted_under_istios_labels_and_goes_with_who_asked() {
        let names = Arc::<NamesAsked>::default();
        assert_eq!(page(&names), "# EOF\n");
        let (cart, begun) = (workload("cart"), clock::steady());
        let hostname = "db.example".into();
        names.count(&cart, &identity(), &hostname, begun);
        names.count(&cart, &identity(), &hostname, begun);
        let line = "istio_on_demand_dns_total{source_workload=\"cart-deployment\",source_canonical_service=\"cart\",\
                    source_canonical_revision=\"v1\",source_workload_namespace=\"shop\",\
                    source_principal=\"spiffe://cluster.local/ns/shop/sa/a\",source_app=\"cart\",source_version=\"v1\",\
                    source_cluster=\"c1\",hostname=\"db.example\"} 2";
        let told = page(&names);
        assert!(told.contains("# TYPE istio_on_demand_dns counter\n"), "{told}");
        assert!(told.lines().any(|told| told == line), "{told}");
        let mesh = Mesh::default().apply([Update::Workload(cart.into())]);
        let later = begun + KEPT;
        names.sweep(&mesh, later);
        assert_ne!(page(&names), "# EOF\n", "it is there");
        names.sweep(&Mesh::default(), later - std::time::Duration::from_secs(1));
        assert_ne!(page(&names), "# EOF\n", "it has gone, and not for long");
        names.sweep(&Mesh::default(), later);
        assert_eq!(page(&names), "# EOF\n");
    }

    #[test]
    fn they_are_bounded_and_nothing_goes_uncounted() {
        let names = Arc::new(NamesAsked {
            most: 3,
            ..NamesAsked::default()
        });
        for n in 0..10 {
            names.count(
                &workload("cart"),
                &identity(),
                &format!("{n}.example").as_str().into(),
                clock::steady(),
            );
        }
        let told = page(&names);
        let values = told.lines().filter(|line| line.starts_with("istio_on_demand_dns_total{"));
        let values: Vec<u64> = values.map(|line| line.rsplit_once(' ').unwrap().1.parse().unwrap()).collect();
        assert_eq!((values.len(), values.iter().sum::<u64>()), (4, 10), "{told}");
        assert!(told.contains("hostname=\"unknown\"} 7\n"), "{told}");
        // Who asks is there still, and asks for other names now.
        let mesh = Mesh::default().apply([Update::Workload(workload("cart").into())]);
        names.sweep(&mesh, clock::steady() + KEPT);
        assert_eq!(page(&names), "# EOF\n");
    }
}

//! What is counted of pods' DNS: under Istio's names what Istio counts, and what became of queries besides.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

use ambient_core::Workload;
use ambient_dns::{
    Transport,
    observe::{self, Event, Query},
};
use prometheus_client::{
    encoding::{EncodeLabel as _, EncodeLabelSet, LabelSetEncoder},
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::{Registry, Unit},
};

#[cfg(test)]
mod tests;

/// The most services of which queries are counted apart; those of others are counted as of `unknown`. Each makes at most
/// 44 series of each family, and as a rule four.
const MOST_SOURCES: usize = 500;

/// Bounds of the histogram, in seconds: ztunnel's.
const BOUNDS: [f64; 6] = [0.0005, 0.001, 0.01, 0.1, 1.0, 5.0];

/// What an absent value is called.
static UNKNOWN: LazyLock<Arc<str>> = LazyLock::new(|| "unknown".into());

/// Counts of DNS queries.
#[derive(Debug)]
pub(crate) struct DnsMetrics {
    requests: Family<DnsLabels, Counter>,
    forwarded: Family<DnsLabels, Counter>,
    failures: Family<DnsLabels, Counter>,
    took: Family<DnsLabels, Histogram, fn() -> Histogram>,
    responses: Family<Pair, Counter>,
    dropped: Family<Pair, Counter>,
    /// How many pods count under a source.
    sources: Mutex<HashMap<DnsSource, usize>>,
    most_sources: usize,
}

/// Whose queries they are: canonical service and revision.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct DnsSource(Arc<str>, Arc<str>);

impl DnsSource {
    fn of(workload: &Workload) -> Self {
        let take = |value: &Arc<str>| if value.is_empty() { &*UNKNOWN } else { value }.clone();
        Self(take(&workload.canonical_name), take(&workload.canonical_revision))
    }

    fn unknown() -> Self {
        Self(UNKNOWN.clone(), UNKNOWN.clone())
    }

    /// Whether a workload's queries are counted under it.
    pub(crate) fn is_of(&self, workload: &Workload) -> bool {
        *self == Self::of(workload)
    }
}

/// Istio's labels.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct DnsLabels {
    query: Query,
    source: DnsSource,
}

impl EncodeLabelSet for DnsLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        let kind = self.query.kind.to_ascii_lowercase();
        let protocol = match self.query.transport {
            Transport::Udp => "udp",
            Transport::Tcp => "tcp",
        };
        let pairs: [(&str, &str); 4] = [
            ("request_query_type", &kind),
            ("request_protocol", protocol),
            ("source_canonical_service", &self.source.0),
            ("source_canonical_revision", &self.source.1),
        ];
        pairs.into_iter().try_for_each(|pair| pair.encode(encoder.encode_label()))
    }
}

/// One label or two, each of few values.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Pair(&'static str, &'static str, Option<(&'static str, &'static str)>);

impl EncodeLabelSet for Pair {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        let pairs = std::iter::once((self.0, self.1)).chain(self.2);
        pairs.into_iter().try_for_each(|pair| pair.encode(encoder.encode_label()))
    }
}

impl DnsMetrics {
    /// Counts that are told by a registry.
    pub(super) fn new(registry: &mut Registry) -> Self {
        let new = Self {
            requests: Family::default(),
            forwarded: Family::default(),
            failures: Family::default(),
            took: Family::new_with_constructor(|| Histogram::new(BOUNDS)),
            responses: Family::default(),
            dropped: Family::default(),
            sources: Mutex::default(),
            most_sources: MOST_SOURCES,
        };
        registry.register(
            "istio_dns_requests",
            "Total number of DNS requests (unstable)",
            new.requests.clone(),
        );
        registry.register(
            "istio_dns_upstream_requests",
            "Total number of DNS requests forwarded to upstream (unstable)",
            new.forwarded.clone(),
        );
        registry.register(
            "istio_dns_upstream_failures",
            "Total number of DNS requests that failed to forward upstream (unstable)",
            new.failures.clone(),
        );
        registry.register_with_unit(
            "istio_dns_upstream_request_duration",
            "Total time in seconds Istio takes to get DNS response from upstream (unstable)",
            Unit::Seconds,
            new.took.clone(),
        );
        registry.register(
            "ambient_dns_responses",
            "DNS responses, by code and by who has answered (unstable)",
            new.responses.clone(),
        );
        registry.register(
            "ambient_dns_dropped",
            "DNS queries to which nothing is said, by reason (unstable)",
            new.dropped.clone(),
        );
        new
    }

    /// Takes the source of a workload's queries, to be [released](Self::release); the unknown one where there is no room
    /// for another.
    pub(crate) fn source(&self, workload: &Workload) -> DnsSource {
        let source = DnsSource::of(workload);
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        // That of nobody in particular is not counted: it is never let go.
        if source == DnsSource::unknown() || (sources.len() >= self.most_sources && !sources.contains_key(&source)) {
            return DnsSource::unknown();
        }
        *sources.entry(source.clone()).or_default() += 1;
        source
    }

    /// Lets go a source. With the last who has it, its series go.
    pub(crate) fn release(&self, source: &DnsSource) {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(users) = sources.get_mut(source) else { return };
        *users -= 1;
        if *users > 0 {
            return;
        }
        sources.remove(source);
        for kind in observe::KINDS {
            for transport in [Transport::Udp, Transport::Tcp] {
                let labels = DnsLabels {
                    query: Query { kind, transport },
                    source: source.clone(),
                };
                self.requests.remove(&labels);
                self.forwarded.remove(&labels);
                self.failures.remove(&labels);
                self.took.remove(&labels);
            }
        }
    }

    /// Counts an event of somebody's query.
    pub(crate) fn count(&self, source: Option<&DnsSource>, event: &Event) {
        let labels = |query: &Query| DnsLabels {
            query: *query,
            source: source.cloned().unwrap_or_else(DnsSource::unknown),
        };
        match event {
            Event::Asked(query) => {
                self.requests.get_or_create(&labels(query)).inc();
            }
            Event::Forwarded(query) => {
                self.forwarded.get_or_create(&labels(query)).inc();
            }
            Event::Failed { query, .. } => {
                self.failures.get_or_create(&labels(query)).inc();
            }
            Event::Took { query, took } => self.took.get_or_create(&labels(query)).observe(took.as_secs_f64()),
            Event::Answered { source, code, .. } => {
                let pair = Pair("rcode", code, Some(("source", source.as_str())));
                self.responses.get_or_create(&pair).inc();
            }
            Event::Dropped(why) => {
                self.dropped.get_or_create(&Pair("reason", why.as_str(), None)).inc();
            }
            _ => {}
        }
    }
}

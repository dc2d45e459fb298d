//! The node's metrics, under Istio's names where Istio has one.

use std::{
    collections::HashSet,
    fmt, io,
    sync::{Mutex, PoisonError},
};

use ambient_authz::policy::{Fallback, Refuses};
use prometheus_client::{
    encoding::{EncodeLabelSet, LabelSetEncoder, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::{dns::DnsMetrics, labels::TrafficLabels, live::Live};

#[cfg(test)]
mod tests;

/// The most label sets that traffic may make; what comes after them is counted under `unknown` ends.
///
/// Workloads come from the mesh and not from peers, so that only a very large mesh comes near. Five families of some 900
/// bytes a line make a page of 45 MB at this bound.
const MOST_SERIES: usize = 10_000;

/// Every metric of the node.
pub(crate) struct Metrics {
    /// What is open now.
    pub(crate) live: Live,
    /// Of pods' DNS.
    pub(crate) dns: DnsMetrics,
    registry: Registry,
    series: Mutex<HashSet<TrafficLabels>>,
    most_series: usize,
    opened: Family<TrafficLabels, Counter>,
    closed: Family<TrafficLabels, Counter>,
    failed: Family<TrafficLabels, Counter>,
    sent: Family<TrafficLabels, Counter>,
    received: Family<TrafficLabels, Counter>,
    series_folded: Counter,
    handshakes_refused: Counter,
    connections_shed: Counter,
    pods: Gauge,
    pods_uncovered: Gauge,
    policies_unreadable: Family<Label, Gauge>,
    policies_missing: Family<Label, Gauge>,
    log_lines_lost: Counter,
}

/// A single label: its name and its value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Label(&'static str, &'static str);

impl EncodeLabelSet for Label {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        [(self.0, self.1)].encode(encoder)
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::with_most_series(MOST_SERIES)
    }
}

impl Metrics {
    fn with_most_series(most_series: usize) -> Self {
        let mut registry = Registry::default();
        let mut new = Self {
            live: Live::default(),
            dns: DnsMetrics::new(&mut registry),
            registry,
            series: Mutex::default(),
            most_series,
            opened: Family::default(),
            closed: Family::default(),
            failed: Family::default(),
            sent: Family::default(),
            received: Family::default(),
            series_folded: Counter::default(),
            handshakes_refused: Counter::default(),
            connections_shed: Counter::default(),
            pods: Gauge::default(),
            pods_uncovered: Gauge::default(),
            policies_unreadable: Family::default(),
            policies_missing: Family::default(),
            log_lines_lost: super::log::lines_lost(),
        };
        let registry = &mut new.registry;
        registry.register(
            "istio_tcp_connections_opened",
            "The total number of TCP connections opened",
            new.opened.clone(),
        );
        registry.register(
            "istio_tcp_connections_closed",
            "The total number of TCP connections closed",
            new.closed.clone(),
        );
        registry.register(
            "istio_tcp_connections_failed",
            "The total number of TCP connections that did not end orderly (unstable)",
            new.failed.clone(),
        );
        registry.register(
            "istio_tcp_sent_bytes",
            "The total number of bytes of responses over TCP connections",
            new.sent.clone(),
        );
        registry.register(
            "istio_tcp_received_bytes",
            "The total number of bytes of requests over TCP connections",
            new.received.clone(),
        );
        registry.register(
            "ambient_series_folded",
            "Connections counted under unknown ends, because the bound on series was reached (unstable)",
            new.series_folded.clone(),
        );
        registry.register(
            "ambient_handshakes_refused",
            "Tunnels refused in the handshake (unstable)",
            new.handshakes_refused.clone(),
        );
        registry.register(
            "ambient_connections_shed",
            "Connections reset at once, because a pod had too many (unstable)",
            new.connections_shed.clone(),
        );
        registry.register(
            "ambient_pods_not_captured",
            "Pods that are meant to be in the mesh and whose capture is not proven (unstable)",
            new.pods_uncovered.clone(),
        );
        registry.register(
            "ambient_policies_unreadable",
            "Policies whose present version cannot be read, by what is in force instead (unstable)",
            new.policies_unreadable.clone(),
        );
        registry.register(
            "ambient_policies_missing",
            "Policies that this node's workloads list and that have not come, by whom each refuses (unstable)",
            new.policies_missing.clone(),
        );
        registry.register(
            "workload_manager_active_proxy_count",
            "Pods that this node serves (unstable)",
            new.pods.clone(),
        );
        registry.register(
            "ambient_log_lines_lost",
            "Log lines dropped, because the reader of the log was too slow (unstable)",
            new.log_lines_lost.clone(),
        );
        new
    }

    pub(crate) fn opened(&self, labels: &TrafficLabels) {
        self.opened.get_or_create(&self.bounded(labels)).inc();
    }

    /// `requested` bytes went from client to server, `answered` back: the same at both reporters, as Istio counts.
    pub(crate) fn closed(&self, labels: &TrafficLabels, failed: bool, requested: u64, answered: u64) {
        let labels = self.bounded(labels);
        self.closed.get_or_create(&labels).inc();
        if failed {
            self.failed.get_or_create(&labels).inc();
        }
        self.received.get_or_create(&labels).inc_by(requested);
        self.sent.get_or_create(&labels).inc_by(answered);
    }

    pub(crate) fn handshake_refused(&self) {
        self.handshakes_refused.inc();
    }

    pub(crate) fn connection_shed(&self) {
        self.connections_shed.inc();
    }

    pub(crate) fn serve_pods(&self, count: usize) {
        self.pods.set(count.try_into().unwrap_or(i64::MAX));
    }

    /// Pods that are meant to be in the mesh and whose capture is not proven now.
    pub(crate) fn uncovered_pods(&self, count: usize) {
        self.pods_uncovered.set(count.try_into().unwrap_or(i64::MAX));
    }

    /// What is in force in the place of each policy that cannot be read now.
    pub(crate) fn unreadable_policies(&self, fallbacks: impl Iterator<Item = Option<Fallback>>) {
        let all: Vec<_> = fallbacks.collect();
        for (fallback, instead) in [
            (Fallback::LastGood, "last_good"),
            (Fallback::Refusal, "refusal"),
            (Fallback::Nothing, "nothing"),
        ] {
            let count = all.iter().filter(|found| **found == Some(fallback)).count();
            let count = count.try_into().unwrap_or(i64::MAX);
            self.policies_unreadable.get_or_create(&Label("instead", instead)).set(count);
        }
    }

    /// Whom each policy refuses that is listed and has not come.
    pub(crate) fn missing_policies(&self, refuses: impl Iterator<Item = Refuses>) {
        let all: Vec<_> = refuses.collect();
        for (whom, label) in [
            (Refuses::Everybody, "everybody"),
            (Refuses::Plaintext, "plaintext"),
            (Refuses::Nobody, "nobody"),
        ] {
            let count = all.iter().filter(|found| **found == whom).count();
            let count = count.try_into().unwrap_or(i64::MAX);
            self.policies_missing.get_or_create(&Label("refuses", label)).set(count);
        }
    }

    /// All of it as OpenMetrics text.
    #[cfg(test)]
    pub(crate) fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        text::encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// All of it as OpenMetrics text, as it is made.
    pub(crate) fn write(&self, out: &mut impl io::Write) -> io::Result<()> {
        let mut text = Text { out, failed: None };
        let encoded = text::encode(&mut text, &self.registry);
        match (text.failed, encoded) {
            (Some(error), _) => Err(error),
            (None, Err(error)) => Err(io::Error::other(error)),
            (None, Ok(())) => Ok(()),
        }
    }

    fn bounded(&self, labels: &TrafficLabels) -> TrafficLabels {
        let mut series = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        if series.contains(labels) {
            return labels.clone();
        }
        if series.len() < self.most_series {
            series.insert(labels.clone());
            return labels.clone();
        }
        self.series_folded.inc();
        TrafficLabels::overflow(labels.direction())
    }
}

/// A text that goes on as bytes; keeps the error that a text cannot tell.
struct Text<'a, W> {
    out: &'a mut W,
    failed: Option<io::Error>,
}

impl<W: io::Write> fmt::Write for Text<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.out.write_all(text.as_bytes()).map_err(|error| {
            self.failed = Some(error);
            fmt::Error
        })
    }
}

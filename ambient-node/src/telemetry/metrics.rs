//! The node's metrics, under Istio's names where Istio has one.

use std::{
    fmt, fs, io,
    sync::{Arc, OnceLock},
    time::{Duration, Instant, SystemTime},
};

use ambient_authz::policy::{Fallback, Refuses};
use ambient_control::{KnownUntil, LastHeard, Source, StreamCounts};
use ambient_core::{Identity, Observer, Workload, observe::Event};
use prometheus_client::{
    encoding::{EncodeLabelSet, LabelSetEncoder, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use super::{
    dns::DnsMetrics,
    ends::{Direction, Ends, Flag},
    live::Live,
    lookups::NamesAsked,
    reason::Reason,
    runtimes::Counted,
    series::{Series, Traffic},
};
use crate::{certificates::Outcomes, clock, state::Snapshot};

mod registry;
#[cfg(test)]
mod tests;

/// Every metric of the node.
pub(crate) struct Metrics {
    /// What is open now.
    pub(crate) live: Live,
    /// Of pods' DNS.
    pub(crate) dns: DnsMetrics,
    /// What is counted here, of bounded length: written at a stroke.
    registry: Registry,
    /// What is copied before it is written, and may be long.
    listed: Registry,
    /// Who is told of connections besides.
    observer: OnceLock<Arc<dyn Observer>>,
    traffic: Arc<Traffic>,
    sockets_open: Family<Label, Gauge>,
    failures: Family<Labels, Counter>,
    revoked: Family<Label, Counter>,
    names_asked: Arc<NamesAsked>,
    connect_seconds: Family<Labels, Histogram>,
    first_byte_seconds: Family<Labels, Histogram>,
    handshake_seconds: Family<Labels, Histogram>,
    series: Gauge,
    build: Family<Labels, Gauge>,
    open_fds: Gauge,
    max_fds: Gauge,
    resident_memory: Gauge,
    handshakes_refused: Counter,
    connections_shed: Counter,
    pods: Gauge,
    pods_started: Counter,
    pods_stopped: Counter,
    pods_pending: Gauge,
    pods_uncovered: Gauge,
    pods_with_strangers: Gauge,
    kept: Gauge,
    kept_closed: Counter,
    pods_repaired: Counter,
    connections_around: Counter,
    policies_unreadable: Family<Label, Gauge>,
    policies_missing: Family<Label, Gauge>,
    log_lines_lost: Counter,
    tasks_restarted: Counter,
    accept_failures: Counter,
    streams_given_up: Counter,
    state_age: Gauge,
    trust_age: Gauge,
    certificates_missing: Gauge,
    certificates_refused: Gauge,
    certificate_requests: Outcomes,
    state_faults: Gauge,
    known_until: Gauge,
    /// Whom the ages are asked of, and since when.
    ages: OnceLock<Ages>,
    /// Streams from a control plane, where there are any.
    streams: Arc<OnceLock<StreamCounts>>,
    /// Whom the end of this node's own certificate is asked of.
    knows: OnceLock<KnownUntil>,
    /// Of the threads that move bytes.
    runtimes: Arc<OnceLock<Vec<Counted>>>,
}

/// Where state and trust come from, as far as that can be old.
struct Ages {
    begun: SystemTime,
    state: Option<LastHeard>,
    trust: Option<LastHeard>,
}

/// Half a millisecond to ten seconds: from within a node to a connect that times out.
const SECONDS: [f64; 14] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

fn seconds<L: Clone + std::hash::Hash + Eq>() -> Family<L, Histogram> {
    Family::new_with_constructor(|| Histogram::new(SECONDS))
}

/// A single label: its name and its value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Label(&'static str, &'static str);

impl EncodeLabelSet for Label {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        [(self.0, self.1)].encode(encoder)
    }
}

/// Two of them.
type Labels = [(&'static str, &'static str); 2];

/// A socket that is open.
#[derive(Debug)]
pub(crate) struct OpenSocket(Gauge);

impl Drop for OpenSocket {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::counting(Traffic::default())
    }
}

impl Metrics {
    fn counting(traffic: Traffic) -> Self {
        let mut registry = Registry::default();
        // Istio's dashboards look for the name of its own proxy.
        let mut new = Self::unlisted(traffic, &mut registry, "ztunnel");
        registry::add(&mut registry, &new);
        registry::list(&mut new.listed, &new.traffic, &new.streams, &new.names_asked, &new.runtimes);
        new.registry = registry;
        new
    }

    /// Those of an enrolment whose proxy is another process: of connections it has none to tell.
    pub(crate) fn of_enrolment() -> Self {
        let mut new = Self::unlisted(Traffic::default(), &mut Registry::default(), "ambient-enrol");
        let mut registry = Registry::default();
        registry::add_of_enrolment(&mut registry, &new);
        new.registry = registry;
        new
    }

    /// Those of DNS are listed alone.
    fn unlisted(traffic: Traffic, registry: &mut Registry, component: &'static str) -> Self {
        let new = Self {
            live: Live::default(),
            dns: DnsMetrics::new(registry),
            registry: Registry::default(),
            listed: Registry::default(),
            observer: OnceLock::new(),
            traffic: Arc::new(traffic),
            sockets_open: Family::default(),
            failures: Family::default(),
            revoked: Family::default(),
            names_asked: Arc::default(),
            connect_seconds: seconds(),
            first_byte_seconds: seconds(),
            handshake_seconds: seconds(),
            series: Gauge::default(),
            build: Family::default(),
            open_fds: Gauge::default(),
            max_fds: Gauge::default(),
            resident_memory: Gauge::default(),
            handshakes_refused: Counter::default(),
            connections_shed: Counter::default(),
            pods: Gauge::default(),
            pods_started: Counter::default(),
            pods_stopped: Counter::default(),
            pods_pending: Gauge::default(),
            pods_uncovered: Gauge::default(),
            pods_with_strangers: Gauge::default(),
            kept: Gauge::default(),
            kept_closed: Counter::default(),
            pods_repaired: Counter::default(),
            connections_around: Counter::default(),
            policies_unreadable: Family::default(),
            policies_missing: Family::default(),
            log_lines_lost: super::log::lines_lost(),
            tasks_restarted: Counter::default(),
            accept_failures: Counter::default(),
            streams_given_up: Counter::default(),
            state_age: Gauge::default(),
            trust_age: Gauge::default(),
            certificates_missing: Gauge::default(),
            certificates_refused: Gauge::default(),
            certificate_requests: Outcomes::default(),
            state_faults: Gauge::default(),
            known_until: Gauge::default(),
            ages: OnceLock::new(),
            streams: Arc::default(),
            knows: OnceLock::new(),
            runtimes: Arc::default(),
        };
        // Istio's dashboards look for the name of its own proxy.
        let build = [("component", component), ("tag", env!("CARGO_PKG_VERSION"))];
        new.build.get_or_create(&build).set(1);
        new
    }

    /// Somebody is told of connections too; the first who is named.
    pub(crate) fn tell(&self, observer: Arc<dyn Observer>) {
        let _ = self.observer.set(observer);
    }

    pub(super) fn observe(&self, event: &Event<'_>) {
        if let Some(observer) = self.observer.get() {
            observer.observe(event);
        }
    }

    /// Whom to ask of state, and of what that counts; and how old trust is. The first time that this is said counts.
    pub(crate) fn ask(&self, source: &dyn Source, trust: Option<LastHeard>) {
        self.ask_ages(source.last_heard(), trust);
        if let Some(streams) = source.streams() {
            self.ask_streams(streams);
        }
        if let Some(known_until) = source.known_until() {
            self.ask_until(known_until);
        }
    }

    /// Until when a control plane knows this node; the first time that this is said counts.
    fn ask_until(&self, known_until: KnownUntil) {
        let _ = self.knows.set(known_until);
    }

    /// Whom to ask how old state and trust are; the first time that this is said counts.
    pub(crate) fn ask_ages(&self, state: Option<LastHeard>, trust: Option<LastHeard>) {
        let begun = clock::wall();
        let _ = self.ages.set(Ages { begun, state, trust });
    }

    /// Whose streams from a control plane are told of; the first time that this is said counts.
    fn ask_streams(&self, streams: StreamCounts) {
        let _ = self.streams.set(streams);
    }

    /// Whose tasks are counted; the first time that this is said counts.
    pub(crate) fn ask_runtimes(&self, threads: Vec<Counted>) {
        let _ = self.runtimes.set(threads);
    }

    /// A connection has had the name of an endpoint looked up.
    pub(crate) fn name_asked(&self, source: &Workload, identity: &Identity, hostname: &Arc<str>) {
        self.names_asked.count(source, identity, hostname, clock::steady());
    }

    /// Identities that are needed here and have no valid certificate.
    pub(crate) fn certificates_missing(&self, count: usize) {
        self.certificates_missing.set(count.try_into().unwrap_or(i64::MAX));
    }

    /// Identities whose certificate peers refuse.
    pub(crate) fn certificates_refused(&self, count: usize) {
        self.certificates_refused.set(count.try_into().unwrap_or(i64::MAX));
    }

    /// How requests for certificates have ended, for who counts them.
    pub(crate) fn certificate_requests(&self) -> Outcomes {
        self.certificate_requests.clone()
    }

    /// What is wrong with what state and certificates come from.
    pub(crate) fn state_faults(&self, count: usize) {
        self.state_faults.set(count.try_into().unwrap_or(i64::MAX));
    }

    fn look_at_ages(&self) {
        let Some(ages) = self.ages.get() else { return };
        let now = clock::wall();
        // What was never heard of is as old as the node at least.
        let never = now.duration_since(ages.begun).unwrap_or_default();
        let seconds = |heard: &Option<LastHeard>| {
            let age = heard.as_ref().map_or(Duration::ZERO, |heard| heard.age(now).unwrap_or(never));
            age.as_secs().try_into().unwrap_or(i64::MAX)
        };
        let until = self.knows.get().and_then(|ask| ask());
        let until = until.map_or(0, |until| {
            until.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
        });
        self.known_until.set(until.try_into().unwrap_or(i64::MAX));
        self.state_age.set(seconds(&ages.state));
        self.trust_age.set(seconds(&ages.trust));
    }

    /// A connection is open, and all that will be known of its ends is known.
    pub(super) fn opened(&self, ends: &Ends, opened: Instant) -> Arc<Series> {
        let now = clock::steady();
        let took = now.duration_since(opened).as_secs_f64();
        self.connect_seconds.get_or_create(&way(ends)).observe(took);
        self.count_open(ends, now)
    }

    /// The same of one whose other end was never open.
    pub(super) fn attempted(&self, ends: &Ends) -> Arc<Series> {
        self.count_open(ends, clock::steady())
    }

    fn count_open(&self, ends: &Ends, now: Instant) -> Arc<Series> {
        self.traffic.opened(ends, now)
    }

    /// It has closed.
    pub(super) fn closed(&self, opened: &Arc<Series>, ends: &Ends, flag: Flag, reason: Option<Reason>) {
        if let Some(reason) = reason {
            self.failed(ends.direction, reason);
        }
        self.traffic.closed(opened, ends, flag, clock::steady());
    }

    /// A socket was accepted: a captured connection, or a tunnel to a pod, whatever streams are in it. Counted until it is dropped.
    pub(crate) fn socket(&self, direction: Direction) -> OpenSocket {
        let labels = Label("reporter", direction.reporter());
        self.sockets_open.get_or_create(&labels).inc();
        OpenSocket(self.sockets_open.get_or_create(&labels).clone())
    }

    /// A connection was refused or broken off.
    pub(crate) fn failed(&self, direction: Direction, reason: Reason) {
        let labels = [("reporter", direction.reporter()), ("reason", reason.as_str())];
        self.failures.get_or_create(&labels).inc();
    }

    /// A peer was refused as its certificate is revoked. What was open with it, and is cut, counts by its reason and flag alone.
    pub(crate) fn refused_as_revoked(&self, direction: Direction) {
        self.revoked.get_or_create(&Label("reporter", direction.reporter())).inc();
    }

    /// The first byte of an answer has come so long after its connection's opening.
    pub(super) fn answered(&self, ends: &Ends, after: Duration) {
        self.first_byte_seconds.get_or_create(&way(ends)).observe(after.as_secs_f64());
    }

    /// The handshake of a tunnel that came, or of one that was dialled, has ended after so long.
    pub(crate) fn handshaken(&self, direction: Direction, well: bool, took: Duration) {
        let outcome = if well { "ok" } else { "failed" };
        let labels = [("reporter", direction.reporter()), ("outcome", outcome)];
        self.handshake_seconds.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// A task of the node has panicked, and was begun anew.
    pub(crate) fn restarted(&self) {
        self.tasks_restarted.inc();
    }

    /// Counts the times that a connection could not be accepted, for want of descriptors or memory.
    pub(crate) fn accept_failed(&self) {
        self.accept_failures.inc();
    }

    /// The same for whoever counts them itself.
    pub(crate) fn accept_failures(&self) -> Counter {
        self.accept_failures.clone()
    }

    /// Counts streams whose last words nobody took.
    pub(crate) fn streams_given_up(&self, streams: usize) {
        self.streams_given_up.inc_by(streams as u64);
    }

    /// Lets go the series whose workloads have gone.
    pub(crate) fn sweep(&self, now: &Snapshot) {
        self.names_asked.sweep(&now.mesh, clock::steady());
        let left = self.traffic.sweep(&now.mesh, clock::steady());
        self.series.set(left.try_into().unwrap_or(i64::MAX));
    }

    pub(crate) fn handshake_refused(&self) {
        self.handshakes_refused.inc();
    }

    /// A connection or a tunnel was refused, because there is no room for it.
    pub(crate) fn connection_shed(&self, direction: Direction) {
        self.connections_shed.inc();
        self.failed(direction, Reason::OverBound);
    }

    /// So many pods are served now; whoever says so lets nobody else say it meanwhile.
    pub(crate) fn serve_pods(&self, count: usize) {
        let count = count.try_into().unwrap_or(i64::MAX);
        let more = count - self.pods.set(count);
        match more {
            0.. => self.pods_started.inc_by(more.unsigned_abs()),
            _ => self.pods_stopped.inc_by(more.unsigned_abs()),
        };
    }

    /// Pods that are meant to be in the mesh and whose capture is not proven now.
    pub(crate) fn uncovered_pods(&self, count: usize) {
        self.pods_pending.set(count.try_into().unwrap_or(i64::MAX));
        self.pods_uncovered.set(count.try_into().unwrap_or(i64::MAX));
    }

    /// Pods in whose namespace rules of others come before those that capture.
    pub(crate) fn pods_with_strangers(&self, count: usize) {
        self.pods_with_strangers.set(count.try_into().unwrap_or(i64::MAX));
    }

    /// Connections that are outside of the mesh although their pod is in it.
    pub(crate) fn kept_connections(&self, count: usize) {
        self.kept.set(count.try_into().unwrap_or(i64::MAX));
    }

    pub(crate) fn kept_connections_closed(&self, count: usize) {
        self.kept_closed.inc_by(count as u64);
    }

    /// A capture was mended, and so many connections had gone around it.
    pub(crate) fn pod_repaired(&self, around: u64) {
        self.pods_repaired.inc();
        self.connections_around.inc_by(around);
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
        text::encode_registry(&mut text, &self.registry)?;
        text::encode(&mut text, &self.listed)?;
        Ok(text)
    }

    /// All of it as OpenMetrics text, as it is made.
    pub(crate) fn write(&self, out: &mut impl io::Write) -> io::Result<()> {
        self.live.count_bytes();
        self.look_at_the_process();
        self.look_at_ages();
        // Whoever counts waits while a family or a histogram is written, and is not to wait for a reader that stalls.
        let mut counts = String::new();
        text::encode_registry(&mut counts, &self.registry).map_err(io::Error::other)?;
        out.write_all(counts.as_bytes())?;
        drop(counts);
        let mut text = Text { out, failed: None };
        let encoded = text::encode(&mut text, &self.listed);
        match (text.failed, encoded) {
            (Some(error), _) => Err(error),
            (None, Err(error)) => Err(io::Error::other(error)),
            (None, Ok(())) => Ok(()),
        }
    }

    /// What the kernel says; what it does not say stays as it was.
    fn look_at_the_process(&self) {
        if let Ok(open) = fs::read_dir("/proc/self/fd") {
            // One of them is that of the reading.
            self.open_fds.set(open.count().saturating_sub(1).try_into().unwrap_or(i64::MAX));
        }
        let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        self.max_fds.set(most.map_or(i64::MAX, |most| most.try_into().unwrap_or(i64::MAX)));
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kibibytes = resident.and_then(|value| value.trim().strip_suffix(" kB")?.parse::<i64>().ok());
        if let Some(kibibytes) = kibibytes {
            self.resident_memory.set(kibibytes.saturating_mul(1024));
        }
    }
}

fn way(ends: &Ends) -> Labels {
    let security = if ends.mutual_tls { "mutual_tls" } else { "unknown" };
    [("reporter", ends.direction.reporter()), ("connection_security_policy", security)]
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

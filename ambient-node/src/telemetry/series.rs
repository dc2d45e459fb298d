//! Istio's counts of connections and bytes, under Istio's labels: a bounded number of sets, each of which goes when its
//! workload has gone, or when it is not in use and others need the room.

use std::{
    collections::HashMap,
    fmt,
    hash::BuildHasher as _,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use ambient_core::{Mesh, WorkloadUid};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter, counter::Counter},
};

use super::{
    ends::{Ends, Flag},
    labels::TrafficLabels,
};
use crate::clock;

#[cfg(test)]
mod tests;

/// The most label sets that traffic may make; what comes after them is counted under `unknown` ends.
///
/// Workloads come from the mesh and not from peers, so that only a very large mesh comes near. Five families of some 900
/// bytes a line make a page of 45 MB at this bound.
const MOST: usize = 10_000;
/// A set of which a workload has gone stays so long after it was last counted under: for several scrapes.
pub(crate) const KEPT: Duration = Duration::from_secs(300);
/// Parts, so that a scrape or a sweep never holds up more than a part of the connections, and those for microseconds.
const PARTS: usize = 16;

type Part = RwLock<HashMap<Arc<TrafficLabels>, Arc<Series>>>;

/// All sets of labels.
#[derive(Debug)]
pub(crate) struct Traffic {
    parts: [Part; PARTS],
    hasher: std::hash::RandomState,
    count: AtomicUsize,
    most: usize,
    begun: Instant,
    /// Connections that were counted under unknown ends, because of the bound.
    pub(super) folded: Counter,
}

/// What is counted under one set of labels.
#[derive(Debug)]
pub(crate) struct Series {
    opened: AtomicU64,
    closed: AtomicU64,
    failed: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
    /// Opened under it and not closed.
    open: AtomicU64,
    /// Milliseconds since [`Traffic::begun`].
    used: AtomicU64,
    /// Whom it spoke of last: workloads of one owner share a set.
    ends: Mutex<[Option<WorkloadUid>; 2]>,
}

impl Default for Traffic {
    fn default() -> Self {
        Self::new(MOST)
    }
}

impl Traffic {
    pub(super) fn new(most: usize) -> Self {
        Self {
            parts: Default::default(),
            hasher: std::hash::RandomState::default(),
            count: AtomicUsize::new(0),
            most,
            begun: clock::steady(),
            folded: Counter::default(),
        }
    }

    /// Counts a connection as open. Its ends must not change from now on.
    pub(super) fn opened(&self, ends: &Ends, now: Instant) -> Arc<Series> {
        let series = self.series(ends, Flag::None, now);
        series.opened.fetch_add(1, Ordering::Relaxed);
        series.open.fetch_add(1, Ordering::Relaxed);
        series
    }

    /// Counts it as closed, under the word for how it ended.
    pub(super) fn closed(&self, opened: &Arc<Series>, ends: &Ends, flag: Flag, now: Instant) {
        let other;
        let series = match flag {
            Flag::None => opened,
            _ => {
                other = self.series(ends, flag, now);
                &other
            }
        };
        series.closed.fetch_add(1, Ordering::Relaxed);
        // As Istio counts: an end that no flag stands for, as a reset by one of the two, is none that failed.
        series.failed.fetch_add((flag != Flag::None).into(), Ordering::Relaxed);
        for of in [series, opened] {
            of.used.store(self.millis(now), Ordering::Relaxed);
        }
        opened.open.fetch_sub(1, Ordering::Relaxed);
    }

    /// Lets go the sets of which nothing is open, that were not counted under for [`KEPT`], and of which a workload has gone. Where
    /// there is little room left, those that were not counted under for longest go as well, whoever they speak of: of whom the mesh
    /// does not know it never says that they have gone. Gives how many are left.
    pub(crate) fn sweep(&self, mesh: &Mesh, now: Instant) -> usize {
        let now = self.millis(now);
        let kept = u64::try_from(KEPT.as_millis()).unwrap_or(u64::MAX);
        let is_quiet = |series: &Series| series.open.load(Ordering::Relaxed) == 0 && now.saturating_sub(series.used()) >= kept;
        self.let_go(|series| is_quiet(series) && series.speaks_of_somebody_gone(mesh));
        let too_many = self.count.load(Ordering::Relaxed).saturating_sub(self.most - self.most / 4);
        if too_many > 0 {
            let mut used = self.used_of(is_quiet);
            let last = match used.len() > too_many {
                true => *used.select_nth_unstable(too_many - 1).1,
                false => u64::MAX,
            };
            self.let_go(|series| is_quiet(series) && series.used() <= last);
        }
        self.count.load(Ordering::Relaxed)
    }

    /// When those sets were counted under last.
    fn used_of(&self, which: impl Fn(&Series) -> bool) -> Vec<u64> {
        let mut used = Vec::new();
        for part in &self.parts {
            let part = part.read().unwrap_or_else(PoisonError::into_inner);
            used.extend(part.values().filter(|series| which(series)).map(|series| series.used()));
        }
        used
    }

    fn let_go(&self, stale: impl Fn(&Series) -> bool) {
        for part in &self.parts {
            let candidates: Vec<_> = {
                let part = part.read().unwrap_or_else(PoisonError::into_inner);
                part.iter()
                    .filter(|(_, series)| stale(series))
                    .map(|(labels, _)| labels.clone())
                    .collect()
            };
            if candidates.is_empty() {
                continue;
            }
            let mut part = part.write().unwrap_or_else(PoisonError::into_inner);
            for labels in candidates {
                // Whoever is about to count under it holds it: that begins under this lock.
                if part
                    .get(&labels)
                    .is_some_and(|series| Arc::strong_count(series) == 1 && stale(series))
                {
                    part.remove(&labels);
                    self.count.fetch_sub(1, Ordering::Relaxed);
                }
            }
        }
    }

    fn series(&self, ends: &Ends, flag: Flag, now: Instant) -> Arc<Series> {
        let labels = TrafficLabels::new(ends, flag);
        let found = self.find(&labels, self.most).unwrap_or_else(|| {
            self.folded.inc();
            let overflow = TrafficLabels::overflow(labels.direction());
            // One for each direction, beyond the bound.
            self.find(&overflow, usize::MAX).unwrap_or_default()
        });
        found.used.store(self.millis(now), Ordering::Relaxed);
        found.speaks_of(ends);
        found
    }

    /// The series of a set; a new one where there is room.
    fn find(&self, labels: &TrafficLabels, most: usize) -> Option<Arc<Series>> {
        // Less than the number of parts, whatever the width of a word.
        let part = &self.parts[(self.hasher.hash_one(labels) % PARTS as u64) as usize];
        if let Some(series) = part.read().unwrap_or_else(PoisonError::into_inner).get(labels) {
            return Some(series.clone());
        }
        let mut part = part.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(series) = part.get(labels) {
            return Some(series.clone());
        }
        let room = |count| (count < most).then(|| count + 1);
        self.count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).ok()?;
        let series = Arc::<Series>::default();
        part.insert(Arc::new(labels.clone()), series.clone());
        Some(series)
    }

    fn millis(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.begun).as_millis().try_into().unwrap_or(u64::MAX)
    }

    /// All of them, part by part, so that nobody waits while they are written.
    fn all(&self) -> Vec<(Arc<TrafficLabels>, Arc<Series>)> {
        let mut all = Vec::with_capacity(self.count.load(Ordering::Relaxed));
        for part in &self.parts {
            let part = part.read().unwrap_or_else(PoisonError::into_inner);
            all.extend(part.iter().map(|(labels, series)| (labels.clone(), series.clone())));
        }
        all
    }
}

impl Default for Series {
    fn default() -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            opened: zero(),
            closed: zero(),
            failed: zero(),
            sent: zero(),
            received: zero(),
            open: zero(),
            used: zero(),
            ends: Mutex::default(),
        }
    }
}

impl Series {
    /// So many more bytes went from client to server, and back: the same at both reporters, as Istio counts.
    pub(super) fn carried(&self, requested: u64, answered: u64) {
        self.received.fetch_add(requested, Ordering::Relaxed);
        self.sent.fetch_add(answered, Ordering::Relaxed);
    }

    fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    fn speaks_of(&self, of: &Ends) {
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        for (end, workload) in ends.iter_mut().zip([&of.source_workload, &of.destination_workload]) {
            let uid = workload.as_ref().map(|workload| &workload.uid);
            if end.as_ref() != uid {
                *end = uid.cloned();
            }
        }
    }

    fn speaks_of_somebody_gone(&self, mesh: &Mesh) -> bool {
        let ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        ends.iter().flatten().any(|uid| mesh.workload(uid).is_none())
    }
}

/// A family.
struct Kind {
    name: &'static str,
    help: &'static str,
    count: fn(&Series) -> &AtomicU64,
    /// Whether zero is told as soon as a connection has opened, as of bytes.
    from_the_start_on: bool,
}

const FAMILIES: [Kind; 5] = [
    Kind {
        name: "istio_tcp_connections_opened",
        help: "The total number of TCP connections opened",
        count: |series| &series.opened,
        from_the_start_on: false,
    },
    Kind {
        name: "istio_tcp_connections_closed",
        help: "The total number of TCP connections closed",
        count: |series| &series.closed,
        from_the_start_on: false,
    },
    Kind {
        name: "istio_tcp_connections_failed",
        help: "The total number of TCP connections that ended with a response flag (unstable)",
        count: |series| &series.failed,
        from_the_start_on: false,
    },
    Kind {
        name: "istio_tcp_sent_bytes",
        help: "The total number of bytes of responses over TCP connections",
        count: |series| &series.sent,
        from_the_start_on: true,
    },
    Kind {
        name: "istio_tcp_received_bytes",
        help: "The total number of bytes of requests over TCP connections",
        count: |series| &series.received,
        from_the_start_on: true,
    },
];

/// Writes all of it into a page.
#[derive(Debug)]
pub(super) struct Written(pub(super) Arc<Traffic>);

impl Collector for Written {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let all = self.0.all();
        for kind in &FAMILIES {
            let count = |series: &Series| (kind.count)(series).load(Ordering::Relaxed);
            let has = |series: &Series| count(series) > 0 || (kind.from_the_start_on && series.opened.load(Ordering::Relaxed) > 0);
            let of_this = all.iter().filter(|(_, series)| has(series));
            let mut of_this = of_this.peekable();
            if of_this.peek().is_none() {
                continue;
            }
            let mut family = encoder.encode_descriptor(kind.name, kind.help, None, MetricType::Counter)?;
            for (labels, series) in of_this {
                let value = ConstCounter::new(count(series));
                value.encode(family.encode_family(&**labels)?)?;
            }
        }
        Ok(())
    }
}

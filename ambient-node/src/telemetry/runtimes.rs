//! What tokio counts of the threads that move bytes, under the names that Istio's node proxy gives it.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};
use tokio::runtime::{Handle, RuntimeMetrics};

use crate::busy_poll::Looked;

/// A thread that moves bytes.
#[derive(Debug)]
pub(crate) struct Counted {
    /// Its runtime.
    pub(crate) runtime: Handle,
    /// How long it has looked for news, with nothing to do.
    pub(crate) looked: Looked,
}

/// Writes it into a page, once the threads are there. Each has a runtime of its own, in which it is the worker 0; told is its
/// own number.
#[derive(Debug)]
pub(super) struct Runtimes(pub(super) Arc<OnceLock<Vec<Counted>>>);

/// What is counted of a worker.
type Count = fn(&RuntimeMetrics, usize) -> u64;

impl Collector for Runtimes {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(threads) = self.0.get() else { return Ok(()) };
        let all: Vec<RuntimeMetrics> = threads.iter().map(|thread| thread.runtime.metrics()).collect();
        let sum = |of: fn(&RuntimeMetrics) -> usize| all.iter().map(of).sum::<usize>();
        for (name, help, value) in [
            ("tokio_num_workers", "Threads that move bytes (unstable)", all.len()),
            (
                "tokio_num_alive_tasks",
                "Tasks on these threads that have not ended (unstable)",
                sum(RuntimeMetrics::num_alive_tasks),
            ),
            (
                "tokio_global_queue_depth",
                "Tasks that other threads have woken, and that wait for their turn (unstable)",
                sum(RuntimeMetrics::global_queue_depth),
            ),
        ] {
            let gauge = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(gauge)?;
        }
        let help = "How long a thread has had something to do (unstable)";
        let mut family = encoder.encode_descriptor("tokio_worker_total_busy_duration", help, Some(&Unit::Seconds), MetricType::Counter)?;
        for (worker, of) in all.iter().enumerate() {
            let busy = of.worker_total_busy_duration(0).as_secs_f64();
            ConstCounter::new(busy).encode(family.encode_family(&[("worker", worker)])?)?;
        }
        let help = "How long a thread has looked for news instead of sleeping, with nothing to do, by the clock";
        let mut family = encoder.encode_descriptor("ambient_worker_busy_poll", help, Some(&Unit::Seconds), MetricType::Counter)?;
        for (worker, thread) in threads.iter().enumerate() {
            let looked = thread.looked.in_all().as_secs_f64();
            ConstCounter::new(looked).encode(family.encode_family(&[("worker", worker)])?)?;
        }
        let parks: [(_, _, Count); 2] = [
            (
                "tokio_worker_park_count",
                "Times that a thread had nothing to do, and slept (unstable)",
                RuntimeMetrics::worker_park_count,
            ),
            (
                "tokio_worker_park_unpark_count",
                "Times that a thread fell asleep or was woken (unstable)",
                RuntimeMetrics::worker_park_unpark_count,
            ),
        ];
        for (name, help, count) in parks {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (worker, of) in all.iter().enumerate() {
                ConstCounter::new(count(of, 0)).encode(family.encode_family(&[("worker", worker)])?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::{encoding::text, registry::Registry};
    use tokio::runtime;

    use super::*;

    #[test]
    fn each_thread_is_told_of_under_its_own_number() {
        let handles = Arc::<OnceLock<_>>::default();
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Runtimes(handles.clone())));
        let page = || {
            let mut page = String::new();
            text::encode(&mut page, &registry).unwrap();
            page
        };
        assert_eq!(page(), "# EOF\n");
        let threads: Vec<_> = (0..2).map(|_| runtime::Builder::new_current_thread().build().unwrap()).collect();
        let waits = threads[1].spawn(std::future::pending::<()>());
        let counted = |thread: &runtime::Runtime| Counted {
            runtime: thread.handle().clone(),
            looked: Looked::default(),
        };
        handles.set(threads.iter().map(counted).collect()).unwrap();
        threads[0].block_on(async {
            for _ in 0..3 {
                tokio::task::yield_now().await;
            }
        });
        let page = page();
        for line in [
            "# TYPE tokio_num_workers gauge",
            "tokio_num_workers 2",
            "tokio_num_alive_tasks 1",
            "tokio_global_queue_depth 1",
            "# TYPE tokio_worker_total_busy_duration_seconds counter",
            "# UNIT tokio_worker_total_busy_duration_seconds seconds",
            "# TYPE tokio_worker_park_count counter",
        ] {
            assert!(page.lines().any(|told| told == line), "{line} is not in {page}");
        }
        for name in [
            "tokio_worker_total_busy_duration_seconds_total",
            "ambient_worker_busy_poll_seconds_total",
            "tokio_worker_park_count_total",
            "tokio_worker_park_unpark_count_total",
        ] {
            for worker in 0..2 {
                let beginning = format!("{name}{{worker=\"{worker}\"}} ");
                let told: Vec<_> = page.lines().filter_map(|line| line.strip_prefix(&beginning)).collect();
                assert!(matches!(told[..], [value] if value.parse::<f64>().is_ok()), "{beginning}: {page}");
            }
        }
        waits.abort();
    }
}

//! Whether a machine's processors run when they are to: a virtual one can stand for seconds, and what waits on it then with it,
//! while everything else goes on. A test that fails should say so, as nothing else would.

use std::{
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Between two beats.
const BEAT: Duration = Duration::from_millis(100);

/// A thread on each processor that wakes again and again; until dropped.
pub(super) struct Pulse {
    late: Vec<(usize, Arc<AtomicU64>)>,
    ended: Arc<AtomicBool>,
}

impl Pulse {
    /// On every processor that this process may use, as far as there are threads to be had.
    pub(super) fn begin() -> Self {
        let may = sched_getaffinity(None).unwrap_or_default();
        let ended = Arc::<AtomicBool>::default();
        let begin = |cpu: usize| {
            let late = Arc::<AtomicU64>::default();
            let (told, ended) = (late.clone(), ended.clone());
            let beat = move || beat(cpu, &told, &ended);
            thread::Builder::new().name(format!("pulse-{cpu}")).spawn(beat).ok()?;
            Some((cpu, late))
        };
        let late = (0..CpuSet::MAX_CPU).filter(|cpu| may.is_set(*cpu)).filter_map(begin).collect();
        Self { late, ended }
    }

    /// The longest that each was late since this was asked last, in words; and the longest of all.
    pub(super) fn take(&self) -> (String, Duration) {
        let mut text = String::from("a thread that is to wake did so at the latest, after it should:");
        let mut longest = 0;
        for (cpu, late) in &self.late {
            let late = late.swap(0, Ordering::Relaxed);
            longest = longest.max(late);
            let _ = write!(text, " {late} ms on processor {cpu};");
        }
        (text + "\n", Duration::from_millis(longest))
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

#[expect(clippy::disallowed_methods, reason = "how late a thread wakes is what is measured")]
fn beat(cpu: usize, late: &AtomicU64, ended: &AtomicBool) {
    let mut only = CpuSet::new();
    only.set(cpu);
    if sched_setaffinity(None, &only).is_err() {
        return;
    }
    while !ended.load(Ordering::Relaxed) {
        let begun = Instant::now();
        thread::sleep(BEAT);
        let after = begun.elapsed().saturating_sub(BEAT);
        late.fetch_max(u64::try_from(after.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_processor_is_told_of() {
        let pulse = Pulse::begin();
        thread::sleep(BEAT * 3);
        let (told, _) = pulse.take();
        let count = thread::available_parallelism().unwrap().get();
        assert!(told.matches("on processor").count() >= count, "{told}");
    }
}

//! Criterion's figures, and the ratios.

use std::{env, time::Duration};

use criterion::{Criterion, Throughput};

use crate::{
    app::Work,
    load::{Contender, Load},
    way::Sides,
};

/// Measures the loads that were asked for, over tunnels, bare TLS and direct: see [`compare`].
pub fn run(loads: &[Load], sides: &Sides) {
    compare(loads, "tls", |load| load.contenders(sides));
}

/// Measures the loads that were asked for: with criterion, then, but for a smoke test, by ratios. `reference` is the name of
/// who most are compared with.
///
/// `BENCH_ROUNDS` is the number of rounds behind a ratio, `BENCH_QUICK` leaves out criterion and the direct way.
pub fn compare(loads: &[Load], reference: &str, contenders: impl Fn(&Load) -> Vec<Contender>) {
    let quick = env::var_os("BENCH_QUICK").is_some();
    if !quick {
        measure(loads, &contenders);
    }
    if is_whole_run() {
        ratios(loads, reference, &contenders, quick);
    }
}

/// Whether figures are wanted. Criterion's rule: without `--bench`, as `cargo test` starts it, each bench runs once.
pub fn is_whole_run() -> bool {
    let asked = |what: &str| env::args().any(|arg| arg == what);
    asked("--bench") && !asked("--test") && !asked("--list")
}

/// So many of what is measured; where nothing is, as few as show that it runs.
pub fn so_many(wanted: usize) -> usize {
    if is_whole_run() { wanted } else { wanted.min(1000) }
}

fn measure(loads: &[Load], contenders: &impl Fn(&Load) -> Vec<Contender>) {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1500))
        .configure_from_args();
    for load in chosen(loads) {
        let mut group = criterion.benchmark_group(load.name);
        for mut contender in contenders(load) {
            let pieces = contender.pieces(1);
            group.throughput(if load.work.is_bulk() {
                Throughput::Bytes(load.work.bytes() as u64 * pieces)
            } else {
                Throughput::Elements(pieces)
            });
            group.bench_function(contender.name, |bencher| {
                bencher.iter_custom(|rounds| contender.run(rounds.try_into().expect("far fewer rounds")));
            });
        }
        group.finish();
    }
    criterion.final_summary();
}

/// Whether something of this name is meant by the filter, the argument that is no option: part of the name, or `name/way`.
pub fn is_asked_for(name: &str) -> bool {
    let filter = env::args().skip(1).find(|arg| !arg.starts_with('-')).unwrap_or_default();
    name.contains(&filter) || filter.starts_with(name)
}

fn chosen(loads: &[Load]) -> impl Iterator<Item = &Load> {
    loads.iter().filter(|load| is_asked_for(load.name))
}

/// What contenders did in turn, compared in each round with the one that each is compared with.
fn ratios(loads: &[Load], reference: &str, contenders: &impl Fn(&Load) -> Vec<Contender>, quick: bool) {
    let rounds = env::var("BENCH_ROUNDS").map_or(11, |rounds| rounds.parse().expect("BENCH_ROUNDS is a number"));
    println!("\nmedian (quartiles) of {rounds} interleaved rounds; \"x\" is the ratio to {reference}, or to the same way alone\n");
    println!(
        "{:<22} {:<13} {:>13} {:<24} {:>15} {:<20}",
        "load", "way", "rate", "  x", "proxies' CPU", "  x"
    );
    for load in chosen(loads) {
        let mut contenders = contenders(load);
        if quick {
            contenders.retain(|contender| contender.name != "direct" || reference == "direct");
        }
        in_turn(load, &mut contenders, rounds);
    }
}

fn in_turn(load: &Load, contenders: &mut [Contender], rounds: usize) {
    let pieces: Vec<u32> = contenders.iter_mut().map(|contender| calibrate(contender, load.sample)).collect();
    let mut samples = vec![Vec::new(); contenders.len()];
    for round in 0..rounds {
        let mut order: Vec<usize> = (0..contenders.len()).collect();
        // There and back again: a machine that becomes slower is so for all.
        if round % 2 == 1 {
            order.reverse();
        }
        for index in order {
            samples[index].push(Sample::take(&mut contenders[index], pieces[index]));
        }
    }
    for (contender, mine) in contenders.iter().zip(&samples) {
        let theirs = &samples[contender.against];
        let both = || mine.iter().zip(theirs);
        let rate = quartiles(mine.iter().map(|sample| sample.rate));
        let cpu = quartiles(mine.iter().map(|sample| sample.cpu));
        let rates = quartiles(both().map(|(mine, theirs)| mine.rate / theirs.rate));
        let cpus = quartiles(both().map(|(mine, theirs)| mine.cpu / theirs.cpu));
        println!(
            "{:<22} {:<13} {:>13} {rates:<24} {:>15} {cpus}",
            load.name,
            contender.name,
            show_rate(load.work, rate.median),
            show_cpu(load.work, cpu.median),
        );
        if let (Work::Touch, Some(handshakes)) = (load.work, &contender.way.handshakes) {
            let (full, resumed) = handshakes.counts();
            println!("{:<22} {:<13} {full} handshakes in full, {resumed} resumed", "", "");
        }
    }
}

/// What a contender did once.
#[derive(Clone)]
struct Sample {
    /// Pieces per second.
    rate: f64,
    /// Seconds of the proxies' CPU time per piece.
    cpu: f64,
}

impl Sample {
    fn take(contender: &mut Contender, each: u32) -> Self {
        let before = contender.way.cpu();
        let took = contender.run(each);
        let cpu = contender.way.cpu() - before;
        let pieces = contender.pieces(each) as f64;
        Self {
            rate: pieces / took.as_secs_f64(),
            cpu: cpu.as_secs_f64() / pieces,
        }
    }
}

/// How many pieces on each connection take about as long as a sample; it warms the way up, too.
fn calibrate(contender: &mut Contender, sample: Duration) -> u32 {
    let mut pieces = 1;
    loop {
        let took = contender.run(pieces);
        let times = sample.as_secs_f64() / took.as_secs_f64();
        if times < 1.5 {
            return ((f64::from(pieces) * times) as u32).max(1);
        }
        // The first pieces are slow, and say little.
        pieces = (f64::from(pieces) * times.min(8.0)) as u32 + 1;
    }
}

struct Quartiles {
    low: f64,
    median: f64,
    high: f64,
}

fn quartiles(values: impl Iterator<Item = f64>) -> Quartiles {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let at = |quarters| values[(values.len() - 1) * quarters / 4];
    Quartiles {
        low: at(1),
        median: at(2),
        high: at(3),
    }
}

impl std::fmt::Display for Quartiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&format!("{:.2} ({:.2}-{:.2})", self.median, self.low, self.high))
    }
}

fn show_rate(work: Work, rate: f64) -> String {
    if work.is_bulk() {
        format!("{:.2} Gbit/s", rate * work.bytes() as f64 * 8.0 / 1e9)
    } else {
        format!("{:.2} k/s", rate / 1e3)
    }
}

fn show_cpu(work: Work, cpu: f64) -> String {
    if cpu == 0.0 {
        "no proxies".to_owned()
    } else if work.is_bulk() {
        format!("{:.2} s/GB", cpu * 1e9 / work.bytes() as f64)
    } else {
        format!("{:.1} us", cpu * 1e6)
    }
}

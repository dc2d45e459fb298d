//! What policies cost to take in: all at once, one among many, and in memory.

use std::{
    env, fs,
    hint::black_box,
    time::{Duration, Instant},
};

use ambient_authz::{Policies, policy::Update};
use ambient_benches::report;
use ambient_testkit::allocations::{self, Counting};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};

#[path = "../../ambient-authz/tests/support/random.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
mod random;
#[path = "authz/sets.rs"]
#[expect(dead_code, reason = "decisions use more of it")]
mod sets;

use random::Random;
use sets::Write;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How many policies there are.
fn count() -> usize {
    report::so_many(100_000)
}

const SETS: [(&str, Write); 6] = [
    ("ordinary", sets::ordinary),
    ("names_and_blocks", sets::names_and_blocks),
    ("nested", sets::nested),
    ("every_list", sets::every_list),
    ("few_each", sets::few_each),
    ("addresses", sets::addresses),
];

/// From parsed values, which are given away.
#[expect(clippy::disallowed_methods, reason = "a bench reads the clock")]
fn all_at_once(_: &mut Criterion) {
    let count = count();
    for (name, write) in SETS {
        let before = allocations::held();
        let updates: Vec<_> = sets::policies(count, write).map(|policy| Update::Set(policy.into())).collect();
        let parsed = allocations::held() - before;
        allocations::forget_peak();
        let (start, on_cpu) = (Instant::now(), on_cpu());
        let policies = Policies::default().apply(updates);
        let (took, worked) = (start.elapsed(), self::on_cpu() - on_cpu);
        let (in_force, peak) = (allocations::held() - before, allocations::peak() - before);
        println!(
            "compile/{name}/{count}: {took:.2?}, of it {worked:.2?} on a processor; parsed {} MiB, at the peak {} MiB, in force {} MiB",
            parsed >> 20,
            peak >> 20,
            in_force >> 20
        );
        let start = Instant::now();
        drop(black_box(policies));
        println!("drop/{name}/{count}: {:.2?}", start.elapsed());
    }
}

/// How long this thread has been on a processor.
fn on_cpu() -> Duration {
    let told = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(told.split(' ').next().and_then(|nanos| nanos.parse().ok()).unwrap_or_default())
}

/// The same without a harness: also how long the longest of all took, as some changes have more to do than others.
#[expect(clippy::disallowed_methods, reason = "a bench reads the clock")]
fn each_of_many(_: &mut Criterion) {
    let count = count();
    // Where names are given, those alone.
    let asked: Vec<String> = env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with('-') && arg != "nothing")
        .collect();
    for (name, write) in SETS {
        if !asked.is_empty() && !asked.iter().any(|asked| name.contains(asked.as_str())) {
            continue;
        }
        let mut policies = sets::in_force(count, write);
        let keys: Vec<_> = policies.iter().map(|policy| policy.key).collect();
        let mut random = Random(9);
        let mut took: Vec<_> = (0..CHANGES)
            .map(|_| {
                let mut policy = policies_of_one(&mut random, write);
                policy.key = keys[random.below(count)].clone();
                let start = Instant::now();
                policies = policies.apply([Update::Set(policy.into())]);
                start.elapsed()
            })
            .collect();
        took.sort_unstable();
        println!(
            "change/{name}/{count}: least {:.2?}, median {:.2?}, of a hundred the longest {:.2?}, longest {:.2?} of {CHANGES}",
            took[0],
            took[CHANGES / 2],
            took[CHANGES * 99 / 100],
            took[CHANGES - 1]
        );
    }
}

/// Another version of one policy, with rules of its own, until decisions see it; the version before is let go as well.
fn one_of_many(criterion: &mut Criterion) {
    let count = count();
    let mut group = criterion.benchmark_group("change");
    group.measurement_time(Duration::from_secs(3));
    for (name, write) in SETS {
        let mut policies = sets::in_force(count, write);
        let keys: Vec<_> = policies.iter().map(|policy| policy.key).collect();
        let mut random = Random(9);
        group.bench_function(format!("{name}/{count}"), |bench| {
            bench.iter_batched(
                || {
                    let mut policy = policies_of_one(&mut random, write);
                    policy.key = keys[random.below(count)].clone();
                    Update::Set(policy.into())
                },
                |update| policies = policies.apply([update]),
                BatchSize::PerIteration,
            );
        });
    }
}

fn policies_of_one(random: &mut Random, write: Write) -> ambient_authz::Policy {
    let mut policy = sets::policies(1, write).next().unwrap_or_else(|| panic!("one was asked for"));
    let number = random.below(count() * 10);
    policy.rules = (0..10).map(|i| write(random, number + i)).collect();
    policy
}

const CHANGES: usize = 500;

criterion_group!(benches, all_at_once, each_of_many, one_of_many);
criterion_main!(benches);

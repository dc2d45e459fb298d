//! Random decisions against the plain evaluator of the tests, as many as asked for:
//!
//!     cargo bench -p ambient-benches --bench authz_oracle -- 100000000
//!
//! Half of the sets are decided on over bitmaps, though they are small ([`Policies::by_bitmaps`]); the others as any are. Every
//! million pairs it says how many there were. With `AMBIENT_ORACLE_THREADS` it takes so many threads, else one a core.

use std::{
    env,
    process::ExitCode,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    thread,
};

use ambient_authz::{Conn, Peer, Policies, Target, decide, decide_again};

#[path = "../../ambient-authz/tests/support/plain.rs"]
mod plain;
#[path = "../../ambient-authz/tests/support/random.rs"]
mod random;

use plain::Plain;
use random::{Random, Shape};

const SMALL: Shape = Shape {
    keys: 8,
    most_rules: 3,
    sparse: 4,
};
const CROWDED: Shape = Shape {
    keys: 200,
    most_rules: 10,
    sparse: 3,
};
/// So many rules that lists of them become bitmaps.
const VAST: Shape = Shape {
    keys: 3000,
    most_rules: 12,
    sparse: 3,
};

fn main() -> ExitCode {
    // What cargo passes on beside the number is for other harnesses.
    let wanted = env::args().find_map(|arg| arg.parse().ok()).unwrap_or(100_000);
    let (done, differing) = (AtomicU64::new(0), AtomicU64::new(0));
    let next = AtomicU64::new(1);
    let threads = env::var("AMBIENT_ORACLE_THREADS").ok().and_then(|threads| threads.parse().ok());
    let threads = threads.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from));
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while done.load(Relaxed) < wanted && differing.load(Relaxed) == 0 {
                    let seed = next.fetch_add(1, Relaxed);
                    let (pairs, wrong) = history(seed);
                    let before = done.fetch_add(pairs, Relaxed);
                    if before / TOLD != (before + pairs) / TOLD {
                        println!("{} pairs so far, {seed} histories", before + pairs);
                    }
                    differing.fetch_add(wrong, Relaxed);
                    if wrong > 0 {
                        println!("seed {seed}: {wrong} of {pairs} pairs differ");
                    }
                }
            });
        }
    });
    let (done, differing) = (done.into_inner(), differing.into_inner());
    println!(
        "{done} pairs of policies and connections, {} histories: {differing} differ",
        next.into_inner() - 1
    );
    if differing == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Some batches of updates, and after each all connections to all workloads. Gives how many pairs that were, and how many
/// of them differ.
fn history(seed: u64) -> (u64, u64) {
    let mut random = Random(seed << 20);
    let shape = match seed {
        vast if vast.is_multiple_of(1000) => VAST,
        crowded if crowded.is_multiple_of(50) => CROWDED,
        _ => SMALL,
    };
    let (connections, workloads) = (40, 40);
    let istio_exact = random.once_in(4);
    let mut policies = if istio_exact {
        Policies::istio_exact()
    } else {
        Policies::default()
    };
    let mut plain = Plain::new(istio_exact);
    if random.once_in(4) {
        plain.lets_unreadable_go = true;
        policies = policies.letting_unreadable_go();
    }
    // Half of all are decided as very many policies are, with what peers keep.
    if random.once_in(2) {
        policies = policies.by_bitmaps();
    }
    let ends = (0..connections).map(|_| random::ends(&mut random));
    let mut ends: Vec<_> = ends.map(|ends| (Peer::from(ends.0.clone()), ends)).collect();
    let (mut pairs, mut differing, mut targets) = (0, 0, Vec::<Target>::new());
    for _ in 0..6 {
        let batch = 1 + random.below(shape.keys / 2);
        let batch: Vec<_> = (0..batch).map(|_| random::update(&mut random, shape)).collect();
        batch.iter().for_each(|update| plain.take(update));
        policies = policies.apply(batch);
        if random.once_in(4) {
            plain.waited = true;
            policies = policies.stop_waiting().0;
        }
        let workloads: Vec<_> = (0..workloads).map(|_| random::workload(&mut random, shape)).collect();
        // Those of the batch before are kept, so that some of them fit no longer.
        let made = (0..6).map(|_| policies.target(&random::workload(&mut random, shape).into()));
        targets = targets.into_iter().rev().take(6).chain(made).collect();
        for (peer, ends) in &mut ends {
            if random.once_in(3) {
                *peer = policies.resolve(ends.0.as_ref());
            }
            let conn = Conn {
                peer,
                source: ends.1,
                destination: (ends.2, ends.3).into(),
            };
            let matching = plain.matching(&conn);
            for workload in &workloads {
                let again = random.once_in(4);
                let engine = if again { decide_again } else { decide };
                pairs += 1;
                differing += u64::from(engine(&policies, workload, &conn) != plain.decide(workload, &conn, &matching, again));
            }
            for target in &targets {
                pairs += 1;
                let wanted = plain.decide(target.workload(), &conn, &matching, false);
                differing += u64::from(target.decide(&policies, &conn) != wanted);
            }
        }
    }
    (pairs, differing)
}

/// After so many pairs it says how many.
const TOLD: u64 = 1_000_000;

//! What a decision costs, by how many policies there are: with ten rules each, all of the mesh, none of which matches.
//!
//! The walk over all policies that the tests compare decisions with stands beside it, where it ends in time.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use ambient_authz::{Conn, Peer, Policies, Scope, decide, policy::Update};
use ambient_core::Workload;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

#[path = "../../ambient-authz/tests/support/plain.rs"]
mod plain;
#[path = "../../ambient-authz/tests/support/random.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
mod random;
#[path = "authz/sets.rs"]
mod sets;

use plain::Plain;
use random::Random;
use sets::Write;

const PEERS: usize = 4096;

fn conn(peer: &Peer, source: std::net::IpAddr) -> Conn<'_> {
    Conn {
        peer,
        source,
        destination: ([10, 9, 8, 7], 8080).into(),
    }
}

/// Each peer and address in turn.
fn in_turn(bench: &mut criterion::Bencher<'_>, policies: &Policies) {
    let mut random = Random(7);
    let ends: Vec<_> = (0..PEERS)
        .map(|_| (policies.resolve(Some(&sets::peer(&mut random))), sets::address(&mut random)))
        .collect();
    let stock = Workload::new("uid", "shop", "stock");
    for (peer, source) in &ends {
        let decision = decide(policies, &stock, &conn(peer, *source));
        assert_eq!(decision.to_string(), "allow policies exist, but none allowed");
    }
    let mut turn = ends.iter().cycle();
    bench.iter(|| {
        let (peer, source) = turn.next()?;
        Some(decide(policies, &stock, black_box(&conn(peer, *source))))
    });
}

fn decisions(criterion: &mut Criterion) {
    for (name, write) in [("ordinary", sets::ordinary as Write), ("names_and_blocks", sets::names_and_blocks)] {
        let mut group = criterion.benchmark_group(format!("decide/{name}"));
        group.measurement_time(Duration::from_secs(3));
        for count in [10, 1000, 100_000] {
            let policies = sets::in_force(count, write);
            group.bench_with_input(BenchmarkId::from_parameter(count), &policies, in_turn);
        }
    }
}

fn walks(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("walk/ordinary");
    for count in [10, 1000] {
        let mut plain = Plain::new(false);
        sets::policies(count, sets::ordinary).for_each(|policy| plain.take(&Update::Set(policy.into())));
        let peer = Peer::from(sets::peer(&mut Random(7)));
        let stock = Workload::new("uid", "shop", "stock");
        group.bench_function(BenchmarkId::from_parameter(count), |bench| {
            bench.iter(|| {
                let conn = conn(&peer, [10, 1, 2, 3].into());
                plain.decide(&stock, &conn, &plain.matching(black_box(&conn)), false)
            });
        });
    }
}

fn peers(criterion: &mut Criterion) {
    let policies = sets::in_force(100_000, sets::names_and_blocks);
    let mut random = Random(7);
    let identities: Vec<_> = (0..PEERS).map(|_| sets::peer(&mut random)).collect();
    let mut turn = identities.iter().cycle();
    criterion.bench_function("resolve/names_and_blocks/100000", |bench| {
        bench.iter(|| policies.resolve(black_box(turn.next())))
    });
}

/// A million rules that one connection nearly matches.
fn worst(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("worst");
    group.sample_size(20);
    for (name, count, write) in WORST {
        let policies = sets::in_force(count, write);
        let identity = format!("spiffe://{}", sets::PRINCIPAL)
            .parse()
            .unwrap_or_else(|_| panic!("an identity"));
        let peer = policies.resolve(Some(&identity));
        let stock = Workload::new("uid", "shop", "stock");
        group.bench_function(name, |bench| {
            bench.iter(|| decide(&policies, &stock, black_box(&conn(&peer, [10, 1, 2, 3].into()))));
        });
    }
}

/// A workload that lists a thousand policies, besides which there are 99,000.
fn listed(criterion: &mut Criterion) {
    let selected = sets::policies(100_000, sets::ordinary).map(|mut policy| {
        policy.scope = Scope::Selector;
        Update::Set(policy.into())
    });
    let policies = Policies::default().apply(selected);
    let mut group = criterion.benchmark_group("listed");
    for count in [1, 10, 1000] {
        let mut stock = Workload::new("uid", "shop", "stock");
        stock.policies = policies.iter().take(count).map(|policy| policy.key).collect();
        let peer = policies.resolve(Some(&sets::peer(&mut Random(7))));
        group.bench_function(BenchmarkId::from_parameter(count), |bench| {
            bench.iter(|| decide(&policies, &stock, black_box(&conn(&peer, [10, 1, 2, 3].into()))));
        });
    }
}

/// The same in short rounds, of which the least disturbed tells what a decision costs on a machine with nothing else to do.
#[expect(clippy::disallowed_methods, reason = "a bench reads the clock")]
fn rounds(_: &mut Criterion) {
    let stock = Workload::new("uid", "shop", "stock");
    let tell = |name: &str, count: usize, rounds: usize, per_round: u32, round: &mut dyn FnMut()| {
        let mut took: Vec<_> = (0..rounds)
            .map(|_| {
                let start = Instant::now();
                round();
                start.elapsed() / per_round
            })
            .collect();
        took.sort_unstable();
        println!(
            "{name}/{count}: least {:.2?}, median {:.2?} of {rounds} rounds",
            took[0],
            took[rounds / 2]
        );
    };
    for (name, write) in [("ordinary", sets::ordinary as Write), ("names_and_blocks", sets::names_and_blocks)] {
        for count in [10, 1000, 100_000] {
            let policies = sets::in_force(count, write);
            let mut random = Random(7);
            let identities: Vec<_> = (0..PEERS).map(|_| sets::peer(&mut random)).collect();
            let ends: Vec<_> = identities
                .iter()
                .map(|id| (policies.resolve(Some(id)), sets::address(&mut random)))
                .collect();
            let decide_all = &mut || {
                for (peer, source) in &ends {
                    black_box(decide(&policies, &stock, black_box(&conn(peer, *source))));
                }
            };
            tell(&format!("decide/{name}"), count, 200, PEERS as u32, decide_all);
            let resolve_all = &mut || {
                for id in &identities {
                    black_box(policies.resolve(Some(id)));
                }
            };
            tell(&format!("resolve/{name}"), count, 50, PEERS as u32, resolve_all);
        }
    }
    for (name, count, write) in WORST {
        let policies = sets::in_force(count, write);
        let identity = format!("spiffe://{}", sets::PRINCIPAL)
            .parse()
            .unwrap_or_else(|_| panic!("an identity"));
        let peer = policies.resolve(Some(&identity));
        let conn = conn(&peer, [10, 1, 2, 3].into());
        let wanted = match name {
            "all_match" => "explicitly denied by: team-0/policy-0",
            _ => "allow policies exist, but none allowed",
        };
        assert_eq!(decide(&policies, &stock, &conn).to_string(), wanted);
        tell(&format!("worst/{name}"), count, 50, 1, &mut || {
            drop(black_box(decide(&policies, &stock, black_box(&conn))))
        });
    }
}

/// Sets of rules that one connection nearly matches, but for the last, and of how many policies they are.
const WORST: [(&str, usize, Write); 10] = [
    ("every_field", 100_000, sets::every_field),
    ("refused_port", 100_000, sets::refused_port),
    ("nested", 100_000, sets::nested),
    ("asked_twice", 100_000, sets::asked_twice),
    ("not_multiplied", 10_000, sets::not_multiplied),
    ("crossed", 1000, sets::crossed),
    ("crossed_given", 5000, sets::crossed_given),
    ("twice_given", 50_000, sets::twice_given),
    ("every_list", 100_000, sets::every_list),
    ("all_match", 100_000, sets::all_match),
];

// First the rounds: the others make their sets even where a filter leaves them out.
criterion_group!(benches, rounds, decisions, walks, peers, worst, listed);
criterion_main!(benches);

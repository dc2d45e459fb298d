//! What a decision costs, by how many policies there are: with ten rules each, all of the mesh, none of which matches.
//!
//! The walk over all policies that the tests compare decisions with stands beside it, where it ends in time.

use std::{
    env,
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use ambient_authz::{Conn, Peer, Policies, Scope, Target, decide, policy::Update};
use ambient_benches::report::so_many;
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

/// How many policies there are.
fn counts() -> impl Iterator<Item = usize> {
    [10, 1000, 100_000].into_iter().filter(|count| so_many(*count) == *count)
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
        for count in counts() {
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
    let count = so_many(100_000);
    let policies = sets::in_force(count, sets::names_and_blocks);
    let mut random = Random(7);
    let identities: Vec<_> = (0..PEERS).map(|_| sets::peer(&mut random)).collect();
    let mut turn = identities.iter().cycle();
    criterion.bench_function(&format!("resolve/names_and_blocks/{count}"), |bench| {
        bench.iter(|| policies.resolve(black_box(turn.next())))
    });
}

/// A million rules that one connection nearly matches.
fn worst(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("worst");
    group.sample_size(20);
    for (name, count, write, scopes) in WORST {
        let count = so_many(count);
        let mut made = None;
        group.bench_function(name, |bench| {
            let (policies, target, peer) = made.get_or_insert_with(|| of_worst(name, count, write, scopes));
            bench.iter(|| target.decide(policies, black_box(&worst_conn(name, peer))));
        });
    }
}

fn of_worst(name: &str, count: usize, write: Write, scopes: &[Scope]) -> (Policies, Target, Peer) {
    let (policies, stock) = sets::scoped(count, write, scopes);
    let principal = match name {
        "few_names" => sets::long_principal(),
        _ => sets::PRINCIPAL.to_owned(),
    };
    let identity = format!("spiffe://{principal}").parse().unwrap_or_else(|_| panic!("an identity"));
    let (target, peer) = (policies.target(&stock.into()), policies.resolve(Some(&identity)));
    (policies, target, peer)
}

/// The connection that nearly matches all rules of a set.
fn worst_conn<'a>(name: &str, peer: &'a Peer) -> Conn<'a> {
    match name {
        "addresses" | "few_addresses" => Conn {
            peer,
            source: sets::SOURCE.into(),
            destination: (sets::DESTINATION, 8080).into(),
        },
        _ => conn(peer, [10, 1, 2, 3].into()),
    }
}

/// A workload that lists some policies, besides which there are more: looked up once, and at each decision.
fn listed(criterion: &mut Criterion) {
    let selected = sets::policies(so_many(100_000), sets::ordinary).map(|mut policy| {
        policy.scope = Scope::Selector;
        Update::Set(policy.into())
    });
    let policies = Policies::default().apply(selected);
    let mut group = criterion.benchmark_group("listed");
    for count in [1, 10, 1000] {
        let mut stock = Workload::new("uid", "shop", "stock");
        stock.policies = policies.iter().take(count).map(|policy| policy.key).collect();
        let stock = Arc::new(stock);
        let (peer, target) = (policies.resolve(Some(&sets::peer(&mut Random(7)))), policies.target(&stock));
        let conn = conn(&peer, [10, 1, 2, 3].into());
        group.bench_function(BenchmarkId::from_parameter(count), |bench| {
            bench.iter(|| target.decide(&policies, black_box(&conn)));
        });
        group.bench_function(BenchmarkId::new("not_resolved", count), |bench| {
            bench.iter(|| decide(&policies, &stock, black_box(&conn)));
        });
        group.bench_function(BenchmarkId::new("resolving", count), |bench| {
            bench.iter(|| policies.target(black_box(&stock)))
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
    // Where names are given, those alone.
    let asked: Vec<String> = env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let wanted = |name: &str| asked.is_empty() || asked.iter().any(|asked| asked == "nothing" || name.contains(asked.as_str()));
    for (name, write) in [("ordinary", sets::ordinary as Write), ("names_and_blocks", sets::names_and_blocks)] {
        if !wanted(name) {
            continue;
        }
        for count in counts() {
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
    for (name, count, write, scopes) in WORST.into_iter().filter(|(name, ..)| wanted(name)) {
        let count = so_many(count);
        let (policies, target, peer) = of_worst(name, count, write, scopes);
        let conn = worst_conn(name, &peer);
        let wanted = match name {
            "all_match" => "explicitly denied by: team-0/policy-0",
            _ => "allow policies exist, but none allowed",
        };
        assert_eq!(target.decide(&policies, &conn).to_string(), wanted);
        let stranger = Peer::from(peer.identity().cloned());
        for (who, peer) in [("", &peer), ("/plaintext", &Peer::plaintext()), ("/not_resolved", &stranger)] {
            let conn = Conn { peer, ..conn };
            tell(&format!("worst/{name}{who}"), count, 400, 1, &mut || {
                drop(black_box(target.decide(&policies, black_box(&conn))))
            });
        }
        tell(&format!("worst/{name}/resolving"), count, 50, 1, &mut || {
            drop(black_box(policies.resolve(black_box(peer.identity()))))
        });
    }
}

/// Sets of rules that one connection nearly matches, but for the last, and of how many policies they are.
const WORST: [(&str, usize, Write, &[Scope]); 24] = [
    ("every_field", 100_000, sets::every_field, MESH),
    ("refused_port", 100_000, sets::refused_port, MESH),
    ("nested", 100_000, sets::nested, MESH),
    ("asked_twice", 100_000, sets::asked_twice, MESH),
    ("not_multiplied", 10_000, sets::not_multiplied, MESH),
    ("crossed", 1000, sets::crossed, MESH),
    ("crossed_given", 5000, sets::crossed_given, MESH),
    ("long_clauses", 24, sets::long_clauses, MESH),
    ("twice_given", 50_000, sets::twice_given, MESH),
    ("sources_and_conditions", 50_000, sets::sources_and_conditions, MESH),
    // Two million rows each.
    ("sources_and_conditions_all", 100_000, sets::sources_and_conditions, MESH),
    ("two_sources", 100_000, sets::two_sources, MESH),
    ("many_conditions", 15_000, sets::many_conditions, MESH),
    ("every_list", 100_000, sets::every_list, MESH),
    ("all_scopes", 100_000, sets::every_list, ALL),
    ("both_sides", 100_000, sets::both_sides, MESH),
    ("few_each", 100_000, sets::few_each, MESH),
    ("addresses", 100_000, sets::addresses, MESH),
    ("few_addresses", 100_000, sets::few_addresses, MESH),
    ("few_names", 100_000, sets::few_names, MESH),
    ("written_anew", 100_000, sets::written_anew, MESH),
    ("listed_refusing", 1000, sets::refused_port, &[Scope::Selector]),
    ("listed_every_list", 1000, sets::every_list, &[Scope::Selector]),
    ("all_match", 100_000, sets::all_match, MESH),
];
const MESH: &[Scope] = &[Scope::Global];
const ALL: &[Scope] = &[Scope::Global, Scope::Namespace, Scope::Selector];

// First the rounds: the others make their sets even where a filter leaves them out.
criterion_group!(benches, rounds, decisions, walks, peers, worst, listed);
criterion_main!(benches);

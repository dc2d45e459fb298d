//! What a node's well-behaved pods notice of one that misbehaves, and of whoever scrapes the node's metrics: whole nodes from
//! outside, each beside what the machine makes of the same without a mesh, in one run.

use std::{env, error::Error, sync::Arc, time::Duration};

use ambient_benches::{
    app::Work,
    mesh::{Mesh, Pods, Proxy},
    report,
    storm::{Bystander, Ill, Means, Scrapes, Seen, Storm, meet_many, scrape},
};
use ambient_testkit::{World, world};

type Result<T = (), E = Box<dyn Error>> = std::result::Result<T, E>;

fn main() -> Result {
    if env::args().any(|arg| arg == "--list") {
        return Ok(());
    }
    // While this is the only thread.
    match world::enter_or_skip("node_storm")? {
        Some(world) => run(&world),
        None => Ok(()),
    }
}

fn run(world: &World) -> Result {
    let mut scale = if report::is_whole_run() { Scale::WHOLE } else { Scale::SMOKE };
    if let Ok(rounds) = env::var("BENCH_ROUNDS") {
        scale.rounds = rounds.parse()?;
    }
    let proxy = Proxy::Ambient(Mesh::binary()?);
    let mesh = Arc::new(Mesh::start(world, "ambient", 1, &proxy, Pods::Beside)?);
    let bare = Mesh::bare(world, "no mesh", 2, Pods::Beside)?;
    let before = match env::var_os("BENCH_BEFORE") {
        Some(other) => Some(Mesh::start(world, "before", 3, &Proxy::Ambient(other.into()), Pods::Beside)?),
        None => None,
    };
    println!(
        "\nmedians of {} rounds; a ratio is to the same alone, in its round\n{:<34} {:<8} {:>10} {:>10} {:>8} {:>8} {:>12}",
        scale.rounds, "load", "way", "rate", "p99", "rate x", "p99 x", "storm"
    );
    for (kind, means) in [("storm", Means::Leavings), ("harsh", Means::Equal)] {
        for (name, ill) in [("connects", Ill::Connects), ("is refused", Ill::IsRefused), ("sends", Ill::Sends)] {
            for (beside, work, connections) in [("echo/8", Work::Echo, 8), ("connect/1", Work::Touch, 1)] {
                let name = format!("{kind}/{name}/{beside}");
                if report::is_asked_for(&name) {
                    for mesh in [Some(&bare), Some(&*mesh), before.as_ref()].into_iter().flatten() {
                        storm(mesh, &name, (ill, means), &Bystander::new(mesh, work, connections), &scale);
                    }
                }
            }
        }
    }
    if report::is_asked_for("scrapes") {
        scrapes(&mesh, &scale)?;
    }
    Ok(())
}

/// How much is done.
struct Scale {
    rounds: usize,
    span: Duration,
    at_once: usize,
    met: u16,
}

impl Scale {
    const WHOLE: Self = Self {
        rounds: 7,
        span: Duration::from_secs(2),
        at_once: 256,
        met: 9_900,
    };
    const SMOKE: Self = Self {
        rounds: 1,
        span: Duration::from_millis(100),
        at_once: 8,
        met: 20,
    };
}

fn storm(mesh: &Mesh, name: &str, (ill, means): (Ill, Means), bystander: &Bystander, scale: &Scale) {
    let mut rounds = Vec::new();
    let mut rates = Vec::new();
    for _ in 0..scale.rounds {
        let alone = bystander.look(scale.span);
        let storm = Storm::begin(mesh, ill, means, scale.at_once);
        // Once it is in full swing.
        std::thread::sleep(scale.span / 4);
        let before = storm.done();
        let beside = bystander.look(scale.span);
        rates.push((storm.done() - before) as f64 / scale.span.as_secs_f64());
        drop(storm);
        rounds.push((alone, beside));
    }
    print(name, mesh.name, &rounds, &format!("{:.0}/s", median(rates)));
}

/// Between scrapes, and beside one a second.
fn scrapes(mesh: &Arc<Mesh>, scale: &Scale) -> Result {
    meet_many(mesh, scale.met)?;
    let page = scrape(mesh)?;
    let series = page.lines().filter(|line| !line.starts_with('#')).count();
    println!("{series} series, a page of {} MiB", page.len() >> 20);
    for (name, work, connections) in [("scrapes/echo/8", Work::Echo, 8), ("scrapes/connect/1", Work::Touch, 1)] {
        let bystander = Bystander::new(mesh, work, connections);
        let (mut rounds, mut pages) = (Vec::new(), 0);
        for _ in 0..scale.rounds {
            let alone = bystander.look(scale.span);
            let scraping = Scrapes::begin(mesh, Duration::from_secs(1));
            let beside = bystander.look(scale.span);
            pages += scraping.end();
            rounds.push((alone, beside));
        }
        print(name, mesh.name, &rounds, &format!("{pages} pages"));
    }
    Ok(())
}

fn print(name: &str, way: &str, rounds: &[(Seen, Seen)], storm: &str) {
    let of = |value: fn(&(Seen, Seen)) -> f64| median(rounds.iter().map(value).collect());
    println!(
        "{name:<34} {way:<8} {:>8.0}/s {:>7.2} ms {:>8.2} {:>8.2} {storm:>12}",
        of(|(_, beside)| beside.rate),
        of(|(_, beside)| beside.p99.as_secs_f64() * 1e3),
        of(|(alone, beside)| beside.rate / alone.rate),
        of(|(alone, beside)| beside.p99.as_secs_f64() / alone.p99.as_secs_f64()),
    );
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

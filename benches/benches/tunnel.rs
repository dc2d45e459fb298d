//! Tunnels beside direct TCP and beside bare TLS, over loopback, in one run: the ratio to bare TLS is what is read.
//!
//! Each proxy has a thread and a runtime of its own, as on two nodes; so has the application. Bare TLS is one TLS
//! connection for each TCP connection (TLS 1.3, mutual, P-256, the tunnel's cipher suites and groups, resumption as rustls
//! has it by default) with buffers of 64 KiB.
//!
//! After criterion's figures come the ratios: medians and quartiles over rounds in which the three follow each other.

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    runtime::Runtime,
    task::JoinSet,
};

use crate::{app::Work, way::Way};

#[path = "tunnel/app.rs"]
mod app;
#[path = "tunnel/certs.rs"]
mod certs;
#[path = "tunnel/hbone.rs"]
mod hbone;
#[path = "tunnel/tls.rs"]
mod tls;
#[path = "tunnel/way.rs"]
mod way;

/// What is done over how many connections.
struct Load {
    name: &'static str,
    work: Work,
    connections: usize,
}

const LOADS: [Load; 6] = [
    Load {
        name: "upload/1",
        work: Work::Upload,
        connections: 1,
    },
    Load {
        name: "upload/8",
        work: Work::Upload,
        connections: 8,
    },
    Load {
        name: "download/1",
        work: Work::Download,
        connections: 1,
    },
    Load {
        name: "download/8",
        work: Work::Download,
        connections: 8,
    },
    Load {
        name: "echo/1",
        work: Work::Echo,
        connections: 1,
    },
    Load {
        name: "echo/32",
        work: Work::Echo,
        connections: 32,
    },
];

fn main() {
    let asked = |what: &str| std::env::args().any(|arg| arg == what);
    // Criterion's rule: without `--bench`, as `cargo test` starts it, each bench runs once.
    let smoke = !asked("--bench") || asked("--test") || asked("--list");
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1500))
        .configure_from_args();
    let ways = way::all();
    let runtime = app::runtime();
    for load in &LOADS {
        let (group, _) = load.name.split_once('/').expect("a load's name has two parts");
        let mut group = criterion.benchmark_group(format!("tunnel/{group}"));
        group.throughput(load.throughput());
        for way in &ways {
            let mut connections = runtime.block_on(load.connect(way));
            group.bench_function(BenchmarkId::new(way.name, load.connections), |bencher| {
                bencher.iter_custom(|rounds| load.run(&runtime, &mut connections, rounds));
            });
        }
        group.finish();
    }
    criterion.final_summary();
    if !smoke {
        print_ratios(&ways, &runtime);
    }
}

impl Load {
    fn throughput(&self) -> Throughput {
        let times = self.connections as u64;
        match self.work {
            Work::Echo => Throughput::Elements(times),
            Work::Upload | Work::Download => Throughput::Bytes(self.work.bytes() as u64 * times),
        }
    }

    async fn connect(&self, way: &Way) -> Vec<TcpStream> {
        let mut connections = Vec::new();
        for _ in 0..self.connections {
            let mut connection = TcpStream::connect(way.entrance).await.expect("the entrance listens");
            connection.set_nodelay(true).expect("a TCP option");
            connection.write_all(&[self.work as u8]).await.expect("the way is open");
            connections.push(connection);
        }
        connections
    }

    /// `rounds` pieces of work on each connection, all connections at once.
    fn run(&self, runtime: &Runtime, connections: &mut Vec<TcpStream>, rounds: u64) -> Duration {
        let work = self.work;
        runtime.block_on(async {
            let start = now();
            let mut all = JoinSet::new();
            for mut connection in connections.drain(..) {
                all.spawn(async move {
                    let mut buffer = vec![7; work.bytes()];
                    for _ in 0..rounds {
                        do_once(work, &mut connection, &mut buffer).await.expect("the way stays open");
                    }
                    connection
                });
            }
            connections.extend(all.join_all().await);
            start.elapsed()
        })
    }
}

async fn do_once(work: Work, connection: &mut TcpStream, buffer: &mut [u8]) -> std::io::Result<()> {
    match work {
        Work::Upload => {
            connection.write_all(buffer).await?;
            connection.read_exact(&mut [0]).await?;
        }
        Work::Download => {
            connection.write_all(&[0]).await?;
            connection.read_exact(buffer).await?;
        }
        Work::Echo => {
            connection.write_all(buffer).await?;
            connection.read_exact(buffer).await?;
        }
    }
    Ok(())
}

/// Rates relative to bare TLS in the same round: median and quartiles of eleven rounds.
fn print_ratios(ways: &[Way], runtime: &Runtime) {
    println!("\nratio to bare TLS, median (quartiles) of 11 interleaved rounds");
    for load in &LOADS {
        let mut ratios = vec![Vec::new(); ways.len()];
        let mut rates = vec![Vec::new(); ways.len()];
        let mut connections: Vec<_> = ways.iter().map(|way| runtime.block_on(load.connect(way))).collect();
        for _ in 0..11 {
            let round: Vec<f64> = connections.iter_mut().map(|connections| rate(load, runtime, connections)).collect();
            let base = round[way::TLS];
            for (way, rate) in round.into_iter().enumerate() {
                ratios[way].push(rate / base);
                rates[way].push(rate);
            }
        }
        for (way, name) in ways.iter().map(|way| way.name).enumerate() {
            let (low, ratio, high) = quartiles(&mut ratios[way]);
            let (_, rate, _) = quartiles(&mut rates[way]);
            let rate = match load.work {
                Work::Echo => format!("{:.1} k/s", rate / 1e3),
                Work::Upload | Work::Download => format!("{:.1} Gbit/s", rate * load.work.bytes() as f64 * 8.0 / 1e9),
            };
            println!("{:<12} {name:<7} {rate:>12}  {ratio:.2} ({low:.2}-{high:.2})", load.name);
        }
    }
}

/// Pieces of work per second over about a quarter of a second.
fn rate(load: &Load, runtime: &Runtime, connections: &mut Vec<TcpStream>) -> f64 {
    let mut rounds = match load.work {
        Work::Echo => 50,
        Work::Upload | Work::Download => 2,
    };
    loop {
        let took = load.run(runtime, connections, rounds);
        if took > Duration::from_millis(200) {
            return (rounds * load.connections as u64) as f64 / took.as_secs_f64();
        }
        rounds *= if took < Duration::from_millis(60) { 4 } else { 2 };
    }
}

fn quartiles(values: &mut [f64]) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    (values[n / 4], values[n / 2], values[n * 3 / 4])
}

#[expect(clippy::disallowed_methods, reason = "a bench measures time")]
fn now() -> Instant {
    Instant::now()
}

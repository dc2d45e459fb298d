//! What an idle connection costs at each end of a pair, in bytes on the heap: relayed through bare TLS, relayed through a
//! tunnel, and a tunnel's stream alone. Tunnels, as many as the pool makes, are shared out among their streams.

use std::{
    env, fs,
    io::{self, Read, Write},
    net::TcpStream,
    process::Command,
    thread,
    time::Duration,
};

use ambient_benches::{Sides, Warmth, Way, app::Work, report};
use ambient_testkit::heap::CountingHeap;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

#[global_allocator]
static HEAP: CountingHeap = CountingHeap;

fn main() -> io::Result<()> {
    let asked = |what: &str| env::args().any(|arg| arg == what);
    if asked("--list") || !report::is_asked_for("memory") {
        return Ok(());
    }
    let smoke = !asked("--bench") || asked("--test");
    let streams = match env::var("BENCH_STREAMS") {
        Ok(streams) => streams.parse().map_err(io::Error::other)?,
        Err(_) => 10_000,
    };
    let streams = if smoke { 300 } else { streams };
    let sides = Sides::loopback();
    // Descriptors of a connection, one of them the client's and one the application's.
    match env::var(WAY).as_deref() {
        Ok("tls") => measure(allowed(streams, 6), &Way::tls(&sides, Warmth::Warm), relayed),
        Ok("hbone") => measure(allowed(streams, 4), &Way::hbone(&sides, Warmth::Warm), relayed),
        Ok(_) => measure(streams, &Way::held_streams(&sides), held),
        Err(_) => all(),
    }
}

/// Each way in a process of its own: one that was larger before would not grow.
fn all() -> io::Result<()> {
    println!("bytes of each idle connection of one pair\n");
    println!(
        "{:<20} {:>12} {:>10} {:>10} {:>14} {:>13}",
        "way", "connections", "near heap", "far heap", "resident, all", "kernel, all"
    );
    for way in ["tls", "hbone", "alone"] {
        let status = Command::new(env::current_exe()?)
            .args(env::args_os().skip(1))
            .env(WAY, way)
            .status()?;
        if !status.success() {
            return Err(io::Error::other(format!("{way}: {status}")));
        }
    }
    Ok(())
}

/// Opens one, so that what a pair needs anyhow is there, and then the others.
fn measure(streams: u32, way: &Way, open: fn(&Way, u32) -> io::Result<Vec<TcpStream>>) -> io::Result<()> {
    let mut samples = [Vec::new(), Vec::new()];
    let mut kept = Vec::new();
    for (sample, more) in samples.iter_mut().zip([1, streams]) {
        kept.push(open(way, more)?);
        // What is done behind the answers is done by then.
        thread::sleep(Duration::from_millis(500));
        *sample = way.held();
        sample.extend([resident()?, slab()?]);
    }
    let [before, after] = samples;
    let each: Vec<i64> = before
        .iter()
        .zip(after)
        .map(|(before, after)| (after - before) / i64::from(streams))
        .collect();
    println!(
        "{:<20} {streams:>12} {:>10} {:>10} {:>14} {:>13}",
        way.name, each[0], each[1], each[2], each[3]
    );
    Ok(())
}

/// Connections on which 1 KiB went there and back.
fn relayed(way: &Way, connections: u32) -> io::Result<Vec<TcpStream>> {
    let connect = |_| {
        let mut connection = TcpStream::connect(way.entrance())?;
        let mut message = [7; 1 << 10];
        connection.write_all(&Work::Echo.order(1))?;
        connection.write_all(&message)?;
        connection.read_exact(&mut message)?;
        Ok(connection)
    };
    (0..connections).map(connect).collect()
}

/// Streams without a relay, and the one connection that keeps them.
fn held(way: &Way, streams: u32) -> io::Result<Vec<TcpStream>> {
    let mut connection = TcpStream::connect(way.entrance())?;
    connection.write_all(&streams.to_be_bytes())?;
    connection.read_exact(&mut [0])?;
    Ok(vec![connection])
}

/// As many as there are descriptors for, at most so many.
fn allowed(connections: u32, descriptors: u32) -> u32 {
    let needed = u64::from(connections * descriptors) + OTHERS;
    let most = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    // Only root may have more than the most.
    let granted = [needed.max(most), most].into_iter().find(|most| {
        let limit = Rlimit {
            current: Some(*most),
            maximum: Some(*most),
        };
        setrlimit(Resource::Nofile, limit).is_ok()
    });
    let granted = granted.unwrap_or(OTHERS).min(needed) - OTHERS;
    u32::try_from(granted / u64::from(descriptors)).unwrap_or(connections)
}

/// Bytes of the whole process in memory: both proxies, the application and the client.
fn resident() -> io::Result<i64> {
    kib("/proc/self/status", "VmRSS:")
}

/// Bytes of the kernel's small objects, of the whole machine: sockets, their buffers, descriptors.
fn slab() -> io::Result<i64> {
    kib("/proc/meminfo", "Slab:")
}

fn kib(file: &str, name: &str) -> io::Result<i64> {
    let text = fs::read_to_string(file)?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    let number = line.trim().trim_end_matches(" kB").parse::<i64>().map_err(io::Error::other)?;
    Ok(number << 10)
}

/// Descriptors that the process needs besides.
const OTHERS: u64 = 500;

/// Which way a process measures.
const WAY: &str = "BENCH_WAY";

//! What it takes to enrol pods and to keep them: one, one with open connections, 250 at once, and the steady verification of 250; by
//! the node proxy in this process (with `BENCH_STAND_IN` by a stand-in for it); as root or not.

use std::{
    env,
    error::Error,
    time::{Duration, Instant},
};

use ambient_benches::{
    enrolment::{Node, Running},
    report,
};
use ambient_redirect::PodSpec;
use ambient_testkit::{World, world};
use rustix::time::{ClockId, clock_gettime};
use tokio::time::sleep;

const PODS: u16 = 250;
const OPEN: usize = 100;

fn main() -> Result<(), Box<dyn Error>> {
    let asked = |what: &str| env::args().any(|arg| arg == what);
    if asked("--list") {
        return Ok(());
    }
    let smoke = !asked("--bench") || asked("--test");
    // While this is the only thread.
    let Some(world) = world::enter_or_skip("enrolment_pods")? else {
        return Ok(());
    };
    let pods = if smoke { 5 } else { PODS };
    one_pod(&world, smoke)?;
    many_pods(&world, pods, smoke)
}

/// From the word that a pod is to be in the mesh until it is proven and announced: a hundred times.
fn one_pod(world: &World, smoke: bool) -> Result<(), Box<dyn Error>> {
    if !report::is_asked_for("one_pod") {
        return Ok(());
    }
    let node = Node::new(world, 1..2)?;
    node.run(async {
        let mut running = node.start(stand_in()).await.expect("an enrolment starts");
        // The namespace is there, and known, when the word comes.
        running.want(node.pods()).await;
        let mut measure = async |what: &str, promised| {
            let mut times = Vec::new();
            for _ in 0..if smoke { 1 } else { 100 } {
                running.want(&[]).await;
                node.is_clear().await;
                sleep(Duration::from_millis(20)).await;
                times.push(enrol(&mut running, node.pods()).await);
            }
            report(what, times, promised);
        };
        measure("one pod enrolled, everything proven", Duration::from_millis(10)).await;
        let _open = node.connect(OPEN).expect("connections");
        let what = format!("the same with {OPEN} connections open, which are kept");
        measure(&what, Duration::from_millis(20)).await;
    })?;
    Ok(())
}

fn stand_in() -> bool {
    env::var_os("BENCH_STAND_IN").is_some()
}

/// All at once, and then nothing but their verification.
fn many_pods(world: &World, pods: u16, smoke: bool) -> Result<(), Box<dyn Error>> {
    let (many, steady) = (report::is_asked_for("many_pods"), report::is_asked_for("steady"));
    if !many && !steady {
        return Ok(());
    }
    let node = Node::new(world, 2..pods + 2)?;
    node.run(async {
        let mut running = node.start(stand_in()).await.expect("an enrolment starts");
        let mut times = Vec::new();
        for _ in 0..if smoke || !many { 1 } else { 5 } {
            running.want(&[]).await;
            node.is_clear().await;
            sleep(Duration::from_millis(300)).await;
            times.push(enrol(&mut running, node.pods()).await);
        }
        if many {
            report(&format!("{pods} pods enrolled at once"), times, Duration::from_secs(2));
        }
        if steady {
            let window = match env::var("BENCH_SECONDS") {
                Ok(seconds) => Duration::from_secs(seconds.parse().expect("BENCH_SECONDS is a number")),
                // In which each pod is proven once.
                Err(_) => Duration::from_secs(if smoke { 1 } else { 30 }),
            };
            let windows = if smoke { 1 } else { 4 };
            // What was begun with all of them is over, and verifications are spread as they will stay.
            sleep(if smoke { Duration::ZERO } else { Duration::from_secs(10) }).await;
            let before = running.repairs();
            steady_verification(pods, windows, window).await;
            assert_eq!(running.repairs(), before, "nobody touches anything");
        }
    })?;
    Ok(())
}

/// CPU time of all threads, in the kernel and outside, in one window after the other. What the host of a virtual machine takes of
/// its time is counted along: the least is what it costs when nobody does.
async fn steady_verification(pods: u16, windows: usize, window: Duration) {
    let mut shares = Vec::new();
    for _ in 0..windows {
        let (begun, before) = (now(), cpu());
        sleep(window).await;
        let (took, used) = (begun.elapsed(), cpu() - before);
        shares.push(used.as_secs_f64() / took.as_secs_f64() * 100.0);
    }
    shares.sort_unstable_by(f64::total_cmp);
    let all: Vec<String> = shares.iter().map(|share| format!("{share:.2}")).collect();
    let (least, all) = (shares[0], all.join(", "));
    println!("{pods} pods kept verified: {least:.2} % of a core (promised: 1 %), the least of {windows} times {window:?}: {all}");
}

/// Time on the clock, and of the processor.
async fn enrol(running: &mut Running, pods: &[PodSpec]) -> [Duration; 2] {
    let (begun, before) = (now(), cpu());
    running.want(pods).await;
    [begun.elapsed(), cpu() - before]
}

fn report(what: &str, times: Vec<[Duration; 2]>, promised: Duration) {
    let [wall, cpu] = [0, 1].map(|which| {
        let mut all: Vec<Duration> = times.iter().map(|t| t[which]).collect();
        all.sort_unstable();
        let at = |part: usize| all[(all.len() - 1) * part / 100];
        format!(
            "median {:.2?} (fastest {:.2?}, 90 % {:.2?}, slowest {:.2?})",
            at(50),
            at(0),
            at(90),
            at(100)
        )
    });
    println!(
        "{what}, {} times, promised {promised:.0?}:\n  on the clock {wall}\n  of the processor {cpu}",
        times.len()
    );
}

fn cpu() -> Duration {
    let spent = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(spent.tv_sec.unsigned_abs(), u32::try_from(spent.tv_nsec).unwrap_or(0))
}

#[expect(clippy::disallowed_methods, reason = "a bench measures time")]
fn now() -> Instant {
    Instant::now()
}

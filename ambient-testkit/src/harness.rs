//! A test runner for tests that live in a private world.
#![allow(unsafe_code, reason = "a hook between fork and exec")]

mod options;
mod pulse;
mod scene;

use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    fs,
    io::{self, Read, Write},
    os::fd::AsFd,
    panic,
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

pub(crate) use self::options::Options;
use self::pulse::Pulse;
use crate::{NoWorld, Program, World, skip, sys, world};

/// What a test gives back: an error is a failure and is printed.
pub type Outcome = Result<(), Box<dyn std::error::Error>>;

/// A test: its name, and what it does in a world of its own.
pub type Test = (&'static str, fn(&World) -> Outcome);

/// Something else that the test binary can be, so that a test can run its own code as a program in a namespace: see
/// [`Program::actor`]. It is given the arguments after its name.
pub type Actor = (&'static str, fn(Vec<OsString>) -> ExitCode);

/// The `main` of a test binary with `harness = false`.
///
/// Runs each test in a process of its own that has [entered](world::enter) a fresh world, one after the other, and
/// prints what libtest prints. Takes libtest's arguments as far as they make sense: names to filter by, `--exact`,
/// `--skip`, `--list`, `--format terse`, `--ignored`, `--nocapture`; the others are taken and change nothing. Where the
/// machine refuses a world, each test is printed as ignored, with the reason, and the binary succeeds, unless
/// `AMBIENT_WORLDS` is `required`. A test that takes longer than two minutes, or `AMBIENT_TEST_DEADLINE_SECONDS`, is killed and has failed. One that fails while a
/// processor of the machine stands for seconds, as a virtual one can, is run once more, and that is printed.
///
/// ```no_run
/// use std::process::ExitCode;
/// use ambient_testkit::{World, harness::{self, Outcome}};
///
/// fn main() -> ExitCode {
///     harness::main(&[("a_namespace_has_a_name", a_namespace_has_a_name)])
/// }
///
/// fn a_namespace_has_a_name(world: &World) -> Outcome {
///     assert_eq!(world.namespace("pod")?.path(), world.netns_dir().join("pod"));
///     Ok(())
/// }
/// ```
pub fn main(tests: &[Test]) -> ExitCode {
    main_with_actors(tests, &[])
}

/// The same for a binary whose tests start the binary itself: see [`Program::actor`].
pub fn main_with_actors(tests: &[Test], actors: &[Actor]) -> ExitCode {
    let mut args: Vec<OsString> = env::args_os().skip(1).collect();
    if args.len() >= 2 && (args[0] == ACT || args[0] == RUN) {
        let rest = args.split_off(2);
        let actor = actors.iter().find(|(name, _)| args[0] == ACT && args[1] == *name);
        let test = tests.iter().find(|(name, _)| args[0] == RUN && args[1] == *name);
        return match (actor, test) {
            (Some((_, act)), _) => act(rest),
            (None, Some((_, test))) => run_inside(*test),
            (None, None) => {
                eprintln!("nothing here is named {:?}", args[1]);
                ExitCode::from(FAILED)
            }
        };
    }
    let options = match Options::parse(args) {
        Ok(options) => options,
        Err(e) => {
            eprintln!("error: {e}");
            return ExitCode::from(FAILED);
        }
    };
    let chosen: Vec<Test> = tests.iter().copied().filter(|(name, _)| options.takes(name)).collect();
    if options.list {
        list(&chosen, &options)
    } else {
        run_all(&chosen, tests.len(), &options)
    }
}

/// What the machine, and this process with all that it has begun, are at now: for a test that has waited in vain, before what it
/// waited for is gone. A test that takes too long is killed with the same words.
pub fn scene() -> String {
    scene::of(std::process::id())
}

impl Program {
    /// The running test binary as one of its [`Actor`]s.
    pub fn actor(name: &str) -> Self {
        Self::this().arg(ACT).arg(name)
    }
}

fn list(chosen: &[Test], options: &Options) -> ExitCode {
    for (name, _) in chosen {
        println!("{name}: test");
    }
    if !options.terse {
        println!("\n{} tests, 0 benchmarks", chosen.len());
    }
    ExitCode::SUCCESS
}

#[expect(clippy::disallowed_methods, reason = "how long the tests took is only printed")]
fn run_all(chosen: &[Test], all: usize, options: &Options) -> ExitCode {
    let begun = Instant::now();
    println!("\nrunning {} test{}", chosen.len(), if chosen.len() == 1 { "" } else { "s" });
    let (mut passed, mut ignored, mut failures) = (0, 0, Vec::new());
    let mut skipped: BTreeMap<String, usize> = BTreeMap::new();
    let pulse = Pulse::begin();
    for (name, _) in chosen {
        print!("test {name} ... ");
        let _ = io::stdout().flush();
        pulse.take();
        let mut ran = run_apart(name, options.nocapture);
        let (mut beats, late) = pulse.take();
        if late >= STOOD && matches!(ran, Ok(Verdict::Failed(_))) {
            print!("again, as a processor of this machine stood for {} s ... ", late.as_secs());
            let _ = io::stdout().flush();
            ran = run_apart(name, options.nocapture);
            (beats, _) = pulse.take();
        }
        match ran {
            Ok(Verdict::Passed) => {
                passed += 1;
                println!("ok");
            }
            Ok(Verdict::Skipped(why)) => {
                ignored += 1;
                println!("ignored, skipped: {why}");
                *skipped.entry(why).or_default() += 1;
            }
            Ok(Verdict::Failed(output)) => {
                println!("FAILED");
                failures.push((name, output + &beats));
            }
            Err(e) => {
                println!("FAILED");
                failures.push((name, format!("the test's process: {e}\n")));
            }
        }
    }
    for (why, count) in skipped {
        skip::keep(format_args!("{}: {count} of its tests: {why}", skip::program()));
    }
    if !failures.is_empty() {
        println!("\nfailures:\n");
        failures.iter().for_each(|(name, output)| println!("---- {name} ----\n{output}"));
        println!("failures:");
        failures.iter().for_each(|(name, _)| println!("    {name}"));
    }
    let verdict = if failures.is_empty() { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {verdict}. {passed} passed; {} failed; {ignored} ignored; 0 measured; {} filtered out; finished in {:.2}s\n",
        failures.len(),
        all - chosen.len(),
        begun.elapsed().as_secs_f64()
    );
    if failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(FAILED)
    }
}

enum Verdict {
    Passed,
    Skipped(String),
    Failed(String),
}

/// How long a test may take; `AMBIENT_TEST_DEADLINE_SECONDS` says otherwise, for those that go on for as long as they are told.
fn deadline() -> Duration {
    let told = env::var(DEADLINE_SECONDS).ok().and_then(|text| text.parse().ok());
    told.map_or(DEADLINE, Duration::from_secs)
}

/// Runs one test in a process of its own; at most for the [`deadline`].
fn run_apart(name: &str, nocapture: bool) -> io::Result<Verdict> {
    let mut output = tempfile::tempfile()?;
    // The reason of a skip goes by a way of its own, so that a test's output cannot be taken for one.
    let reason = tempfile::NamedTempFile::new()?;
    let mut command = Command::new("/proc/self/exe");
    command.args([RUN, name]).env(REASON, reason.path()).stdin(Stdio::null());
    if !nocapture {
        command.stdout(output.try_clone()?).stderr(output.try_clone()?);
    }
    let parent = rustix::process::getpid().as_raw_nonzero().get();
    // SAFETY: two system calls that touch no memory.
    unsafe { std::os::unix::process::CommandExt::pre_exec(&mut command, move || sys::die_with(parent)) };
    let mut child = command.spawn()?;
    let pidfd = rustix::process::pidfd_open(rustix::process::Pid::from_child(&child), rustix::process::PidfdFlags::empty())?;
    let ended = sys::readable([pidfd.as_fd()], Some(deadline()))?[0];
    let mut scene = String::new();
    if !ended {
        scene = scene::of(child.id());
        child.kill()?;
    }
    let status = child.wait()?;
    if status.success() {
        return Ok(Verdict::Passed);
    }
    if status.code() == Some(i32::from(SKIPPED)) {
        return Ok(Verdict::Skipped(fs::read_to_string(reason.path())?.replace('\n', " ")));
    }
    let mut text = String::new();
    io::Seek::rewind(&mut output)?;
    let mut bytes = Vec::new();
    output.take(OUTPUT_LIMIT).read_to_end(&mut bytes)?;
    text.push_str(&String::from_utf8_lossy(&bytes));
    text.push_str(&if ended {
        format!("(ended by {status})\n")
    } else {
        format!("{scene}(killed after {} s)\n", deadline().as_secs())
    });
    Ok(Verdict::Failed(text))
}

/// What the process of one test does.
fn run_inside(test: fn(&World) -> Outcome) -> ExitCode {
    let world = match world::enter() {
        Ok(world) => world,
        Err(NoWorld::Refused(refused)) => {
            if let Some(path) = env::var_os(REASON) {
                let _ = fs::write(path, refused.to_string());
            }
            return ExitCode::from(SKIPPED);
        }
        Err(NoWorld::Failed(failed)) => {
            eprintln!("error: {failed}");
            return ExitCode::from(FAILED);
        }
    };
    match panic::catch_unwind(panic::AssertUnwindSafe(|| test(&world))) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(e)) => {
            eprintln!("error: {e}");
            let mut cause = e.source();
            while let Some(e) = cause {
                eprintln!("  because: {e}");
                cause = e.source();
            }
            ExitCode::from(FAILED)
        }
        // The panic's message was printed where it happened.
        Err(_) => ExitCode::from(FAILED),
    }
}

const ACT: &str = "--ambient-act";
const RUN: &str = "--ambient-run";
const REASON: &str = "AMBIENT_TEST_REASON";
const FAILED: u8 = 101;
const SKIPPED: u8 = 77;
const DEADLINE: Duration = Duration::from_secs(120);
const DEADLINE_SECONDS: &str = "AMBIENT_TEST_DEADLINE_SECONDS";
/// A processor that runs nothing for so long has been taken away: however many threads there are, each has its turn sooner.
const STOOD: Duration = Duration::from_secs(3);
const OUTPUT_LIMIT: u64 = 4 << 20;

//! `ambient lab`: a mesh of real pods on this machine, brought up, shown at work, and torn down.
//!
//! What Kubernetes does is the testkit's; what a node does is `ambient node`, started for each node as any node would
//! be. Here are the steps, the little application that runs in the pods, and how it all is printed.

mod app;
mod ending;
mod evidence;
mod ground;
mod report;
mod steps;

use std::{ffi::OsString, path::Path, process::ExitCode, thread, time::Duration};

use ambient_testkit::{
    NoWorld, World,
    cluster::{DATAPLANE_MODE, Key, Object},
    kept::{self, Down, Kept, KeptError},
    world,
};
use clap::Subcommand;

pub(crate) use self::app::AppArgs;
use self::{
    ending::Ending,
    ground::{Ask, Lab, Unmet, is_whole, manifests},
    report::Reporter,
    steps::STEPS,
};
use crate::say;

/// What `ambient lab` is asked to do.
#[derive(Debug, Clone, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    /// Print one JSON object for each step.
    #[arg(long)]
    json: bool,
    /// Stay up after the steps, with the mesh in force, until Ctrl-C or `lab down`.
    #[arg(long)]
    keep: bool,
    /// Have the nodes live on `ambient control` instead of the directories.
    #[cfg(feature = "control")]
    #[arg(long)]
    control: bool,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Clone, Subcommand)]
enum Verb {
    /// Run a program of this machine in a pod (or node) of a kept lab.
    Exec {
        /// The pod's name, or the node's.
        pod: String,
        /// The program and its arguments.
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// End a kept lab, and remove what a crashed one left behind.
    Down,
}

/// Runs the lab. To be called first thing in `main`: worlds are made and entered by processes with a single thread.
pub(crate) fn main(args: Args) -> ExitCode {
    #[cfg(feature = "control")]
    let control = args.control;
    #[cfg(not(feature = "control"))]
    let control = false;
    match args.verb {
        Some(Verb::Exec { pod, command }) => exec(&pod, &command),
        Some(Verb::Down) => down(),
        None => run(args.json, args.keep, control),
    }
}

/// Runs what runs in pods.
pub(crate) fn app(args: AppArgs) -> ExitCode {
    app::main(args)
}

fn run(json: bool, keep: bool, control: bool) -> ExitCode {
    let mut reporter = Reporter::new(json);
    let world = match world::enter() {
        Ok(world) => world,
        Err(NoWorld::Refused(refused)) => {
            reporter.skipped(&refused.to_string());
            return ExitCode::from(REFUSED);
        }
        Err(NoWorld::Failed(failed)) => {
            say::tell(format_args!("lab: {failed}"));
            return ExitCode::FAILURE;
        }
    };
    let ending = match prepare(&world, keep) {
        Ok(ending) => ending,
        Err(e) => {
            reporter.progress(&e);
            return ExitCode::FAILURE;
        }
    };
    reporter.progress("bringing up two nodes and their pods");
    let dir = ending.directory().unwrap_or_else(|| world.scratch_dir());
    let lab = run_steps(&world, &dir, control, &mut reporter);
    let passed = reporter.end();
    let code = if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    let (true, Some(mut lab)) = (keep, lab) else { return code };
    match stay(&mut lab, &ending) {
        Ok(line) => reporter.ready(&line),
        Err(e) => {
            reporter.progress(&format!("the lab cannot be kept: {e}"));
            return ExitCode::FAILURE;
        }
    }
    ending.is_orderly_from_now_on(passed);
    loop {
        // The thread that waits for signals ends the process.
        thread::park();
    }
}

/// Claims the kept lab's directory if there is to be one, and sees to it that signals end everything.
fn prepare(world: &World, keep: bool) -> Result<Ending, String> {
    let kept = if keep {
        Some(Kept::claim(world).map_err(|e| e.to_string())?)
    } else {
        None
    };
    Ending::watch(kept).map_err(|e| format!("waiting for signals: {e}"))
}

/// Runs every step; gives the lab, unless it did not come up.
fn run_steps(world: &World, dir: &Path, control: bool, reporter: &mut Reporter) -> Option<Lab> {
    match Lab::bring_up(world, dir, control) {
        Ok(mut lab) => {
            for step in STEPS {
                reporter.progress(step.name);
                let outcome = step.run(&mut lab);
                reporter.step(&outcome);
            }
            Some(lab)
        }
        Err(e) => {
            for step in STEPS {
                reporter.step(&step.fails(&format!("the lab did not come up: {e}")));
            }
            None
        }
    }
}

/// Puts the mesh in the state in which a kept lab is left to its user; gives the line that says how to use it.
fn stay(lab: &mut Lab, ending: &Ending) -> Result<String, Unmet> {
    lab.cluster
        .label(&Key::new("Namespace", "", "demo"), DATAPLANE_MODE, Some("ambient"))?;
    for (text, wanted) in [
        (manifests::ALLOW_NOTHING, false),
        (manifests::STRICT, false),
        (manifests::ALLOW_CHAIN, true),
    ] {
        for object in Object::parse_all(text).map_err(ambient_testkit::cluster::ClusterError::from)? {
            if !wanted && lab.cluster.object(object.key()).is_some() {
                lab.cluster.delete(object.key())?;
            }
        }
        if wanted {
            lab.cluster.apply(text)?;
        }
    }
    lab.all_captured()?;
    lab.call_until("sleep", &Ask::get("http://web-api:8080/"), is_whole)?;
    lab.call_until("notsleep", &Ask::get("http://web-api:8080/"), |o| {
        o.failure == Some(app::Failure::Empty)
    })?;
    let places = lab.places()?;
    ending
        .publish(places.iter().map(|(name, namespace, view)| (*name, *namespace, *view)))
        .map_err(Unmet::saw)?;
    let names: Vec<&str> = places.iter().map(|(name, ..)| *name).collect();
    Ok(format!(
        "run any program in {} by `ambient lab exec POD -- COMMAND`, such as `ambient lab exec sleep -- curl -s http://web-api:8080/`; \
         manifests to change are in {}; Ctrl-C or `ambient lab down` ends the lab",
        names.join(", "),
        lab.cluster.manifests().display()
    ))
}

fn exec(pod: &str, command: &[OsString]) -> ExitCode {
    let Some((program, args)) = command.split_first() else {
        return ExitCode::from(USAGE);
    };
    match kept::exec(pod, program, args) {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            say::tell(format_args!("lab exec: {e}"));
            ExitCode::from(e.exit_code())
        }
    }
}

fn down() -> ExitCode {
    let said = |ended: Down| match ended {
        Down::Ended => "the lab has ended",
        Down::Cleaned => "no lab was running; what one had left behind is removed",
        Down::Nothing => "no lab was running",
    };
    match kept::down(DOWN_GRACE).map(said) {
        Ok(said) => {
            say::tell(format_args!("lab down: {said}"));
            ExitCode::SUCCESS
        }
        Err(e @ KeptError::Unsafe { .. }) => {
            say::tell(format_args!("lab down: {e}"));
            ExitCode::from(REFUSED)
        }
        Err(e) => {
            say::tell(format_args!("lab down: {e}"));
            ExitCode::FAILURE
        }
    }
}

/// The exit code when the machine does not allow a lab.
const REFUSED: u8 = 2;
/// The exit code of a command line that makes no sense.
const USAGE: u8 = 2;
const DOWN_GRACE: Duration = Duration::from_secs(5);

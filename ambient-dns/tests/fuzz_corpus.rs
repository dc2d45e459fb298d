//! Replays the corpora of the fuzz targets. Without libtest, which would run the tests of what is included here once more.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{env, fs, panic, path::Path, process::ExitCode};

mod fuzz;
#[allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    reason = "the pure half as it is, of which the targets run a part"
)]
#[path = "../src"]
mod sources {
    pub(crate) mod exchange;
    pub(crate) mod wire;
}

use sources::{exchange, wire};

/// A target by its name.
type Target = (&'static str, fn(&[u8]));

const TARGETS: [Target; 2] = [("answer", fuzz::answer), ("exchange", fuzz::exchange)];

/// Takes what test runners ask for: names to filter by, `--exact`, and `--list`.
fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let names: Vec<_> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let exact = args.iter().any(|arg| arg == "--exact");
    let wanted = |target: &str| {
        let matches = |name: &&String| if exact { target == **name } else { target.contains(name.as_str()) };
        names.is_empty() || names.iter().copied().any(|name| matches(&name))
    };
    let list = args.iter().any(|arg| arg == "--list");
    let mut failed = false;
    for (target, run) in TARGETS.into_iter().filter(|(target, _)| wanted(target)) {
        if list {
            // Nothing is ever ignored.
            if !args.iter().any(|arg| arg == "--ignored") {
                println!("{target}: test");
            }
            continue;
        }
        let outcome = panic::catch_unwind(|| replay(target, run));
        println!("test {target} ... {}", if outcome.is_ok() { "ok" } else { "FAILED" });
        failed |= outcome.is_err();
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn replay(target: &str, run: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut replayed = 0;
    for entry in fs::read_dir(&corpus).unwrap() {
        let path = entry.unwrap().path();
        let data = fs::read(&path).unwrap();
        if let Err(panicked) = panic::catch_unwind(|| run(&data)) {
            eprintln!("that was {}", path.display());
            panic::resume_unwind(panicked);
        }
        replayed += 1;
    }
    assert!(replayed >= 20, "{replayed} files in {}", corpus.display());
}

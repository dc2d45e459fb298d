//! Corpora of fuzz targets, replayed: what the fuzzers found is not found again.
//!
//! A crate keeps the corpus of each target in `fuzz/corpus/TARGET`, and what the target does where a test finds it too.

use std::{
    env, fs,
    panic::{catch_unwind, resume_unwind},
    path::{Path, PathBuf},
    process::ExitCode,
};

/// A target by its name, and what it does with its input.
pub type Target = (&'static str, fn(&[u8]));

/// Fewer than that are no corpus.
const FEWEST: usize = 20;

/// Runs a target with every input of its corpus; `manifest` is the crate's `CARGO_MANIFEST_DIR`.
///
/// # Panics
/// As the target does, then with the file's name before it on standard error; and where there is no corpus.
pub fn replay(manifest: &str, target: &str, run: impl Fn(&[u8])) {
    let corpus = Path::new(manifest).join("fuzz/corpus").join(target);
    let failed = |path: &Path, error: std::io::Error| -> ! { panic!("{}: {error}", path.display()) };
    let entries = fs::read_dir(&corpus).unwrap_or_else(|error| failed(&corpus, error));
    let paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    for path in &paths {
        let data = fs::read(path).unwrap_or_else(|error| failed(path, error));
        if let Err(panicked) = catch_unwind(std::panic::AssertUnwindSafe(|| run(&data))) {
            eprintln!("that was {}", path.display());
            resume_unwind(panicked);
        }
    }
    assert!(paths.len() >= FEWEST, "{} files in {}", paths.len(), corpus.display());
}

/// The `main` of a test without libtest that replays the corpora of some targets: for crates whose targets include modules
/// with tests of their own. It takes what test runners ask for: names to filter by, `--exact`, and `--list`.
#[must_use]
pub fn main(manifest: &str, targets: &[Target]) -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let names: Vec<_> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let exact = args.iter().any(|arg| arg == "--exact");
    let wanted = |target: &str| {
        let matches = |name: &&String| if exact { target == **name } else { target.contains(name.as_str()) };
        names.is_empty() || names.iter().copied().any(|name| matches(&name))
    };
    let list = args.iter().any(|arg| arg == "--list");
    let mut failed = false;
    for (target, run) in targets.iter().filter(|(target, _)| wanted(target)) {
        if list {
            // Nothing is ever ignored.
            if !args.iter().any(|arg| arg == "--ignored") {
                println!("{target}: test");
            }
            continue;
        }
        let outcome = catch_unwind(|| replay(manifest, target, run));
        println!("test {target} ... {}", if outcome.is_ok() { "ok" } else { "FAILED" });
        failed |= outcome.is_err();
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

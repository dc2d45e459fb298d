//! Corpora of fuzz targets, replayed: what the fuzzers found is not found again.
//!
//! A crate keeps the corpus of each target in `fuzz/corpus/TARGET`, and what the target does where a test finds it too.

use std::{
    env, fs,
    panic::{catch_unwind, resume_unwind},
    path::{Path, PathBuf},
    process::ExitCode,
};

use crate::harness::Options;

/// A target by its name, and what it does with its input.
pub type Target = (&'static str, fn(&[u8]));

/// Fewer than that are no corpus.
const FEWEST: usize = 20;

/// Runs a target with every input of its corpus, and says how many there were; `manifest` is the crate's `CARGO_MANIFEST_DIR`.
///
/// # Panics
/// As the target does, then with the file's name before it on standard error; and where there is no corpus.
pub fn replay(manifest: &str, target: &str, run: impl Fn(&[u8])) -> usize {
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
    paths.len()
}

/// The `main` of a test without libtest that replays the corpora of some targets: for crates whose targets include modules
/// with tests of their own. It takes libtest's arguments, as [`crate::harness::main`] does.
#[must_use]
pub fn main(manifest: &str, targets: &[Target]) -> ExitCode {
    match Options::parse(env::args_os().skip(1)) {
        Ok(options) => run(manifest, targets, &options),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(manifest: &str, targets: &[Target], options: &Options) -> ExitCode {
    let chosen: Vec<_> = targets.iter().filter(|(target, _)| options.takes(target)).collect();
    if options.list {
        chosen.iter().for_each(|(target, _)| println!("{target}: test"));
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} test{}", chosen.len(), if chosen.len() == 1 { "" } else { "s" });
    let (mut passed, mut inputs) = (0, 0);
    for (target, run) in &chosen {
        match catch_unwind(|| replay(manifest, target, run)) {
            Ok(count) => {
                (passed, inputs) = (passed + 1, inputs + count);
                println!("test {target} ... ok");
            }
            Err(_) => println!("test {target} ... FAILED"),
        }
    }
    let (failed, others) = (chosen.len() - passed, targets.len() - chosen.len());
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!("\ntest result: {verdict}. {passed} passed; {failed} failed; 0 ignored; 0 measured; {others} filtered out; {inputs} inputs\n");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever runs all tests of a workspace passes its arguments on to each.
    #[test]
    fn arguments_that_name_nothing_leave_no_corpus_out() {
        let scratch = tempfile::tempdir().unwrap();
        let corpus = scratch.path().join("fuzz/corpus/parser");
        fs::create_dir_all(&corpus).unwrap();
        for number in 0..FEWEST {
            fs::write(corpus.join(number.to_string()), "x").unwrap();
        }
        let ended = |args: &[&str], run: fn(&[u8])| {
            let options = Options::parse(args.iter().map(Into::into)).unwrap();
            let code = super::run(scratch.path().to_str().unwrap(), &[("parser", run)], &options);
            code == ExitCode::SUCCESS
        };
        let fails: fn(&[u8]) = |_| panic!("replayed");
        assert!(ended(&[], |data| assert_eq!(data, b"x")));
        for args in [
            &[][..],
            &["--test-threads", "1"],
            &["--skip", "other"],
            &["--color", "never", "pars"],
        ] {
            assert!(!ended(args, fails), "{args:?} replays it");
        }
        for args in [&["other"][..], &["--skip", "parser"], &["--list"], &["--ignored"]] {
            assert!(ended(args, fails), "{args:?} does not");
        }
    }
}

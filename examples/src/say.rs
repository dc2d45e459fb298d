//! What commands say, to whoever still reads.
//!
//! The macros of the standard library end the process with a panic where nobody does, so nothing here is said by them.

use std::{
    fmt::Display,
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use crate::node::in_one_line;

/// Prints an answer on standard output. Whoever has closed that has read enough.
///
/// # Errors
/// When it is not all written for another reason, as where a disk is full.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    match write(text) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("<stdout>"),
        _ => Ok(()),
    }
}

/// The same of what is of use to nobody unless it is read.
///
/// # Errors
/// When it is not all written, whatever the reason.
#[cfg(feature = "control")]
pub(crate) fn hand_over(text: &str) -> anyhow::Result<()> {
    write(text).context("<stdout>")
}

fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Says a line on standard error. Whoever has closed that does not want to know, and nobody is left to be told so.
pub(crate) fn tell(what: impl Display) {
    let _ = writeln!(io::stderr(), "{what}");
}

/// Has a file that may not grow any more (`ulimit -f`) be an error of whoever writes, such as the log, as a disk without room is; else
/// the process would end without a word. Must be called within a runtime.
///
/// # Errors
/// When signals cannot be listened for.
pub(crate) fn survive_full_files() -> anyhow::Result<()> {
    let too_long = SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw());
    // It is taken for as long as the process is there.
    signal(too_long).map(drop).context("cannot listen for SIGXFSZ")
}

/// How a command ends: what goes wrong is one line on standard error, which names it.
pub(crate) fn ended(command: &str, done: anyhow::Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(format_args!("ambient {command}: {}", in_one_line(&error)));
            ExitCode::FAILURE
        }
    }
}

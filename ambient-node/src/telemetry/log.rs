//! Where log lines go: to standard output, through a bounded queue and a thread of its own.
//!
//! A reader that stalls must not stall connections: when the queue is full lines are dropped, and counted.

use std::{
    io::{self, Write},
    sync::{
        LazyLock, OnceLock,
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::Duration,
};

use prometheus_client::metrics::counter::Counter;
use tracing_subscriber::{fmt::MakeWriter, util::SubscriberInitExt as _};

use crate::clock;

mod format;
#[cfg(test)]
pub(crate) mod kept;
mod levels;

pub(crate) use levels::Levels;

/// Lines that may wait for a slow reader.
const QUEUE: usize = 10_000;

/// Process-wide as the log itself: there is one standard output.
static LINES_LOST: LazyLock<Counter> = LazyLock::new(Counter::default);

pub(crate) fn lines_lost() -> Counter {
    LINES_LOST.clone()
}

/// The filter of the one log of this process.
static LEVELS: OnceLock<Levels> = OnceLock::new();

/// What is logged, where [`to_stdout`] has set the log up.
pub(crate) fn levels() -> Option<&'static Levels> {
    LEVELS.get()
}

/// How a line is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// `TIME<TAB>LEVEL<TAB>TARGET<TAB>MESSAGE<TAB>KEY=VALUE …`
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Why the log could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter is not of `tracing`'s syntax.
    #[error("the log filter {text:?} cannot be read (an example: info,access=debug): {why}")]
    Filter {
        /// As given.
        text: String,
        /// What is wrong with it.
        why: String,
    },
    /// No thread could be started for it.
    #[error("no thread for the log: {0}")]
    Thread(#[from] io::Error),
    /// The process has a log already.
    #[error("the process has a log already: {0}")]
    Twice(String),
}

/// Whether a filter can be read: for who asks before the log is set up.
///
/// # Errors
/// When it cannot.
pub fn check(filter: &str) -> Result<(), LogError> {
    levels::filter(filter).map(drop)
}

/// Sets up the log of this process; for binaries. What is still queued is written when the answer is dropped.
///
/// # Errors
/// When the filter cannot be read, no thread can be started, or the process has a log already.
pub fn to_stdout(filter: &str, format: Format) -> Result<Flush, LogError> {
    let start = filter;
    let filter = levels::filter(start)?;
    let (queue, lines) = sync_channel(QUEUE);
    let (done, written) = sync_channel(1);
    thread::Builder::new().name("log".into()).spawn(move || {
        write_all(&lines);
        let _ = done.send(());
    })?;
    let writer = Lines(queue.clone());
    let base = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(writer);
    let log = base.event_format(format).with_filter_reloading();
    let handle = log.reload_handle();
    let levels = Levels::new(start, move |filter| handle.reload(filter).map_err(|e| e.to_string()));
    let set = log.finish().try_init();
    set.map_err(|e| LogError::Twice(e.to_string()))?;
    // Nobody else sets it: there is one log in a process.
    let _ = LEVELS.set(levels);
    Ok(Flush { queue, written })
}

/// Writes what is still queued when dropped; for a second at most, as nobody may be reading.
#[derive(Debug)]
pub struct Flush {
    queue: SyncSender<Line>,
    written: Receiver<()>,
}

impl Drop for Flush {
    fn drop(&mut self) {
        // The subscriber keeps its own sender for ever: an explicit end is what the thread waits for.
        let give_up = clock::steady() + PATIENCE;
        while let Err(TrySendError::Full(_)) = self.queue.try_send(Line::End) {
            if clock::steady() >= give_up {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        let _ = self.written.recv_timeout(give_up.saturating_duration_since(clock::steady()));
    }
}

/// How long the end of the process waits for its last lines.
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(Debug)]
enum Line {
    Text(Vec<u8>),
    End,
}

/// Writes lines as they come, those of a short while together: a line that wakes this thread costs more than to write it.
fn write_all(lines: &Receiver<Line>) {
    // Not locked for good: whoever embeds a node may have something to print.
    let mut out = io::stdout();
    let mut text = Vec::new();
    while let Ok(Line::Text(first)) = lines.recv() {
        let mut end = false;
        text.extend(first);
        // Whoever logs next finds the thread awake, or asleep without waiting for them: either way nobody is woken.
        thread::sleep(GATHERING);
        for more in lines.try_iter() {
            match more {
                Line::Text(line) => text.extend(line),
                Line::End => end = true,
            }
            if text.len() >= AT_ONCE {
                hand_over(&mut out, &mut text);
            }
        }
        hand_over(&mut out, &mut text);
        if end {
            return;
        }
    }
}

fn hand_over(out: &mut impl Write, text: &mut Vec<u8>) {
    // A reader that has gone away, or a disk that is full, is no reason to stop: the lines are lost, and counted.
    if out.write_all(text).and_then(|()| out.flush()).is_err() {
        LINES_LOST.inc_by(text.iter().filter(|byte| **byte == b'\n').count() as u64);
    }
    text.clear();
    text.shrink_to(AT_ONCE);
}

/// How long a line waits for others.
const GATHERING: Duration = Duration::from_millis(2);
/// Bytes that are written at once, about.
const AT_ONCE: usize = 64 << 10;

#[derive(Clone, Debug)]
struct Lines(SyncSender<Line>);

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.0.try_send(Line::Text(line.to_vec())).is_err() {
            LINES_LOST.inc();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Lines {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

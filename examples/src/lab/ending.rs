//! How the lab ends: by itself, by a signal, or by `lab down`, which sends one.

use std::{
    io,
    path::PathBuf,
    process,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI32, Ordering},
    },
    thread,
};

use ambient_testkit::{
    Namespace, View,
    kept::{Kept, KeptError},
};
use tokio::signal::unix::{SignalKind, signal};

/// Ends the process by SIGINT, SIGTERM or SIGHUP: the kept lab's directory is removed first, and with the process
/// everything dies that it has started.
#[derive(Debug)]
pub(crate) struct Ending {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    kept: Mutex<Option<Kept>>,
    /// The exit code of an orderly end; while the steps run, a signal is none.
    orderly: AtomicI32,
}

impl Ending {
    /// Waits for signals from here on.
    ///
    /// # Errors
    /// When the machine does not let it wait.
    pub(crate) fn watch(kept: Option<Kept>) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            kept: Mutex::new(kept),
            orderly: AtomicI32::new(NOT_ORDERLY),
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let _inside = runtime.enter();
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        drop(_inside);
        let ending = shared.clone();
        thread::Builder::new().name("signals".into()).spawn(move || {
            let number = runtime.block_on(async {
                tokio::select! {
                    _ = interrupt.recv() => SignalKind::interrupt(),
                    _ = terminate.recv() => SignalKind::terminate(),
                    _ = hangup.recv() => SignalKind::hangup(),
                }
            });
            ending.end(number.as_raw_value());
        })?;
        Ok(Self { shared })
    }

    /// The kept lab's directory, if the lab is to be kept.
    pub(crate) fn directory(&self) -> Option<PathBuf> {
        self.shared.kept().as_ref().map(|kept| kept.directory().to_owned())
    }

    /// Says where programs can be run in the kept lab.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn publish<'a>(&self, places: impl IntoIterator<Item = (&'a str, &'a Namespace, &'a View)>) -> Result<(), KeptError> {
        self.shared.kept().as_mut().map_or(Ok(()), |kept| kept.publish(places))
    }

    /// From here on a signal is the end that was wanted, and the exit code says whether the steps have passed.
    pub(crate) fn is_orderly_from_now_on(&self, passed: bool) {
        self.shared.orderly.store(i32::from(!passed), Ordering::Relaxed);
    }
}

impl Shared {
    fn kept(&self) -> MutexGuard<'_, Option<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, signal: i32) -> ! {
        drop(self.kept().take());
        match self.orderly.load(Ordering::Relaxed) {
            NOT_ORDERLY => process::exit(128 + signal),
            code => process::exit(code),
        }
    }
}

const NOT_ORDERLY: i32 = -1;

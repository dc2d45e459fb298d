//! What some work logs, for tests.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};

use tracing::Level;

use super::Format;

#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl io::Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// All that some work logs on this thread.
pub(crate) fn logged(format: Format, work: impl FnOnce()) -> String {
    let kept = Kept::default();
    let to = kept.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(Level::DEBUG)
        .event_format(format)
        .with_writer(move || to.clone())
        .finish();
    let heard = ambient_testkit::log::heard_by(subscriber);
    work();
    drop(heard);
    let bytes = kept.0.lock().unwrap().clone();
    String::from_utf8(bytes).unwrap()
}

//! Whether a process can have the threads that it needs: what lacks one in the middle of something says so less well.

use std::{
    io,
    sync::{Mutex, PoisonError},
    thread,
};

/// Begins so many threads and ends them again.
///
/// # Errors
/// When there are fewer to be had.
pub(crate) fn can_be_had(count: usize) -> anyhow::Result<()> {
    let gate = Mutex::new(());
    thread::scope(|scope| {
        let held = gate.lock().unwrap_or_else(PoisonError::into_inner);
        // Each is there until all are.
        let wait = || drop(gate.lock().unwrap_or_else(PoisonError::into_inner));
        let begun = begin(count, || thread::Builder::new().spawn_scoped(scope, wait).map(drop));
        drop(held);
        begun
    })
}

fn begin(count: usize, mut one: impl FnMut() -> io::Result<()>) -> anyhow::Result<()> {
    for had in 0..count {
        one().map_err(|error| {
            anyhow::anyhow!(
                "it needs {count} threads more, and can have {had} ({error}): raise the limit of its user (ulimit -u, LimitNPROC) or of its cgroup \
                 (pids.max), or give it memory"
            )
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lacking_is_told() {
        assert!(can_be_had(20).is_ok());
        let mut had = 0;
        let told = begin(8, || {
            had += 1;
            if had > 3 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
        });
        let told = told.unwrap_err().to_string();
        assert!(told.contains("needs 8 threads more, and can have 3 ("), "{told}");
        assert_eq!(had, 4, "nothing is asked for after that");
    }
}

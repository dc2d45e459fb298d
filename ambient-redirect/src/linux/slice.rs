//! How long the kernel lets a thread have a processor before it looks whose turn it is.

use std::{io, time::Duration};

use libc::sched_attr;

/// The slices that a thread may ask for, where the kernel goes by what it asks.
///
/// A slice is no share: a thread has as much of the processor with a short one as with a long one. It says who goes first. Whoever wakes
/// with a shorter slice than the thread that runs takes the processor at once; with another he waits for the end of a slice, which
/// is looked for once in some milliseconds. No privilege is needed.
#[derive(Clone, Copy, Debug)]
pub struct Slices {
    /// What it had.
    own: u64,
}

/// One of the slices of [`Slices`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slice {
    /// What the thread had before it asked for any.
    Own,
    /// The shortest that there is: for a thread that is about to sleep, and has the processor as soon as it wakes.
    Short,
    /// Longer than anybody's who asks for nothing: for a thread that has woken, so that those whom it wakes go first.
    Long,
}

impl Slices {
    /// Of the calling thread. None where the kernel takes no notice of what is asked for, as before Linux 6.12, or goes by other rules
    /// for this thread (real time, idle).
    ///
    /// # Errors
    /// When the kernel, or what filters its calls, refuses.
    pub fn of_this_thread() -> io::Result<Option<Self>> {
        let attributes = of_this_thread()?;
        if !is_ordinary(&attributes) {
            return Ok(None);
        }
        let slices = Self {
            own: attributes.sched_runtime,
        };
        slices.ask(Slice::Short)?;
        let heard = slices.has()? == Some(Slice::Short);
        slices.ask(Slice::Own)?;
        Ok(heard.then_some(slices))
    }

    /// Asks for one of them, for the calling thread.
    ///
    /// # Errors
    /// As above.
    pub fn ask(self, slice: Slice) -> io::Result<()> {
        // As it is now: somebody may have given it another priority meanwhile, or another class.
        let mut attributes = of_this_thread()?;
        if !is_ordinary(&attributes) {
            return Ok(());
        }
        attributes.sched_runtime = self.nanoseconds(slice);
        set(&attributes)
    }

    /// Which of them the calling thread has; none where somebody else has given it another.
    ///
    /// # Errors
    /// As above.
    pub fn has(self) -> io::Result<Option<Slice>> {
        let has = of_this_thread()?.sched_runtime;
        let all = [Slice::Own, Slice::Short, Slice::Long];
        Ok(all.into_iter().find(|slice| self.nanoseconds(*slice) == has))
    }

    fn nanoseconds(self, slice: Slice) -> u64 {
        let asked = match slice {
            Slice::Own => return self.own,
            Slice::Short => Duration::from_micros(100),
            Slice::Long => Duration::from_millis(20),
        };
        u64::try_from(asked.as_nanos()).unwrap_or(u64::MAX)
    }
}

fn is_ordinary(attributes: &sched_attr) -> bool {
    attributes.sched_policy == libc::SCHED_OTHER.cast_unsigned()
}

#[allow(unsafe_code, reason = "sched_getattr has no wrapper")]
fn of_this_thread() -> io::Result<sched_attr> {
    let mut attributes = sched_attr {
        size: 0,
        sched_policy: 0,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    };
    let size = size_of_val(&attributes);
    // SAFETY: the kernel writes at most `size` bytes there, which are as many as there are, and all of them may be anything.
    let said = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) };
    if said == 0 {
        Ok(attributes)
    } else {
        Err(io::Error::last_os_error())
    }
}

#[allow(unsafe_code, reason = "sched_setattr has no wrapper")]
fn set(attributes: &sched_attr) -> io::Result<()> {
    // SAFETY: the kernel reads as many bytes as `size` in them says, which is what it wrote there itself: at most all of them.
    let said = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const *attributes, 0) };
    if said == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// Slice, policy, nice and flags.
    fn what_it_has() -> (u64, u32, i32, u64) {
        let has = of_this_thread().unwrap();
        (has.sched_runtime, has.sched_policy, has.sched_nice, has.sched_flags)
    }

    #[test]
    fn a_thread_has_the_slice_that_it_asks_for_and_no_other_has() {
        let before = what_it_has();
        let thread = thread::spawn(move || {
            let Some(slices) = Slices::of_this_thread().unwrap() else {
                // And it has nothing that it had not.
                assert_eq!(what_it_has(), before);
                return println!("SKIPPED: this kernel knows no slices that a thread asks for");
            };
            for (slice, has) in [(Slice::Long, 20_000_000), (Slice::Short, 100_000), (Slice::Own, before.0)] {
                slices.ask(slice).unwrap();
                assert_eq!(what_it_has(), (has, before.1, before.2, before.3));
                assert_eq!(slices.has().unwrap(), Some(slice));
            }
        });
        thread.join().unwrap();
        assert_eq!(what_it_has(), before);
    }

    #[test]
    fn another_priority_and_another_class_stay_as_they_are() {
        thread::spawn(|| {
            let slices = Slices::of_this_thread().unwrap();
            let mut nice = of_this_thread().unwrap();
            nice.sched_nice += 3;
            set(&nice).unwrap();
            if let Some(slices) = slices {
                slices.ask(Slice::Long).unwrap();
            }
            assert_eq!(what_it_has().2, nice.sched_nice);

            let mut idle = of_this_thread().unwrap();
            idle.sched_policy = libc::SCHED_IDLE.cast_unsigned();
            set(&idle).unwrap();
            let idle = what_it_has();
            assert!(Slices::of_this_thread().unwrap().is_none());
            if let Some(slices) = slices {
                slices.ask(Slice::Short).unwrap();
            }
            assert_eq!(what_it_has(), idle);
        })
        .join()
        .unwrap();
    }
}

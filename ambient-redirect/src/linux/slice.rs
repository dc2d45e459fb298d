//! How long the kernel lets a thread have a processor before it looks whose turn it is.

use std::io;

use libc::sched_attr;

/// The slices that a thread may ask for, where the kernel goes by what it asks.
///
/// A slice is no share: a thread has as much of the processor with a short one as with a long one. It says who goes first. As a rule
/// whoever wakes with a shorter slice than the thread that runs takes the processor at once, unless he has had more than others of late;
/// with another he waits until that one has had its slice, or as much as it is owed, which is looked for at ticks, some milliseconds
/// apart, and when somebody wakes. Groups (cgroups) are compared as the shortest slice among their threads that want that processor. No
/// privilege is needed.
///
/// A thread that begins another hands its slice on to that one, whose first deed should be to ask for [`Slice::Own`].
#[derive(Clone, Copy, Debug)]
pub struct Slices {
    /// What it had, as the kernel says it.
    had: u64,
    /// What to ask for to have that again: nothing, where nothing had been asked for.
    own: u64,
}

/// One of the slices of [`Slices`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slice {
    /// What the thread had before it asked for any.
    Own,
    /// The shortest that there is: for a thread that is about to sleep, and is to have the processor as it wakes.
    Short,
    /// Longer than anybody's who asks for nothing: for a thread that has woken, so that those whom it wakes go first.
    Long,
}

impl Slices {
    /// Of the calling thread, which then has its own. None where the kernel takes no notice of what is asked for, as before Linux 6.12,
    /// or goes by other rules for this thread (real time, idle).
    ///
    /// # Errors
    /// When the kernel, or what filters its calls, refuses.
    pub fn of_this_thread() -> io::Result<Option<Self>> {
        let attributes = of_this_thread()?;
        if !is_ordinary(&attributes) {
            return Ok(None);
        }
        let had = attributes.sched_runtime;
        ask(SHORT)?;
        let heard = of_this_thread()?.sched_runtime == SHORT;
        // The kernel says a slice also where nobody asked for one; to ask for that would be to keep it for good.
        ask(NOTHING)?;
        let own = if of_this_thread()?.sched_runtime == had { NOTHING } else { had };
        ask(own)?;
        Ok(heard.then_some(Self { had, own }))
    }

    /// Asks for one of them, for the calling thread.
    ///
    /// # Errors
    /// As above.
    pub fn ask(self, slice: Slice) -> io::Result<()> {
        ask(match slice {
            Slice::Own => self.own,
            Slice::Short => SHORT,
            Slice::Long => LONG,
        })
    }

    /// Which of them the calling thread has; none where somebody else has given it another.
    ///
    /// # Errors
    /// As above.
    pub fn has(self) -> io::Result<Option<Slice>> {
        let has = of_this_thread()?.sched_runtime;
        let all = [(self.had, Slice::Own), (SHORT, Slice::Short), (LONG, Slice::Long)];
        Ok(all.into_iter().find(|(slice, _)| *slice == has).map(|(_, slice)| slice))
    }
}

/// In nanoseconds: the least that the kernel takes.
const SHORT: u64 = 100_000;
/// In nanoseconds. With 5 ms those whom a thread wakes are no better off where many contend; with 100 they are no better than with this.
const LONG: u64 = 20_000_000;
/// The kernel's own.
const NOTHING: u64 = 0;

/// Asks for so many nanoseconds.
fn ask(slice: u64) -> io::Result<()> {
    // All else as it is now: somebody may have given it another priority, or another class, which is then the end of this. (Who does so
    // between these two calls has it undone; so it is with whoever sets one of two things alone.)
    let mut attributes = of_this_thread()?;
    if !is_ordinary(&attributes) {
        return Ok(());
    }
    attributes.sched_runtime = slice;
    set(&attributes)
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

    /// None, and a word about it, where this kernel, or what filters calls, has no slices for us.
    fn may_ask() -> Option<Slices> {
        let slices = Slices::of_this_thread().unwrap_or_default();
        if slices.is_none() {
            ambient_testkit::skipped("slices of a thread: this kernel knows none that a thread asks for");
        }
        slices
    }

    #[test]
    fn a_slice_that_somebody_gave_a_thread_is_its_own() {
        thread::spawn(|| {
            if may_ask().is_none() {
                return;
            }
            ask(3_000_000).unwrap();
            let slices = may_ask().unwrap();
            assert_eq!(what_it_has().0, 3_000_000);
            slices.ask(Slice::Long).unwrap();
            slices.ask(Slice::Own).unwrap();
            assert_eq!((what_it_has().0, slices.own), (3_000_000, 3_000_000));
        })
        .join()
        .unwrap();
        // And where nobody did, nothing is asked for.
        thread::spawn(|| assert!(may_ask().is_none_or(|slices| slices.own == NOTHING)))
            .join()
            .unwrap();
    }

    #[test]
    fn a_thread_that_another_begins_can_have_its_own_again() {
        thread::spawn(|| {
            let Some(slices) = may_ask() else { return };
            slices.ask(Slice::Long).unwrap();
            let child = thread::spawn(move || {
                let before = slices.has().unwrap();
                slices.ask(Slice::Own).unwrap();
                (before, slices.has().unwrap())
            });
            assert_eq!(child.join().unwrap(), (Some(Slice::Long), Some(Slice::Own)));
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_thread_has_the_slice_that_it_asks_for_and_no_other_has() {
        let before = what_it_has();
        let thread = thread::spawn(move || {
            let Some(slices) = may_ask() else {
                // And it has nothing that it had not.
                return assert_eq!(what_it_has(), before);
            };
            assert_eq!(what_it_has(), before);
            for (slice, has) in [(Slice::Long, LONG), (Slice::Short, SHORT), (Slice::Own, before.0)] {
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
            let slices = may_ask();
            let mut nice = of_this_thread().unwrap();
            // The kernel knows no more.
            nice.sched_nice = (nice.sched_nice + 3).min(19);
            set(&nice).unwrap();
            if let Some(slices) = slices {
                slices.ask(Slice::Long).unwrap();
            }
            assert_eq!(what_it_has().2, nice.sched_nice);

            let mut idle = of_this_thread().unwrap();
            idle.sched_policy = libc::SCHED_IDLE.cast_unsigned();
            set(&idle).unwrap();
            let idle = what_it_has();
            assert!(Slices::of_this_thread().is_ok_and(|slices| slices.is_none()));
            if let Some(slices) = slices {
                slices.ask(Slice::Short).unwrap();
            }
            assert_eq!(what_it_has(), idle);
        })
        .join()
        .unwrap();
    }
}

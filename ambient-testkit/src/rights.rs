//! What this process may do, on all of its threads at once, as if somebody had taken it from outside.
#![allow(
    unsafe_code,
    reason = "capset(2) concerns the thread that calls it, and only a signal reaches the others"
)]

use std::{
    fs, io,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

/// Leaves every thread of the process these of its permitted capabilities in effect, a bit for each by its number, and no other;
/// with all bits set it has all that it is permitted again. Threads that are made later inherit from those that make them.
///
/// # Errors
/// When a thread is not to be reached within some seconds.
pub fn limit(capabilities: u64) -> io::Result<()> {
    WANTED.store(capabilities, Ordering::SeqCst);
    // SAFETY: all zeroes is a valid sigaction, and the handler calls nothing but capget(2) and capset(2).
    let installed = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = take as extern "C" fn(libc::c_int) as usize;
        action.sa_flags = libc::SA_RESTART;
        libc::sigaction(libc::SIGUSR2, &raw const action, std::ptr::null_mut())
    };
    if installed != 0 {
        return Err(io::Error::last_os_error());
    }
    let end = now() + PATIENCE;
    loop {
        let others = differing(capabilities)?;
        if others.is_empty() {
            return Ok(());
        }
        if now() > end {
            let why = format!("threads {others:?} have what they had");
            return Err(io::Error::new(io::ErrorKind::TimedOut, why));
        }
        for id in others {
            // SAFETY: no memory is passed. A thread that has ended by now gets nothing.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), id, libc::SIGUSR2) };
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// The threads that have others in effect.
fn differing(capabilities: u64) -> io::Result<Vec<libc::pid_t>> {
    let mut differing = Vec::new();
    for thread in fs::read_dir("/proc/self/task")? {
        let name = thread?.file_name();
        let Some(id) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // One that has ended meanwhile has none.
        let Ok(status) = fs::read_to_string(format!("/proc/self/task/{id}/status")) else {
            continue;
        };
        let of = |field: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(field));
            line.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(0)
        };
        if of("CapEff:") != of("CapPrm:") & capabilities {
            differing.push(id);
        }
    }
    Ok(differing)
}

extern "C" fn take(_: libc::c_int) {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: libc::c_int,
    }
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    let (mut header, mut data) = (
        Header {
            version: VERSION_3,
            pid: 0,
        },
        [Data::default(); 2],
    );
    let wanted = WANTED.load(Ordering::SeqCst);
    // SAFETY: header and data are of the form that this version of the calls asks for, and outlive them.
    unsafe {
        if libc::syscall(libc::SYS_capget, &raw mut header, &raw mut data) != 0 {
            return;
        }
        data[0].effective = data[0].permitted & wanted as u32;
        data[1].effective = data[1].permitted & (wanted >> 32) as u32;
        libc::syscall(libc::SYS_capset, &raw mut header, &raw const data);
    }
}

#[expect(clippy::disallowed_methods, reason = "how long a signal takes is waited for by the clock")]
fn now() -> Instant {
    Instant::now()
}

static WANTED: AtomicU64 = AtomicU64::new(u64::MAX);
/// `_LINUX_CAPABILITY_VERSION_3`.
const VERSION_3: u32 = 0x2008_0522;
const PATIENCE: Duration = Duration::from_secs(5);

//! How much is allocated, and how much of it at once: for tests and benches that promise such numbers.
//!
//! ```
//! use ambient_testkit::allocations::{self, Counting};
//!
//! #[global_allocator]
//! static ALLOCATOR: Counting = Counting;
//!
//! let before = allocations::of_this_thread();
//! let held = std::hint::black_box(vec![0u8; 1000]);
//! assert_eq!(allocations::of_this_thread() - before, 1);
//! assert!(allocations::held() >= held.len());
//! ```
#![allow(unsafe_code, reason = "an allocator is one")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

/// The system's allocator, with an account of what is asked of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// How often this thread has allocated, or moved what it had allocated.
pub fn of_this_thread() -> u64 {
    ALLOCATIONS.get()
}

/// How many bytes are allocated now, as they were asked for.
pub fn held() -> usize {
    HELD.load(Relaxed)
}

/// The most that were at any time since [`forget_peak`].
pub fn peak() -> usize {
    PEAK.load(Relaxed)
}

/// Begins anew with the peak.
pub fn forget_peak() {
    PEAK.store(held(), Relaxed);
}

fn came(size: usize) {
    // A thread that is ending has no account any more.
    let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
    let held = HELD.fetch_add(size, Relaxed) + size;
    PEAK.fetch_max(held, Relaxed);
}

fn went(size: usize) {
    HELD.fetch_sub(size, Relaxed);
}

// SAFETY: every call goes on to the system's allocator as it came; keeping the account allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        came(layout.size());
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        came(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        went(layout.size());
        came(size);
        // SAFETY: as above; the memory came from the system's allocator, as all does.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        went(layout.size());
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

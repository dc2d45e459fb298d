//! What each thread holds on the heap.
#![allow(unsafe_code, reason = "an allocator is")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

/// The system's allocator, which counts for each thread what it takes and gives back.
///
/// ```
/// use ambient_testkit::heap::{self, CountingHeap};
///
/// #[global_allocator]
/// static HEAP: CountingHeap = CountingHeap;
///
/// let before = heap::held();
/// let kept = vec![1_u8; 1 << 20];
/// assert!(heap::held() - before >= 1 << 20);
/// drop(kept);
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct CountingHeap;

/// Bytes that the calling thread has taken and not given back, as the system's allocator rounds them up, but without its
/// own header of each piece. Less than nothing for a thread that frees what others took; zero where [`CountingHeap`] is
/// not the allocator.
pub fn held() -> i64 {
    HELD.get()
}

thread_local! {
    // Without a destructor, and made without allocating: it may be used at any time.
    static HELD: Cell<i64> = const { Cell::new(0) };
}

fn count(bytes: i64) {
    HELD.set(HELD.get() + bytes);
}

fn size(piece: *mut u8) -> i64 {
    // SAFETY: null, which counts nothing, or a piece that the system's allocator gave and that is not freed yet.
    let size = unsafe { libc::malloc_usable_size(piece.cast()) };
    size as i64
}

// SAFETY: everything is done by the system's allocator; counting allocates nothing and does not unwind.
unsafe impl GlobalAlloc for CountingHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract of this very function.
        let piece = unsafe { System.alloc(layout) };
        count(size(piece));
        piece
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        let piece = unsafe { System.alloc_zeroed(layout) };
        count(size(piece));
        piece
    }

    unsafe fn dealloc(&self, piece: *mut u8, layout: Layout) {
        count(-size(piece));
        // SAFETY: as above.
        unsafe { System.dealloc(piece, layout) }
    }

    unsafe fn realloc(&self, piece: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let before = size(piece);
        // SAFETY: as above.
        let moved = unsafe { System.realloc(piece, layout, new_size) };
        if !moved.is_null() {
            count(size(moved) - before);
        }
        moved
    }
}

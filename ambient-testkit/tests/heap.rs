//! The allocator that counts, in a process of which it is the allocator.

use std::thread;

use ambient_testkit::heap::{self, CountingHeap};

#[global_allocator]
static HEAP: CountingHeap = CountingHeap;

#[test]
fn what_a_thread_holds_is_counted_until_it_is_given_back() {
    let before = heap::held();
    let mut kept: Vec<u8> = vec![1; MUCH];
    assert!(grown(before, MUCH), "{}", heap::held() - before);
    kept.resize(3 * MUCH, 2);
    kept.shrink_to_fit();
    assert!(grown(before, 3 * MUCH));
    kept.truncate(MUCH);
    kept.shrink_to_fit();
    assert!(grown(before, MUCH));
    let zeroed = vec![0_u8; MUCH];
    assert!(grown(before, 2 * MUCH));
    drop((kept, zeroed));
    assert_eq!(heap::held(), before);
}

#[test]
fn each_thread_has_its_own_count() {
    let before = heap::held();
    let (kept, theirs) = thread::spawn(|| {
        let before = heap::held();
        let kept = vec![1_u8; MUCH];
        (kept, heap::held() - before)
    })
    .join()
    .unwrap();
    assert!(theirs >= MUCH as i64);
    assert!(grown(before, 0), "what others take counts for them");
    drop(kept);
    assert!(heap::held() < before, "who frees it gives it back");
}

/// Whether the thread holds so many bytes more than it did, but for what threads and rounding take.
fn grown(before: i64, bytes: usize) -> bool {
    (bytes as i64..bytes as i64 + 8192).contains(&(heap::held() - before))
}

const MUCH: usize = 1 << 20;

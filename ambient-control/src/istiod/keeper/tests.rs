use std::sync::atomic::Ordering;

use super::{
    super::{
        memory::{Kept, found},
        session::Kind,
    },
    *,
};

fn put(name: &str, bytes: usize) -> Entry {
    let kept = Kept {
        version: "1".into(),
        body: vec![0; bytes],
    };
    Entry::Put(Kind::Address, name.into(), kept)
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn faults(keeper: &Keeper) -> String {
    keeper.faults().collect::<Vec<_>>().join("; ")
}

/// Until nothing is written any more.
async fn at_rest(keeper: &Keeper) {
    until(|| keeper.desk().since.is_none()).await;
}

/// Until the disk has it.
async fn begun(keeper: &Keeper) {
    until(|| !keeper.desk().waiting.is_any).await;
}

/// Waits for a thread that the clock here does not know of, and not without end.
async fn until(is_so: impl Fn() -> bool) {
    for _ in 0..20_000 {
        if is_so() {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
        tokio::task::yield_now().await;
    }
    panic!("not within twenty seconds");
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_takes_nothing_is_told_in_time_and_all_is_written_once_it_does() {
    let scratch = tempfile::tempdir().unwrap();
    let (memory, _) = Memory::open(scratch.path(), "istiod").unwrap();
    let stalls = memory.stalls.clone();
    stalls.store(true, Ordering::Relaxed);
    let keeper = Keeper::new(memory, None);
    keeper.note(vec![put("a", 1)], None);
    begun(&keeper).await;
    keeper.note(vec![put("b", 1)], Some(at(5)));
    tokio::time::advance(SLOW - Duration::from_millis(1)).await;
    assert_eq!(faults(&keeper), "");
    {
        let mut news = std::pin::pin!(keeper.news());
        assert!(poll_once(&mut news).await.is_none());
        tokio::time::advance(Duration::from_millis(1)).await;
        news.await;
    }
    let told = faults(&keeper);
    assert!(told.contains("istiod.state has taken nothing for 10s and longer"), "{told}");
    keeper.note(vec![put("c", 1)], None);
    stalls.store(false, Ordering::Relaxed);
    keeper.news().await;
    at_rest(&keeper).await;
    assert_eq!(faults(&keeper), "");
    let found = found(scratch.path());
    assert_eq!((found.resources.len(), found.heard), (3, Some(at(5))));
}

/// Polls once.
async fn poll_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    std::future::poll_fn(|context| {
        std::task::Poll::Ready(match std::pin::Pin::new(&mut *future).poll(context) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        })
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_a_disk_that_takes_nothing_is_bounded() {
    let scratch = tempfile::tempdir().unwrap();
    let (memory, _) = Memory::open(scratch.path(), "istiod").unwrap();
    let stalls = memory.stalls.clone();
    stalls.store(true, Ordering::Relaxed);
    let keeper = Keeper::new(memory, None);
    keeper.note(vec![put("a", 1)], Some(at(5)));
    begun(&keeper).await;
    // A whole mesh may come while a good disk is busy.
    keeper.note(vec![put("b", MOST_WAITING + 1)], None);
    assert_eq!(faults(&keeper), "");
    tokio::time::advance(SLOW).await;
    keeper.note(vec![put("c", 1)], None);
    let told = faults(&keeper);
    assert!(told.contains("is not remembered any more: more has come than is kept"), "{told}");
    assert_eq!(keeper.desk().waiting.bytes, 0);
    keeper.note(vec![put("d", 1)], None);
    assert_eq!(keeper.desk().waiting.bytes, 0);
    stalls.store(false, Ordering::Relaxed);
    at_rest(&keeper).await;
    assert_eq!(
        std::fs::read_dir(scratch.path()).unwrap().count(),
        0,
        "no start finds what lacks something"
    );
    keeper.note(vec![put("e", 1)], None);
    assert!(!keeper.owes() && !faults(&keeper).is_empty());
}

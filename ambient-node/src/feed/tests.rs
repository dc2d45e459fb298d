use ambient_control::BoxFuture;
use tokio::sync::mpsc;

use super::*;

struct Sent(mpsc::UnboundedReceiver<Batch>);

impl Source for Sent {
    fn next(&mut self) -> BoxFuture<'_, Option<Batch>> {
        Box::pin(self.0.recv())
    }
}

fn batch(synced: bool) -> Batch {
    Batch {
        synced,
        ..Batch::default()
    }
}

#[tokio::test(start_paused = true)]
async fn grace_begins_with_the_first_whole_state_and_ends_once() {
    let (sender, receiver) = mpsc::unbounded_channel();
    let mut feed = Feed::new(Box::new(Sent(receiver)));
    sender.send(batch(false)).unwrap();
    assert!(matches!(feed.next().await, Some(News::Batch(batch)) if !batch.synced));
    let waited = time::timeout(10 * GRACE, feed.next()).await;
    assert!(waited.is_err(), "before the first whole state nothing ends: {waited:?}");

    let begun = Instant::now();
    sender.send(batch(true)).unwrap();
    assert!(matches!(feed.next().await, Some(News::Batch(_))));
    // What comes meanwhile puts nothing off, nor does whoever stops waiting and begins again.
    time::sleep(GRACE / 2).await;
    sender.send(batch(true)).unwrap();
    assert!(matches!(feed.next().await, Some(News::Batch(_))));
    assert!(time::timeout(GRACE / 4, feed.next()).await.is_err());
    assert!(matches!(feed.next().await, Some(News::GraceIsOver)));
    let took = begun.elapsed();
    assert!(took >= GRACE && took < GRACE + Duration::from_millis(10), "{took:?}");

    assert!(time::timeout(10 * GRACE, feed.next()).await.is_err(), "it ends once");
    drop(sender);
    assert!(feed.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn what_is_due_is_told_once_and_put_off_by_nothing_that_comes() {
    let (sender, receiver) = mpsc::unbounded_channel();
    let mut feed = Feed::new(Box::new(Sent(receiver)));
    let due = Instant::now() + GRACE;
    feed.wake_at(Some(due));
    sender.send(batch(false)).unwrap();
    assert!(matches!(feed.next().await, Some(News::Batch(_))));
    time::advance(GRACE).await;
    sender.send(batch(false)).unwrap();
    assert!(matches!(feed.next().await, Some(News::Due)));
    assert!(matches!(feed.next().await, Some(News::Batch(_))));
    assert!(time::timeout(10 * GRACE, feed.next()).await.is_err(), "once");
    feed.wake_at(Some(due));
    feed.wake_at(None);
    assert!(
        time::timeout(10 * GRACE, feed.next()).await.is_err(),
        "it is not to be told any more"
    );
}

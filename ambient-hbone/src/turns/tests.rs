use std::{
    hint,
    sync::atomic::{AtomicU32, Ordering},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    task::JoinSet,
    time::timeout,
};

use super::*;

type Boxed = Pin<Box<dyn Future<Output = ()> + Send>>;

const SPIN: Duration = Duration::from_micros(40);

/// Takes the thread for so long at the least, again and again, and counts that.
fn spin(turns: Arc<AtomicU32>) -> impl Future<Output = ()> + Unpin {
    poll_fn(move |cx| {
        let begun = Instant::now();
        while begun.elapsed() < SPIN {
            hint::spin_loop();
        }
        turns.fetch_add(1, Ordering::Relaxed);
        cx.waker().wake_by_ref();
        Poll::Pending
    })
}

/// How often others had their turn, at the most, between two turns of one task that always wants one.
async fn others_between(tasks: &mut JoinSet<()>, others: Arc<AtomicU32>, share: impl FnOnce(Boxed) -> Boxed) -> u32 {
    let most = Arc::new(AtomicU32::new(0));
    let (seen, mut last, mut left) = (most.clone(), None, 100);
    let modest = poll_fn(move |cx| {
        let now = others.load(Ordering::Relaxed);
        if let Some(last) = last.replace(now) {
            seen.fetch_max(now - last, Ordering::Relaxed);
        }
        left -= 1;
        if left == 0 {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    });
    let modest = share(Box::pin(modest));
    let (done, ended) = tokio::sync::oneshot::channel();
    tasks.spawn(async move {
        modest.await;
        let _ = done.send(());
    });
    timeout(Duration::from_secs(60), ended).await.unwrap().unwrap();
    most.load(Ordering::Relaxed)
}

#[tokio::test]
async fn one_task_beside_a_storm_has_its_turn_each_time_that_the_storm_has_had_a_quantum() {
    let (mut tasks, storms) = (JoinSet::new(), Arc::<AtomicU32>::default());
    let turns = Turns::new();
    tasks.spawn(turns.clone().rounds());
    let (storm, modest) = (turns.share(), turns.share());
    for _ in 0..200 {
        tasks.spawn(storm.run(spin(storms.clone())));
    }
    // Turns until the quantum is used, and the one that goes beyond it. What the one task uses itself is next to nothing, but for when
    // the system takes its processor away: then it waits for as many rounds as it may owe.
    let round = u32::try_from(Turns::QUANTUM.as_micros() / SPIN.as_micros()).unwrap() + 2;
    let between = others_between(&mut tasks, storms.clone(), |task| Box::pin(modest.run(task))).await;
    assert!(between <= 6 * round, "{between}");
    let without = others_between(&mut tasks, storms, |task| task).await;
    assert!(
        without <= 6 * round,
        "the storm leaves the thread to what is in no share as well: {without}"
    );
}

#[tokio::test]
async fn without_shares_a_storm_is_waited_for_as_a_whole() {
    let (mut tasks, storms) = (JoinSet::new(), Arc::<AtomicU32>::default());
    for _ in 0..200 {
        tasks.spawn(spin(storms.clone()));
    }
    assert!(others_between(&mut tasks, storms, |task| task).await >= 190);
}

#[tokio::test]
async fn a_task_that_panics_or_is_aborted_gives_its_place_to_the_next() {
    let turns = Turns::new();
    let rounds = tokio::spawn(turns.clone().rounds());
    let share = turns.share();
    let mut tasks = JoinSet::new();
    let finite = || {
        let mut spinning = spin(Arc::default());
        let mut left = 20;
        poll_fn(move |cx| {
            left -= 1;
            if left == 0 {
                Poll::Ready(())
            } else {
                Pin::new(&mut spinning).poll(cx)
            }
        })
    };
    for number in 0..30 {
        let mut task = finite();
        let task = poll_fn(move |cx| {
            let polled = Pin::new(&mut task).poll(cx);
            assert!(number % 3 > 0 || polled.is_pending(), "what this one is for");
            polled
        });
        let handle = tasks.spawn(share.run(task));
        if number % 3 == 1 {
            tokio::spawn(async move {
                task::yield_now().await;
                task::yield_now().await;
                handle.abort();
            });
        }
    }
    let ends = async {
        let mut ends = [0; 3];
        while let Some(ended) = tasks.join_next().await {
            match ended {
                Ok(()) => ends[0] += 1,
                Err(error) => ends[if error.is_panic() { 1 } else { 2 }] += 1,
            }
        }
        ends
    };
    let [well, panicked, aborted] = timeout(Duration::from_secs(60), ends).await.unwrap();
    assert_eq!((panicked, well + aborted), (10, 20));
    assert!(well >= 10, "{well}");
    rounds.abort();
}

#[tokio::test]
async fn what_a_task_spawns_is_in_its_share() {
    let turns = Turns::new();
    let share = turns.share();
    assert!(!share.is_used());
    let (tell, told) = tokio::sync::oneshot::channel();
    let spawning = async move {
        spawn(async move {
            let _ = tell.send(Share::current());
        });
        assert!(Share::current().is_some());
    };
    tokio::spawn(share.run(Box::pin(spawning))).await.unwrap();
    assert!(Arc::ptr_eq(&told.await.unwrap().unwrap().lane, &share.lane));
    assert!(Share::current().is_none());
    spawn(async { assert!(Share::current().is_none()) }).await.unwrap();
}

#[tokio::test]
async fn a_share_that_has_ended_makes_room_for_another() {
    let turns = Turns::new();
    let first = turns.share();
    let index = first.lane.index;
    let clone = first.clone();
    assert!(first.is_used());
    drop((first, clone));
    assert_eq!(turns.share().lane.index, index);
}

#[tokio::test]
async fn a_turn_is_over_after_a_quantum_where_others_have_turns_too() {
    let turns = Turns::new();
    let (one, other) = (turns.share(), turns.share());
    let long = || {
        poll_fn(|_| {
            let fresh = (is_shared(), is_over());
            let begun = Instant::now();
            while begun.elapsed() <= Turns::QUANTUM {
                hint::spin_loop();
            }
            Poll::Ready((fresh, is_over()))
        })
    };
    assert_eq!(one.run(long()).await, ((false, false), false), "nobody waits");
    tokio::spawn(turns.clone().rounds());
    other.run(std::future::ready(())).await;
    let ((shared, _), over) = one.run(long()).await;
    assert!(shared && over);
    assert!(!is_shared() && !is_over(), "what is in no share takes its time");
}

#[tokio::test]
async fn what_is_done_in_turns_is_counted() {
    let turns = Turns::new();
    assert_eq!(turns.work(), Work::default());
    let share = turns.share();
    let begun = Instant::now();
    let turn = poll_fn(|_| {
        while begun.elapsed() < Turns::QUANTUM {
            hint::spin_loop();
        }
        Poll::Ready(())
    });
    share.run(turn).await;
    let first = turns.work();
    assert!(first.used > Duration::ZERO && first.used <= begun.elapsed() && first.moved == 0);
    tokio::spawn(turns.clone().rounds());
    let (mut here, mut near) = tokio::io::duplex(64);
    let (mut far, mut there) = tokio::io::duplex(64);
    let relay = async move { crate::relay(&mut near, &mut far, &crate::RelayLimits::default()).await };
    let relay = tokio::spawn(share.run(Box::pin(relay)));
    let says = async {
        here.write_all(&[7; 1000]).await.unwrap();
        here.shutdown().await.unwrap();
    };
    let mut heard = Vec::new();
    let hears = async {
        there.read_to_end(&mut heard).await.unwrap();
        there.write_all(&[8; 30]).await.unwrap();
        there.shutdown().await.unwrap();
    };
    tokio::join!(says, hears);
    let mut answer = Vec::new();
    here.read_to_end(&mut answer).await.unwrap();
    relay.await.unwrap();
    assert_eq!((heard.len(), answer.len()), (1000, 30));
    let both = turns.work();
    assert_eq!(both.since(first).moved, 1030);
    assert!(both.used > first.used);
}

#[tokio::test]
async fn who_waits_for_a_round_is_waited_for_until_he_has_had_his_turn_or_goes() {
    let turns = Turns::new();
    let share = turns.share();
    let begun = Instant::now();
    let uses_up = poll_fn(|_| {
        while begun.elapsed() <= 2 * Turns::QUANTUM {
            hint::spin_loop();
        }
        Poll::Ready(())
    });
    share.run(uses_up).await;
    assert!(!turns.are_waited_for());
    let mut waits: Vec<_> = (0..3).map(|_| share.run(std::future::ready(()))).collect();
    poll_fn(|cx| {
        for wait in &mut waits {
            assert!(Pin::new(&mut *wait).poll(cx).is_pending());
            assert!(Pin::new(wait).poll(cx).is_pending(), "asked twice it has one place");
        }
        Poll::Ready(())
    })
    .await;
    assert!(turns.are_waited_for());
    drop(waits.pop());
    let rounds = tokio::spawn(turns.clone().rounds());
    for wait in waits {
        assert!(turns.are_waited_for());
        wait.await;
    }
    assert!(!turns.are_waited_for());
    rounds.abort();
    let _ = rounds.await;
    drop(share);
    assert_eq!(Arc::strong_count(&turns.shared), 1, "nobody is kept");
    assert!(turns.lock().rounds.is_none());
}

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    runtime::{self, Runtime},
    time,
};

use super::*;

/// A runtime whose thread looks for so long.
fn that_looks(most: Duration) -> (Runtime, Turns, BusyPoll) {
    let turns = Turns::new();
    let looks = BusyPoll::new(most, &turns);
    let mut builder = runtime::Builder::new_current_thread();
    let (sleeps, wakes) = (looks.clone(), looks.clone());
    builder.on_thread_park(move || sleeps.before_sleep(false));
    builder.on_thread_unpark(move || wakes.after_sleep());
    let runtime = builder.enable_all().build().unwrap();
    runtime.spawn(turns.clone().rounds());
    runtime.spawn(looks.clone().look());
    (runtime, turns, looks)
}

/// Begins to exchange bytes with a thread that answers at once, until it is dropped, with a little work for each.
async fn exchanges(turns: &Turns) -> task::JoinHandle<()> {
    let (near, mut far) = UnixStream::pair().unwrap();
    thread::spawn(move || {
        let mut byte = [0];
        while far.read_exact(&mut byte).and_then(|()| far.write_all(&byte)).is_ok() {}
    });
    near.set_nonblocking(true).unwrap();
    let mut near = tokio::net::UnixStream::from_std(near).unwrap();
    let exchange = async move {
        loop {
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_micros(50) {}
            near.write_all(&[1]).await.unwrap();
            near.read_exact(&mut [0]).await.unwrap();
        }
    };
    tokio::spawn(turns.share().run(Box::pin(exchange)))
}

#[test]
fn a_thread_looks_for_what_comes_soon() {
    // So long that a machine with much to do is soon enough.
    let (runtime, turns, looks) = that_looks(Duration::from_millis(100));
    runtime.block_on(async {
        let soon = exchanges(&turns).await;
        let learns = async {
            while looks.looked().in_all().is_zero() {
                time::sleep(Duration::from_millis(1)).await;
            }
        };
        time::timeout(Duration::from_secs(60), learns).await.expect("it looks");
        soon.abort();
    });
}

#[test]
fn a_thread_sleeps_once_nothing_comes_soon() {
    const WAITS: u64 = 500;
    let (runtime, _, looks) = that_looks(MOST);
    let work = Work {
        used: MOST,
        ..Work::default()
    };
    {
        let patience = &mut looks.lock().patience;
        for _ in 0..100 {
            patience.slept(MOST, Duration::ZERO);
            patience.before_wait(Instant::now(), work, false);
        }
        assert_eq!(patience.before_wait(Instant::now(), work, false), Some(MOST));
    }
    runtime.block_on(async {
        for _ in 0..WAITS {
            time::sleep(Duration::from_millis(1)).await;
        }
    });
    let looked = looks.looked().in_all();
    assert!(!looked.is_zero() && looked < MOST * 300, "{looked:?}");
    assert!(runtime.metrics().worker_park_count(0) >= WAITS);
}

#[test]
fn a_thread_that_is_told_not_to_does_not_look() {
    let (runtime, turns, looks) = that_looks(Duration::ZERO);
    runtime.block_on(async {
        let soon = exchanges(&turns).await;
        time::sleep(Duration::from_millis(50)).await;
        soon.abort();
    });
    assert_eq!(looks.looked().in_all(), Duration::ZERO);
}

/// Its first words find a state in which nobody looks: all that is lost is time.
#[test]
fn a_thread_without_anybody_who_looks_sleeps() {
    let turns = Turns::new();
    let looks = BusyPoll::new(MOST, &turns);
    for _ in 0..10 {
        looks.before_sleep(false);
        assert!(matches!(looks.lock().state, State::Asleep(..)));
        looks.after_sleep();
        assert!(matches!(looks.lock().state, State::Working));
    }
}

#[test]
fn what_comes_after_it_has_looked_in_vain_begins_another_wait() {
    let turns = Turns::new();
    let looks = BusyPoll::new(MOST, &turns);
    let long_ago = Instant::now();
    let asleep = |looks: &BusyPoll| match looks.lock().state {
        State::Asleep(since, looked) => (since == long_ago, looked),
        state => panic!("{state:?}"),
    };
    let in_vain = || looks.lock().state = State::InVain(long_ago, MOST);
    in_vain();
    looks.before_sleep(false);
    assert_eq!(asleep(&looks), (true, MOST), "one wait");
    in_vain();
    let runtime = runtime::Builder::new_current_thread().build().unwrap();
    let turn = turns.share().run(Box::pin(async {
        let begun = Instant::now();
        while begun.elapsed().is_zero() {}
    }));
    runtime.block_on(turn);
    looks.before_sleep(false);
    assert_eq!(asleep(&looks), (false, Duration::ZERO), "another");
}

#[test]
fn who_has_less_time_than_processors_does_not_look() {
    assert_eq!(most_of(2, 2), MOST);
    assert_eq!(most_of(1, 1), MOST);
    assert_eq!(most_of(1, 2), Duration::ZERO, "a quota of one, of two");
    assert_eq!(most_of(64, 64), MOST);
}

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
    let (runtime, turns, looks) = that_looks(BOUND);
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
fn a_thread_that_works_now_and_then_sleeps_between() {
    let (runtime, turns, looks) = that_looks(MOST);
    let work = Work {
        used: MOST,
        ..Work::default()
    };
    // Whether it would look after such work; it has earned that.
    let looks_next = || looks.lock().patience.before_wait(Instant::now(), work, false).is_some();
    for _ in 0..100 {
        looks.lock().patience.slept(MOST);
        looks_next();
    }
    assert!(looks_next());
    runtime.block_on(async {
        let share = turns.share();
        for _ in 0..50 {
            share
                .run(Box::pin(async {
                    let begun = Instant::now();
                    while begun.elapsed() < MOST {}
                }))
                .await;
            time::sleep(Duration::from_millis(1)).await;
        }
    });
    assert!(!looks.looked().in_all().is_zero(), "it looked at first");
    let mut shared = looks.lock();
    let rested = Instant::now() + Duration::from_secs(10);
    for _ in 0..100 {
        assert_eq!(shared.patience.before_wait(rested, work, false), None, "and then no more");
    }
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
    let asleep_since_then = || match looks.lock().state {
        State::Asleep(since) => since == long_ago,
        state => panic!("{state:?}"),
    };
    let in_vain = || looks.lock().state = State::InVain(long_ago);
    in_vain();
    looks.before_sleep(false);
    assert!(asleep_since_then(), "one wait");
    in_vain();
    let runtime = runtime::Builder::new_current_thread().build().unwrap();
    let turn = turns.share().run(Box::pin(async {
        let begun = Instant::now();
        while begun.elapsed().is_zero() {}
    }));
    runtime.block_on(turn);
    looks.before_sleep(false);
    assert!(!asleep_since_then(), "another");
}

#[test]
fn pods_that_contend_have_it_fall_asleep_at_once() {
    let (runtime, _, looks) = that_looks(MOST);
    runtime.block_on(task::yield_now());
    let work = Work {
        used: MOST,
        ..Work::default()
    };
    let state = |contended| {
        let mut shared = looks.lock();
        for _ in 0..100 {
            shared.patience.slept(MOST);
            shared.patience.before_wait(Instant::now(), work, false);
        }
        drop(shared);
        looks.before_sleep(contended);
        mem::replace(&mut looks.lock().state, State::Working)
    };
    assert!(matches!(state(true), State::Asleep(_)));
    assert!(matches!(state(false), State::Looking(_, MOST)));
}

#[test]
fn those_who_take_turns_do_not_contend() {
    for most in [Duration::ZERO, MOST] {
        let (runtime, turns, looks) = that_looks(most);
        let shares = [turns.share(), turns.share()];
        let work = Work {
            used: MOST,
            ..Work::default()
        };
        runtime.block_on(async {
            for round in 0..100 {
                // As if it had found something soon each time, and had earned to look.
                for _ in 0..10 {
                    let mut shared = looks.lock();
                    shared.patience.slept(MOST);
                    shared.patience.before_wait(Instant::now(), work, false);
                }
                shares[round % 2]
                    .run(Box::pin(async {
                        let begun = Instant::now();
                        while begun.elapsed() < Turns::QUANTUM / 2 {}
                    }))
                    .await;
                time::sleep(Duration::from_millis(1)).await;
            }
        });
        assert!(!turns.were_contended(), "{most:?}");
        assert_eq!(looks.looked().in_all().is_zero(), most.is_zero());
    }
}

#[test]
fn nothing_is_left_of_a_runtime_that_has_ended() {
    let (runtime, turns, looks) = that_looks(MOST);
    runtime.block_on(async {
        let soon = exchanges(&turns).await;
        time::sleep(Duration::from_millis(5)).await;
        soon.abort();
    });
    drop(runtime);
    assert_eq!(Arc::strong_count(&looks.shared), 1);
}

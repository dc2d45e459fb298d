use std::sync::Condvar;

use super::*;

fn lookup(name: &str) -> Lookup {
    Lookup(name.into())
}

fn remembered(lookups: &Lookups, name: &str) -> Option<Vec<IpAddr>> {
    lookups.state.lock().unwrap().remembered(name)
}

#[tokio::test]
async fn a_name_is_remembered_and_so_is_that_it_means_nothing() {
    let lookups = Lookups::default();
    let localhost = lookups.find(&lookup("localhost")).await;
    assert!(localhost.iter().all(IpAddr::is_loopback) && !localhost.is_empty());
    assert_eq!(remembered(&lookups, "localhost"), Some(localhost));
    // No name has an empty label: nobody is asked for it.
    assert_eq!(lookups.find(&lookup("no..name")).await, Vec::<IpAddr>::new());
    assert_eq!(remembered(&lookups, "no..name"), Some(vec![]));
}

#[test]
fn what_is_remembered_is_bounded_and_can_change() {
    let mut state = State::default();
    for n in 0..2 * MOST {
        state.remember(&n.to_string().into(), vec![], false);
    }
    assert_eq!(state.known.len(), MOST);
    let found = vec![IpAddr::from([10, 0, 0, 1])];
    state.remember(&"0".into(), found.clone(), false);
    assert_eq!(state.remembered("0"), Some(found));
    assert_eq!(state.known.len(), MOST);
}

#[tokio::test]
async fn a_name_beyond_those_that_are_remembered_is_found_and_asked_for_once() {
    static ASKED: Mutex<usize> = Mutex::new(0);
    let lookups = Lookups::asking(|_| {
        *ASKED.lock().unwrap() += 1;
        Ok(vec![[10, 0, 0, 1].into()])
    });
    for n in 0..MOST {
        lookups.state.lock().unwrap().remember(&n.to_string().into(), vec![], false);
    }
    for _ in 0..2 {
        assert_eq!(lookups.find(&lookup("one.example")).await, [IpAddr::from([10, 0, 0, 1])]);
    }
    assert_eq!(*ASKED.lock().unwrap(), 1);
}

/// Names that were asked for, and whether there are answers.
#[derive(Default)]
struct Resolver(Mutex<(Vec<String>, bool)>, Condvar);

impl Resolver {
    const fn new() -> Self {
        Self(Mutex::new((Vec::new(), false)), Condvar::new())
    }

    fn ask(&self, name: &str) -> Vec<IpAddr> {
        let mut state = self.0.lock().unwrap();
        state.0.push(name.to_owned());
        self.1.notify_all();
        // No longer than any resolver would be silent: a test that fails is not to wait for its threads.
        let spoken = self.1.wait_timeout_while(state, 4 * PATIENCE, |state| !state.1);
        drop(spoken.unwrap());
        vec![[10, 0, 0, 1].into()]
    }

    fn asked(&self) -> usize {
        self.0.lock().unwrap().0.len()
    }

    fn speak(&self) {
        self.0.lock().unwrap().1 = true;
        self.1.notify_all();
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_resolver_has_few_threads_and_a_name_one() {
    static RESOLVER: Resolver = Resolver::new();
    let lookups = Arc::new(Lookups::asking(|name| Ok(RESOLVER.ask(name))));
    let find = |n: usize| {
        let lookups = lookups.clone();
        tokio::spawn(async move { lookups.find(&lookup(&format!("{n}.example"))).await })
    };
    for _ in 0..4 {
        lookups.state.lock().unwrap().known.clear();
        let begun = time::Instant::now();
        let asking: Vec<_> = (0..4 * AT_ONCE).map(|n| find(n % (AT_ONCE + 4))).collect();
        for _ in 0..4 * AT_ONCE {
            task::yield_now().await;
        }
        time::advance(PATIENCE).await;
        for found in asking {
            assert!(found.await.unwrap().is_empty(), "nobody has said anything");
        }
        assert!(begun.elapsed() < 2 * PATIENCE);
    }
    drop(RESOLVER.1.wait_while(RESOLVER.0.lock().unwrap(), |state| state.0.len() < AT_ONCE));
    assert_eq!(RESOLVER.asked(), AT_ONCE);
    lookups.state.lock().unwrap().known.clear();
    // What has a thread is not asked for once more, nor is what two ask for at once.
    let found = [find(0), find(AT_ONCE + 1), find(AT_ONCE + 1)];
    task::yield_now().await;
    RESOLVER.speak();
    for found in found {
        assert_eq!(found.await.unwrap(), [IpAddr::from([10, 0, 0, 1])]);
    }
    assert_eq!(RESOLVER.asked(), AT_ONCE + 1);
}

#[tokio::test]
async fn a_thread_that_panics_leaves_its_place() {
    let lookups = Lookups::asking(|_| panic!("in a test"));
    for n in 0..2 * AT_ONCE {
        assert!(lookups.find(&lookup(&format!("{n}.example"))).await.is_empty());
    }
    assert_eq!(lookups.room.available_permits(), AT_ONCE);
}

#[tokio::test(start_paused = true)]
async fn names_that_nobody_answers_leave_room_for_others() {
    static RESOLVER: Resolver = Resolver::new();
    let lookups = Arc::new(Lookups::asking(|name| match name.starts_with("dead") {
        true => Ok(RESOLVER.ask(name)),
        false => Ok(vec![[10, 0, 0, 2].into()]),
    }));
    let find = |name: String| {
        let lookups = lookups.clone();
        tokio::spawn(async move { lookups.find(&lookup(&name)).await })
    };
    let wait_for = |asked: usize| drop(RESOLVER.1.wait_while(RESOLVER.0.lock().unwrap(), |state| state.0.len() < asked));
    let dead = || (0..AT_ONCE).map(|n| find(format!("dead-{n}.example"))).collect::<Vec<_>>();
    let first = dead();
    for _ in 0..4 {
        task::yield_now().await;
    }
    wait_for(AT_ONCE);
    time::advance(PATIENCE).await;
    for found in first {
        assert!(found.await.unwrap().is_empty());
    }
    RESOLVER.speak();
    while lookups.room.available_permits() < AT_ONCE {
        task::yield_now().await;
    }
    // What they mean is not remembered any more, but that it came late.
    RESOLVER.0.lock().unwrap().1 = false;
    lookups.state.lock().unwrap().known.values_mut().for_each(|known| {
        assert!(known.was_late);
        known.asked = known.asked.checked_sub(KEPT).unwrap();
    });
    let again = dead();
    for _ in 0..4 {
        task::yield_now().await;
    }
    wait_for(AT_ONCE + AGAIN);
    assert_eq!(lookups.room.available_permits(), AT_ONCE - AGAIN);
    assert_eq!(find("one.example".into()).await.unwrap(), [IpAddr::from([10, 0, 0, 2])]);
    assert_eq!(lookups.state.lock().unwrap().under_way.len(), AGAIN, "while those are silent");
    RESOLVER.speak();
    for found in again {
        assert_eq!(found.await.unwrap(), [IpAddr::from([10, 0, 0, 1])]);
    }
    // Whose answer comes in time has all the places again.
    assert!(lookups.state.lock().unwrap().known.values().all(|known| !known.was_late));
}

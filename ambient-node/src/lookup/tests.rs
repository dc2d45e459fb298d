use std::sync::Condvar;

use proptest::prelude::*;

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
    let own = Places::of_a_pod();
    let localhost = lookups.find(&lookup("localhost"), &own).await;
    assert!(localhost.iter().all(IpAddr::is_loopback) && !localhost.is_empty());
    assert_eq!(remembered(&lookups, "localhost"), Some(localhost));
    // No name has an empty label: nobody is asked for it.
    assert_eq!(lookups.find(&lookup("no..name"), &own).await, Vec::<IpAddr>::new());
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
        assert_eq!(
            lookups.find(&lookup("one.example"), &Places::of_a_pod()).await,
            [IpAddr::from([10, 0, 0, 1])]
        );
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

    /// Waits until so many were asked for.
    fn await_asked(&self, asked: usize) {
        let (state, waited) = self
            .1
            .wait_timeout_while(self.0.lock().unwrap(), LONG, |state| state.0.len() < asked)
            .unwrap();
        assert!(!waited.timed_out(), "{:?} alone were asked for", state.0);
    }

    fn speak(&self) {
        self.0.lock().unwrap().1 = true;
        self.1.notify_all();
    }

    fn fall_silent(&self) {
        self.0.lock().unwrap().1 = false;
    }
}

/// A node's look-ups, and pods that ask. All that a resolver waits with is asked of another than the rest.
struct Node {
    lookups: Arc<Lookups>,
    pods: Vec<Arc<Places>>,
}

impl Node {
    fn new(ask: Ask) -> Self {
        Self {
            lookups: Arc::new(Lookups::asking(ask)),
            pods: (0..8).map(|_| Arc::new(Places::of_a_pod())).collect(),
        }
    }

    /// Begins to look a name up for a pod.
    fn find(&self, pod: usize, name: &str) -> task::JoinHandle<Vec<IpAddr>> {
        let (lookups, own, lookup) = (self.lookups.clone(), self.pods[pod].clone(), lookup(name));
        tokio::spawn(async move { lookups.find(&lookup, &own).await })
    }

    /// Has all that can be begun without time going by begin.
    async fn settle(&self) {
        for _ in 0..8 * AT_ONCE {
            task::yield_now().await;
        }
    }

    fn under_way(&self) -> usize {
        self.lookups.locked().under_way.len()
    }

    /// Nobody knows any more what names mean, only whether they were answered in time.
    fn forget(&self) {
        for known in self.lookups.locked().known.values_mut() {
            known.asked = known.asked.checked_sub(KEPT).unwrap();
        }
    }

    async fn all_places_are_free(&self) {
        let begun = clock::steady();
        let of_node = std::iter::once((&self.lookups.places, AT_ONCE));
        for (places, most) in of_node.chain(self.pods.iter().map(|own| (&**own, OF_A_POD))) {
            while (places.all.available_permits(), places.unproven.available_permits()) != (most, most / 2) {
                assert!(begun.elapsed() < LONG, "{places:?}");
                task::yield_now().await;
            }
        }
    }
}

/// The most that anything may take.
const LONG: Duration = Duration::from_secs(20);
const FOUND: [IpAddr; 1] = [IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2))];

#[tokio::test(start_paused = true)]
async fn a_silent_resolver_has_few_threads_and_a_name_one() {
    static RESOLVER: Resolver = Resolver::new();
    let node = Node::new(|name| Ok(RESOLVER.ask(name)));
    let most = AT_ONCE / 2;
    for round in 0..4 {
        let asking: Vec<_> = (0..4 * AT_ONCE)
            .map(|n| node.find(n % node.pods.len(), &format!("{}.example", n % (most + 5))))
            .collect();
        node.settle().await;
        RESOLVER.await_asked(most);
        let begun = time::Instant::now();
        // What a thread has asked for in vain all the while is not waited for.
        assert_eq!(asking.iter().any(|asking| asking.is_finished()), round > 0);
        time::advance(PATIENCE).await;
        for found in asking {
            assert!(found.await.unwrap().is_empty(), "nobody has said anything");
        }
        assert!(begun.elapsed() < 2 * PATIENCE);
        assert_eq!((RESOLVER.asked(), node.under_way()), (most, most));
    }
    RESOLVER.speak();
    node.all_places_are_free().await;
    assert!(node.lookups.locked().known.values().all(|known| known.was_late));
    assert_eq!(
        node.find(0, "0.example").await.unwrap(),
        [IpAddr::from([10, 0, 0, 1])],
        "late is not lost"
    );
    // What two ask for at once is asked for once.
    let found = [node.find(0, "one.example"), node.find(1, "one.example")];
    for found in found {
        assert_eq!(found.await.unwrap(), [IpAddr::from([10, 0, 0, 1])]);
    }
    assert_eq!(RESOLVER.asked(), most + 1);
}

#[tokio::test]
async fn a_thread_that_panics_leaves_its_place() {
    let node = Node::new(|_| panic!("in a test"));
    for n in 0..2 * AT_ONCE {
        assert!(node.find(0, &format!("{n}.example")).await.unwrap().is_empty());
    }
    node.all_places_are_free().await;
}

#[tokio::test(start_paused = true)]
async fn names_that_nobody_answers_leave_room_for_others() {
    static RESOLVER: Resolver = Resolver::new();
    let node = Node::new(|name| match name.starts_with("dead") {
        true => Ok(RESOLVER.ask(name)),
        false => Ok(FOUND.into()),
    });
    assert_eq!(node.find(0, "one.example").await.unwrap(), FOUND);
    let dead = || -> Vec<_> {
        let names = (0..AT_ONCE).map(|n| format!("dead-{n}.example"));
        names.enumerate().map(|(n, name)| node.find(n % node.pods.len(), &name)).collect()
    };
    // Whether they are asked for the first time, or were late the last.
    for round in 1..3 {
        let asking = dead();
        node.settle().await;
        RESOLVER.await_asked(round * AT_ONCE / 2);
        assert_eq!(node.under_way(), AT_ONCE / 2);
        node.forget();
        assert_eq!(node.find(0, "one.example").await.unwrap(), FOUND);
        assert_eq!(node.under_way(), AT_ONCE / 2, "while those are silent");
        time::advance(PATIENCE).await;
        for found in asking {
            assert!(found.await.unwrap().is_empty());
        }
        RESOLVER.speak();
        node.all_places_are_free().await;
        node.forget();
        RESOLVER.fall_silent();
    }
    // Those whose answers come in time have all the places.
    RESOLVER.speak();
    for found in dead() {
        assert_eq!(found.await.unwrap(), [IpAddr::from([10, 0, 0, 1])]);
    }
    node.forget();
    RESOLVER.fall_silent();
    let asking = dead();
    node.settle().await;
    assert_eq!(node.under_way(), AT_ONCE);
    RESOLVER.speak();
    drop(asking);
}

/// What it could not even ask for is no news to anybody.
#[tokio::test(start_paused = true)]
async fn a_name_that_one_pod_waits_for_in_vain_is_found_by_another() {
    static RESOLVER: Resolver = Resolver::new();
    let node = Node::new(|name| match name.starts_with("dead") {
        true => Ok(RESOLVER.ask(name)),
        false => Ok(FOUND.into()),
    });
    let dead: Vec<_> = (0..OF_A_POD).map(|n| node.find(0, &format!("dead-{n}.example"))).collect();
    node.settle().await;
    let waits = node.find(0, "one.example");
    node.settle().await;
    time::advance(PATIENCE).await;
    assert!(waits.await.unwrap().is_empty());
    assert_eq!(node.find(1, "one.example").await.unwrap(), FOUND);
    assert_eq!(node.find(0, "one.example").await.unwrap(), FOUND, "as it is known now");
    RESOLVER.speak();
    drop(dead);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Three pods ask for whatever nobody answers, some of which was answered before: a fourth does not wait.
    #[test]
    fn pods_leave_others_their_share(
        asked in prop::collection::vec((0..3_usize, 0..60_usize), 0..200),
        before in 0..60_usize,
    ) {
        static RESOLVER: Resolver = Resolver::new();
        let node = Node::new(|name| match name.starts_with("dead") {
            true => Ok(RESOLVER.ask(name)),
            false => Ok(FOUND.into()),
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let held = runtime.block_on(async {
            RESOLVER.speak();
            for n in 0..before {
                node.find(n % 3, &format!("dead-{n}.example")).await.unwrap();
            }
            node.all_places_are_free().await;
            node.forget();
            RESOLVER.fall_silent();
            let asking: Vec<_> = asked.iter().map(|(pod, n)| node.find(*pod, &format!("dead-{n}.example"))).collect();
            node.settle().await;
            let held = node.under_way();
            let other = node.find(3, "one.example");
            node.settle().await;
            // If it must wait, that is seen before anybody has said anything; a test that fails is not to wait as well.
            let has_begun = {
                let state = node.lookups.locked();
                state.under_way.contains_key("one.example") || state.remembered("one.example").is_some()
            };
            if !has_begun {
                RESOLVER.speak();
            }
            assert_eq!(other.await.unwrap(), FOUND);
            RESOLVER.speak();
            for found in asking {
                found.await.unwrap();
            }
            (held, has_begun)
        });
        prop_assert!(held.0 <= 3 * OF_A_POD && held.1, "{held:?}");
    }
}

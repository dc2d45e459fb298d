use ambient_core::Capture;

use super::*;
use crate::{PodSpec, linux::NetnsId, pods::State};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn pod(uid: &str, addresses: &[&str], placed: bool) -> PodState {
    let spec = PodSpec {
        uid: uid.into(),
        namespace: "shop".into(),
        name: uid.into(),
        service_account: "default".into(),
        addresses: addresses.iter().map(|a| ip(a)).collect(),
        capture: Capture::default(),
        has_run: true,
    };
    PodState {
        namespace: placed.then_some(NetnsId { dev: 1, ino: 2 }),
        ..PodState::new(spec, State::Joining)
    }
}

fn owners(pairs: &[(&str, &str)]) -> BTreeMap<IpAddr, PodUid> {
    pairs.iter().map(|(a, uid)| (ip(a), PodUid::from(*uid))).collect()
}

#[test]
fn the_whole_table_as_text() {
    let pods = ["10.0.0.2", "fd00::2", "::ffff:10.0.0.3"].map(ip);
    assert_eq!(table(pods, true).to_string(), include_str!("../../tests/vectors/probes.txt"));
    let v4 = table(pods, false).to_string();
    assert!(!v4.contains("ip6") && !v4.contains("v6") && v4.contains("10.0.0.3"), "{v4}");
}

#[test]
fn an_address_is_its_present_pods_and_no_late_leaver_takes_it_along() {
    let nothing = BTreeSet::new();
    // Whoever is first in the list: the order is that of UIDs.
    for (old, new) in [("a", "b"), ("b", "a")] {
        let both = [pod(old, &["10.0.0.2"], true), pod(new, &["10.0.0.2", "fd00::2"], true)];
        assert_eq!(wanted(&both, &nothing).len(), 2);
        assert_eq!(wanted(&both[1..], &nothing), owners(&[("10.0.0.2", new), ("fd00::2", new)]));
        assert_eq!(wanted(&both[..1], &nothing), owners(&[("10.0.0.2", old)]));
    }
    assert_eq!(wanted(&[], &[ip("10.0.0.2")].into()), owners(&[]));
}

#[test]
fn who_waits_for_a_namespace_keeps_what_is_there_and_gets_no_more() {
    let waiting = [pod("a", &["10.0.0.2", "fd00::2"], false), pod("b", &["10.0.0.3"], false)];
    let present = [ip("10.0.0.2"), ip("10.0.0.9")].into();
    assert_eq!(wanted(&waiting, &present), owners(&[("10.0.0.2", "a")]));
    // The one that has its namespace goes before the one that waits for it.
    let claims = [pod("a", &["10.0.0.2"], false), pod("b", &["10.0.0.2"], true)];
    assert_eq!(wanted(&claims, &present), owners(&[("10.0.0.2", "b")]));
}

#[test]
fn only_what_was_lost_is_a_repair() {
    let now = now();
    let mut upkeep = Upkeep::new(now);
    let put = [
        ProbeDifference::Table,
        ProbeDifference::Missing(ip("10.0.0.2")),
        ProbeDifference::Missing(ip("10.0.0.3")),
        ProbeDifference::Stray(ip("10.0.0.4")),
        ProbeDifference::Stray(ip("10.0.0.2")),
    ];
    assert_eq!(upkeep.mended(&put), [], "nothing had been put there");
    upkeep.owners = Some(owners(&[("10.0.0.2", "a")]));
    assert_eq!(upkeep.mended(&put), [put[0].clone(), put[1].clone(), put[3].clone()]);
    upkeep.cleared = true;
    assert_eq!(upkeep.mended(&put[..1]), []);
}

#[test]
fn without_pods_the_rules_go_once_it_is_known_that_there_are_none() {
    let now = now();
    let mut upkeep = Upkeep::new(now);
    upkeep.pods(&[]);
    assert!(!upkeep.is_idle(now), "nobody has told yet");
    assert!(upkeep.is_idle(now + IDLE), "nobody will");
    upkeep.verify_at = now + 2 * IDLE;
    assert_eq!(upkeep.due(), now + IDLE);
    upkeep.pods(&[pod("a", &["10.0.0.2"], true)]);
    assert!(!upkeep.is_idle(now + IDLE));
    upkeep.pods(&[]);
    assert!(upkeep.is_idle(now));
}

#[tokio::test]
async fn a_kernel_that_is_silent_is_told_of_and_asked_one_thing_at_a_time() {
    let mut kernel = Apart::new(Duration::from_millis(50));
    let (go, gone) = std::sync::mpsc::channel::<()>();
    let silent = kernel.run(move || gone.recv().unwrap_err()).await.unwrap_err();
    assert_eq!(silent, "the kernel has not answered within 50ms");
    let begun = Arc::new(Mutex::new(0));
    let ask = |begun: &Arc<Mutex<i32>>| {
        let begun = begun.clone();
        move || {
            *begun.lock().unwrap() += 1;
            "an answer"
        }
    };
    assert!(kernel.run(ask(&begun)).await.is_err(), "the first has not ended");
    assert_eq!(*begun.lock().unwrap(), 0);
    drop(go);
    kernel.longest = Duration::from_secs(20);
    assert_eq!(kernel.run(ask(&begun)).await, Ok("an answer"));
    assert_eq!(*begun.lock().unwrap(), 1);
    let panicked = kernel.run(|| panic!("a test")).await.map(|(): ()| ()).unwrap_err();
    assert!(panicked.contains("panicked"), "{panicked}");
    assert_eq!(kernel.run(ask(&begun)).await, Ok("an answer"));
}

use std::sync::atomic::{AtomicU32, Ordering};

use ambient_control::{Batch, Change};
use ambient_core::mesh::Update;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

#[tokio::test]
async fn who_asks_while_it_panics_is_answered_by_the_next() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("cni.sock");
    let (door, metrics) = (Door::open(&path).unwrap(), Arc::new(Metrics::default()));
    let asked = Arc::new(AtomicU32::new(0));
    let counted = asked.clone();
    let answer: Answer = Arc::new(move |mut stream: UnixStream| {
        assert!(counted.fetch_add(1, Ordering::Relaxed) > 0, "the first one is too much for it");
        Box::pin(async move { drop(stream.write_all(b"here").await) })
    });
    let of_it = metrics.clone();
    let upheld = tokio::spawn(async move { uphold(door, &of_it, answer).await });
    let mut ends = Vec::new();
    for _ in 0..2 {
        let mut plugin = UnixStream::connect(&path).await.unwrap();
        let mut said = String::new();
        let read = time::timeout(Duration::from_secs(5), plugin.read_to_string(&mut said))
            .await
            .unwrap();
        ends.push(read.map(|_| said).unwrap_or_default());
    }
    assert_eq!(ends, ["", "here"]);
    assert_eq!(asked.load(Ordering::Relaxed), 2);
    assert!(metrics.text().unwrap().contains("ambient_tasks_restarted_total 1"));
    assert!(!upheld.is_finished());
}

#[test]
fn what_istios_plugin_says_is_understood() {
    // As Go writes it: fields by their names, masks in Base64, and what is not there as null.
    let said: Said = serde_json::from_str(
        r#"{"Netns":"/var/run/netns/x","PodName":"p","PodNamespace":"n","IPs":[{"Interface":0,"Address":{"IP":"10.0.0.5","Mask":"/////w=="},"Gateway":"10.0.0.1"},{"Interface":null,"Address":{"IP":"fd00::5","Mask":"//////////8AAAAAAAAAAA=="},"Gateway":null}]}"#,
    )
    .unwrap();
    assert_eq!((&*said.pod_name, &*said.pod_namespace, said.pod_uid), ("p", "n", None));
    let ips: Vec<IpAddr> = said.ips.iter().flatten().map(|ip| ip.address.ip).collect();
    assert_eq!(ips, ["10.0.0.5".parse::<IpAddr>().unwrap(), "fd00::5".parse().unwrap()]);
    let none: Said = serde_json::from_str(r#"{"Netns":"/x","PodName":"p","PodNamespace":"n","IPs":null}"#).unwrap();
    assert!(none.ips.is_none());
    for wrong in [
        "[]",
        r#"{"PodName":"p","PodNamespace":"n"}"#,
        r#"{"Netns":"/x","PodName":"p","PodNamespace":"n","IPs":[{"Address":{"IP":"ten"}}]}"#,
    ] {
        assert!(serde_json::from_str::<Said>(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn a_runtime_is_told_whose_fault_it_is() {
    let (pod, why) = (|| "shop/cart".to_owned(), || "so".to_owned());
    let spec = || {
        let mut workload = Workload::new("u", "shop", "cart");
        workload.pod = Some("u".into());
        Box::new(spec_of(&workload, None).unwrap())
    };
    let unreadable = serde_json::from_str::<Said>("{").unwrap_err();
    let wrong = Refusal::Wrong {
        pod: pod(),
        what: "so".into(),
    };
    let unknown = Refusal::Unknown {
        pod: pod(),
        node: "node-1".into(),
    };
    for (refusal, status) in [
        (Refusal::Unreadable(unreadable), 400),
        (wrong, 400),
        (unknown, 503),
        (Refusal::Ignorant { pod: pod() }, 503),
        (Refusal::Taking(HandOverError::Ended), 500),
        (Refusal::Taking(HandOverError::Passing { pod: spec(), why: why() }), 503),
        (Refusal::Taking(HandOverError::Refused { pod: spec(), why: why() }), 409),
        (
            Refusal::Unproven {
                pod: pod(),
                why: "so".into(),
            },
            500,
        ),
    ] {
        assert_eq!(refusal.status(), status, "{refusal}");
    }
    let unknown = Refusal::Unknown {
        pod: pod(),
        node: "node-1".into(),
    };
    assert!(
        unknown
            .to_string()
            .starts_with("shop/cart: no pod of this name and UID is known on node node-1 within 4.5 s")
    );
}

/// A pod of a StatefulSet, as it is told of.
fn told(uid: &str, addresses: &[&str]) -> Batch {
    let workload = Workload {
        pod: Some(uid.into()),
        node: "node-1".into(),
        addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
        ..Workload::new("c//Pod/shop/db-0", "shop", "db-0")
    };
    Batch {
        changes: vec![Change::Mesh(Update::Workload(workload.into()))],
        synced: true,
        ..Batch::default()
    }
}

fn said(uid: &str, address: &str) -> Said {
    let text =
        format!(r#"{{"Netns":"/x","PodName":"db-0","PodNamespace":"shop","PodUID":"{uid}","IPs":[{{"Address":{{"IP":"{address}"}}}}]}}"#);
    serde_json::from_str(&text).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_goes_by_its_name_is_not_taken_for_a_former_one() {
    let state = Arc::new(State::default());
    let register = Arc::new(Register::new("node-1".into(), state.clone()));
    let known = |uid: &'static str, address: &'static str| {
        let register = register.clone();
        async move {
            let known = register.known(&said(uid, address), "shop/db-0", Instant::now() + PATIENCE).await;
            known.map(|workload| workload.pod.clone().unwrap())
        }
    };
    state.apply(told("one", &["10.0.0.5", "fd00::5"]), crate::clock::steady());
    assert_eq!(known("", "10.0.0.5").await.unwrap(), "one".into(), "it is that one, by its address");
    assert_eq!(known("one", "10.0.0.6").await.unwrap(), "one".into(), "it is said to be");
    let begun = Instant::now();
    let taken = tokio::spawn(known("", "10.0.0.6"));
    time::sleep(Duration::from_secs(2)).await;
    state.apply(told("two", &[]), crate::clock::steady());
    assert_eq!(taken.await.unwrap().unwrap(), "two".into());
    assert!(begun.elapsed() < PATIENCE);
    // Its own sandbox is another after a while, and its status tells the addresses of the one before.
    state.apply(told("two", &["10.0.0.6"]), crate::clock::steady());
    let begun = Instant::now();
    let mut attempts = 0;
    let found = loop {
        attempts += 1;
        match known("", "10.0.0.7").await {
            Ok(found) => break found,
            Err(refusal) => assert!(refusal.status() == StatusCode::SERVICE_UNAVAILABLE, "{refusal}"),
        }
    };
    assert_eq!(found, "two".into());
    assert!(attempts > 1 && begun.elapsed() >= DOUBTED && begun.elapsed() < DOUBTED + PATIENCE);
}

#[tokio::test(start_paused = true)]
async fn what_was_found_of_a_pods_former_addresses_says_nothing_of_its_present_ones() {
    let register = Register::new("node-1".into(), Arc::new(State::default()));
    let is_doubted = |known: &[&str], named: &str| {
        let workload = Workload {
            pod: Some("one".into()),
            addresses: known.iter().map(|ip| ip.parse().unwrap()).collect(),
            ..Workload::new("c//Pod/shop/db-0", "shop", "db-0")
        };
        register.is_doubted(&workload, &[named.parse().unwrap()])
    };
    assert!(is_doubted(&["10.0.0.5", "fd00::5"], "10.0.0.6"));
    time::advance(DOUBTED).await;
    assert!(!is_doubted(&["10.0.0.5", "fd00::5"], "10.0.0.6"), "it has got another sandbox");
    assert!(!is_doubted(&["fd00::5", "10.0.0.5"], "10.0.0.7"), "and another one still");
    // That is told of by now: one that comes with other addresses may be the next of the name.
    assert!(is_doubted(&["10.0.0.7"], "10.0.0.8"));
    time::advance(DOUBTED).await;
    assert!(!is_doubted(&["10.0.0.7"], "10.0.0.8"));
    // So may one that comes after the known one was seen where it is known to be, or had no address for a while.
    for (known, named) in [(&["10.0.0.7"][..], "10.0.0.7"), (&[], "10.0.0.8")] {
        assert!(!is_doubted(known, named));
        assert!(is_doubted(&["10.0.0.7"], "10.0.0.8"), "{known:?}");
        time::advance(DOUBTED).await;
        assert!(!is_doubted(&["10.0.0.7"], "10.0.0.8"));
    }
}

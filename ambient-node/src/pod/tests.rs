use std::sync::Arc;

use ambient_control::{Batch, Change};
use ambient_core::mesh::Update;

use super::*;
use crate::clock;

fn batch(changes: Vec<Change>) -> Batch {
    Batch {
        changes,
        synced: true,
        ..Batch::default()
    }
}

fn workload(account: &str) -> Workload {
    Workload {
        pod: Some("uid".into()),
        service_account: account.into(),
        ..Workload::new("c//Pod/shop/cart-0", "shop", "cart-0")
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_is_told_of_late_is_waited_for_and_not_for_ever() {
    let (state, pod) = (Arc::new(State::default()), PodUid::from("uid"));
    let identity = workload("cart").identity().unwrap();
    let asked = || {
        let (state, pod, identity) = (state.clone(), pod.clone(), identity.clone());
        async move {
            let begun = time::Instant::now();
            let found = await_local(&state, &pod, &identity).await;
            (found, begun.elapsed())
        }
    };
    // Of nothing at all, and of others.
    let (found, took) = asked().await;
    assert!(matches!(found, Err(UnknownPod::NoState)), "{found:?}");
    assert_eq!(took, LATENESS);
    state.apply(batch(vec![]), clock::steady());
    let (found, took) = asked().await;
    assert!(matches!(found, Err(UnknownPod::Absent)) && took == LATENESS, "{found:?}");

    let late = tokio::spawn(asked());
    time::sleep(Duration::from_secs(2)).await;
    state.apply(batch(vec![]), clock::steady());
    time::sleep(Duration::from_secs(1)).await;
    state.apply(
        batch(vec![Change::Mesh(Update::Workload(workload("cart").into()))]),
        clock::steady(),
    );
    let (found, took) = late.await.unwrap();
    assert!(found.is_ok() && took == Duration::from_secs(3), "{found:?} {took:?}");
    assert_eq!(asked().await.1, Duration::ZERO);

    // Whoever it is now, that does not become right by waiting.
    state.apply(
        batch(vec![Change::Mesh(Update::Workload(workload("other").into()))]),
        clock::steady(),
    );
    let (found, took) = asked().await;
    assert!(matches!(found, Err(UnknownPod::Renamed(_))) && took == Duration::ZERO, "{found:?}");
}

#[tokio::test(start_paused = true)]
async fn one_of_whose_name_a_former_one_is_told_is_waited_for() {
    let told = |account: &str| {
        let workload = Workload {
            pod: None,
            ..workload(account)
        };
        batch(vec![Change::Mesh(Update::Workload(workload.into()))])
    };
    let state = Arc::new(State::default());
    state.apply(told("old"), clock::steady());
    state.serve("c//Pod/shop/cart-0".into(), &"one".into(), &"old".into());
    state.serve("c//Pod/shop/cart-0".into(), &"two".into(), &"new".into());
    let identity = workload("new").identity().unwrap();
    let (of, begun) = (state.clone(), time::Instant::now());
    let late = tokio::spawn(async move { await_local(&of, &"two".into(), &identity).await.map(drop) });
    time::sleep(Duration::from_secs(2)).await;
    state.apply(told("new"), clock::steady());
    let found = late.await.unwrap();
    assert!(
        found.is_ok() && begun.elapsed() == Duration::from_secs(2),
        "{found:?} {:?}",
        begun.elapsed()
    );
}

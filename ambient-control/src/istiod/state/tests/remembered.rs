//! What a restart begins with, and that nobody waits for it to be written.

use super::*;

fn policy(name: &str) -> Resource {
    let body = crate::wire::istio::security::Authorization {
        name: name.into(),
        namespace: "shop".into(),
        ..Default::default()
    };
    Resource {
        name: format!("shop/{name}"),
        version: "1".into(),
        resource: Some(Any {
            type_url: AUTHORIZATION.into(),
            value: body.encode_to_vec(),
        }),
        ..Resource::default()
    }
}

/// The control plane dies between the two kinds, and is away after a restart.
#[tokio::test]
async fn half_of_a_first_state_is_not_begun_with_after_a_restart() {
    for (half, of) in [(ADDRESS, workload("a")), (AUTHORIZATION, policy("p"))] {
        let mut fake = Fake::start("localhost").await;
        let memory = MemoryConfig::new(fake.path("memory"));
        let config = StateConfig {
            memory: Some(memory.clone()),
            ..config(&fake)
        };
        let mut state = State::connect(config.clone()).unwrap();
        let stream = fake.opened().await;
        stream.responses.send(Ok(response(half, "n1", vec![of]))).await.unwrap();
        written(&memory, |kept| kept.resources.len() == 1).await;
        assert!(!next(&mut state).await.synced);
        drop((state, stream));
        fs::remove_file(fake.path("root.pem")).unwrap();
        let mut state = State::connect(config).unwrap();
        let first = next(&mut state).await;
        assert!(!first.synced && first.changes.len() == 1, "{half}: {first:?}");
        let away = until(&mut state, |batch| !batch.faults.is_empty()).await;
        assert!(!away.synced, "{half}: {away:?}");
    }
}

/// What is too old to go by gets no younger by a word on half of it.
#[tokio::test]
async fn half_an_answer_makes_no_old_state_young() {
    let mut fake = Fake::start("localhost").await;
    let memory = MemoryConfig {
        longest: Duration::from_secs(3600),
        ..MemoryConfig::new(fake.path("memory"))
    };
    let config = StateConfig {
        memory: Some(memory.clone()),
        ..config(&fake)
    };
    let long_ago = identity_now() - Duration::from_secs(30 * 24 * 3600);
    let (mut kept, _) = Memory::open(&memory.directory, &config.origin()).unwrap();
    kept.note(&[], Some(long_ago)).unwrap();
    drop(kept);
    for _ in 0..2 {
        let mut state = State::connect(config.clone()).unwrap();
        let first = next(&mut state).await;
        assert!(!first.synced && first.faults[0].what.contains("30 days"), "{first:?}");
        let stream = fake.opened().await;
        let of = response(ADDRESS, "n1", vec![workload("a")]);
        stream.responses.send(Ok(of)).await.unwrap();
        let batch = until(&mut state, |batch| !batch.changes.is_empty()).await;
        assert!(!batch.synced && batch.faults[0].what.contains("too long to go by"), "{batch:?}");
        written(&memory, |kept| kept.resources.len() == 1).await;
        let heard = memory::found(&memory.directory).heard.unwrap();
        assert!(heard <= long_ago, "{heard:?}");
    }
}

/// A part is no whole, and another's state is not this one's.
#[tokio::test]
async fn what_was_remembered_of_another_or_of_a_part_is_not_begun_with() {
    let mut fake = Fake::start("localhost").await;
    let memory = MemoryConfig::new(fake.path("memory"));
    let config = StateConfig {
        memory: Some(memory.clone()),
        on_demand: true,
        ..config(&fake)
    };
    let mut state = State::connect(config.clone()).unwrap();
    let stream = fake.opened().await;
    let answer = response(AUTHORIZATION, "n1", vec![policy("p")]);
    stream.responses.send(Ok(answer)).await.unwrap();
    until(&mut state, |batch| batch.synced).await;
    written(&memory, |kept| kept.heard.is_some()).await;
    drop((state, stream));
    fs::remove_file(fake.path("root.pem")).unwrap();
    let mut again = State::connect(config.clone()).unwrap();
    assert!(next(&mut again).await.synced, "it is its own");
    drop(again);
    let of_all = StateConfig {
        on_demand: false,
        ..config.clone()
    };
    let mut of_another = config.clone();
    of_another.endpoint.cluster = "another".into();
    let mut elsewhere = config.clone();
    elsewhere.endpoint.address = "https://127.0.0.1:1".into();
    let with_trust = StateConfig {
        trust: true,
        ..config.clone()
    };
    let kept = fs::read(memory.directory.join("istiod.state")).unwrap();
    for other in [of_all, of_another, elsewhere, with_trust] {
        fs::write(memory.directory.join("istiod.state"), &kept).unwrap();
        let mut state = State::connect(other).unwrap();
        let first = next(&mut state).await;
        assert!(!first.synced && first.changes.is_empty(), "{first:?}");
        let told = first
            .faults
            .iter()
            .any(|fault| fault.what.contains("(what was asked for), and that of"));
        assert!(told, "{first:?}");
    }
}

/// Also what comes later, while nothing is written at all.
#[tokio::test]
async fn what_a_control_plane_says_is_told_however_long_the_disk_takes() {
    let mut fake = Fake::start("localhost").await;
    let memory = MemoryConfig::new(fake.path("memory"));
    let config = StateConfig {
        memory: Some(memory.clone()),
        ..config(&fake)
    };
    let mut session = Session::new(config.of_session());
    let (kept, _) = Memory::open(&memory.directory, &config.origin()).unwrap();
    let stalls = kept.stalls.clone();
    let recalled = Recalled {
        keeper: Some(Keeper::new(kept, None)),
        changes: session.remember(Remembered::default()).changes,
        heard: None,
    };
    stalls.store(true, Ordering::Relaxed);
    let mut state = State::begin(config, session, recalled);
    let stream = fake.opened().await;
    stream
        .responses
        .send(Ok(response(ADDRESS, "n1", vec![workload("a")])))
        .await
        .unwrap();
    until(&mut state, |batch| batch.changes.len() == 1).await;
    stream
        .responses
        .send(Ok(response(AUTHORIZATION, "n2", vec![policy("p")])))
        .await
        .unwrap();
    until(&mut state, |batch| batch.synced && batch.changes.len() == 1).await;
    assert_eq!(memory::found(&memory.directory), Remembered::default());
    stalls.store(false, Ordering::Relaxed);
    written(&memory, |kept| kept.resources.len() == 2 && kept.heard.is_some()).await;
}

use std::{collections::BTreeSet, fs};

use prost::Message;
use prost_types::Any;
use tonic::Status;

use super::super::{
    identity::now as identity_now,
    memory::{self, Remembered},
    transport::{Roots, Token},
};
use super::{super::fake::*, *};
use crate::{
    Change,
    wire::{
        envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource},
        istio::workload,
    },
};

mod large;
mod remembered;

const ADDRESS: &str = "type.googleapis.com/istio.workload.Address";
const AUTHORIZATION: &str = "type.googleapis.com/istio.security.Authorization";

fn config(fake: &Fake) -> StateConfig {
    let asker = Asker {
        instance_ip: "192.0.2.1".into(),
        pod: "z".into(),
        namespace: "istio-system".into(),
        node: "node-a".into(),
        metadata: [("DNS_CAPTURE".to_owned(), "true".to_owned().into())].into(),
    };
    StateConfig::new(fake.endpoint(), asker)
}

fn response(type_url: &str, nonce: &str, resources: Vec<Resource>) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: type_url.into(),
        nonce: nonce.into(),
        resources,
        ..DeltaDiscoveryResponse::default()
    }
}

fn workload(name: &str) -> Resource {
    let uid = format!("c1//Pod/shop/{name}");
    let body = workload::Address {
        r#type: Some(workload::address::Type::Workload(workload::Workload {
            uid: uid.clone(),
            name: name.into(),
            namespace: "shop".into(),
            ..workload::Workload::default()
        })),
    };
    Resource {
        name: uid,
        version: "7".into(),
        resource: Some(Any {
            type_url: ADDRESS.into(),
            value: body.encode_to_vec(),
        }),
        ..Resource::default()
    }
}

fn policy() -> Resource {
    let body = crate::wire::istio::security::Authorization {
        name: "p".into(),
        namespace: "shop".into(),
        scope: 1,
        ..Default::default()
    };
    Resource {
        name: "shop/p".into(),
        resource: Some(Any {
            type_url: AUTHORIZATION.into(),
            value: body.encode_to_vec(),
        }),
        ..Resource::default()
    }
}

/// Whoever is asked one by one is taken for there once it has spoken: until then nobody says that what was absent is so no more.
#[tokio::test]
async fn a_control_plane_that_has_not_spoken_yet_is_not_there() {
    let mut fake = Fake::start("localhost").await;
    let config = StateConfig {
        on_demand: true,
        ..config(&fake)
    };
    let mut state = State::connect(config).unwrap();
    let demand = state.on_demand().unwrap();
    for _ in 0..2 {
        let mut stream = fake.opened().await;
        let name = format!("/10.0.0.{}", u8::from(stream.request().await.initial_resource_versions.is_empty()));
        stream.request().await;
        demand.ask(&name).unwrap();
        assert_eq!(stream.request().await.resource_names_subscribe, [name]);
        assert!(!demand.is_there(), "it has taken the stream, and no more");
        stream
            .responses
            .send(Ok(response(AUTHORIZATION, "n", vec![policy()])))
            .await
            .unwrap();
        until(&mut state, |batch| !batch.changes.is_empty()).await;
        assert!(demand.is_there());
        drop(stream);
        let gone = async {
            while demand.is_there() {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(Duration::from_secs(20), gone).await.expect("it is gone");
    }
}

/// Waits until a start would find what is wanted: what is told is not waited for to be written.
async fn written(memory: &MemoryConfig, wanted: impl Fn(&Remembered) -> bool) {
    let written = async {
        while !wanted(&memory::found(&memory.directory)) {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(20), written).await.expect("it is written in time");
}

async fn next(state: &mut State) -> Batch {
    let batch = timeout(Duration::from_secs(20), state.next()).await;
    batch.expect("a batch in time").expect("a batch")
}

/// The next batch that says what is wanted.
async fn until(state: &mut State, wanted: impl Fn(&Batch) -> bool) -> Batch {
    loop {
        let batch = next(state).await;
        if wanted(&batch) {
            return batch;
        }
    }
}

#[tokio::test]
async fn state_comes_is_acknowledged_and_goes_on_where_it_ended() {
    let mut fake = Fake::start("localhost").await;
    let mut state = State::connect(config(&fake)).unwrap();
    let mut stream = fake.opened().await;
    for header in [("authorization", "Bearer let-me-in"), ("clusterid", "Kubernetes"), ("x-extra", "1")] {
        assert_eq!(stream.headers.get(header.0).unwrap(), header.1);
    }
    let first = stream.request().await;
    let node = first.node.unwrap();
    assert_eq!(node.id, "ztunnel~192.0.2.1~z.istio-system~istio-system.svc.cluster.local");
    let fields = node.metadata.unwrap().fields;
    for name in ["NAME", "NAMESPACE", "INSTANCE_IPS", "NODE_NAME", "DNS_CAPTURE"] {
        assert!(fields.contains_key(name), "{name}");
    }
    assert_eq!(stream.request().await.type_url, AUTHORIZATION);
    stream
        .responses
        .send(Ok(response(ADDRESS, "n1", vec![workload("a")])))
        .await
        .unwrap();
    let batch = next(&mut state).await;
    assert!(!batch.synced && batch.changes.len() == 1, "{batch:?}");
    stream.responses.send(Ok(response(AUTHORIZATION, "n2", vec![]))).await.unwrap();
    assert!(next(&mut state).await.synced);
    assert_eq!(stream.request().await.response_nonce, "n1");
    assert_eq!(stream.request().await.response_nonce, "n2");

    // The control plane closes the stream, as it does every half hour: nobody notices, and the next begins where it ended.
    drop(stream);
    let mut stream = fake.opened().await;
    assert_eq!(stream.request().await.initial_resource_versions["c1//Pod/shop/a"], "7");
    stream.request().await;
    stream
        .responses
        .send(Ok(response(ADDRESS, "n3", vec![workload("b")])))
        .await
        .unwrap();
    let batch = next(&mut state).await;
    assert!(
        matches!(&batch.changes[..], [Change::Mesh(_)]) && batch.faults.is_empty(),
        "{batch:?}"
    );
}

#[tokio::test]
async fn half_of_a_response_changes_nothing_and_garbage_says_why_the_stream_ended() {
    let mut fake = Fake::start("localhost").await;
    let whole = response(ADDRESS, "n1", vec![workload("a"), workload("b")]).encode_to_vec();
    let mut framed = vec![0];
    framed.extend_from_slice(&u32::try_from(whole.len()).unwrap().to_be_bytes());
    framed.extend_from_slice(&whole);
    // The first workload is there as a whole.
    let half = framed[..framed.len() - 10].to_vec();
    *fake.raw.lock().unwrap() = Some(half);
    let mut state = State::connect(config(&fake)).unwrap();
    let mut stream = fake.opened().await;
    assert!(stream.request().await.initial_resource_versions.is_empty());
    stream.responses.send(Ok(response(AUTHORIZATION, "n2", vec![]))).await.unwrap();
    stream
        .responses
        .send(Ok(response(ADDRESS, "n3", vec![workload("c")])))
        .await
        .unwrap();
    let mut come = Vec::new();
    while come.is_empty() {
        come = next(&mut state).await.changes;
    }
    let [Change::Mesh(ambient_core::mesh::Update::Workload(workload))] = &come[..] else {
        panic!("{come:?}")
    };
    assert_eq!(workload.uid.as_str(), "c1//Pod/shop/c");
    for (raw, why) in [
        (vec![1, 0, 0, 0, 0], "a message is compressed"),
        (vec![0, 0xff, 0, 0, 0], "4278190080 bytes, and 209715200 are the most"),
        (vec![0, 0, 0, 0, 2, 0x12, 9], "is none of the delta protocol"),
    ] {
        *fake.raw.lock().unwrap() = Some(raw);
        drop(stream);
        let batch = until(&mut state, |batch| !batch.faults.is_empty()).await;
        assert!(
            batch.faults[0].what.contains(why) && batch.changes.is_empty() && batch.synced,
            "{batch:?}"
        );
        stream = fake.opened().await;
        assert_eq!(stream.request().await.initial_resource_versions.len(), 1);
        stream.responses.send(Ok(response(AUTHORIZATION, "n4", vec![]))).await.unwrap();
        until(&mut state, |batch| batch.faults.is_empty()).await;
    }
}

#[tokio::test]
async fn what_is_wrong_is_told_until_it_is_mended() {
    let mut fake = Fake::start("localhost").await;
    let (roots, token) = (fake.path("root.pem"), fake.path("token"));
    let pem = fs::read(&roots).unwrap();
    fs::remove_file(&roots).unwrap();
    let mut state = State::connect(config(&fake)).unwrap();
    let told = |text: &'static str| move |batch: &Batch| batch.faults.iter().any(|f| f.what.contains(text));
    until(&mut state, told("cannot read the roots of the control plane from")).await;
    fs::write(&roots, "nothing").unwrap();
    until(&mut state, told("holds no root certificate")).await;
    fs::write(&roots, Authority::new().pem()).unwrap();
    let batch = until(&mut state, told("cannot connect to https://localhost")).await;
    assert!(batch.faults[0].what.contains("invalid peer certificate"), "{batch:?}");
    fs::write(&roots, pem).unwrap();
    fs::write(&token, "old").unwrap();
    until(&mut state, told("Unauthenticated: who are you?")).await;
    fs::write(&token, TOKEN).unwrap();
    let stream = fake.opened().await;
    stream.responses.send(Ok(response(AUTHORIZATION, "n", vec![]))).await.unwrap();
    until(&mut state, |batch| batch.faults.is_empty()).await;
    stream.responses.send(Err(Status::internal("broken"))).await.unwrap();
    until(&mut state, told("Internal: broken")).await;
}

/// Also where neither is needed, as by a stream that stands.
#[tokio::test]
async fn what_is_wrong_with_files_is_told_while_a_stream_stands_and_no_longer_than_it_is() {
    let mut fake = Fake::start("localhost").await;
    let mut state = State::connect(config(&fake)).unwrap();
    let stream = fake.opened().await;
    for kind in [ADDRESS, AUTHORIZATION] {
        stream.responses.send(Ok(response(kind, kind, vec![]))).await.unwrap();
    }
    until(&mut state, |batch| batch.synced && batch.faults.is_empty()).await;
    for (name, wrong) in [("root.pem", "it holds no root certificate: put"), ("token", "it is empty: put")] {
        let path = fake.path(name);
        let good = fs::read(&path).unwrap();
        fs::write(&path, "").unwrap();
        let batch = timeout(3 * LOOKING, next(&mut state)).await.expect("within seconds");
        let [fault] = &batch.faults[..] else { panic!("{batch:?}") };
        assert!(fault.what.contains(name) && fault.what.contains(wrong), "{fault}");
        fs::write(&path, good).unwrap();
        let batch = timeout(3 * LOOKING, next(&mut state)).await.expect("within seconds");
        assert!(batch.faults.is_empty() && batch.synced, "{batch:?}");
    }
}

/// And while nobody is reached, who would be shown them.
#[tokio::test(start_paused = true)]
async fn a_file_that_is_good_again_is_no_fault_any_more_while_the_control_plane_is_away() {
    let scratch = tempfile::tempdir().unwrap();
    let token = scratch.path().join("token");
    fs::write(&token, "").unwrap();
    // Nobody listens there.
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let endpoint = Endpoint {
        roots: Roots::Pem(Authority::new().pem()),
        token: Some(Token::File(token.clone())),
        ..Endpoint::new(&format!("https://{address}"), provider())
    };
    let asker = Asker {
        instance_ip: "192.0.2.1".into(),
        pod: "z".into(),
        namespace: "istio-system".into(),
        node: "node-a".into(),
        metadata: std::collections::BTreeMap::new(),
    };
    let mut state = State::connect(StateConfig::new(endpoint, asker)).unwrap();
    let of_token = |batch: &Batch| batch.faults.iter().any(|fault| fault.what.contains("it is empty"));
    let of_stream = |batch: &Batch| batch.faults.iter().any(|fault| fault.what.contains("no stream from"));
    until(&mut state, |batch| of_token(batch) && of_stream(batch)).await;
    fs::write(&token, TOKEN).unwrap();
    until(&mut state, |batch| !of_token(batch) && of_stream(batch)).await;
}

#[tokio::test]
async fn a_certificate_for_another_name_is_believed_only_where_that_is_named() {
    let mut fake = Fake::start("istiod.istio-system.svc").await;
    let mut config = config(&fake);
    let mut state = State::connect(config.clone()).unwrap();
    until(&mut state, |batch| {
        batch.faults.iter().any(|f| f.what.contains("not valid for name"))
    })
    .await;
    drop(state);
    config.endpoint.other_name = Some("istiod.istio-system.svc".into());
    let state = State::connect(config).unwrap();
    fake.opened().await;
    drop(state);
}

#[tokio::test]
async fn whoever_is_dropped_hangs_up() {
    let mut fake = Fake::start("localhost").await;
    let state = State::connect(config(&fake)).unwrap();
    let mut stream = fake.opened().await;
    stream.request().await;
    stream.request().await;
    drop(state);
    let end = timeout(Duration::from_secs(20), stream.requests.message())
        .await
        .expect("an end in time");
    assert!(!matches!(end, Ok(Some(_))), "{end:?}");
}

#[test]
fn what_is_no_endpoint_is_refused_at_once() {
    for (address, why) in [
        ("ftp://istiod", "ftp://istiod"),
        ("", "no address"),
        ("https://", "no address"),
        ("http://istiod:15010", "https://HOST:PORT"),
    ] {
        let error = Endpoint::new(address, provider()).check().unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    let mut endpoint = Endpoint::new("istiod.istio-system.svc:15012", provider());
    endpoint.check().unwrap();
    endpoint.headers = vec![("a b".into(), "1".into())];
    assert!(endpoint.check().unwrap_err().to_string().contains("\"a b\""));
    assert!(!format!("{:?}", Token::Literal("secret".into())).contains("secret"));
}

#[tokio::test]
async fn a_control_plane_that_takes_its_leave_is_gone_back_to_where_it_was_left() {
    let mut fake = Fake::start("localhost").await;
    let mut state = State::connect(config(&fake)).unwrap();
    let stream = fake.opened().await;
    stream
        .responses
        .send(Ok(response(ADDRESS, "n1", vec![workload("a")])))
        .await
        .unwrap();
    stream.responses.send(Ok(response(AUTHORIZATION, "n2", vec![]))).await.unwrap();
    until(&mut state, |batch| batch.synced).await;
    // GOAWAY: what is under way goes on.
    fake.leaves.notify_waiters();
    stream
        .responses
        .send(Ok(response(ADDRESS, "n3", vec![workload("b")])))
        .await
        .unwrap();
    until(&mut state, |batch| batch.changes.len() == 1).await;
    drop(stream);
    let mut again = fake.opened().await;
    let request = again.request().await;
    assert_eq!(request.initial_resource_versions.len(), 2, "{request:?}");
    again
        .responses
        .send(Ok(response(ADDRESS, "n4", vec![workload("c")])))
        .await
        .unwrap();
    let batch = until(&mut state, |batch| batch.changes.len() == 1).await;
    assert!(batch.synced && batch.faults.is_empty(), "that is no fault: {batch:?}");
}

#[tokio::test]
async fn a_control_plane_that_takes_its_leave_of_every_stream_is_not_asked_without_a_pause() {
    let mut fake = Fake::start("localhost").await;
    let _state = State::connect(config(&fake)).unwrap();
    let mut streams = 0;
    let leaving = async {
        loop {
            drop(fake.opened().await);
            streams += 1;
        }
    };
    let _ = timeout(Duration::from_secs(3), leaving).await;
    // After 10 ms, 20 ms, 40 ms and so on, or half as much.
    assert!((3..14).contains(&streams), "{streams}");
}

#[tokio::test]
async fn a_restart_while_istiod_is_away_goes_on_with_what_was_known() {
    let mut fake = Fake::start("localhost").await;
    let memory = MemoryConfig::new(fake.path("memory"));
    let config = StateConfig {
        memory: Some(memory.clone()),
        ..config(&fake)
    };
    let mut state = State::connect(config.clone()).unwrap();
    let stream = fake.opened().await;
    let unreadable = Resource {
        name: "shop/odd".into(),
        version: "1".into(),
        resource: Some(Any {
            type_url: AUTHORIZATION.into(),
            value: vec![0xff],
        }),
        ..Resource::default()
    };
    stream
        .responses
        .send(Ok(response(ADDRESS, "n1", vec![workload("a"), workload("b")])))
        .await
        .unwrap();
    stream
        .responses
        .send(Ok(response(AUTHORIZATION, "n2", vec![unreadable])))
        .await
        .unwrap();
    let removal = DeltaDiscoveryResponse {
        removed_resources: vec!["c1//Pod/shop/b".into()],
        ..response(ADDRESS, "n3", vec![])
    };
    stream.responses.send(Ok(removal)).await.unwrap();
    until(&mut state, |batch| {
        matches!(&batch.changes[..], [Change::Mesh(ambient_core::mesh::Update::RemoveWorkload(_))])
    })
    .await;
    // All of it, and not the two of the first answer alone.
    written(&memory, |kept| kept.heard.is_some() && kept.resources.len() == 2).await;
    drop(state);
    drop(stream);
    let roots = fake.path("root.pem");
    let pem = fs::read(&roots).unwrap();
    fs::remove_file(&roots).unwrap();

    let mut state = State::connect(config.clone()).unwrap();
    let first = next(&mut state).await;
    assert!(first.synced, "{first:?}");
    assert_eq!(
        first.changes.len(),
        2,
        "the workload, and the refusal of what cannot be read: {first:?}"
    );
    let told = |batch: &Batch, text: &str| batch.faults.iter().any(|f| f.what.contains(text));
    assert!(
        told(
            &first,
            "as remembered, and less than a minute old; new connections are refused once it is older than 24 h"
        ),
        "{first:?}"
    );
    let age = state.last_heard().unwrap().age(identity_now()).expect("it was heard of");
    assert!(age < Duration::from_secs(60), "{age:?}");
    // It is back, and told what is known; from its first answers on nothing is remembered but known.
    fs::write(&roots, &pem).unwrap();
    let mut stream = fake.opened().await;
    let request = stream.request().await;
    assert_eq!(request.initial_resource_versions.len(), 1, "{request:?}");
    assert_eq!(request.initial_resource_versions["c1//Pod/shop/a"], "7");
    for (url, nonce) in [(ADDRESS, "m1"), (AUTHORIZATION, "m2")] {
        stream.responses.send(Ok(response(url, nonce, vec![]))).await.unwrap();
    }
    until(&mut state, |batch| !batch.faults.iter().any(|f| f.what.contains("as remembered"))).await;
    drop(state);

    // After too long nothing is gone by.
    fs::remove_file(&roots).unwrap();
    let stale = StateConfig {
        memory: Some(MemoryConfig {
            longest: Duration::ZERO,
            ..memory
        }),
        ..config
    };
    sleep(Duration::from_millis(1100)).await;
    let mut state = State::connect(stale).unwrap();
    let first = next(&mut state).await;
    assert!(!first.synced && first.changes.len() == 2, "{first:?}");
    assert!(
        told(
            &first,
            "too long to go by what is remembered: new connections are refused until it answers"
        ),
        "{first:?}"
    );
}

/// It takes streams, answers pings, and hangs: what is remembered is no fresher for that.
#[tokio::test]
async fn a_control_plane_that_only_takes_streams_is_not_heard_of_and_given_up() {
    let mut fake = Fake::start("localhost").await;
    let config = StateConfig {
        memory: Some(MemoryConfig {
            longest: Duration::from_secs(1),
            ..MemoryConfig::new(fake.path("memory"))
        }),
        ..config(&fake)
    };
    let mut state = State::connect(config.clone()).unwrap();
    let stream = fake.opened().await;
    for (url, nonce) in [(ADDRESS, "n1"), (AUTHORIZATION, "n2")] {
        stream.responses.send(Ok(response(url, nonce, vec![]))).await.unwrap();
    }
    until(&mut state, |batch| batch.synced).await;
    written(&MemoryConfig::new(fake.path("memory")), |kept| kept.heard.is_some()).await;
    drop((state, stream));

    let started = identity_now();
    let mut state = State::connect(config).unwrap();
    let _silent = fake.opened().await;
    let clock = FastClock::begin();
    let begun = time::Instant::now();
    let of_stream = |batch: &Batch| batch.faults.iter().any(|fault| fault.what.contains("has said nothing for 120s"));
    let given_up = async {
        loop {
            let batch = state.next().await.expect("it goes on");
            if of_stream(&batch) {
                return batch;
            }
        }
    };
    let mut present = timeout(4 * FIRST_WORD, given_up).await.expect("it is given up");
    assert!((FIRST_WORD..2 * FIRST_WORD).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    let age = state.last_heard().unwrap().age(identity_now()).expect("it was heard of");
    assert!(identity_now() - age <= started, "and not since the start: {age:?}");
    // By the clock of the day, which goes on as ever.
    while present.synced {
        present = timeout(20 * FIRST_WORD, state.next())
            .await
            .expect("what is remembered is gone by no more")
            .unwrap();
    }
    drop(clock);
}

#[test]
fn ages_are_told_as_people_tell_them() {
    let spelled = |minutes: u64| spelled(Duration::from_secs(minutes * 60 + 59));
    let told = [
        (0, "less than a minute"),
        (1, "1 min"),
        (60, "1 h"),
        (135, "2 h 15 min"),
        (60 * 49, "2 days"),
    ];
    for (minutes, text) in told {
        assert_eq!(spelled(minutes), text);
    }
}

/// Else they would be held for ever, and there would be no room for others.
#[tokio::test]
async fn what_is_given_back_is_never_lost_nor_before_it_was_asked_for() {
    let (wishes, mut wished) = mpsc::unbounded_channel();
    let asking = Asking {
        wishes,
        waiting: Arc::default(),
        there: Arc::default(),
    };
    for n in 0..WISHES {
        asking.ask(&n.to_string()).unwrap();
    }
    assert_eq!(asking.ask("more"), Err(AskError::TooMuch));
    asking.give_back(vec!["0".into()]);
    for n in 0..WISHES {
        assert!(matches!(wished.try_recv(), Ok(Wish::Ask(name)) if name == n.to_string()));
    }
    assert!(matches!(wished.try_recv(), Ok(Wish::GiveBack(names)) if names == ["0"]));
    drop(wished);
    asking.waiting.store(0, Ordering::Relaxed);
    assert_eq!(asking.ask("more"), Err(AskError::Ended));
}

#[tokio::test]
async fn a_damaged_memory_is_told_and_begun_anew() {
    let fake = Fake::start("localhost").await;
    let memory = MemoryConfig::new(fake.path("memory"));
    let config = StateConfig {
        memory: Some(memory),
        ..config(&fake)
    };
    drop(State::connect(config.clone()).unwrap());
    fs::write(fake.path("memory").join("istiod.state"), "something else").unwrap();
    let mut state = State::connect(config).unwrap();
    let first = next(&mut state).await;
    assert!(!first.synced && first.faults[0].what.contains("is damaged at byte 0"), "{first:?}");
}

/// A control plane that neither speaks nor hangs up, nor does its machine: that is found out by pings, by a virtual clock.
#[tokio::test]
async fn a_control_plane_that_falls_silent_is_given_up_in_time_and_tried_again_without_a_rush() {
    let mut fake = Fake::start("localhost").await;
    let relay = Relay::to(fake.address).await;
    let mut config = config(&fake);
    config.endpoint.address = format!("https://localhost:{}", relay.port);
    let mut state = State::connect(config).unwrap();
    let stream = fake.opened().await;
    stream
        .responses
        .send(Ok(response(ADDRESS, "n1", vec![workload("a")])))
        .await
        .unwrap();
    stream.responses.send(Ok(response(AUTHORIZATION, "n2", vec![]))).await.unwrap();
    until(&mut state, |batch| batch.synced).await;

    let clock = FastClock::begin();
    let silent = time::Instant::now();
    relay.is_silent(true);
    let told = async {
        loop {
            let batch = state.next().await.expect("it goes on");
            assert!(batch.synced && batch.changes.is_empty(), "what is known stays: {batch:?}");
            if batch.faults.iter().any(|fault| fault.what.contains("no stream from")) {
                return;
            }
        }
    };
    timeout(Duration::from_secs(600), told).await.expect("it is told");
    let noticed = relay.made.lock().unwrap()[1] - silent;
    let slack = 4 * FastClock::STEP;
    let about = PINGED - slack..=PINGED + slack;
    assert!(about.contains(&noticed), "{noticed:?}");
    let told = silent.elapsed();
    assert!(
        told <= PINGED + Duration::from_secs(6),
        "another connection is waited for no longer than that: {told:?}"
    );
    // It is tried again, each time after a longer wait up to the longest, and after whatever an attempt takes.
    sleep(Duration::from_secs(300)).await;
    let made = relay.made.lock().unwrap().clone();
    let waits: Vec<Duration> = made[1..].windows(2).map(|two| two[1] - two[0]).collect();
    let attempt = Duration::from_secs(5);
    assert!(waits[0] <= attempt + FIRST_WAIT * 2 + slack, "{waits:?}");
    assert!((16..60).contains(&waits.len()), "{waits:?}");
    let late: BTreeSet<_> = waits[12..].iter().collect();
    assert!(
        late.iter()
            .all(|wait| **wait >= attempt + LONGEST_WAIT / 2 && **wait <= attempt + LONGEST_WAIT + slack),
        "{waits:?}"
    );
    assert!(late.len() > 1, "not all who wait come at once: {waits:?}");

    relay.is_silent(false);
    drop(clock);
    let mut again = fake.opened().await;
    assert_eq!(again.request().await.initial_resource_versions.len(), 1);
    again.responses.send(Ok(response(AUTHORIZATION, "n3", vec![]))).await.unwrap();
    until(&mut state, |batch| batch.faults.is_empty()).await;
}

/// Nothing is lost, and all of it is late and in pieces: nobody is given up, and what comes is what was said, in its order.
#[tokio::test]
async fn what_is_late_is_waited_for_and_comes_as_it_was_said() {
    let mut fake = Fake::start("localhost").await;
    let relay = Relay::to(fake.address).await;
    let mut config = config(&fake);
    config.endpoint.address = format!("https://localhost:{}", relay.port);
    relay.is_late(Duration::from_millis(150));
    let begun = time::Instant::now();
    let mut state = State::connect(config).unwrap();
    let mut stream = fake.opened().await;
    stream.request().await;
    stream.request().await;
    let names: Vec<_> = (0..ROUNDS * 40).map(|n| format!("w{n}")).collect();
    let said = stream.responses.clone();
    let all = names.clone();
    let saying = tokio::spawn(async move {
        for (round, some) in all.chunks(40).enumerate() {
            let workloads = some.iter().map(|name| workload(name)).collect();
            let mut told = response(ADDRESS, &format!("a{round}"), workloads);
            if round > 0 {
                // The first of the round before goes.
                told.removed_resources = vec![format!("c1//Pod/shop/w{}", (round - 1) * 40)];
            }
            said.send(Ok(told)).await.unwrap();
            said.send(Ok(response(AUTHORIZATION, &format!("p{round}"), vec![]))).await.unwrap();
            sleep(Duration::from_millis(round as u64 * 40)).await;
        }
    });
    let answering = tokio::spawn(async move {
        let mut nonces = Vec::new();
        while nonces.len() < ROUNDS * 2 {
            let answer = timeout(Duration::from_secs(200), stream.requests.message()).await.expect("in time");
            let answer = answer.unwrap().expect("the stream stays");
            assert_eq!(answer.error_detail, None);
            nonces.push(answer.response_nonce);
        }
        (nonces, stream)
    });
    let (mut mesh, mut synced) = (ambient_core::Mesh::default(), false);
    let left = names.len() - (ROUNDS - 1);
    let last = ambient_core::WorkloadUid::from(format!("c1//Pod/shop/{}", names[names.len() - 1]).as_str());
    while mesh.workload(&last).is_none() || mesh.workloads().count() != left {
        let batch = timeout(Duration::from_secs(200), state.next()).await.expect("in time").unwrap();
        assert!(batch.faults.is_empty(), "{batch:?}");
        relay.is_late(Duration::from_millis(400));
        assert!(batch.synced || !synced);
        synced = batch.synced;
        mesh = mesh.apply(batch.changes.into_iter().filter_map(|change| match change {
            Change::Mesh(update) => Some(update),
            _ => None,
        }));
    }
    assert!(synced);
    saying.await.unwrap();
    let (nonces, _stream) = answering.await.unwrap();
    let wanted: Vec<_> = (0..ROUNDS).flat_map(|round| [format!("a{round}"), format!("p{round}")]).collect();
    assert_eq!(nonces, wanted, "each is answered, in their order");
    assert!(begun.elapsed() > Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!(relay.made.lock().unwrap().len(), 1, "it is the same connection");
}

const ROUNDS: usize = 8;

/// Between the last that was heard and the end of a connection: a ping, and how long its answer may take.
const PINGED: Duration = Duration::from_secs(40);

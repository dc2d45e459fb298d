//! Of a mesh that istiod would not let a client name in one message.

use super::*;

/// istiod takes messages of 4 MiB, as this one does: a client that began with all that it holds would be sent away each time.
#[tokio::test]
async fn a_client_of_a_large_mesh_is_let_in_again() {
    const MANY: usize = 40_000;
    let name = |n: usize| format!("{n:0100}");
    let all = || (0..MANY).map(|n| workload(&name(n))).collect::<Vec<_>>();
    let mut fake = Fake::start("localhost").await;
    let mut state = State::connect(config(&fake)).unwrap();
    let stream = fake.opened().await;
    stream.responses.send(Ok(response(ADDRESS, "n1", all()))).await.unwrap();
    stream.responses.send(Ok(response(AUTHORIZATION, "n2", vec![]))).await.unwrap();
    until(&mut state, |batch| batch.synced).await;
    let names: usize = all().iter().map(|one| one.name.len()).sum();
    assert!(names > 4 << 20, "{names}");
    drop(stream);

    let mut stream = fake.opened().await;
    let first = stream.request().await;
    assert_eq!((&*first.type_url, first.initial_resource_versions.len()), (ADDRESS, 0));
    assert_eq!(stream.request().await.type_url, AUTHORIZATION);
    // All is told anew, but for one.
    let told = response(ADDRESS, "n1", all().split_off(1));
    stream.responses.send(Ok(told)).await.unwrap();
    let batch = until(&mut state, |batch| !batch.changes.is_empty()).await;
    assert_eq!(batch.changes.len(), MANY - 1, "nothing goes before it was missed for a while");
    assert_eq!(stream.request().await.response_nonce, "n1");
}

#[test]
fn ambient_control_takes_what_it_is_sent() {
    let endpoint = Endpoint::new("https://localhost:1", provider());
    let asker = Asker {
        instance_ip: String::new(),
        pod: String::new(),
        namespace: String::new(),
        node: String::new(),
        metadata: Default::default(),
    };
    let config = StateConfig {
        trust: true,
        ..StateConfig::new(endpoint, asker)
    };
    // 100,000 workloads by long names.
    let longest = config.of_session().longest_request;
    assert!(longest >= 100_000 * 400);
    #[cfg(feature = "serve")]
    assert!(longest < crate::serve::LONGEST_REQUEST);
}

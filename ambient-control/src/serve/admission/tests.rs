//! Who is let in, without connections.

use ambient_testkit::log::{Lines, heard_by};

use super::*;
use crate::{ca::DirectoryCa, istiod::now, serve::Use};

fn door(scratch: &tempfile::TempDir) -> Door {
    let (directory, provider) = (scratch.path().join("ca"), Arc::new(ambient_tls::provider()));
    let ca = DirectoryCa::open(&directory, TrustDomain::default(), DirectoryCa::DEFAULT_TTL).unwrap();
    Door {
        nodes: Nodes::new(&directory, provider.clone()).into(),
        trust_domain: TrustDomain::default(),
        ca: Arc::new(ca),
        configs: Configs::new(provider),
        counts: Arc::default(),
        seldom: Seldom::default(),
    }
}

fn showing(token: &str) -> MetadataMap {
    let mut metadata = MetadataMap::new();
    metadata.insert("authorization", format!("Bearer {token}").parse().unwrap());
    metadata
}

#[tokio::test(start_paused = true)]
async fn whoever_is_nobody_is_counted_and_fills_no_log() {
    let scratch = tempfile::tempdir().unwrap();
    let (door, lines) = (door(&scratch), Lines::of("serve::admission"));
    let _guard = heard_by(lines.clone());
    let left_out = || lines.all().iter().map(|line| line.field("left_out").to_owned()).collect::<Vec<_>>();
    let nothing = Arc::new(Shown::Nothing);
    for _ in 0..1000 {
        for metadata in [MetadataMap::new(), showing("ambient-0.0")] {
            door.admit(&nothing, &metadata, now()).unwrap_err();
        }
    }
    assert_eq!(door.counts.refused(Refusal::Credential), 2000);
    assert_eq!(left_out(), ["0", "0"], "one line for each reason");
    // And so it is where nobody can be told from others.
    tokio::time::advance(Duration::from_secs(10)).await;
    let file = scratch.path().join("ca/tokens.json");
    std::fs::write(&file, "torn").unwrap();
    for _ in 0..1000 {
        let error = door.admit(&nothing, &showing("ambient-0.0"), now()).unwrap_err();
        assert_eq!(error.code(), tonic::Code::Internal, "whoever says so is there");
    }
    std::fs::remove_file(&file).unwrap();
    door.admit(&nothing, &MetadataMap::new(), now()).unwrap_err();
    assert_eq!(left_out(), ["0", "0", "0", "999"]);
}

/// What a token is for is read together with whose it is: files that change or break in between let nobody do more.
#[test]
fn a_token_for_an_exchange_is_told_at_once() {
    let scratch = tempfile::tempdir().unwrap();
    let door = door(&scratch);
    for (how, once) in [(Use::Once, true), (Use::Always, false)] {
        let token = door.nodes.create_token("node-1", Duration::from_secs(600), how, now()).unwrap();
        let caller = door.admit(&Arc::new(Shown::Nothing), &showing(&token), now()).unwrap();
        assert_eq!((&*caller.node, caller.once), ("node-1", once));
    }
}

#[test]
fn who_has_a_token_without_end_is_let_in() {
    let scratch = tempfile::tempdir().unwrap();
    let door = door(&scratch);
    let token = door.nodes.create_token("node-1", Duration::MAX, Use::Always, now()).unwrap();
    let caller = door.admit(&Arc::new(Shown::Nothing), &showing(&token), now()).unwrap();
    assert!(caller.good_for(now()) > Duration::from_secs(1 << 40));
}

/// As where a mount is lost: what was admitted before stays, and nobody new is admitted.
#[test]
fn what_is_open_outlives_the_directory_of_the_authority() {
    let scratch = tempfile::tempdir().unwrap();
    let door = door(&scratch);
    let token = door
        .nodes
        .create_token("node-1", Duration::from_secs(600), Use::Always, now())
        .unwrap();
    let admit = || door.admit(&Arc::new(Shown::Nothing), &showing(&token), now());
    let caller = admit().unwrap();
    let (there, away) = (scratch.path().join("ca"), scratch.path().join("away"));
    std::fs::rename(&there, &away).unwrap();
    door.still(&caller, now()).unwrap();
    for refused in [admit().map(drop), door.once_more(&caller, now())] {
        assert_eq!(refused.unwrap_err().code(), tonic::Code::Internal, "whoever says so is there");
    }
    std::fs::rename(&away, &there).unwrap();
    door.once_more(&caller, now()).unwrap();
    door.nodes.revoke("node-1", now()).unwrap();
    door.still(&caller, now()).unwrap_err();
}

/// As where the clock of this machine is ahead, or the token was made on one whose clock is behind.
#[test]
fn what_is_refused_as_it_has_ended_tells_when_and_by_which_clock() {
    let scratch = tempfile::tempdir().unwrap();
    let door = door(&scratch);
    let begun = std::time::UNIX_EPOCH + Duration::from_secs(1_795_000_000);
    let token = door
        .nodes
        .create_token("node-1", Duration::from_secs(600), Use::Always, begun)
        .unwrap();
    let admit = |token: &str, now| {
        door.admit(&Arc::new(Shown::Nothing), &showing(token), now)
            .map_err(|status| status.message().to_owned())
    };
    let caller = admit(&token, begun).unwrap();
    let later = begun + Duration::from_secs(3600);
    let why = "this token was good until 2026-11-18T11:16:40Z, and here it is 2026-11-18T12:06:40Z: `ambient control token NODE` makes \
               another, or a clock is wrong: check those of both machines";
    assert_eq!(admit(&token, later).unwrap_err(), why);
    assert_eq!(door.still(&caller, later).unwrap_err().message(), why);
    let never = admit("ambient-0.0", later).unwrap_err();
    assert!(
        never.contains("is none, has ended, or was revoked") && !never.contains("clock"),
        "{never}"
    );
}

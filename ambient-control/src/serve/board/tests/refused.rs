//! What cannot be read here refuses at the nodes what it would refuse at one that reads the manifests itself.

use std::{fs, time::Duration};

use ambient_authz::{Policies, policy::Fallback, wire};
use prost::Message;
use tokio::time::timeout;

use super::*;
use crate::{
    Source,
    istiod::read,
    manifests::{Config, Manifests},
};

/// Everything that refuses for want of being read: its name, its scope, of which namespace, whether only what is new, and why.
fn refusing(policies: &Policies) -> Vec<(String, Scope, String, bool, String)> {
    let all = policies
        .unreadable()
        .filter(|u| policies.fallback(&u.key) == Some(Fallback::Refusal));
    let told = all.map(|u| {
        let of_namespace = (u.scope != Scope::Global).then(|| u.namespace.to_string());
        let of_namespace = of_namespace.unwrap_or_default();
        (u.key.to_string(), u.scope, of_namespace, u.only_new, u.error.clone())
    });
    told.collect()
}

/// As a node takes what is served.
fn served(board: &Board) -> Policies {
    let all = board.all(Kind::Authorization);
    let updates = all.iter().map(|(name, resource)| {
        let read = read::authorization(name, &body(resource), &wire::Settings::default());
        match read.unwrap_or_else(|refused| panic!("{name}: {}", refused.why)).change {
            Change::Policy(update) => update,
            other => panic!("{other:?}"),
        }
    });
    Policies::default().apply(updates.collect::<Vec<_>>())
}

fn policy(kind: &str, namespace: &str, name: &str, spec: &str) -> String {
    format!("apiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n")
}

#[tokio::test]
async fn whatever_cannot_be_read_refuses_the_same_at_nodes_as_here() {
    let scratch = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(scratch.path().join(name), text).unwrap();
    write("good.yaml", &policy("AuthorizationPolicy", "shop", "good", "{action: DENY}"));
    let mut source = Manifests::open(Config::new(scratch.path())).await.unwrap();
    let (mut here, mut board) = (Policies::default(), Board::within(TIGHT));
    write("file.yaml", "garbage: [");
    let wrong = "{action: DNEY}";
    let wrong_of = "{selector: {matchLabels: {app: cart}}, action: DNEY}";
    write("own.yaml", &policy("AuthorizationPolicy", "shop", "own", wrong));
    write("selector.yaml", &policy("AuthorizationPolicy", "shop", "selector", wrong_of));
    write("root.yaml", &policy("AuthorizationPolicy", "istio-system", "root", wrong));
    write(
        "root-selector.yaml",
        &policy("AuthorizationPolicy", "istio-system", "of-all", wrong_of),
    );
    write(
        "peers.yaml",
        &policy("PeerAuthentication", "shop", "peers", "{mtls: {mode: STRICTLY}}"),
    );
    write(
        "all-peers.yaml",
        &policy("PeerAuthentication", "istio-system", "peers", "{mtls: {mode: STRICTLY}}"),
    );
    let mut known = 0;
    while known < 7 {
        let batch = timeout(Duration::from_secs(20), source.next()).await.expect("a batch").unwrap();
        board.apply(&batch.changes, batch.synced);
        here = here.apply(batch.changes.into_iter().filter_map(|change| match change {
            Change::Policy(update) => Some(update),
            _ => None,
        }));
        known = here.unreadable().count();
    }
    let there = served(&board);
    assert_eq!(refusing(&here), refusing(&there));
    let whole: Vec<_> = refusing(&there)
        .into_iter()
        .filter(|(_, scope, ..)| *scope == Scope::Global)
        .collect();
    assert_eq!(whole.len(), 3, "{whole:?}");
    let (name, _, _, only_new, why) = whole.iter().find(|(name, ..)| name.ends_with("file.yaml")).unwrap();
    assert!(*only_new, "what is open goes on: {name}");
    assert!(why.contains("file.yaml:1"), "{why}");
    // Who knows nothing of refusals enforces what stands in their place.
    for (name, ..) in refusing(&there) {
        let sent = body(board.get(Kind::Authorization, &name).unwrap().1);
        let mut sent = crate::wire::istio::security::Authorization::decode(&*sent).unwrap();
        sent.extensions.clear();
        assert_eq!(format!("{}/{}", sent.namespace, sent.name), name);
        let read = read::authorization(&name, &sent.encode_to_vec(), &wire::Settings::default()).unwrap();
        let Change::Policy(policy::Update::Set(read)) = read.change else {
            panic!()
        };
        assert_eq!((read.action, read.dry_run, read.rules.len()), (Action::Deny, false, 1));
        assert!(read.rules[0].clauses.is_empty(), "it refuses everybody");
    }
    // Mended or removed, it refuses nobody.
    fs::remove_file(scratch.path().join("file.yaml")).unwrap();
    let batch = timeout(Duration::from_secs(20), source.next()).await.expect("a batch").unwrap();
    board.apply(&batch.changes, batch.synced);
    assert!(!refusing(&served(&board)).iter().any(|(name, ..)| name.ends_with("file.yaml")));
}

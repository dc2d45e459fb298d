//! Whole questions of `tests/vectors/whole-cases.yaml`: resources, a connection, and the answer under both readings.
#![expect(clippy::unwrap_used, reason = "a test says what is wrong by its panic")]

use std::{net::SocketAddr, path::Path};

use ambient_authz::{
    Conn, Peer, decide,
    kubernetes::{Labels, Resources, Settings},
};
use ambient_core::{Identity, Workload};
use serde_json::{Value, json};

fn vectors() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/whole-cases.yaml");
    serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

fn read(case: &Value, settings: Settings) -> Resources {
    let settings = match case["trust_domain"].as_str() {
        Some(own) => Settings {
            trust_domain: own.parse().unwrap(),
            ..settings
        },
        None => settings,
    };
    let mut resources = Resources::new(settings);
    for policy in list(&case["policies"]) {
        let mut policy = policy.clone();
        policy["apiVersion"] = json!("security.istio.io/v1");
        // One that cannot be read is in, and refuses.
        match policy["kind"].as_str().unwrap() {
            "AuthorizationPolicy" => drop(resources.authorization(&serde_json::from_value(policy).unwrap())),
            _ => drop(resources.peer_authentication(&serde_json::from_value(policy).unwrap())),
        }
    }
    resources
}

fn is_allowed(resources: &Resources, peer: &Value, to: &Value) -> bool {
    let (namespace, labels): (&str, Labels) = (
        to["namespace"].as_str().unwrap(),
        serde_json::from_value(to["labels"].clone()).unwrap(),
    );
    let mut workload = Workload::new("uid", namespace, "w");
    workload.policies = resources.attached(namespace, &labels);
    let identity: Option<Identity> = peer["identity"].as_str().map(|uri| uri.parse().unwrap());
    let conn = Conn {
        peer: &Peer::from(identity),
        source: peer["ip"].as_str().unwrap().parse().unwrap(),
        destination: SocketAddr::new(to["ip"].as_str().unwrap().parse().unwrap(), to["port"].as_u64().unwrap() as u16),
    };
    decide(&resources.policies(), &workload, &conn).is_allow()
}

#[test]
fn resources_are_read_attached_and_decided_as_said() {
    let vectors = vectors();
    let (mut asked, mut wrong) = (0, Vec::new());
    for case in list(&vectors["cases"]) {
        for (reading, settings) in [("safe", Settings::default()), ("exact", Settings::istio_exact())] {
            let resources = read(case, settings);
            for asking in list(&case["expect"]) {
                let peer = &vectors["peers"][asking["from"].as_str().unwrap()];
                let allowed = is_allowed(&resources, peer, &asking["to"]);
                if allowed != (asking[reading] == "allow") {
                    wrong.push(format!("{} {reading}: {asking}", case["id"]));
                }
                asked += 1;
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(asked > 500, "{asked} questions");
}

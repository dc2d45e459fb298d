//! A check in a Kubernetes admission webhook: policies that cannot be read in full are not admitted, and what will not be
//! in force as it is written, or will and is seldom meant so, is a warning to whoever applies them.
//!
//! Reads an AdmissionReview from stdin if `-` is given, else takes the sample below, and prints the answer.

use std::{error::Error, io};

use ambient_authz::kubernetes::{self, AuthorizationPolicy, PeerAuthentication, ReadError, Settings, Warning, peer_authentication};
use serde::Deserialize;
use serde_json::{Value, json};

const SAMPLE: &str = r#"{
    "apiVersion": "admission.k8s.io/v1",
    "kind": "AdmissionReview",
    "request": {
        "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
        "operation": "CREATE",
        "object": {
            "apiVersion": "security.istio.io/v1",
            "kind": "AuthorizationPolicy",
            "metadata": { "name": "stock", "namespace": "shop" },
            "spec": {
                "action": "DENY",
                "rules": [
                    { "to": [{ "operation": { "methods": ["DELETE"] } }] },
                    { "from": [{ "source": { "ipBlocks": ["10.0.0.0/8", "192.168.0.0/33"] } }] }
                ]
            }
        }
    }
}"#;

#[derive(Deserialize)]
struct Review {
    request: Request,
}

#[derive(Deserialize)]
struct Request {
    uid: String,
    /// Null where something is deleted.
    #[serde(default)]
    object: Value,
}

fn main() -> Result<(), Box<dyn Error>> {
    let review = match std::env::args().nth(1).as_deref() {
        Some("-") => io::read_to_string(io::stdin())?,
        _ => SAMPLE.into(),
    };
    let Review { request } = serde_json::from_str(&review)?;
    let response = match judge(request.object) {
        Ok(warnings) => json!({
            "uid": request.uid,
            "allowed": true,
            "warnings": warnings.iter().map(Warning::to_string).collect::<Vec<_>>(),
        }),
        Err(why) => json!({ "uid": request.uid, "allowed": false, "status": { "code": 422, "reason": "Invalid", "message": why } }),
    };
    let answer = json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response });
    println!("{}", serde_json::to_string_pretty(&answer)?);
    Ok(())
}

/// What to warn of; or why none of it can be, and where.
fn judge(object: Value) -> Result<Vec<Warning>, String> {
    let settings = Settings::default();
    let unread = |error: ReadError| error.to_string();
    match object["kind"].as_str() {
        Some("AuthorizationPolicy") => {
            let policy: AuthorizationPolicy = serde_json::from_value(object).map_err(|error| error.to_string())?;
            let warnings = kubernetes::read(&policy, &settings).map_err(unread)?.warnings;
            Ok([warnings, kubernetes::traps(&policy, &settings)].concat())
        }
        Some("PeerAuthentication") => {
            let policy: PeerAuthentication = serde_json::from_value(object).map_err(|error| error.to_string())?;
            let warnings = peer_authentication::read(&policy, &settings).map_err(unread)?.warnings;
            Ok([warnings, peer_authentication::traps(&policy, &settings)].concat())
        }
        _ => Ok(Vec::new()),
    }
}

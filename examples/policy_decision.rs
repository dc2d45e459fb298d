//! A policy decision, and the reason for it: what an admission check or a review tool embeds.
//!
//! Prints who may call the workload `stock` under two AuthorizationPolicies, one of which cannot be read.

use std::error::Error;

use ambient_authz::{
    Conn, Policies, decide,
    kubernetes::{self, AuthorizationPolicy, Labels, Settings},
    policy::Update,
};
use ambient_core::{Identity, Workload};

/// As `kubectl get authorizationpolicy -o json` prints them.
const FROM_CART: &str = r#"{
    "apiVersion": "security.istio.io/v1",
    "kind": "AuthorizationPolicy",
    "metadata": { "name": "stock-from-cart", "namespace": "shop" },
    "spec": {
        "selector": { "matchLabels": { "app": "stock" } },
        "action": "ALLOW",
        "rules": [{
            "from": [{ "source": { "principals": ["cluster.local/ns/shop/sa/cart"] } }],
            "to": [{ "operation": { "ports": ["8080"] } }]
        }]
    }
}"#;
const OFFICE_ONLY: &str = r#"{
    "apiVersion": "security.istio.io/v1",
    "kind": "AuthorizationPolicy",
    "metadata": { "name": "office-only", "namespace": "shop" },
    "spec": {
        "action": "DENY",
        "rules": [{ "from": [{ "source": { "notIpBlocks": ["10.0.0.0/8", "192.168.0.0/33"] } }] }]
    }
}"#;

fn main() -> Result<(), Box<dyn Error>> {
    let labels: Labels = [("app".to_owned(), "stock".to_owned())].into();
    let mut stock = Workload::new("cluster//Pod/shop/stock-0", "shop", "stock-0");

    let update = read(FROM_CART, &labels, &mut stock)?;
    let policies = Policies::default().apply([update]);
    for (peer, port) in [(Some("cart"), 8080), (Some("cart"), 9090), (Some("billing"), 8080), (None, 8080)] {
        ask(&policies, &stock, peer, port)?;
    }

    println!("\nwith a policy that cannot be read:");
    let policies = policies.apply([read(OFFICE_ONLY, &labels, &mut stock)?]);
    ask(&policies, &stock, Some("cart"), 8080)
}

/// Reads a policy, and attaches it to the workload if it selects it.
fn read(resource: &str, labels: &Labels, workload: &mut Workload) -> Result<Update, Box<dyn Error>> {
    let resource: AuthorizationPolicy = serde_json::from_str(resource)?;
    let (update, selector) = match kubernetes::read(&resource, &Settings::default()) {
        Ok(reading) => {
            for warning in &reading.warnings {
                println!("warning: {}: {warning}", resource.metadata.name);
            }
            let policy = reading.policy.ok_or("the policy is not for L4")?;
            (Update::Set(policy.into()), reading.selector)
        }
        Err(error) => (Update::Unreadable(error.unreadable().into()), error.selector),
    };
    if selector.is_some_and(|s| s.selects(labels)) {
        workload.policies.push(update.key().clone());
    }
    Ok(update)
}

fn ask(policies: &Policies, workload: &Workload, account: Option<&str>, port: u16) -> Result<(), Box<dyn Error>> {
    let peer = account.map(|a| Identity::new(&workload.trust_domain, "shop", a)).transpose()?;
    let conn = Conn {
        peer: &peer.into(),
        source: "10.0.1.2".parse()?,
        destination: ([10, 0, 2, 2], port).into(),
    };
    let decision = decide(policies, workload, &conn);
    let (who, verdict) = (
        account.unwrap_or("someone in plaintext"),
        if decision.is_allow() { "yes" } else { "no" },
    );
    println!("may {who} call port {port}? {verdict}: {decision}");
    Ok(())
}

//! What must hold when processes die and pods are replaced: steps 11 and 12.

use std::net::SocketAddr;

use ambient_testkit::cluster::Object;

use super::{
    super::{
        app::Failure,
        evidence::{self, Entry},
        ground::{Ask, Lab, Unmet, described, in_demo, is_whole, manifests, marker},
    },
    join::{WEB_API, WEB_API_FROM_AFAR, through_gateway},
    policy::{empty, is_empty},
};

pub(super) fn killed_proxy(lab: &mut Lab) -> Result<String, Unmet> {
    let marker = marker()?;
    let before = lab.cluster.pids();
    lab.capture.clear()?;
    lab.cluster.node("node-2")?.kill()?;
    let seen = while_it_is_dead(lab, &marker);
    // Whatever was seen, the steps that follow need it.
    lab.start_node("node-2")?;
    let seen = seen?;

    lab.call_until("sleep", &Ask::get(WEB_API), is_whole)?;
    lab.call_until("legacy", &through_gateway(lab)?, is_whole)?;
    lab.call_until("notsleep", &Ask::get(WEB_API), is_empty)?;
    if lab.cluster.pids() != before {
        return Err(Unmet::saw("a pod's processes are not those of before"));
    }
    Ok(format!(
        "{seen}; restarted: the chain answers, from sleep and through the gateway, and every process is the one of before"
    ))
}

fn while_it_is_dead(lab: &Lab, marker: &str) -> Result<String, Unmet> {
    let recommendation = lab.address("recommendation")?;
    let by_address = lab.call("notsleep", &Ask::get(format_args!("http://{recommendation}:8080/")).marked(marker))?;
    if by_address.failure != Some(Failure::Refused) {
        return Err(Unmet::saw(format!("notsleep by address: {}", described(&by_address))));
    }
    let by_name = lab.call("notsleep", &Ask::get("http://recommendation:8080/").marked(marker))?;
    if by_name.failure != Some(Failure::Resolve) || by_name.ms > AT_ONCE_MS {
        return Err(Unmet::saw(format!(
            "notsleep by name: {} after {:.0} ms",
            described(&by_name),
            by_name.ms
        )));
    }
    for (who, ask) in [("sleep", Ask::get(WEB_API)), ("legacy", Ask::get(WEB_API_FROM_AFAR))] {
        let outcome = lab.call(who, &ask.marked(marker))?;
        if outcome.failure.is_none() {
            return Err(Unmet::saw(format!(
                "{who} was answered by a pod whose proxy is dead: {}",
                described(&outcome)
            )));
        }
    }
    let gateway = lab.call("legacy", &through_gateway(lab)?.marked(marker))?;
    if gateway.status != Some(503) {
        return Err(Unmet::saw(format!("through the gateway: {}", described(&gateway))));
    }
    lab.sealed(&lab.capture.seen()?, marker)?;
    Ok(format!(
        "from a pod of node-2 by address: {}, by name: {} after {:.0} ms; nobody reached one; no byte in plaintext",
        described(&by_address),
        described(&by_name),
        by_name.ms
    ))
}

pub(super) fn inherited_address(lab: &mut Lab) -> Result<String, Unmet> {
    lab.call_until("sleep", &Ask::get(WEB_API), is_whole)?;
    let addresses = lab.pod("sleep")?.addresses().to_vec();
    let mark = lab.mark("node-2")?;
    lab.cluster.delete(&in_demo("Pod", "sleep"))?;
    lab.cluster.apply(manifests::IMPOSTOR)?;
    let seen = as_the_impostor(lab, &addresses, mark);

    lab.cluster.delete(&in_demo("Pod", "impostor"))?;
    lab.cluster.delete(&in_demo("ServiceAccount", "impostor"))?;
    lab.cluster.apply(&document(manifests::PODS, "sleep")?)?;
    let seen = seen?;
    lab.call_until("sleep", &Ask::get(WEB_API), is_whole)?;
    Ok(format!("{seen}; sleep itself, made anew, is answered again"))
}

fn as_the_impostor(lab: &mut Lab, addresses: &[std::net::IpAddr], mark: usize) -> Result<String, Unmet> {
    if lab.pod("impostor")?.addresses() != addresses {
        return Err(Unmet::saw("the new pod did not get the old address"));
    }
    // From the first moment on: there is no grace in which the old rights may still hold.
    for _ in 0..TRIES {
        empty("the impostor", &lab.call("impostor", &Ask::get(WEB_API))?)?;
    }
    let of_address = |entry: &Entry| {
        entry
            .get("src.addr")
            .and_then(|a| a.parse::<SocketAddr>().ok())
            .is_some_and(|a| addresses.contains(&a.ip()))
    };
    lab.find_entry("node-2", mark, "the impostor's call", |e| {
        of_address(e) && identity_is(e, "impostor")
    })?;
    let log = lab.log("node-2")?;
    let entries = evidence::connections(log.get(mark..).unwrap_or_default());
    if let Some(entry) = entries.iter().find(|e| of_address(e) && is_refused_as(e, "sleep")) {
        return Err(Unmet::saw(format!("a call was made with the old identity: {entry:?}")));
    }
    Ok(format!(
        "{} had its own identity and an empty reply in {TRIES} of {TRIES} calls",
        addresses[0]
    ))
}

/// The old pod's last connections may be reported late, and lost as it went; one refused as the old pod would be a mistaken identity.
fn is_refused_as(entry: &Entry, account: &str) -> bool {
    let is_lost = entry.get("reason").is_some_and(|reason| reason == "tunnel_lost");
    identity_is(entry, account) && entry.contains_key("error") && !is_lost
}

fn identity_is(entry: &Entry, account: &str) -> bool {
    entry
        .get("src.identity")
        .is_some_and(|i| *i == format!("spiffe://cluster.local/ns/demo/sa/{account}"))
}

/// The document of one pod out of a text of several.
fn document(text: &str, pod: &str) -> Result<String, Unmet> {
    let named = |part: &&str| Object::parse_all(part).is_ok_and(|objects| objects.iter().any(|o| o.key().name == pod));
    text.split("\n---\n")
        .find(named)
        .map(str::to_owned)
        .ok_or_else(|| Unmet::saw(format!("no manifest of {pod}")))
}

const AT_ONCE_MS: f64 = 1_000.0;
const TRIES: u32 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_was_lost_with_its_pod_is_no_mistaken_identity() {
        let of_sleep = "src.identity=\"spiffe://cluster.local/ns/demo/sa/sleep\"";
        let is_mistaken = |more: &str| is_refused_as(&evidence::fields(&format!("{of_sleep} {more}")), "sleep");
        assert!(is_mistaken("reason=policy error=\"denied\""));
        assert!(!is_mistaken("reason=tunnel_lost error=\"reset\"") && !is_mistaken(""));
    }

    #[test]
    fn one_document_of_several() {
        let text = document(manifests::PODS, "sleep").unwrap();
        let objects = Object::parse_all(&text).unwrap();
        assert_eq!(objects.len(), 1);
        assert_eq!(objects[0].key(), &in_demo("Pod", "sleep"));
        assert!(document(manifests::PODS, "nobody").is_err());
    }
}

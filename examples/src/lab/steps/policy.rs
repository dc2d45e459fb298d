//! Who may call whom, and what a refusal looks like: steps 6 to 10.

use std::{
    io::{BufRead, BufReader},
    sync::mpsc,
    thread,
    time::Duration,
};

use ambient_testkit::cluster::clock;

use super::{
    super::{
        app::{Failure, Outcome, StreamEvent},
        evidence::Entry,
        ground::{Ask, Lab, Unmet, described, in_demo, is_whole, manifests, until},
    },
    join::{WEB_API, WEB_API_FROM_AFAR, through_gateway, whole},
};

const PURCHASE_HISTORY: &str = "http://purchase-history:8080/";
/// The AuthorizationPolicies of the lab.
const POLICIES: [&str; 4] = ["allow-nothing", "web-api", "recommendation", "purchase-history"];

pub(super) fn allow_nothing(lab: &mut Lab) -> Result<String, Unmet> {
    lab.cluster.apply(manifests::ALLOW_NOTHING)?;
    lab.call_until("sleep", &Ask::get(WEB_API), is_empty)?;
    // Once refused, refused for good, and in the same way each time.
    for outcome in (0..5).map(|_| lab.call("sleep", &Ask::get(WEB_API))) {
        empty("sleep", &outcome?)?;
    }
    let gateway = lab.call_until("legacy", &through_gateway(lab)?, |o| o.status == Some(503))?;
    Ok(format!("sleep: empty reply, 6 times; through the gateway: {}", described(&gateway)))
}

pub(super) fn allow_the_chain(lab: &mut Lab) -> Result<String, Unmet> {
    lab.cluster.apply(manifests::ALLOW_CHAIN)?;
    let sleep = lab.call_until("sleep", &Ask::get(WEB_API), is_whole)?;
    let gateway = lab.call_until("legacy", &through_gateway(lab)?, is_whole)?;
    Ok(format!(
        "sleep: {}; through the gateway: {}",
        described(&sleep),
        described(&gateway)
    ))
}

pub(super) fn everybody_else(lab: &mut Lab) -> Result<String, Unmet> {
    let mut said = Vec::new();
    for (who, uri, account) in [
        ("notsleep", WEB_API, Some("spiffe://cluster.local/ns/demo/sa/notsleep")),
        ("web-api", PURCHASE_HISTORY, Some("spiffe://cluster.local/ns/demo/sa/web-api")),
        ("legacy", WEB_API_FROM_AFAR, None),
    ] {
        // All three servers that are called stand on this node.
        let mark = lab.mark("node-2")?;
        let outcome = lab.call(who, &Ask::get(uri))?;
        empty(who, &outcome)?;
        let from = lab.pod(who)?.addresses().to_vec();
        let refused = |entry: &Entry| {
            let by_address = entry
                .get("src.addr")
                .and_then(|a| a.parse::<std::net::SocketAddr>().ok())
                .is_some_and(|a| from.contains(&a.ip()));
            let by_identity = entry.get("src.identity").map(String::as_str) == account;
            is_inbound(entry) && by_address && by_identity && entry.contains_key("error")
        };
        let entry = lab.find_entry("node-2", mark, &format!("the refusal of {who}"), refused)?;
        let reason = &entry["error"];
        if !reason.contains("policy") {
            return Err(Unmet::saw(format!("the log names another reason for {who}: {reason}")));
        }
        said.push(format!("{who}: empty reply, {reason:?}"));
    }
    Ok(said.join("; "))
}

pub(super) fn strict(lab: &mut Lab) -> Result<String, Unmet> {
    for policy in POLICIES {
        lab.cluster.delete(&in_demo("AuthorizationPolicy", policy))?;
    }
    let plaintext = Ask::get(WEB_API_FROM_AFAR);
    lab.call_until("legacy", &plaintext, is_whole)?;

    lab.cluster.apply(manifests::STRICT)?;
    let mark = lab.mark("node-2")?;
    let refused = lab.call_until("legacy", &plaintext, is_refused)?;
    let names_it = |entry: &Entry| is_inbound(entry) && entry.get("error").is_some_and(|e| is_about_strict(e));
    let entry = lab.find_entry("node-2", mark, "a refusal by STRICT", names_it)?;
    let sleep = lab.call("sleep", &Ask::get(WEB_API))?;
    whole("sleep", &sleep)?;
    let probe = probe(lab)?;

    lab.cluster.delete(&in_demo("PeerAuthentication", "strict"))?;
    lab.call_until("legacy", &plaintext, is_whole)?;
    lab.cluster.apply(manifests::ALLOW_NOTHING)?;
    lab.cluster.apply(manifests::ALLOW_CHAIN)?;
    lab.call_until("notsleep", &Ask::get(WEB_API), is_empty)?;
    lab.call_until("sleep", &Ask::get(WEB_API), is_whole)?;
    Ok(format!(
        "legacy: answered, then {} ({:?}), then answered; sleep: {}; {probe}; the policies are back",
        described(&refused),
        entry["error"],
        described(&sleep)
    ))
}

/// A probe of web-api by its own node reaches the application itself, over both address families; one by the other node is a
/// stranger's plaintext.
fn probe(lab: &Lab) -> Result<String, Unmet> {
    let pod = lab.pod("web-api")?;
    for address in pod.addresses() {
        let answer = lab.cluster.probe(pod.node(), (*address, WEB_API_PORT).into(), "/healthz");
        match answer? {
            Ok(200) => {}
            other => return Err(Unmet::saw(format!("{}'s probe of {address}: {other:?}", pod.node()))),
        }
        if let Ok(status) = lab.cluster.probe("node-1", (*address, WEB_API_PORT).into(), "/healthz")? {
            return Err(Unmet::saw(format!("node-1's plaintext to {address} was answered with {status}")));
        }
    }
    Ok(format!("the probe by {}: 200, the same by node-1: refused", pod.node()))
}

pub(super) fn open_connection(lab: &mut Lab) -> Result<String, Unmet> {
    let args = ["stream", "http://web-api:8080/stream"].map(str::to_owned);
    let mut client = lab.start("sleep", &args)?;
    let (events, inbox) = mpsc::channel();
    if let Some(out) = client.take_stdout() {
        // Ends with the client's output.
        thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                let _ = events.send((clock::now(), line));
            }
        });
    }
    let next = || -> Result<_, Unmet> {
        let (at, line) = inbox
            .recv_timeout(STREAM_DEADLINE)
            .map_err(|_| Unmet::saw(format!("the stream said nothing for {STREAM_DEADLINE:?}")))?;
        let event: StreamEvent = serde_json::from_str(&line).map_err(|e| Unmet::saw(format!("the stream said {line:?}: {e}")))?;
        Ok((at, event))
    };
    let (_, StreamEvent::Flowing { from }) = next()? else {
        return Err(Unmet::saw("the stream ended before it carried data"));
    };

    let mark = lab.mark("node-2")?;
    let withdrawn = clock::now();
    lab.cluster.apply(manifests::ALLOW_GATEWAY_ONLY)?;
    let (at, StreamEvent::Ended { failure, received }) = next()? else {
        return Err(Unmet::saw("the stream began twice"));
    };
    let took = at.saturating_duration_since(withdrawn);
    if failure != Some(Failure::Reset) || took > CUT_WITHIN {
        let how = failure.map_or_else(|| "an orderly end".to_owned(), |f| f.to_string());
        return Err(Unmet::saw(format!(
            "the client saw {how} after {} ms and {received} bytes",
            took.as_millis()
        )));
    }
    server_saw_reset(lab)?;
    let of_client =
        |entry: &Entry| is_inbound(entry) && entry.get("src.workload").is_some_and(|w| w == "sleep") && entry.contains_key("error");
    let entry = lab.find_entry("node-2", mark, "the cut", of_client)?;
    let reason = &entry["error"];
    if !reason.contains("policy") {
        return Err(Unmet::saw(format!("the log names another reason: {reason}")));
    }
    lab.cluster.apply(manifests::ALLOW_CHAIN)?;
    lab.call_until("sleep", &Ask::get(WEB_API), is_whole)?;
    Ok(format!(
        "{from}: reset on both sides after {} ms and {received} bytes, {reason:?}",
        took.as_millis()
    ))
}

/// Waits until the server, too, has told how the stream ended.
fn server_saw_reset(lab: &Lab) -> Result<(), Unmet> {
    let log = lab.pod("web-api")?.log().to_owned();
    let told = until(STREAM_DEADLINE, || {
        let text = std::fs::read_to_string(&log).map_err(Unmet::io("reading the log of web-api"))?;
        let ended = |line: &str| {
            serde_json::from_str::<serde_json::Value>(line)
                .ok()
                .filter(|v| v["event"] == "stream-ended")
        };
        Ok(text.lines().rev().find_map(ended))
    })?;
    let told = told.ok_or_else(|| Unmet::saw("the server's side of the stream did not end"))?;
    match serde_json::from_value::<Option<Failure>>(told["failure"].clone()) {
        Ok(Some(Failure::Reset)) => Ok(()),
        _ => Err(Unmet::saw(format!("the server saw {told}"))),
    }
}

/// An empty reply: the connection was accepted, and closed without a byte.
pub(crate) fn is_empty(outcome: &Outcome) -> bool {
    outcome.failure == Some(Failure::Empty)
}

/// Checks for an empty reply.
pub(crate) fn empty(who: &str, outcome: &Outcome) -> Result<(), Unmet> {
    if is_empty(outcome) {
        Ok(())
    } else {
        Err(Unmet::saw(format!("{who}: {}", described(outcome))))
    }
}

fn is_refused(outcome: &Outcome) -> bool {
    matches!(outcome.failure, Some(Failure::Empty | Failure::Reset | Failure::Refused))
}

fn is_inbound(entry: &Entry) -> bool {
    entry.get("direction").is_some_and(|d| d == "inbound")
}

fn is_about_strict(error: &str) -> bool {
    let error = error.to_ascii_lowercase();
    error.contains("strict") || error.contains("peerauthentication")
}

const WEB_API_PORT: u16 = 8080;
const CUT_WITHIN: Duration = Duration::from_secs(1);
const STREAM_DEADLINE: Duration = Duration::from_secs(4);

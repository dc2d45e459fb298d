//! Pods join the mesh and leave it: steps 1, 2, 3, 5 and 13.

use std::{collections::BTreeSet, time::Duration};

use ambient_testkit::cluster::{DATAPLANE_MODE, Key, residue};

use super::super::{
    app::Outcome,
    ground::{Ask, CHANGE_DEADLINE, Lab, Unmet, described, is_whole, marker, until},
};

/// The pods that the label of their namespace brings in.
pub(crate) const LABELLED: [&str; 5] = ["sleep", "notsleep", "web-api", "recommendation", "purchase-history"];
/// The pod that is in by its own label.
const GATEWAY: &str = "ingressgateway";
pub(crate) const WEB_API: &str = "http://web-api:8080/";
/// The same from another namespace.
pub(crate) const WEB_API_FROM_AFAR: &str = "http://web-api.demo:8080/";

/// The call that `legacy` makes through the gateway.
pub(crate) fn through_gateway(lab: &Lab) -> Result<Ask, Unmet> {
    Ok(Ask::get(format_args!("http://{}:8080/", lab.address(GATEWAY)?)).host(GATEWAY_HOST))
}

pub(super) fn before_the_label(lab: &mut Lab) -> Result<String, Unmet> {
    let marker = marker()?;
    // The servers may have been started this very moment.
    lab.call_until("sleep", &Ask::get(WEB_API), is_whole)?;
    lab.capture.clear()?;
    let outcome = lab.call("sleep", &Ask::get(WEB_API).marked(&marker))?;
    whole("sleep", &outcome)?;
    if !lab.capture.seen()?.contains(marker.as_bytes()) {
        return Err(Unmet::saw("the request's text did not pass between the nodes in plaintext"));
    }
    Ok(format!("{}; the request's text is in the capture", described(&outcome)))
}

pub(super) fn the_namespace_joins(lab: &mut Lab) -> Result<String, Unmet> {
    let before = lab.cluster.pids();
    lab.cluster
        .label(&Key::new("Namespace", "", "demo"), DATAPLANE_MODE, Some("ambient"))?;
    let captured = lab.all_captured()?;
    if lab.cluster.pids() != before {
        return Err(Unmet::saw("a pod's processes are not those of before"));
    }
    for name in LABELLED {
        let (node, uid) = (lab.pod(name)?.node().to_owned(), lab.pod(name)?.uid().to_owned());
        let says = |line: &str| line.contains("pod captured") && line.contains("added") && (line.contains(&uid) || line.contains(name));
        // The status may be there before the line is.
        let said = until(CHANGE_DEADLINE, || Ok(lab.log(&node)?.lines().any(says).then_some(())))?;
        said.ok_or_else(|| Unmet::saw(format!("the log of {node} has no line that says what was added to {name}")))?;
    }
    Ok(format!(
        "{} are captured; every process is the one of before; each has its line",
        list(&captured)
    ))
}

pub(super) fn mutual_tls(lab: &mut Lab) -> Result<String, Unmet> {
    let marker = marker()?;
    settled(lab)?;
    lab.capture.clear()?;
    for family in [4, 6] {
        let outcome = lab.call("sleep", &Ask::get(WEB_API).marked(&marker).family(family))?;
        whole(&format!("sleep over IPv{family}"), &outcome)?;
    }
    answered("sleep", &lab.calls("sleep", &Ask::heads(WEB_API, HEADS).marked(&marker))?)?;
    let gateway = lab.address(GATEWAY)?;
    let outcome = lab.call("legacy", &through_gateway(lab)?.marked(&marker))?;
    whole("legacy through the gateway", &outcome)?;
    let heads = Ask::heads(format_args!("http://{gateway}:8080/"), HEADS)
        .host(GATEWAY_HOST)
        .marked(&marker);
    answered("legacy through the gateway", &lab.calls("legacy", &heads)?)?;

    let seen = lab.capture.seen()?;
    let (connections, bytes) = lab.sealed(&seen, &marker)?;
    if bytes == 0 {
        return Err(Unmet::saw("the capture has no byte between the pods of the mesh"));
    }
    Ok(format!(
        "the chain answered over both families and through the gateway, and {HEADS} of {HEADS} HEADs each; \
         {connections} TLS connections on port 15008 with {bytes} bytes, nothing else, and no marker"
    ))
}

/// Waits until each node knows of the pods that the other has captured, which takes a node 250 ms at most after it was
/// written: until then calls between them are right to be in plaintext.
fn settled(lab: &Lab) -> Result<(), Unmet> {
    let mut open = String::from("nothing");
    let settled = until(SETTLED_WITHIN, || {
        lab.capture.clear()?;
        for (who, ask) in [("sleep", Ask::get(WEB_API)), ("legacy", through_gateway(lab)?)] {
            whole(who, &lab.call(who, &ask)?)?;
        }
        match lab.sealed(&lab.capture.seen()?, MESSAGE) {
            Ok(_) => Ok(Some(())),
            Err(Unmet::Saw(what)) => {
                open = what;
                Ok(None)
            }
            Err(other) => Err(other),
        }
    })?;
    settled.ok_or_else(|| Unmet::saw(format!("{SETTLED_WITHIN:?} after the capture of all pods, {open}")))
}

pub(super) fn those_outside(lab: &mut Lab) -> Result<String, Unmet> {
    let mut said = Vec::new();
    let captured = lab.captured()?;
    for (name, uri) in [("opted-out", WEB_API), ("on-host", WEB_API), ("legacy", WEB_API_FROM_AFAR)] {
        let outcome = lab.call(name, &Ask::get(uri))?;
        whole(name, &outcome)?;
        let found = residue(lab.namespace(name)?)?;
        // In a node's namespace kube-proxy has its own, and so has the node itself.
        let of_node = |line: &str| line.contains("kube-proxy") || line.ends_with(NODES_TABLE);
        let ours: Vec<_> = found.into_iter().filter(|line| !of_node(line)).collect();
        if !ours.is_empty() || captured.contains(name) {
            return Err(Unmet::saw(format!("{name} was touched: {}", ours.join(", "))));
        }
        said.push(name);
    }
    Ok(format!(
        "{} had the whole chain's answer; their namespaces hold nothing of ours",
        said.join(", ")
    ))
}

pub(super) fn the_namespace_leaves(lab: &mut Lab) -> Result<String, Unmet> {
    lab.cluster.label(&Key::new("Namespace", "", "demo"), DATAPLANE_MODE, None)?;
    let mut left = Vec::new();
    let clean = until(CHANGE_DEADLINE, || {
        left.clear();
        for name in LABELLED {
            left.extend(residue(lab.namespace(name)?)?.into_iter().map(|what| format!("{name}: {what}")));
        }
        let captured = lab.captured()?;
        let has_pods = |node: &str| {
            let mut pods = lab.cluster.pods().values().filter(|pod| pod.node() == node);
            pods.any(|pod| captured.contains(&pod.key().name))
        };
        for node in lab.cluster.nodes().iter().filter(|node| !has_pods(node.name())) {
            let own = residue(node.namespace())?.into_iter().filter(|line| line.ends_with(NODES_TABLE));
            left.extend(own.map(|what| format!("{}: {what}", node.name())));
        }
        left.extend(
            LABELLED
                .iter()
                .filter(|name| captured.contains(**name))
                .map(|name| format!("{name} stands in its node's status")),
        );
        Ok(left.is_empty().then_some(()))
    })?;
    if clean.is_none() {
        return Err(Unmet::saw(left.join(", ")));
    }
    let marker = marker()?;
    let outcome = lab.call_until("sleep", &Ask::get(WEB_API).marked(&marker), is_whole)?;
    if !lab.capture.seen()?.contains(marker.as_bytes()) {
        return Err(Unmet::saw("the request's text did not pass between the nodes in plaintext"));
    }
    Ok(format!(
        "no table, rule or route in {}, and no table of a node's own without pods; {}; the request's text is in the capture",
        LABELLED.join(", "),
        described(&outcome)
    ))
}

/// What a node has in its own namespace for its kubelet's probes.
const NODES_TABLE: &str = "ambient-probes";

/// Checks that the whole chain has answered.
pub(crate) fn whole(who: &str, outcome: &Outcome) -> Result<(), Unmet> {
    if is_whole(outcome) {
        Ok(())
    } else {
        Err(Unmet::saw(format!("{who}: {}", described(outcome))))
    }
}

fn answered(who: &str, outcomes: &[Outcome]) -> Result<(), Unmet> {
    let wrong = outcomes.iter().find(|o| o.status != Some(200));
    match wrong {
        Some(outcome) => Err(Unmet::saw(format!("{who}: of {HEADS} HEADs one came to {}", described(outcome)))),
        None if outcomes.len() != HEADS as usize => Err(Unmet::saw(format!("{who}: {} of {HEADS} HEADs were made", outcomes.len()))),
        None => Ok(()),
    }
}

fn list(names: &BTreeSet<String>) -> String {
    names.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

/// A text in every answer of web-api.
const MESSAGE: &str = "Hello From Web API";
const SETTLED_WITHIN: Duration = Duration::from_secs(2);
const GATEWAY_HOST: &str = "istioexplained.io";
const HEADS: u32 = 100;

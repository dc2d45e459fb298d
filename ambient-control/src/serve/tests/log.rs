//! What a node can have written to the log at will.

use std::collections::BTreeMap;

use ambient_testkit::log::{Line, Lines, heard_by};
use bytes::Bytes;
use prost_types::{Struct, Value, value::Kind::StringValue};

use super::{
    silence::{ask, connect, framed},
    *,
};
use crate::wire::{
    ambient::control::v1::{CaptureReport, JoinRequest},
    envoy::{config::core::v3::Node, service::discovery::v3::DeltaDiscoveryRequest},
    istio::v1::auth::IstioCertificateRequest,
};

/// How often each line was written, by its text and its node.
fn by_node(lines: &Lines) -> BTreeMap<(String, String), usize> {
    let mut times = BTreeMap::new();
    for line in lines.all().into_iter().filter(|line| line.level <= tracing::Level::INFO) {
        *times.entry((line.field("node").to_owned(), text(&line))).or_default() += 1;
    }
    times
}

fn text(line: &Line) -> String {
    // Two kinds of reports are refused with one text.
    match line.field("remedy") {
        _ if line.field("why").starts_with("addresses[") => format!("{} for an address", line.message),
        "" => line.message.clone(),
        remedy => format!("{}: {remedy}", line.message),
    }
}

fn said(name: &str, value: &str) -> Struct {
    let value = Value {
        kind: Some(StringValue(value.into())),
    };
    Struct {
        fields: [(name.to_owned(), value)].into(),
    }
}

/// Whatever is refused of a node, with the path, and with the status that it is refused by.
fn refused() -> Vec<(&'static str, Bytes, &'static str)> {
    let certificate = |whom: &str, csr: &str| {
        framed(&IstioCertificateRequest {
            csr: csr.into(),
            metadata: Some(said("ImpersonatedIdentity", whom)),
            ..IstioCertificateRequest::default()
        })
    };
    let report = |pod: &str, address: &str, captured| {
        framed(&CaptureReport {
            pod_uid: pod.into(),
            addresses: vec![address.into()],
            captured,
        })
    };
    let other = Node {
        metadata: Some(said("NODE_NAME", "another")),
        ..Node::default()
    };
    let stream = framed(&DeltaDiscoveryRequest {
        node: Some(other),
        type_url: istiod::Kind::Address.type_url().into(),
        ..DeltaDiscoveryRequest::default()
    });
    let create = "/istio.v1.auth.IstioCertificateService/CreateCertificate";
    let keep = "/ambient.control.v1.CaptureService/Report";
    vec![
        (create, certificate("nobody", ""), "3"),
        (create, certificate(&identity("stock").to_string(), ""), "7"),
        (create, certificate(&identity("cart").to_string(), "no request"), "3"),
        ("/ambient.control.v1.NodeService/Join", framed(&JoinRequest::default()), "3"),
        (keep, report("uid-cart", "somewhere", true), "3"),
        (keep, report(&"u".repeat(254), "192.0.2.1", true), "3"),
        (keep, report("uid-stock", "192.0.2.1", true), "7"),
        (streams::PATH, stream, "7"),
    ]
}

/// Whoever has what one node is known by: each line is written once in a while, and those of others as before.
#[tokio::test]
async fn whoever_is_a_node_fills_no_log() {
    let lines = Lines::of("::serve::");
    let _guard = heard_by(lines.clone());
    let running = Running::start().await;
    let begun = tokio::time::Instant::now();
    let [one, other] = ["node-1", "node-9"].map(|node| running.token(node, Duration::from_secs(600), Use::Always));
    let (mut sender, _connection) = connect(&running).await;
    for _ in 0..TIMES {
        for (path, message, status) in refused() {
            let answer = ask(&running, &mut sender, &one, path, message).await;
            assert_eq!(answer.as_deref(), Some(status), "{path}");
        }
    }
    // No more than so many are signed for a node, of whatever kind. Each call comes before the answers of those before it.
    let (path, message, _) = refused().swap_remove(2);
    let mut calls: Vec<_> = std::iter::repeat_with(|| sender.clone()).take(AT_ONCE).collect();
    let calls = calls.iter_mut().map(|sender| ask(&running, sender, &one, path, message.clone()));
    let mut calls: Vec<_> = calls.map(Box::pin).collect();
    let mut statuses = Vec::new();
    std::future::poll_fn(|context| {
        calls.retain_mut(|call| match call.as_mut().poll(context) {
            std::task::Poll::Ready(status) => {
                statuses.push(status);
                false
            }
            std::task::Poll::Pending => true,
        });
        match calls.is_empty() {
            true => std::task::Poll::Ready(()),
            false => std::task::Poll::Pending,
        }
    })
    .await;
    let often = statuses.iter().filter(|status| status.as_deref() == Some("8")).count();
    assert!(often > 1, "more than a node can need: {statuses:?}");
    let asked = TIMES * refused().len() + AT_ONCE;
    let of_all = [Refusal::Request, Refusal::Identity, Refusal::Pod, Refusal::Node, Refusal::Often].map(|why| running.counts.refused(why));
    assert_eq!(of_all.iter().sum::<u64>(), asked as u64, "each is counted: {of_all:?}");
    let (mut theirs, _connection) = connect(&running).await;
    let join = framed(&JoinRequest::default());
    let answer = ask(&running, &mut theirs, &other, "/ambient.control.v1.NodeService/Join", join).await;
    assert_eq!(answer.as_deref(), Some("3"));
    let most = 1 + usize::try_from(begun.elapsed().as_secs() / 10).unwrap();
    let lines = by_node(&lines);
    let of = |node: &str| lines.iter().filter(|((of, _), _)| of == node).collect::<Vec<_>>();
    let (ours, theirs) = (of("node-1"), of("node-9"));
    // One for each of them, for what is too often, and for a stream's beginning.
    assert_eq!(ours.len(), refused().len() + 2, "{ours:#?}");
    assert!(ours.iter().all(|(_, times)| **times <= most), "{ours:#?}");
    assert_eq!(theirs.len(), 1, "what another causes takes nobody's: {theirs:#?}");
}

/// As without a descriptor left, ten times a second: that is told once in a while, with what to do.
#[tokio::test(start_paused = true)]
async fn a_listener_that_can_accept_nothing_fills_no_log() {
    let lines = Lines::of("::serve::");
    let _guard = heard_by(lines.clone());
    let seldom = seldom::Seldom::default();
    let without = io::Error::from_raw_os_error(rustix::io::Errno::MFILE.raw_os_error());
    for _ in 0..99 {
        server::cannot_accept(&seldom, &without);
        tokio::time::advance(Duration::from_millis(100)).await;
    }
    let lines = by_node(&lines);
    let [((_, line), 1)] = &lines.iter().collect::<Vec<_>>()[..] else {
        panic!("one line: {lines:#?}")
    };
    assert!(
        line.starts_with("cannot accept a connection: ") && line.contains("LimitNOFILE"),
        "{line}"
    );
}

/// How often each is tried.
const TIMES: usize = 5;
/// Far more than are signed for a node.
const AT_ONCE: usize = 400;

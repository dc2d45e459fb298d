//! What the fuzz targets run, and what the replay of their corpora runs too: every decoder of what others send, or of what
//! stands on a disk. No API: only `fuzz/` sees it.

use std::{collections::HashSet, sync::OnceLock, time::Instant};

use ambient_core::{Identity, mesh::Update};
use prost::Message;
use rcgen::KeyPair;

use crate::{
    Change,
    istiod::{
        fuzz as istiod, now,
        read::{self, Key, Read},
        session::{Ask, Kind, Session, Settings},
    },
    serve::encode,
    wire::{
        envoy::{config::core::v3::Node, service::discovery::v3::DeltaDiscoveryResponse},
        istio::{
            security,
            workload::{self as wire, address},
        },
    },
};

#[cfg(test)]
mod tests;

/// A workload or a service: what is read is named as it says, and is read again from what would be served of it.
pub fn address(data: &[u8]) {
    let name = match wire::Address::decode(data).ok().and_then(|sent| sent.r#type) {
        Some(address::Type::Workload(sent)) => sent.uid,
        Some(address::Type::Service(sent)) => format!("{}/{}", sent.namespace, sent.hostname),
        None => String::new(),
    };
    assert!(read::address("another", data).is_err() || name.eq_ignore_ascii_case("another"));
    let Ok(first) = read::address(&name, data) else { return };
    // Hostnames are served in lower case, and what was left out is said.
    let name = match &first.key {
        Key::Service(name) => name.to_string(),
        _ => name,
    };
    let served = |read: &Read| {
        let body = match &read.change {
            Change::Mesh(Update::Workload(workload)) => encode::workload(workload).1,
            Change::Mesh(Update::Service(service)) => encode::service(service).1,
            other => panic!("no address: {other:?}"),
        };
        read::address(&name, &body).expect("what is served of it is read")
    };
    let second = served(&first);
    assert_eq!(first.key, second.key);
    assert_eq!(format!("{:?}", second.change), format!("{:?}", served(&second).change));
}

/// A policy: what cannot be read refuses its scope.
pub fn authorization(data: &[u8]) {
    let sent = security::Authorization::decode(data).unwrap_or_default();
    let name = format!("{}/{}", sent.namespace, sent.name);
    for settings in [
        ambient_authz::wire::Settings::default(),
        ambient_authz::wire::Settings::istio_exact(),
    ] {
        for name in [name.as_str(), "shop/another", "", "/"] {
            match read::authorization(name, data, &settings) {
                Ok(read) => assert!(matches!(&read.key, Key::Policy(key) if key.as_str() == name)),
                Err(refused) => assert!(refused.policy().is_some() && !refused.why.is_empty()),
            }
        }
    }
}

/// A response: it is answered once, by its nonce; what is refused is said, and nothing is held that did not come.
pub fn response(data: &[u8]) {
    let Some((first, data)) = data.split_first() else { return };
    let Ok(mut response) = DeltaDiscoveryResponse::decode(data) else {
        return;
    };
    // Most bytes make no type that is known.
    if let Some(kind) = Kind::ALL.get(usize::from(first & 3)) {
        response.type_url = kind.type_url().into();
        for body in response.resources.iter_mut().filter_map(|resource| resource.resource.as_mut()) {
            body.type_url.clone_from(&response.type_url);
        }
    }
    let mut session = Session::new(Settings {
        node: Node::default(),
        on_demand: first & 4 != 0,
        trust: true,
        policies: ambient_authz::wire::Settings::default(),
        settling: std::time::Duration::from_secs(10),
        grace: std::time::Duration::from_secs(30),
        longest_request: usize::MAX,
        remembers: true,
    });
    let now = instant();
    session.handle_opened(now);
    let asked: Vec<String> = response.resources.iter().map(|resource| resource.name.clone()).take(5).collect();
    asked.iter().for_each(|name| assert!(session.ask(name) != Ask::TooMany));
    while session.poll_request().is_some() {}
    for _ in 0..2 {
        let (nonce, came) = (response.nonce.clone(), response.resources.len() + response.removed_resources.len());
        let received = session.handle_whole(now, response.clone());
        // What nobody asked for is told here, and not answered there.
        if Kind::of(&response.type_url).is_some() {
            let answer = session.poll_request().expect("an answer");
            assert_eq!((answer.response_nonce, &answer.type_url), (nonce, &response.type_url));
            assert_eq!(answer.error_detail.is_some(), !received.refused.is_empty());
        }
        assert!(session.poll_request().is_none());
        assert!(received.refused.len() <= came + 1);
        let names: HashSet<&String> = response.resources.iter().map(|resource| &resource.name).collect();
        assert!(session.held().iter().sum::<usize>() <= names.len());
        // The other way round: all of it is gone again.
        response.removed_resources = asked.clone();
        session.handle_closed();
        session.handle_opened(now);
        while session.poll_request().is_some() {}
    }
    let _ = session.give_back(&asked);
    session.handle_timeout(now + std::time::Duration::from_secs(60));
    let _ = session.faults();
}

/// A stream of responses, parted anywhere.
pub fn pieces(data: &[u8]) {
    istiod::pieces(data);
}

/// A stream of requests, parted anywhere.
pub fn asked(data: &[u8]) {
    crate::serve::fuzz_asked(data);
}

/// A certificate service's answer, entries apart by a zero byte: it is believed for nobody's key but ours, so never.
pub fn certificate(data: &[u8]) {
    static KEY: OnceLock<Vec<u8>> = OnceLock::new();
    let key = KEY.get_or_init(|| KeyPair::generate().expect("a key").serialize_der());
    let key = KeyPair::try_from(key.as_slice()).expect("it was one");
    let entries: Vec<String> = data
        .split(|byte| *byte == 0)
        .map(|entry| String::from_utf8_lossy(entry).into_owned())
        .collect();
    let identity: Identity = "spiffe://cluster.local/ns/shop/sa/cart".parse().expect("it is one");
    assert!(istiod::answer(&entries, &identity, key, now()).is_err());
}

/// A file of remembered state: what is read of it is read again from what would be written.
pub fn memory(data: &[u8]) {
    istiod::memory(data);
}

/// What was remembered of whom to trust.
pub fn trust(data: &[u8]) {
    crate::disk::trust::fuzz(data);
}

/// A file of manifests: what is read of it is told, is nothing new when it is read again, and is gone when it is gone.
pub fn manifests(data: &[u8]) {
    crate::manifests::fuzz_document(data);
}

/// A text in ztunnel's form: what is read of it is told, is nothing new when it is read again, and is gone when it is gone.
pub fn local_xds(data: &[u8]) {
    crate::local_xds::fuzz(data);
}

/// The files of a certificate authority, apart by a zero byte: whatever they hold, it is shown or refused.
pub fn authority(data: &[u8]) {
    crate::ca::fuzz(data);
}

/// A certificate request: what is signed of it has its key and the name that was decided on, and nothing else that it asks for.
pub fn csr(data: &[u8]) {
    crate::ca::fuzz_request(data);
}

/// Lists of what was revoked: what is read of them is read again from what would be written.
pub fn lists(data: &[u8]) {
    crate::ca::fuzz_lists(data);
}

/// A node's report of its captures.
pub fn status(data: &[u8]) {
    crate::manifests::fuzz_status(data);
}

#[expect(clippy::disallowed_methods, reason = "some instant to begin with")]
fn instant() -> Instant {
    Instant::now()
}

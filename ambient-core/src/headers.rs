//! The texts of the headers that a CONNECT carries besides its target: `baggage`, `forwarded`, `traceparent` and
//! `x-forwarded-network`.
//!
//! Peers write them, so that reading never fails and never trusts: what cannot be read is absent, and none of it may
//! reach a policy or, without a look-up in the mesh, a label.

use std::{fmt::Write as _, net::SocketAddr};

use crate::{Workload, WorkloadKind};

#[cfg(test)]
mod tests;

/// The longest header text that is read.
const LONGEST: usize = 8 * 1024;

/// The `baggage` of a workload ([W3C Baggage], with the keys that Istio's ambient proxies use).
///
/// [W3C Baggage]: https://www.w3.org/TR/baggage/
pub fn baggage(workload: &Workload) -> String {
    let owner = format!("k8s.{}.name", workload.kind.as_str());
    let pairs = [
        ("k8s.cluster.name", &workload.cluster),
        ("k8s.namespace.name", &workload.namespace),
        (owner.as_str(), &workload.workload_name),
        ("service.name", &workload.canonical_name),
        ("service.version", &workload.canonical_revision),
        ("cloud.region", &workload.locality[0]),
        ("cloud.availability_zone", &workload.locality[1]),
    ];
    let mut text = String::with_capacity(192);
    for (key, value) in pairs.into_iter().filter(|(_, value)| !value.is_empty()) {
        if !text.is_empty() {
            text.push(',');
        }
        // Kubernetes names need no escape; whatever else stands in a value must not end it.
        text.push_str(key);
        text.push('=');
        text.extend(
            value
                .chars()
                .filter(|c| c.is_ascii_graphic() && !matches!(c, ',' | ';' | '"' | '\\')),
        );
    }
    text
}

/// What a peer said of itself in `baggage`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Baggage {
    /// The cluster's name.
    pub cluster: Option<String>,
    /// The Kubernetes namespace.
    pub namespace: Option<String>,
    /// The owner's kind and name.
    pub workload: Option<(WorkloadKind, String)>,
    /// The canonical service name.
    pub service: Option<String>,
    /// The canonical revision.
    pub revision: Option<String>,
    /// The region.
    pub region: Option<String>,
    /// The zone.
    pub zone: Option<String>,
}

impl Baggage {
    /// Reads one or several header values; unknown keys are passed over, a value that is not ASCII makes all of it
    /// absent.
    pub fn read<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut read = Self::default();
        for value in values {
            let Some(text) = visible_ascii(value) else { return Self::default() };
            for pair in text.split(',') {
                // A member may carry properties behind a semicolon.
                let pair = pair.split(';').next().unwrap_or_default();
                let Some((key, value)) = pair.split_once('=') else { continue };
                let value = || Some(value.trim().to_owned()).filter(|v| !v.is_empty());
                let kind = |kind| value().map(|v| (kind, v));
                match key.trim() {
                    "k8s.cluster.name" => read.cluster = value(),
                    "k8s.namespace.name" => read.namespace = value(),
                    "k8s.deployment.name" => read.workload = kind(WorkloadKind::Deployment),
                    "k8s.cronjob.name" => read.workload = kind(WorkloadKind::CronJob),
                    "k8s.pod.name" => read.workload = kind(WorkloadKind::Pod),
                    "k8s.job.name" => read.workload = kind(WorkloadKind::Job),
                    "service.name" => read.service = value(),
                    "service.version" => read.revision = value(),
                    "cloud.region" => read.region = value(),
                    "cloud.availability_zone" => read.zone = value(),
                    _ => {}
                }
            }
        }
        read
    }
}

/// The `forwarded` text ([RFC 7239]): who called, and the service that was asked for.
///
/// [RFC 7239]: https://www.rfc-editor.org/rfc/rfc7239
pub fn forwarded(source: SocketAddr, host: Option<&str>) -> String {
    let mut text = format!("for=\"{source}\"");
    if let Some(host) = host {
        // Writing to a String cannot fail.
        let _ = write!(text, ";host={host}");
    }
    text
}

/// The `host` of a `forwarded` text; quotes are taken off.
pub fn forwarded_host(value: &[u8]) -> Option<&str> {
    visible_ascii(value)?.split([';', ',']).find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        let host = value.trim().trim_matches('"');
        (key.trim().eq_ignore_ascii_case("host") && !host.is_empty()).then_some(host)
    })
}

/// A `traceparent` text ([Trace Context] version 00, not sampled) from random bits; zero, which the format forbids,
/// becomes one.
///
/// [Trace Context]: https://www.w3.org/TR/trace-context/
pub fn traceparent(trace: u128, span: u64) -> String {
    format!("00-{:032x}-{:016x}-00", trace.max(1), span.max(1))
}

/// The trace and the span of a `traceparent` text.
pub fn read_traceparent(value: &[u8]) -> Option<(u128, u64)> {
    let mut parts = std::str::from_utf8(value).ok()?.split('-');
    let lower_hex = |part: &str, len| part.len() == len && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let version = parts.next().filter(|p| lower_hex(p, 2) && *p != "ff")?;
    let trace = parts.next().filter(|p| lower_hex(p, 32))?;
    let span = parts.next().filter(|p| lower_hex(p, 16))?;
    parts.next().filter(|p| lower_hex(p, 2))?;
    // Version 00 has exactly four parts; later ones may add some.
    if version == "00" && parts.next().is_some() {
        return None;
    }
    let (trace, span) = (u128::from_str_radix(trace, 16).ok()?, u64::from_str_radix(span, 16).ok()?);
    (trace != 0 && span != 0).then_some((trace, span))
}

/// The `x-forwarded-network` text of who speaks from `network`, for the inner CONNECT of a tunnel through a gateway, where
/// the gateway's address stands for the speaker's. A network without a name is another one than those that have one, and says
/// so by an empty text. None where a header cannot hold the name.
pub fn forwarded_network(network: &str) -> Option<&str> {
    visible_ascii(network.as_bytes()).filter(|network| network.trim() == *network)
}

/// Whether an `x-forwarded-network` text says that its sender speaks from another network than `own`: then the address that
/// the connection comes from is a gateway's, and names no workload. Case does not count.
pub fn is_from_other_network(value: &[u8], own: &str) -> bool {
    visible_ascii(value).is_some_and(|network| !network.trim().eq_ignore_ascii_case(own))
}

fn visible_ascii(value: &[u8]) -> Option<&str> {
    let visible = value.len() <= LONGEST && value.iter().all(|b| matches!(b, 0x20..=0x7e | b'\t'));
    std::str::from_utf8(value).ok().filter(|_| visible)
}

//! What the rooms below tell, as the log has it.

use std::{sync::Arc, time::SystemTime};

use ambient_core::{Observer, observe::Event};

use crate::{
    telemetry::{Direction, Metrics},
    text::rfc3339,
};

/// Puts what the rooms below tell into the log, and counts repairs where they are counted.
pub(crate) struct Told(pub(crate) Option<Arc<Metrics>>);

impl Observer for Told {
    fn observe(&self, event: &Event<'_>) {
        match event {
            Event::TunnelOpened { peer, speaker } => tracing::debug!(%peer, speaker = %speaker, "tunnel opened"),
            Event::TunnelClosed { peer, speaker, reason } => tracing::debug!(%peer, speaker = %speaker, %reason, "tunnel closed"),
            Event::StreamsGivenUp { peer, streams } => {
                if let Some(metrics) = &self.0 {
                    metrics.streams_given_up(*streams);
                }
                tracing::debug!(%peer, streams, "streams given up: the peer took nothing more of what they had to say");
            }
            Event::PodRepaired {
                pod,
                what,
                held,
                noticed,
                repaired,
                around,
            } => {
                if let Some(metrics) = &self.0 {
                    metrics.pod_repaired(*around);
                }
                let [held, noticed, repaired] = [held, noticed, repaired].map(|time| to_the_millisecond(*time));
                tracing::warn!(uid = %pod, what, held_until = held, noticed, repaired, around, "pod repaired: its capture was broken");
            }
            Event::HandshakeEnded { error, took, .. } => {
                if let Some(metrics) = &self.0 {
                    metrics.handshaken(Direction::Outbound, error.is_none(), *took);
                }
            }
            Event::PodReleased { pod, lost: false } => tracing::info!(uid = %pod, "pod released"),
            Event::PodReleased { pod, lost: true } => {
                tracing::warn!(uid = %pod, "pod lost: its namespace has no name any more; if it lives, its TCP is refused until it has one");
            }
            Event::NamespacesUnseen { why } => tracing::warn!(why, "namespaces cannot be looked for: pods stay as they are"),
            Event::NamespacesSeen => tracing::info!("namespaces are looked for again"),
            _ => {}
        }
    }
}

fn to_the_millisecond(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seconds = rfc3339(since.as_secs());
    format!("{}.{:03}Z", seconds.trim_end_matches('Z'), since.subsec_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_that_were_given_up_are_counted() {
        let metrics = Arc::new(Metrics::default());
        let peer = "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap();
        for streams in [1, 2] {
            Told(Some(metrics.clone())).observe(&Event::StreamsGivenUp { peer: &peer, streams });
        }
        let text = metrics.text().unwrap();
        assert!(text.contains("\nambient_streams_given_up_total 3\n"), "{text}");
    }
}

//! Istio's counts of what comes on streams from a control plane.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use ambient_control::StreamCounts;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter},
    registry::Unit,
};

/// Writes them into a page, once there are any.
#[derive(Debug)]
pub(super) struct Streams(pub(super) Arc<OnceLock<StreamCounts>>);

impl Collector for Streams {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(streams) = self.0.get() else { return Ok(()) };
        let messages = streams.messages();
        if !messages.is_empty() {
            let help = "Messages that have come from the control plane (unstable)";
            let mut family = encoder.encode_descriptor("istio_xds_message", help, None, MetricType::Counter)?;
            for (url, of) in &messages {
                ConstCounter::new(of.count).encode(family.encode_family(&[("url", *url)])?)?;
            }
            let help = "Bytes of the resources that have come from the control plane (unstable)";
            let mut family = encoder.encode_descriptor("istio_xds_message", help, Some(&Unit::Bytes), MetricType::Counter)?;
            for (url, of) in &messages {
                ConstCounter::new(of.bytes).encode(family.encode_family(&[("url", *url)])?)?;
            }
        }
        let ends = streams.ends();
        if !ends.is_empty() {
            let help = "Streams from the control plane that have ended, by how they have (unstable)";
            let mut family = encoder.encode_descriptor("istio_xds_connection_terminations", help, None, MetricType::Counter)?;
            for (how, count) in ends {
                ConstCounter::new(count).encode(family.encode_family(&[("reason", how.as_str())])?)?;
            }
        }
        Ok(())
    }
}

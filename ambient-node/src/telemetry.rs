//! What the node tells of its connections: a line in the access log and counts under labels, both from one value.

mod flow;
mod labels;
pub mod log;
mod metrics;

pub(crate) use flow::{Account, Direction, Ends, Flag, Outcome, refused_early};
pub(crate) use metrics::Metrics;

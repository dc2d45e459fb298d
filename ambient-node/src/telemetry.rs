//! What the node tells of its connections: a line in the access log and counts under labels, both from one value.

mod dns;
mod ends;
mod flow;
mod labels;
mod live;
pub mod log;
mod lookups;
mod metrics;
mod reason;
mod runtimes;
mod series;
mod streams;

pub(crate) use dns::DnsSource;
pub(crate) use ends::{Closer, Direction, Ends, Flag, Outcome};
pub(crate) use flow::{Account, refused_early};
pub(crate) use live::Live;
pub(crate) use metrics::{Metrics, OpenSocket};
pub(crate) use reason::Reason;
pub(crate) use runtimes::Counted;

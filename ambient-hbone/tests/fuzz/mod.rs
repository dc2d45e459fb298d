//! What the fuzz targets run, and what the replay of their corpora runs too. Each takes any bytes, and panics where what it
//! promises does not hold.

mod endpoint;
mod headers;
mod hpack;
mod input;
mod pair;
mod wire;

pub(crate) use endpoint::{client, server};
pub(crate) use headers::headers;
pub(crate) use hpack::hpack;
pub(crate) use pair::pair;

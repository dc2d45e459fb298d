//! The pure half: values in, values out, without I/O, clock or runtime.

pub(crate) mod choice;
pub(crate) mod connect;
pub(crate) mod liveness;

//! The pure half: values in, values out, without I/O, clock or runtime.

pub(crate) mod choice;
pub(crate) mod code;
pub(crate) mod connect;
pub(crate) mod engine;
pub(crate) mod frame;
pub(crate) mod hpack;
pub(crate) mod lifetime;
pub(crate) mod liveness;
pub(crate) mod rota;

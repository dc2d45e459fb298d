//! The engine, end against end and against its peers.

//! The ports of the mesh's data plane, as Istio's ambient mode fixes them.

/// HBONE: HTTP/2 CONNECT over mutual TLS, from other nodes.
pub const HBONE: u16 = 15008;
/// Captured outbound connections of a pod.
pub const OUTBOUND: u16 = 15001;
/// Captured inbound connections that did not come by HBONE.
pub const INBOUND_PLAINTEXT: u16 = 15006;
/// Captured DNS queries of a pod, UDP and TCP.
pub const DNS: u16 = 15053;
/// Admin pages, on the node's loopback.
pub const ADMIN: u16 = 15000;
/// Prometheus metrics.
pub const METRICS: u16 = 15020;
/// Readiness.
pub const READINESS: u16 = 15021;

/// Whether a port in a pod's namespace is the proxy's own, so that nobody may be connected to it through the proxy.
pub fn is_proxys_own(port: u16) -> bool {
    matches!(port, HBONE | OUTBOUND | INBOUND_PLAINTEXT | DNS)
}

//! What tests know of Istio's chart for its node proxy.

/// The environment that it gives to its container.
pub(crate) const ENVIRONMENT: [(&str, &str); 14] = [
    ("CA_ADDRESS", "istiod.istio-system.svc:15012"),
    ("XDS_ADDRESS", "istiod.istio-system.svc:15012"),
    ("RUST_LOG", "info"),
    ("LOG_FORMAT", "json"),
    ("RUST_BACKTRACE", "1"),
    ("ISTIO_META_CLUSTER_ID", "cluster-1"),
    ("INPOD_ENABLED", "true"),
    ("TERMINATION_GRACE_PERIOD_SECONDS", "30"),
    ("POD_NAME", "ztunnel-x"),
    ("POD_NAMESPACE", "istio-system"),
    ("NODE_NAME", "node-7"),
    ("INSTANCE_IP", "10.0.0.7"),
    ("SERVICE_ACCOUNT", "ztunnel"),
    ("ZTUNNEL_CPU_LIMIT", "4"),
];

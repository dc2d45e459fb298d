//! The messages of Istio's, xDS's and SPIFFE's protocols, made from `proto/` by `codegen/`; CI sees that they are fresh.

#![allow(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    clippy::or_fun_call,
    unused_qualifications,
    unreachable_pub,
    unnameable_types,
    missing_debug_implementations,
    reason = "generated"
)]

#[cfg(feature = "istiod")]
pub(crate) mod ambient {
    pub(crate) mod control {
        pub(crate) mod v1 {
            include!("wire/ambient.control.v1.rs");
        }
    }
}

#[cfg(feature = "istiod")]
pub(crate) mod google {
    pub(crate) mod rpc {
        include!("wire/google.rpc.rs");
    }
}

#[cfg(feature = "istiod")]
pub(crate) mod envoy {
    pub(crate) mod config {
        pub(crate) mod core {
            pub(crate) mod v3 {
                include!("wire/envoy.config.core.v3.rs");
            }
        }
    }
    pub(crate) mod service {
        pub(crate) mod discovery {
            pub(crate) mod v3 {
                include!("wire/envoy.service.discovery.v3.rs");
            }
        }
    }
}

#[cfg(feature = "istiod")]
pub(crate) mod istio {
    pub(crate) mod workload {
        include!("wire/istio.workload.rs");
    }
    pub(crate) mod security {
        include!("wire/istio.security.rs");
    }
    pub(crate) mod v1 {
        pub(crate) mod auth {
            include!("wire/istio.v1.auth.rs");
        }
    }
}

#[cfg(feature = "spiffe")]
pub(crate) mod spiffe {
    pub(crate) mod workload {
        include!("wire/spiffe.workload.rs");
    }
}

#[cfg(feature = "spiffe")]
pub(crate) mod spire {
    pub(crate) mod api {
        pub(crate) mod types {
            include!("wire/spire.api.types.rs");
        }
        pub(crate) mod agent {
            pub(crate) mod delegatedidentity {
                pub(crate) mod v1 {
                    include!("wire/spire.api.agent.delegatedidentity.v1.rs");
                }
            }
        }
    }
}

//! The nouns of an ambient service mesh, and where a connection goes.
//!
//! This crate does no I/O, reads no clock, spawns nothing, logs nothing and knows neither protobuf nor YAML: it holds
//! values and pure functions over them. The one entry type is [`Mesh`], an immutable snapshot of workloads and
//! services; [`Mesh::apply`] makes the next one, and [`route`] says where a connection goes in it.
//!
//! It is checked on Linux and on `wasm32-unknown-unknown`, and needs Rust 1.89 or later.
//!
//! ```
//! use std::sync::Arc;
//! use ambient_core::{mesh::Update, route, Mesh, NetworkAddress, TunnelProtocol, Workload};
//!
//! let mut client = Workload::new("cluster//Pod/shop/cart-0", "shop", "cart-0");
//! client.addresses = vec!["10.0.1.2".parse()?];
//! let mut server = Workload::new("cluster//Pod/shop/stock-0", "shop", "stock-0");
//! server.addresses = vec!["10.0.2.2".parse()?];
//! server.service_account = "stock".into();
//! server.tunnel = TunnelProtocol::Hbone; // its node has said that it is captured
//!
//! let mesh = Mesh::default().apply([Update::Workload(Arc::new(client)), Update::Workload(Arc::new(server))]);
//! let source = mesh.workload_by_address(&NetworkAddress::local("10.0.1.2".parse()?)).expect("just added");
//!
//! let route = route::outbound(&mesh, &route::Outbound { source, destination: "10.0.2.2:8080".parse()? }, &route::Hints::default());
//! let route::Route::Go(route::Plan::Tunnel(tunnel)) = route else { panic!("captured peers are reached by tunnel") };
//! assert_eq!(tunnel.peer, "10.0.2.2:15008".parse()?);
//! assert_eq!(tunnel.authority.to_string(), "10.0.2.2:8080");
//! assert_eq!(tunnel.accepted[0].to_string(), "spiffe://cluster.local/ns/shop/sa/stock");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

pub mod credential;
pub mod headers;
pub mod mesh;
pub mod observe;
pub mod ports;
pub mod proxy_header;
pub mod route;

mod address;
mod capture;
mod identity;
mod service;
pub mod shards;
mod workload;

pub use address::{Authority, AuthorityError, Network, NetworkAddress, NetworkAddressError, NetworkBlock};
pub use capture::{Capture, CaptureFault, InterfaceName, InterfaceNameError};
pub use credential::{Credential, Credentials, PrivateKey, TrustBundles};
pub use identity::{Identity, IdentityError, SpiffeId, SpiffeIdError, TrustDomain, TrustDomainError};
pub use mesh::Mesh;
pub use observe::{Observer, Origin};
pub use service::{
    BalancerMode, Endpoint, Endpoints, GatewayAddress, GatewayTarget, HealthPolicy, IpFamilies, LoadBalancer, NamespacedHostname, PortMap,
    Scope, Service, ServicePort, Visibility, WeightedWaypoint,
};
pub use shards::Shards;
pub use workload::{
    ApplicationProtocol, ApplicationTunnel, Health, Membership, NetworkMode, PodUid, PolicyKey, TunnelProtocol, Workload, WorkloadKind,
    WorkloadUid,
};

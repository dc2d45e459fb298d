//! The resources as serde types: everything optional that may be absent, nothing judged yet.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Deserializer, de::IgnoredAny};

use super::Labels;

/// Fields that are not known, by name; what they hold is not kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unknown(Box<[Box<str>]>);

impl Unknown {
    /// Their names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|name| &**name)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'de> Deserialize<'de> for Unknown {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let fields = BTreeMap::<Box<str>, IgnoredAny>::deserialize(deserializer)?;
        Ok(Self(fields.into_keys().collect()))
    }
}

/// What every resource begins with, whatever else it holds.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Envelope {
    /// Group and version.
    pub api_version: String,
    /// The kind.
    pub kind: String,
    /// Name, namespace and the like.
    pub metadata: Metadata,
}

/// The part of a resource's metadata that is read.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    /// The name.
    pub name: String,
    /// The namespace; `default` where absent, as `kubectl` takes it.
    pub namespace: Option<String>,
    /// Labels.
    pub labels: Option<Labels>,
    /// Annotations; `istio.io/dry-run` is one.
    pub annotations: Option<BTreeMap<String, String>>,
    /// When the server made it, in RFC 3339; the oldest of several PeerAuthentications counts.
    pub creation_timestamp: Option<String>,
    /// Other fields, those among them that every resource may have.
    #[serde(flatten)]
    pub other: Unknown,
}

impl Metadata {
    /// The namespace, `default` where none is written.
    pub fn namespace(&self) -> Arc<str> {
        let written = self.namespace.as_deref().filter(|namespace| !namespace.is_empty());
        written.unwrap_or("default").into()
    }

    /// The names of fields that no resource has.
    pub fn unknown(&self) -> impl Iterator<Item = &str> {
        self.other.names().filter(|name| !OF_EVERY_RESOURCE.contains(name))
    }
}

/// The fields of a resource's metadata that mean nothing here.
const OF_EVERY_RESOURCE: [&str; 11] = [
    "clusterName",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "managedFields",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
];

/// An AuthorizationPolicy of `security.istio.io/v1` or `v1beta1`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AuthorizationPolicy {
    /// Group and version.
    pub api_version: String,
    /// `AuthorizationPolicy`.
    pub kind: String,
    /// Name, namespace, annotations.
    pub metadata: Metadata,
    /// What it says; without it, an ALLOW policy that admits nobody.
    pub spec: Option<AuthorizationSpec>,
    /// What a control plane wrote about it: not read.
    pub status: Option<IgnoredAny>,
    /// Fields that are not known.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// The `spec` of an AuthorizationPolicy.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AuthorizationSpec {
    /// The workloads it applies to; absent, all of its namespace.
    pub selector: Option<Selector>,
    /// The gateway or service it is attached to: then it is not for L4.
    pub target_ref: Option<IgnoredAny>,
    /// The gateways or services it is attached to: then it is not for L4.
    pub target_refs: Option<Vec<IgnoredAny>>,
    /// ALLOW (also when absent), DENY, AUDIT or CUSTOM.
    pub action: Option<String>,
    /// The provider of a CUSTOM policy: not read.
    pub provider: Option<IgnoredAny>,
    /// Any of these must match.
    pub rules: Option<Vec<AuthorizationRule>>,
    /// Fields that are not known.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// A rule of an AuthorizationPolicy: one of its `rules`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct AuthorizationRule {
    /// Any of these must match the peer; absent, every peer does.
    pub from: Option<Vec<RuleFrom>>,
    /// Any of these must match what is asked for; absent, everything does.
    pub to: Option<Vec<RuleTo>>,
    /// All of these must hold.
    pub when: Option<Vec<Condition>>,
    /// Fields that are not known.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// A peer that a rule is for: one of its `from`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct RuleFrom {
    /// The peer.
    pub source: Option<Source>,
    /// Fields that are not known.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// What a rule is for: one of its `to`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct RuleTo {
    /// What is asked for.
    pub operation: Option<Operation>,
    /// Fields that are not known.
    #[serde(flatten)]
    pub unknown: Unknown,
}

macro_rules! string_lists {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: Option<Vec<String>>,)*
            /// Fields that are not known.
            #[serde(flatten)]
            pub unknown: Unknown,
        }

        impl $name {
            /// Whether no field of it holds a value.
            pub fn is_empty(&self) -> bool {
                self.unknown.is_empty() $(&& self.$field.as_deref().unwrap_or_default().is_empty())*
            }
        }
    };
}

string_lists! {
    /// A peer, by all the fields that are set.
    Source {
        /// Identities without `spiffe://`.
        principals,
        /// None of these may be: the negative of `principals`.
        not_principals,
        /// Identities of JSON web tokens: HTTP.
        request_principals,
        /// None of these may be: the negative of `requestPrincipals`.
        not_request_principals,
        /// Namespaces of identities.
        namespaces,
        /// None of these may be: the negative of `namespaces`.
        not_namespaces,
        /// `NAMESPACE/ACCOUNT`, or `ACCOUNT` of the policy's namespace.
        service_accounts,
        /// None of these may be: the negative of `serviceAccounts`.
        not_service_accounts,
        /// Trust domains of identities.
        trust_domains,
        /// None of these may be: the negative of `trustDomains`.
        not_trust_domains,
        /// Addresses or CIDR blocks that the connection comes from.
        ip_blocks,
        /// None of these may be: the negative of `ipBlocks`.
        not_ip_blocks,
        /// Addresses that a proxy before tells of in a header: HTTP.
        remote_ip_blocks,
        /// None of these may be: the negative of `remoteIpBlocks`.
        not_remote_ip_blocks,
    }
}

string_lists! {
    /// What is asked for, by all the fields that are set.
    Operation {
        /// Hosts: HTTP.
        hosts,
        /// None of these may be: the negative of `hosts`.
        not_hosts,
        /// Ports of the pod.
        ports,
        /// None of these may be: the negative of `ports`.
        not_ports,
        /// Methods: HTTP.
        methods,
        /// None of these may be: the negative of `methods`.
        not_methods,
        /// Paths: HTTP.
        paths,
        /// None of these may be: the negative of `paths`.
        not_paths,
    }
}

/// What must hold beside that: one of a rule's `when`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Condition {
    /// What is compared, such as `source.ip`.
    pub key: String,
    /// One of these must hit.
    pub values: Option<Vec<String>>,
    /// None of these may hit.
    pub not_values: Option<Vec<String>>,
    /// Fields that are not known.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// A PeerAuthentication of `security.istio.io/v1` or `v1beta1`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PeerAuthentication {
    /// Group and version.
    pub api_version: String,
    /// `PeerAuthentication`.
    pub kind: String,
    /// Name, namespace, and age.
    pub metadata: Metadata,
    /// What it says.
    pub spec: Option<PeerAuthenticationSpec>,
    /// What a control plane wrote about it: not read.
    pub status: Option<IgnoredAny>,
    /// Fields that are not known.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// The `spec` of a PeerAuthentication.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PeerAuthenticationSpec {
    /// The workloads it applies to; absent, all of its namespace.
    pub selector: Option<Selector>,
    /// What holds for all ports.
    pub mtls: Option<MutualTls>,
    /// What holds for a port of the pod instead.
    pub port_level_mtls: Option<BTreeMap<String, MutualTls>>,
    /// Fields that are not known.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// Whether peers must prove who they are.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct MutualTls {
    /// UNSET (also when absent), DISABLE, PERMISSIVE or STRICT.
    pub mode: Option<String>,
    /// Fields that are not known.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// The workloads that a resource applies to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Selector {
    /// Labels that a workload must have, all of them. Where none are written it is the same as if there were none, but for
    /// istiod: see [`Settings::istio_exact`](super::Settings::istio_exact).
    pub match_labels: Option<Labels>,
    /// Fields that are not known.
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl Selector {
    /// Whether a workload with these labels is selected; without labels of its own a selector selects every workload.
    pub fn selects(&self, labels: &Labels) -> bool {
        self.labels().iter().all(|(key, value)| labels.get(key) == Some(value))
    }

    /// Labels that a workload must have.
    pub fn labels(&self) -> &Labels {
        static NONE: Labels = Labels::new();
        self.match_labels.as_ref().unwrap_or(&NONE)
    }
}

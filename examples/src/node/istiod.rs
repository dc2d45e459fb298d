//! Istiod, or `ambient control`, as where state and certificates come from: the flags, by the names of Istio's variables.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ambient_control::{
    Issuer, Source,
    istiod::{
        Asker, Certificates, CertificatesConfig, ConnectError, Endpoint, EndpointError, Files, KeepNode, Membership, MembershipConfig,
        MemoryConfig, MemoryError, Metadata, Reports, Roots, State, StateConfig, Token,
    },
};
use ambient_core::TrustDomain;
use ambient_node::{Config, ControlPlane, NodeKeys, OwnPod, Sources, Vouchers};
use anyhow::Context as _;

use super::settings::{self, Setting};
use crate::cluster_local::ClusterLocal;

/// Flags, each of which can come from the environment.
#[derive(Debug, clap::Args)]
pub(super) struct Istiod {
    /// `ambient control`, such as HOST:15012: state and certificates come from it, and captures are reported to it. In the
    /// place of --manifests and --ca-dir; if another source of certificates is named, certificates come from that. The token
    /// is exchanged for a certificate that names this node; --xds-root-ca says who vouches for all of it.
    #[arg(long, env = "AMBIENT_CONTROL", value_name = "ADDRESS", value_parser = or_none(Endpoint::check_address))]
    control: Option<String>,
    /// Istiod, where state comes from, such as istiod.istio-system.svc:15012. In the place of --manifests. Istiod tells no
    /// UIDs of pods: without --zds no pod is captured.
    #[arg(long, env = "XDS_ADDRESS", value_name = "ADDRESS", value_parser = or_none(Endpoint::check_address))]
    xds_address: Option<String>,
    /// Istiod, where certificates come from. In the place of --ca-dir.
    #[arg(long, env = "CA_ADDRESS", value_name = "ADDRESS", value_parser = or_none(Endpoint::check_address))]
    ca_address: Option<String>,
    /// Who vouches for the source of state: a PEM file, SYSTEM, or PEM itself.
    #[arg(long, env = "XDS_ROOT_CA", value_name = "FILE", default_value = ROOT)]
    xds_root_ca: String,
    /// Who vouches for the authority: a PEM file, SYSTEM, or PEM itself.
    #[arg(long, env = "CA_ROOT_CA", value_name = "FILE", default_value = ROOT)]
    ca_root_ca: String,
    /// Another name that the certificate of the source of state may bear.
    #[arg(long, env = "ALT_XDS_HOSTNAME", value_name = "HOST", value_parser = or_none(Endpoint::check_name))]
    alt_xds_hostname: Option<String>,
    /// Another name that the certificate of the authority may bear.
    #[arg(long, env = "ALT_CA_HOSTNAME", value_name = "HOST", value_parser = or_none(Endpoint::check_name))]
    alt_ca_hostname: Option<String>,
    /// What is shown to both: a file with a token, read for each call, or a token. By default, or if this is empty, the file
    /// where Kubernetes projects it, if it is there.
    #[arg(long, env = "AUTH_TOKEN", value_name = "FILE")]
    auth_token: Option<String>,
    /// The cluster that this node belongs to.
    #[arg(long, env = "ISTIO_META_CLUSTER_ID", value_name = "NAME", default_value = "Kubernetes", value_parser = settings::word)]
    cluster_id: Arc<str>,
    /// What istiod is told of this node besides the variables that begin with ISTIO_META_ or ISTIO_METAJSON_, which count before
    /// it: a YAML map of names and texts.
    #[arg(long, env = "AMBIENT_NODE_METADATA", value_name = "MAP", value_parser = metadata)]
    node_metadata: Option<Texts>,
    /// Whether workloads and services are asked for as connections need them, instead of all at once: for a node that needs
    /// only a small part of a large mesh. A connection to an address that was not asked for yet waits for the answer. The DNS
    /// proxy knows a name outside the cluster's domain only in the client's own namespace and the preferred one, and knows no
    /// wildcards: what a ServiceEntry elsewhere says of such a name does not count.
    #[arg(long, env = "XDS_ON_DEMAND", value_name = "BOOL", default_value = "false", action = clap::ArgAction::Set)]
    xds_on_demand: bool,
    /// A directory of this node's own where what was said last is kept, for a restart while istiod, `ambient control` or SPIRE is away:
    /// state, policies and whom to trust.
    #[arg(long, env = "AMBIENT_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// How long that is used while they stay away; after that new connections are refused.
    #[arg(long, env = "AMBIENT_STATE_LONGEST", value_name = "TIME", default_value = "24h", value_parser = super::settings::time)]
    state_longest: Duration,
    /// What was read of the files that these name.
    #[arg(skip)]
    files: Files,
    /// What has named the directory.
    #[arg(skip)]
    pub(super) state_dir_by: String,
    /// Whether it is spoken to by X25519MLKEM768 alone.
    #[arg(skip)]
    pub(super) post_quantum_only: bool,
}

impl Istiod {
    /// Whether state comes from there.
    pub(super) fn gives_state(&self) -> bool {
        self.state_address().is_some()
    }

    /// Whether an authority is named that gives certificates and nothing else.
    pub(super) fn names_an_authority(&self) -> bool {
        named(&self.ca_address).is_some()
    }

    /// Whether certificates come from there, unless somebody else is named.
    pub(super) fn gives_certificates(&self) -> bool {
        self.certificate_address().is_some()
    }

    /// The cluster that this node belongs to.
    pub(super) fn cluster(&self) -> Arc<str> {
        self.cluster_id.clone()
    }

    /// Whether `ambient control` alone is named, if it is, and no other source beside it, wherever each is named: whatever stands in
    /// a file, a flag is not to be without effect.
    ///
    /// # Errors
    /// When another is named too; `others` are those which are, besides istiod's.
    pub(super) fn has_control_alone(&self, settings: &[Setting], others: &[(&str, bool)]) -> anyhow::Result<()> {
        let istiods = [
            ("xds-address", named(&self.xds_address).is_some()),
            ("ca-address", named(&self.ca_address).is_some()),
        ];
        let other = istiods.iter().chain(others).find(|(_, is_named)| *is_named);
        let (Some(_), Some((other, _))) = (named(&self.control), other) else {
            return Ok(());
        };
        anyhow::bail!(
            "state and certificates come from one place, and `ambient control` gives both: leave out {}, or {}",
            settings::by(settings, "control"),
            settings::by(settings, other)
        )
    }

    fn state_address(&self) -> Option<&str> {
        named(&self.control).or_else(|| named(&self.xds_address))
    }

    fn certificate_address(&self) -> Option<&str> {
        named(&self.control).or_else(|| named(&self.ca_address))
    }

    /// The node's place among those of `ambient control`, where it lives on that.
    pub(super) fn membership(&self, config: &Config) -> anyhow::Result<Option<Arc<Membership>>> {
        let Some(address) = named(&self.control) else { return Ok(None) };
        let keys = NodeKeys::open(&config.keys, &config.node)?;
        let membership = MembershipConfig {
            keep: keys.map(|keys| -> Box<dyn KeepNode> { Box::new(keys) }),
            ..MembershipConfig::new(self.of_state(address, None)?, &config.node)
        };
        Ok(Some(Arc::new(Membership::start(membership)?)))
    }

    /// Where state and certificates come from, as far as it is this that says so; without secrets.
    pub(super) fn sources(&self) -> Sources {
        let of = |address: Option<&str>, roots: &str, other_name: Option<&String>, headers: &str| {
            let address = address?;
            let has_scheme = address.contains("://");
            Some(ControlPlane {
                address: if has_scheme {
                    address.to_owned()
                } else {
                    format!("https://{address}")
                },
                roots: match roots_of(roots) {
                    Roots::File(path) => Vouchers::File(path),
                    Roots::System => Vouchers::System,
                    Roots::Pem(_) => Vouchers::Given,
                },
                other_name: other_name.cloned(),
                headers: prefixed(headers).into_iter().map(|(name, _)| name).collect(),
            })
        };
        let state = of(
            self.state_address(),
            &self.xds_root_ca,
            self.alt_xds_hostname.as_ref(),
            STATE_HEADERS,
        );
        let certificates = match named(&self.control) {
            Some(_) => state.clone(),
            None => of(
                self.certificate_address(),
                &self.ca_root_ca,
                self.alt_ca_hostname.as_ref(),
                CA_HEADERS,
            ),
        };
        Sources {
            state,
            certificates,
            on_demand: self.xds_on_demand,
            metadata: self
                .node_metadata
                .clone()
                .unwrap_or_default()
                .into_iter()
                .chain(prefixed(TEXTS))
                .collect(),
            ..Sources::default()
        }
    }

    /// How the source of state is reached.
    fn of_state(&self, address: &str, membership: Option<&Arc<Membership>>) -> anyhow::Result<Endpoint> {
        let mut endpoint = self.endpoint(address, &self.xds_root_ca, STATE_HEADERS)?;
        endpoint.other_name.clone_from(&self.alt_xds_hostname);
        endpoint.membership = membership.cloned();
        Ok(endpoint)
    }

    /// The source of state.
    pub(super) fn state(
        &self,
        node: &str,
        policies: ambient_authz::wire::Settings,
        membership: Option<&Arc<Membership>>,
        trust: bool,
    ) -> anyhow::Result<Box<dyn Source>> {
        let address = self.state_address().context("--xds-address names no source of state")?;
        let endpoint = self.of_state(address, membership)?;
        let variable = |name: &str| std::env::var_os(name).unwrap_or_default().to_string_lossy().into_owned();
        let asker = Asker {
            instance_ip: instance_ip(&variable("INSTANCE_IP"))?,
            pod: name_or_none("POD_NAME", variable("POD_NAME"), settings::object_name)?,
            namespace: name_or_none("POD_NAMESPACE", variable("POD_NAMESPACE"), settings::namespace)?,
            node: node.into(),
            metadata: all_metadata(self.node_metadata.clone().unwrap_or_default(), prefixed(TEXTS), prefixed(JSON))?,
        };
        let memory = self.memory();
        let config = StateConfig {
            on_demand: self.xds_on_demand,
            trust,
            policies,
            memory,
            ..StateConfig::new(endpoint, asker)
        };
        Ok(Box::new(State::connect(config).map_err(|error| self.why(error))?))
    }

    /// Says what names are not known where state is asked for as it is needed.
    pub(super) fn tell_of_names(&self, captures_dns: bool) {
        if self.xds_on_demand && captures_dns && self.gives_state() {
            tracing::warn!(
                "--xds-on-demand: names of ServiceEntries in other namespaces, and wildcards, are not known to the DNS proxy, so that what calls \
                 them goes around their waypoints: have all state come, or keep each entry in the namespace of its clients"
            );
        }
    }

    /// Whether a directory to remember in is named, and nobody of whom anything here is kept there.
    pub(super) fn remembers_nothing(&self) -> bool {
        self.state_dir.is_some() && !self.gives_state() && !self.gives_certificates()
    }

    /// Where what was said last is kept for a restart, of whoever says it.
    pub(super) fn memory(&self) -> Option<MemoryConfig> {
        let config = |directory| MemoryConfig {
            longest: self.state_longest,
            ..MemoryConfig::new(directory)
        };
        self.state_dir.as_ref().map(config)
    }

    fn why(&self, error: ConnectError) -> anyhow::Error {
        match error {
            ConnectError::Memory(error) => self.not_kept(error),
            other => other.into(),
        }
    }

    /// Why nothing can be kept for a restart, with the setting that has it so.
    pub(super) fn not_kept(&self, error: MemoryError) -> anyhow::Error {
        let (directory, by) = (
            self.state_dir.as_deref().unwrap_or_else(|| Path::new("")).display(),
            &self.state_dir_by,
        );
        let told = format!("nothing can be kept for a restart in {directory}, which {by} names (name another directory, or none)");
        anyhow::Error::new(error).context(told)
    }

    /// The source of certificates.
    pub(super) fn certificates(&self, ttl: Duration, membership: Option<&Arc<Membership>>) -> anyhow::Result<Arc<dyn Issuer>> {
        let address = self.certificate_address().context("--ca-address names no authority")?;
        let endpoint = match membership {
            Some(_) => self.of_state(address, membership)?,
            None => {
                let mut endpoint = self.endpoint(address, &self.ca_root_ca, CA_HEADERS)?;
                endpoint.other_name.clone_from(&self.alt_ca_hostname);
                endpoint
            }
        };
        let config = CertificatesConfig {
            memory: self.state_dir.clone(),
            ttl,
            ..CertificatesConfig::new(endpoint)
        };
        Ok(Arc::new(Certificates::new(config).map_err(|error| self.why(error))?))
    }

    /// Where captures are told; `None` where nobody keeps them.
    pub(super) fn reports(&self, membership: Option<&Arc<Membership>>) -> anyhow::Result<Option<Reports>> {
        let Some(address) = named(&self.control) else { return Ok(None) };
        Ok(Some(Reports::new(self.of_state(address, membership)?)?))
    }

    fn endpoint(&self, address: &str, roots: &str, headers: &str) -> anyhow::Result<Endpoint> {
        // An empty text, as an empty variable gives it, names none.
        let token = match self.auth_token.as_deref().filter(|text| !text.is_empty()) {
            Some(text) if Path::new(text).exists() => Some(Token::File(text.into())),
            // What looks like a path is meant as one, and may be there later.
            Some(text) if text.contains('/') => Some(Token::File(text.into())),
            Some(text) => {
                // Nothing of it is told, as it may be a secret.
                let is_token = !text.trim().is_empty() && text.trim().bytes().all(|byte| byte.is_ascii_graphic());
                anyhow::ensure!(
                    is_token,
                    "--auth-token (or AUTH_TOKEN) is neither a file that is there nor a token, which has visible ASCII characters alone"
                );
                Some(Token::Literal(text.to_owned()))
            }
            None => Path::new(TOKEN).exists().then(|| Token::File(TOKEN.into())),
        };
        let provider = match self.post_quantum_only {
            true => ambient_tls::post_quantum_provider(),
            false => ambient_tls::provider(),
        };
        let endpoint = Endpoint {
            roots: roots_of(roots),
            token,
            cluster: self.cluster_id.to_string(),
            headers: prefixed(headers),
            files: self.files.clone(),
            ..Endpoint::new(address, Arc::new(provider))
        };
        endpoint.check().map_err(|error| match error {
            EndpointError::Header { ref name } => {
                let variable = format!("the environment variable {headers}{name}");
                anyhow::Error::new(error).context(variable)
            }
            other => other.into(),
        })?;
        Ok(endpoint)
    }
}

/// An empty address says that there is none: ztunnel's way to switch it off.
fn named(address: &Option<String>) -> Option<&str> {
    address.as_deref().filter(|address| !address.is_empty())
}

/// A text that is as it must be; an empty one names nothing.
fn or_none(check: fn(&str) -> Result<(), EndpointError>) -> impl Fn(&str) -> Result<String, EndpointError> + Clone + Send + Sync + 'static {
    move |text| {
        if !text.is_empty() {
            check(text)?;
        }
        Ok(text.to_owned())
    }
}

/// The address of the process's own pod, as Istio's charts give it; where nobody says it, one that ztunnel gives too.
fn instance_ip(text: &str) -> anyhow::Result<String> {
    match text {
        "" => Ok("1.1.1.1".to_owned()),
        text => {
            let wanted = || format!("the environment variable INSTANCE_IP: an IP address is wanted, and not {text:?}");
            text.parse::<IpAddr>().map(|ip| ip.to_string()).with_context(wanted)
        }
    }
}

/// Who vouches for a control plane.
fn roots_of(text: &str) -> Roots {
    match text {
        "SYSTEM" => Roots::System,
        pem if pem.contains("-----BEGIN") => Roots::Pem(pem.into()),
        file => Roots::File(file.into()),
    }
}

/// Begin the names of variables that are headers of calls.
const STATE_HEADERS: &str = "XDS_HEADER_";
const CA_HEADERS: &str = "CA_HEADER_";
/// Begins the names of variables that are metadata.
const TEXTS: &str = "ISTIO_META_";
/// Begins the names of variables that are metadata in JSON.
const JSON: &str = "ISTIO_METAJSON_";

/// What is told of a node: of a name that is said twice the one in JSON counts, then the variable's.
fn all_metadata(said: Texts, variables: Vec<(String, String)>, json: Vec<(String, String)>) -> anyhow::Result<BTreeMap<String, Metadata>> {
    let texts = said.into_iter().chain(variables);
    let mut all: BTreeMap<_, _> = texts.map(|(name, text)| (name, Metadata::from(text))).collect();
    for (name, text) in json {
        let value = serde_json::from_str(&text).with_context(|| format!("the environment variable {JSON}{name}: no JSON"))?;
        all.insert(name, of_json(value));
    }
    Ok(all)
}

fn of_json(value: serde_json::Value) -> Metadata {
    use serde_json::Value;
    match value {
        Value::Null => Metadata::Null,
        Value::Bool(is) => Metadata::Bool(is),
        // As doubles are all numbers of the wire.
        Value::Number(number) => number.as_f64().map_or(Metadata::Null, Metadata::Number),
        Value::String(text) => Metadata::Text(text),
        Value::Array(list) => Metadata::List(list.into_iter().map(of_json).collect()),
        Value::Object(map) => Metadata::Map(map.into_iter().map(|(name, value)| (name, of_json(value))).collect()),
    }
}

/// Names and texts.
type Texts = BTreeMap<String, String>;

/// Reads what is called so in Kubernetes.
type Read = fn(&str) -> Result<Arc<str>, String>;

/// What is told of a variable that names something in Kubernetes; an empty one names nothing.
fn name_or_none(variable: &str, value: String, read: Read) -> anyhow::Result<String> {
    if !value.is_empty() {
        name_of(variable, &value, read)?;
    }
    Ok(value)
}

fn name_of(variable: &str, value: &str, read: Read) -> anyhow::Result<Arc<str>> {
    read(value).map_err(|why| anyhow::anyhow!("the environment variable {variable}: {why}"))
}

/// This process's own pod, which is a workload of the mesh like any other where the mesh says so.
///
/// # Errors
/// When all three variables are there, and one names what nothing in Kubernetes can be called.
pub(super) fn own_pod(variables: &[(String, String)]) -> anyhow::Result<Option<OwnPod>> {
    let said = |name: &'static str| {
        let found = variables.iter().find(|(set, value)| set == name && !value.is_empty());
        found.map(|(_, value)| (name, value.as_str()))
    };
    // One alone may be there for something else, whose account need not be one of Kubernetes.
    let (Some(namespace), Some(name), Some(service_account)) = (said("POD_NAMESPACE"), said("POD_NAME"), said("SERVICE_ACCOUNT")) else {
        return Ok(None);
    };
    let read = |(variable, value): (&str, &str), read: Read| name_of(variable, value, read);
    Ok(Some(OwnPod {
        namespace: read(namespace, settings::namespace)?,
        name: read(name, settings::object_name)?,
        service_account: read(service_account, settings::object_name)?,
    }))
}

fn metadata(text: &str) -> Result<Texts, String> {
    // Says what is wrong with it in words of this program; what is read below are the texts as they stand there.
    settings::map(text).map_err(|error| format!("a YAML map of names and texts is wanted: {error:#}"))?;
    serde_saphyr::from_str(text).map_err(|error| format!("a YAML map of names and texts is wanted: {error}"))
}

/// How policies of the wire are read.
pub(super) fn policies(
    trust_domain: &TrustDomain,
    aliases: &[TrustDomain],
    root_namespace: &Arc<str>,
    cluster_local: Option<ClusterLocal>,
    exact: bool,
) -> ambient_authz::wire::Settings {
    let settings = match exact {
        true => ambient_authz::wire::Settings::istio_exact(),
        false => ambient_authz::wire::Settings::default(),
    };
    ambient_authz::wire::Settings {
        trust_domain: trust_domain.clone(),
        trust_domain_aliases: aliases.to_vec(),
        root_namespace: root_namespace.clone(),
        cluster_local: cluster_local.map_or(settings.cluster_local, ClusterLocal::is_own),
        ..settings
    }
}

/// The variables with a prefix, without it; in the order of their names.
fn prefixed(prefix: &str) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = std::env::vars_os()
        .filter_map(|(name, value)| {
            let name = name.to_str()?.strip_prefix(prefix)?.to_owned();
            Some((name, value.to_str()?.to_owned()))
        })
        .collect();
    found.sort();
    found
}

const ROOT: &str = "./var/run/secrets/istio/root-cert.pem";
const TOKEN: &str = "./var/run/secrets/tokens/istio-token";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_texts_and_json() {
        let said = metadata("{A: of the flag, B: of the flag, C: of the flag}").unwrap();
        let pairs =
            |pairs: &[(&str, &str)]| -> Vec<_> { pairs.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect() };
        let texts = pairs(&[("B", "of a variable"), ("C", "of a variable")]);
        let json = pairs(&[("C", r#"{"app": ["z", 1, true, null]}"#), ("D", "2")]);
        let all = all_metadata(said, texts.clone(), json).unwrap();
        let text = |text: &str| Metadata::Text(text.into());
        assert_eq!((&all["A"], &all["B"]), (&text("of the flag"), &text("of a variable")));
        let list = vec![text("z"), Metadata::Number(1.0), Metadata::Bool(true), Metadata::Null];
        assert_eq!(all["C"], Metadata::Map([("app".to_owned(), Metadata::List(list))].into()));
        assert_eq!(all["D"], Metadata::Number(2.0));
        let error = all_metadata(Texts::new(), texts, pairs(&[("LABELS", "{app: z}")])).unwrap_err();
        let error = format!("{error:#}");
        assert!(
            error.contains("ISTIO_METAJSON_LABELS: no JSON: ") && error.contains("line 1 column 2"),
            "{error}"
        );
    }
}

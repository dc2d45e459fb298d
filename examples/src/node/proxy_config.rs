//! Istio's ProxyConfig: what the mesh's configuration says for every proxy, and before that what a variable says for this one.

use std::{collections::BTreeMap, io};

use anyhow::Context as _;
use serde_json::Value;

use super::settings::{Found, map};
use crate::given;

/// Istio's: YAML with `concurrency`, `proxyAdminPort` and so on.
pub(super) const VARIABLE: &str = "PROXY_CONFIG";
/// Where Istio's charts mount the mesh's configuration, below the directory that its proxies run in.
const MESH: &str = "./etc/istio/config/mesh";
const METADATA: &str = "proxyMetadata";
/// Names of metadata may be written as those of the variables that say the same.
const PREFIX: &str = "ISTIO_META_";

/// Its fields, and where each stands.
#[derive(Debug, Default)]
pub(super) struct ProxyConfig {
    fields: BTreeMap<String, (Value, String)>,
    metadata: BTreeMap<String, (String, String)>,
}

impl ProxyConfig {
    /// Of the variable; and of the mesh's configuration, for a node that is started as Istio starts its own.
    pub(super) fn read(as_istios: bool) -> anyhow::Result<Self> {
        let mesh = match as_istios.then(|| given::text(MESH.as_ref())) {
            None => None,
            Some(Ok(text)) => Some(text),
            Some(Err(error)) if error.kind() == io::ErrorKind::NotFound => None,
            Some(Err(error)) => return Err(error).with_context(|| format!("cannot read the mesh's configuration in {MESH}")),
        };
        Self::of(mesh.as_deref(), std::env::var(VARIABLE).ok().as_deref())
    }

    fn of(mesh: Option<&str>, variable: Option<&str>) -> anyhow::Result<Self> {
        let mut all = Self::default();
        if let Some(text) = mesh {
            let named = || format!("the mesh's configuration in {MESH}");
            let mut fields = map(text).with_context(named)?;
            let of_proxies = fields.remove("defaultConfig").unwrap_or_default();
            all.take(of_proxies, &format!("{MESH}: defaultConfig.")).with_context(named)?;
        }
        if let Some(text) = variable {
            let named = || format!("the environment variable {VARIABLE}");
            let fields = map(text).with_context(named)?;
            all.take(Value::from_iter(fields), &format!("{VARIABLE}: ")).with_context(named)?;
        }
        Ok(all)
    }

    /// In the place of what was said before, field by field.
    fn take(&mut self, said: Value, whose: &str) -> anyhow::Result<()> {
        let fields = match said {
            Value::Null => return Ok(()),
            Value::Object(fields) => fields,
            other => anyhow::bail!("defaultConfig: a map is wanted, and not {other}"),
        };
        for (name, value) in fields.into_iter().filter(|(_, value)| !value.is_null()) {
            let from = format!("{whose}{name}");
            if name != METADATA {
                self.fields.insert(name, (value, from));
                continue;
            }
            let Value::Object(metadata) = value else {
                anyhow::bail!("{METADATA}: a map is wanted, and not {value}");
            };
            for (name, value) in metadata {
                let text = match value {
                    Value::String(text) => text,
                    Value::Number(_) | Value::Bool(_) => value.to_string(),
                    other => anyhow::bail!("{METADATA}: {name}: a text is wanted, and not {other}"),
                };
                let name = name.strip_prefix(PREFIX).unwrap_or(&name).to_owned();
                self.metadata.insert(name, (text, from.clone()));
            }
        }
        Ok(())
    }

    /// Where istiod is, and who says so.
    pub(super) fn address(&self) -> Option<(String, String)> {
        let (address, from) = self.fields.get("discoveryAddress")?;
        Some((address.as_str()?.to_owned(), from.clone()))
    }

    /// What of it has a meaning here.
    pub(super) fn settings(&self) -> anyhow::Result<Vec<Found>> {
        let mut found = Vec::new();
        for (name, (value, from)) in &self.fields {
            let port = || {
                let port = value.as_u64().and_then(|port| u16::try_from(port).ok());
                port.with_context(|| format!("{from}: a port is wanted, and not {value}"))
            };
            let (setting, text) = match &**name {
                "concurrency" => ("workers", value.to_string()),
                "proxyAdminPort" => ("admin", format!("127.0.0.1:{}", port()?)),
                "statsPort" => ("metrics", format!("[::]:{}", port()?)),
                // Of the control plane and of other proxies.
                _ => continue,
            };
            found.push((setting.to_owned(), text, from.clone()));
        }
        if let Some((capture, from)) = self.metadata.get("DNS_CAPTURE") {
            let text = capture.eq_ignore_ascii_case("true").to_string();
            found.push(("dns-capture".to_owned(), text, from.clone()));
        }
        if let Some((_, from)) = self.metadata.values().next_back() {
            let metadata = self.metadata.iter().map(|(name, (text, _))| (name.clone(), text.clone()));
            found.push(("node-metadata".to_owned(), Value::from_iter(metadata).to_string(), from.clone()));
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(mesh: Option<&str>, variable: Option<&str>) -> Result<Vec<String>, String> {
        let found = ProxyConfig::of(mesh, variable).and_then(|config| config.settings());
        let found = found.map_err(|error| format!("{error:#}"))?;
        Ok(found
            .into_iter()
            .map(|(name, value, from)| format!("{name}={value} ({from})"))
            .collect())
    }

    #[test]
    fn what_has_a_meaning_here_is_a_setting() {
        let text = "{concurrency: 3, proxyAdminPort: 15999, discoveryAddress: x, terminationDrainDuration: 5s}";
        assert_eq!(
            settings(None, Some(text)).unwrap(),
            [
                "workers=3 (PROXY_CONFIG: concurrency)",
                "admin=127.0.0.1:15999 (PROXY_CONFIG: proxyAdminPort)"
            ]
        );
        assert_eq!(settings(None, None).unwrap(), [""; 0]);
        assert_eq!(settings(Some(""), Some("")).unwrap(), [""; 0]);
        assert_eq!(
            settings(Some("trustDomain: td\ndefaultConfig:\n"), Some("{concurrency: null}")).unwrap(),
            [""; 0]
        );
    }

    #[test]
    fn the_variable_counts_before_the_mesh_field_by_field() {
        let mesh = "trustDomain: td\ndefaultConfig:\n  discoveryAddress: of-mesh:15012\n  concurrency: 2\n  statsPort: 15888\n  \
                    proxyMetadata: {ISTIO_META_ONE: of mesh, TWO: of mesh, ISTIO_META_DNS_CAPTURE: 'False', COUNT: 3}\n";
        let variable = "{concurrency: 7, proxyMetadata: {ISTIO_META_TWO: of this one}}";
        assert_eq!(
            settings(Some(mesh), Some(variable)).unwrap(),
            [
                "workers=7 (PROXY_CONFIG: concurrency)",
                "metrics=[::]:15888 (./etc/istio/config/mesh: defaultConfig.statsPort)",
                "dns-capture=false (./etc/istio/config/mesh: defaultConfig.proxyMetadata)",
                "node-metadata={\"COUNT\":\"3\",\"DNS_CAPTURE\":\"False\",\"ONE\":\"of mesh\",\"TWO\":\"of this one\"} \
                 (PROXY_CONFIG: proxyMetadata)",
            ]
        );
        let of = |mesh, variable| ProxyConfig::of(mesh, variable).unwrap().address().map(|(address, _)| address);
        assert_eq!(of(Some(mesh), Some(variable)).unwrap(), "of-mesh:15012");
        assert_eq!(of(Some(mesh), Some("{discoveryAddress: x}")).unwrap(), "x");
        assert_eq!(of(None, None), None);
    }

    #[test]
    fn what_cannot_be_meant_is_named_with_where_it_stands() {
        for (mesh, variable, named) in [
            (None, Some("[]"), "PROXY_CONFIG"),
            (None, Some("{proxyAdminPort: 99999}"), "PROXY_CONFIG: proxyAdminPort"),
            (None, Some("{proxyMetadata: [A]}"), "proxyMetadata"),
            (Some("[]"), None, "./etc/istio/config/mesh"),
            (Some("defaultConfig: 5"), None, "defaultConfig"),
            (Some("defaultConfig: {proxyMetadata: {A: [b]}}"), None, "proxyMetadata: A"),
            (Some("defaultConfig: {statsPort: many}"), None, "defaultConfig.statsPort"),
        ] {
            let why = settings(mesh, variable).unwrap_err();
            assert!(why.contains(named), "{why}");
        }
    }
}

//! Which pods are meant to be in the mesh: the rule of `istio-cni`, with its selectors.

use std::sync::Arc;

use ambient_authz::kubernetes::Labels;
use serde::Deserialize;

use super::kinds::absent_if_null;

/// Which pods are meant to be in the mesh. All nodes of a mesh must be told the same.
///
/// A pod is in if one of [`enablement`](Self::enablement) selects it and nothing [excludes](Exclusion) it.
///
/// ```
/// use std::collections::BTreeMap;
/// use ambient_control::objects::{Candidate, Exclusion, Selection};
///
/// let labels = BTreeMap::from([("istio.io/dataplane-mode".to_owned(), "ambient".to_owned())]);
/// let (none, selection) = (BTreeMap::new(), Selection::default());
/// let mut pod = Candidate { namespace_labels: &labels, ..Candidate::new("shop", &none, &none) };
/// assert_eq!(selection.decide(&pod), Ok(()));
/// pod.host_network = true;
/// assert_eq!(selection.decide(&pod), Err(Exclusion::HostNetwork));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// What brings a pod in: any of these. By default the label `istio.io/dataplane-mode: ambient` of the pod, or of its
    /// namespace unless the pod's own says `none`.
    pub enablement: Vec<Enablement>,
    /// Namespaces whose pods are never in the mesh; `kube-system` by default.
    pub excluded_namespaces: Vec<Arc<str>>,
    /// Where a ztunnel would run, which is never in the mesh itself; `istio-system` by default.
    pub system_namespace: Arc<str>,
}

/// Pods by their labels and their namespace's: both must be selected.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Enablement {
    /// By the pod's labels.
    #[serde(default, deserialize_with = "absent_if_null")]
    pub pod_selector: LabelSelector,
    /// By the namespace's.
    #[serde(default, deserialize_with = "absent_if_null")]
    pub namespace_selector: LabelSelector,
}

/// Kubernetes' label selector: everything of it must hold, and an empty one selects all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LabelSelector {
    /// Labels with these values.
    #[serde(default, deserialize_with = "absent_if_null")]
    pub match_labels: Labels,
    /// Whatever else is asked of labels.
    #[serde(default, deserialize_with = "absent_if_null")]
    pub match_expressions: Vec<Requirement>,
}

/// What is asked of one label.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Requirement {
    /// The label.
    pub key: String,
    /// What is asked.
    pub operator: Operator,
    /// Of which values.
    #[serde(default, deserialize_with = "absent_if_null")]
    pub values: Vec<String>,
}

/// What may be asked of a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
pub enum Operator {
    /// It is there, with one of the values.
    In,
    /// It is not there, or has another value.
    NotIn,
    /// It is there.
    Exists,
    /// It is not there.
    DoesNotExist,
}

/// What is known of a pod when it is decided.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Its labels.
    pub labels: &'a Labels,
    /// Its namespace's labels.
    pub namespace_labels: &'a Labels,
    /// Its annotations.
    pub annotations: &'a Labels,
    /// Whether it lives in its node's network namespace.
    pub host_network: bool,
    /// `status.phase`.
    pub phase: Option<&'a str>,
}

/// Why a pod is not meant to be in the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Exclusion {
    /// `status.phase` is `Succeeded` or `Failed`.
    #[error("it has ended")]
    Ended,
    /// `spec.hostNetwork`.
    #[error("it is in its node's network namespace (hostNetwork)")]
    HostNetwork,
    /// The annotation `sidecar.istio.io/status`.
    #[error("it has a sidecar")]
    Sidecar,
    /// [`Selection::excluded_namespaces`].
    #[error("its namespace is excluded")]
    Namespace,
    /// `app: ztunnel` in [`Selection::system_namespace`].
    #[error("it is a node's proxy itself")]
    Proxy,
    /// None of [`Selection::enablement`].
    #[error("no selector takes it")]
    NotSelected,
}

/// A selector that Kubernetes would not take either.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("[{at}].{path}: {why}")]
pub struct SelectorError {
    /// Which of the list.
    pub at: usize,
    /// Where in it.
    pub path: String,
    /// Why, and what is wanted.
    pub why: &'static str,
}

impl Default for Selection {
    fn default() -> Self {
        let of = |mode: &str| LabelSelector {
            match_labels: [(DATAPLANE_MODE.to_owned(), mode.to_owned())].into(),
            ..LabelSelector::default()
        };
        let not_opted_out = LabelSelector {
            match_expressions: vec![Requirement {
                key: DATAPLANE_MODE.into(),
                operator: Operator::NotIn,
                values: vec!["none".into()],
            }],
            ..LabelSelector::default()
        };
        Self {
            enablement: vec![
                Enablement {
                    pod_selector: of("ambient"),
                    namespace_selector: LabelSelector::default(),
                },
                Enablement {
                    pod_selector: not_opted_out,
                    namespace_selector: of("ambient"),
                },
            ],
            excluded_namespaces: vec!["kube-system".into()],
            system_namespace: "istio-system".into(),
        }
    }
}

impl Selection {
    /// Whether a pod is meant to be in the mesh.
    ///
    /// # Errors
    /// Why it is not: the first reason, in the order of [`Exclusion`].
    pub fn decide(&self, pod: &Candidate<'_>) -> Result<(), Exclusion> {
        if pod.phase.is_some_and(is_terminal) {
            return Err(Exclusion::Ended);
        }
        if pod.host_network {
            return Err(Exclusion::HostNetwork);
        }
        if pod.annotations.contains_key(SIDECAR_STATUS) {
            return Err(Exclusion::Sidecar);
        }
        if self.excluded_namespaces.iter().any(|ns| **ns == *pod.namespace) {
            return Err(Exclusion::Namespace);
        }
        if *self.system_namespace == *pod.namespace && pod.labels.get("app").is_some_and(|app| app == "ztunnel") {
            return Err(Exclusion::Proxy);
        }
        let selects = |e: &Enablement| e.pod_selector.selects(pod.labels) && e.namespace_selector.selects(pod.namespace_labels);
        if !self.enablement.iter().any(selects) {
            return Err(Exclusion::NotSelected);
        }
        Ok(())
    }
}

impl Enablement {
    /// Whether a list of selectors is one that Kubernetes takes: a requirement has a key, and values where it needs them.
    ///
    /// # Errors
    /// The first that it would not take. To pass over it could bring every pod into the mesh.
    pub fn check(list: &[Self]) -> Result<(), SelectorError> {
        for (at, item) in list.iter().enumerate() {
            for (name, selector) in [("podSelector", &item.pod_selector), ("namespaceSelector", &item.namespace_selector)] {
                let fault = |path: String, why| SelectorError {
                    at,
                    path: format!("{name}.{path}"),
                    why,
                };
                selector.check().map_err(|(path, why)| fault(path, why))?;
            }
        }
        Ok(())
    }
}

impl LabelSelector {
    /// Whether it is one that Kubernetes takes; if not, where and why.
    pub(super) fn check(&self) -> Result<(), (String, &'static str)> {
        if self.match_labels.contains_key("") {
            return Err(("matchLabels".into(), "a label without a name"));
        }
        for (n, requirement) in self.match_expressions.iter().enumerate() {
            let path = format!("matchExpressions[{n}]");
            let needs_values = matches!(requirement.operator, Operator::In | Operator::NotIn);
            if requirement.key.is_empty() {
                return Err((format!("{path}.key"), "a label without a name"));
            }
            if needs_values && requirement.values.is_empty() {
                return Err((format!("{path}.values"), "In and NotIn need values"));
            }
            if !needs_values && !requirement.values.is_empty() {
                return Err((format!("{path}.values"), "Exists and DoesNotExist take no values"));
            }
        }
        Ok(())
    }

    /// Whether these labels are selected.
    pub fn selects(&self, labels: &Labels) -> bool {
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(|r| r.holds(labels.get(&r.key)))
    }
}

impl Requirement {
    fn holds(&self, value: Option<&String>) -> bool {
        match self.operator {
            Operator::In => value.is_some_and(|v| self.values.contains(v)),
            Operator::NotIn => value.is_none_or(|v| !self.values.contains(v)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

impl<'a> Candidate<'a> {
    /// A pod of which no more is known than this.
    pub fn new(namespace: &'a str, labels: &'a Labels, annotations: &'a Labels) -> Self {
        static NONE: Labels = Labels::new();
        Self {
            namespace,
            labels,
            namespace_labels: &NONE,
            annotations,
            host_network: false,
            phase: None,
        }
    }
}

/// Whether a pod in this phase never runs again.
pub(super) fn is_terminal(phase: &str) -> bool {
    matches!(phase, "Succeeded" | "Failed")
}

/// The label by which pods and namespaces ask to be in the mesh.
const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";
/// The annotation that the injector of sidecars leaves; its value says nothing.
const SIDECAR_STATUS: &str = "sidecar.istio.io/status";

#[cfg(test)]
mod tests;

//! Kubernetes objects as the scaffolding sees them: values with a kind and a name.

use std::fmt;

use serde_json::{Map, Value, json};

/// What names an object: its kind, its namespace (empty for a kind that has none) and its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// `Pod`, `Service` and so on.
    pub kind: String,
    /// The namespace; empty for Namespaces.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl Key {
    /// The key of an object of a kind.
    pub fn new(kind: &str, namespace: &str, name: &str) -> Self {
        Self {
            kind: kind.into(),
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// The file that holds the object in a manifests directory.
    pub(crate) fn file_name(&self) -> String {
        let kind = self.kind.to_ascii_lowercase();
        if self.namespace.is_empty() {
            format!("{kind}.{}.yaml", self.name)
        } else {
            format!("{kind}.{}.{}.yaml", self.namespace, self.name)
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

/// A Kubernetes object.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    key: Key,
    value: Value,
}

/// Why a text holds no Kubernetes objects.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// It is not YAML.
    #[error("not YAML: {0}")]
    Syntax(String),
    /// A document misses a field that every object has, or the field is not a plain file name's text.
    #[error("document {document}: {field} is missing or is not a name")]
    Field {
        /// Which document of the text, from 1.
        document: usize,
        /// The field.
        field: &'static str,
    },
}

impl Object {
    /// Reads every document of a YAML text, as `kubectl apply -f` takes it. A namespaced object without a namespace
    /// belongs to `default`.
    ///
    /// # Errors
    /// When the text is not YAML, or a document has no kind or name.
    pub fn parse_all(text: &str) -> Result<Vec<Self>, ObjectError> {
        let documents: Vec<Value> = serde_saphyr::from_multiple(text).map_err(|e| ObjectError::Syntax(e.to_string()))?;
        documents
            .into_iter()
            .enumerate()
            .map(|(index, value)| Self::from_value(value, index + 1))
            .collect()
    }

    fn from_value(mut value: Value, document: usize) -> Result<Self, ObjectError> {
        let missing = |field| ObjectError::Field { document, field };
        let text = |value: &Value, pointer: &str| {
            value
                .pointer(pointer)
                .and_then(Value::as_str)
                .filter(|t| is_name(t))
                .map(str::to_owned)
        };
        let kind = text(&value, "/kind").ok_or_else(|| missing("kind"))?;
        let name = text(&value, "/metadata/name").ok_or_else(|| missing("metadata.name"))?;
        let namespace = if kind == "Namespace" {
            String::new()
        } else {
            match value.pointer("/metadata/namespace") {
                None => "default".to_owned(),
                Some(_) => text(&value, "/metadata/namespace").ok_or_else(|| missing("metadata.namespace"))?,
            }
        };
        if !namespace.is_empty() {
            value["metadata"]["namespace"] = namespace.as_str().into();
        }
        Ok(Self {
            key: Key { kind, namespace, name },
            value,
        })
    }

    /// What names it.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// The whole object.
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// The text at a JSON pointer (RFC 6901), if there is one.
    pub fn text(&self, pointer: &str) -> Option<&str> {
        self.value.pointer(pointer).and_then(Value::as_str)
    }

    /// The value of a label.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.value.get("metadata")?.get("labels")?.get(key)?.as_str()
    }

    /// Sets a label, or takes it away.
    pub fn set_label(&mut self, key: &str, label: Option<&str>) {
        let labels = &mut self.value["metadata"]["labels"];
        if !labels.is_object() {
            *labels = json!({});
        }
        if let Some(labels) = labels.as_object_mut() {
            match label {
                Some(label) => drop(labels.insert(key.into(), label.into())),
                None => drop(labels.remove(key)),
            }
        }
    }

    /// Whether every one of some labels (an equality selector) stands on it. An empty selector matches nothing, as for
    /// a Service.
    pub fn matches(&self, selector: Option<&Map<String, Value>>) -> bool {
        selector.is_some_and(|s| !s.is_empty() && s.iter().all(|(key, value)| self.label(key) == value.as_str()))
    }

    /// The object with one more field, at the path of keys.
    pub(crate) fn set(&mut self, path: &[&str], value: Value) {
        let mut at = &mut self.value;
        for key in path {
            if !at[*key].is_object() && path.last() != Some(key) {
                at[*key] = json!({});
            }
            at = &mut at[*key];
        }
        *at = value;
    }
}

/// Whether a pod is meant to be in the mesh: its own label decides, else its namespace's; a pod on the host's network
/// and one with a sidecar never are (istio-cni's default enablement selectors).
pub fn is_meant_for_mesh(pod: &Object, namespace: Option<&Object>) -> bool {
    let excluded = pod.value.pointer("/spec/hostNetwork").and_then(Value::as_bool).unwrap_or(false)
        || pod
            .value
            .pointer("/metadata/annotations")
            .and_then(|a| a.get("sidecar.istio.io/status"))
            .is_some();
    let of_namespace = namespace.and_then(|n| n.label(DATAPLANE_MODE)) == Some("ambient");
    match pod.label(DATAPLANE_MODE) {
        _ if excluded => false,
        Some("ambient") => true,
        Some("none") => false,
        _ => of_namespace,
    }
}

/// The label by which a namespace or a pod joins.
pub const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";

/// Names become parts of file names.
fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 80
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '.')
        && !text.starts_with('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Object {
        Object::parse_all(text).unwrap().remove(0)
    }

    #[test]
    fn keys_and_files() {
        let pod = one("kind: Pod\nmetadata: {name: a, namespace: b}");
        assert_eq!(pod.key(), &Key::new("Pod", "b", "a"));
        assert_eq!(pod.key().file_name(), "pod.b.a.yaml");
        assert_eq!(one("kind: Pod\nmetadata: {name: a}").key().namespace, "default");
        assert_eq!(one("kind: Namespace\nmetadata: {name: a}").key().file_name(), "namespace.a.yaml");
        assert!(Object::parse_all("kind: Pod\nmetadata: {name: ../a}").is_err());
        assert!(Object::parse_all("kind: [").is_err());
    }

    #[test]
    fn labels_come_and_go() {
        let mut namespace = one("kind: Namespace\nmetadata: {name: a}");
        namespace.set_label("x", Some("y"));
        assert_eq!(namespace.label("x"), Some("y"));
        namespace.set_label("x", None);
        assert_eq!(namespace.label("x"), None);
    }

    #[test]
    fn who_is_meant_for_the_mesh() {
        let labelled = one("kind: Namespace\nmetadata: {name: demo, labels: {istio.io/dataplane-mode: ambient}}");
        let pod = |labels: &str, spec: &str| one(&format!("kind: Pod\nmetadata: {{name: p, labels: {labels}}}\nspec: {spec}"));
        for (labels, spec, within, without) in [
            ("{}", "{}", true, false),
            ("{istio.io/dataplane-mode: ambient}", "{}", true, true),
            ("{istio.io/dataplane-mode: none}", "{}", false, false),
            ("{istio.io/dataplane-mode: odd}", "{}", true, false),
            ("{istio.io/dataplane-mode: ambient}", "{hostNetwork: true}", false, false),
        ] {
            assert_eq!(is_meant_for_mesh(&pod(labels, spec), Some(&labelled)), within, "{labels} {spec}");
            assert_eq!(is_meant_for_mesh(&pod(labels, spec), None), without, "{labels} {spec}");
        }
    }
}

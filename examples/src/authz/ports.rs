//! Ports of services where those of pods are compared.

use ambient_authz::kubernetes::Labels;
use ambient_control::manifests::tree::{Node, Value};

use super::{
    files::{Files, key_of, name_of},
    place::{Finding, Level, Place},
};

/// Ports in policies which a service has, and its pods have not.
pub(super) fn findings(files: &Files) -> Vec<Finding> {
    let services: Vec<_> = files.services.iter().filter_map(Service::of).collect();
    let mut found = Vec::new();
    for (file, node) in &files.policies {
        let (namespace, name) = name_of(node);
        let Some(spec) = node.field("spec").filter(|spec| is_for_pods(spec)) else {
            continue;
        };
        let in_reach = |service: &&Service| namespace == *files.resources.settings().root_namespace || service.namespace == namespace;
        let labels = spec.field("selector").map(|selector| labels_of(selector, "matchLabels"));
        let labels = labels.unwrap_or_default();
        let of_its_pods: Vec<_> = services
            .iter()
            .filter(in_reach)
            .filter(|service| service.shares_pods(&labels, files))
            .collect();
        if of_its_pods.is_empty() {
            continue;
        }
        for (path, port) in written(spec) {
            let Some(text) = told(port, &of_its_pods) else { continue };
            found.push(Finding {
                level: Level::Warning,
                place: Place {
                    file: file.clone(),
                    line: node.line_of(&path),
                },
                object: Some(format!("AuthorizationPolicy {namespace}/{name}")),
                key: Some(key_of("AuthorizationPolicy", &namespace, &name)),
                path,
                text,
                hides: false,
            });
        }
    }
    found
}

/// A service that selects pods, and the ports that it has and they have.
struct Service {
    namespace: String,
    name: String,
    selector: Labels,
    /// None where the pods' port goes by a name.
    ports: Vec<(u64, Option<u64>)>,
}

impl Service {
    fn of(node: &Node) -> Option<Self> {
        let (namespace, name) = name_of(node);
        let spec = node.field("spec")?;
        let Value::List(ports) = &spec.field("ports")?.value else {
            return None;
        };
        let port = |node: &Node| {
            let port = number(node.field("port")?)?;
            let target = match node.field("targetPort") {
                Some(target) => number(target),
                None => Some(port),
            };
            Some((port, target))
        };
        let selector = labels_of(spec, "selector");
        (!selector.is_empty()).then(|| Self {
            namespace,
            name,
            selector,
            ports: ports.iter().filter_map(port).collect(),
        })
    }

    /// Whether a pod of the files is selected by it and by these labels; where there are none, whether one could be.
    fn shares_pods(&self, labels: &Labels, files: &Files) -> bool {
        let selects = |selector: &Labels, pod: &Labels| selector.iter().all(|(key, value)| pod.get(key) == Some(value));
        let mut pods = files.workloads.iter().filter(|w| w.namespace == self.namespace).peekable();
        match pods.peek() {
            Some(_) => pods.any(|pod| selects(&self.selector, &pod.labels) && selects(labels, &pod.labels)),
            None => labels
                .iter()
                .all(|(key, value)| self.selector.get(key).is_none_or(|own| own == value)),
        }
    }
}

/// What is to be said of a port that services have and pods have not.
fn told(port: u64, services: &[&Service]) -> Option<String> {
    let mut all = services.iter().flat_map(|service| &service.ports);
    // A port of some of the pods is meant, and where it goes by a name it could be this.
    if all.any(|(own, target)| *target == Some(port) || (*own == port && target.is_none())) {
        return None;
    }
    let (service, target) = services
        .iter()
        .find_map(|service| Some((service, service.ports.iter().find(|(own, _)| *own == port)?.1?)))?;
    let Service { namespace, name, .. } = service;
    Some(format!(
        "{port} is the port of the Service {namespace}/{name}, whose pods listen on {target}: policies compare the pod's port"
    ))
}

/// Whether a policy is asked for connections to pods.
fn is_for_pods(spec: &Node) -> bool {
    let is_other = |action: &str| matches!(action, "AUDIT" | "CUSTOM");
    let targets = ["targetRef", "targetRefs"].into_iter().any(|field| spec.field(field).is_some());
    !targets && !spec.text("action").is_some_and(is_other)
}

/// Every port of a policy, and where it stands.
fn written(spec: &Node) -> Vec<(String, u64)> {
    let mut all = Vec::new();
    let mut values = |node: &Node, path: &str, names: [&str; 2]| {
        for name in names {
            for (i, value) in list(node, name).iter().enumerate() {
                let port = match &value.value {
                    Value::Text(text) => text.parse().ok(),
                    _ => None,
                };
                all.extend(port.map(|port| (format!("{path}.{name}[{i}]"), port)));
            }
        }
    };
    for (i, rule) in list(spec, "rules").iter().enumerate() {
        for (j, to) in list(rule, "to").iter().enumerate() {
            if let Some(operation) = to.field("operation") {
                values(operation, &format!("spec.rules[{i}].to[{j}].operation"), ["ports", "notPorts"]);
            }
        }
        for (j, when) in list(rule, "when").iter().enumerate() {
            if when.text("key") == Some("destination.port") {
                values(when, &format!("spec.rules[{i}].when[{j}]"), ["values", "notValues"]);
            }
        }
    }
    all
}

fn list<'a>(node: &'a Node, field: &str) -> &'a [Node] {
    match node.field(field).map(|node| &node.value) {
        Some(Value::List(items)) => items,
        _ => &[],
    }
}

fn labels_of(node: &Node, field: &str) -> Labels {
    node.field(field).and_then(|map| map.read().ok()).unwrap_or_default()
}

fn number(node: &Node) -> Option<u64> {
    match node.value {
        Value::Unsigned(number) => Some(number),
        _ => None,
    }
}

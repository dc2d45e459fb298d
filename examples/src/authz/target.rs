//! What is meant by `--to`.

use std::net::IpAddr;

use ambient_authz::kubernetes::Labels;
use ambient_control::manifests::tree::{Node, Value};
use ambient_core::Workload;

use super::{
    Failure,
    files::{Files, Found, name_of},
    near::{meant, or_there},
    outside::Outside,
};

/// The workload that is asked about.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) workload: Workload,
    /// Where they are known: else nothing is asked that selects pods by them.
    pub(super) labels: Option<Labels>,
    /// Where it is known.
    pub(super) ip: Option<IpAddr>,
    /// Why the files say that it is not in the mesh, if they do.
    pub(super) outside: Option<Outside>,
    /// What should be known about how it was found.
    pub(super) notes: Vec<String>,
}

impl Target {
    /// `NAMESPACE/NAME` of a pod or workload of the files; `NAMESPACE` or any other name with labels; a name alone where
    /// only one workload of the files has it.
    pub(super) fn find(text: &str, labels: Option<Labels>, files: &Files) -> Result<Self, Failure> {
        let (namespace, name) = names(text, files, labels.is_some())?;
        let found = match name {
            Some(name) => files.workload("--to", namespace, name)?,
            None => None,
        };
        let mut notes = Vec::new();
        match (found, name, &labels) {
            (Some(found), _, None) if found.labels.is_empty() => {
                notes.push(format!("{} {namespace}/{} has no labels", found.kind, found.name));
            }
            (None, Some(name), None) => {
                refuse_service(namespace, name, files)?;
                refuse_unknown(namespace, name, files)?;
                notes.push(format!(
                    "no pod or workload is in the files, and there are no --labels: only what applies to all of {namespace} is asked"
                ));
            }
            (None, None, None) => notes.push(format!("there are no --labels: only what applies to all of {namespace} is asked")),
            _ => {}
        }
        if !files.namespaces.contains(namespace) && *namespace != *files.resources.settings().root_namespace {
            let others = or_there(namespace, &files.namespaces, "they name none");
            notes.push(format!(
                "nothing in the files is in a namespace {namespace}: only what applies to the whole mesh is asked; {others}"
            ));
        }
        Ok(Self::new(namespace, name.unwrap_or("*"), labels, found, notes, files))
    }

    /// A pod or workload of the files.
    pub(super) fn of(found: &Found, files: &Files) -> Self {
        Self::new(&found.namespace, &found.name, None, Some(found), Vec::new(), files)
    }

    fn new(namespace: &str, name: &str, labels: Option<Labels>, found: Option<&Found>, notes: Vec<String>, files: &Files) -> Self {
        let labels = labels.or_else(|| found.map(|f| f.labels.clone()));
        let mut workload = Workload::new(&format!("cluster//Pod/{namespace}/{name}"), namespace, name);
        workload.policies = match &labels {
            Some(labels) => files.resources.attached(namespace, labels),
            None => files.resources.attached_unselected(namespace),
        };
        Self {
            workload,
            labels,
            ip: found.and_then(|f| f.ip),
            outside: found.map_or_else(|| files.namespace_outside(namespace), |f| files.outside(f)),
            notes,
        }
    }

    /// What is to be said where a port is asked about that a service has and the pod has not.
    pub(super) fn port_note(&self, port: u16, files: &Files) -> Option<String> {
        let labels = self.labels.as_ref()?;
        let services = files.services.iter().filter(|s| name_of(s).0 == *self.workload.namespace);
        services.into_iter().find_map(|service| {
            let spec = service.field("spec")?;
            let selector: Labels = spec.field("selector")?.read().ok()?;
            let selects = !selector.is_empty() && selector.iter().all(|(k, v)| labels.get(k) == Some(v));
            let Value::List(ports) = &spec.field("ports").filter(|_| selects)?.value else {
                return None;
            };
            let target = ports
                .iter()
                .find(|p| number(p, "port") == Some(u64::from(port)))?
                .field("targetPort")?;
            let target = match &target.value {
                Value::Unsigned(number) if *number == u64::from(port) => return None,
                Value::Unsigned(number) => number.to_string(),
                Value::Text(name) => format!("{name:?}"),
                _ => return None,
            };
            let name = name_of(service).1;
            Some(format!(
                "{port} is the port of the Service {name}, whose pods listen on {target}: policies compare the pod's port"
            ))
        })
    }
}

fn number(node: &Node, field: &str) -> Option<u64> {
    match node.field(field)?.value {
        Value::Unsigned(number) => Some(number),
        _ => None,
    }
}

fn names<'a>(text: &'a str, files: &'a Files, labelled: bool) -> Result<(&'a str, Option<&'a str>), Failure> {
    if let Some((namespace, name)) = text.split_once('/') {
        let whole = !namespace.is_empty() && !name.is_empty() && !name.contains('/');
        return match whole {
            true => Ok((namespace, Some(name))),
            false => Err(Failure::usage(format!("--to {text}: NAMESPACE or NAMESPACE/NAME is wanted"))),
        };
    }
    if files.namespaces.contains(text) {
        return Ok((text, None));
    }
    let called: Vec<&Found> = files.workloads.iter().filter(|w| w.name == text).collect();
    match called[..] {
        [] if labelled => Ok((text, None)),
        [] if files.workloads.is_empty() => refuse_selected(text, files).map(|()| (text, None)),
        [] => {
            let names = files.workloads.iter().map(|w| &w.name).chain(&files.namespaces).cloned();
            let there = match meant(text, &names.collect()) {
                Some(meant) => format!("perhaps {meant} is meant"),
                None => {
                    let workloads = files.workloads.iter().map(|w| format!("{}/{}", w.namespace, w.name));
                    let namespaces = or_there(text, &files.namespaces, "");
                    format!("of namespaces {namespaces}, of workloads {}", or_there(text, workloads, ""))
                }
            };
            Err(Failure::usage(format!(
                "--to {text}: no namespace and no workload of the files is called so: {there}; write NAMESPACE/NAME, or give --labels"
            )))
        }
        [one] => Ok((&one.namespace, Some(text))),
        [first, second, ..] if first.namespace != second.namespace => Err(Failure::usage(format!(
            "--to {text}: there is {}/{text} and {}/{text}: write which",
            first.namespace, second.namespace
        ))),
        [first, ..] => Ok((&first.namespace, Some(text))),
    }
}

/// Where the files say which pods there are, one that is not among them is a typing error.
fn refuse_unknown(namespace: &str, name: &str, files: &Files) -> Result<(), Failure> {
    if files.workloads.is_empty() {
        return Ok(());
    }
    let of_namespace = files.workloads.iter().filter(|w| w.namespace == namespace);
    let mut names = of_namespace.map(|w| &w.name).peekable();
    let there = if names.peek().is_some() {
        or_there(name, names, "")
    } else {
        let namespaces = files.workloads.iter().map(|w| &w.namespace);
        format!("none is in that namespace, {}", or_there(namespace, namespaces, ""))
    };
    Err(Failure::usage(format!(
        "--to {namespace}/{name}: no such pod or workload is in the files: {there}; or give its --labels"
    )))
}

/// A name that no namespace of the files has and by which policies select pods is that of a pod.
fn refuse_selected(name: &str, files: &Files) -> Result<(), Failure> {
    let by_label = files.namespaces.iter().find_map(|namespace| {
        let selecting = files.resources.selecting(namespace).into_iter();
        let mut labels = selecting.flat_map(|s| s.selector.labels());
        labels.find(|(_, value)| *value == name).map(|(key, _)| (namespace, key))
    });
    match by_label {
        Some((namespace, key)) => Err(Failure::usage(format!(
            "--to {name}: no namespace of the files is called so, and policies select pods by {key}={name}: \
             ask --to {namespace} --labels {key}={name}"
        ))),
        None => Ok(()),
    }
}

/// A service is no destination for policies: its pods are.
fn refuse_service(namespace: &str, name: &str, files: &Files) -> Result<(), Failure> {
    let service = files
        .services
        .iter()
        .find(|s| name_of(s) == (namespace.to_owned(), name.to_owned()));
    let Some(service) = service else {
        return Ok(());
    };
    let selector: Labels = service
        .field("spec")
        .and_then(|spec| spec.field("selector")?.read().ok())
        .unwrap_or_default();
    let selects = |w: &&Found| w.namespace == namespace && !selector.is_empty() && selector.iter().all(|(k, v)| w.labels.get(k) == Some(v));
    let pods: Vec<_> = files
        .workloads
        .iter()
        .filter(selects)
        .map(|w| format!("{namespace}/{}", w.name))
        .collect();
    let hint = match pods.first() {
        Some(pod) => format!("such as --to {pod}"),
        None => "by its --labels".into(),
    };
    Err(Failure::usage(format!(
        "--to {namespace}/{name}: that is a Service, and policies are asked for a pod: name one of its pods, {hint}"
    )))
}

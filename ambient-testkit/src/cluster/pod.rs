//! The kubelet's part: a pod's namespace and files, its object's status, and what runs in it.

use std::{
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use crate::{Namespace, Output, Process, Program, Resolution, View, World};

use super::{
    ClusterError, Images,
    clock::{rfc3339, time_of_day},
    node::Node,
    object::{Key, Object},
    plan::Pair,
    services::resolv_conf,
};

/// A pod on a node.
#[derive(Debug)]
pub struct Pod {
    key: Key,
    uid: String,
    node: String,
    addresses: Vec<IpAddr>,
    view: View,
    log: PathBuf,
    pub(super) sandbox: Option<Sandbox>,
    pub(super) processes: Vec<Process>,
}

/// What a pod has to itself, unless it is on the host's network.
#[derive(Debug)]
pub(super) struct Sandbox {
    pub(super) namespace: Namespace,
    pub(super) interface: String,
    pub(super) pair: Pair,
}

impl Pod {
    /// What names it.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Its `metadata.uid`.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// The name of its node.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Its addresses, IPv4 first; its node's, if it is on the host's network.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// What its programs see.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Its network namespace; none if it is on the host's network.
    pub fn namespace(&self) -> Option<&Namespace> {
        self.sandbox.as_ref().map(|s| &s.namespace)
    }

    /// The file that everything goes to which its containers write.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The process numbers of its containers that still run.
    pub fn pids(&mut self) -> Vec<u32> {
        self.processes
            .iter_mut()
            .filter_map(|p| p.is_running().unwrap_or(false).then(|| p.pid()))
            .collect()
    }

    /// Makes its namespace and files.
    pub(super) fn prepare(world: &World, object: &Object, node: &mut Node, logs: &Path) -> Result<Self, ClusterError> {
        let key = object.key().clone();
        let on_host = object
            .value()
            .pointer("/spec/hostNetwork")
            .and_then(Value::as_bool)
            .unwrap_or(false);
        let uid = fs::read_to_string("/proc/sys/kernel/random/uuid")
            .map_err(ClusterError::io("making a UID"))?
            .trim()
            .to_owned();
        let resolution = Resolution {
            resolv_conf: resolv_conf(node.families().cluster_dns(), &key.namespace),
            hosts: String::new(),
        };
        let view = world
            .view(&format!("{}_{}", key.namespace, key.name), &resolution)
            .map_err(ClusterError::io("laying out a pod's files"))?;
        let log = logs.join(format!("{}_{}.log", key.namespace, key.name));
        let sandbox = if on_host { None } else { Some(Sandbox::make(world, &key, node)?) };
        let addresses = sandbox.as_ref().map_or_else(|| node.ips(), |s| node.families().of(s.pair));
        Ok(Self {
            key,
            uid,
            node: node.name().into(),
            addresses,
            view,
            log,
            sandbox,
            processes: Vec::new(),
        })
    }

    /// Its object as the API server shows it once the pod is there: nothing runs in it until it `runs`.
    pub(super) fn describe(&self, mut object: Object, node: &Node, runs: bool) -> Object {
        let now = rfc3339(time_of_day(), 0);
        let ips = |addresses: &[IpAddr]| addresses.iter().map(|ip| json!({"ip": ip})).collect::<Value>();
        let host = node.ips();
        object.set(&["metadata", "uid"], self.uid.as_str().into());
        if object.text("/metadata/creationTimestamp").is_none() {
            object.set(&["metadata", "creationTimestamp"], now.as_str().into());
        }
        object.set(&["spec", "nodeName"], self.node.as_str().into());
        let condition = |(kind, holds): (&str, bool)| {
            let status = if holds { "True" } else { "False" };
            json!({"type": kind, "status": status, "lastProbeTime": null, "lastTransitionTime": now})
        };
        let conditions: Vec<Value> = [
            ("PodReadyToStartContainers", true),
            ("Initialized", true),
            ("Ready", runs),
            ("ContainersReady", runs),
            ("PodScheduled", true),
        ]
        .map(condition)
        .into();
        let containers = object.value().pointer("/spec/containers").and_then(Value::as_array);
        let container = |container: &Value| {
            let state = match runs {
                true => json!({"running": {"startedAt": now}}),
                false => json!({"waiting": {"reason": "ContainerCreating"}}),
            };
            json!({"name": container["name"], "state": state, "lastState": {}, "restartCount": 0, "started": runs, "ready": runs})
        };
        let containers: Vec<Value> = containers.into_iter().flatten().map(container).collect();
        let status = json!({
            "phase": if runs { "Running" } else { "Pending" },
            "conditions": conditions,
            "containerStatuses": containers,
            "hostIP": host.first(),
            "hostIPs": ips(&host),
            "podIP": self.addresses.first(),
            "podIPs": ips(&self.addresses),
            "qosClass": "BestEffort",
            "startTime": now,
        });
        object.set(&["status"], status);
        object
    }

    /// Starts its containers in its namespace, or its node's.
    pub(super) fn start(&mut self, object: &Object, images: &Images, node: &Node) -> Result<(), ClusterError> {
        let containers = object.value().pointer("/spec/containers").and_then(Value::as_array);
        for container in containers.into_iter().flatten() {
            let program = self.program(container, images)?;
            let namespace = self.sandbox.as_ref().map_or_else(|| node.namespace(), |s| &s.namespace);
            self.processes.push(namespace.spawn(&program)?);
        }
        Ok(())
    }

    fn program(&self, container: &Value, images: &Images) -> Result<Program, ClusterError> {
        let image = container.get("image").and_then(Value::as_str).unwrap_or_default();
        let Some(program) = images.get(image) else {
            return Err(ClusterError::Pod {
                pod: self.key.clone(),
                problem: format!("no image {image:?} is known here"),
            });
        };
        let list = |value: Option<&Value>| value.and_then(Value::as_array).cloned().unwrap_or_default();
        let args = list(container.get("args"));
        let mut program = program.clone().args(args.iter().filter_map(Value::as_str));
        for variable in list(container.get("env")) {
            let Some(name) = variable.get("name").and_then(Value::as_str) else {
                continue;
            };
            let value = match variable.pointer("/valueFrom/fieldRef/fieldPath").and_then(Value::as_str) {
                Some("status.podIPs") => self.addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(","),
                _ => variable.get("value").and_then(Value::as_str).unwrap_or_default().to_owned(),
            };
            program = program.env(name, value);
        }
        Ok(program
            .view(&self.view)
            .stdout(Output::File(self.log.clone()))
            .stderr(Output::File(self.log.clone())))
    }

    /// Ends its containers and takes its namespace away; its addresses are free again afterwards.
    pub(super) fn remove(mut self, node: &mut Node) -> Result<(), ClusterError> {
        for process in &mut self.processes {
            process.kill().map_err(ClusterError::io("ending a container"))?;
        }
        if let Some(Sandbox {
            namespace,
            interface,
            pair,
        }) = self.sandbox.take()
        {
            // Others may hold the namespace for a while yet: nothing reaches it any more from here on.
            node.namespace().delete_interface(&interface)?;
            namespace.delete()?;
            node.addresses.give_back(pair);
        }
        Ok(())
    }
}

impl Sandbox {
    fn make(world: &World, key: &Key, node: &mut Node) -> Result<Self, ClusterError> {
        let problem = |problem: String| ClusterError::Pod { pod: key.clone(), problem };
        let Some(pair) = node.addresses.take() else {
            return Err(problem(format!("{} has no address left", node.name())));
        };
        let interface = format!("veth{}", pair.v4.octets()[3]);
        let made = world.namespace(&key.name).map_err(ClusterError::from).and_then(|namespace| {
            match node.attach(&namespace, &interface, &node.families().of(pair)) {
                Ok(()) => Ok(Self {
                    namespace,
                    interface,
                    pair,
                }),
                Err(e) => {
                    // The reason is worth more than what the tidying up may say.
                    let _ = namespace.delete();
                    Err(e)
                }
            }
        });
        if made.is_err() {
            node.addresses.give_back(pair);
        }
        made
    }
}

/// The node that a pod is to run on: the one its selector names, else the one with the fewest pods.
pub(super) fn schedule(object: &Object, nodes: &[(String, usize)]) -> Result<String, ClusterError> {
    let named = object
        .value()
        .pointer("/spec/nodeSelector")
        .and_then(|s| s.get("kubernetes.io/hostname"))
        .and_then(Value::as_str);
    let fits = nodes.iter().filter(|(name, _)| named.is_none_or(|n| n == name));
    match fits.min_by_key(|(_, pods)| *pods) {
        Some((name, _)) => Ok(name.clone()),
        None => Err(ClusterError::Pod {
            pod: object.key().clone(),
            problem: "no node fits its nodeSelector".into(),
        }),
    }
}

/// The last lines of a log, for an error that needs them.
pub(super) fn tail(log: &Path) -> io::Result<String> {
    let text = fs::read_to_string(log)?;
    let lines: Vec<&str> = text.lines().collect();
    Ok(lines[lines.len().saturating_sub(5)..].join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_go_where_they_ask_or_where_there_is_room() {
        let pod = |spec: &str| {
            Object::parse_all(&format!("kind: Pod\nmetadata: {{name: p}}\nspec: {spec}"))
                .unwrap()
                .remove(0)
        };
        let nodes = [("node-1".to_owned(), 2), ("node-2".to_owned(), 1)];
        assert_eq!(schedule(&pod("{}"), &nodes).unwrap(), "node-2");
        assert_eq!(
            schedule(&pod("{nodeSelector: {kubernetes.io/hostname: node-1}}"), &nodes).unwrap(),
            "node-1"
        );
        assert!(schedule(&pod("{nodeSelector: {kubernetes.io/hostname: node-3}}"), &nodes).is_err());
    }
}

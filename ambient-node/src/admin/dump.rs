//! `/config_dump`: all that the node knows, in the form that `istioctl ztunnel-config` reads.
//!
//! It is written object by object from the immutable version of the mesh that is present when it is asked for, so that it
//! needs no memory that grows with the mesh and holds up nobody. What is listed is sorted: workloads by UID, services by
//! namespace and name, policies by key, certificates by identity, the node's own pods by their UID. No key and no token is
//! in it: what is shown of a certificate is its chain.

mod certificates;
mod config;
mod connections;
mod order;
mod policy;
mod service;
#[cfg(test)]
mod tests;
mod workload;

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use ambient_core::{Identity, Mesh};
use ambient_redirect::{PodSpec, pods::State};
use serde::Serialize;

use super::{Answer, Asked, Context, Out, answer::JSON};
use crate::{Config, assumed};

/// `GET /config_dump`.
pub(super) fn whole(at: &Context, _: &Asked) -> Answer {
    let node = at.node.clone();
    let pods = pods(at);
    Answer::stream(JSON, move |out| {
        let now = node.state.current().unwrap_or_default();
        let mut dump = Object::begin(out)?;
        let mesh = &now.mesh;
        let workloads = order::sorted(|| mesh.workloads().map(|w| &w.uid)).filter_map(|uid| mesh.workload(uid));
        dump.list("workloads", workloads.map(|w| workload::View::from(&**w)))?;
        let services = order::sorted(|| mesh.services().map(|s| &s.name)).filter_map(|name| mesh.service(name));
        dump.list("services", services.map(|s| service::View::new(s, mesh)))?;
        dump.list("policies", now.policies.iter().map(|p| policy::View::from(&p)))?;
        // Ours: those that are not in force as they were meant.
        dump.list("unreadablePolicies", policy::unreadable(&now.policies))?;
        dump.value("stagedServices", &Empty {})?;
        dump.value("staticConfig", &Static::default())?;
        dump.value("version", &config::Version::from(&node.config))?;
        dump.value("config", &config::View::from(&node.config))?;
        dump.list(
            "certificates",
            certificates::of(&node.certificates, pods.iter().filter_map(|pod| whose(&node.config, pod, mesh))),
        )?;
        dump.map("workloadState", connections::by_pod(&node.metrics.live, &now, &node.config, &pods))?;
        dump.end()
    })
}

/// A pod of this node, and whether it is in the mesh.
struct Pod {
    spec: PodSpec,
    up: bool,
}

/// Whose certificate it is served with, or is to be.
fn whose(config: &Config, pod: &Pod, mesh: &Mesh) -> Option<Identity> {
    assumed::identity(config, &pod.spec, Some(mesh)).ok()
}

/// Those that are to be captured here, and those that others have captured and name, sorted by UID.
fn pods(at: &Context) -> Vec<Pod> {
    let captures = at.standing.captures.as_ref().map(|captures| captures.borrow().clone());
    let mut all: BTreeMap<_, Pod> = at
        .pods
        .specs()
        .into_iter()
        .map(|spec| (spec.uid.clone(), Pod { spec, up: true }))
        .collect();
    for pod in captures.iter().flat_map(|captures| captures.iter()) {
        let up = matches!(pod.state, State::In { .. });
        let spec = PodSpec::clone(&pod.spec);
        all.insert(spec.uid.clone(), Pod { spec, up });
    }
    for spec in at.pods.unserved() {
        all.entry(spec.uid.clone()).or_insert(Pod { spec, up: false });
    }
    all.into_values().collect()
}

#[derive(Serialize)]
struct Empty {}

/// What ztunnel was started with on disk; here that is a source of state like any other.
#[derive(Default, Serialize)]
struct Static {
    workloads: [Empty; 0],
    policies: [Empty; 0],
    services: [Empty; 0],
}

/// A JSON object that is written member by member, each element of a list on a line.
struct Object<'a> {
    out: &'a mut Out,
    first: bool,
}

impl<'a> Object<'a> {
    fn begin(out: &'a mut Out) -> io::Result<Self> {
        out.write_all(b"{")?;
        Ok(Self { out, first: true })
    }

    fn name(&mut self, name: &str) -> io::Result<()> {
        let separator: &[u8] = if std::mem::take(&mut self.first) { b"\n" } else { b",\n" };
        self.out.write_all(separator)?;
        serde_json::to_writer(&mut *self.out, name)?;
        self.out.write_all(b": ")
    }

    fn value(&mut self, name: &str, value: &impl Serialize) -> io::Result<()> {
        self.name(name)?;
        Ok(serde_json::to_writer(&mut *self.out, value)?)
    }

    fn list<T: Serialize>(&mut self, name: &str, values: impl IntoIterator<Item = T>) -> io::Result<()> {
        self.name(name)?;
        self.out.write_all(b"[")?;
        for (at, value) in values.into_iter().enumerate() {
            self.out.write_all(if at == 0 { b"\n" } else { b",\n" })?;
            serde_json::to_writer(&mut *self.out, &value)?;
        }
        self.out.write_all(b"]")
    }

    fn map<T: Serialize>(&mut self, name: &str, values: impl IntoIterator<Item = (String, T)>) -> io::Result<()> {
        self.name(name)?;
        let mut members = Object::begin(self.out)?;
        for (name, value) in values {
            members.value(&name, &value)?;
        }
        members.out.write_all(b"}")
    }

    fn end(self) -> io::Result<()> {
        self.out.write_all(b"\n}\n")
    }
}

//! The resources that stand in files.

use std::{
    collections::BTreeMap,
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use ambient_authz::kubernetes::{
    AuthorizationPolicy, Envelope, Labels, PeerAuthentication, ReadError, Resources, Settings, Warning, peer_authentication,
};
use ambient_control::{
    manifests::tree::{self, Node, TextError, Value},
    objects::Kind,
};

use super::{
    Failure,
    place::{Finding, Level, Place},
};

/// What was found in files.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) resources: Resources,
    /// Pods, and what makes pods.
    pub(super) workloads: Vec<Found>,
    pub(super) services: Vec<Node>,
    pub(super) findings: Vec<Finding>,
    pub(super) authorization_policies: usize,
    pub(super) peer_authentications: usize,
    /// Objects of other kinds.
    pub(super) others: usize,
    /// Namespaces that anything is in.
    pub(super) namespaces: Vec<String>,
    /// Where each resource stands, by what it is called.
    seen: BTreeMap<String, Place>,
}

/// A pod, or what makes pods.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) kind: String,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) labels: Labels,
    pub(super) ip: Option<IpAddr>,
    pub(super) account: String,
}

impl Files {
    /// Reads files, and all `*.yaml`, `*.yml` and `*.json` of directories; `-` is stdin.
    ///
    /// What is wrong in them is a finding, not a failure.
    pub(super) fn read(paths: &[PathBuf], settings: Settings) -> Result<Self, Failure> {
        let mut files = Self {
            resources: Resources::new(settings),
            workloads: Vec::new(),
            services: Vec::new(),
            findings: Vec::new(),
            authorization_policies: 0,
            peer_authentications: 0,
            others: 0,
            namespaces: Vec::new(),
            seen: BTreeMap::new(),
        };
        for path in paths {
            let refuse = |error: io::Error| Failure::usage(format!("{}: {error}", path.display()));
            if path.as_os_str() == "-" {
                let mut content = Vec::new();
                io::Read::read_to_end(&mut io::stdin().lock(), &mut content).map_err(refuse)?;
                files.file("<stdin>", &content)?;
                continue;
            }
            for path in manifests(path).map_err(refuse)? {
                let refuse = |error: io::Error| Failure::usage(format!("{}: {error}", path.display()));
                let content = fs::read(&path).map_err(refuse)?;
                files.file(&path.to_string_lossy(), &content)?;
            }
        }
        Ok(files)
    }

    /// Fails where a decision could be wrong, as not all resources are known: any of them could have been a policy.
    pub(super) fn whole(&self) -> Result<(), Failure> {
        match self.findings.iter().find(|f| f.hides) {
            Some(finding) => Err(Failure::input(format!(
                "{finding}\nit could be any policy, so nothing is decided without it"
            ))),
            None => Ok(()),
        }
    }

    pub(super) fn errors(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|f| f.level == Level::Error)
    }

    fn file(&mut self, name: &str, content: &[u8]) -> Result<(), Failure> {
        let name: Arc<str> = name.into();
        let documents = tree::documents(content).map_err(|error| Failure::input(format!("no thread to read {name} with: {error}")))?;
        match documents {
            Ok(nodes) => nodes.into_iter().for_each(|node| self.node(&name, node, 0)),
            Err(error) => self.wrong(&name, error),
        }
        Ok(())
    }

    fn wrong(&mut self, file: &Arc<str>, error: TextError) {
        self.findings.push(Finding {
            level: Level::Error,
            place: Place {
                file: file.clone(),
                line: error.line,
            },
            object: None,
            key: None,
            path: error.path,
            text: error.why,
            hides: true,
        });
    }

    fn node(&mut self, file: &Arc<str>, node: Node, depth: usize) {
        let wrong = |path: &str, why: &str| TextError {
            line: node.line_of(path),
            path: path.into(),
            why: why.into(),
        };
        if !matches!(node.value, Value::Map(_)) {
            return self.wrong(
                file,
                wrong("", "a Kubernetes object is wanted here, with apiVersion, kind and metadata"),
            );
        }
        let (Some(api_version), Some(kind)) = (node.text("apiVersion"), node.text("kind")) else {
            let missing = if node.text("kind").is_none() { "kind" } else { "apiVersion" };
            return self.wrong(file, wrong(missing, "is missing, or is not a text"));
        };
        let (group, _) = api_version.rsplit_once('/').unwrap_or(("", api_version));
        if matches!(group, "" | "security.istio.io") && kind.ends_with("List") {
            return match list(node, depth) {
                Ok(items) => items.into_iter().for_each(|item| self.node(file, item, depth + 1)),
                Err(error) => self.wrong(file, error),
            };
        }
        let known = match Kind::of(api_version, kind) {
            Ok(known) => known,
            Err(invalid) => return self.wrong(file, wrong(&invalid.path, &invalid.why)),
        };
        let place = Place {
            file: file.clone(),
            line: node.line,
        };
        let kind = kind.to_owned();
        self.note_name(&kind, &node, place);
        match known {
            Some(Kind::AuthorizationPolicy) => {
                self.authorization_policies += 1;
                let read = node.read::<AuthorizationPolicy>();
                self.resource(file, &node, &kind, read, Resources::authorization);
            }
            Some(Kind::PeerAuthentication) => {
                self.peer_authentications += 1;
                let read = node.read::<PeerAuthentication>();
                self.resource(file, &node, &kind, read, Resources::peer_authentication);
            }
            _ => {
                self.others += 1;
                self.workloads.extend(Found::of(&kind, &node));
                if known == Some(Kind::Service) {
                    self.services.push(node);
                }
            }
        }
    }

    fn note_name(&mut self, kind: &str, node: &Node, place: Place) {
        let (namespace, name) = name_of(node);
        if !self.namespaces.contains(&namespace) {
            self.namespaces.push(namespace.clone());
        }
        let called = format!("{kind} {namespace}/{name}");
        if name.is_empty() {
            return;
        }
        let Some(before) = self.seen.insert(called.clone(), place.clone()) else {
            return;
        };
        if !matches!(kind, "AuthorizationPolicy" | "PeerAuthentication") {
            return;
        }
        self.findings.push(Finding {
            level: Level::Warning,
            place,
            object: Some(called),
            key: Some(format!("{namespace}/{name}")),
            path: String::new(),
            text: format!("it stands in {before} as well; this one counts"),
            hides: false,
        });
    }

    fn resource<T>(
        &mut self,
        file: &Arc<str>,
        node: &Node,
        kind: &str,
        read: Result<T, TextError>,
        put: fn(&mut Resources, &T) -> Result<Vec<Warning>, ReadError>,
    ) {
        let (namespace, name) = name_of(node);
        let warning = |w: Warning| (Level::Warning, w.path, w.text);
        let unread = |error: &ReadError| (Level::Error, error.path.to_string(), error.why.to_string());
        let told: Vec<_> = match read {
            Ok(resource) => match put(&mut self.resources, &resource) {
                Ok(warnings) => warnings.into_iter().map(warning).collect(),
                Err(error) => vec![unread(&error)],
            },
            Err(shape) => {
                let Ok(envelope) = node.read::<Envelope>() else {
                    return self.wrong(file, shape);
                };
                let settings = self.resources.settings();
                if settings.concerns(&envelope.metadata) {
                    let mut error = ReadError::of_shape(&envelope, &shape.why, settings);
                    error.path = shape.path.into();
                    let told = unread(&error);
                    self.resources.misshapen(kind, &name, error);
                    vec![told]
                } else {
                    vec![warning(settings.other_revision())]
                }
            }
        };
        let key = match kind {
            "PeerAuthentication" => peer_authentication::unreadable_key(&namespace, &name).to_string(),
            _ => format!("{namespace}/{name}"),
        };
        self.findings.extend(told.into_iter().map(|(level, path, text)| Finding {
            level,
            place: Place {
                file: file.clone(),
                line: node.line_of(&path),
            },
            object: Some(format!("{kind} {namespace}/{name}")),
            key: Some(key.clone()),
            path,
            text,
            hides: false,
        }));
    }
}

impl Found {
    fn of(kind: &str, node: &Node) -> Option<Self> {
        let template = match kind {
            "Pod" => node,
            "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" | "Job" => node.field("spec")?.field("template")?,
            "CronJob" => node.field("spec")?.field("jobTemplate")?.field("spec")?.field("template")?,
            _ => return None,
        };
        let (namespace, name) = name_of(node);
        let labels = template.field("metadata").and_then(|m| m.field("labels"));
        let text = |node: Option<&Node>, name: &str| node.and_then(|n| n.text(name)).map(str::to_owned);
        let ip = text(node.field("status"), "podIP").or_else(|| first_ip(node));
        Some(Self {
            kind: kind.into(),
            namespace,
            name,
            labels: labels.and_then(|l| l.read().ok()).unwrap_or_default(),
            ip: ip.and_then(|ip| ip.parse().ok()),
            account: text(template.field("spec"), "serviceAccountName").unwrap_or_else(|| "default".into()),
        })
    }
}

fn first_ip(pod: &Node) -> Option<String> {
    match &pod.field("status")?.field("podIPs")?.value {
        Value::List(ips) => Some(ips.first()?.text("ip")?.to_owned()),
        _ => None,
    }
}

/// Namespace, `default` where there is none, and name.
pub(super) fn name_of(node: &Node) -> (String, String) {
    let metadata = node.field("metadata");
    let text = |name| metadata.and_then(|m| m.text(name));
    (
        text("namespace").unwrap_or("default").to_owned(),
        text("name").unwrap_or_default().to_owned(),
    )
}

fn list(node: Node, depth: usize) -> Result<Vec<Node>, TextError> {
    let error = |why: &str| TextError {
        line: node.line_of("items"),
        path: "items".into(),
        why: why.into(),
    };
    if depth == MAX_LISTS {
        return Err(error("lists within lists within lists are not read"));
    }
    match node.field("items").map(|items| &items.value) {
        Some(Value::List(items)) => Ok(items.clone()),
        Some(Value::Null) => Ok(Vec::new()),
        _ => Err(error("is missing, or is not a list")),
    }
}

/// A file, or the manifests of a directory in order.
fn manifests(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let is_manifest = |path: &PathBuf| {
        let known = path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
        let hidden = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'));
        known && !hidden && path.is_file()
    };
    let entries = fs::read_dir(path)?.map(|entry| entry.map(|e| e.path()));
    let mut found = entries.collect::<io::Result<Vec<_>>>()?;
    found.retain(is_manifest);
    found.sort();
    Ok(found)
}

/// How deep lists may stand in lists.
const MAX_LISTS: usize = 2;

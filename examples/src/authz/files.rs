//! The resources that stand in files.

use std::{
    collections::{BTreeSet, HashMap},
    fs, io,
    net::IpAddr,
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use ambient_authz::kubernetes::{
    self, AuthorizationPolicy, Envelope, Labels, PeerAuthentication, ReadError, Resources, Settings, Warning, peer_authentication,
};
use ambient_control::{
    manifests::tree::{self, Node, TextError, Value},
    objects::{Kind, is_name},
};

use super::{
    Failure,
    place::{Finding, Level, Place},
    ports,
};
use crate::given;

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
    pub(super) namespaces: BTreeSet<String>,
    /// The labels of the namespaces that are in the files themselves.
    pub(super) namespace_labels: HashMap<String, Labels>,
    /// Service accounts, by namespace and name.
    accounts: BTreeSet<(String, String)>,
    /// Where each resource stands, by what it is called.
    seen: HashMap<String, Place>,
    /// On which line each rule of a policy stands, by its key.
    rules: HashMap<String, Vec<u64>>,
    /// The AuthorizationPolicies and the files that they stand in, where traps are told.
    pub(super) policies: Vec<(Arc<str>, Node)>,
    for_traps: bool,
    /// What the files are called, in the order in which they were read.
    names: Vec<Arc<str>>,
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
    pub(super) annotations: Labels,
    pub(super) host_network: bool,
}

impl Files {
    /// Reads files, and all `*.yaml`, `*.yml` and `*.json` of directories; `-` is stdin.
    ///
    /// What is wrong in them is a finding, not a failure.
    pub(super) fn read(paths: &[PathBuf], settings: Settings) -> Result<Self, Failure> {
        Self::empty(settings).all(paths)
    }

    /// The same, and what of it is in force as it is written and seldom meant so is a finding as well.
    pub(super) fn read_for_traps(paths: &[PathBuf], settings: Settings) -> Result<Self, Failure> {
        let empty = Self {
            for_traps: true,
            ..Self::empty(settings)
        };
        let mut files = empty.all(paths)?;
        let found = ports::findings(&files);
        files.findings.extend(found);
        // As they are read: file by file, and in each from its beginning.
        let order: HashMap<&Arc<str>, usize> = files.names.iter().zip(0..).collect();
        files
            .findings
            .sort_by_key(|finding| (order.get(&finding.place.file).copied(), finding.place.line));
        Ok(files)
    }

    fn empty(settings: Settings) -> Self {
        Self {
            resources: Resources::new(settings),
            workloads: Vec::new(),
            services: Vec::new(),
            findings: Vec::new(),
            authorization_policies: 0,
            peer_authentications: 0,
            others: 0,
            namespaces: BTreeSet::new(),
            namespace_labels: HashMap::new(),
            accounts: BTreeSet::new(),
            seen: HashMap::new(),
            rules: HashMap::new(),
            policies: Vec::new(),
            for_traps: false,
            names: Vec::new(),
        }
    }

    fn all(mut self, paths: &[PathBuf]) -> Result<Self, Failure> {
        let files = &mut self;
        if paths.iter().filter(|path| path.as_os_str() == "-").count() > 1 {
            return Err(Failure::usage("stdin can be read but once"));
        }
        for path in paths {
            let refuse = |error: io::Error| Failure::usage(format!("{}: {error}", path.display()));
            if path.as_os_str() == "-" {
                let documents = files.file("<stdin>", &given::to_end(io::stdin().lock(), MOST).map_err(refuse)?)?;
                // A file may hold comments alone; a program that has written nothing has failed, as a rule.
                if documents == 0 {
                    return Err(Failure::usage("<stdin>: there is no document in it"));
                }
                continue;
            }
            let manifests = manifests(path).map_err(refuse)?;
            if manifests.is_empty() {
                let why = "no file in it ends in .yaml, .yml or .json; directories within it are not looked into";
                return Err(Failure::usage(format!("{}: {why}", path.display())));
            }
            for path in manifests {
                let refuse = |error: io::Error| Failure::usage(format!("{}: {error}", path.display()));
                let content = content(&path).map_err(refuse)?;
                files.file(&path.to_string_lossy(), &content)?;
            }
        }
        Ok(self)
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

    /// The pod, or what makes pods, of a name; `asked` is what it was asked for with.
    pub(super) fn workload(&self, asked: &str, namespace: &str, name: &str) -> Result<Option<&Found>, Failure> {
        let mut all = self.workloads.iter().filter(|w| w.namespace == namespace && w.name == name);
        let Some(first) = all.next() else { return Ok(None) };
        match all.find(|other| (&other.labels, &other.account) != (&first.labels, &first.account)) {
            None => Ok(Some(first)),
            Some(other) => Err(Failure::usage(format!(
                "{asked} {namespace}/{name}: there is a {} and a {} of this name, and they differ: give {}",
                first.kind,
                other.kind,
                if asked == "--to" {
                    "--labels with the namespace alone"
                } else {
                    "the identity"
                }
            ))),
        }
    }

    /// What is called so, by namespace: a pod, what makes pods, or an account.
    pub(super) fn namespaces_of(&self, name: &str) -> BTreeSet<&str> {
        let workloads = self.workloads.iter().filter(|w| w.name == name).map(|w| &*w.namespace);
        let accounts = self
            .accounts
            .iter()
            .filter(|(_, account)| account == name)
            .map(|(namespace, _)| &**namespace);
        workloads.chain(accounts).collect()
    }

    /// Every pod, what makes pods, and account of the files, as `NAMESPACE/NAME`.
    pub(super) fn peers(&self) -> BTreeSet<String> {
        let workloads = self.workloads.iter().map(|w| format!("{}/{}", w.namespace, w.name));
        let accounts = self.accounts.iter().map(|(namespace, name)| format!("{namespace}/{name}"));
        workloads.chain(accounts).collect()
    }

    /// Whether an account is in the files, or nothing that would tell which accounts there are.
    pub(super) fn knows_account(&self, namespace: &str, name: &str) -> bool {
        let uses = |w: &Found| w.namespace == namespace && w.account == name;
        let silent = self.accounts.is_empty() && self.workloads.is_empty();
        silent || self.accounts.contains(&(namespace.to_owned(), name.to_owned())) || self.workloads.iter().any(uses)
    }

    /// Where a policy stands, or a rule of it, by the number that it has there; what cannot be read of it, if that is so.
    pub(super) fn place_of(&self, key: &str, rule: Option<usize>) -> Option<String> {
        if let Some(error) = self.errors().find(|error| error.key.as_deref() == Some(key)) {
            return Some(error.place.to_string());
        }
        let (namespace, name) = key.split_once('/')?;
        let authentication = name.strip_prefix("peer_authentication_");
        let called = match authentication {
            Some(name) => format!("PeerAuthentication {namespace}/{name}"),
            None => format!("AuthorizationPolicy {key}"),
        };
        let mut place = self.seen.get(&called)?.clone();
        if let Some(line) = rule.and_then(|rule| self.rules.get(key)?.get(rule)) {
            place.line = *line;
        }
        Some(place.to_string())
    }

    /// Where a PeerAuthentication stands.
    pub(super) fn place_of_peer_authentication(&self, namespace: &str, name: &str) -> Option<String> {
        self.place_of(peer_authentication::unreadable_key(namespace, name).as_str(), None)
    }

    /// Reads one; how many documents are in it.
    fn file(&mut self, name: &str, content: &[u8]) -> Result<usize, Failure> {
        let name: Arc<str> = name.into();
        self.names.push(name.clone());
        let documents = tree::documents(content).map_err(|error| Failure::input(format!("no thread to read {name} with: {error}")))?;
        Ok(match documents {
            Ok(nodes) => {
                let count = nodes.len();
                nodes.into_iter().for_each(|node| self.node(&name, node, 0));
                count
            }
            Err(error) => {
                self.wrong(&name, error);
                1
            }
        })
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
            Some(Kind::AuthorizationPolicy | Kind::PeerAuthentication) if name_of(&node).1.is_empty() => {
                self.wrong(file, wrong("metadata.name", "is missing, or is not a text"));
            }
            Some(Kind::AuthorizationPolicy) => {
                self.authorization_policies += 1;
                self.note_rules(&node);
                let read = node.read::<AuthorizationPolicy>();
                self.resource(file, &node, &kind, read, (Resources::authorization, kubernetes::traps));
                if self.for_traps {
                    self.policies.push((file.clone(), node));
                }
            }
            Some(Kind::PeerAuthentication) => {
                self.peer_authentications += 1;
                let read = node.read::<PeerAuthentication>();
                self.resource(
                    file,
                    &node,
                    &kind,
                    read,
                    (Resources::peer_authentication, peer_authentication::traps),
                );
            }
            _ => {
                self.others += 1;
                if kind == "ServiceAccount" {
                    self.accounts.insert(name_of(&node));
                }
                if kind == "Namespace" {
                    self.namespace_labels.insert(name_of(&node).1, map_of(&node, "labels"));
                }
                self.workloads.extend(Found::of(&kind, &node));
                if known == Some(Kind::Service) {
                    self.services.push(node);
                }
            }
        }
    }

    fn note_name(&mut self, kind: &str, node: &Node, place: Place) {
        let (namespace, name) = name_of(node);
        // A namespace is in none itself.
        self.namespaces
            .insert(if kind == "Namespace" { name.clone() } else { namespace.clone() });
        let called = format!("{kind} {namespace}/{name}");
        if name.is_empty() {
            return;
        }
        let before = self.seen.insert(called.clone(), place.clone());
        if !matches!(kind, "AuthorizationPolicy" | "PeerAuthentication") {
            return;
        }
        let mut warn = |path: &str, text: String| {
            self.findings.push(Finding {
                level: Level::Warning,
                place: place.clone(),
                object: Some(called.clone()),
                key: Some(key_of(kind, &namespace, &name)),
                path: path.into(),
                text,
                hides: false,
            });
        };
        if let Some(before) = before {
            warn("", format!("it stands in {before} as well; this one counts"));
            // Files are no history: what cannot be read has no last good version in another file.
            match kind {
                "PeerAuthentication" => self.resources.remove_peer_authentication(&namespace, &name),
                _ => self.resources.remove_authorization(&namespace, &name),
            };
        }
        if !is_name(&name) {
            let text = "no API server takes this name, and a node refuses the file that it stands in";
            warn("metadata.name", text.into());
        }
    }

    fn note_rules(&mut self, node: &Node) {
        let (namespace, name) = name_of(node);
        let rules = node.field("spec").and_then(|spec| spec.field("rules"));
        let lines = match rules.map(|rules| &rules.value) {
            Some(Value::List(rules)) => rules.iter().map(|rule| rule.line).collect(),
            _ => Vec::new(),
        };
        self.rules.insert(format!("{namespace}/{name}"), lines);
    }

    fn resource<T>(&mut self, file: &Arc<str>, node: &Node, kind: &str, read: Result<T, TextError>, (put, traps): (Put<T>, Traps<T>)) {
        let (namespace, name) = name_of(node);
        let warning = |w: Warning| (Level::Warning, w.path, w.text);
        let unread = |error: &ReadError| (Level::Error, error.path.to_string(), error.why.to_string());
        let told: Vec<_> = match read {
            Ok(resource) => {
                let traps = match self.for_traps {
                    true => traps(&resource, self.resources.settings()),
                    false => Vec::new(),
                };
                match put(&mut self.resources, &resource) {
                    Ok(warnings) => warnings.into_iter().chain(traps).map(warning).collect(),
                    Err(error) => vec![unread(&error)],
                }
            }
            Err(shape) => {
                let Ok(envelope) = node.read::<Envelope>() else {
                    return self.wrong(file, shape);
                };
                match self.resources.misshapen(&envelope, &shape.path, &shape.why) {
                    Ok(warnings) => warnings.into_iter().map(warning).collect(),
                    Err(error) => vec![unread(&error)],
                }
            }
        };
        let key = key_of(kind, &namespace, &name);
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
        let host_network = template.field("spec").and_then(|spec| spec.field("hostNetwork"));
        let text = |node: Option<&Node>, name: &str| node.and_then(|n| n.text(name)).map(str::to_owned);
        let ip = text(node.field("status"), "podIP").or_else(|| first_ip(node));
        Some(Self {
            kind: kind.into(),
            namespace,
            name,
            labels: map_of(template, "labels"),
            ip: ip.and_then(|ip| ip.parse().ok()),
            account: text(template.field("spec"), "serviceAccountName").unwrap_or_else(|| "default".into()),
            annotations: map_of(template, "annotations"),
            host_network: host_network.is_some_and(|of| matches!(of.value, Value::Bool(true))),
        })
    }
}

type Put<T> = fn(&mut Resources, &T) -> Result<Vec<Warning>, ReadError>;
type Traps<T> = fn(&T, &Settings) -> Vec<Warning>;

/// What a policy's findings go by.
pub(super) fn key_of(kind: &str, namespace: &str, name: &str) -> String {
    match kind {
        "PeerAuthentication" => peer_authentication::unreadable_key(namespace, name).to_string(),
        _ => format!("{namespace}/{name}"),
    }
}

/// The labels or annotations of an object.
fn map_of(node: &Node, field: &str) -> Labels {
    let map = node.field("metadata").and_then(|metadata| metadata.field(field));
    map.and_then(|map| map.read().ok()).unwrap_or_default()
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
        text("namespace").filter(|text| !text.is_empty()).unwrap_or("default").to_owned(),
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

/// A file's content; of a pipe it says how it can be given.
fn content(path: &Path) -> io::Result<Vec<u8>> {
    given::content(path, MOST).map_err(|error| match fs::metadata(path) {
        Ok(meta) if meta.file_type().is_fifo() => io::Error::new(error.kind(), format!("{error}; give it as standard input, as `-`")),
        _ => error,
    })
}

/// A file, or the manifests of a directory in order.
fn manifests(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let is_manifest = |path: &PathBuf| {
        let known = path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
        let hidden = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'));
        // What is no plain file is refused when it is read: left out, it might have been a policy.
        known && !hidden && !path.is_dir()
    };
    let entries = fs::read_dir(path)?.map(|entry| entry.map(|e| e.path()));
    let mut found = entries.collect::<io::Result<Vec<_>>>()?;
    found.retain(is_manifest);
    found.sort();
    Ok(found)
}

/// More than a cluster prints of itself.
const MOST: u64 = 256 << 20;
/// How deep lists may stand in lists.
const MAX_LISTS: usize = 2;

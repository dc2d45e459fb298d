//! Where a node's settings come from: flags, then the environment, then a file, then Istio's ProxyConfig, then defaults. The
//! first that says something counts.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ambient_control::manifests::tree::{self, Node};
use ambient_node::telemetry::log;
use anyhow::Context as _;
use clap::{
    Arg, ArgMatches, Command,
    builder::{OsStringValueParser, TypedValueParser},
    error::{ContextKind, ContextValue, ErrorKind},
    parser::ValueSource,
};
use serde::{
    Deserializer as _,
    de::{IgnoredAny, MapAccess, Visitor},
};
use serde_json::Value;

use super::proxy_config::{self, ProxyConfig};
use crate::{given, not_text};

/// Names the file, besides `--config`.
const FILE_VARIABLE: &str = "AMBIENT_CONFIG";
/// ztunnel's, where `ISTIO_META_CLUSTER_ID` says nothing.
const CLUSTER: &str = "CLUSTER_ID";
/// How much of the processors the container is given, as Kubernetes writes it.
const CPU_LIMIT: &str = "ZTUNNEL_RESOURCE_CPU_LIMIT";
const CPU_REQUEST: &str = "ZTUNNEL_RESOURCE_CPU_REQUEST";
/// How many cores there are to it: all of the machine's, where the container has no limit.
const CPU_CORES: &str = "ZTUNNEL_CPU_LIMIT";
/// What is read besides the variables of flags.
pub(crate) const OTHER_VARIABLES: [&str; 5] = [proxy_config::VARIABLE, CLUSTER, CPU_LIMIT, CPU_REQUEST, CPU_CORES];
/// Of which the value may be a secret.
const TOKEN: &str = "auth-token";
/// Not settings themselves.
const NOT_SETTINGS: [&str; 3] = ["config", "print-config", "help"];

/// What the command line says, with the values of the files below it.
#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) matches: ArgMatches,
    /// The settings of the subcommand and where they come from, in the order of the flags.
    pub(crate) settings: Vec<Setting>,
}

/// What is said of a setting: its name, the value, and where that stands.
pub(super) type Found = (String, String, String);

/// A setting that has a value.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    name: String,
    values: Vec<String>,
    from: String,
}

/// Why the process does not start.
pub(crate) enum Wrong {
    /// clap's: help and version are such too.
    Clap(clap::Error),
    /// Of a command, with what clap does not know.
    Text(String, String),
}

/// Reads a command line. Of the subcommand `node` the files count too, besides the environment; `proxy ztunnel` is a node with
/// ztunnel's defaults.
pub(crate) fn read(command: Command, mut arguments: Vec<OsString>) -> Result<Read, Wrong> {
    let is_proxy = as_node(&mut arguments)?;
    if arguments.get(1).is_none_or(|verb| verb != "node") {
        return of_another(command, &arguments);
    }
    let node = command.find_subcommand("node").cloned().unwrap_or_default();
    let wrong = |error: anyhow::Error| of_node(format!("{error:#}"));
    let of_istio = ProxyConfig::read(is_proxy).map_err(wrong)?;
    let mut found = files(&arguments, &of_istio).map_err(wrong)?;
    if is_proxy {
        let said = |name: &&str| is_said(&node, &arguments, &found, name);
        let of_proxy = of_proxy(said, &of_istio);
        found.extend(of_proxy);
    }
    let mut defaults: BTreeMap<String, (String, String)> = BTreeMap::new();
    for (name, value, from) in found {
        let known = node.get_arguments().any(|arg| arg.get_long() == Some(&name));
        if !known || NOT_SETTINGS.contains(&&*name) {
            return Err(of_node(format!(
                "{from}: there is no setting of this name; they are named as the flags are"
            )));
        }
        // What was found first counts.
        defaults.entry(name).or_insert((value, from));
    }
    let command = command.mut_subcommand("node", |node| {
        node.mut_args(|arg| match arg.get_long().and_then(|name| defaults.get(name)) {
            Some((value, _)) => arg.required(false).default_value(value.clone()),
            None => arg,
        })
    });
    let node = command.find_subcommand("node").cloned().unwrap_or_default();
    let matches = command
        .try_get_matches_from(arguments.clone())
        .map_err(|error| named(error, &node, &arguments, &defaults))?;
    let settings = matches
        .subcommand_matches("node")
        .map(|matches| settings(&node, matches, &defaults));
    Ok(Read {
        settings: settings.unwrap_or_default(),
        matches,
    })
}

fn of_node(why: String) -> Wrong {
    Wrong::Text("node".to_owned(), why)
}

/// Another command, of which flags and the environment count alone.
fn of_another(command: Command, arguments: &[OsString]) -> Result<Read, Wrong> {
    let (mut verbs, mut verb) = (Vec::new(), command.clone());
    // A verb may have verbs of its own, of which one comes next.
    while let Some(next) = arguments.get(verbs.len() + 1).and_then(|next| verb.find_subcommand(next).cloned()) {
        verbs.push(next.get_name().to_owned());
        verb = next;
    }
    let none = BTreeMap::new();
    let matches = command
        .try_get_matches_from(arguments)
        .map_err(|error| named(error, &verb, arguments, &none))?;
    let of_verb = verbs.iter().try_fold(&matches, |matches, verb| matches.subcommand_matches(verb));
    let settings = of_verb.map(|of_verb| settings(&verb, of_verb, &none));
    Ok(Read {
        settings: settings.unwrap_or_default(),
        matches,
    })
}

/// What a node is otherwise that is started as ztunnel is: the rest of its settings are in ztunnel's own variables.
fn of_proxy(is_said: impl Fn(&&str) -> bool, said: &ProxyConfig) -> Vec<Found> {
    let fixed = [("zds", "/var/run/ztunnel/ztunnel.sock"), ("share-ports", "true")];
    let fixed = fixed.map(|(name, value)| (name.to_owned(), value.to_owned(), "ztunnel's default".to_owned()));
    // Whoever says nothing else means istiod. As ztunnel takes it, `discoveryAddress` is where state comes from, and says
    // nothing of certificates: those are `CA_ADDRESS`'s.
    let state = said.address().unwrap_or_else(istiod);
    let istiods = [("xds-address", &STATE[..], state), ("ca-address", &CERTIFICATES[..], istiod())]
        .into_iter()
        .filter(|(_, sources, _)| !sources.iter().any(&is_said))
        .map(|(name, _, (address, from))| (name.to_owned(), address, from));
    fixed.into_iter().chain(istiods).collect()
}

/// Where istiod is where nobody says it, and who says so.
fn istiod() -> (String, String) {
    let host = match std::env::var_os("KUBERNETES_SERVICE_HOST") {
        Some(_) => "istiod.istio-system.svc",
        None => "localhost",
    };
    (format!("{host}:15012"), "ztunnel's default".to_owned())
}

/// Each names where state comes from.
const STATE: [&str; 5] = ["control", "manifests", "local-xds-path", "local-xds", "xds-address"];
/// Each names where certificates come from.
const CERTIFICATES: [&str; 5] = ["control", "ca-dir", "spire-admin-socket", "spiffe-socket", "ca-address"];

/// Whether a flag, a variable or a file says something of a setting.
fn is_said(node: &Command, arguments: &[OsString], found: &[Found], name: &str) -> bool {
    let by_variable = node.get_arguments().any(|arg| {
        let of_it = arg.get_long() == Some(name);
        let value = arg.get_env().filter(|_| of_it).and_then(std::env::var_os);
        // An empty address of istiod switches it off; elsewhere an empty text says nothing.
        value.is_some_and(|value| !value.is_empty() || name.ends_with("-address"))
    });
    by_variable || is_flag(arguments, name) || found.iter().any(|(of, ..)| of == name)
}

/// Whether a flag stands on the command line.
fn is_flag(arguments: &[OsString], name: &str) -> bool {
    let flag = format!("--{name}");
    arguments.iter().any(|argument| {
        let argument = argument.to_string_lossy();
        argument == flag || argument.strip_prefix(&flag).is_some_and(|rest| rest.starts_with('='))
    })
}

/// Istio's charts start their node proxy with the arguments `proxy ztunnel`, of which the second is a name; whether it was so.
/// Another name is that of another proxy, in whose place a node is not.
fn as_node(arguments: &mut Vec<OsString>) -> Result<bool, Wrong> {
    if arguments.get(1).is_none_or(|verb| verb != "proxy") {
        return Ok(false);
    }
    arguments[1] = "node".into();
    let name = arguments.get(2).map(|name| name.to_string_lossy().into_owned());
    match name {
        Some(name) if name == "ztunnel" => drop(arguments.remove(2)),
        Some(name) if !name.starts_with('-') => {
            let why = format!("proxy {name}: ztunnel is the one proxy of Istio's that this program stands in for, as `proxy ztunnel`");
            return Err(of_node(why));
        }
        _ => {}
    }
    Ok(true)
}

/// What has said something of a setting, for who is to change it.
pub(crate) fn by(settings: &[Setting], name: &str) -> String {
    let from = settings.iter().find(|setting| setting.name == name).map(|setting| &*setting.from);
    match from {
        None | Some("flag" | "default") => format!("--{name}"),
        Some(other) => other.to_owned(),
    }
}

/// What an error is of, where a path that a setting names has brought it about.
pub(crate) fn what(by: &str) -> String {
    format!("what {by} names")
}

/// The settings as a file of them, each with where it comes from.
pub(crate) fn print(settings: &[Setting]) -> String {
    let line = |setting: &Setting| format!("{setting}\n");
    settings.iter().map(line).collect()
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.values.join(",");
        // A file with a token may be told of; a token may not.
        if self.name == TOKEN && !text.contains('/') && !Path::new(&text).exists() {
            return write!(f, "# {TOKEN}: a token itself, which is not shown  # {}", self.from);
        }
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"./_-%".contains(&b);
        let value = match text.bytes().all(is_plain) && !text.is_empty() && !text.starts_with('-') {
            true => text,
            false => serde_json::to_string(&text).unwrap_or_default(),
        };
        write!(f, "{}: {value}  # {}", self.name, self.from)
    }
}

fn settings(command: &Command, matches: &ArgMatches, defaults: &BTreeMap<String, (String, String)>) -> Vec<Setting> {
    let arguments = command.get_arguments().filter_map(|arg| Some((arg, arg.get_long()?)));
    let mut found = Vec::new();
    for (arg, name) in arguments.filter(|(_, name)| !NOT_SETTINGS.contains(name)) {
        let Some(source) = matches.value_source(arg.get_id().as_str()) else {
            continue;
        };
        let raw = matches.get_raw(arg.get_id().as_str());
        let values = raw.into_iter().flatten().map(|value| value.to_string_lossy().into_owned());
        let from = match source {
            ValueSource::CommandLine => "flag".to_owned(),
            ValueSource::EnvVariable => arg.get_env().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
            _ => defaults.get(name).map_or_else(|| "default".to_owned(), |(_, from)| from.clone()),
        };
        found.push(Setting {
            name: name.to_owned(),
            values: values.collect(),
            from,
        });
    }
    found
}

/// An error of a value, with where the value stands.
fn named(error: clap::Error, command: &Command, arguments: &[OsString], defaults: &BTreeMap<String, (String, String)>) -> Wrong {
    let verb = || arguments.get(1).map(|verb| verb.to_string_lossy().into_owned()).unwrap_or_default();
    if let Some(told) = not_text::told(&error, command, arguments) {
        return Wrong::Text(verb(), told);
    }
    if !matches!(error.kind(), ErrorKind::ValueValidation | ErrorKind::InvalidValue) {
        return Wrong::Clap(error);
    }
    let Some(ContextValue::String(shown)) = error.get(ContextKind::InvalidArg) else {
        return Wrong::Clap(error);
    };
    let name = shown
        .split([' ', '='])
        .next()
        .unwrap_or_default()
        .trim_start_matches("--")
        .to_owned();
    let arg = command.get_arguments().find(|arg| arg.get_long() == Some(&name));
    let variable = arg.and_then(|arg| {
        let variable = arg.get_env()?.to_string_lossy().into_owned();
        std::env::var_os(&variable).map(|_| variable)
    });
    let others = arg.and_then(Arg::get_all_aliases).unwrap_or_default();
    let is_flag = others.into_iter().chain([&*name]).any(|name| is_flag(arguments, name));
    let from = match (is_flag, variable, defaults.get(&name)) {
        (true, ..) => return Wrong::Clap(error),
        (false, Some(variable), _) => format!("the environment variable {variable}"),
        (false, None, Some((_, from))) => from.clone(),
        (false, None, None) => return Wrong::Clap(error),
    };
    let text = error.to_string();
    // What is wrong and what was wanted; not where to read more.
    let lines = text.lines().map(str::trim).take_while(|line| !line.starts_with("For more"));
    let text = lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
    let text = text.trim_start_matches("error: ");
    Wrong::Text(verb(), format!("{from}: {text}"))
}

/// What the files say: name, value, and where it stands; what counts more comes first.
fn files(arguments: &[OsString], of_istio: &ProxyConfig) -> anyhow::Result<Vec<Found>> {
    let mut found = Vec::new();
    let flag = arguments.iter().enumerate().find_map(|(at, argument)| {
        let argument = argument.to_str()?;
        match argument.strip_prefix("--config")? {
            "" => arguments.get(at + 1).cloned(),
            rest => rest.strip_prefix('=').map(OsString::from),
        }
    });
    if let Some(file) = flag.or_else(|| std::env::var_os(FILE_VARIABLE).filter(|file| !file.is_empty())) {
        found.extend(of_file(Path::new(&file))?);
    }
    found.extend(of_istio.settings()?);
    if let Some(cluster) = said(CLUSTER) {
        found.push(("cluster-id".to_owned(), cluster, CLUSTER.to_owned()));
    }
    found.extend(of_share(said(CPU_LIMIT), said(CPU_REQUEST), said(CPU_CORES))?);
    Ok(found)
}

fn said(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.is_empty())
}

/// As many threads as the container's share of the cores, where it has one: all of its limit, at least its request; and else the
/// usual share of the cores that it is told of.
fn of_share(limit: Option<String>, request: Option<String>, cores_told: Option<String>) -> anyhow::Result<Option<Found>> {
    let read = |name: &str, text: Option<String>| {
        let cores = |text: String| {
            cores(&text).with_context(|| format!("the environment variable {name}: {text:?} is no quantity of CPU, such as 2 or 500m"))
        };
        text.map(cores).transpose()
    };
    let (limit, request) = (read(CPU_LIMIT, limit)?, read(CPU_REQUEST, request)?.unwrap_or(0));
    let auto_told = read(CPU_CORES, cores_told)?.map(ambient_node::workers_of);
    let auto = auto_told.unwrap_or_else(auto_workers);
    let (count, from) = match limit {
        Some(limit) => (limit.max(request), CPU_LIMIT),
        None if request > auto => (request, CPU_REQUEST),
        None if auto_told.is_some() => (auto, CPU_CORES),
        None => return Ok(None),
    };
    Ok(Some(("workers".to_owned(), count.max(1).to_string(), from.to_owned())))
}

/// Of which shares are taken: what the container is told, or else what the system says.
fn cores_here() -> usize {
    let told = [CPU_LIMIT, CPU_CORES].into_iter().find_map(said);
    // One that cannot be read stops the start in its own name.
    let told = told.and_then(|text| cores(&text)).map(|cores| cores.max(1));
    told.unwrap_or_else(|| std::thread::available_parallelism().map_or(2, std::num::NonZero::get))
}

/// Whole cores, of a quantity of Kubernetes'.
fn cores(text: &str) -> Option<usize> {
    let (number, per_core) = match text.strip_suffix('m') {
        Some(thousandths) => (thousandths, 1000.0),
        None => (text, 1.0),
    };
    let is_plain = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let cores = number.parse::<f64>().ok().filter(|_| is_plain)? / per_core;
    // Nobody has more, and nothing is cut off below that.
    (cores <= 1024.0).then_some(cores.ceil() as usize)
}

fn of_file(path: &Path) -> anyhow::Result<Vec<Found>> {
    let shown = path.display();
    let text = given::text(path).with_context(|| format!("cannot read the settings in {shown}"))?;
    // Some editors begin a file with a mark of its encoding.
    let text = text.trim_start_matches('\u{feff}');
    let mut fields = map(text).with_context(|| shown.to_string())?;
    as_written(text, &mut fields).with_context(|| shown.to_string())?;
    let field = |(name, value): (String, Value)| {
        let from = format!("{shown}: {name}");
        Some((name, text_of(&value)?, from))
    };
    Ok(fields.into_iter().filter_map(field).collect())
}

/// The fields of a YAML map. As YAML 1.2 has it, `on` and `yes` are texts.
pub(super) fn map(text: &str) -> anyhow::Result<BTreeMap<String, Value>> {
    let at = |line, why: &dyn fmt::Display| match line {
        0 => anyhow::anyhow!("{why}"),
        line => anyhow::anyhow!("line {line}: {why}"),
    };
    let documents = tree::documents(text.as_bytes()).context("no thread to read it with")?;
    match &documents.map_err(|error| at(error.line, &error.why))?[..] {
        [] => Ok(BTreeMap::new()),
        [
            map @ Node {
                value: tree::Value::Map(_),
                ..
            },
        ] => map.read().map_err(|error| at(error.line, &error.why)),
        [other] => Err(at(other.line, &"is no YAML map of settings")),
        [_, second, ..] => Err(at(second.line, &"one document is wanted, and this is another")),
    }
}

/// Puts the texts of numbers in their place, as the environment would have them: `010`, `0x10`, `1_000` and `1e3` are numbers of YAML's,
/// and not what is meant by every reader.
fn as_written(text: &str, fields: &mut BTreeMap<String, Value>) -> anyhow::Result<()> {
    struct Texts<'a>(&'a mut BTreeMap<String, Value>);
    impl<'de> Visitor<'de> for Texts<'_> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a map of settings")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
            while let Some(name) = map.next_key::<String>()? {
                match self.0.get_mut(&name) {
                    Some(number @ Value::Number(_)) => *number = Value::String(map.next_value()?),
                    Some(Value::Array(list)) if list.iter().any(Value::is_number) && is_plain(list) => {
                        let texts: Vec<Option<String>> = map.next_value()?;
                        *list = texts.into_iter().map(Value::from).collect();
                    }
                    _ => drop(map.next_value::<IgnoredAny>()?),
                }
            }
            Ok(())
        }
    }
    let is_of = |value: &Value| value.is_number() || value.as_array().is_some_and(|list| list.iter().any(Value::is_number));
    if !fields.values().any(is_of) {
        return Ok(());
    }
    let read = serde_saphyr::with_deserializer_from_str(text, |texts| texts.deserialize_map(Texts(fields)));
    read.map_err(|error| anyhow::anyhow!("a number cannot be read: {}", error.without_snippet()))
}

/// Whether a list is one of plain values.
fn is_plain(list: &[Value]) -> bool {
    list.iter().all(|value| !value.is_object() && !value.is_array())
}

/// As it would stand behind a flag; `None` for what is not set. A list of plain values is one with commas between them,
/// anything deeper is YAML.
fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        Value::Array(values) if is_plain(values) => Some(values.iter().filter_map(text_of).collect::<Vec<_>>().join(",")),
        // JSON is YAML.
        other => Some(other.to_string()),
    }
}

/// The name of a Kubernetes node, which is a DNS name.
pub(crate) fn node_name(text: &str) -> Result<String, String> {
    match is_dns_name(text) {
        true => Ok(text.to_owned()),
        false => Err(format!(
            "the name of a Kubernetes node is wanted, of letters, digits, dashes and dots, 253 characters at most and 63 between dots, \
             and not {text:?}"
        )),
    }
}

/// The name of a namespace, which is a label of DNS in lower case.
pub(crate) fn namespace(text: &str) -> Result<Arc<str>, String> {
    let is_end = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let ends = text.bytes().next().into_iter().chain(text.bytes().next_back());
    let plain = text.bytes().all(|byte| is_end(byte) || byte == b'-') && ends.into_iter().all(is_end);
    match plain && (1..=63).contains(&text.len()) {
        true => Ok(text.into()),
        false => Err(format!(
            "the name of a namespace is wanted, of small letters, digits and dashes between them, 63 at most, and not {text:?}"
        )),
    }
}

/// The same in a list with commas, where an empty text, as an empty variable gives it, names none.
pub(crate) fn namespace_or_none(text: &str) -> Result<Arc<str>, String> {
    if text.is_empty() { Ok(text.into()) } else { namespace(text) }
}

/// The name of a pod, or of a service account: what Kubernetes takes for a DNS name, in lower case.
pub(crate) fn object_name(text: &str) -> Result<Arc<str>, String> {
    let plain = text.bytes().all(|byte| !byte.is_ascii_uppercase() && byte != b'_');
    match plain && is_dns_name(text) {
        true => Ok(text.into()),
        false => Err(format!(
            "the name of an object of Kubernetes is wanted, of small letters, digits, dashes and dots, 253 at most, and not {text:?}"
        )),
    }
}

/// What can be the value of a label of Kubernetes, which a name is compared with.
pub(crate) fn label(text: &str) -> Result<Arc<str>, String> {
    let ends = text.bytes().next().into_iter().chain(text.bytes().next_back());
    let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    match plain && text.len() <= 63 && ends.into_iter().all(|byte| byte.is_ascii_alphanumeric()) {
        true => Ok(text.into()),
        false => Err(format!(
            "the value of a label is wanted, of letters, digits, and dashes, dots and underscores between them, 63 at most, and not {text:?}"
        )),
    }
}

/// A name that stands in headers, as that of a cluster or a network does.
pub(crate) fn word(text: &str) -> Result<Arc<str>, String> {
    match text.len() <= 256 && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(text.into()),
        false => Err(format!(
            "a name of visible ASCII characters without spaces is wanted, 256 at most, and not {text:?}"
        )),
    }
}

/// A DNS domain, in lower case.
pub(crate) fn domain(text: &str) -> Result<String, String> {
    match is_dns_name(text) {
        true => Ok(text.to_ascii_lowercase()),
        false => Err(format!("a DNS domain is wanted, such as cluster.local, and not {text:?}")),
    }
}

/// Underscores are no letters of DNS names, and stand in some.
fn is_dns_name(text: &str) -> bool {
    let is_label = |label: &str| {
        let plain = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
        plain && (1..=63).contains(&label.len())
    };
    text.len() <= 253 && text.split('.').all(is_label)
}

/// A switch of Istio's metadata, of which the case does not count.
pub(crate) fn truth(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(format!("true or false is wanted, and not {text:?}")),
    }
}

/// What is logged.
pub(crate) fn log_filter(text: &str) -> Result<String, log::LogError> {
    log::check(text).map(|()| text.to_owned())
}

/// A time: `5s`, `1h30m`, `500ms`, `2 hours + 5 min`; a bare number is seconds. What ztunnel reads is read, but for products.
pub(crate) fn time(text: &str) -> Result<Duration, String> {
    let wanted = || format!("a time is wanted, such as 5s, 1h30m or 500ms, and not {text:?}");
    let mut rest = text.trim();
    let mut sum = Duration::ZERO;
    if rest.is_empty() {
        return Err(wanted());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let number: u64 = rest[..digits].parse().map_err(|_| wanted())?;
        rest = rest[digits..].trim_start();
        let letters = rest.find(|c: char| !c.is_alphabetic()).unwrap_or(rest.len());
        let unit = unit(&rest[..letters].to_lowercase()).ok_or_else(wanted)?;
        let part = number.checked_mul(unit).map(Duration::from_nanos).ok_or_else(wanted)?;
        sum = sum.checked_add(part).ok_or_else(wanted)?;
        rest = rest[letters..].trim_start();
        if let Some(more) = rest.strip_prefix('+') {
            rest = more.trim_start();
            if rest.is_empty() {
                return Err(wanted());
            }
        }
    }
    Ok(sum)
}

/// Nanoseconds of a unit, by any of its names.
fn unit(name: &str) -> Option<u64> {
    Some(match name {
        "ns" | "nsec" | "nanosecond" | "nanoseconds" => 1,
        "us" | "usec" | "usecond" | "µs" | "µsec" | "µsecond" | "microsecond" | "microseconds" => 1000,
        "ms" | "msec" | "millisecond" | "milliseconds" => 1_000_000,
        "" | "s" | "sec" | "second" | "seconds" => SECOND,
        "m" | "min" | "minute" | "minutes" => 60 * SECOND,
        "h" | "hr" | "hour" | "hours" => 3600 * SECOND,
        "d" | "day" | "days" => DAY,
        "w" | "week" | "weeks" => 7 * DAY,
        "mon" | "month" | "months" => 30 * DAY,
        "y" | "year" | "years" => 365 * DAY,
        _ => return None,
    })
}

const SECOND: u64 = 1_000_000_000;
const DAY: u64 = 86_400 * SECOND;

/// A time that is waited for: none at all would be no time to do anything in.
pub(crate) fn patience(text: &str) -> Result<Duration, String> {
    let time = time(text)?;
    match time.is_zero() {
        true => Err(format!("a time of more than nothing is wanted, and not {text:?}")),
        false => Ok(time),
    }
}

/// A time that the kernel counts in seconds: tcp(7) takes from 1 to 32,767.
pub(crate) fn kernel_seconds(text: &str) -> Result<Duration, String> {
    let time = time(text)?;
    match (1..=32_767).contains(&time.as_secs()) && time.subsec_nanos() == 0 {
        true => Ok(time),
        false => Err(format!(
            "whole seconds from 1 to 32767 are wanted, which is what the kernel takes, and not {text:?}"
        )),
    }
}

/// As ztunnel reckons: most of a machine is its pods'.
pub(crate) const AUTO: &str = "auto";

fn auto_workers() -> usize {
    ambient_node::Config::new("", "").workers
}

/// How long a thread looks for news: `auto`, or a time that nobody would call sleeping.
pub(crate) fn busy_poll(text: &str) -> Result<Duration, String> {
    if text.trim() == AUTO {
        return Ok(ambient_node::Config::new("", "").busy_poll);
    }
    match time(text) {
        Ok(time) if time <= Duration::from_millis(10) => Ok(time),
        _ => Err(format!(
            "a time of at most 10ms is wanted, such as 200us, or 0, or auto, and not {text:?}"
        )),
    }
}

/// A path; an empty text, as an empty variable gives it, names none.
pub(crate) fn path_or_none() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

/// Threads: `N`, a share of the cores as `P%`, 0 for as many as there are cores, or `auto`.
pub(crate) fn workers(text: &str) -> Result<usize, String> {
    let wanted =
        || format!("a number of threads or a share of the cores is wanted, such as 4, 50%, 0 for all cores or auto, and not {text:?}");
    if text.trim() == AUTO {
        return Ok(auto_workers());
    }
    let cores = cores_here();
    let count = match text.trim().strip_suffix('%') {
        Some(share) => {
            let share: f64 = share
                .parse()
                .ok()
                .filter(|share| *share > 0.0 && *share <= 1000.0)
                .ok_or_else(wanted)?;
            (cores as f64 * share / 100.0).ceil() as usize
        }
        None => text.trim().parse().ok().filter(|count| *count <= 1024).ok_or_else(wanted)?,
    };
    Ok(if count == 0 { cores } else { count })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_ztunnel_reads_them() {
        for (text, millis) in [
            ("5s", 5000),
            ("5", 5000),
            ("1h30m", 5_400_000),
            ("500ms", 500),
            ("1m30", 90_000),
            ("0", 0),
            ("5m0s", 300_000),
            ("3m + 31", 211_000),
            ("3m 1s 29ms", 181_029),
            ("2 Hours+5MIN", 7_500_000),
            ("1w1d", 691_200_000),
            ("1mon", 2_592_000_000),
            ("1y", 31_536_000_000),
            ("2000us 3000µs 1000000ns", 6),
        ] {
            assert_eq!(time(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        let wrong = [
            "",
            " ",
            "s",
            "5x",
            "-1s",
            "1.5s",
            "1s+",
            "+1s",
            "1s++1s",
            "2*3s",
            "5\u{b5}",
            "99999999999999999999s",
            "9999999999999h",
        ];
        for text in wrong {
            assert!(time(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_kept_to_is_refused() {
        assert_eq!(patience("1ms"), Ok(Duration::from_millis(1)));
        assert!(patience("0").unwrap_err().contains("\"0\""));
        assert_eq!(kernel_seconds("9h").map(|time| time.as_secs()), Ok(32_400));
        for text in ["0", "32768", "10h", "1500ms", "soon"] {
            assert!(kernel_seconds(text).unwrap_err().contains(text), "{text}");
        }
    }

    #[test]
    fn names_are_those_of_dns() {
        for text in ["n", "node-1", "ip-10-0-0-1.eu-central-1.compute.internal", "under_score"] {
            assert_eq!(node_name(text).as_deref(), Ok(text));
        }
        assert_eq!(domain("Cluster.Local").as_deref(), Ok("cluster.local"));
        let long = ["a"; 128].join(".");
        for text in ["", ".", "a.", ".a", "a..b", "a b", "a/b", "..", &"a".repeat(64), &long] {
            assert!(node_name(text).unwrap_err().contains(&format!("{text:?}")), "{text}");
            assert!(domain(text).unwrap_err().contains(&format!("{text:?}")), "{text}");
        }
        assert_eq!((truth("True"), truth("false")), (Ok(true), Ok(false)));
        assert!(truth("yes").unwrap_err().contains("\"yes\""));
    }

    #[test]
    fn threads_are_a_number_or_a_share() {
        let cores = std::thread::available_parallelism().unwrap().get();
        assert_eq!(workers("3"), Ok(3));
        assert_eq!(workers("0"), Ok(cores));
        assert_eq!(workers("100%"), Ok(cores));
        assert_eq!(workers("1%"), Ok(1));
        assert_eq!((workers("0.5%"), workers("99.9%")), (Ok(1), Ok(cores)));
        assert_eq!(workers("auto"), Ok(cores.div_ceil(4).max(2).min(cores)));
        for text in ["", "%", "0%", "-1%", "NaN%", "1001%", "-1", "two", "1025"] {
            assert!(workers(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_containers_share_of_the_processors_says_how_many_threads() {
        let threads = |limit: Option<&str>, request: Option<&str>| {
            let found = of_share(limit.map(str::to_owned), request.map(str::to_owned), None);
            found.map(|found| found.map(|(name, value, from)| (name, value.parse::<usize>().unwrap(), from)))
        };
        let of = |count, from: &str| Some(("workers".to_owned(), count, from.to_owned()));
        assert_eq!(threads(None, None).unwrap(), None);
        assert_eq!(threads(Some("3"), None).unwrap(), of(3, CPU_LIMIT));
        assert_eq!(threads(Some("1500m"), Some("100m")).unwrap(), of(2, CPU_LIMIT));
        assert_eq!(
            threads(Some("1"), Some("2.5")).unwrap(),
            of(3, CPU_LIMIT),
            "what was asked for is had"
        );
        assert_eq!(threads(Some("0"), None).unwrap(), of(1, CPU_LIMIT));
        assert_eq!(threads(None, Some("100m")).unwrap(), None, "less than is taken anyhow");
        assert_eq!(threads(None, Some("999")).unwrap(), of(999, CPU_REQUEST));
        for (limit, request, named) in [
            (Some("two"), None, CPU_LIMIT),
            (None, Some("-1"), CPU_REQUEST),
            (Some("1e9"), None, CPU_LIMIT),
        ] {
            let why = threads(limit, request).unwrap_err().to_string();
            assert!(why.contains(named) && why.contains("500m"), "{why}");
        }
        // What there is to the container in all, of which it takes the usual share.
        let of_cores = |limit: Option<&str>, request: Option<&str>, cores: &str| {
            let found = of_share(limit.map(str::to_owned), request.map(str::to_owned), Some(cores.to_owned()));
            found.map(|found| found.map(|(_, value, from)| (value, from)))
        };
        let is = |count: &str, from: &str| Some((count.to_owned(), from.to_owned()));
        assert_eq!(of_cores(None, None, "32").unwrap(), is("8", CPU_CORES));
        assert_eq!(of_cores(None, Some("200m"), "4").unwrap(), is("2", CPU_CORES));
        assert_eq!(of_cores(None, Some("9"), "32").unwrap(), is("9", CPU_REQUEST));
        assert_eq!(of_cores(Some("3"), None, "32").unwrap(), is("3", CPU_LIMIT));
        let why = of_cores(None, None, "all").unwrap_err().to_string();
        assert!(why.contains(CPU_CORES), "{why}");
    }

    #[test]
    fn who_says_nothing_else_means_istiod() {
        let names = |said: &[&str]| -> Vec<String> {
            let all = of_proxy(|name| said.iter().any(|said| said == name), &ProxyConfig::default());
            all.into_iter().skip(2).map(|(name, ..)| name).collect()
        };
        assert_eq!(names(&[]), ["xds-address", "ca-address"]);
        assert_eq!(names(&["local-xds-path"]), ["ca-address"]);
        assert_eq!(names(&["xds-address", "spire-admin-socket"]), [""; 0]);
        assert_eq!(names(&["control"]), [""; 0]);
    }
}

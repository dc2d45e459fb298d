//! The CNI plugin: hands the namespace of each new pod over to the node, and says whether the pod may be started.
//!
//! A runtime calls it by the name of its file, `ambient-cni`: a link to the binary, in the directory of CNI plugins. It is a
//! link of a chain ([CNI 1.1]), after the plugin that gives addresses, and gives on what that has given.
//!
//! [CNI 1.1]: https://github.com/containernetworking/cni/blob/v1.2.0/SPEC.md

use std::{
    collections::BTreeMap,
    env,
    ffi::OsStr,
    io::{self, Read as _, Write as _},
    net::IpAddr,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use serde::Deserialize;
use serde_json::{Value, json};

/// The name that the plugin goes by.
const NAME: &str = "ambient-cni";
/// What it can be told, and gives on.
const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// The node answers before that.
const PATIENCE: Duration = Duration::from_secs(10);
const MOST: u64 = 1 << 20;

/// Whether the process is called as the plugin.
pub(crate) fn is_plugin(name: Option<&OsStr>) -> bool {
    let file = name.and_then(|name| Path::new(name).file_name());
    file.is_some_and(|file| file == NAME)
}

/// Does what `CNI_COMMAND` says; what goes wrong is told as the specification has it, on standard output.
pub(crate) fn main() -> ExitCode {
    let mut input = String::new();
    let read = io::stdin().take(MOST).read_to_string(&mut input);
    let version = version_of(&input);
    let done = read
        .map_err(|e| Failure::new(IO, "the configuration cannot be read", e))
        .and_then(|_| run(&|name| env::var(name).ok(), &input));
    let (said, code) = match done {
        Ok(said) => (said, ExitCode::SUCCESS),
        Err(Failure { code, msg, details }) => {
            let error = json!({"cniVersion": version, "code": code, "msg": msg, "details": details});
            (Some(error), ExitCode::FAILURE)
        }
    };
    if let Some(said) = said {
        let _ = writeln!(io::stdout(), "{said}");
    }
    code
}

/// What goes wrong, in the form of the specification.
#[derive(Debug)]
struct Failure {
    code: u32,
    msg: String,
    details: String,
}

impl Failure {
    fn new(code: u32, msg: impl Into<String>, details: impl ToString) -> Self {
        Self {
            code,
            msg: msg.into(),
            details: details.to_string(),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    cni_version: String,
    /// Where the node listens for plugins.
    #[serde(default = "usual_socket")]
    socket: PathBuf,
    /// Namespaces whose pods are started without the node.
    #[serde(default = "usual_excluded")]
    exclude_namespaces: Vec<String>,
    prev_result: Option<Value>,
}

fn usual_socket() -> PathBuf {
    "/run/ambient/cni.sock".into()
}

fn usual_excluded() -> Vec<String> {
    vec!["kube-system".into()]
}

/// What is asked, as variables and standard input say it; gives what is to be said, if anything is.
fn run(variable: &dyn Fn(&str) -> Option<String>, input: &str) -> Result<Option<Value>, Failure> {
    let command = variable("CNI_COMMAND").ok_or_else(|| Failure::new(VARIABLES, "CNI_COMMAND is not set", "a runtime calls this"))?;
    if command == "VERSION" {
        return Ok(Some(json!({"cniVersion": version_of(input), "supportedVersions": VERSIONS})));
    }
    let config: Config = serde_json::from_str(input).map_err(|e| Failure::new(UNREADABLE, "the configuration cannot be read", e))?;
    if !VERSIONS.contains(&&*config.cni_version) {
        let details = format!("{} is none of {}", config.cni_version, VERSIONS.join(", "));
        return Err(Failure::new(VERSION, "this version of CNI is not known", details));
    }
    match &*command {
        "ADD" => add(variable, config).map(Some),
        // A pod leaves with its namespace, and the node looks after the rest by itself.
        "DEL" | "CHECK" | "GC" => Ok(None),
        "STATUS" => match UnixStream::connect(&config.socket) {
            Ok(_) => Ok(None),
            Err(e) => Err(away(&config.socket, &e, NOT_AVAILABLE)),
        },
        other => Err(Failure::new(VARIABLES, "CNI_COMMAND is none that is known", other)),
    }
}

fn add(variable: &dyn Fn(&str) -> Option<String>, config: Config) -> Result<Value, Failure> {
    let given = config.prev_result.ok_or_else(|| {
        let details = "it is to stand in a chain, after the plugin that gives a pod its addresses";
        Failure::new(CONFIGURATION, "there is no prevResult", details)
    })?;
    let args = variable("CNI_ARGS").unwrap_or_default();
    let args: BTreeMap<&str, &str> = args.split(';').filter_map(|pair| pair.split_once('=')).collect();
    let of = |key: &str| args.get(key).filter(|value| !value.is_empty());
    // What is no pod of Kubernetes is none of the mesh's.
    let (Some(name), Some(namespace)) = (of("K8S_POD_NAME"), of("K8S_POD_NAMESPACE")) else {
        return Ok(given);
    };
    if config.exclude_namespaces.iter().any(|excluded| excluded == namespace) {
        return Ok(given);
    }
    let netns = variable("CNI_NETNS").filter(|netns| !netns.is_empty());
    let netns = netns.ok_or_else(|| Failure::new(VARIABLES, "CNI_NETNS is not set", "ADD names the network namespace of a pod"))?;
    let addresses = addresses_in(&given).map_err(|why| Failure::new(UNREADABLE, "prevResult cannot be read", why))?;
    let ips: Vec<Value> = addresses.iter().map(|ip| json!({"Address": {"IP": ip}})).collect();
    let said = json!({"Netns": netns, "PodName": name, "PodNamespace": namespace, "PodUID": of("K8S_POD_UID"), "IPs": ips});
    let (status, answer) = ask(&config.socket, &said.to_string()).map_err(|e| away(&config.socket, &e, TRY_AGAIN))?;
    match status {
        200 => Ok(given),
        // What the plugin says is wrong, or the namespace is another pod's: that does not pass.
        400..500 => Err(Failure::new(
            REFUSED,
            format!("the node refuses {namespace}/{name}"),
            answer.trim_end(),
        )),
        _ => Err(Failure::new(
            TRY_AGAIN,
            format!("the node does not take {namespace}/{name}"),
            answer.trim_end(),
        )),
    }
}

/// The addresses of a pod, as the plugin before has given them.
fn addresses_in(result: &Value) -> Result<Vec<IpAddr>, String> {
    let ips = result.get("ips").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let inside = |ip: &&Value| {
        let interface = ip.get("interface").and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
        let interface = interface.and_then(|n| result.get("interfaces")?.get(n));
        // One that has no sandbox is the node's.
        interface.is_none_or(|interface| interface.get("sandbox").and_then(Value::as_str).is_some_and(|s| !s.is_empty()))
    };
    let each = ips.iter().filter(inside).map(|ip| {
        let text = ip.get("address").and_then(Value::as_str).unwrap_or_default();
        let address = text.split('/').next().unwrap_or_default();
        address.parse::<IpAddr>().map_err(|_| format!("{text:?} is no address"))
    });
    each.collect()
}

/// Says something to the node, and gives the status and text of its answer.
fn ask(socket: &Path, said: &str) -> io::Result<(u16, String)> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let length = said.len();
    // HTTP/1.0: the answer ends with the connection.
    write!(
        stream,
        "POST /cmdadd HTTP/1.0\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{said}"
    )?;
    let mut answer = String::new();
    stream.take(MOST).read_to_string(&mut answer)?;
    let not_http = || io::Error::new(io::ErrorKind::InvalidData, "the answer is not HTTP");
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(not_http)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(not_http)?;
    Ok((status, body.to_owned()))
}

fn away(socket: &Path, error: &io::Error, code: u32) -> Failure {
    let details = format!(
        "{}: {error}; is `ambient node --cni` or `ambient enrol --cni` running there?",
        socket.display()
    );
    Failure::new(code, "the node does not answer", details)
}

/// That of a configuration, where it can be read.
fn version_of(input: &str) -> String {
    let config = serde_json::from_str::<Value>(input).ok();
    let said = config.as_ref().and_then(|config| config.get("cniVersion")?.as_str());
    said.filter(|said| VERSIONS.contains(said))
        .unwrap_or(VERSIONS[VERSIONS.len() - 1])
        .to_owned()
}

// The specification's codes of errors.
const VERSION: u32 = 1;
const VARIABLES: u32 = 4;
const IO: u32 = 5;
const UNREADABLE: u32 = 6;
const CONFIGURATION: u32 = 7;
const TRY_AGAIN: u32 = 11;
const NOT_AVAILABLE: u32 = 50;
/// From here on codes are the plugins' own.
const REFUSED: u32 = 100;

#[cfg(test)]
mod tests {
    use super::*;

    fn called(variables: &[(&str, &str)], input: &Value) -> Result<Option<Value>, Failure> {
        let variables: BTreeMap<String, String> = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        run(&|name| variables.get(name).cloned(), &input.to_string())
    }

    fn config(prev: Value) -> Value {
        json!({"cniVersion": "1.0.0", "name": "n", "type": NAME, "socket": "/nowhere/cni.sock", "prevResult": prev})
    }

    const POD: (&str, &str) = (
        "CNI_ARGS",
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart-0;K8S_POD_UID=u-1",
    );

    #[test]
    fn it_goes_by_the_name_of_its_file() {
        assert!(is_plugin(Some(OsStr::new("/opt/cni/bin/ambient-cni"))) && is_plugin(Some(OsStr::new("ambient-cni"))));
        assert!(!is_plugin(Some(OsStr::new("/usr/bin/ambient"))) && !is_plugin(None));
    }

    #[test]
    fn versions_are_told_and_others_refused() {
        let told = called(&[("CNI_COMMAND", "VERSION")], &json!({"cniVersion": "0.4.0"}))
            .unwrap()
            .unwrap();
        assert_eq!(told["cniVersion"], "0.4.0");
        assert!(told["supportedVersions"].as_array().unwrap().contains(&json!("1.1.0")));
        let refused = called(&[("CNI_COMMAND", "ADD")], &json!({"cniVersion": "0.1.0"})).unwrap_err();
        assert!(refused.code == VERSION && refused.details.contains("0.1.0"), "{refused:?}");
    }

    #[test]
    fn who_is_no_pod_or_excluded_is_not_asked_about() {
        let given = json!({"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.2/24"}]});
        let add = ("CNI_COMMAND", "ADD");
        assert_eq!(called(&[add], &config(given.clone())).unwrap(), Some(given.clone()));
        let system = ("CNI_ARGS", "K8S_POD_NAMESPACE=kube-system;K8S_POD_NAME=dns");
        assert_eq!(called(&[add, system], &config(given.clone())).unwrap(), Some(given.clone()));
        for leaving in ["DEL", "CHECK", "GC"] {
            assert_eq!(called(&[("CNI_COMMAND", leaving), POD], &config(given.clone())).unwrap(), None);
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_its_code() {
        let given = json!({"ips": [{"address": "10.0.0.2/24"}]});
        let (add, netns) = (("CNI_COMMAND", "ADD"), ("CNI_NETNS", "/run/netns/x"));
        for (variables, input, code, said) in [
            (&[][..], config(given.clone()), VARIABLES, "CNI_COMMAND"),
            (&[("CNI_COMMAND", "SING")], config(given.clone()), VARIABLES, "SING"),
            (&[add, POD], config(given.clone()), VARIABLES, "CNI_NETNS"),
            (&[add, POD, netns], json!({"cniVersion": "1.0.0"}), CONFIGURATION, "chain"),
            (&[add, POD, netns], config(json!({"ips": [{"address": "ten"}]})), UNREADABLE, "ten"),
            (&[add, POD, netns], config(given.clone()), TRY_AGAIN, "/nowhere/cni.sock"),
            (
                &[("CNI_COMMAND", "STATUS")],
                config(given.clone()),
                NOT_AVAILABLE,
                "/nowhere/cni.sock",
            ),
        ] {
            let failure = called(variables, &input).unwrap_err();
            let told = format!("{} {}", failure.msg, failure.details);
            assert!(failure.code == code && told.contains(said), "{failure:?}");
        }
        let failure = run(&|_| Some("ADD".into()), "{").unwrap_err();
        assert_eq!(failure.code, UNREADABLE);
    }

    #[test]
    fn addresses_are_those_of_the_pods_own_devices() {
        let result = json!({
            "interfaces": [{"name": "cni0"}, {"name": "eth0", "sandbox": "/run/netns/x"}],
            "ips": [
                {"address": "10.0.0.1/24", "interface": 0},
                {"address": "10.0.0.2/24", "interface": 1},
                {"address": "fd00::2/64"},
            ],
        });
        let found: Vec<String> = addresses_in(&result).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(found, ["10.0.0.2", "fd00::2"]);
    }
}

//! Where the settings of `ambient node` come from, and what becomes of those that cannot be read.
#![allow(clippy::unwrap_used, reason = "what tests share; clippy.toml allows it in tests alone")]

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

#[path = "../src/node/ztunnel/chart.rs"]
mod chart;
#[path = "node_config/named.rs"]
mod named;
#[path = "node_config/owned.rs"]
mod owned;
#[path = "node_config/sources.rs"]
mod sources;

/// The binary, with nothing of this process's environment.
fn node(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ambient"));
    command.arg("node").args(arguments).env_clear().envs(environment.iter().copied());
    command.output().unwrap()
}

fn printed(arguments: &[&str], environment: &[(&str, &str)]) -> String {
    let needed = ["--print-config", "--manifests", "/m", "--ca-dir", "/c"];
    let output = node(&[&needed[..], arguments].concat(), environment);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What is said of a start that must not be.
fn refused(arguments: &[&str], environment: &[(&str, &str)]) -> String {
    let needed = ["--node", "n", "--manifests", "/nowhere", "--ca-dir", "/nowhere"];
    let output = node(&[&needed[..], arguments].concat(), environment);
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stderr).unwrap()
}

fn line<'a>(printed: &'a str, name: &str) -> &'a str {
    let found = printed.lines().find(|line| line.starts_with(&format!("{name}: ")));
    found.unwrap_or_else(|| panic!("no {name}: {printed}"))
}

fn file(directory: &Path, text: &str) -> String {
    let path = directory.join("node.yaml");
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn flags_count_before_the_environment_before_the_file_before_defaults() {
    let scratch = tempfile::tempdir().unwrap();
    let file = file(
        scratch.path(),
        "node: from-file\ndrain: 1h30m\nworkers: 50%\nexclude-namespaces: [a, b]\nistio-exact: true\nmetrics: null\n",
    );
    let environment = [
        ("NODE_NAME", "from-environment"),
        ("ZTUNNEL_WORKER_THREADS", "3"),
        ("PROXY_CONFIG", "{concurrency: 7, statsPort: 16020}"),
        ("AMBIENT_BUSY_POLL", "50us"),
    ];
    let all = printed(&["--config", &file, "--workers", "2"], &environment);
    assert_eq!(line(&all, "workers"), "workers: 2  # flag");
    assert_eq!(line(&all, "node"), "node: from-environment  # NODE_NAME");
    assert_eq!(line(&all, "drain"), format!("drain: 1h30m  # {file}: drain"));
    assert_eq!(
        line(&all, "exclude-namespaces"),
        format!("exclude-namespaces: \"a,b\"  # {file}: exclude-namespaces")
    );
    assert_eq!(line(&all, "istio-exact"), format!("istio-exact: true  # {file}: istio-exact"));
    assert_eq!(line(&all, "busy-poll"), "busy-poll: 50us  # AMBIENT_BUSY_POLL");
    assert_eq!(line(&all, "metrics"), "metrics: \"[::]:16020\"  # PROXY_CONFIG: statsPort");
    assert_eq!(line(&all, "admin"), "admin: \"127.0.0.1:15000\"  # default");

    // An empty variable names no file, as in ztunnel.
    assert_eq!(
        line(&printed(&["--node", "n"], &[("CRL_PATH", "")]), "crl-path"),
        "crl-path: \"\"  # CRL_PATH"
    );

    let limits = [("ZTUNNEL_RESOURCE_CPU_LIMIT", "2500m"), ("ZTUNNEL_RESOURCE_CPU_REQUEST", "100m")];
    assert_eq!(
        line(&printed(&["--node", "n"], &limits), "workers"),
        "workers: 3  # ZTUNNEL_RESOURCE_CPU_LIMIT"
    );
    let all_of_them = [&environment[2..3], &limits].concat();
    assert_eq!(
        line(&printed(&["--node", "n"], &all_of_them), "workers"),
        "workers: 7  # PROXY_CONFIG: concurrency"
    );

    // What is printed is a file that says the same.
    let again = self::file(scratch.path(), &all);
    let printed_again = printed(&["--config", &again], &[]);
    let values = |text: &str| -> Vec<String> { text.lines().map(|line| line.split("  # ").next().unwrap().to_owned()).collect() };
    assert_eq!(values(&printed_again), values(&all));
}

/// How a command ends, with nothing of this process's environment: its code and what it says.
fn ended(command: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut ambient = Command::new(env!("CARGO_BIN_EXE_ambient"));
    let output = ambient
        .args(command)
        .env_clear()
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// A name that nothing can have would stand for nothing, and nobody would be told.
#[test]
fn names_that_nothing_has_are_refused() {
    let control = ["control", "--mesh", "/nowhere", "--ca", "/nowhere"];
    let enrol = ["enrol", "--node", "n", "--manifests", "/nowhere"];
    let node = ["node", "--node", "n", "--manifests", "/nowhere", "--ca-dir", "/nowhere"];
    for (command, flag, value, wanted) in [
        (&control[..], "--cluster-domain", "..", "a DNS domain is wanted"),
        (&control, "--root-namespace", "A B", "the name of a namespace is wanted"),
        (&control, "--ztunnel-node", "!!", "the name of a Kubernetes node is wanted"),
        (&enrol, "--exclude-namespaces", "a,A B,,", "the name of a namespace is wanted"),
        (&node, "--exclude-namespaces", "A B,,", "the name of a namespace is wanted"),
        (&node, "--root-namespace", "", "the name of a namespace is wanted"),
        (&node, "--node", &["a"; 128].join("."), "253 characters at most"),
        (&enrol, "--log", "a=[[", "the log filter"),
        (&control, "--log", "a=[[", "the log filter"),
        (&enrol, "--node", "!!", "the name of a Kubernetes node is wanted"),
        (&node, "--preferred-service-namespace", "A B", "the name of a namespace is wanted"),
        (&node, "--revision", "a-", "the value of a label is wanted"),
        (&control, "--revision", "a b", "the value of a label is wanted"),
        (&node, "--network", "net 1", "without spaces"),
        (&node, "--cluster-id", "näh", "without spaces"),
    ] {
        let mut arguments = command.to_vec();
        match arguments.iter().position(|argument| *argument == flag) {
            Some(at) => arguments[at + 1] = value,
            None => arguments.extend([flag, value]),
        }
        let (code, why) = ended(&arguments, &[]);
        assert!(
            code == Some(2) && why.contains(flag) && why.contains(wanted),
            "{arguments:?}: {why}"
        );
    }
    let (code, why) = ended(&control, &[("CLUSTER_DOMAIN", "..")]);
    assert!(code == Some(2) && why.contains("a DNS domain is wanted"), "{why}");
    // None is excluded by an empty text, as an empty variable gives it, nor by a comma too many.
    for none in ["", "a,,b-1"] {
        let (code, why) = ended(&node, &[("EXCLUDE_NAMESPACES", none)]);
        assert!(code == Some(1) && why.contains("/nowhere"), "{none:?}: {why}");
    }

    for name in ["sidecar", "bogus", "router"] {
        let (code, why) = ended(&["proxy", name, "--print-config", "--node", "n"], &[]);
        assert!(
            code == Some(2) && why.contains(&format!("proxy {name}")) && why.contains("ztunnel"),
            "{why}"
        );
    }
    for arguments in [&["proxy", "ztunnel"][..], &["proxy"]] {
        let (code, why) = ended(&[arguments, &["--print-config", "--node", "n"]].concat(), &[]);
        assert_eq!(code, Some(0), "{why}");
    }

    // Where something listens already, the flag that names another address is told.
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name).to_str().unwrap().to_owned();
    fs::create_dir(at("mesh")).unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, why) = ended(&["control", "--mesh", &at("mesh"), "--ca", &at("ca"), "--listen", &address], &[]);
    assert!(
        code == Some(1) && why.contains(&address) && why.contains("--listen names another address"),
        "{why}"
    );
    // And no authority is left behind by what is refused, whatever that is.
    for (flag, value) in [("--listen", "192.0.2.1:1"), ("--metrics", &*address), ("--name", "bad name")] {
        let mut arguments = vec!["control", "--mesh", "mesh", "--ca", "ca", "--listen", "127.0.0.1:0"];
        let (mesh, ca) = (at("mesh"), at("ca"));
        (arguments[2], arguments[4]) = (&mesh, &ca);
        match arguments.iter().position(|argument| *argument == flag) {
            Some(at) => arguments[at + 1] = value,
            None => arguments.extend([flag, value]),
        }
        let (code, why) = ended(&arguments, &[]);
        assert!(code == Some(1) && why.contains(flag) && why.contains(value), "{arguments:?}: {why}");
    }
    assert!(!Path::new(&at("ca")).exists());
    let (code, why) = ended(&["authz", "check", "-", "--root-namespace", "A B"], &[]);
    assert!(code == Some(2) && why.contains("the name of a namespace is wanted"), "{why}");
}

/// The same of a name in the environment: the variable is told that has it.
#[test]
fn a_variable_with_a_name_that_nothing_has_is_told() {
    let scratch = tempfile::tempdir().unwrap();
    let mesh = scratch.path().to_str().unwrap();
    let arguments = ["--node", "n", "--manifests", mesh, "--ca-dir", "/nowhere", "--no-dns-capture"];
    for (variable, value, wanted) in [
        ("PREFERED_SERVICE_NAMESPACE", "A B", "the name of a namespace is wanted"),
        ("REVISION", "a b", "the value of a label is wanted"),
        ("NETWORK", "net\t1", "without spaces"),
        ("ISTIO_META_CLUSTER_ID", "a b", "without spaces"),
        ("CLUSTER_ID", "a b", "without spaces"),
        ("POD_NAMESPACE", "A B", "the name of a namespace is wanted"),
        ("POD_NAME", "a_b", "the name of an object of Kubernetes is wanted"),
        ("SERVICE_ACCOUNT", "a/b", "the name of an object of Kubernetes is wanted"),
    ] {
        let mut variables = vec![(variable, value)];
        // Which say who the process's own pod is together alone.
        let pod = [("POD_NAMESPACE", "shop"), ("POD_NAME", "a-0"), ("SERVICE_ACCOUNT", "a")];
        variables.extend(pod.into_iter().filter(|(name, _)| *name != variable));
        let output = node(&arguments, &variables);
        let why = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{variable}: {why}");
        let words = [variable, wanted, &format!("{value:?}")];
        assert!(words.iter().all(|word| why.contains(word)), "{variable}: {why}");
    }
    // An empty one is none that names something wrong.
    for variable in ["PREFERED_SERVICE_NAMESPACE", "REVISION", "NETWORK", "POD_NAMESPACE", "POD_NAME"] {
        let why = refused(&[], &[(variable, "")]);
        assert!(why.contains("/nowhere") && !why.contains(variable), "{variable}: {why}");
    }
    // Nor is a part of a pod's names, which is there for something else where istiod is not told of it.
    for (variable, value) in [
        ("SERVICE_ACCOUNT", "x@project.iam.example.com"),
        ("POD_NAME", "a_b"),
        ("POD_NAMESPACE", "A B"),
    ] {
        let why = refused(&[], &[(variable, value)]);
        assert!(why.contains("/nowhere") && !why.contains(variable), "{variable}: {why}");
    }
}

/// Whichever of several addresses it is: the setting that has it is told.
#[test]
fn what_is_no_address_or_name_of_a_control_plane_names_its_setting() {
    for (variable, flag) in [
        ("AMBIENT_CONTROL", "--control"),
        ("XDS_ADDRESS", "--xds-address"),
        ("CA_ADDRESS", "--ca-address"),
    ] {
        for wrong in ["not_a_url:::", "http://istiod:15012", "https://"] {
            let why = refused(&[], &[(variable, wrong)]);
            assert!(
                [variable, flag, wrong, "https://HOST:PORT is wanted"]
                    .iter()
                    .all(|word| why.contains(word)),
                "{variable} {wrong}: {why}"
            );
        }
    }
    for (variable, flag) in [("ALT_XDS_HOSTNAME", "--alt-xds-hostname"), ("ALT_CA_HOSTNAME", "--alt-ca-hostname")] {
        let why = refused(&[], &[(variable, "a name")]);
        assert!(
            [variable, flag, "a name", "a DNS name or an IP address"]
                .iter()
                .all(|word| why.contains(word)),
            "{variable}: {why}"
        );
    }
}

/// What is sent to a control plane, of which nothing checks the form before.
#[test]
fn what_cannot_be_sent_to_a_control_plane_names_its_setting() {
    let scratch = tempfile::tempdir().unwrap();
    let roots = file(scratch.path(), "");
    let control = [
        "--node",
        "n",
        "--no-dns-capture",
        "--control",
        "https://localhost:1",
        "--keys-dir",
        "none",
    ];
    for (variable, value, words) in [
        (
            "INSTANCE_IP",
            "10.0.0",
            &["INSTANCE_IP", "an IP address is wanted", "\"10.0.0\""][..],
        ),
        ("XDS_HEADER_a b", "x", &["XDS_HEADER_a b", "cannot be sent"]),
        // Told of the node, whatever else is said of its pod.
        ("POD_NAME", "a_b", &["variable POD_NAME: ", "of an object of Kubernetes", "\"a_b\""]),
        (
            "POD_NAMESPACE",
            "A B",
            &["variable POD_NAMESPACE: ", "the name of a namespace", "\"A B\""],
        ),
        ("AUTH_TOKEN", "a secret", &["AUTH_TOKEN", "visible ASCII"]),
        ("AUTH_TOKEN", " ", &["AUTH_TOKEN", "visible ASCII"]),
    ] {
        let output = node(&control, &[("XDS_ROOT_CA", &roots), (variable, value)]);
        let why = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{variable}: {why}");
        assert!(words.iter().all(|word| why.contains(word)), "{variable}: {why}");
        assert!(!why.contains("a secret"), "{why}");
    }
}

/// Whoever is to put it right is told what names it: the flag, the variable or the file.
#[test]
fn where_nothing_can_be_kept_the_setting_is_told_that_names_the_place() {
    let scratch = tempfile::tempdir().unwrap();
    // A directory cannot be made below a file.
    let below = file(scratch.path(), "") + "/state";
    let settings = scratch.path().join("settings.yaml");
    fs::write(&settings, format!("state-dir: {below}\n")).unwrap();
    let settings = settings.to_str().unwrap();
    let of_file = format!("{settings}: state-dir");
    let istiod = ["--xds-address", "https://localhost:1", "--ca-address", "https://localhost:1"];
    let mesh = scratch.path().join("mesh");
    fs::create_dir(&mesh).unwrap();
    let manifests = ["--manifests", mesh.to_str().unwrap()];
    let certificates = [&manifests[..], &["--ca-address", "https://localhost:1"]].concat();
    let spire = [&manifests[..], &["--spire-admin-socket", "unix:///nowhere"]].concat();
    let spiffe = [&manifests[..], &["--spiffe-socket", "unix:///nowhere"]].concat();
    for sources in [&istiod[..], &certificates, &spire, &spiffe] {
        for (arguments, environment, by) in [
            (&["--state-dir", &*below][..], &[][..], "--state-dir"),
            (&[], &[("AMBIENT_STATE_DIR", &*below)], "AMBIENT_STATE_DIR"),
            (&["--config", settings], &[], &*of_file),
        ] {
            let usual = ["--node", "n", "--no-dns-capture", "--keys-dir", "none", "--metrics", "127.0.0.1:0"];
            let ports = ["--readiness", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--netns-dir", "."];
            let output = node(&[&usual[..], &ports, sources, arguments].concat(), environment);
            let why = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(1), "{why}");
            let told = format!("in {below}, which {by} names (name another directory, or none): cannot make the directory");
            assert!(why.contains(&told), "{sources:?}: {why}");
        }
    }
}

/// Whatever the command: a bare number is seconds.
#[test]
fn times_are_written_alike() {
    let leave = [("AMBIENT_LEAVE_SECONDS", "30")];
    assert_eq!(
        line(&printed(&["--node", "n"], &leave), "leave"),
        "leave: 30  # AMBIENT_LEAVE_SECONDS"
    );
    for (flag, time) in [("leave", "1m30s"), ("termination-grace-period", "2min")] {
        let all = printed(&["--node", "n", &format!("--{flag}"), time], &[]);
        assert_eq!(line(&all, flag), format!("{flag}: {time}  # flag"));
    }
    let scratch = tempfile::tempdir().unwrap();
    let nowhere = scratch.path().join("nowhere");
    let nowhere = nowhere.to_str().unwrap();
    let others = [
        (&["control", "--mesh", nowhere, "--ca", nowhere][..], "--secret-ttl"),
        (&["enrol", "--node", "n", "--manifests", nowhere], "--leave"),
    ];
    for (arguments, flag) in others {
        let ended = |time: &str| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_ambient"));
            let output = command.args(arguments).args([flag, time]).env_clear().output().unwrap();
            (output.status.code(), String::from_utf8(output.stderr).unwrap())
        };
        let (code, why) = ended("soon");
        assert!(code == Some(2) && why.contains(flag) && why.contains("such as 5s"), "{why}");
        for time in ["90", "1m30s"] {
            let (code, why) = ended(time);
            assert!(code == Some(1) && why.contains("nowhere"), "{time}: {why}");
        }
    }
}

/// As YAML 1.2 has it, which ztunnel reads too: `y`, `no` and `on` are texts.
#[test]
fn words_of_a_file_are_no_truths() {
    let scratch = tempfile::tempdir().unwrap();
    let words = file(
        scratch.path(),
        "exclude-namespaces: [x, y, no, on]\nprobes: off\nistio-exact: True\nrevision: yes\n",
    );
    let all = printed(&["--node", "n", "--config", &words], &[]);
    for (name, value) in [
        ("exclude-namespaces", "\"x,y,no,on\""),
        ("probes", "off"),
        ("istio-exact", "true"),
        ("revision", "yes"),
    ] {
        assert_eq!(line(&all, name), format!("{name}: {value}  # {words}: {name}"));
    }
    let metadata = [("PROXY_CONFIG", "{proxyMetadata: {A: yes, B: n, C: true}}")];
    let all = printed(&["--node", "n"], &metadata);
    assert!(
        line(&all, "node-metadata").contains(r#"{\"A\":\"yes\",\"B\":\"n\",\"C\":\"true\"}"#),
        "{all}"
    );
    for (text, wanted) in [
        ("istio-exact: yes\n", &["node.yaml: istio-exact: ", "'yes'", "true, false"][..]),
        ("node: a\nnode: b\n", &["node.yaml: line 2: ", "\"node\"", "twice"]),
        ("[node]\n", &["node.yaml", "no YAML map of settings"]),
        ("node: a\n---\nnode: b\n", &["node.yaml", "one document"]),
        ("node: [\n", &["node.yaml: line 1: ", "neither YAML nor JSON"]),
    ] {
        let why = refused(&["--config", &file(scratch.path(), text)], &[]);
        assert!(wanted.iter().all(|part| why.contains(part)), "{text:?}: {why}");
        assert!(!why.contains("DuplicateKeyPolicy"), "{why}");
    }
    let why = refused(&[], &[("PROXY_CONFIG", "{concurrency: 1, concurrency: 2}")]);
    assert!(
        why.contains("PROXY_CONFIG") && why.contains("twice") && !why.contains("DuplicateKeyPolicy"),
        "{why}"
    );
}

/// What a number of YAML's is to one reader is another to the next: it is what it would be in the environment.
#[test]
fn numbers_of_a_file_are_texts_of_them() {
    let scratch = tempfile::tempdir().unwrap();
    let plain = file(
        scratch.path(),
        "pool-streams: 64\nkeepalive-retries: 007\nexclude-namespaces: [1, 02, x]\nworkers: 0050%\nleave: 90\n",
    );
    let all = printed(&["--node", "n", "--config", &plain], &[]);
    for (name, value) in [
        ("pool-streams", "64"),
        ("keepalive-retries", "007"),
        ("exclude-namespaces", "\"1,02,x\""),
        ("workers", "0050%"),
        ("leave", "90"),
    ] {
        assert_eq!(line(&all, name), format!("{name}: {value}  # {plain}: {name}"));
    }
    for text in ["1e3", "0x10", "0o10", "1_000", "1.0"] {
        let config = file(scratch.path(), &format!("# settings\npool-streams: {text}\n"));
        let why = refused(&["--config", &config], &[]);
        assert!(
            why.contains("node.yaml: pool-streams: ") && why.contains(&format!("'{text}'")),
            "{text}: {why}"
        );
        let why = refused(&[], &[("POOL_MAX_STREAMS_PER_CONNECTION", text)]);
        assert!(why.contains(&format!("'{text}'")), "{text}: {why}");
    }
}

#[test]
fn a_token_is_not_printed_and_where_one_stands_is() {
    let token = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ6In0.c2lnbmVk-_x";
    for (arguments, environment) in [(&["--auth-token", token][..], &[][..]), (&[], &[("AUTH_TOKEN", token)])] {
        let all = printed(&[&["--node", "n"], arguments].concat(), environment);
        assert!(!all.contains("eyJ"), "{all}");
        let from = if arguments.is_empty() { "AUTH_TOKEN" } else { "flag" };
        assert_eq!(
            line(&all, "# auth-token"),
            format!("# auth-token: a token itself, which is not shown  # {from}")
        );
        // It is a file of settings still, which says nothing of it.
        let scratch = tempfile::tempdir().unwrap();
        let again = printed(&["--config", &file(scratch.path(), &all)], &[]);
        assert!(!again.contains("auth-token"), "{again}");
    }
    let all = printed(&["--node", "n", "--auth-token", "/var/run/token"], &[]);
    assert_eq!(line(&all, "auth-token"), "auth-token: /var/run/token  # flag");
}

/// The arguments and the environment of the container in Istio's chart for its node proxy.
#[test]
fn what_istios_chart_starts_is_understood() {
    let run = |arguments: &[&str], more: &[(&str, &str)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ambient"));
        command
            .args(arguments)
            .env_clear()
            .envs(chart::ENVIRONMENT.iter().chain(more).copied());
        let output = command.arg("--print-config").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    for arguments in [&["proxy", "ztunnel"][..], &["proxy"]] {
        let all = run(arguments, &[]);
        assert_eq!(line(&all, "zds"), "zds: /var/run/ztunnel/ztunnel.sock  # ztunnel's default");
        assert_eq!(line(&all, "share-ports"), "share-ports: true  # ztunnel's default");
        assert_eq!(
            line(&all, "xds-address"),
            "xds-address: \"istiod.istio-system.svc:15012\"  # XDS_ADDRESS"
        );
        assert_eq!(
            line(&all, "ca-address"),
            "ca-address: \"istiod.istio-system.svc:15012\"  # CA_ADDRESS"
        );
        assert_eq!(line(&all, "node"), "node: node-7  # NODE_NAME");
        assert_eq!(line(&all, "log-format"), "log-format: json  # LOG_FORMAT");
        assert_eq!(
            line(&all, "termination-grace-period"),
            "termination-grace-period: 30  # TERMINATION_GRACE_PERIOD_SECONDS"
        );
    }
    // Istiod is where ztunnel looks for it, unless something else is named.
    let bare = |more: &[(&str, &str)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ambient"));
        command
            .args(["proxy", "ztunnel", "--print-config"])
            .env_clear()
            .env("NODE_NAME", "n");
        let output = command.envs(more.iter().copied()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let both = |all: &str, address: &str, from: &str| {
        for name in ["xds-address", "ca-address"] {
            assert_eq!(line(all, name), format!("{name}: \"{address}\"  # {from}"));
        }
    };
    both(&bare(&[]), "localhost:15012", "ztunnel's default");
    let in_a_cluster = ("KUBERNETES_SERVICE_HOST", "10.96.0.1");
    both(&bare(&[in_a_cluster]), "istiod.istio-system.svc:15012", "ztunnel's default");
    let told = ("PROXY_CONFIG", "{discoveryAddress: 'istiod-rev0.istio-system:15012'}");
    // Where state comes from says nothing of certificates.
    let all = bare(&[in_a_cluster, told]);
    let lines = [
        ("xds-address", "istiod-rev0.istio-system:15012", "PROXY_CONFIG: discoveryAddress"),
        ("ca-address", "istiod.istio-system.svc:15012", "ztunnel's default"),
    ];
    for (name, address, from) in lines {
        assert_eq!(line(&all, name), format!("{name}: \"{address}\"  # {from}"));
    }
    let other = bare(&[in_a_cluster, ("LOCAL_XDS_PATH", "/mesh.yaml"), ("AMBIENT_CA_DIR", "/ca")]);
    assert!(!other.contains("xds-address: ") && !other.contains("ca-address: "), "{other}");
    assert!(!bare(&[("XDS_ADDRESS", "")]).contains("istiod"), "an empty one is none");
    // They are defaults: what is said otherwise counts.
    let other = run(&["proxy", "ztunnel", "--share-ports", "false"], &[("INPOD_UDS", "/run/zds.sock")]);
    assert_eq!(line(&other, "zds"), "zds: /run/zds.sock  # INPOD_UDS");
    assert_eq!(line(&other, "share-ports"), "share-ports: false  # flag");
    assert!(!run(&["node"], &[]).contains("zds: "), "a node of its own has none");
}

/// What Istio's charts mount beside its proxies counts for a node that is started as one of them, and for no other.
#[test]
fn the_meshs_configuration_counts_where_istio_mounts_it() {
    let scratch = tempfile::tempdir().unwrap();
    let mounted = scratch.path().join("etc/istio/config");
    fs::create_dir_all(&mounted).unwrap();
    let mesh = |text: &str| fs::write(mounted.join("mesh"), text).unwrap();
    let run = |verb: &str, environment: &[(&str, &str)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ambient"));
        command.args([verb, "--print-config"]).current_dir(scratch.path()).env_clear();
        let needed = [("NODE_NAME", "n"), ("AMBIENT_CA_DIR", "/c"), ("LOCAL_XDS_PATH", "/m")];
        command.envs(needed).envs(environment.iter().copied()).output().unwrap()
    };
    let said = |verb: &str, environment: &[(&str, &str)]| {
        let output = run(verb, environment);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    mesh(
        "trustDomain: td\ndefaultConfig:\n  discoveryAddress: of-mesh:15012\n  statsPort: 15888\n  proxyMetadata: {ISTIO_META_A: b, \
         ISTIO_META_DNS_CAPTURE: 'false'}\n",
    );
    let all = said("proxy", &[]);
    let from = "./etc/istio/config/mesh: defaultConfig.";
    assert_eq!(line(&all, "metrics"), format!("metrics: \"[::]:15888\"  # {from}statsPort"));
    assert_eq!(line(&all, "dns-capture"), format!("dns-capture: false  # {from}proxyMetadata"));
    assert_eq!(
        line(&all, "node-metadata"),
        format!("node-metadata: \"{{\\\"A\\\":\\\"b\\\",\\\"DNS_CAPTURE\\\":\\\"false\\\"}}\"  # {from}proxyMetadata")
    );
    let own = [
        ("PROXY_CONFIG", "{statsPort: 16020}"),
        ("ISTIO_META_DNS_CAPTURE", "true"),
        ("CLUSTER_ID", "one"),
    ];
    let all = said("proxy", &own);
    assert_eq!(line(&all, "metrics"), "metrics: \"[::]:16020\"  # PROXY_CONFIG: statsPort");
    assert_eq!(line(&all, "dns-capture"), "dns-capture: true  # ISTIO_META_DNS_CAPTURE");
    assert_eq!(line(&all, "cluster-id"), "cluster-id: one  # CLUSTER_ID");
    let all = said("proxy", &[("CLUSTER_ID", "one"), ("ISTIO_META_CLUSTER_ID", "two")]);
    assert_eq!(line(&all, "cluster-id"), "cluster-id: two  # ISTIO_META_CLUSTER_ID");
    let all = said("node", &[]);
    assert_eq!(line(&all, "metrics"), "metrics: \"[::]:15020\"  # default");
    assert!(!all.contains("node-metadata"), "{all}");

    mesh("defaultConfig: [");
    assert!(run("node", &[]).status.success());
    let refused = run("proxy", &[]);
    let why = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && why.contains("./etc/istio/config/mesh"), "{why}");
}

#[test]
fn a_value_that_cannot_be_read_is_named_with_where_it_stands() {
    let scratch = tempfile::tempdir().unwrap();
    let flag = refused(&["--drain", "soon"], &[]);
    assert!(
        flag.contains("'soon'") && flag.contains("--drain") && flag.contains("such as 5s"),
        "{flag}"
    );
    let variable = refused(&[], &[("CONNECTION_TERMINATION_DEADLINE", "soon")]);
    assert!(
        variable.contains("the environment variable CONNECTION_TERMINATION_DEADLINE: ") && variable.contains("such as 5s"),
        "{variable}"
    );
    let variable = refused(&[], &[("IPV6_ENABLED", "yes")]);
    assert!(
        variable.contains("the environment variable IPV6_ENABLED: ") && variable.contains("true, false"),
        "{variable}"
    );
    for (name, value, wanted) in [
        ("KEEPALIVE_TIME", "10h", "32767"),
        ("KEEPALIVE_INTERVAL", "0", "32767"),
        ("KEEPALIVE_RETRIES", "128", "127"),
        ("AMBIENT_CONNECT_TIMEOUT", "0s", "more than nothing"),
        ("POOL_MAX_STREAMS_PER_CONNECTION", "0", "zero"),
        ("ZTUNNEL_WORKER_THREADS", "two", "such as 4"),
        ("CLUSTER_DOMAIN", "cluster local", "such as cluster.local"),
        ("CLUSTER_DOMAIN", "", "such as cluster.local"),
        ("AMBIENT_CONNECTIONS_PER_POD", "0", "zero"),
        ("AMBIENT_BUSY_POLL", "1s", "at most 10ms"),
        ("ISTIO_META_DNS_CAPTURE", "perhaps", "true or false"),
        ("RUST_LOG", "access=loud", "an example"),
    ] {
        let variable = refused(&[], &[(name, value)]);
        assert!(
            variable.contains(&format!("the environment variable {name}: ")) && variable.contains(value) && variable.contains(wanted),
            "{variable}"
        );
    }
    for (name, environment) in [("a/b", None), ("", Some(("NODE_NAME", "")))] {
        let arguments = ["--node", name].into_iter().filter(|_| environment.is_none());
        let output = node(&arguments.collect::<Vec<_>>(), environment.as_slice());
        let said = String::from_utf8_lossy(&output.stderr);
        let named = environment.map_or("--node", |(variable, _)| variable);
        assert!(
            !output.status.success() && said.contains(named) && said.contains(&format!("not {name:?}")),
            "{said}"
        );
    }
    let path = file(scratch.path(), "drain: soon\n");
    let field = refused(&["--config", &path], &[]);
    assert!(
        field.contains(&format!("{path}: drain: ")) && field.contains("such as 5s"),
        "{field}"
    );
    let path = file(scratch.path(), "draining: 5s\n");
    let unknown = refused(&["--config", &path], &[]);
    assert!(unknown.contains(&format!("{path}: draining: there is no setting")), "{unknown}");
    let path = file(scratch.path(), "[a, b]\n");
    assert!(refused(&["--config", &path], &[]).contains("no YAML map"));
    assert!(refused(&["--config", "/nowhere/node.yaml"], &[]).contains("/nowhere/node.yaml"));
    let port = refused(&[], &[("PROXY_CONFIG", "{statsPort: 99999}")]);
    assert!(port.contains("PROXY_CONFIG") && port.contains("statsPort"), "{port}");
}

/// The flags that say where state and certificates come from are in the file alone.
#[test]
fn a_file_says_all_that_is_needed() {
    let scratch = tempfile::tempdir().unwrap();
    let said = |text: &str| {
        let path = file(scratch.path(), text);
        let output = node(&["--config", &path, "--no-dns-capture", "--netns-dir", "/"], &[]);
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let missing = scratch.path().join("no-such-directory");
    let needed = format!("node: n\nmanifests: {0}\nca-dir: {0}-either\n", missing.display());
    // As editors elsewhere write it: it is read, and the start gets as far as the manifests.
    for text in [
        needed.clone(),
        needed.replace('\n', "\r\n"),
        format!("\u{feff}{needed}"),
        format!("---\n{needed}...\n"),
    ] {
        let said = said(&text);
        assert!(said.contains("no-such-directory") && said.lines().count() == 1, "{said}");
    }
    let without = |what: &str| {
        said(
            &needed
                .lines()
                .filter(|line| !line.starts_with(what))
                .map(|line| format!("{line}\n"))
                .collect::<String>(),
        )
    };
    let state = without("manifests");
    assert!(
        state.contains("nothing says where state comes from") && state.contains("--xds-address"),
        "{state}"
    );
    let certificates = without("ca-dir");
    assert!(
        certificates.contains("nothing says where certificates come from") && certificates.contains("--ca-dir"),
        "{certificates}"
    );
    let twice = said(&format!("{needed}node: m\n"));
    assert!(
        twice.contains("node.yaml") && twice.contains("node") && twice.contains("line 4"),
        "{twice}"
    );
    let both = said(&format!("{needed}xds-address: istiod:15012\n"));
    assert!(both.contains("state comes from one place"), "{both}");
}

#[test]
fn a_policy_for_cryptography_that_is_not_kept_to_ends_the_start() {
    let fips = refused(&[], &[("COMPLIANCE_POLICY", "fips-140-2")]);
    assert!(
        fips.contains("COMPLIANCE_POLICY") && fips.contains("fips-140-2") && fips.contains("pqc"),
        "{fips}"
    );
    for policy in ["pqc", ""] {
        let said = refused(&[], &[("COMPLIANCE_POLICY", policy)]);
        assert!(said.contains("/nowhere") && !said.contains("COMPLIANCE_POLICY"), "{said}");
    }
}

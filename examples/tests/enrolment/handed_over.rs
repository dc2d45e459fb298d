//! Namespaces that a CNI plugin hands over before anything runs in them, at a real node, by the plugin and as Istio's asks.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::unix::{fs::symlink, net::UnixStream},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use ambient_testkit::{End, Namespace, Output, Process, Program, World, harness::Outcome, link};
use ipnet::IpNet;
use serde_json::{Value, json};

use super::ground::{AMBIENT, Failure, until};

const PATIENCE: Duration = Duration::from_secs(20);

/// A node with a pod's namespace beside it, whose pod is known and has no address yet.
struct Place {
    world: World,
    dir: PathBuf,
    node: Namespace,
    processes: Vec<Process>,
}

impl Place {
    fn new(world: &World) -> Result<Self, Failure> {
        let dir = world.scratch_dir().join("handed-over");
        fs::create_dir_all(dir.join("manifests"))?;
        let place = Self {
            world: world.clone(),
            node: world.namespace("node-h")?,
            dir,
            processes: Vec::new(),
        };
        place.node.forward()?;
        place.write("namespace", "apiVersion: v1\nkind: Namespace\nmetadata: {name: demo}\n")?;
        symlink(AMBIENT, place.plugin())?;
        Ok(place)
    }

    fn plugin(&self) -> PathBuf {
        self.dir.join("ambient-cni")
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("cni.sock")
    }

    fn write(&self, name: &str, text: &str) -> io::Result<()> {
        fs::write(self.dir.join("manifests").join(format!("{name}.yaml")), text)
    }

    /// A pod that is bound to the node, and has no address: as a kubelet has it when it asks for its network.
    fn pod(&self, name: &str, mode: &str, more: &str) -> io::Result<()> {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: demo, uid: uid-of-{name}, labels: {{istio.io/dataplane-mode: {mode}}}}}\n\
             spec: {{nodeName: node-h, serviceAccountName: {name}{more}}}\nstatus: {{phase: Pending}}\n"
        );
        self.write(name, &text)
    }

    /// The namespace of a pod as a runtime makes it, with what gives it its addresses.
    fn sandbox(&self, name: &str, n: u8) -> Result<(Namespace, IpAddr), Failure> {
        let pod = self.world.namespace(name)?;
        let (own, via): (IpAddr, IpAddr) = (format!("10.9.0.{n}").parse()?, "10.9.0.1".parse()?);
        link(
            &End::new(&pod, "eth0").address(IpNet::from(own)),
            &End::new(&self.node, &format!("to-{n}")).address(IpNet::from(via)),
        )?;
        self.node.add_route(IpNet::from(own), None, &format!("to-{n}"))?;
        pod.add_route("0.0.0.0/0".parse::<IpNet>()?, Some(via), "eth0")?;
        Ok((pod, own))
    }

    fn start(&mut self, args: &[&str]) -> Outcome {
        let log = |name: &str| Output::File(self.dir.join(format!("{}-{name}", args[0])));
        let program = Program::new(AMBIENT)
            .args(args)
            .args(["--node", "node-h", "--log-format", "text", "--manifests"])
            .arg(self.dir.join("manifests"))
            .stdout(log("out"))
            .stderr(log("err"));
        self.processes.push(self.node.spawn(&program)?);
        Ok(())
    }

    fn log(&self) -> String {
        let files = ["node-out", "node-err", "enrol-out", "enrol-err"];
        files
            .map(|file| fs::read_to_string(self.dir.join(file)).unwrap_or_default())
            .join("\n")
    }

    /// Runs the plugin as a runtime does: whether it ends well, and what it says.
    fn add(&self, name: &str, netns: &Path, ip: IpAddr) -> Result<(bool, Value), Failure> {
        let program = Program::new(self.plugin())
            .env("CNI_COMMAND", "ADD")
            .env("CNI_CONTAINERID", "c-1")
            .env("CNI_IFNAME", "eth0")
            .env("CNI_NETNS", netns)
            .env(
                "CNI_ARGS",
                format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=demo;K8S_POD_NAME={name};K8S_POD_UID=uid-of-{name}"),
            )
            .stdin_piped()
            .stdout(Output::Pipe);
        let mut process = self.node.spawn(&program)?;
        let config = json!({
            "cniVersion": "1.0.0", "name": "net", "type": "ambient-cni", "socket": self.socket(),
            "prevResult": {"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": netns}], "ips": [{"address": format!("{ip}/32"), "interface": 0}]},
        });
        process.take_stdin().ok_or("no input")?.write_all(config.to_string().as_bytes())?;
        let mut said = String::new();
        process.take_stdout().ok_or("no output")?.read_to_string(&mut said)?;
        let status = process.wait(PATIENCE)?.ok_or("it does not end")?;
        Ok((status.success(), serde_json::from_str(&said)?))
    }

    /// Asks as Istio's plugin does: the status, and the text.
    fn ask(&self, body: &str) -> Result<(u16, String), Failure> {
        let mut stream = UnixStream::connect(self.socket())?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(
            stream,
            "POST /cmdadd HTTP/1.1\r\nHost: unix\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let status = answer.split(' ').nth(1).ok_or("no answer")?.parse()?;
        Ok((status, answer.split_once("\r\n\r\n").ok_or("no body")?.1.to_owned()))
    }

    fn istio(&self, name: &str, netns: &Path, ip: IpAddr) -> Result<(u16, String), Failure> {
        let address = json!({"IP": ip, "Mask": "/////w=="});
        let said = json!({"Netns": netns, "PodName": name, "PodNamespace": "demo", "IPs": [{"Interface": 0, "Address": address, "Gateway": "10.9.0.1"}]});
        self.ask(&said.to_string())
    }

    fn listens(&self) -> Outcome {
        until(PATIENCE, || {
            Ok(UnixStream::connect(self.socket())
                .map(drop)
                .map_err(|e| format!("{e}: {}", self.log())))
        })
    }

    fn ambient(&self, args: &[&str]) -> Result<(bool, String), Failure> {
        let program = Program::new(AMBIENT).args(args).stdout(Output::Pipe).stderr(Output::Pipe);
        let mut process = self.node.spawn(&program)?;
        let (mut out, mut err) = (String::new(), String::new());
        process.take_stdout().ok_or("no output")?.read_to_string(&mut out)?;
        process.take_stderr().ok_or("no output")?.read_to_string(&mut err)?;
        let status = process.wait(PATIENCE)?.ok_or("it does not end")?;
        Ok((status.success(), out + &err))
    }

    /// What stands in the node's status.
    fn announced(&self) -> String {
        fs::read_to_string(self.dir.join("manifests/status/node-h.json")).unwrap_or_default()
    }

    fn page(&self, at: &str, path: &str) -> Result<String, Failure> {
        let at: SocketAddr = at.parse()?;
        let get = || {
            let mut stream = TcpStream::connect(at)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok::<_, io::Error>(answer)
        };
        Ok(self.node.run(get)??)
    }
}

pub(crate) fn a_plugin_is_answered_once_its_pod_is_captured(world: &World) -> Outcome {
    let mut place = Place::new(world)?;
    let ca = place.dir.join("ca").display().to_string();
    let (socket, netns) = (place.socket().display().to_string(), world.netns_dir().display().to_string());
    place.pod("cart", "ambient", "")?;
    place.pod("plain", "none", "")?;
    place.start(&[
        "node",
        "--ca-dir",
        &ca,
        "--keys-dir",
        "none",
        "--cni",
        &socket,
        "--netns-dir",
        &netns,
        "--no-dns-capture",
    ])?;
    place.listens()?;
    let told = at_a_node(&place);
    if told.is_err() {
        println!("{}", place.log());
    }
    told
}

fn at_a_node(place: &Place) -> Outcome {
    // What has no address yet is told of, with what is awaited.
    let (well, said) = until(PATIENCE, || {
        let (well, said) = place.ambient(&["pods", "cart"])?;
        Ok(if said.contains("no address yet") {
            Ok((well, said))
        } else {
            Err(said)
        })
    })?;
    assert!(
        well && said.contains("desired              yes") && said.contains("wait until its status has an address"),
        "{said}"
    );
    let (_, all) = place.ambient(&["pods"])?;
    assert!(
        all.lines()
            .any(|line| line.starts_with("demo/plain") && line.contains("  no  ") && line.contains("outside")),
        "{all}"
    );

    let (cart, ip) = place.sandbox("cart-1", 2)?;
    let (well, result) = place.add("cart", cart.path(), ip)?;
    assert!(
        well && result["ips"][0]["address"] == format!("{ip}/32"),
        "{result}: {}",
        place.log()
    );
    // By then it is proven and announced: without a moment's wait.
    assert!(place.announced().contains("uid-of-cart"), "{}", place.announced());
    let (_, said) = place.ambient(&["pods", "cart", "--json"])?;
    let view: Value = serde_json::from_str(&said)?;
    assert_eq!(
        (&view["state"], &view["captured"], &view["addresses"]),
        (&json!("in"), &json!(true), &json!([ip])),
        "{said}"
    );
    // Asked again it is as it is.
    assert_eq!(place.istio("cart", cart.path(), ip)?, (200, "captured\n".to_owned()));

    // The runtime has made another sandbox, in the place of one that is gone.
    let (second, ip) = place.sandbox("cart-2", 3)?;
    cart.delete()?;
    assert_eq!(
        place.istio("cart", second.path(), ip)?,
        (200, "captured\n".to_owned()),
        "{}",
        place.log()
    );
    let (_, said) = place.ambient(&["pods", "cart", "--json"])?;
    assert_eq!(serde_json::from_str::<Value>(&said)?["addresses"], json!([ip]), "{said}");

    // None of the mesh's: nothing is done, and it is started at once.
    let (plain, ip) = place.sandbox("plain-1", 4)?;
    let begun = Instant::now();
    let (well, result) = place.add("plain", plain.path(), ip)?;
    assert!(well && begun.elapsed() < Duration::from_secs(2), "{result}");
    assert_eq!(ambient_testkit::cluster::residue(&plain)?, [""; 0]);
    refused(place, &second, ip)
}

fn refused(place: &Place, another: &Namespace, ip: IpAddr) -> Outcome {
    place.pod("late", "ambient", "")?;
    let (late, own) = place.sandbox("late-1", 5)?;
    // Somebody listens where the proxy is to: it is not captured, and refused meanwhile.
    let squatter = late.run(|| TcpListener::bind("[::]:15006"))??;
    let (well, failure) = place.add("late", late.path(), own)?;
    let told = failure["details"].as_str().unwrap_or_default().to_owned();
    assert!(
        !well && failure["code"] == 11 && told.contains("demo/late: it is not captured within") && told.contains("15006"),
        "{failure}"
    );
    assert!(!place.announced().contains("uid-of-late"));
    drop(squatter);
    let (well, failure) = place.add("late", late.path(), own)?;
    assert!(well, "{failure}");

    let own_namespace = format!("/proc/{}/ns/net", std::process::id());
    for (name, netns, ip, status, said) in [
        (
            "late",
            Path::new("/nowhere"),
            own,
            400,
            "demo/late: the network namespace /nowhere cannot be opened",
        ),
        (
            "late",
            Path::new("/etc/hosts"),
            own,
            400,
            "demo/late: /etc/hosts is not a network namespace; a bind mount of /proc/PID/ns/net is needed",
        ),
        (
            "late",
            Path::new("/proc/self/ns/mnt"),
            own,
            400,
            "demo/late: /proc/self/ns/mnt is not a network namespace; a bind mount",
        ),
        (
            "late",
            &place.socket(),
            own,
            400,
            "cni.sock is not a network namespace; a bind mount",
        ),
        ("late", late.path(), "10.9.9.9".parse()?, 400, "has not its address 10.9.9.9"),
        ("late", place.node.path(), "10.9.0.1".parse()?, 409, "is the node's own"),
        ("plain", another.path(), ip, 200, "not meant"),
        (
            "nobody",
            late.path(),
            own,
            503,
            "no pod of this name and UID is known on node node-h",
        ),
    ] {
        let (got, text) = place.istio(name, netns, ip)?;
        assert!(got == status && text.contains(said), "{name} {}: {got} {text}", netns.display());
    }
    let (status, text) = place.istio("late", Path::new(&own_namespace), own)?;
    assert!(status == 400, "a namespace without the address: {text}");
    for (body, said) in [
        ("{", "this is not what a CNI plugin says"),
        (
            "{\"Netns\":\"/x\",\"PodName\":\"late\",\"PodNamespace\":\"demo\"}",
            "names no address",
        ),
    ] {
        let (status, text) = place.ask(body)?;
        assert!(status == 400 && text.contains(said), "{status} {text}");
    }
    refused_for_good(place, late, own)
}

fn refused_for_good(place: &Place, late: Namespace, own: IpAddr) -> Outcome {
    // A pod of another one's namespace: never mixed up, and what stays so is said at once.
    place.pod("thief", "ambient", "")?;
    let begun = Instant::now();
    let (status, text) = until(PATIENCE, || {
        let (status, text) = place.istio("thief", late.path(), own)?;
        // Its manifest may not have been read yet.
        Ok(if status == 503 { Err(text) } else { Ok((status, text)) })
    })?;
    assert!(status == 409 && text.contains("demo/late"), "{status} {text}");
    let known = Instant::now();
    let (well, failure) = place.add("thief", late.path(), own)?;
    assert!(
        !well && failure["code"] == 100 && failure["details"].as_str().is_some_and(|told| told.contains("is demo/late")),
        "{failure}"
    );
    // A pod that is in a namespace that stands is not in another as well.
    let (other, ip) = place.sandbox("late-2", 6)?;
    let (well, failure) = place.add("late", other.path(), ip)?;
    assert!(
        !well
            && failure["code"] == 100
            && failure["details"]
                .as_str()
                .is_some_and(|told| told.contains("is in the namespace net:[")),
        "{failure}"
    );
    // Whoever waits for what passes waits for longer than that.
    assert!(
        known.elapsed() < Duration::from_secs(4),
        "{:?} of {:?}",
        known.elapsed(),
        begun.elapsed()
    );
    // Where that is gone it may.
    late.delete()?;
    let (well, failure) = place.add("late", other.path(), ip)?;
    assert!(well, "{failure}");
    Ok(())
}

/// The enrolment for a proxy that is another process: the same socket, and pages of its own.
pub(crate) fn an_enrolment_apart_takes_what_is_handed_over_and_tells_how_it_stands(world: &World) -> Outcome {
    let mut place = Place::new(world)?;
    let told = apart(&mut place, world);
    if told.is_err() {
        println!("{}", place.log());
    }
    told
}

fn apart(place: &mut Place, world: &World) -> Outcome {
    let ca = place.dir.join("ca").display().to_string();
    let (socket, netns) = (place.socket().display().to_string(), world.netns_dir().display().to_string());
    let zds = place.dir.join("zds.sock").display().to_string();
    place.pod("cart", "ambient", "")?;
    place.start(&["enrol", "--zds", &zds, "--cni", &socket, "--netns-dir", &netns, "--no-dns-capture"])?;
    place.listens()?;
    let ready = until(PATIENCE, || {
        let page = place.page("127.0.0.1:15024", "/healthz/ready")?;
        Ok(if page.contains(" 200 ") { Ok(page) } else { Err(page) })
    })?;
    assert!(ready.contains("no proxy is connected at"), "{ready}");
    let (cart, ip) = place.sandbox("cart-1", 2)?;
    let (status, text) = place.istio("cart", cart.path(), ip)?;
    assert!(status == 500 && text.contains("no proxy is connected"), "{status} {text}");
    place.start(&["node", "--ca-dir", &ca, "--keys-dir", "none", "--zds", &zds, "--no-dns-capture"])?;
    until(PATIENCE, || {
        let (status, text) = place.istio("cart", cart.path(), ip)?;
        Ok(if status == 200 { Ok(()) } else { Err(text) })
    })?;
    let (well, said) = place.ambient(&["pods", "cart", "--admin", "127.0.0.1:15004"])?;
    for line in [
        "captured             yes, since 20",
        "listeners            15001 15006 15008\n",
        "rules                in force",
        "\nnothing is wrong\n",
    ] {
        assert!(well && said.contains(line), "{line:?} is not in {said}");
    }
    assert!(!said.contains("\nconnections "), "the proxy is another process: {said}");
    // The node whose pods another enrols says whom to ask.
    let (_, said) = place.ambient(&["pods", "cart"])?;
    assert!(said.contains("no (served)") && said.contains("ask that (`ambient enrol`"), "{said}");
    let metrics = place.page("127.0.0.1:15014", "/metrics")?;
    for metric in [
        "ambient_pods_not_captured 0",
        "ambient_captures_repaired_total 0",
        "process_open_fds",
        "component=\"ambient-enrol\"",
    ] {
        assert!(metrics.contains(metric), "{metric} is not in {metrics}");
    }
    assert!(!metrics.contains("istio_tcp"), "it carries nothing: {metrics}");
    let index = place.page("127.0.0.1:15004", "/")?;
    assert!(
        index.contains("/pods") && index.contains("/logging") && !index.contains("/config_dump"),
        "{index}"
    );
    Ok(())
}

//! Two nodes that live on `ambient control`, whose authority changes its root while pods talk: nobody is refused and nothing
//! that is open is lost; who has nothing but a certificate of the old root is refused once that is withdrawn.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, SystemTime},
};

use ambient_core::{Credential, Credentials, Identity, TrustBundles};
use ambient_hbone::{BoxFuture, BoxedIo, Destination, Dial, Pool, Speaker};
use ambient_testkit::{World, harness::Outcome};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, pem::PemObject as _};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{
    ground::{Failure, Ground, NODES, path, until},
    identities::{by_tunnel, call},
    peer::{self, FIRST_PORT, HELLO},
};

const PATIENCE: Duration = Duration::from_secs(20);
/// How long certificates are valid, of pods and of nodes: a day in a real mesh, and as long between stages.
const LIFE: Duration = Duration::from_secs(60);
const PORT: u16 = 7001;

pub(crate) fn a_root_changes_under_traffic_and_the_old_one_is_good_for_nothing(world: &World) -> Outcome {
    let life = LIFE.as_secs().to_string();
    let mut ground = Ground::on_control(world, &["--secret-ttl", &life], &[])?;
    let changed = change(&mut ground, world);
    if changed.is_err() {
        println!("{}", ground.logs());
    }
    changed
}

fn change(ground: &mut Ground, world: &World) -> Outcome {
    for node in NODES {
        ground.ready(node)?;
    }
    for (node, pod) in [("node-1", "front"), ("node-1", "other"), ("node-2", "back")] {
        ground.idle(node, pod, true)?;
    }
    for pod in ["front", "other"] {
        until(PATIENCE, || call(ground, pod))?;
        by_tunnel(ground, "node-1", pod)?;
    }
    // One that was given away before, and lives longer than the change takes.
    let stolen = world.scratch_dir().join("stolen");
    let whom = "spiffe://cluster.local/ns/demo/sa/front";
    ca(ground, &["issue", "--identity", whom, "--life", "1h", "--out", &path(&stolen)])?;
    speak(ground, &stolen, whom)?.map_err(|why| format!("before the change it is good: {why}"))?;

    let callers = Callers::begin(ground)?;
    let to = SocketAddr::from((ground.address("back")?, PORT));
    let listener = ground.pod_namespace("back")?.run(move || TcpListener::bind(to))?;
    let listener = listener.map_err(|why| format!("no listener at {to}: {why}"))?;
    // Each ends with the certificates that it began with: this one goes on through the stages that they live through.
    let mut early = Open::begin(ground, &listener, to)?;
    stage(ground, "stage 1 of 3", "beside", 2, &callers)?;
    early.speak().map_err(|why| format!("before stage 2: {why}"))?;
    let before = serials(ground)?;
    stage(ground, "stage 2 of 3", "signs", 2, &callers)?;
    early.speak().map_err(|why| format!("after stage 2: {why}"))?;
    // Everybody has what the new root vouches for, by itself at half the life of what was before.
    until(LIFE, || {
        let now = serials(ground)?;
        let old = before.iter().find(|(of, serial)| now.get(*of) == Some(*serial));
        Ok(match old {
            Some((of, _)) => Err(format!("{of:?} was not renewed")),
            None if now.len() < before.len() => Err("some are missing".into()),
            None => Ok(()),
        })
    })?;
    speak(ground, &stolen, whom)?.map_err(|why| format!("before the old root is withdrawn it is good: {why}"))?;
    let mut late = Open::begin(ground, &listener, to).map_err(|why| format!("begun late: {why}"))?;
    assert_eq!(refused_handshakes(ground)?, 0, "before the old root is withdrawn");
    stage(ground, "stage 3 of 3", "alone", 1, &callers)?;
    late.speak()?;
    callers.end()?;
    assert_eq!(refused_handshakes(ground)?, 0, "after the old root was withdrawn");
    late.speak()?;
    for node in NODES {
        let readiness = ground.page(node, 15021, "/healthz/ready")?;
        assert!(!readiness.contains("certificate"), "{readiness}");
    }
    // Now that nobody trusts the old root.
    let refused = speak(ground, &stolen, whom)?;
    let why = refused.err().ok_or("who has a certificate of the old root alone is served")?;
    until(PATIENCE, || {
        Ok(match refused_handshakes(ground)? {
            0 => Err(format!("it failed, and not for its certificate: {why}")),
            _ => Ok(()),
        })
    })
}

/// `ambient ca` goes on by one stage, both nodes hear of it, and on each somebody new shakes hands while others go on calling.
fn stage(ground: &mut Ground, says: &str, name: &str, roots: usize, callers: &Callers) -> Outcome {
    let said = ca(ground, &["rotate", "--grace", "0s"])?;
    assert!(said.contains(says), "{said}");
    until(PATIENCE, || {
        for node in NODES {
            let dump = dump(ground, node)?;
            let trusted = certificates(&dump).map(|one| one["rootCerts"].as_array().map_or(0, Vec::len));
            if let Some(other) = trusted.into_iter().find(|count| *count != roots) {
                return Ok(Err(format!("{node} trusts {other} roots, and not {roots}")));
            }
        }
        Ok(Ok(()))
    })?;
    let before = callers.calls();
    for node in NODES {
        let new = format!("{name}-{node}");
        ground.idle(node, &new, true)?;
        assert_eq!(call(ground, &new)?, Ok("back".into()), "{new}");
        by_tunnel(ground, node, &new)?;
    }
    until(PATIENCE, || {
        Ok(if callers.calls() > before {
            Ok(())
        } else {
            Err(format!("{name}: nobody calls any more"))
        })
    })
}

fn ca(ground: &mut Ground, args: &[&str]) -> Result<String, Failure> {
    let directory = path(&ground.ca);
    let args: Vec<&str> = ["ca"].iter().chain(args).chain(&["--ca", &directory]).copied().collect();
    let (code, out, err) = ground.ambient("node-1", &args)?;
    if code == 0 { Ok(out) } else { Err(err.into()) }
}

fn dump(ground: &Ground, node: &str) -> Result<Value, Failure> {
    Ok(serde_json::from_str(&ground.page(node, 15000, "/config_dump")?)?)
}

/// Those of a node that are there.
fn certificates(dump: &Value) -> impl Iterator<Item = &Value> {
    let all = dump["certificates"].as_array().into_iter().flatten();
    all.filter(|one| one["state"] == "Available")
}

/// The serial number of each certificate of a node's pods.
fn serials(ground: &Ground) -> Result<BTreeMap<(&'static str, String), String>, Failure> {
    let mut all = BTreeMap::new();
    for node in NODES {
        let dump = dump(ground, node)?;
        for one in certificates(&dump) {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            all.insert((node, text(&one["identity"])), text(&one["certChain"][0]["serialNumber"]));
        }
    }
    Ok(all)
}

/// Handshakes that have failed, at either end of either node.
fn refused_handshakes(ground: &Ground) -> Result<u64, Failure> {
    let mut count = 0;
    for node in NODES {
        let metrics = ground.page(node, 15020, "/metrics")?;
        let failed = metrics
            .lines()
            .filter(|line| line.starts_with("ambient_handshake_seconds_count{") && line.contains("outcome=\"failed\""));
        for line in failed {
            count += line.rsplit(' ').next().unwrap_or_default().parse::<f64>()? as u64;
        }
    }
    Ok(count)
}

/// Pods that call `back` all the time.
struct Callers {
    stop: Arc<AtomicBool>,
    calls: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<Result<(), String>>>,
}

impl Callers {
    fn begin(ground: &Ground) -> Result<Self, Failure> {
        let to = SocketAddr::from((ground.address("back")?, FIRST_PORT));
        let (stop, calls) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let mut threads = Vec::new();
        for pod in ["front", "other"] {
            let (stop, calls) = (stop.clone(), calls.clone());
            // A thread stays where it was begun.
            threads.push(ground.pod_namespace(pod)?.run(move || {
                thread::spawn(move || -> Result<(), String> {
                    while !stop.load(Ordering::Relaxed) {
                        patiently(to, pod).map_err(|e| format!("a call of {pod} was refused: {e}"))?;
                        calls.fetch_add(1, Ordering::Relaxed);
                        thread::sleep(Duration::from_millis(5));
                    }
                    Ok(())
                })
            })?);
        }
        Ok(Self { stop, calls, threads })
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }

    fn end(self) -> Outcome {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().map_err(|_| "a caller panicked")??;
        }
        Ok(())
    }
}

/// As pods call, but for how long they wait: that the machine is slow is no refusal.
fn patiently(to: SocketAddr, name: &str) -> io::Result<()> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    peer::hear_within(stream, name, PATIENCE).map(drop)
}

/// A connection of `front` to `back` that stays open.
struct Open {
    near: TcpStream,
    far: TcpStream,
}

impl Open {
    fn begin(ground: &Ground, listener: &TcpListener, to: SocketAddr) -> Result<Self, Failure> {
        let near = ground
            .pod_namespace("front")?
            .run(move || TcpStream::connect_timeout(&to, PATIENCE))?
            .map_err(|e| format!("connect: {e}"))?;
        let (far, _) = listener.accept()?;
        for end in [&near, &far] {
            end.set_read_timeout(Some(2 * PATIENCE))?;
        }
        let mut open = Self { near, far };
        open.speak()?;
        Ok(open)
    }

    /// There and back.
    fn speak(&mut self) -> Outcome {
        let mut heard = [0; 4];
        self.near.write_all(b"ping")?;
        self.far.read_exact(&mut heard).map_err(|e| format!("there: {e}"))?;
        self.far.write_all(&heard)?;
        self.near.read_exact(&mut heard).map_err(|e| format!("back: {e}"))?;
        assert_eq!(&heard, b"ping");
        Ok(())
    }
}

/// What somebody gets who has files of an authority's and speaks HBONE to `back` from elsewhere; why nothing, otherwise.
fn speak(ground: &Ground, files: &Path, whom: &str) -> Result<Result<(), String>, Failure> {
    let (to, held) = (ground.address("back")?, Held::read(files, whom, &ground.ca)?);
    let spoken = ground
        .node_namespace("node-1")?
        .run(move || -> Result<Result<(), String>, String> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            Ok(runtime.map_err(|e| e.to_string())?.block_on(held.speak(SocketAddr::new(to, 15008))))
        })?;
    Ok(spoken?)
}

/// Plain TCP, from the namespace of the thread.
struct Tcp;

impl Dial for Tcp {
    fn dial<'a>(&'a self, _: &'a Speaker, peer: SocketAddr) -> BoxFuture<'a, io::Result<BoxedIo>> {
        Box::pin(async move { Ok(Box::new(tokio::net::TcpStream::connect(peer).await?) as BoxedIo) })
    }
}

/// One certificate, and the roots that the authority has now.
struct Held(Arc<Credential>, Arc<TrustBundles>);

impl Credentials for Held {
    fn credential(&self, identity: &Identity) -> Option<Arc<Credential>> {
        (self.0.identity == *identity).then(|| self.0.clone())
    }

    fn trust(&self) -> Arc<TrustBundles> {
        self.1.clone()
    }
}

impl Held {
    fn read(files: &Path, whom: &str, ca: &Path) -> Result<Self, Failure> {
        let identity: Identity = whom.parse()?;
        let chain = CertificateDer::pem_file_iter(files.join("cert-chain.pem"))?;
        let chain: Vec<Vec<u8>> = chain.map(|der| Ok(der?.to_vec())).collect::<Result<_, Failure>>()?;
        let key = PrivatePkcs8KeyDer::from_pem_file(files.join("key.pem"))?;
        let mut trust = TrustBundles::default();
        for root in CertificateDer::pem_slice_iter(&fs::read(ca.join("root.pem"))?) {
            trust.add(identity.trust_domain().clone(), root?.to_vec());
        }
        let (not_before, not_after) = (SystemTime::now() - LIFE, SystemTime::now() + 60 * LIFE);
        let credential = Credential {
            identity,
            chain,
            key: Arc::new(key.secret_pkcs8_der().to_vec().into()),
            not_before,
            not_after,
        };
        Ok(Self(credential.into(), trust.into()))
    }

    async fn speak(self, to: SocketAddr) -> Result<(), String> {
        let whom = self.0.identity.clone();
        let pool = Pool::builder(Arc::new(Tcp), Arc::new(self), Arc::new(ambient_tls::provider())).build();
        let authority = format!("{}:{FIRST_PORT}", to.ip()).parse().map_err(|e| format!("{e}"))?;
        let expected = "spiffe://cluster.local/ns/demo/sa/back".parse().map_err(|e| format!("{e}"))?;
        let destination = Destination::new(to, authority, [expected]);
        let talk = async {
            let mut stream = pool
                .connect(&Speaker::new("elsewhere", whom), &destination)
                .await
                .map_err(|e| e.to_string())?;
            let hello = format!("{HELLO}elsewhere\n");
            stream.write_all(hello.as_bytes()).await.map_err(|e| e.to_string())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.map_err(|e| e.to_string())?;
            if answer == "back\n" {
                Ok(())
            } else {
                Err(format!("it answers {answer:?}"))
            }
        };
        tokio::time::timeout(PATIENCE, talk).await.map_err(|_| "no answer in time")?
    }
}

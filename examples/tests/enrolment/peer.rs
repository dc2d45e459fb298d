//! What runs in a pod: it answers whoever calls, and calls all others all the time.

use std::{
    ffi::OsString,
    fs,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    process::ExitCode,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Ports of the pods: each account has one.
pub(crate) const FIRST_PORT: u16 = 8000;
pub(crate) const ACCOUNTS: u16 = 12;
/// What a caller says first.
pub(crate) const HELLO: &str = "hello from ";

/// A call, as it is printed.
pub(crate) struct Call {
    pub(crate) begun: u64,
    pub(crate) ended: u64,
    pub(crate) to: SocketAddr,
    /// The name of who answered; why not, otherwise.
    pub(crate) heard: Result<String, String>,
}

impl Call {
    fn print(&self) -> String {
        let (word, heard) = match &self.heard {
            Ok(name) => ("by", name),
            Err(why) => ("no", why),
        };
        format!("{} {} {} {word} {heard}", self.begun, self.ended, self.to)
    }

    /// `None` of a line that was cut off, when its pod was killed.
    pub(crate) fn read(line: &str) -> Option<Self> {
        let mut words = line.splitn(5, ' ');
        let (begun, ended, to) = (
            words.next()?.parse().ok()?,
            words.next()?.parse().ok()?,
            words.next()?.parse().ok()?,
        );
        let heard = match (words.next()?, words.next()?) {
            ("by", name) => Ok(name.to_owned()),
            ("no", why) => Err(why.to_owned()),
            _ => return None,
        };
        Some(Self { begun, ended, to, heard })
    }
}

/// Microseconds, by the clock that all processes have.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros() as u64)
}

/// `NAME ACCOUNT PEERS`: the account's number, and the file that says whom to call.
pub(crate) fn main(args: Vec<OsString>) -> ExitCode {
    let args: Vec<String> = args.into_iter().filter_map(|arg| arg.into_string().ok()).collect();
    let [name, account, peers] = &args[..] else {
        return ExitCode::FAILURE;
    };
    let own: u16 = account.parse().unwrap();
    for port in FIRST_PORT..FIRST_PORT + ACCOUNTS {
        let listener = TcpListener::bind(("::", port)).unwrap();
        let name = name.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let name = name.clone();
                thread::spawn(move || answer(stream, &name));
            }
        });
    }
    let mut turn = 0;
    loop {
        let text = fs::read_to_string(peers).unwrap_or_default();
        let all = text.lines().filter(|line| line.split(' ').next() != Some(name));
        let addresses: Vec<IpAddr> = all
            .flat_map(|line| line.split(' ').skip(1))
            .filter_map(|ip| ip.parse().ok())
            .collect();
        for ip in addresses {
            // By the port of its own account, and by that of who may have had its address before.
            turn += 1;
            let port = FIRST_PORT + if turn % 3 == 0 { own ^ 1 } else { own };
            let to = SocketAddr::new(ip, port);
            let begun = now();
            let heard = ask(to, name).map_err(|e| e.kind().to_string());
            let ended = now();
            println!("{}", Call { begun, ended, to, heard }.print());
            thread::sleep(Duration::from_millis(10));
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Says hello, and gives the name of who answers.
pub(crate) fn ask(to: SocketAddr, name: &str) -> io::Result<String> {
    hear(TcpStream::connect_timeout(&to, PATIENCE)?, name)
}

/// The same over a connection.
pub(crate) fn hear(stream: TcpStream, name: &str) -> io::Result<String> {
    hear_within(stream, name, PATIENCE)
}

/// The same with other patience.
pub(crate) fn hear_within(mut stream: TcpStream, name: &str, patience: Duration) -> io::Result<String> {
    stream.set_read_timeout(Some(patience))?;
    // At once: who speaks is told by one segment, whenever the wire is looked at.
    stream.write_all(format!("{HELLO}{name}\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.strip_suffix('\n') {
        Some(name) => Ok(name.to_owned()),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn answer(mut stream: TcpStream, name: &str) -> Option<()> {
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let mut hello = String::new();
    BufReader::new(&stream).read_line(&mut hello).ok()?;
    hello.starts_with(HELLO).then_some(())?;
    stream.write_all(format!("{name}\n").as_bytes()).ok()
}

pub(crate) const PATIENCE: Duration = Duration::from_millis(1500);

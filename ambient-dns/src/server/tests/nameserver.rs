//! A nameserver that does as it is told, good or ill.

use std::{collections::HashSet, net::SocketAddr, sync::Mutex};

use super::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// What a nameserver says to a query.
pub(super) enum Say {
    /// These messages, in this order; ID and questions are the query's.
    Bytes(fn(&[u8]) -> Vec<Vec<u8>>),
    /// Nothing.
    Nothing,
    /// An answer, but from another socket.
    FromElsewhere,
    /// By TCP, it closes the connection.
    Close,
}

/// What came, and whence.
type Heard = Arc<Mutex<Vec<(SocketAddr, Vec<u8>)>>>;

pub(super) struct Nameserver {
    pub(super) at: SocketAddr,
    heard: Heard,
    tasks: JoinSet<()>,
}

impl Nameserver {
    /// One that listens on one port by UDP and TCP.
    pub(super) async fn start(say: Say) -> Self {
        let (socket, listener) = loop {
            let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            if let Ok(listener) = TcpListener::bind(socket.local_addr().unwrap()).await {
                break (socket, listener);
            }
        };
        let at = socket.local_addr().unwrap();
        let heard: Heard = Arc::default();
        let mut tasks = JoinSet::new();
        let say = Arc::new(say);
        tasks.spawn(by_datagrams(socket, heard.clone(), say.clone()));
        tasks.spawn(by_streams(listener, heard.clone(), say));
        Self { at, heard, tasks }
    }

    /// What it has heard so far.
    pub(super) fn heard(&self) -> Vec<Vec<u8>> {
        self.heard.lock().unwrap().iter().map(|(_, bytes)| bytes.clone()).collect()
    }

    /// From how many ports.
    pub(super) fn ports(&self) -> usize {
        self.heard
            .lock()
            .unwrap()
            .iter()
            .map(|(from, _)| from)
            .collect::<HashSet<_>>()
            .len()
    }

    pub(super) async fn hears(&self, many: usize) {
        let heard = async {
            while self.heard.lock().unwrap().len() < many {
                time::sleep(Duration::from_millis(5)).await;
            }
        };
        time::timeout(PATIENCE, heard).await.expect("the nameserver is not asked");
    }
}

impl Drop for Nameserver {
    fn drop(&mut self) {
        self.tasks.abort_all();
    }
}

/// The query as an answer: it is repeated, and more follows.
pub(super) fn answer(query: &[u8]) -> Vec<u8> {
    let mut reply = query.to_vec();
    reply[2] |= 0x80;
    reply.extend(b"and what the nameserver says");
    reply
}

async fn by_datagrams(socket: UdpSocket, heard: Heard, say: Arc<Say>) {
    let mut buffer = vec![0; LONGEST_MESSAGE];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        let query = buffer[..length].to_vec();
        heard.lock().unwrap().push((from, query.clone()));
        match &*say {
            Say::Bytes(replies) => {
                for reply in replies(&query) {
                    socket.send_to(&reply, from).await.unwrap();
                }
            }
            Say::FromElsewhere => {
                let other = UdpSocket::bind("127.0.0.1:0").await.unwrap();
                // A connected socket refuses it, and says so.
                let _ = other.send_to(&answer(&query), from).await;
            }
            Say::Nothing | Say::Close => {}
        }
    }
}

async fn by_streams(listener: TcpListener, heard: Heard, say: Arc<Say>) {
    let mut connections = JoinSet::new();
    loop {
        let (mut stream, from) = listener.accept().await.unwrap();
        let (heard, say) = (heard.clone(), say.clone());
        connections.spawn(async move {
            while let Some(query) = next(&mut stream).await {
                heard.lock().unwrap().push((from, query.clone()));
                match &*say {
                    Say::Bytes(replies) => {
                        for reply in replies(&query) {
                            write(&mut stream, &reply).await;
                        }
                    }
                    Say::Close => return,
                    Say::Nothing | Say::FromElsewhere => {}
                }
            }
        });
    }
}

/// The next message of a stream; `None` at its end, however it comes.
pub(super) async fn next(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let length = stream.read_u16().await.ok()?;
    let mut message = vec![0; length.into()];
    stream.read_exact(&mut message).await.ok()?;
    Some(message)
}

pub(super) async fn write(stream: &mut TcpStream, message: &[u8]) {
    let length = u16::try_from(message.len()).unwrap();
    let whole = [&length.to_be_bytes()[..], message].concat();
    // Who is gone does not hear it.
    let _ = stream.write_all(&whole).await;
}

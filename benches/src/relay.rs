//! What is left of a proxy when it only passes bytes on: no TLS, no framing, no log. No proxy with the same copies can be faster.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes},
    net::TcpStream,
};

use crate::{
    Sides,
    node::{Node, Place},
};

/// Starts both proxies, the near one first.
pub(crate) fn start(sides: &Sides, app: SocketAddr) -> [Node; 2] {
    let [near, far] = sides.proxies();
    let far = listen(far, app);
    [listen(near, far.address), far]
}

fn listen(place: Place, to: SocketAddr) -> Node {
    Node::listen(&place.clone(), move |from| pass_on(from, place.clone(), to))
}

async fn pass_on(mut from: TcpStream, place: Place, to: SocketAddr) {
    let mut onward = place.connect(to).await.expect("the next one listens");
    copy(&mut from, &mut onward, BUFFER).await;
}

/// Passes on what comes from either side, until both have ended.
pub(crate) async fn copy(a: &mut (impl AsyncRead + AsyncWrite + Unpin), b: &mut (impl AsyncRead + AsyncWrite + Unpin), buffer: usize) {
    // Ends with the client, in whatever way.
    let _ = copy_bidirectional_with_sizes(a, b, buffer, buffer).await;
}

/// As much as the node's own relay reads at once.
const BUFFER: usize = 256 << 10;

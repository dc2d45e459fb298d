//! What is heard of who answers a connection.

use std::{
    io::{self, Read},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use ambient_redirect::linux::Netns;

const PATIENCE: Duration = Duration::from_secs(2);

/// Connects and gives all that is heard.
pub(crate) fn exchange(to: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// The same from a namespace, while others have their turn.
pub(crate) async fn ask(from: &Arc<Netns>, to: &str) -> io::Result<String> {
    let (from, to) = (from.clone(), to.parse().unwrap());
    let asked = tokio::task::spawn_blocking(move || from.run(|| exchange(to)));
    asked.await.unwrap().unwrap()
}

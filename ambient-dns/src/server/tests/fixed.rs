//! A server whose nameservers are always the same.

use super::*;
use crate::Nameservers;
use nameserver::{answer, next, write};

#[tokio::test]
async fn nameservers_that_are_given_are_asked_by_datagrams_and_streams() {
    let nameserver = Nameserver::start(Say::Bytes(|query| vec![answer(query)])).await;
    let upstream = Nameservers::new([nameserver.at], || 0x0123_4567_89ab_cdef);
    let server = Server::builder(
        Zone::default(),
        "shop",
        Arc::new(|| Some(View::new(Mesh::default()))),
        Arc::new(upstream),
    )
    .build();
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (udp, tcp) = (socket.local_addr().unwrap(), listener.local_addr().unwrap());
    let asking = async {
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.connect(udp).await.unwrap();
        client.send(&example(1)).await.unwrap();
        assert_eq!(receive(&client).await, answer(&example(1)));
        let mut client = TcpStream::connect(tcp).await.unwrap();
        write(&mut client, &example(2)).await;
        assert_eq!(time::timeout(PATIENCE, next(&mut client)).await.unwrap(), Some(answer(&example(2))));
    };
    tokio::select! {
        ((), ()) = async { tokio::join!(server.serve_udp(socket), server.serve_tcp(listener)) } => unreachable!("a server does not end"),
        () = asking => {}
    }
    // By UDP the ID is the server's own.
    let heard = nameserver.heard();
    assert_eq!(heard.len(), 2);
    assert_eq!(heard[0][2..], example(1)[2..]);
    assert_eq!(heard[1], example(2));
}

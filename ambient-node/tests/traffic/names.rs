//! Pods' DNS queries: what is answered by the node, and that everything else comes to whom it was sent.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use ambient_core::ports;
use ambient_testkit::{World, harness::Outcome};

use crate::mesh::{Family, Mesh, PATIENCE, Place, until};

/// What came, and whence.
type Heard = Arc<Mutex<Vec<(IpAddr, Vec<u8>)>>>;

/// Somebody who repeats every query as its answer, with its own address behind it.
struct Nameserver {
    at: SocketAddr,
    heard: Heard,
}

impl Nameserver {
    fn start(place: &Place, family: Family) -> io::Result<Self> {
        let at = SocketAddr::new(place.ip(family), 53);
        let bound = place
            .namespace
            .run(|| Ok::<_, io::Error>((UdpSocket::bind(at)?, TcpListener::bind(at)?)));
        let (socket, listener) = bound.map_err(io::Error::other)??;
        let heard: Heard = Arc::default();
        let (by_udp, by_tcp) = (heard.clone(), heard.clone());
        // Both end with the test's process.
        thread::spawn(move || {
            let mut buffer = vec![0; 65_535];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                by_udp.lock().unwrap().push((from.ip(), buffer[..length].to_vec()));
                let _ = socket.send_to(&answer(&buffer[..length], at.ip()), from);
            }
        });
        thread::spawn(move || {
            while let Ok((mut stream, from)) = listener.accept() {
                while let Ok(query) = read(&mut stream) {
                    by_tcp.lock().unwrap().push((from.ip(), query.clone()));
                    let _ = write(&mut stream, &answer(&query, at.ip()));
                }
            }
        });
        Ok(Self { at, heard })
    }

    fn heard(&self) -> Vec<(IpAddr, Vec<u8>)> {
        std::mem::take(&mut *self.heard.lock().unwrap())
    }
}

fn answer(query: &[u8], by: IpAddr) -> Vec<u8> {
    let mut reply = query.to_vec();
    reply[2] |= 0x80;
    reply.extend(by.to_string().bytes());
    reply
}

fn read(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut message)?;
    Ok(message)
}

fn write(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], message].concat())
}

fn query(id: u8, name: &[u8], kind: u8) -> Vec<u8> {
    [&[0x77, id, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], name, &[0, 0, kind, 0, 1]].concat()
}

/// The socket of a pod's process.
fn socket(place: &Place, family: Family) -> io::Result<UdpSocket> {
    let any = SocketAddr::new(place.ip(family), 0);
    let socket = place.namespace.run(|| UdpSocket::bind(any)).map_err(io::Error::other)??;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

fn receive(socket: &UdpSocket) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; 65_535];
    let length = socket.recv(&mut buffer)?;
    buffer.truncate(length);
    Ok(buffer)
}

fn start(world: &World, nameserver: SocketAddr) -> Result<Mesh, Box<dyn std::error::Error>> {
    let mesh = Mesh::start_with(world, |config| config.nameservers = vec![nameserver])?;
    mesh.apply(
        "service-web",
        "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.7, clusterIPs: [10.96.0.7], selector: {app: b}, ports: [{port: 80}]}
",
    );
    Ok(mesh)
}

pub(crate) fn queries_come_to_whom_they_were_sent(world: &World) -> Outcome {
    // Nobody's: nothing must go there.
    let mesh = start(world, "192.0.2.53:53".parse()?)?;
    for family in [Family::V4, Family::V6] {
        let (first, second) = (Nameserver::start(&mesh.c, family)?, Nameserver::start(&mesh.b, family)?);
        let from = mesh.a.ip(family);
        // Connected, as most resolvers have it: the kernel takes the answer from nobody else.
        let connected = socket(&mesh.a, family)?;
        connected.connect(first.at)?;
        let srv = query(1, b"\x03web\x04shop", 33);
        connected.send(&srv)?;
        assert_eq!(receive(&connected)?, answer(&srv, first.at.ip()), "{family:?}");
        let heard = first.heard();
        assert_eq!(
            (heard.len(), heard[0].0, &heard[0].1[2..]),
            (1, from, &srv[2..]),
            "from the pod itself"
        );

        // One socket for several nameservers, as other resolvers have it.
        let open = socket(&mesh.a, family)?;
        for (id, nameserver) in [(2, &first), (3, &second), (4, &first)] {
            open.send_to(&query(id, b"\x07example\x03com", 1), nameserver.at)?;
        }
        let mut answered = std::collections::BTreeMap::new();
        for _ in 0..3 {
            let mut buffer = vec![0; 512];
            let (length, by) = open.recv_from(&mut buffer)?;
            answered.insert(buffer[1], (by, buffer[..length].to_vec()));
        }
        for (id, nameserver) in [(2, &first), (3, &second), (4, &first)] {
            let expected = answer(&query(id, b"\x07example\x03com", 1), nameserver.at.ip());
            assert_eq!(answered[&id], (nameserver.at, expected), "{family:?}");
        }
        assert_eq!((first.heard().len(), second.heard().len()), (2, 1));

        let mut stream = mesh.a.connect(first.at)?;
        for id in 5..8 {
            let update = [&[0x77, id, 0x28][..], &query(id, b"\x07example\x03com", 6)[3..]].concat();
            write(&mut stream, &update)?;
            assert_eq!(read(&mut stream)?, answer(&update, first.at.ip()), "{family:?}");
        }
        let heard = first.heard();
        assert_eq!((heard.len(), heard[0].0), (3, from));
    }
    let of_a = [("source_canonical_service", "a")];
    assert_eq!(mesh.metric("istio_dns_upstream_requests_total", &of_a), 14);
    assert_eq!(mesh.metric("istio_dns_upstream_failures_total", &[]), 0);
    Ok(())
}

pub(crate) fn names_of_the_mesh_are_answered_by_the_node(world: &World) -> Outcome {
    let mesh = start(world, "192.0.2.53:53".parse()?)?;
    let web = query(1, b"\x03web\x04shop\x03svc\x07cluster\x05local", 1);
    let expected = {
        let mut reply = web.clone();
        (reply[2], reply[3], reply[7]) = (0x85, 0x80, 1);
        [&reply[..], b"\xc0\x0c\0\x01\0\x01\0\0\0\x1e\0\x04\x0a\x60\0\x07"].concat()
    };
    for family in [Family::V4, Family::V6] {
        let nameserver = Nameserver::start(&mesh.c, family)?;
        let socket = socket(&mesh.a, family)?;
        socket.connect(nameserver.at)?;
        // Until the service has come it is the nameserver's to answer.
        until("the service to be known", || {
            socket.send(&web).ok()?;
            (receive(&socket).ok()? == expected).then_some(())
        });
        nameserver.heard();
        let mut stream = mesh.a.connect(nameserver.at)?;
        write(&mut stream, &web)?;
        assert_eq!(read(&mut stream)?, expected, "{family:?}");
        assert!(nameserver.heard().is_empty());
    }
    assert!(mesh.metric("ambient_dns_responses_total", &[("source", "mesh"), ("rcode", "NOERROR")]) >= 4);
    Ok(())
}

pub(crate) fn where_no_nameserver_is_the_client_learns_it(world: &World) -> Outcome {
    let mesh = start(world, "192.0.2.53:53".parse()?)?;
    let nobody = SocketAddr::new(mesh.c.v4, 53);
    let socket = socket(&mesh.a, Family::V4)?;
    socket.connect(nobody)?;
    let asked = query(9, b"\x07example\x03com", 1);
    socket.send(&asked)?;
    let reply = receive(&socket)?;
    assert_eq!(
        (&reply[..2], reply[2] & 0x80, reply[3] & 0xf),
        (&asked[..2], 0x80, 2),
        "{reply:02x?}"
    );
    // By TCP it is a connection that ends.
    let mut stream = mesh.a.connect(nobody)?;
    write(&mut stream, &asked)?;
    assert!(read(&mut stream).is_err());
    assert_eq!(
        mesh.metric("istio_dns_upstream_failures_total", &[("source_canonical_service", "a")]),
        2
    );
    Ok(())
}

pub(crate) fn who_asks_the_node_itself_is_answered_by_the_usual_nameservers(world: &World) -> Outcome {
    let mesh = start(world, "10.0.0.4:53".parse()?)?;
    let nameserver = Nameserver::start(&mesh.c, Family::V4)?;
    let asked = query(9, b"\x07example\x03com", 1);
    let itself = SocketAddr::from(([127, 0, 0, 1], ports::DNS));
    let socket = mesh.a.namespace.run(|| UdpSocket::bind("127.0.0.1:0"))??;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(itself)?;
    socket.send(&asked)?;
    assert_eq!(receive(&socket)?, answer(&asked, nameserver.at.ip()));
    let mut stream = mesh.a.namespace.run(|| TcpStream::connect_timeout(&itself, PATIENCE))??;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write(&mut stream, &asked)?;
    assert_eq!(read(&mut stream)?, answer(&asked, nameserver.at.ip()));
    assert_eq!(nameserver.heard().len(), 2);
    Ok(())
}

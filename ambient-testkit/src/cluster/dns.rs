//! The cluster DNS: a small server that knows the names of services, and nothing else.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    net::{IpAddr, TcpListener, TcpStream, UdpSocket},
    sync::{Arc, RwLock},
    thread,
    time::Duration,
};

use hickory_proto::{
    op::{Message, MessageType, OpCode, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, AAAA},
    },
};

/// The names that the cluster DNS knows, fully qualified, without the dot at the end and in lower case.
pub(crate) type Zone = BTreeMap<String, Vec<IpAddr>>;

/// The running server. Its threads end with the process.
#[derive(Clone, Debug, Default)]
pub(crate) struct ClusterDns {
    zone: Arc<RwLock<Zone>>,
}

impl ClusterDns {
    /// Replaces everything that the server knows.
    pub(crate) fn publish(&self, zone: Zone) {
        *self.zone.write().unwrap_or_else(std::sync::PoisonError::into_inner) = zone;
    }

    /// Answers on sockets that were bound in the cluster DNS's namespace.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub(crate) fn serve(&self, udp: UdpSocket, tcp: TcpListener) -> io::Result<()> {
        let zone = self.zone.clone();
        thread::Builder::new()
            .name("cluster-dns-udp".into())
            .spawn(move || serve_udp(&udp, &zone))?;
        let zone = self.zone.clone();
        // One connection after the other, each within its deadline: there are a handful of clients.
        thread::Builder::new().name("cluster-dns-tcp".into()).spawn(move || {
            for stream in tcp.incoming().flatten() {
                // A client that breaks off is its own loss.
                let _ = serve_tcp(stream, &zone);
            }
        })?;
        Ok(())
    }
}

fn serve_udp(socket: &UdpSocket, zone: &RwLock<Zone>) {
    let mut buffer = [0; 4096];
    loop {
        // An error here is an earlier answer that its client no longer waited for.
        let Ok((length, client)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        if let Some(reply) = answer_bytes(&buffer[..length], zone) {
            let _ = socket.send_to(&reply, client);
        }
    }
}

fn serve_tcp(mut stream: TcpStream, zone: &RwLock<Zone>) -> io::Result<()> {
    stream.set_read_timeout(Some(TCP_DEADLINE))?;
    stream.set_write_timeout(Some(TCP_DEADLINE))?;
    let mut length = [0; 2];
    while stream.read_exact(&mut length).is_ok() {
        let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut query)?;
        let Some(reply) = answer_bytes(&query, zone) else { break };
        let Ok(length) = u16::try_from(reply.len()) else { break };
        stream.write_all(&[&length.to_be_bytes()[..], &reply].concat())?;
    }
    Ok(())
}

fn answer_bytes(query: &[u8], zone: &RwLock<Zone>) -> Option<Vec<u8>> {
    let query = Message::from_vec(query).ok()?;
    let zone = zone.read().unwrap_or_else(std::sync::PoisonError::into_inner);
    answer(&query, &zone)?.to_vec().ok()
}

/// The answer to a query: the addresses of a known name in the family asked for, an empty answer for other types, else
/// NXDOMAIN. `None` for what is not a query.
fn answer(query: &Message, zone: &Zone) -> Option<Message> {
    if query.metadata.message_type != MessageType::Query {
        return None;
    }
    let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
    reply.metadata.recursion_desired = query.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.metadata.authoritative = true;
    if query.metadata.op_code != OpCode::Query {
        reply.metadata.response_code = ResponseCode::NotImp;
        return Some(reply);
    }
    let [question] = query.queries.as_slice() else {
        reply.metadata.response_code = ResponseCode::FormErr;
        return Some(reply);
    };
    reply.add_query(question.clone());
    match zone.get(&plain(question.name())) {
        None => reply.metadata.response_code = ResponseCode::NXDomain,
        Some(addresses) => {
            for address in addresses {
                let data = match (question.query_type(), address) {
                    (RecordType::A, IpAddr::V4(v4)) => RData::A(A(*v4)),
                    (RecordType::AAAA, IpAddr::V6(v6)) => RData::AAAA(AAAA(*v6)),
                    _ => continue,
                };
                reply.add_answer(Record::from_rdata(question.name().clone(), TTL_SECONDS, data));
            }
        }
    }
    Some(reply)
}

fn plain(name: &Name) -> String {
    name.to_ascii().trim_end_matches('.').to_ascii_lowercase()
}

const TTL_SECONDS: u32 = 5;
const TCP_DEADLINE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use hickory_proto::op::Query;

    use super::*;

    fn ask(name: &str, kind: RecordType) -> Message {
        let zone: Zone = [(
            "web-api.demo.svc.cluster.local".into(),
            vec!["10.96.10.1".parse().unwrap(), "fd00::1".parse().unwrap()],
        )]
        .into();
        let mut query = Message::query();
        query.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        answer(&query, &zone).unwrap()
    }

    #[test]
    fn services_have_addresses_of_both_families() {
        let a = ask("Web-API.demo.svc.cluster.local.", RecordType::A);
        assert_eq!(a.answers.len(), 1);
        assert_eq!(a.answers[0].record_type(), RecordType::A);
        assert_eq!(ask("web-api.demo.svc.cluster.local.", RecordType::AAAA).answers.len(), 1);
        let mx = ask("web-api.demo.svc.cluster.local.", RecordType::MX);
        assert_eq!((mx.answers.len(), mx.metadata.response_code), (0, ResponseCode::NoError));
    }

    #[test]
    fn other_names_do_not_exist() {
        assert_eq!(ask("web-api.", RecordType::A).metadata.response_code, ResponseCode::NXDomain);
    }

    #[test]
    fn it_answers_on_sockets() {
        let dns = ClusterDns::default();
        dns.publish([("a".into(), vec!["10.0.0.1".parse().unwrap()])].into());
        let (udp, tcp) = (UdpSocket::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        let (udp_at, tcp_at) = (udp.local_addr().unwrap(), tcp.local_addr().unwrap());
        dns.serve(udp, tcp).unwrap();
        let mut query = Message::query();
        query.add_query(Query::query(Name::from_ascii("a.").unwrap(), RecordType::A));
        let query = query.to_vec().unwrap();

        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        client.send_to(&query, udp_at).unwrap();
        let mut buffer = [0; 512];
        let length = client.recv(&mut buffer).unwrap();
        assert_eq!(Message::from_vec(&buffer[..length]).unwrap().answers.len(), 1);

        let mut stream = TcpStream::connect(tcp_at).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream
            .write_all(&[&u16::try_from(query.len()).unwrap().to_be_bytes()[..], &query].concat())
            .unwrap();
        let mut head = [0; 2];
        stream.read_exact(&mut head).unwrap();
        let mut reply = vec![0; usize::from(u16::from_be_bytes(head))];
        stream.read_exact(&mut reply).unwrap();
        assert_eq!(Message::from_vec(&reply).unwrap().answers.len(), 1);
    }
}

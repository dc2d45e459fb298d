//! Who has opened a connection, where nothing but its ends can tell.

use std::{collections::HashSet, fs, ops::RangeInclusive};

use crate::{
    netlink::{Connection, KnownBy, Tracked},
    pods::Direction,
};

/// The ports that a namespace gives to who opens a connection and asks for none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ClientPorts {
    given: RangeInclusive<u16>,
    /// Those of them that are kept for servers.
    reserved: Vec<RangeInclusive<u16>>,
}

impl ClientPorts {
    /// Those of the calling thread's namespace; what a kernel begins with where it does not say.
    pub(super) fn here() -> Self {
        let read = |name: &str| fs::read_to_string(format!("{SETTINGS}/{name}")).unwrap_or_default();
        Self::read(&read("ip_local_port_range"), &read("ip_local_reserved_ports"))
    }

    fn read(given: &str, reserved: &str) -> Self {
        let port = |text: &str| text.trim().parse::<u16>().ok();
        let given = given.split_once(char::is_whitespace);
        let given = given.and_then(|(first, last)| Some(port(first)?..=port(last)?));
        let reserved = reserved.trim().split(',').filter_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(port(first)?..=port(last)?)
        });
        Self {
            given: given.unwrap_or(BY_DEFAULT),
            reserved: reserved.collect(),
        }
    }

    fn gives(&self, port: u16) -> bool {
        self.given.contains(&port) && !self.reserved.iter().any(|some| some.contains(&port))
    }
}

/// Who opened a connection: as the kernel has seen it begin, as its socket has counted, or as it was once told that the other end did.
/// Else its port tells: it is the pod's only where it is one that clients are given, and nobody listens on it. All else has come to the pod, so that its
/// policies are asked: a server that has closed its listener is no way around them, nor is a client whose own port looks like a
/// server's.
pub(super) fn direction(
    connection: &Connection,
    tracked: Option<(&Tracked, Direction)>,
    listening: &HashSet<u16>,
    clients: &ClientPorts,
) -> Direction {
    match (tracked.map(|(tracked, first)| (tracked.known_by, first)), connection.opened_here) {
        (Some((KnownBy::Beginning, first)), _) => return first,
        (_, Some(true)) => return Direction::Outbound,
        (_, Some(false)) | (Some((KnownBy::Word, Direction::Inbound)), _) => return Direction::Inbound,
        _ => (),
    }
    let port = connection.local.port();
    match clients.gives(port) && !listening.contains(&port) {
        true => Direction::Outbound,
        false => Direction::Inbound,
    }
}

/// Of the reading thread's namespace, for both families.
const SETTINGS: &str = "/proc/sys/net/ipv4";
/// As a kernel has it unless it is told otherwise.
const BY_DEFAULT: RangeInclusive<u16> = 32768..=60999;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::Progress;

    fn connection(local: &str, remote: &str) -> Connection {
        Connection {
            local: local.parse().unwrap(),
            remote: remote.parse().unwrap(),
            progress: Progress::Established,
            mark: None,
            opened_here: None,
            device: 0,
            cookie: 1,
        }
    }

    fn tracked(known_by: KnownBy) -> Tracked {
        Tracked {
            source: "10.0.0.2:50000".parse().unwrap(),
            destination: "10.0.0.9:443".parse().unwrap(),
            status: 0,
            mark: 0,
            id: 1,
            ended: false,
            known_by,
        }
    }

    #[test]
    fn what_is_not_plainly_a_clients_has_come_to_the_pod() {
        let listening = HashSet::from([40_000, 8080]);
        let clients = ClientPorts::read("32768\t60999\n", "45000,45010-45012\n");
        for (local, remote, opened) in [
            ("10.0.0.2:50000", "10.0.0.9:443", Direction::Outbound),
            ("10.0.0.2:50000", "10.0.0.9:50001", Direction::Outbound),
            ("10.0.0.2:8080", "10.0.0.9:50000", Direction::Inbound),
            ("10.0.0.2:40000", "10.0.0.9:50000", Direction::Inbound),
            // Its listener is closed by now, whatever port the other end has chosen.
            ("10.0.0.2:9090", "10.0.0.9:50000", Direction::Inbound),
            ("10.0.0.2:9090", "10.0.0.9:443", Direction::Inbound),
            ("10.0.0.2:61000", "10.0.0.9:1", Direction::Inbound),
            // Kept for servers.
            ("10.0.0.2:45000", "10.0.0.9:443", Direction::Inbound),
            ("10.0.0.2:45012", "10.0.0.9:443", Direction::Inbound),
            ("10.0.0.2:45013", "10.0.0.9:443", Direction::Outbound),
        ] {
            let way = direction(&connection(local, remote), None, &listening, &clients);
            assert_eq!(way, opened, "{local} {remote}");
        }
    }

    #[test]
    fn what_a_socket_has_counted_goes_before_what_its_port_looks_like() {
        let clients = ClientPorts::read("", "");
        let listening = HashSet::from([8080]);
        for (opened_here, way) in [(true, Direction::Outbound), (false, Direction::Inbound)] {
            for local in ["10.0.0.2:50000", "10.0.0.2:8080", "10.0.0.2:443"] {
                let counted = Connection {
                    opened_here: Some(opened_here),
                    ..connection(local, "10.0.0.9:443")
                };
                assert_eq!(direction(&counted, None, &listening, &clients), way, "{local}");
                for first in [Direction::Inbound, Direction::Outbound] {
                    let of = |known_by| direction(&counted, Some((&tracked(known_by), first)), &listening, &clients);
                    assert_eq!((of(KnownBy::Middle), of(KnownBy::Word), of(KnownBy::Beginning)), (way, way, first));
                }
            }
        }
    }

    #[test]
    fn what_the_kernel_has_seen_it_knows_and_what_it_took_up_it_does_not() {
        let clients = ClientPorts::read("", "");
        let none = HashSet::new();
        let way = |local: &str, known_by, first| {
            let tracked = tracked(known_by);
            direction(&connection(local, "10.0.0.9:443"), Some((&tracked, first)), &none, &clients)
        };
        let (client, server) = ("10.0.0.2:50000", "10.0.0.2:8080");
        for first in [Direction::Inbound, Direction::Outbound] {
            assert_eq!(way(client, KnownBy::Beginning, first), first);
            assert_eq!(way(server, KnownBy::Beginning, first), first);
            // A packet of either end may have come first.
            assert_eq!(way(client, KnownBy::Middle, first), Direction::Outbound);
            assert_eq!(way(server, KnownBy::Middle, first), Direction::Inbound);
        }
        // When it was told, a listener may have been there that is not there now.
        assert_eq!(way(client, KnownBy::Word, Direction::Inbound), Direction::Inbound);
        assert_eq!(way(client, KnownBy::Word, Direction::Outbound), Direction::Outbound);
        assert_eq!(way(server, KnownBy::Word, Direction::Outbound), Direction::Inbound);
    }

    #[test]
    fn settings_are_read_as_the_kernel_prints_them() {
        let (few, many) = (
            ClientPorts::read("40000\t40009\n", "\n"),
            ClientPorts::read("1024 65535", "8080,9148-9150"),
        );
        assert!(few.gives(40_000) && few.gives(40_009) && !few.gives(40_010) && !few.gives(39_999));
        assert!(many.gives(1024) && many.gives(65_535) && !many.gives(8080) && !many.gives(9149) && many.gives(9151));
        for nonsense in ["", "\n", "32768", "a b", "70000 80000", "-1 5"] {
            assert_eq!(ClientPorts::read(nonsense, nonsense).given, BY_DEFAULT, "{nonsense:?}");
        }
        // Every system has it, and this one's is read.
        assert!(!ClientPorts::here().given.is_empty());
    }
}

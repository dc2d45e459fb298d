//! What the kernel tells of a pod's namespace at the moment that somebody asks.

use ambient_redirect::{
    linux::{Difference, Inside, Mark},
    plan::{Plan, Port, Protocol},
    pods::PodState,
};
use serde::Serialize;

use super::super::Standing;

/// What was seen; nothing of a pod that the node does not serve.
#[derive(Debug, Default)]
pub(super) struct Look {
    pub(super) listeners: Vec<Listener>,
    /// What of rules and routes is not as it should be.
    pub(super) rules: Vec<Difference>,
    /// Why nothing was seen.
    pub(super) blind: Option<String>,
}

/// One of the ports that the proxy is to listen on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Listener {
    pub(super) port: u16,
    pub(super) protocol: &'static str,
    pub(super) state: Listens,
}

/// Who listens on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Listens {
    /// The proxy.
    Up,
    /// The proxy does not, for one family of addresses at least.
    Missing,
    /// A process of the pod.
    Another,
}

impl Look {
    /// Looks into the namespace of a pod; some system calls.
    pub(super) fn into(at: &Standing, pod: &PodState) -> Self {
        let Some(namespace) = (at.namespace)(&pod.spec.uid) else {
            return Self::default();
        };
        let options = at.capture.of(&pod.spec.capture);
        let plan = match pod.closed {
            true => Plan::new(&options).and_closed(&options),
            false => Plan::new(&options),
        };
        let mark = Mark::new(&at.node, &pod.spec.uid);
        let looked = Inside::open(&namespace).and_then(|mut inside| inside.verify(&plan, &mark));
        match looked {
            Ok(differences) => Self::of(&plan, differences),
            Err(error) => Self {
                blind: Some(error.to_string()),
                ..Self::default()
            },
        }
    }

    fn of(plan: &Plan, differences: Vec<Difference>) -> Self {
        let state = |port: &Port| {
            let missing = differences.iter().any(|d| matches!(d, Difference::Listener(p, _) if p == port));
            let another = differences.iter().any(|d| matches!(d, Difference::ForeignListener(p) if p == port));
            match (another, missing) {
                (true, _) => Listens::Another,
                (false, true) => Listens::Missing,
                (false, false) => Listens::Up,
            }
        };
        let mut ports = plan.listeners.clone();
        ports.sort_by_key(|port| (port.port, port.protocol == Protocol::Udp));
        let listeners = ports.iter().map(|port| Listener {
            port: port.port,
            protocol: match port.protocol {
                Protocol::Tcp => "TCP",
                Protocol::Udp => "UDP",
            },
            state: state(port),
        });
        let listeners = listeners.collect();
        let mut rules = differences;
        rules.retain(|d| !matches!(d, Difference::Listener(..) | Difference::ForeignListener(_)));
        Self {
            listeners,
            rules,
            blind: None,
        }
    }
}

/// The ports that are up, and of the others what is wrong.
pub(super) fn in_short(listeners: &[Listener]) -> String {
    let mut ports: Vec<u16> = listeners.iter().map(|l| l.port).collect();
    ports.dedup();
    let of = |port: u16| listeners.iter().filter(move |l| l.port == port).map(|l| l.state);
    let said = ports.into_iter().map(|port| {
        let worst = [Listens::Another, Listens::Missing]
            .into_iter()
            .find(|bad| of(port).any(|s| s == *bad));
        match worst {
            Some(Listens::Another) => format!("{port}:another's"),
            Some(_) => format!("{port}:missing"),
            None => port.to_string(),
        }
    });
    let said: Vec<String> = said.collect();
    if said.is_empty() { "-".into() } else { said.join(" ") }
}

#[cfg(test)]
mod tests {
    use ambient_redirect::plan::{IpFamily, Options};

    use super::*;

    #[test]
    fn each_port_is_told_by_itself() {
        let plan = Plan::new(&Options::default());
        let port = |number: u16, protocol: Protocol| *plan.listeners.iter().find(|p| p.port == number && p.protocol == protocol).unwrap();
        assert_eq!(in_short(&Look::of(&plan, Vec::new()).listeners), "15001 15006 15008 15053");
        let look = Look::of(
            &plan,
            vec![
                Difference::Listener(port(15008, Protocol::Tcp), IpFamily::V6),
                Difference::ForeignListener(port(15006, Protocol::Tcp)),
                Difference::Listener(port(15006, Protocol::Tcp), IpFamily::V4),
                Difference::Listener(port(15053, Protocol::Udp), IpFamily::V4),
                Difference::Route(IpFamily::V4),
            ],
        );
        assert_eq!(in_short(&look.listeners), "15001 15006:another's 15008:missing 15053:missing");
        assert_eq!(look.rules, [Difference::Route(IpFamily::V4)]);
        let json = serde_json::to_value(&look.listeners).unwrap();
        assert_eq!(json[3], serde_json::json!({ "port": 15053, "protocol": "TCP", "state": "up" }));
        assert_eq!(json[4], serde_json::json!({ "port": 15053, "protocol": "UDP", "state": "missing" }));
        assert_eq!(in_short(&[]), "-");
    }
}

//! What kube-proxy and the cluster DNS make of services and pods: pure.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use ambient_redirect::netlink::{BaseChain, Batch, Expr, Family};
use serde_json::Value;

use super::{dns::Zone, object::Object};

/// One port of a cluster IP, and the pod behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Forward {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
}

/// The forwards of every TCP port of every service. Of several pods behind a service the first by name is taken: the
/// lab has no more than one.
pub(crate) fn forwards<'a>(services: impl Iterator<Item = &'a Object>, pods: &[&Object]) -> Vec<Forward> {
    services.flat_map(|service| forwards_of(service, pods)).collect()
}

fn forwards_of(service: &Object, pods: &[&Object]) -> Vec<Forward> {
    let selector = service.value().pointer("/spec/selector").and_then(Value::as_object);
    let behind = |pod: &&&Object| pod.key().namespace == service.key().namespace && pod.matches(selector);
    let Some(pod) = pods.iter().find(behind) else { return Vec::new() };
    let addresses = pod_ips(pod);
    let mut forwards = Vec::new();
    for cluster_ip in cluster_ips(service) {
        let Some(target) = addresses.iter().find(|a| a.is_ipv4() == cluster_ip.is_ipv4()) else {
            continue;
        };
        for (port, target_port) in ports(service) {
            forwards.push(Forward {
                from: SocketAddr::new(cluster_ip, port),
                to: SocketAddr::new(*target, target_port),
            });
        }
    }
    forwards
}

/// What the cluster DNS knows of services: `NAME.NAMESPACE.svc.cluster.local`.
pub(crate) fn zone<'a>(services: impl Iterator<Item = &'a Object>) -> Zone {
    services
        .map(|s| {
            (
                format!("{}.{}.svc.{CLUSTER_DOMAIN}", s.key().name, s.key().namespace),
                cluster_ips(s),
            )
        })
        .collect::<BTreeMap<_, _>>()
}

/// The text of a pod's `resolv.conf`, as a kubelet writes it, with shorter waits than the C library's own.
pub(crate) fn resolv_conf(server: impl Into<IpAddr>, namespace: &str) -> String {
    format!(
        "nameserver {}\nsearch {namespace}.svc.{CLUSTER_DOMAIN} svc.{CLUSTER_DOMAIN} {CLUSTER_DOMAIN}\noptions ndots:5 timeout:1 attempts:2\n",
        server.into()
    )
}

/// The rules of kube-proxy in a node's namespace, for packets of its pods and of its own programs, in place of those
/// that were there.
pub(crate) fn rules(forwards: &[Forward]) -> Batch {
    let mut batch = Batch::default();
    batch.add_table(Family::Inet, TABLE, b"");
    batch.flush_table(Family::Inet, TABLE);
    for (chain, base) in [("prerouting", BaseChain::nat_prerouting()), ("output", BaseChain::nat_output())] {
        batch.add_base_chain(Family::Inet, TABLE, chain, &base);
        for forward in forwards {
            let mut rule = Expr::tcp_to(forward.from.ip(), forward.from.port());
            rule.extend(Expr::dnat(forward.to));
            batch.add_rule(Family::Inet, TABLE, chain, &rule);
        }
    }
    batch
}

/// The addresses in a pod's status.
pub(crate) fn pod_ips(pod: &Object) -> Vec<IpAddr> {
    let list = pod.value().pointer("/status/podIPs").and_then(Value::as_array);
    list.into_iter()
        .flatten()
        .filter_map(|ip| ip.get("ip")?.as_str()?.parse().ok())
        .collect()
}

fn cluster_ips(service: &Object) -> Vec<IpAddr> {
    let list = service.value().pointer("/spec/clusterIPs").and_then(Value::as_array);
    list.into_iter().flatten().filter_map(|ip| ip.as_str()?.parse().ok()).collect()
}

/// Pairs of port and target port; a target port that is a name, or absent, is the port itself.
fn ports(service: &Object) -> Vec<(u16, u16)> {
    let list = service.value().pointer("/spec/ports").and_then(Value::as_array);
    let number = |port: &Value, key: &str| port.get(key).and_then(Value::as_u64).and_then(|p| u16::try_from(p).ok());
    let pair = |port: &Value| number(port, "port").map(|p| (p, number(port, "targetPort").unwrap_or(p)));
    list.into_iter().flatten().filter_map(pair).collect()
}

const CLUSTER_DOMAIN: &str = "cluster.local";
/// The table of kube-proxy's rules in each node.
const TABLE: &str = "kube-proxy";

#[cfg(test)]
mod tests {
    use super::*;

    fn objects(text: &str) -> Vec<Object> {
        Object::parse_all(text).unwrap()
    }

    const TEXT: &str = r#"
kind: Service
metadata: {name: web, namespace: demo}
spec: {clusterIPs: ["10.96.0.1", "fd00::1"], selector: {app: web}, ports: [{port: 80, targetPort: 8080}, {port: 81}]}
---
kind: Pod
metadata: {name: web, namespace: demo, labels: {app: web}}
status: {podIPs: [{ip: 10.244.1.5}, {ip: "fd00:1::5"}]}
---
kind: Pod
metadata: {name: web, namespace: other, labels: {app: web}}
status: {podIPs: [{ip: 10.244.1.6}]}
"#;

    #[test]
    fn each_family_goes_to_its_own() {
        let all = objects(TEXT);
        let forwards = forwards(all[..1].iter(), &[&all[2], &all[1]]);
        let shown: Vec<_> = forwards.iter().map(|f| format!("{} {}", f.from, f.to)).collect();
        assert_eq!(
            shown,
            [
                "10.96.0.1:80 10.244.1.5:8080",
                "10.96.0.1:81 10.244.1.5:81",
                "[fd00::1]:80 [fd00:1::5]:8080",
                "[fd00::1]:81 [fd00:1::5]:81"
            ]
        );
        assert!(!rules(&forwards).is_empty());
    }

    #[test]
    fn a_service_without_pods_forwards_nothing_but_has_a_name() {
        let all = objects(TEXT);
        assert_eq!(forwards(all[..1].iter(), &[&all[2]]), []);
        assert_eq!(zone(all[..1].iter())["web.demo.svc.cluster.local"].len(), 2);
    }

    #[test]
    fn names_are_searched_in_the_pods_namespace_first() {
        let text = resolv_conf(super::super::plan::CLUSTER_DNS, "demo");
        assert!(
            text.starts_with("nameserver 10.96.0.10\nsearch demo.svc.cluster.local svc.cluster.local cluster.local\n"),
            "{text}"
        );
        assert!(text.contains("ndots:5"));
    }
}

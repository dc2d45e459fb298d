//! What is wrong with a pod, in plain words, and what to do about it.

use ambient_redirect::{
    linux::Way,
    pods::{PodState, Refusal, State, Step},
};
use serde::Serialize;

use super::look::{Listener, Listens, Look, in_short};

/// Something that is wrong with a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Wrong {
    /// What.
    pub(super) what: String,
    /// What to do.
    pub(super) remedy: String,
}

/// All that is wrong with a pod, the gravest first; empty where all is as it should be.
pub(super) fn wrong(pod: &PodState, look: &Look) -> Vec<Wrong> {
    let mut found = Vec::new();
    let mut say = |what: String, remedy: &str| {
        found.push(Wrong {
            what,
            remedy: remedy.into(),
        });
    };
    match &pod.state {
        State::Pairing { why } => say(format!("it is not captured: {why}"), pairing_remedy(pod, why)),
        State::Refused { error } => say(format!("it is not captured: {error}"), step_remedy(error)),
        _ => {}
    }
    let captured = matches!(pod.state, State::In { .. });
    if let Some(why) = &look.blind {
        say(
            format!("its network namespace cannot be looked into: {why}"),
            "give the node CAP_NET_ADMIN and CAP_SYS_ADMIN over the pod's user namespace",
        );
    }
    let bad: Vec<Listener> = look.listeners.iter().filter(|l| l.state != Listens::Up).cloned().collect();
    // Until it is captured, what is missing is on its way.
    if !bad.is_empty() && (captured || bad.iter().any(|l| l.state == Listens::Another)) {
        say(
            format!("the proxy does not listen as it should: {}", in_short(&bad)),
            "stop what listens there in the pod, if that is it; the node brings its own up again by itself",
        );
    }
    if captured && !look.rules.is_empty() {
        let differences: Vec<String> = look.rules.iter().map(ToString::to_string).collect();
        say(
            format!("its capture is damaged at this moment: {}", differences.join(", ")),
            "it is mended by itself, within a second; ask again",
        );
    }
    if !pod.strangers.is_empty() {
        let rules: Vec<String> = pod.strangers.iter().map(ToString::to_string).collect();
        say(
            format!(
                "rules of somebody else in its namespace come before those that capture it, and what they take does not reach the proxy: {}",
                rules.join("; ")
            ),
            "what they send out of the pod, or to another of its ports, is refused; what stays in the pod goes on. Remove them \
             (`nft list ruleset` in its namespace shows them), or take the pod out of the mesh",
        );
    }
    if pod.closed && !matches!(pod.state, State::Waiting) {
        say(
            "its TCP is refused until its capture is proven".into(),
            "mend what keeps it from being captured; it is tried again by itself every few seconds",
        );
    }
    if !pod.kept.is_empty() {
        say(
            format!(
                "{} of its connections are from before it joined: unencrypted, and outside of the mesh",
                pod.kept.len()
            ),
            "they end when either end closes them; restart the pod, or set existing connections to be closed, to be rid of them now",
        );
    }
    if pod.strays > 0 {
        say(
            format!(
                "{} connections went around the proxy while its capture was broken; they were reset",
                pod.strays
            ),
            "see the last repair for what was broken, and who in the pod or on the node changes its rules",
        );
    }
    if let Some(mended) = &pod.mended {
        say(
            match pod.repairs {
                1 => format!("its capture was found broken once: {}", mended.what),
                times => format!("its capture was found broken {times} times; the last time: {}", mended.what),
            },
            "it is mended. Find what changes rules, routes or listeners in its namespace: `nft monitor` there shows it",
        );
    }
    if let State::In { proof, .. } = &pod.state
        && [proof.inbound.v4, proof.inbound.v6].contains(&Some(Way::Listed))
    {
        say(
            "that what comes in is captured is known from the kernel's listings alone: no connection from the node comes through".into(),
            "a NetworkPolicy or the network plugin drops it; let the node reach the pod if you want it proven by a connection",
        );
    }
    for fault in &pod.spec.capture.faults {
        say(fault.to_string(), "correct the annotation; it is followed while the pod runs");
    }
    found
}

fn pairing_remedy(pod: &PodState, why: &str) -> &'static str {
    if lacks_rights(why) {
        RIGHTS
    } else if pod.spec.addresses.is_empty() {
        "wait until its status has an address, or write one"
    } else if why.contains("same address") {
        "two pods claim one address: delete the one that is stale, or correct the addresses in its status"
    } else if why.contains("being let go") || why.contains("until now") || why.contains("looked into yet") {
        "wait: it is captured as soon as that is over, which takes as long as a pod that leaves may take (--leave) at most"
    } else if why.contains("two namespaces") {
        "take the address away from the namespace that is not the pod's, or the name of one that is stale; a node that sees pods' processes \
         (--proc) tells them apart by itself"
    } else if why.contains("processes run in it") || why.contains("no pod's address") {
        "correct the addresses in its status: they are another's"
    } else if why.contains("lacks") {
        "its status lists an address that its network namespace does not have: correct either"
    } else {
        "name the container runtime's directory of network namespaces with --netns-dir, or let the node see the pod's processes"
    }
}

/// Whether the process may not do what it has to, whatever it was about.
fn lacks_rights(why: &str) -> bool {
    why.contains("Operation not permitted") || why.contains("CAP_")
}

const RIGHTS: &str = "give the node's process CAP_NET_ADMIN and CAP_SYS_ADMIN, over the user namespace of the pod too, and start it anew if \
                      it had them; until then the rules stand as they are, and refuse what the proxy does not take";

fn step_remedy(error: &Refusal) -> &'static str {
    match error.step {
        Step::Announce | Step::Withdraw => "see that the node can write its status in the directory of manifests",
        _ if lacks_rights(&error.why) => RIGHTS,
        Step::Listen if error.why.contains("IPv6 is not captured") => {
            "let IPv6 be captured, or take that address away: what went by it would go around the mesh"
        }
        Step::Listen if error.why.contains("no proxy is connected") => "start the proxy, and see in its log whether it reaches that socket",
        Step::Listen => "free the ports 15001, 15006, 15008 and 15053 in the pod, and see that it has a certificate",
        Step::Close | Step::Enforce | Step::Open => {
            "remove a table of the same name that is somebody else's, and give the node CAP_NET_ADMIN and CAP_SYS_ADMIN"
        }
        Step::Prove | Step::Verify => {
            "see what in its namespace changes rules or keeps connections from the proxy: `nft list ruleset` there"
        }
        _ => "it is tried again by itself; the node's log says how it goes on",
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::SystemTime};

    use ambient_core::Capture;
    use ambient_redirect::{
        PodSpec,
        linux::{Difference, Proof, Stranger, Ways},
        pods::{Direction, Repair},
    };

    use super::*;

    fn pod(state: State) -> PodState {
        let spec = PodSpec {
            uid: "uid".into(),
            namespace: "shop".into(),
            name: "cart".into(),
            service_account: "default".into(),
            addresses: vec!["10.0.0.2".parse().unwrap()],
            capture: Capture::default(),
            has_run: true,
        };
        PodState::new(spec, state)
    }

    fn captured(inbound: Way) -> State {
        let ways = |way| Ways { v4: Some(way), v6: None };
        State::In {
            captured_at: SystemTime::UNIX_EPOCH,
            proof: Proof {
                outbound: ways(Way::Recognised),
                inbound: ways(inbound),
            },
        }
    }

    #[test]
    fn who_is_captured_and_never_was_broken_has_nothing_wrong() {
        assert_eq!(wrong(&pod(captured(Way::Recognised)), &Look::default()), []);
        assert_eq!(wrong(&pod(State::Joining), &Look::default()), []);
        assert_eq!(wrong(&pod(State::Waiting), &Look::default()), []);
    }

    #[test]
    fn what_is_wrong_is_said_with_what_to_do() {
        let why = |state: State| wrong(&pod(state), &Look::default()).remove(0);
        let said = why(State::Pairing {
            why: "no network namespace with its addresses is to be seen".into(),
        });
        assert!(
            said.what.contains("no network namespace") && said.remedy.contains("--netns-dir"),
            "{said:?}"
        );
        let said = why(State::Pairing {
            why: "shop/b (y) has the same address 10.0.0.2".into(),
        });
        assert!(said.remedy.contains("stale"), "{said:?}");
        let refused = |step| State::Refused {
            error: Refusal {
                step,
                why: "it is so".into(),
            },
        };
        for (step, remedy) in [
            (Step::Listen, "15001"),
            (Step::Enforce, "CAP_NET_ADMIN"),
            (Step::Prove, "nft list ruleset"),
            (Step::Announce, "status"),
        ] {
            let said = why(refused(step));
            assert!(said.what.contains("it is so") && said.remedy.contains(remedy), "{said:?}");
        }
        let unprivileged = |step| {
            let why = "asking for the generation of nftables: Operation not permitted (os error 1) (CAP_NET_ADMIN is needed)".into();
            wrong(
                &pod(State::Refused {
                    error: Refusal { step, why },
                }),
                &Look::default(),
            )
            .remove(0)
        };
        for step in [Step::Listen, Step::Close, Step::Enforce, Step::Prove, Step::Verify] {
            assert!(
                unprivileged(step).remedy.starts_with("give the node's process CAP_NET_ADMIN"),
                "{step:?}"
            );
        }
        let said = why(State::Pairing {
            why: "no network namespace with its addresses is to be seen; not every one can be looked into: … (CAP_SYS_ADMIN is needed)"
                .into(),
        });
        assert!(said.remedy.contains("CAP_SYS_ADMIN"), "{said:?}");
        assert!(why(captured(Way::Listed)).what.contains("listings"));
        let mut sick = pod(refused(Step::Listen));
        sick.closed = true;
        sick.repairs = 2;
        sick.mended = Some(Arc::new(Repair {
            what: "table ambient-nat is missing or changed".into(),
            held: SystemTime::UNIX_EPOCH,
            noticed: SystemTime::UNIX_EPOCH,
            repaired: SystemTime::UNIX_EPOCH,
            around: 0,
        }));
        sick.strays = 3;
        let said = wrong(&sick, &Look::default());
        assert_eq!(said.len(), 4);
        assert!(said[1].what.contains("refused") && said[2].what.starts_with("3 connections") && said[3].what.contains("2 times"));
        let mut beside = pod(captured(Way::Recognised));
        beside.strangers = Arc::from([Stranger {
            table: "ip nat".into(),
            chain: "OUTPUT".into(),
            direction: Direction::Outbound,
            does: "TCP to port 5432 is redirected to the pod itself".into(),
        }]);
        let said = wrong(&beside, &Look::default()).remove(0);
        assert!(
            said.what.contains("ip nat, chain OUTPUT") && said.what.contains("5432") && said.remedy.contains("refused"),
            "{said:?}"
        );
        let mut odd = pod(captured(Way::Recognised));
        let spec = PodSpec {
            capture: Capture::read(|key| (key == "istio.io/reroute-virtual-interfaces").then_some("a/b")),
            ..(*odd.spec).clone()
        };
        odd.spec = Arc::new(spec);
        let said = wrong(&odd, &Look::default()).remove(0);
        assert!(said.what.contains("a/b") && said.remedy.contains("annotation"), "{said:?}");
    }

    #[test]
    fn each_reason_has_a_remedy_of_its_own() {
        let why = |state: State| wrong(&pod(state), &Look::default()).remove(0);
        for (reason, remedy) in [
            (
                "the namespace net:[1] with its address 10.0.0.2 is being let go by another pod",
                "wait",
            ),
            ("its namespace served another pod until now", "wait"),
            ("no network namespace has been looked into yet", "wait"),
            ("two namespaces, net:[1] and net:[2], have its address", "--proc"),
            (
                "the namespace net:[1] with its address is that of shop/b (y), whose processes run in it",
                "correct the addresses",
            ),
            ("127.0.0.1 is no pod's address", "correct the addresses"),
            ("the namespace net:[1] lacks its address 10.0.0.3", "correct either"),
        ] {
            let said = why(State::Pairing { why: reason.into() });
            assert!(said.what.contains(reason) && said.remedy.contains(remedy), "{said:?}");
        }
        for (reason, remedy) in [
            (
                "it has the address fd00::2, and IPv6 is not captured here",
                "take that address away",
            ),
            ("no proxy is connected at /run/zds: start it", "reaches that socket"),
        ] {
            let error = Refusal {
                step: Step::Listen,
                why: reason.into(),
            };
            assert!(why(State::Refused { error }).remedy.contains(remedy), "{reason}");
        }
    }

    #[test]
    fn what_the_kernel_tells_is_said_once_the_pod_is_captured() {
        let listener = |port, state| Listener {
            port,
            protocol: "TCP",
            state,
        };
        let look = Look {
            listeners: vec![listener(15001, Listens::Up), listener(15008, Listens::Missing)],
            rules: vec![Difference::Table("ambient-nat")],
            blind: None,
        };
        let said = wrong(&pod(captured(Way::Recognised)), &look);
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(
            said[0].what.ends_with("15008:missing") && said[1].what.contains("ambient-nat"),
            "{said:?}"
        );
        assert_eq!(wrong(&pod(State::Joining), &look), []);
        let look = Look {
            listeners: vec![listener(15006, Listens::Another)],
            ..Look::default()
        };
        let said = wrong(&pod(State::Joining), &look).remove(0);
        assert!(
            said.what.ends_with("15006:another's") && said.remedy.contains("in the pod"),
            "{said:?}"
        );
        let look = Look {
            blind: Some("no right".into()),
            ..Look::default()
        };
        assert!(wrong(&pod(State::Joining), &look)[0].what.ends_with("no right"));
    }
}

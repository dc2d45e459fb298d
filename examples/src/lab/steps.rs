//! The steps of the lab, in the order in which they run.

mod join;
mod policy;
mod telemetry;
mod upheaval;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use ambient_testkit::cluster::clock;

use super::{
    ground::{Lab, Unmet},
    report::Outcome,
};

/// One step: what is done, what must be seen, and how to find out.
#[derive(Debug)]
pub(crate) struct Step {
    number: u8,
    pub(crate) name: &'static str,
    did: &'static str,
    expect: &'static str,
    /// Whether the pods of the mesh must speak TLS alone with each other, from the step's beginning to its end, and
    /// no capture may be found broken.
    sealed: bool,
    run: fn(&mut Lab) -> Result<String, Unmet>,
}

impl Step {
    /// Runs it. Whatever goes wrong is this step's failure alone.
    pub(crate) fn run(&self, lab: &mut Lab) -> Outcome {
        let began = clock::now();
        // A fault of the lab's own must not hide the steps that follow.
        let result = catch_unwind(AssertUnwindSafe(|| self.watched(lab)));
        let (got, ok) = match result {
            Ok(Ok(seen)) => (seen, true),
            Ok(Err(unmet)) => (unmet.to_string(), false),
            Err(_) => ("the step itself failed".into(), false),
        };
        self.outcome(got, ok, began.elapsed())
    }

    fn watched(&self, lab: &mut Lab) -> Result<String, Unmet> {
        if !self.sealed {
            return (self.run)(lab);
        }
        lab.capture.clear()?;
        let seen = (self.run)(lab)?;
        lab.only_tls(&lab.capture.seen()?)?;
        lab.nothing_was_repaired()?;
        Ok(seen)
    }

    /// What comes of it when it cannot even begin.
    pub(crate) fn fails(&self, why: &str) -> Outcome {
        self.outcome(why.into(), false, Duration::ZERO)
    }

    fn outcome(&self, got: String, ok: bool, took: Duration) -> Outcome {
        Outcome {
            number: self.number,
            name: self.name,
            did: self.did,
            expect: self.expect,
            got,
            ok,
            took,
        }
    }
}

/// All of them.
pub(crate) const STEPS: &[Step] = &[
    Step {
        number: 1,
        name: "before the label",
        did: "sleep calls http://web-api:8080/ while nothing in its namespace is in the mesh",
        expect: "the whole chain answers; the link between the nodes shows the request's text",
        sealed: false,
        run: join::before_the_label,
    },
    Step {
        number: 2,
        name: "the namespace joins",
        did: "the label istio.io/dataplane-mode=ambient is set on the namespace demo",
        expect: "pods on both nodes are captured, none restarts, a log line for each says what was added",
        sealed: false,
        run: join::the_namespace_joins,
    },
    Step {
        number: 3,
        name: "mutual TLS",
        did: "sleep calls web-api over both address families, then 100 HEADs; legacy does the same through the gateway",
        expect: "all are answered; between the pods of the mesh TLS on port 15008 only, and not a byte of the marker",
        sealed: false,
        run: join::mutual_tls,
    },
    Step {
        number: 4,
        name: "access log and metrics",
        did: "the nodes' access logs and metrics are read",
        expect: "every hop stands in the logs of both nodes with identities, addresses, service, bytes, duration and waypoint; the metrics have the same bytes",
        sealed: true,
        run: telemetry::logs_and_metrics,
    },
    Step {
        number: 5,
        name: "those outside",
        did: "opted-out, on-host and legacy call web-api",
        expect: "all are answered, and nothing was added to their namespaces",
        sealed: true,
        run: join::those_outside,
    },
    Step {
        number: 6,
        name: "allow nothing",
        did: "an AuthorizationPolicy with spec {} is put in force in demo",
        expect: "the call ends in an empty reply; through the gateway status 503",
        sealed: true,
        run: policy::allow_nothing,
    },
    Step {
        number: 7,
        name: "allow the chain",
        did: "three ALLOW policies are put in force: one for each call of the chain",
        expect: "the whole chain answers, from sleep and through the gateway",
        sealed: true,
        run: policy::allow_the_chain,
    },
    Step {
        number: 8,
        name: "everybody else is refused",
        did: "notsleep calls web-api, web-api calls purchase-history, legacy calls web-api in plaintext",
        expect: "an empty reply each; the log line of each refusal names the reason",
        sealed: true,
        run: policy::everybody_else,
    },
    Step {
        number: 9,
        name: "STRICT",
        did: "all AuthorizationPolicies are withdrawn, a PeerAuthentication STRICT comes and goes, the policies return; node-2 probes web-api meanwhile",
        expect: "legacy is answered, then refused by STRICT (the log names it) while sleep and the probe are answered, then refused by policy",
        sealed: true,
        run: policy::strict,
    },
    Step {
        number: 10,
        name: "an open connection is cut",
        did: "the permission of sleep is withdrawn while its connection carries data",
        expect: "a reset on both sides within 1 s, and a log line with the reason",
        sealed: true,
        run: policy::open_connection,
    },
    Step {
        number: 11,
        name: "a proxy is killed",
        did: "the proxy of node-2 is killed by SIGKILL, and started again",
        expect: "meanwhile refused by address and unresolved by name, never plaintext; afterwards everything works, no pod restarted",
        sealed: true,
        run: upheaval::killed_proxy,
    },
    Step {
        number: 12,
        name: "an address changes hands",
        did: "sleep is deleted; a pod with the same address and another account appears, and calls web-api",
        expect: "it is captured under its own identity and never has the old one's rights",
        sealed: true,
        run: upheaval::inherited_address,
    },
    Step {
        number: 13,
        name: "the namespace leaves",
        did: "the label is removed",
        expect: "the pods' namespaces hold no table, rule or route of ours, and a node without pods none; the call is plaintext again",
        sealed: false,
        run: join::the_namespace_leaves,
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_numbered_through() {
        let numbers: Vec<u8> = STEPS.iter().map(|s| s.number).collect();
        assert_eq!(numbers, (1..=13).collect::<Vec<_>>());
        assert!(
            STEPS
                .iter()
                .all(|s| !s.name.is_empty() && !s.did.is_empty() && !s.expect.is_empty())
        );
    }
}

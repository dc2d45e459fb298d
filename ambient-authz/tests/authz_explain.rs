//! Explanations of random policies: the same answer as the decision, the same rule, and what would turn it does.

use ambient_authz::{Decision, Denial};
use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{Config, TestRunner},
};

#[path = "support/bytes.rs"]
mod bytes;
#[path = "support/explained.rs"]
mod explained;

use bytes::Bytes;

/// Each set of policies is asked for several workloads and connections, and none of the ways a decision can end is left
/// out.
#[test]
fn explanations_are_those_of_the_decisions() {
    let mut seen = [0u32; 6];
    let config = Config {
        cases: 3000,
        failure_persistence: None,
        ..Config::default()
    };
    let seen_by = std::cell::RefCell::new(&mut seen);
    let outcome = TestRunner::new(config).run(&vec(any::<u8>(), 0..500), |bytes| {
        let mut bytes = Bytes::new(&bytes);
        let policies = bytes.policies();
        for _ in 0..3 {
            let workload = bytes.workload();
            for _ in 0..3 {
                let ends = bytes.ends();
                let told = explained::check(&policies, &workload, &ends.conn());
                let way = match told.decision {
                    Decision::Allow(allowed) => usize::from(allowed.by.is_some()),
                    Decision::Deny(Denial::ByPolicy(..)) => 2,
                    Decision::Deny(Denial::NoneAllowed) => 3,
                    Decision::Deny(Denial::Unreadable { .. }) => 4,
                    Decision::Deny(Denial::NotArrived(_)) => 5,
                };
                seen_by.borrow_mut()[way] += 1;
            }
        }
        Ok(())
    });
    outcome.unwrap();
    assert!(seen.iter().all(|ways| *ways > 50), "{seen:?}");
}

//! Where connections go, and which of the policies that is about.

use std::sync::Arc;

use ambient_core::{PolicyKey, Workload};

use crate::{
    Conn, Decision, DryRun, Policies,
    decide::{self, Attached},
    index::{Listed, Together},
    policies::Seen,
    policy::Unreadable,
};

/// A workload, as decisions see it: what the policies that it lists are, looked up once for all connections to it.
///
/// [`Policies::target`] makes one. It fits every later snapshot until a policy changes that the workload lists, or that
/// applies to its namespace; a decision notices one that does not fit and looks everything up again, each time, so that it
/// is right all the same, and slower. [`Policies::fits`] tells whether it is time to make it anew. It is of one version of
/// its workload: of another version another one is to be made.
///
/// ```
/// use std::sync::Arc;
///
/// use ambient_authz::{Conn, Peer, Policies};
/// use ambient_core::Workload;
///
/// let mut stock = Workload::new("cluster//Pod/shop/stock-0", "shop", "stock-0");
/// stock.policies = vec!["shop/stock-from-cart".into()];
/// let policies = Policies::default();
/// let stock = policies.target(&Arc::new(stock)); // once for all connections
/// let peer = Peer::plaintext();
/// let conn = Conn { peer: &peer, source: "10.0.1.2".parse()?, destination: "10.0.2.2:8080".parse()? };
/// let refused = stock.decide(&policies, &conn);
/// assert_eq!(refused.to_string(), "policy shop/stock-from-cart is attached to the workload and has not arrived");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Target {
    workload: Arc<Workload>,
    /// What all of this depends on.
    seen: Seen,
    /// The number of its namespace.
    place: Option<u32>,
    listed: Arc<Together>,
    kinds: [bool; 4],
    missing: [Option<PolicyKey>; 2],
    unreadable: [Option<Arc<Unreadable>>; 2],
}

impl Target {
    pub(crate) fn new(policies: &Policies, workload: &Arc<Workload>) -> Self {
        let keys = workload.policies.iter().map(PolicyKey::as_str);
        let mut numbers = Vec::with_capacity(workload.policies.len());
        let attached = Attached::new(policies, &workload.policies, |number| numbers.push(number));
        Self {
            workload: workload.clone(),
            seen: policies.stamps().seen(keys.chain([&*workload.namespace])),
            place: policies.index().terms.place(&workload.namespace),
            listed: Arc::new(Together::new(policies.index(), numbers)),
            kinds: attached.kinds,
            missing: attached.missing.map(Option::<&_>::cloned),
            unreadable: attached.unreadable.map(Option::<&_>::cloned),
        }
    }

    /// The workload.
    pub fn workload(&self) -> &Arc<Workload> {
        &self.workload
    }

    /// Whether a connection may pass; see [`decide()`](crate::decide()).
    pub fn decide(&self, policies: &Policies, conn: &Conn<'_>) -> Decision {
        decide::at(policies, self, conn, |question| question.decide(false))
    }

    /// Whether a connection that was let in before may stay; see [`decide_again()`](crate::decide_again()).
    pub fn decide_again(&self, policies: &Policies, conn: &Conn<'_>) -> Decision {
        decide::at(policies, self, conn, |question| question.decide(true))
    }

    /// What the policies in dry run would have done with a connection; see [`dry_run()`](crate::dry_run()).
    pub fn dry_run(&self, policies: &Policies, conn: &Conn<'_>) -> Vec<DryRun> {
        decide::at(policies, self, conn, |question| question.dry_run())
    }

    pub(crate) fn seen(&self) -> &Seen {
        &self.seen
    }

    pub(crate) fn place(&self) -> Option<u32> {
        self.place
    }

    pub(crate) fn listed(&self) -> Listed<'_> {
        self.listed.listed()
    }

    pub(crate) fn attached(&self) -> Attached<'_> {
        Attached {
            kinds: self.kinds,
            missing: self.missing.each_ref().map(Option::as_ref),
            unreadable: self.unreadable.each_ref().map(Option::as_ref),
        }
    }
}

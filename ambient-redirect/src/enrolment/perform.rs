//! One step for one pod.

use std::{
    fmt::Display,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    task::spawn_blocking,
    time::{Instant, timeout},
};

use super::watch::Watch;
use crate::{
    Announce, PodSpec, Proxy,
    linux::{ApplyError, Difference, Inside, Mark, Netns, Proof, Prover, Sockets, Way},
    plan::{IpFamily, Options, Plan},
    pods::{Done, Step},
};

/// What steps are done with.
pub(super) struct Hands {
    pub(super) node: Arc<str>,
    /// What is captured, of pods that ask nothing else.
    pub(super) options: Options,
    pub(super) sockets: Sockets,
    pub(super) proxy: Arc<dyn Proxy>,
    pub(super) announce: Arc<dyn Announce>,
    pub(super) patience: Duration,
    pub(super) prove_every: Duration,
}

/// A namespace that has a pod: its sockets are opened at the first use, and events watched from then on.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) namespace: Arc<Netns>,
    inside: Arc<Mutex<Option<Inside>>>,
    watch: Arc<Watch>,
    /// When connections proved it last, and whether a look from the node is owed since then.
    proven: Mutex<Option<(Instant, bool)>>,
}

impl Room {
    pub(super) fn new(namespace: Arc<Netns>, watch: Arc<Watch>) -> Self {
        Self {
            namespace,
            inside: Arc::default(),
            watch,
            proven: Mutex::default(),
        }
    }

    /// Takes note of a proof; `whole` where none is owed before its time.
    fn proven(&self, whole: bool) {
        *self.proven.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), whole));
    }

    /// Whether connections are to prove it anew.
    fn is_due(&self, every: Duration) -> bool {
        let proven = *self.proven.lock().unwrap_or_else(PoisonError::into_inner);
        self.namespace.own().has_listeners() && proven.is_none_or(|(at, whole)| !whole || at.elapsed() >= every)
    }

    /// Runs blocking work with the namespace's sockets.
    async fn within<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Inside) -> Result<T, ApplyError> + Send + 'static,
    ) -> Result<T, String> {
        let (namespace, inside) = (self.namespace.clone(), self.inside.clone());
        let done = spawn_blocking(move || {
            let mut inside = inside.lock().unwrap_or_else(PoisonError::into_inner);
            let mut open = match inside.take() {
                Some(open) => open,
                None => Inside::open(&namespace)?,
            };
            let done = work(&mut open);
            // After an error an answer may still be on its way: a new socket cannot mistake it for its own.
            if done.is_ok() {
                *inside = Some(open);
            }
            done
        });
        done.await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())
    }
}

impl Hands {
    pub(super) async fn perform(&self, pod: &Arc<PodSpec>, room: &Room, step: Step) -> Done {
        let result = match step {
            Step::Listen => self.listen(pod, room).await.map(|()| None),
            Step::Enforce => self.enforce(pod, room).await,
            Step::Prove => return self.prove(pod, room).await,
            Step::Verify => return self.verify(pod, room).await,
            Step::Announce => self.patiently(self.announce.captured(pod)).await.map(|()| None),
            Step::Withdraw => self.patiently(self.announce.withdrawn(&pod.uid)).await.map(|()| None),
            Step::Cut => self.patiently(ending(self.proxy.cut(&pod.uid))).await.map(|()| None),
            Step::Clear => room.within(Inside::clear).await.map(|()| None),
            Step::Remove => self.patiently(ending(self.proxy.remove(&pod.uid))).await.map(|()| None),
        };
        result.map_or_else(Done::Failed, Done::Well)
    }

    fn plan(&self, pod: &PodSpec) -> Plan {
        Plan::new(&self.options.of(&pod.capture))
    }

    async fn listen(&self, pod: &PodSpec, room: &Room) -> Result<(), String> {
        if let Some(v6) = pod
            .addresses
            .iter()
            .find(|ip| ip.to_canonical().is_ipv6())
            .filter(|_| !self.options.ipv6)
        {
            return Err(format!("it has the address {v6}, and IPv6 is not captured here"));
        }
        // Before anything is in force, so that no change of it is missed.
        room.watch.start(&room.namespace).await?;
        self.patiently(self.proxy.add(pod, room.namespace.clone())).await
    }

    async fn enforce(&self, pod: &PodSpec, room: &Room) -> Result<Option<String>, String> {
        let (plan, mark) = (self.plan(pod), Mark::new(&self.node, &pod.uid));
        let added = room.within(move |inside| inside.apply(&plan, &mark)).await?;
        Ok((!added.is_empty()).then(|| put(&added)))
    }

    async fn prove(&self, pod: &PodSpec, room: &Room) -> Done {
        match self.look(pod, room).await {
            Ok((differences, families)) if differences.is_empty() => {
                // A pod does not wait for its capture to be announced because a policy drops what comes from the node.
                match self.connect(pod, room, &families, HASTE).await {
                    Ok(proof) => {
                        room.proven(proof.inbound.v4 != Some(Way::Listed) && proof.inbound.v6 != Some(Way::Listed));
                        Done::Proven(proof)
                    }
                    Err(why) => Done::Failed(why),
                }
            }
            Ok((differences, _)) => Done::Failed(list(&differences)),
            Err(why) => Done::Failed(why),
        }
    }

    async fn verify(&self, pod: &PodSpec, room: &Room) -> Done {
        let families = match self.look(pod, room).await {
            Ok((differences, families)) if differences.is_empty() => families,
            Ok((differences, _)) => {
                return Done::Differs {
                    what: list(&differences),
                    listeners: differences
                        .iter()
                        .any(|d| matches!(d, Difference::Listener(..) | Difference::ForeignListener(_))),
                };
            }
            Err(why) => return Done::Failed(why),
        };
        if !room.is_due(self.prove_every) {
            return Done::Well(None);
        }
        match self.connect(pod, room, &families, TIME).await {
            Ok(proof) => {
                room.proven(true);
                Done::Proven(proof)
            }
            Err(what) => Done::Differs { what, listeners: true },
        }
    }

    /// What is not as it should be, as the kernel lists it, and the families that are captured.
    async fn look(&self, pod: &PodSpec, room: &Room) -> Result<(Vec<Difference>, Vec<IpFamily>), String> {
        let (plan, mark) = (self.plan(pod), Mark::new(&self.node, &pod.uid));
        room.within(move |inside| {
            let differences = inside.verify(&plan, &mark)?;
            Ok((differences, inside.families(&plan.rules)?))
        })
        .await
    }

    async fn connect(&self, pod: &PodSpec, room: &Room, families: &[IpFamily], patience: Duration) -> Result<Proof, String> {
        let inbound = self.options.of(&pod.capture).inbound;
        let prover = Prover {
            sockets: &self.sockets,
            namespace: &room.namespace,
            families,
            // What is not captured is not proven.
            addresses: if inbound { &pod.addresses } else { &[] },
            patience,
        };
        prover.prove().await.map_err(|e| e.to_string())
    }

    async fn patiently<E: Display>(&self, step: impl Future<Output = Result<(), E>>) -> Result<(), String> {
        match timeout(self.patience, step).await {
            Ok(done) => done.map_err(|e| e.to_string()),
            Err(_) => Err(format!("no answer within {} s", self.patience.as_secs_f32())),
        }
    }
}

/// What does nothing but end.
async fn ending(step: impl Future<Output = ()>) -> Result<(), String> {
    step.await;
    Ok(())
}

/// What was put into a namespace, or taken out of it, because it differed.
fn put(differences: &[Difference]) -> String {
    let of = |select: fn(&Difference) -> Option<String>| differences.iter().filter_map(select).collect::<Vec<_>>();
    let tables = of(|d| match d {
        Difference::Table(name) => Some((*name).to_owned()),
        _ => None,
    });
    let rules = of(|d| match d {
        Difference::Rule(family) => Some(family.to_string()),
        _ => None,
    });
    let routes = of(|d| match d {
        Difference::Route(family) => Some(family.to_string()),
        _ => None,
    });
    let leftovers = of(|d| match d {
        Difference::Leftover(name) => Some(format!("without table {name}")),
        _ => None,
    });
    let mut parts = match tables.len() {
        0 => Vec::new(),
        1 => vec![format!("table {}", tables.join(", "))],
        _ => vec![format!("tables {}", tables.join(", "))],
    };
    if rules == routes && !rules.is_empty() {
        parts.push(format!("routing rule and route for {}", rules.join(" and ")));
    } else {
        for (what, families) in [("routing rule", rules), ("route", routes)] {
            if !families.is_empty() {
                parts.push(format!("{what} for {}", families.join(" and ")));
            }
        }
    }
    parts.extend(leftovers);
    parts.join("; ")
}

fn list(differences: &[Difference]) -> String {
    differences.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// A connection from the node that comes through at all takes a fraction of this.
const HASTE: Duration = Duration::from_millis(50);
/// One that did not gets more at the next verification, for which nobody waits.
const TIME: Duration = Duration::from_secs(1);

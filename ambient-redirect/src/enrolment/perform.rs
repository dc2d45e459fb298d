//! One step for one pod.

use std::{
    fmt::Display,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{task::spawn_blocking, time::timeout};

use super::watch::Watch;
use crate::{
    Announce, PodSpec, Proxy,
    linux::{ApplyError, Difference, Inside, Mark, Netns, Outbound, Proof, Sockets, prove},
    plan::{Options, Plan},
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
}

/// A namespace that has a pod: its sockets are opened at the first use, and events watched from then on.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) namespace: Arc<Netns>,
    inside: Arc<Mutex<Option<Inside>>>,
    watch: Arc<Watch>,
}

impl Room {
    pub(super) fn new(namespace: Arc<Netns>, watch: Arc<Watch>) -> Self {
        Self {
            namespace,
            inside: Arc::default(),
            watch,
        }
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
            Step::Prove => self.prove(pod, room).await.map(Some),
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

    async fn prove(&self, pod: &PodSpec, room: &Room) -> Result<String, String> {
        let (plan, mark) = (self.plan(pod), Mark::new(&self.node, &pod.uid));
        let (differences, families) = room
            .within(move |inside| {
                let differences = inside.verify(&plan, &mark)?;
                Ok((differences, inside.families(&plan.rules)?))
            })
            .await?;
        if !differences.is_empty() {
            return Err(list(&differences));
        }
        let proof = prove(&self.sockets, &room.namespace, &families).await.map_err(|e| e.to_string())?;
        Ok(words(&proof))
    }

    async fn verify(&self, pod: &PodSpec, room: &Room) -> Done {
        let (plan, mark) = (self.plan(pod), Mark::new(&self.node, &pod.uid));
        match room.within(move |inside| inside.verify(&plan, &mark)).await {
            Ok(differences) if differences.is_empty() => Done::Well(None),
            Ok(differences) => Done::Differs {
                what: list(&differences),
                listeners: differences
                    .iter()
                    .any(|d| matches!(d, Difference::Listener(..) | Difference::ForeignListener(_))),
            },
            Err(why) => Done::Failed(why),
        }
    }

    async fn patiently<E: Display>(&self, step: impl Future<Output = Result<(), E>>) -> Result<(), String> {
        match timeout(self.patience, step).await {
            Ok(done) => done.map_err(|e| e.to_string()),
            Err(_) => Err(format!("no answer within {} s", self.patience.as_secs_f32())),
        }
    }
}

fn words(proof: &Proof) -> String {
    let one = |outbound: Outbound| match outbound {
        Outbound::Connected => "by a connection",
        Outbound::Listed => "as listed",
    };
    let v6 = proof.outbound_v6.map(|o| format!(", IPv6 {}", one(o))).unwrap_or_default();
    format!("outbound IPv4 {}{v6}; inbound as listed", one(proof.outbound_v4))
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

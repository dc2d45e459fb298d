//! One step for one pod.

mod enforce;

use std::{
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ambient_core::Capture;
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep, timeout},
};

use super::{
    ExistingConnections,
    watch::{Heard, Watch, close},
};
use crate::{
    Announce, Drained, PodSpec, Proxy,
    linux::{
        ApplyError, Aside, Difference, Inside, Listing, Looked, Mark, Netns, NetnsId, Proof, Prover, Segments, Sockets, Stranger, Way,
    },
    plan::{IpFamily, Options, Plan, Port},
    pods::{Action, Cause, Done, Kept, Report, Step},
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
    pub(super) existing: ExistingConnections,
    /// How many of these are kept of a pod.
    pub(super) kept_most: usize,
}

/// A namespace that has a pod: its sockets are opened at the first use, and events watched from then on.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) namespace: Arc<Netns>,
    inside: Arc<Mutex<Option<Inside>>>,
    watch: Arc<Watch>,
    proven: Mutex<Option<Proven>>,
    stood: Mutex<Option<Stood>>,
    /// What is outside of the mesh, as of the last look.
    kept: Mutex<Arc<[Kept]>>,
    /// What others have in the way, as of the last look.
    strangers: Mutex<Arc<[Stranger]>>,
    /// Whose segments what is captured has, as of the last look.
    segments: Mutex<Arc<[(IpFamily, Segments)]>>,
    /// What its pod asked of its capture when that was put in force last, by this process.
    asked: Mutex<Option<Capture>>,
}

/// What was found as it should be when all of it was listed last. Unless the kernel has told of a change since, it is so.
#[derive(Clone, Debug)]
struct Stood {
    /// Of whom.
    pod: Arc<PodSpec>,
    closed: bool,
    /// What was told before it was listed.
    heard: Heard,
    at: Instant,
    /// It is to be listed again all the same, for what is no part of what captures.
    again: bool,
    listeners: Vec<Port>,
    families: Vec<IpFamily>,
}

impl Stood {
    /// Whether it need not be listed again where the kernel has told of nothing.
    fn is_good(&self, action: &Action, longest: Duration) -> bool {
        let same = self.pod == action.pod && self.closed == action.closed;
        same && !self.again && self.at.elapsed() < longest
    }
}

/// The last proof by connections.
#[derive(Clone, Copy, Debug)]
struct Proven {
    at: Instant,
    /// Another is owed before its time: one from the node has not come through in haste, or something has changed since.
    owed: bool,
    /// It was of one family, when it was time for it: the next is due after the whole pause, in the pod's own phase.
    in_turn: bool,
    /// Of all families; each as it was proven last.
    proof: Proof,
    /// Whose turn was last.
    turn: usize,
}

/// How much is to be proven anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    Nothing,
    /// One family, in turn.
    One,
    All,
}

impl Room {
    pub(super) fn new(namespace: Arc<Netns>, watch: Arc<Watch>) -> Self {
        Self {
            namespace,
            inside: Arc::default(),
            watch,
            proven: Mutex::default(),
            stood: Mutex::default(),
            kept: Mutex::new(Arc::from([])),
            strangers: Mutex::new(Arc::from([])),
            segments: Mutex::new(Arc::from([])),
            asked: Mutex::default(),
        }
    }

    fn last_proof(&self) -> Option<Proven> {
        *self.proven.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of a proof of these families, and whether another is owed before its time. Gives what is proven of all.
    fn proven(&self, families: &[IpFamily], proof: Proof, owed: bool) -> Proof {
        let mut last = self.proven.lock().unwrap_or_else(PoisonError::into_inner);
        let (before, turn) = last.map_or((proof, 0), |last| (last.proof, last.turn + 1));
        let in_turn = last.is_some() && families.len() == 1;
        let proof = if let [one] = families { before.renewed(*one, proof) } else { proof };
        *last = Some(Proven {
            at: Instant::now(),
            owed,
            in_turn,
            proof,
            turn,
        });
        proof
    }

    /// What connections are to prove anew. After a change that the kernel has told of all of it, as somebody else's rules may be
    /// in the way now; but not at each of many.
    fn due(&self, every: Duration, told: bool) -> Due {
        if !self.namespace.own().has_listeners() {
            return Due::Nothing;
        }
        let mut last = self.proven.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(last) = last.as_mut() else { return Due::All };
        last.owed |= told;
        match last.at.elapsed() {
            age if last.owed && age >= every.min(OFTENEST) => Due::All,
            age if age >= pause(every, last.in_turn, self.namespace.id()) => Due::One,
            _ => Due::Nothing,
        }
    }

    /// Whether the kernel has told of a change since all was as it should be.
    fn is_told(&self) -> bool {
        let stood = self.stood.lock().unwrap_or_else(PoisonError::into_inner);
        stood.as_ref().is_none_or(|stood| self.watch.heard() != Some(stood.heard))
    }

    /// All is looked at next time, whatever the kernel tells.
    fn look_again(&self) {
        let mut stood = self.stood.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stood) = stood.as_mut() {
            stood.again = true;
        }
    }

    /// Looks at what was found as it should be and is so still, as the kernel has told of nothing; not for longer than `longest`.
    fn stands<T>(&self, action: &Action, longest: Duration, look: impl FnOnce(&Stood) -> T) -> Option<T> {
        let stood = self.stood.lock().unwrap_or_else(PoisonError::into_inner);
        let stood = stood.as_ref()?;
        (stood.is_good(action, longest) && self.watch.heard() == Some(stood.heard)).then(|| look(stood))
    }

    /// Begins to watch, unless it is watched. The sockets for what follows are opened on the same way in.
    async fn begin(&self) -> Result<(), Cause> {
        if self.watch.goes_on() {
            return Ok(());
        }
        let (namespace, inside) = (self.namespace.clone(), self.inside.clone());
        let visit = spawn_blocking(move || {
            let mut inside = inside.lock().unwrap_or_else(PoisonError::into_inner);
            let (own, lacking) = (namespace.own().clone(), inside.is_none());
            let open = || Ok::<_, ApplyError>((Watch::subscribe()?, lacking.then(|| Inside::here(own)).transpose()?));
            let (events, opened) = namespace.run(open)??;
            *inside = inside.take().or(opened);
            Ok::<_, ApplyError>(events)
        });
        let events = visit.await.map_err(|e| e.to_string())??;
        Ok(self.watch.begin(events, self.namespace.own().clone())?)
    }

    /// Runs blocking work with the namespace's sockets.
    async fn within<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Inside) -> Result<T, ApplyError> + Send + 'static,
    ) -> Result<T, Cause> {
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
        Ok(done.await.map_err(|e| e.to_string())??)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        close(std::mem::take(&mut self.inside));
    }
}

impl Room {
    fn kept(&self) -> Arc<[Kept]> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn asked(&self) -> Option<Capture> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn ask(&self, capture: &Capture) {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = Some(capture.clone());
    }

    /// What others have in the way.
    pub(super) fn strangers(&self) -> Arc<[Stranger]> {
        self.strangers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whose segments what is captured has.
    pub(super) fn segments(&self) -> Arc<[(IpFamily, Segments)]> {
        self.segments.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn keep(&self, mut kept: Vec<Kept>) -> Arc<[Kept]> {
        kept.sort_unstable();
        let kept: Arc<[Kept]> = kept.into();
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = kept.clone();
        kept
    }
}

impl Hands {
    pub(super) async fn perform(&self, action: &Action, room: &Room) -> Done {
        let pod = &action.pod;
        let result = match action.step {
            Step::Close => return self.close(action, room).await.unwrap_or_else(Done::Failed),
            Step::Listen => return self.listen(pod, room).await,
            Step::Enforce => return self.enforce(action, room).await.map_or_else(Done::Failed, Done::Well),
            Step::Prove => return self.prove(action, room).await,
            Step::Verify => return self.verify(action, room).await,
            Step::Open => self.open(pod, room).await,
            Step::Announce => self.patiently(self.announce.captured(pod)).await,
            Step::Withdraw => self.patiently(self.announce.withdrawn(&pod.uid)).await,
            Step::Release => self.release(pod, room).await,
            Step::Drain => return self.drain(pod, room).await,
            Step::Cut => self.patiently(ending(self.proxy.cut(&pod.uid))).await,
            Step::Clear => room.within(Inside::clear).await,
            Step::Remove => self.patiently(ending(self.proxy.remove(&pod.uid))).await,
        };
        result.map_or_else(Done::Failed, |()| Done::Well(Report::default()))
    }

    /// What needs no namespace of a pod's: there may be none any more.
    pub(super) fn without_a_room(self: Arc<Self>, action: &Action) -> Option<impl Future<Output = Done> + Send + use<>> {
        let (step, uid) = (action.step, action.pod.uid.clone());
        matches!(step, Step::Withdraw | Step::Cut | Step::Remove).then(|| async move {
            let done = match step {
                Step::Withdraw => self.patiently(self.announce.withdrawn(&uid)).await,
                Step::Cut => self.patiently(ending(self.proxy.cut(&uid))).await,
                _ => self.patiently(ending(self.proxy.remove(&uid))).await,
            };
            done.map_or_else(Done::Failed, |()| Done::Well(Report::default()))
        })
    }

    /// Closes connections that were kept, and gives how many there were to close.
    pub(super) async fn close_kept(&self, room: &Room, connections: Vec<Kept>) -> usize {
        let closed = room.within(move |inside| inside.close(connections.iter().map(Kept::connection).collect::<Vec<_>>().iter()));
        // What could not be closed is asked for again: whoever asks does so at every change.
        closed.await.map_or(0, |closed| usize::try_from(closed).unwrap_or(usize::MAX))
    }

    fn mark(&self, pod: &PodSpec) -> Mark {
        Mark::new(&self.node, &pod.uid)
    }

    fn options(&self, pod: &PodSpec) -> Options {
        self.options.of(&pod.capture)
    }

    fn plan(&self, pod: &PodSpec, closed: bool, room: &Room) -> Plan {
        let options = self.options(pod);
        let mut plan = Plan::new(&options);
        // Whose other end may take larger segments than the pod's link does: of each family by itself, as each is routed by itself.
        let kept = room.kept();
        plan.segments.retain(|family| kept.iter().all(|one| one.family() != *family));
        if closed { plan.and_closed(&options) } else { plan }
    }

    /// Why a plan asks for no segments of the loopback device's of a family although they are asked for, whatever routing is.
    fn aside(&self, pod: &PodSpec, kept: &[Kept], family: IpFamily) -> Option<Aside> {
        let options = self.options(pod);
        let kept = kept.iter().filter(|one| one.family() == family).count();
        options.loopback_segments.then_some(())?;
        options
            .goes_around()
            .map(Aside::Around)
            .or_else(|| (kept > 0).then_some(Aside::Kept(kept)))
    }

    async fn close(&self, action: &Action, room: &Room) -> Result<Done, Cause> {
        // Before anything is in force, so that no change of it is missed.
        room.begin().await?;
        let (plan, mark) = (Plan::closed(&self.options(&action.pod)), self.mark(&action.pod));
        let unless_it_runs = action.unless_it_runs;
        let work = move |inside: &mut Inside| {
            if unless_it_runs && inside.has_sockets()? {
                return Ok(Done::Runs);
            }
            inside.add(&plan, &mark)?;
            Ok(Done::Well(Report::default()))
        };
        room.within(work).await
    }

    async fn open(&self, pod: &PodSpec, room: &Room) -> Result<(), Cause> {
        let (plan, mark) = (self.plan(pod, false, room), self.mark(pod));
        room.within(move |inside| inside.apply(&plan, &mark)).await.map(drop)
    }

    async fn listen(&self, pod: &PodSpec, room: &Room) -> Done {
        let why = match self.have_served(pod, room).await {
            Ok(()) => return Done::Well(Report::default()),
            Err(why) => why,
        };
        let plan = self.plan(pod, false, room);
        // Another proxy, as one that is about to end, bears the mark. Where nobody can tell it is not said of anybody.
        match room.within(move |inside| inside.usurped(&plan.listeners)).await {
            Ok(Some(usurped)) => Done::Usurped(Cause::PortTaken(format!("{usurped} ({why})"))),
            _ => Done::Failed(why),
        }
    }

    async fn have_served(&self, pod: &PodSpec, room: &Room) -> Result<(), Cause> {
        if let Some(v6) = pod
            .addresses
            .iter()
            .find(|ip| ip.to_canonical().is_ipv6())
            .filter(|_| !self.options.ipv6)
        {
            return Err(Cause::Ipv6(*v6));
        }
        // Before anything is in force, so that no change of it is missed.
        room.begin().await?;
        self.patiently(self.proxy.add(pod, room.namespace.clone())).await
    }

    async fn prove(&self, action: &Action, room: &Room) -> Done {
        match self.look(action, room, Listing::Whole).await {
            Ok((differences, families)) if differences.is_empty() => {
                // A pod does not wait for its capture to be announced because a policy drops what comes from the node.
                match self.connect(&action.pod, room, &families, HASTE).await {
                    Ok(proof) => Done::Proven(room.proven(&families, proof, !is_whole(&proof))),
                    Err(why) => Done::Failed(why),
                }
            }
            Ok((differences, _)) => Done::Failed(unproven(&differences)),
            Err(why) => Done::Failed(why),
        }
    }

    async fn verify(&self, action: &Action, room: &Room) -> Done {
        let told = room.is_told();
        let due = room.due(self.prove_every, told);
        // What connections are to show because of a change, a listing may show as well.
        let stood = match due {
            Due::All => None,
            _ => room.stands(action, self.list_every(), Stood::clone),
        };
        let looked = match stood {
            Some(stood) => self.glance(stood, room).await,
            None => self.look(action, room, Listing::Descriptors).await,
        };
        let families = match looked {
            Ok((differences, families)) if differences.is_empty() => families,
            Ok((differences, _)) => return differs(&differences),
            Err(why) => return Done::Failed(why),
        };
        if due != Due::Nothing {
            return self.prove_anew(action, room, &families, due, told).await;
        }
        let kept = room.kept();
        if kept.is_empty() {
            return Done::Well(Report::default());
        }
        let (before, one_by_one) = (kept.len(), self.kept_most / 64);
        match room.within(move |inside| inside.still_open(&kept, one_by_one)).await {
            Ok(open) => {
                let fewer = open.len() != before;
                if fewer {
                    // Of a family nothing may go around any more, whose segments may be others then; else it is told how many do.
                    room.look_again();
                }
                Done::Well(Report {
                    kept: fewer.then(|| room.keep(open)),
                    ..Report::default()
                })
            }
            Err(why) => Done::Failed(why),
        }
    }

    /// By connections: of one family, where it is only time for it, so that each has its turn.
    async fn prove_anew(&self, action: &Action, room: &Room, families: &[IpFamily], due: Due, told: bool) -> Done {
        let turn = room.last_proof().map_or(0, |last| last.turn);
        let one = families.get(turn % families.len().max(1)).filter(|_| due == Due::One);
        let families = one.map_or(families, std::slice::from_ref);
        // What changes meanwhile is looked at afterwards.
        let patience = if told { HASTE } else { TIME };
        match self.connect(&action.pod, room, families, patience).await {
            Ok(proof) => Done::Proven(room.proven(families, proof, told && !is_whole(&proof))),
            Err(why) => Done::Differs {
                what: why.to_string(),
                rules: true,
                listeners: true,
            },
        }
    }

    /// A verification for which descriptors alone need be looked at: some microseconds, at once. `None` where it takes more, or
    /// something is not as it should be.
    pub(super) fn at_a_glance(&self, action: &Action, room: &Room) -> Option<Done> {
        let is_simple = action.step == Step::Verify && room.kept().is_empty() && room.due(self.prove_every, false) == Due::Nothing;
        let listens = |stood: &Stood| room.namespace.own().listens_at(&stood.listeners, &stood.families);
        let well = is_simple && room.stands(action, self.list_every(), listens)?;
        well.then(|| Done::Well(Report::default()))
    }

    /// What the kernel tells of is listed anew so often, told or not: once for each turn of the families' connections, which show
    /// more.
    fn list_every(&self) -> Duration {
        self.prove_every * 2
    }

    /// What is not as it should be, as the kernel lists it, and the families that are captured.
    async fn look(&self, action: &Action, room: &Room, listing: Listing) -> Result<(Vec<Difference>, Vec<IpFamily>), Cause> {
        let (plan, mark) = (self.plan(&action.pod, action.closed, room), self.mark(&action.pod));
        // What is told from here on may or may not be in the listing.
        let (heard, listeners) = (room.watch.heard(), plan.listeners.clone());
        let look = move |inside: &mut Inside| {
            let Looked {
                differences,
                families,
                lists,
            } = inside.look(&plan, &mark, listing)?;
            if differences.is_empty() {
                inside.keep_segments(&plan.segments, lists);
            }
            Ok((differences, families, inside.strangers().clone(), inside.segments().to_vec()))
        };
        let kept = room.kept();
        let (differences, families, strangers, segments) = room.within(look).await?;
        *room.strangers.lock().unwrap_or_else(PoisonError::into_inner) = strangers;
        let whose = whose(&families, &segments, |family| self.aside(&action.pod, &kept, family));
        *room.segments.lock().unwrap_or_else(PoisonError::into_inner) = whose.into();
        let stood = heard.filter(|_| differences.is_empty()).map(|heard| Stood {
            pod: action.pod.clone(),
            closed: action.closed,
            heard,
            at: Instant::now(),
            // It is tried again at each look.
            again: is_any_left(&segments),
            listeners,
            families: families.clone(),
        });
        *room.stood.lock().unwrap_or_else(PoisonError::into_inner) = stood;
        Ok((differences, families))
    }

    /// As [`Hands::look`], of what the kernel does not tell of by itself: the listeners.
    async fn glance(&self, stood: Stood, room: &Room) -> Result<(Vec<Difference>, Vec<IpFamily>), Cause> {
        let Stood { listeners, families, .. } = stood;
        if room.namespace.own().listens_at(&listeners, &families) {
            return Ok((Vec::new(), families));
        }
        room.within(move |inside| Ok((inside.unserved(&listeners, &families)?, families)))
            .await
    }

    async fn connect(&self, pod: &PodSpec, room: &Room, families: &[IpFamily], patience: Duration) -> Result<Proof, Cause> {
        let prover = Prover {
            sockets: &self.sockets,
            namespace: &room.namespace,
            families,
            // What is not captured is not proven.
            addresses: if self.options(pod).inbound { &pod.addresses } else { &[] },
            patience,
        };
        prover.prove().await.map_err(|e| Cause::of_proof(&e))
    }

    async fn release(&self, pod: &PodSpec, room: &Room) -> Result<(), Cause> {
        let plan = self.plan(pod, false, room);
        room.within(move |inside| inside.release(&plan)).await
    }

    async fn drain(&self, pod: &PodSpec, room: &Room) -> Done {
        match timeout(DRAIN_SLICE, self.proxy.drain(&pod.uid)).await {
            Ok(Drained::Done) => Done::Well(Report::default()),
            Ok(Drained::Unseen) => {
                // What was redirected last may still be on its way to its socket.
                sleep(SETTLING).await;
                match room.within(Inside::captured).await {
                    Ok(0) => Done::Well(Report::default()),
                    Ok(_) => Done::Unfinished,
                    Err(why) => Done::Failed(why),
                }
            }
            Err(_) => Done::Unfinished,
        }
    }

    async fn patiently<E: Into<Cause>>(&self, step: impl Future<Output = Result<(), E>>) -> Result<(), Cause> {
        match timeout(self.patience, step).await {
            Ok(done) => done.map_err(Into::into),
            Err(_) => Err(Cause::Late(self.patience)),
        }
    }
}

/// How long a proof is good. Pods that are captured together, as when a node starts, would be proven together for ever after,
/// hundreds within the same second: so the pause after the first is between a half and the whole, as the namespace's number has
/// it. These follow each other, and whatever number of them in a row is spread evenly by steps of the golden ratio.
fn pause(every: Duration, in_turn: bool, id: NetnsId) -> Duration {
    if in_turn {
        return every;
    }
    let phase = (id.ino as u32).wrapping_mul(GOLDEN);
    every / 2 + (every / 2).mul_f64(f64::from(phase) / f64::from(u32::MAX))
}

/// Whether connections came through from the node wherever one was made.
fn is_whole(proof: &Proof) -> bool {
    proof.inbound.v4 != Some(Way::Listed) && proof.inbound.v6 != Some(Way::Listed)
}

fn differs(differences: &[Difference]) -> Done {
    let is_listener = |d: &Difference| matches!(d, Difference::Listener(..) | Difference::ForeignListener(_));
    Done::Differs {
        what: list(differences),
        rules: !differences.iter().all(is_listener),
        listeners: differences.iter().any(is_listener),
    }
}

/// Why a capture is not proven that is not as it should be, although it was put in force.
fn unproven(differences: &[Difference]) -> Cause {
    let what = list(differences);
    let any = |is: fn(&Difference) -> bool| differences.iter().any(is);
    if any(|d| matches!(d, Difference::Diverted(_))) {
        return Cause::Diverted(what);
    }
    // Also beside the proxy, where that shares its ports.
    match any(|d| matches!(d, Difference::ForeignListener(_))) {
        true => Cause::PortTaken(what),
        false => what.into(),
    }
}

/// Whose segments what is captured has, of each family: those that are left whatever was to be, then the link's where these are to be,
/// then what was found.
fn whose(families: &[IpFamily], found: &[(IpFamily, Segments)], aside: impl Fn(IpFamily) -> Option<Aside>) -> Vec<(IpFamily, Segments)> {
    let of = |family| match found.iter().find(|(of, _)| *of == family).map(|(_, whose)| whose) {
        Some(left @ Segments::Left(_)) => Some(left.clone()),
        _ if !families.contains(&family) => None,
        found => aside(family).map(Segments::Link).or_else(|| found.cloned()),
    };
    let both = [IpFamily::V4, IpFamily::V6].into_iter();
    both.filter_map(|family| Some((family, of(family)?))).collect()
}

fn is_any_left(segments: &[(IpFamily, Segments)]) -> bool {
    segments.iter().any(|(_, whose)| matches!(whose, Segments::Left(_)))
}

/// What does nothing but end.
async fn ending(step: impl Future<Output = ()>) -> Result<(), Cause> {
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
    let foreign = of(|d| matches!(d, Difference::ForeignRoute(_)).then(|| d.to_string()));
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
    parts.extend(foreign.into_iter().map(|what| format!("instead: {what}")));
    parts.join("; ")
}

fn list(differences: &[Difference]) -> String {
    differences.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// The proxy's connections are waited for so long at a time, so that a pod that is to stay after all need not wait for them.
const DRAIN_SLICE: Duration = Duration::from_millis(500);
/// How long a packet may take through the namespace, generously.
const SETTLING: Duration = Duration::from_millis(100);
/// A connection from the node that comes through at all takes a fraction of this.
const HASTE: Duration = Duration::from_millis(50);
/// One that did not gets more at the next verification, for which nobody waits.
const TIME: Duration = Duration::from_secs(1);
/// Between two proofs that changes cause.
const OFTENEST: Duration = Duration::from_secs(1);
/// 2³² divided by the golden ratio.
const GOLDEN: u32 = 0x9e37_79b9;

#[cfg(test)]
mod tests;

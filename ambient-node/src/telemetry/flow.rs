//! One connection as telemetry sees it, from its opening to its end.

use std::{
    fmt,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use ambient_core::{Authority, Identity, Workload, observe::Event};
use ambient_hbone::relay::Progress;
use tracing::Level;

use super::{
    ends::{Closer, Direction, Ends, Flag, Outcome},
    live::{ConnId, Live, Open},
    metrics::Metrics,
    reason::Reason,
};
use crate::clock;

#[cfg(test)]
mod tests;

/// Tells of a connection that ended before both its ends were known: it is counted by its reason alone.
pub(crate) fn refused_early(
    metrics: &Metrics,
    reason: Reason,
    direction: Direction,
    source: SocketAddr,
    destination: SocketAddr,
    hbone: Option<&Authority>,
    error: &dyn fmt::Display,
) {
    metrics.failed(direction, reason);
    // A text, as in every other line: what is only displayed stands there without quotes.
    let error = error.to_string();
    // Not `warn!`: with a target its grammar takes no dotted name first.
    tracing::event!(
        target: "access",
        Level::WARN,
        src.addr = %source,
        dst.addr = %destination,
        dst.hbone_addr = hbone.map(tracing::field::display),
        direction = direction.as_str(),
        reason = reason.as_str(),
        error = &*error,
        "connection failed"
    );
}

/// A line of the access log: what is known of a connection's ends, and what follows.
macro_rules! line {
    ($account:expr, $level:ident, $($more:tt)+) => {{
        let (id, ends) = ($account.id, &$account.open.ends);
        let [source, destination] = Named::both(ends);
        tracing::event!(
            target: "access",
            Level::$level,
            conn.id = %id,
            src.addr = %ends.source,
            src.workload = source.name,
            src.namespace = source.namespace,
            src.identity = ends.source_identity.as_ref().map(Identity::as_str),
            src.cluster = source.cluster,
            dst.addr = %ends.destination,
            dst.hbone_addr = ends.hbone.as_ref().map(tracing::field::display),
            dst.service = ends.service.as_deref().map(|s| &*s.name.hostname),
            dst.workload = destination.name,
            dst.namespace = destination.namespace,
            dst.identity = ends.proven_destination().map(Identity::as_str),
            dst.cluster = destination.cluster,
            direction = ends.direction.as_str(),
            $($more)+
        )
    }};
}

/// An open connection. Counted once its ends are known, logged and counted when it ends; dropped without an end, it ended
/// because the proxy stopped.
#[derive(Debug)]
pub(crate) struct Account {
    metrics: Arc<Metrics>,
    /// Apart: the account goes from hand to hand, and each future that it passes through has room for it. Those who list
    /// what is open share it.
    open: Arc<Open>,
    id: ConnId,
    /// In milliseconds.
    first_byte: Option<u32>,
    established: Option<Instant>,
    done: bool,
}

impl Account {
    pub(crate) fn open(metrics: &Arc<Metrics>, ends: Ends, opened: Instant) -> Self {
        let (id, open) = metrics.live.open(ends, opened);
        let account = Self {
            id,
            metrics: metrics.clone(),
            open,
            first_byte: None,
            established: None,
            done: false,
        };
        account.log_open();
        account
    }

    /// It goes another way than was thought when it was opened.
    pub(crate) fn reroute(mut self, ends: Ends) -> Self {
        self.open = self.metrics.live.renew(self.id, ends, self.open.opened);
        self
    }

    /// Whether it is carried within this process.
    pub(crate) fn is_local(&mut self, local: bool) {
        if self.open.ends.local != local {
            self.renew(|ends| ends.local = local);
        }
    }

    /// The other end has proven who it is.
    pub(crate) fn proven(&mut self, identity: Option<Identity>) {
        if self.open.ends.destination_identity != identity {
            self.renew(|ends| ends.destination_identity = identity);
        }
    }

    /// Who is at the other end is known only now, or is not who was thought.
    pub(crate) fn found(&mut self, workload: Option<Arc<Workload>>) {
        self.renew(|ends| ends.destination_workload = workload);
    }

    fn renew(&mut self, change: impl FnOnce(&mut Ends)) {
        let mut ends = self.open.ends.clone();
        change(&mut ends);
        self.open = self.metrics.live.renew(self.id, ends, self.open.opened);
    }

    /// Where it is noted how much is carried, of the client's bytes as from `a` to `b`.
    pub(crate) fn progress(&self) -> &Progress {
        &self.open.progress
    }

    /// The first byte of an answer has come so long after the other end was open.
    pub(crate) fn answered_after(&mut self, first_byte: Duration) {
        let opened = self.open.opened;
        let until_then = self.established.unwrap_or(opened).duration_since(opened);
        let first_byte = until_then + first_byte;
        self.first_byte = Some(u32::try_from(first_byte.as_millis()).unwrap_or(u32::MAX));
        self.metrics.answered(&self.open.ends, first_byte);
    }

    pub(crate) fn close(mut self, outcome: &Outcome) {
        self.end(outcome);
    }

    /// All that will be known of its ends is known: it counts as open, under the labels that it will be closed under.
    pub(crate) fn established(&mut self) {
        if self.open.series().is_none() {
            Live::carries(&self.open, self.metrics.opened(&self.open.ends, self.open.opened));
            self.established = Some(clock::steady());
        }
    }

    /// As [`Account::close`], for who holds it still. What it is told after that is not told on.
    pub(crate) fn end(&mut self, outcome: &Outcome) {
        if std::mem::replace(&mut self.done, true) {
            return;
        }
        let Open { ends, progress, .. } = &*self.open;
        self.metrics.live.close(self.id);
        // What never was open on its other side is counted as opened as well, as Istio does, so that the two agree.
        let opened = self.open.series().cloned().unwrap_or_else(|| self.metrics.attempted(ends));
        let reason = outcome.error.as_ref().map(|(reason, _)| *reason);
        self.metrics.closed(&opened, ends, outcome.flag, reason);
        self.metrics.observe(&Event::ConnectionEnded {
            outbound: ends.direction == Direction::Outbound,
            source: ends.source,
            destination: ends.destination,
            source_identity: ends.source_identity.as_ref(),
            destination_identity: ends.proven_destination(),
            requested: progress.a_to_b(),
            answered: progress.b_to_a(),
            error: outcome.error.as_ref().map(|(_, error)| &**error),
        });
        self.log_end(outcome, clock::steady().duration_since(self.open.opened));
    }

    fn log_open(&self) {
        line!(self, DEBUG, "connection opened");
    }

    fn log_end(&self, outcome: &Outcome, duration: Duration) {
        // `sent` and `received` are this proxy's: towards the other end, and from it.
        let Open { ends, progress, .. } = &*self.open;
        let (sent, received) = match ends.direction {
            Direction::Outbound => (progress.a_to_b(), progress.b_to_a()),
            Direction::Inbound => (progress.b_to_a(), progress.a_to_b()),
        };
        let first_byte = self.first_byte.map(|millis| format!("{millis}ms"));
        macro_rules! ended {
            ($level:ident $(, $error:ident)?) => {
                line!(
                    self,
                    $level,
                    waypoint = ends.waypoint,
                    transport = ends.local.then_some("local"),
                    retries = (ends.retries > 0).then_some(ends.retries),
                    avoided = (ends.avoided > 0).then_some(ends.avoided),
                    bytes_sent = sent,
                    bytes_recv = received,
                    duration = &*millis(duration),
                    first_byte = first_byte.as_deref(),
                    closed_by = outcome.closer.map(Closer::as_str),
                    $(reason = $error.0.as_str(), error = &*$error.1,)?
                    "connection complete"
                )
            };
        }
        match &outcome.error {
            None => ended!(INFO),
            Some(error) => ended!(ERROR, error),
        }
    }
}

/// What a line says of a workload: nothing of what nobody knows.
struct Named<'a> {
    /// The pod's, or where there is none the service's that it goes by.
    name: Option<&'a str>,
    namespace: Option<&'a str>,
    cluster: Option<&'a str>,
}

impl<'a> Named<'a> {
    /// Of both ends of a connection.
    fn both(ends: &'a Ends) -> [Self; 2] {
        [
            (&ends.source_workload, ends.source_identity.as_ref()),
            (&ends.destination_workload, ends.proven_destination()),
        ]
        .map(|(workload, identity)| match workload {
            Some(workload) => Self::from(&**workload),
            None => Self::proven(identity),
        })
    }

    /// Of one whom the mesh does not know.
    fn proven(identity: Option<&'a Identity>) -> Self {
        Self {
            name: None,
            namespace: identity.map(Identity::namespace),
            cluster: None,
        }
    }
}

impl<'a> From<&'a Workload> for Named<'a> {
    fn from(workload: &'a Workload) -> Self {
        let known = |text: &'a str| Some(text).filter(|text| !text.is_empty());
        Self {
            name: known(&workload.name).or_else(|| known(&workload.canonical_name)),
            namespace: known(&workload.namespace),
            cluster: known(&workload.cluster),
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        if !self.done {
            let drained = Outcome::failed(Flag::None, "connection closed due to connection drain");
            self.end(&drained.because(Reason::Drain).by(Closer::Proxy));
        }
    }
}

fn millis(duration: Duration) -> String {
    format!("{}ms", duration.as_millis())
}

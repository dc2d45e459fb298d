//! Rules put in force, and what becomes of what goes around them.

use std::collections::{HashMap, HashSet};

use super::{super::wall, Hands, Room, put};
use crate::{
    ExistingConnections,
    linux::{ApplyError, Difference, Inside, Joined, Outsider, Sought},
    netlink::Connection,
    plan::Options,
    pods::{Action, Cause, Direction, Kept, Report},
};

impl Hands {
    /// Puts the rules in force, and looks for what goes around them: what was open before is kept or closed, as is asked for;
    /// what went around rules that stood, or should have, is closed.
    pub(super) async fn enforce(&self, action: &Action, room: &Room) -> Result<Report, Cause> {
        let (plan, mark) = (self.plan(&action.pod, action.closed, room), self.mark(&action.pod));
        let (options, at_once) = (self.options(&action.pod), self.kept_most);
        if action.closed && !action.enforced {
            // Nothing was open, and nothing was let be opened.
            let work = move |inside: &mut Inside| {
                let (added, lists) = inside.put(&plan, &mark)?;
                forget_queries(inside, options.dns, &added, at_once)?;
                inside.keep_segments_alone(&plan.segments, lists);
                Ok(added)
            };
            let added = room.within(work).await?;
            room.ask(&action.pod.capture);
            return Ok(said_if(&added, 0, 0));
        }
        let (enforced, before) = (action.enforced, room.kept());
        let newly_inbound = options.inbound && room.asked().is_some_and(|asked| !self.options.of(&asked).inbound);
        let keeps = self.existing == ExistingConnections::Keep;
        let mut sorting = Sorting {
            enforced,
            newly_inbound,
            keeps,
            options,
            most: at_once,
            before: before.iter().map(|k| k.cookie).collect(),
            kept: Vec::new(),
            beyond: 0,
            strays: 0,
        };
        let work = move |inside: &mut Inside| {
            let joined = match enforced {
                true if newly_inbound && keeps => inside.apply_keeping(&plan, &mark, at_once, |c, way| {
                    way == Direction::Inbound && sorting.is_meant(way, c)
                })?,
                true => inside.put(&plan, &mark).map(Joined::from)?,
                false => inside.join(&plan, &mark, at_once)?,
            };
            let Joined {
                added,
                lost,
                mut told,
                more,
                lists,
            } = joined;
            forget_queries(inside, sorting.options.dns, &added, at_once)?;
            // Something was missing: what went by then the kernel need not have tracked. Nor, all the time, what was left alone.
            let sought = match enforced && (newly_inbound || !added.is_empty()) {
                true => Sought::All,
                false => Sought::Tracked,
            };
            inside.around(sought, at_once, |inside, page| {
                for one in page.iter().filter(|one| one.is_tracked()) {
                    told.remove(&(one.connection.local, one.connection.remote));
                }
                sorting.deal(inside, page)
            })?;
            match more {
                // Nobody knows all that the kernel was told of.
                true => inside.forget_outlived_here(at_once)?,
                false => inside.forget_ended(told.into_iter())?,
            }
            // Now, and not at the next look, which need not come to it: of a family of which something is kept none may stay that an
            // earlier process has put there. What fails before this has all of it done again.
            let mut alone = plan.segments;
            alone.retain(|family| sorting.kept.iter().all(|one| one.family() != *family));
            inside.keep_segments_alone(&alone, lists);
            Ok((added, lost, sorting))
        };
        let (added, lost, sorted) = room.within(work).await?;
        room.ask(&action.pod.capture);
        let (before, now) = (room.kept(), wall());
        let known: HashMap<u64, &Kept> = before.iter().map(|k| (k.cookie, k)).collect();
        let kept = sorted.kept.iter().map(|o| o.kept(known.get(&o.connection.cookie).copied(), now));
        Ok(Report {
            kept: Some(room.keep(kept.collect())),
            strays: sorted.strays,
            ..said_if(&added, lost, sorted.beyond)
        })
    }
}

/// What becomes of what goes around the proxy, part after part.
struct Sorting {
    /// Rules stood before, or should have.
    enforced: bool,
    /// Until now the pod had asked that what comes to it be left alone.
    newly_inbound: bool,
    /// What was open before is kept.
    keeps: bool,
    options: Options,
    most: usize,
    /// Of what was kept before, by cookie.
    before: HashSet<u64>,
    kept: Vec<Outsider>,
    /// How much would be kept, and is more than that.
    beyond: u64,
    strays: u64,
}

impl Sorting {
    /// What is not captured goes around the proxy by right.
    fn is_meant(&self, way: Direction, c: &Connection) -> bool {
        (self.options.inbound || way == Direction::Outbound) && (self.options.ipv6 || c.local.is_ipv4())
    }

    /// Also what its pod had asked to be left alone, until now.
    fn is_open_before(&self, way: Direction) -> bool {
        !self.enforced || self.newly_inbound && way == Direction::Inbound
    }

    /// Keeps some of it, and closes the rest at once: however much there is, none of that goes on.
    fn deal(&mut self, inside: &mut Inside, mut page: Vec<Outsider>) -> Result<(), ApplyError> {
        page.retain(|one| self.is_meant(one.direction, &one.connection));
        // What was kept before and is tracked no more by now.
        page.retain(|one| one.is_tracked() || !self.before.contains(&one.connection.cookie));
        let is_kept = |one: &Outsider| {
            let (tracked, before) = (one.is_tracked(), self.is_open_before(one.direction));
            tracked && (self.enforced && one.kept || before && self.keeps)
        };
        let (mut kept, closed): (Vec<_>, Vec<_>) = page.into_iter().partition(is_kept);
        let beyond = kept.split_off(kept.len().min(self.most.saturating_sub(self.kept.len())));
        let (chosen, strays): (Vec<_>, Vec<_>) = closed.into_iter().partition(|one| self.is_open_before(one.direction));
        inside.close(chosen.iter().map(|one| &one.connection))?;
        inside.mark_kept(&kept)?;
        self.strays += inside.close(strays.iter().map(|one| &one.connection))?;
        self.beyond += inside.close(beyond.iter().map(|one| &one.connection))?;
        self.kept.append(&mut kept);
        Ok(())
    }
}

fn said_if(added: &[Difference], lost: usize, beyond: u64) -> Report {
    let mut parts: Vec<String> = (!added.is_empty()).then(|| put(added)).into_iter().collect();
    if lost > 0 {
        parts.push(format!("{lost} open connections could not be kept"));
    }
    if beyond > 0 {
        parts.push(format!("{beyond} open connections are reset, as more are not kept of a pod"));
    }
    Report {
        said: (!parts.is_empty()).then(|| parts.join("; ")),
        ..Report::default()
    }
}

/// What asks by UDP goes on as it began, unless that is forgotten: once the rules are there that are to capture it.
fn forget_queries(inside: &mut Inside, dns: bool, added: &[Difference], at_once: usize) -> Result<(), ApplyError> {
    match dns && !added.is_empty() {
        true => inside.forget_queries(at_once),
        false => Ok(()),
    }
}

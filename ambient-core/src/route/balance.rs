//! One endpoint of a service out of many.

use std::sync::Arc;

use super::Way;
use crate::mesh::{Members, Near, Places, spot};
use crate::{BalancerMode, Endpoint, Health, HealthPolicy, LoadBalancer, Mesh, Scope, Service, Shards, Workload, WorkloadUid};

/// So many times it is drawn before all are looked through; and of more endpoints than this in places that are preferred
/// alike one is drawn first.
const FEW: usize = 64;

/// What is drawn from one random number.
pub(super) const WAYPOINT: u64 = 1;
pub(super) const ADDRESS: u64 = 2;
const ENDPOINT: u64 = 3;

/// A number that says nothing of the others that are made from the same draw (the finalizer of SplitMix64).
pub(super) fn mix(draw: u64, which: u64) -> u64 {
    let mut bits = draw.wrapping_add(which.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// The one that a random number falls on, in proportion to the weights; `None` if none has one.
pub(super) fn weighted<T: Copy>(all: impl Iterator<Item = (T, u32)> + Clone, random: u64) -> Option<T> {
    let total: u64 = all.clone().map(|(_, weight)| u64::from(weight)).sum();
    // No remainder is favoured by more than total / 2^64.
    let mut at = random.checked_rem(total)?;
    for (one, weight) in all {
        match at.checked_sub(u64::from(weight)) {
            Some(beyond) => at = beyond,
            None => return Some(one),
        }
    }
    None
}

/// A choice among the endpoints of a service.
pub(super) struct Choice<'a> {
    mesh: &'a Mesh,
    source: &'a Workload,
    service: &'a Service,
    avoid: &'a [WorkloadUid],
    draw: u64,
}

/// An endpoint that may be chosen.
#[derive(Clone, Copy)]
struct Candidate<'a> {
    workload: &'a Arc<Workload>,
    endpoint: &'a Endpoint,
    rank: usize,
}

impl<'a> Choice<'a> {
    pub(super) fn of(way: &Way<'a>, service: &'a Service) -> Self {
        Self {
            mesh: way.mesh,
            source: way.source,
            service,
            avoid: &way.hints.avoid,
            draw: way.hints.draw,
        }
    }

    /// One at random, in proportion to capacity, of those that are usable, healthy and preferred the most; one that was
    /// found dead a moment ago only where no other is left.
    pub(super) fn pick(&self, usable: impl Fn(&Workload, &Endpoint) -> bool) -> Option<(&'a Arc<Workload>, &'a Endpoint)> {
        let members = self.mesh.members(&self.service.name)?;
        if let (Some(balancer), Some(places)) = (&self.service.load_balancer, members.places()) {
            let chosen = self.pick_near(balancer, members, places, &usable)?;
            return Some((chosen.workload, chosen.endpoint));
        }
        let drawn = self.draw_one(members, &usable);
        let chosen = drawn.or_else(|| self.look_through(&members.all, &usable))?;
        Some((chosen.workload, chosen.endpoint))
    }

    /// Where all are equal, any that is usable will do: it is drawn until one is. What is left out makes none of the others
    /// likelier than another. What is not drawn is not touched: in a large mesh each endpoint is some way through memory.
    fn draw_one(&self, members: &'a Members, usable: &impl Fn(&Workload, &Endpoint) -> bool) -> Option<Candidate<'a>> {
        let all = &members.all;
        let equal = self.mode() == BalancerMode::Standard && members.are_equal();
        let draws = (0..all.len().min(FEW) as u64).filter(|_| equal);
        let mut drawn = draws.filter_map(|n| {
            let at = mix(self.draw, ENDPOINT + n) % all.len() as u64;
            let (uid, endpoint) = all.nth(at as usize)?;
            let candidate = self.candidate(uid, endpoint, usable)?;
            self.is_fresh(candidate.workload).then_some(candidate)
        });
        drawn.next()
    }

    /// Of those in the places that are preferred the most, as far as there is one that may be chosen.
    fn pick_near(
        &self,
        balancer: &LoadBalancer,
        members: &Members,
        places: &'a Places,
        usable: &impl Fn(&Workload, &Endpoint) -> bool,
    ) -> Option<Candidate<'a>> {
        let own = spot(&balancer.preferences, self.source);
        // As a rule there are some in the client's own place, which none is preferred to.
        let nearest = places.get(&own).and_then(|there| self.among(members, &[there], usable, true));
        if nearest.is_some() {
            return nearest;
        }
        let ranks = places
            .iter()
            .filter_map(|(at, there)| Some((rank(balancer, |n| own[n] == at[n])?, there)));
        let mut ranks: Vec<_> = ranks.collect();
        ranks.sort_by(|(a, _), (b, _)| b.cmp(a));
        let tiers: Vec<Vec<_>> = ranks
            .chunk_by(|(a, _), (b, _)| a == b)
            .map(|tier| tier.iter().map(|(_, there)| *there).collect())
            .collect();
        let mut fresh = tiers.iter().filter_map(|tier| self.among(members, tier, usable, true));
        let mut any = tiers.iter().filter_map(|tier| self.among(members, tier, usable, false));
        fresh.next().or_else(|| any.next())
    }

    /// One of those in some places, in proportion to capacity; of the fresh ones alone, or of all.
    fn among(
        &self,
        members: &Members,
        places: &[&'a Shards<WorkloadUid, Near>],
        usable: &impl Fn(&Workload, &Endpoint) -> bool,
        fresh: bool,
    ) -> Option<Candidate<'a>> {
        let candidate = |near: &'a Near| self.may_be(&near.workload, &near.endpoint, usable, fresh);
        let count: usize = places.iter().map(|there| there.len()).sum();
        if count > FEW && members.are_equal() {
            let drawn = (0..FEW as u64).find_map(|n| {
                let mut at = (mix(self.draw, ENDPOINT + n) % count as u64) as usize;
                let there = places.iter().find(|there| {
                    let here = at < there.len();
                    at -= if here { 0 } else { there.len() };
                    here
                })?;
                candidate(there.nth(at)?.1)
            });
            if drawn.is_some() {
                return drawn;
            }
        }
        let all = places.iter().flat_map(|there| there.values()).filter_map(candidate);
        let all: Vec<_> = all.collect();
        weighted(all.iter().map(|c| (*c, c.endpoint.capacity)), mix(self.draw, ENDPOINT))
    }

    fn may_be(
        &self,
        workload: &'a Arc<Workload>,
        endpoint: &'a Endpoint,
        usable: &impl Fn(&Workload, &Endpoint) -> bool,
        fresh: bool,
    ) -> Option<Candidate<'a>> {
        let may = self.is_well(endpoint) && usable(workload, endpoint) && (!fresh || self.is_fresh(workload));
        may.then_some(Candidate {
            workload,
            endpoint,
            rank: 0,
        })
    }

    /// Whether its health lets it be chosen.
    fn is_well(&self, endpoint: &Endpoint) -> bool {
        let balancer = self.service.load_balancer.as_ref();
        let sick_too = balancer.is_some_and(|balancer| balancer.health_policy == HealthPolicy::AllowAll);
        sick_too || endpoint.health != Health::Unhealthy
    }

    fn look_through(
        &self,
        all: &'a Shards<WorkloadUid, Endpoint>,
        usable: &impl Fn(&Workload, &Endpoint) -> bool,
    ) -> Option<Candidate<'a>> {
        let candidates: Vec<_> = all
            .iter()
            .filter_map(|(uid, endpoint)| self.candidate(uid, endpoint, usable))
            .collect();
        let fresh = candidates.iter().filter(|c| self.is_fresh(c.workload));
        self.best(fresh).or_else(|| self.best(candidates.iter()))
    }

    fn best<'c>(&self, of: impl Iterator<Item = &'c Candidate<'a>> + Clone) -> Option<Candidate<'a>>
    where
        'a: 'c,
    {
        let chosen = of.clone().filter(|c| c.endpoint.capacity > 0);
        let rank = chosen.map(|c| c.rank).max()?;
        let best = of.filter(|c| c.rank == rank);
        weighted(best.map(|c| (*c, c.endpoint.capacity)), mix(self.draw, ENDPOINT))
    }

    fn candidate(
        &self,
        uid: &WorkloadUid,
        endpoint: &'a Endpoint,
        usable: &impl Fn(&Workload, &Endpoint) -> bool,
    ) -> Option<Candidate<'a>> {
        if !self.is_well(endpoint) {
            return None;
        }
        let balancer = self.service.load_balancer.as_ref();
        let workload = self.mesh.workload(uid).filter(|workload| usable(workload, endpoint))?;
        let rank = match (balancer, self.mode()) {
            (Some(balancer), BalancerMode::Strict | BalancerMode::Failover) => {
                let shares = |n: usize| shares(balancer.preferences[n], self.source, workload);
                rank(balancer, shares)?
            }
            _ => 0,
        };
        Some(Candidate { workload, endpoint, rank })
    }

    fn mode(&self) -> BalancerMode {
        self.service
            .load_balancer
            .as_ref()
            .map_or(BalancerMode::Standard, |balancer| balancer.mode)
    }

    fn is_fresh(&self, workload: &Workload) -> bool {
        !self.avoid.contains(&workload.uid)
    }
}

/// How much an endpoint is preferred that shares some preferences with the client, by their numbers; `None` if it may not be
/// chosen.
///
/// That is how many of them it shares, up to the first that it does not. Where the network is the first of them, the others
/// count for endpoints of other networks too, and one of the client's own comes before all of those.
fn rank(balancer: &LoadBalancer, shares: impl Fn(usize) -> bool) -> Option<usize> {
    let count = balancer.preferences.len();
    if balancer.mode == BalancerMode::Strict {
        return (0..count).all(shares).then_some(0);
    }
    let (near, from) = match balancer.preferences.first() {
        Some(Scope::Network) => (usize::from(shares(0)) * count, 1),
        _ => (0, 0),
    };
    Some(near + (from..count).take_while(|n| shares(*n)).count())
}

fn shares(scope: Scope, client: &Workload, endpoint: &Workload) -> bool {
    match scope {
        Scope::Region => client.locality[0] == endpoint.locality[0],
        Scope::Zone => client.locality[1] == endpoint.locality[1],
        Scope::Subzone => client.locality[2] == endpoint.locality[2],
        Scope::Node => client.node == endpoint.node,
        Scope::Cluster => client.cluster == endpoint.cluster,
        Scope::Network => client.network == endpoint.network,
    }
}

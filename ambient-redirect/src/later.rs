//! Moments to come.

use std::time::{Duration, Instant};

/// So much later; whoever wants to wait longer than for [`FAR`] waits for that long.
pub(crate) fn later(now: Instant, by: Duration) -> Instant {
    now.checked_add(by.min(FAR)).unwrap_or(now)
}

/// A hundred years: what is never to be is a duration that no clock can be set by.
pub(crate) const FAR: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

#[cfg(test)]
mod tests {
    use ambient_core::PodUid;

    use super::*;
    use crate::{
        linux::NetnsId,
        zds::{
            agent::{self, Agent},
            wire::{Hello, VERSION, WorkloadInfo},
            workloads::{self, Given, Workloads},
        },
    };

    const NEVER: Duration = Duration::MAX;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "some instant to begin with")]
    fn neither_side_of_zds_has_a_moment_that_no_clock_knows() {
        let now = Instant::now();
        let uid: PodUid = "a".into();
        let info = WorkloadInfo {
            name: "a".into(),
            namespace: "shop".into(),
            service_account: "default".into(),
        };
        let mut agent: Agent<()> = Agent::new(agent::Timing {
            hello: NEVER,
            ack: NEVER,
            again: NEVER,
            grace: NEVER,
        });
        agent.expect(now, [uid.clone()].into());
        let proxy = agent.handle_connected(now);
        agent.handle_packet(now, proxy, &Hello { version: VERSION }.encode(), 0);
        agent.want(now, uid.clone(), info, NetnsId { dev: 4, ino: 1 }, (), false);
        let mut workloads: Workloads<()> = Workloads::new(workloads::Timing {
            answer: NEVER,
            again: NEVER,
        });
        workloads.handle_connected();
        while let Some(output) = agent.poll(now) {
            if let agent::Output::Send { packet, .. } = output {
                workloads.handle_packet(now, &packet, Given::Nothing);
            }
        }
        while workloads.poll(now).is_some() {}
        for waits in [agent.timeout(), workloads.timeout()] {
            assert!(waits.is_none_or(|until| until > now), "{waits:?}");
        }
    }
}

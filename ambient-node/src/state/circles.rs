//! Which waypoints lead in circles, kept as the mesh changes.

use std::{collections::BTreeMap, sync::Arc};

use ambient_control::Fault;
use ambient_core::{
    Mesh,
    mesh::{Update, WaypointUser},
};

/// Whose waypoint leads back to it, and by whom.
///
/// What names it is refused, and not whoever names it: routes go neither by a waypoint that leads back nor around it
/// (`route::Refusal::WaypointCircle`), while the resource stays in the mesh, for taking it out would take the waypoint from
/// all that use it. Which references those are follows from the snapshot alone, in whatever order it came about. One that
/// is its own waypoint is told of and gone to: whoever comes to it has come to its waypoint.
#[derive(Debug, Default)]
pub(super) struct Circles(BTreeMap<WaypointUser, Circle>);

#[derive(Debug)]
struct Circle {
    /// Itself first.
    way: Vec<WaypointUser>,
    /// Whether the log has it.
    logged: bool,
}

impl Circles {
    /// Looks at those whom updates concern that the mesh has taken in by now, whole or not.
    pub(super) fn look(&mut self, mesh: &Mesh, updates: &[Update]) {
        for user in updates.iter().flat_map(|update| mesh.concerned(update)) {
            let Some(way) = mesh.waypoint_circle(&user) else { continue };
            // Each of them names it.
            for (at, user) in way.iter().enumerate() {
                if self.0.len() < MOST && !self.0.contains_key(user) {
                    let way = way[at..].iter().chain(&way[..at]).cloned().collect();
                    self.0.insert(user.clone(), Circle { way, logged: false });
                }
            }
        }
    }

    /// A version is whole: what it holds no more is forgotten, and what is new in it told in the log.
    pub(super) fn settle(&mut self, mesh: &Mesh) {
        self.0.retain(|user, circle| {
            let Some(way) = mesh.waypoint_circle(user) else { return false };
            circle.way = way;
            if !std::mem::replace(&mut circle.logged, true) {
                tracing::warn!("{}", circle.told());
            }
            true
        });
    }

    /// What is wrong by these, beside what the source says.
    pub(super) fn beside(&self, faults: &Arc<[Fault]>) -> Arc<[Fault]> {
        match self.0.is_empty() {
            true => faults.clone(),
            false => faults
                .iter()
                .cloned()
                .chain(self.0.values().map(|circle| circle.told().into()))
                .collect(),
        }
    }
}

impl Circle {
    fn told(&self) -> String {
        let names: Vec<_> = self.way.iter().map(ToString::to_string).collect();
        let (user, others) = (&names[0], &names[1..]);
        match others.is_empty() {
            true => format!("{user}: waypoint: it is its own: nobody is led on from a waypoint; name another there, or none"),
            false => {
                let by = others.join(", ");
                format!("{user}: waypoint: it leads back to {user} by {by}: what would go by it is refused; name another there, or none")
            }
        }
    }
}

/// Those that are told of.
const MOST: usize = 1_000;

//! What istiod publishes and attaches, also where that is not what Istio documents.
//!
//! Two sides of it are worked out apart, and disagree where a strict mesh meets a namespace without a mode of its own,
//! or ports are exempt by DISABLE alone.

use super::{Listed, Mode, Object, Rule, Set, plaintext_except, plaintext_on};

/// What a workload lists whose own object this is.
pub(super) fn listed(set: &Set, object: &Object) -> Listed {
    let has = |modes: &[Mode]| object.ports.values().any(|mode| modes.contains(mode));
    let parent_strict = set.parent(&object.namespace) == Mode::Strict;
    let strict = object.mode == Mode::Strict || (object.mode == Mode::Unset && parent_strict);
    let converted = match object.mode {
        Mode::Strict => has(&[Mode::Permissive, Mode::Disable]),
        Mode::Unset if strict => has(&[Mode::Permissive]),
        Mode::Unset | Mode::Permissive | Mode::Disable => has(&[Mode::Strict]),
    };
    match (converted, strict) {
        (true, _) => Listed::Converted,
        (false, true) => Listed::Static,
        (false, false) => Listed::Nothing,
    }
}

/// The rules of an object's own policy; without any it is not published.
pub(super) fn converted(set: &Set, object: &Object) -> Vec<Rule> {
    // One with a selector, if it is one without labels, is nobody's parent here, and is where it is attached.
    let parent = |namespace| set.of(namespace).iter().find(|o| o.selector.is_none() && !o.bare).map(|o| o.mode);
    let mesh_strict = parent(&set.root) == Some(Mode::Strict);
    let namespace = parent(&object.namespace);
    let unset = object.mode == Mode::Unset;
    // Whether a strict port is taken to be covered already: a strict mesh covers it whatever the workload's own mode.
    let covered = object.mode == Mode::Strict
        || (unset && namespace == Some(Mode::Strict))
        || (namespace.unwrap_or_default() == Mode::Unset && mesh_strict);
    // Whether all ports are strict but for some: a namespace's object without a mode hides the mesh's.
    let strict = object.mode == Mode::Strict || (unset && namespace.map_or(mesh_strict, |mode| mode == Mode::Strict));

    let ports_in = |modes: &'static [Mode]| {
        let ports = object.ports.iter().filter(|(_, mode)| modes.contains(mode));
        ports.map(|(port, _)| *port)
    };
    let mut rules = Vec::new();
    if !covered {
        rules.extend(ports_in(&[Mode::Strict]).map(plaintext_on));
    }
    let exempt = ports_in(&[Mode::Permissive, Mode::Disable]);
    if strict && exempt.clone().next().is_some() {
        rules.push(plaintext_except(exempt));
    }
    rules
}

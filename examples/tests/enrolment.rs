//! A mesh as a node's operator meets it: two real nodes (`ambient node`) in a cluster of namespaces, pods that a kubelet
//! starts, whoever says to the nodes who is who and what there is, and what is captured on the wire between the nodes.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test; what happens when, in several processes, is what is tested"
)]

#[path = "enrolment/another.rs"]
mod another;
#[path = "enrolment/asked.rs"]
mod asked;
#[path = "enrolment/attacks.rs"]
mod attacks;
#[path = "enrolment/away.rs"]
mod away;
#[path = "enrolment/chaos.rs"]
mod chaos;
#[path = "enrolment/crowd.rs"]
mod crowd;
#[path = "enrolment/families.rs"]
mod families;
#[path = "enrolment/ground.rs"]
mod ground;
#[path = "enrolment/handed_over.rs"]
mod handed_over;
#[path = "enrolment/identities.rs"]
mod identities;
#[path = "enrolment/judge.rs"]
mod judge;
#[path = "enrolment/kept.rs"]
mod kept;
#[path = "enrolment/needed.rs"]
mod needed;
#[path = "enrolment/peer.rs"]
mod peer;
#[path = "enrolment/probes.rs"]
mod probes;
#[path = "enrolment/restarted.rs"]
mod restarted;
#[path = "enrolment/roots.rs"]
mod roots;
#[path = "enrolment/unreadable.rs"]
mod unreadable;

use std::process::ExitCode;

use ambient_testkit::harness;

fn main() -> ExitCode {
    harness::main_with_actors(
        &[
            (
                "how_pods_stand_is_told_in_plain_words",
                asked::how_pods_stand_is_told_in_plain_words,
            ),
            (
                "the_kubelet_reaches_its_pods_and_nobody_gains_by_it",
                probes::the_kubelet_reaches_its_pods_and_nobody_gains_by_it,
            ),
            (
                "a_plugin_is_answered_once_its_pod_is_captured",
                handed_over::a_plugin_is_answered_once_its_pod_is_captured,
            ),
            (
                "an_enrolment_apart_takes_what_is_handed_over_and_tells_how_it_stands",
                handed_over::an_enrolment_apart_takes_what_is_handed_over_and_tells_how_it_stands,
            ),
            (
                "nothing_leaks_and_nobody_is_mistaken_in_a_storm",
                chaos::nothing_leaks_and_nobody_is_mistaken_in_a_storm,
            ),
            (
                "what_is_needed_is_asked_for_and_what_nobody_answers_is_refused",
                needed::what_is_needed_is_asked_for_and_what_nobody_answers_is_refused,
            ),
            ("what_a_killed_node_keeps_is_whole", kept::what_a_killed_node_keeps_is_whole),
            (
                "a_disk_without_room_stops_nothing_and_is_told",
                kept::a_disk_without_room_stops_nothing_and_is_told,
            ),
            ("a_mesh_of_ipv6_alone_is_a_mesh", families::a_mesh_of_ipv6_alone_is_a_mesh),
            (
                "a_mesh_where_ipv6_is_switched_off_is_a_mesh",
                families::a_mesh_where_ipv6_is_switched_off_is_a_mesh,
            ),
            (
                "a_crowd_of_connections_is_carried_and_leaves_nothing",
                crowd::a_crowd_of_connections_is_carried_and_leaves_nothing,
            ),
            (
                "a_crowd_from_outside_is_carried_and_leaves_nothing",
                crowd::a_crowd_from_outside_is_carried_and_leaves_nothing,
            ),
            ("a_node_that_is_told_twice_ends_now", attacks::a_node_that_is_told_twice_ends_now),
            ("a_start_is_ended_at_any_moment", attacks::a_start_is_ended_at_any_moment),
            (
                "a_second_process_says_that_there_is_one",
                attacks::a_second_process_says_that_there_is_one,
            ),
            (
                "a_mesh_that_vanishes_is_gone_by_until_it_is_back",
                attacks::a_mesh_that_vanishes_is_gone_by_until_it_is_back,
            ),
            ("without_a_log_everything_goes_on", attacks::without_a_log_everything_goes_on),
            (
                "with_few_descriptors_it_says_so_and_never_spins",
                attacks::with_few_descriptors_it_says_so_and_never_spins,
            ),
            (
                "what_an_earlier_process_announced_is_known_from_control",
                restarted::what_an_earlier_process_announced_is_known_from_control,
            ),
            (
                "what_control_has_lost_of_captures_is_told_again",
                restarted::what_control_has_lost_of_captures_is_told_again,
            ),
            (
                "spire_says_who_is_who_on_both_nodes",
                identities::spire_says_who_is_who_on_both_nodes,
            ),
            (
                "nodes_are_started_anew_while_spire_is_away",
                away::nodes_are_started_anew_while_spire_is_away,
            ),
            (
                "a_node_beside_that_of_another_proxy_is_one_mesh_with_it",
                another::a_node_beside_that_of_another_proxy_is_one_mesh_with_it,
            ),
            (
                "a_node_beside_that_of_a_proxy_apart_is_one_mesh_with_it",
                another::a_node_beside_that_of_a_proxy_apart_is_one_mesh_with_it,
            ),
            (
                "a_root_changes_under_traffic_and_the_old_one_is_good_for_nothing",
                roots::a_root_changes_under_traffic_and_the_old_one_is_good_for_nothing,
            ),
            (
                "what_control_cannot_read_refuses_on_every_node_and_is_taken_back",
                unreadable::what_control_cannot_read_refuses_on_every_node_and_is_taken_back,
            ),
            (
                "an_identity_that_is_revoked_is_told_by_every_page",
                unreadable::an_identity_that_is_revoked_is_told_by_every_page,
            ),
        ],
        &[("peer", peer::main), ("resolve", families::resolve), ("crowd", crowd::main)],
    )
}

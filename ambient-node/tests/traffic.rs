//! Connections through a node that runs: real namespaces, real rules, real packets.
#![allow(clippy::unwrap_used, reason = "a test; what clippy.toml allows it in has a harness")]
#![allow(clippy::disallowed_methods, reason = "deadlines of real time")]

#[path = "traffic/admin.rs"]
mod admin;
#[path = "traffic/bounds.rs"]
mod bounds;
#[path = "traffic/ends.rs"]
mod ends;
#[path = "traffic/envoy.rs"]
mod envoy;
#[path = "traffic/identities.rs"]
mod identities;
#[path = "traffic/istiod.rs"]
mod istiod;
#[path = "traffic/leave.rs"]
mod leave;
#[path = "support/mesh.rs"]
mod mesh;
#[path = "traffic/names.rs"]
mod names;
#[path = "traffic/peers.rs"]
mod peers;
#[path = "traffic/refusals.rs"]
mod refusals;
#[path = "traffic/soak.rs"]
mod soak;
#[path = "traffic/stop.rs"]
mod stop;
#[path = "traffic/strain.rs"]
mod strain;
#[path = "traffic/successor.rs"]
mod successor;
#[path = "traffic/telemetry.rs"]
mod telemetry;
#[path = "traffic/told.rs"]
mod told;
#[path = "traffic/ways.rs"]
mod ways;

use std::process::ExitCode;

use ambient_testkit::harness::{self, Test};

fn main() -> ExitCode {
    harness::main_with_actors(TESTS, &[("node", successor::node)])
}

const TESTS: &[Test] = &[
    ("both_ways_at_once_nothing_is_lost", ends::both_ways_at_once_nothing_is_lost),
    ("who_writes_twice_is_not_kept_waiting", ends::who_writes_twice_is_not_kept_waiting),
    ("each_end_may_finish_first", ends::each_end_may_finish_first),
    ("a_reset_arrives_as_a_reset", ends::a_reset_arrives_as_a_reset),
    (
        "what_is_cut_short_never_looks_complete",
        ends::what_is_cut_short_never_looks_complete,
    ),
    ("applications_see_the_client", ends::applications_see_the_client),
    (
        "a_refusal_by_policy_is_an_empty_reply",
        refusals::a_refusal_by_policy_is_an_empty_reply,
    ),
    ("where_nobody_listens_is_a_reset", refusals::where_nobody_listens_is_a_reset),
    ("a_new_policy_cuts_what_is_open", refusals::a_new_policy_cuts_what_is_open),
    ("peers_are_answered_by_status", peers::peers_are_answered_by_status),
    (
        "what_peers_write_is_believed_by_nobody",
        peers::what_peers_write_is_believed_by_nobody,
    ),
    (
        "who_comes_through_a_gateway_is_looked_up",
        peers::who_comes_through_a_gateway_is_looked_up,
    ),
    ("peers_of_another_ca_are_refused", peers::peers_of_another_ca_are_refused),
    (
        "who_is_gone_while_its_peer_is_asked_for_is_unknown",
        peers::who_is_gone_while_its_peer_is_asked_for_is_unknown,
    ),
    ("what_is_no_connect_is_told_of", peers::what_is_no_connect_is_told_of),
    (
        "without_post_quantum_keys_there_is_no_tunnel",
        peers::without_post_quantum_keys_there_is_no_tunnel,
    ),
    ("a_peer_that_is_revoked_is_cut", peers::a_peer_that_is_revoked_is_cut),
    (
        "a_peer_that_the_source_says_is_revoked_is_cut",
        peers::a_peer_that_the_source_says_is_revoked_is_cut,
    ),
    ("a_greedy_client_is_bounded", bounds::a_greedy_client_is_bounded),
    ("a_crowded_server_is_bounded", bounds::a_crowded_server_is_bounded),
    (
        "who_breaks_off_before_an_answer_is_told_as_who_broke_off",
        telemetry::who_breaks_off_before_an_answer_is_told_as_who_broke_off,
    ),
    (
        "who_is_another_while_it_connects_is_told_of_once",
        telemetry::who_is_another_while_it_connects_is_told_of_once,
    ),
    (
        "where_there_is_no_way_it_is_told_to_what",
        telemetry::where_there_is_no_way_it_is_told_to_what,
    ),
    (
        "metrics_are_called_what_the_client_reads",
        telemetry::metrics_are_called_what_the_client_reads,
    ),
    ("metrics_have_the_bytes", telemetry::metrics_have_the_bytes),
    (
        "a_port_says_which_service_was_meant",
        telemetry::a_port_says_which_service_was_meant,
    ),
    (
        "who_calls_the_proxy_itself_is_counted_for_no_pod",
        telemetry::who_calls_the_proxy_itself_is_counted_for_no_pod,
    ),
    (
        "opened_and_closed_have_the_same_labels",
        telemetry::opened_and_closed_have_the_same_labels,
    ),
    (
        "what_is_open_is_counted_as_it_is_carried",
        telemetry::what_is_open_is_counted_as_it_is_carried,
    ),
    ("readiness_names_what_is_wrong", telemetry::readiness_names_what_is_wrong),
    (
        "a_policy_that_breaks_keeps_its_last_good_version",
        telemetry::a_policy_that_breaks_keeps_its_last_good_version,
    ),
    (
        "what_could_never_be_read_is_let_go_where_asked",
        telemetry::what_could_never_be_read_is_let_go_where_asked,
    ),
    (
        "a_node_that_is_exactly_istio_lets_it_go_too",
        telemetry::a_node_that_is_exactly_istio_lets_it_go_too,
    ),
    (
        "a_broken_manifest_leaves_alone_what_is_open",
        telemetry::a_broken_manifest_leaves_alone_what_is_open,
    ),
    (
        "what_a_pod_that_leaves_has_open_goes_on",
        leave::what_a_pod_that_leaves_has_open_goes_on,
    ),
    (
        "what_is_long_and_what_is_idle_goes_on_as_pods_join_and_leave",
        leave::what_is_long_and_what_is_idle_goes_on_as_pods_join_and_leave,
    ),
    (
        "what_a_pod_that_leaves_had_goes_in_its_order",
        leave::what_a_pod_that_leaves_had_goes_in_its_order,
    ),
    ("what_was_kept_is_closed_by_policy", leave::what_was_kept_is_closed_by_policy),
    (
        "what_a_pod_keeps_to_another_is_closed_at_the_others_side",
        leave::what_a_pod_keeps_to_another_is_closed_at_the_others_side,
    ),
    ("a_pod_that_leaves_is_cut_in_the_end", leave::a_pod_that_leaves_is_cut_in_the_end),
    (
        "a_pod_that_is_back_before_it_left_is_served",
        leave::a_pod_that_is_back_before_it_left_is_served,
    ),
    ("queries_come_to_whom_they_were_sent", names::queries_come_to_whom_they_were_sent),
    (
        "names_of_the_mesh_are_answered_by_the_node",
        names::names_of_the_mesh_are_answered_by_the_node,
    ),
    (
        "where_no_nameserver_is_the_client_learns_it",
        names::where_no_nameserver_is_the_client_learns_it,
    ),
    (
        "who_asks_the_node_itself_is_answered_by_the_usual_nameservers",
        names::who_asks_the_node_itself_is_answered_by_the_usual_nameservers,
    ),
    (
        "a_waypoint_is_told_who_speaks_and_to_whom",
        ways::a_waypoint_is_told_who_speaks_and_to_whom,
    ),
    (
        "another_endpoint_takes_what_one_cannot",
        ways::another_endpoint_takes_what_one_cannot,
    ),
    (
        "another_network_is_reached_by_a_tunnel_in_a_tunnel",
        ways::another_network_is_reached_by_a_tunnel_in_a_tunnel,
    ),
    (
        "an_endpoint_with_a_name_alone_is_reached",
        ways::an_endpoint_with_a_name_alone_is_reached,
    ),
    (
        "what_is_explained_is_found_out_where_connections_find_out",
        ways::what_is_explained_is_found_out_where_connections_find_out,
    ),
    (
        "within_the_process_all_is_as_on_the_wire",
        ways::within_the_process_all_is_as_on_the_wire,
    ),
    ("envoy_is_a_waypoint_by_every_name", envoy::envoy_is_a_waypoint_by_every_name),
    ("envoy_is_a_waypoint_behind_the_node", envoy::envoy_is_a_waypoint_behind_the_node),
    ("envoy_is_the_gateway_of_a_network", envoy::envoy_is_the_gateway_of_a_network),
    (
        "a_restart_goes_on_while_the_authority_is_away_though_no_uid_is_told",
        istiod::a_restart_goes_on_while_the_authority_is_away_though_no_uid_is_told,
    ),
    ("an_agent_of_others_is_obeyed", told::an_agent_of_others_is_obeyed),
    (
        "the_pod_of_the_proxy_itself_takes_tunnels",
        told::the_pod_of_the_proxy_itself_takes_tunnels,
    ),
    ("spire_says_who_is_who", identities::spire_says_who_is_who),
    ("a_node_that_stops_drains", stop::a_node_that_stops_drains),
    ("an_idle_node_stops_at_once", stop::an_idle_node_stops_at_once),
    (
        "who_is_about_to_come_is_served_to_the_end",
        peers::who_is_about_to_come_is_served_to_the_end,
    ),
    ("the_dump_is_what_istioctl_reads", admin::the_dump_is_what_istioctl_reads),
    (
        "a_port_that_two_connections_have_is_told_of_once",
        admin::a_port_that_two_connections_have_is_told_of_once,
    ),
    (
        "the_dump_tells_where_what_came_is_delivered",
        admin::the_dump_tells_where_what_came_is_delivered,
    ),
    (
        "what_changes_the_node_takes_post_alone",
        admin::what_changes_the_node_takes_post_alone,
    ),
    (
        "who_says_nothing_keeps_nobody_from_a_page",
        admin::who_says_nothing_keeps_nobody_from_a_page,
    ),
    (
        "a_connection_is_explained_as_it_is_decided",
        admin::a_connection_is_explained_as_it_is_decided,
    ),
    ("how_pods_stand_is_told", admin::how_pods_stand_is_told),
    ("who_ends_an_idle_node_is_answered", admin::who_ends_an_idle_node_is_answered),
    ("a_node_that_is_to_end_at_once_does", admin::a_node_that_is_to_end_at_once_does),
    (
        "a_successor_takes_over_and_nobody_is_refused",
        successor::a_successor_takes_over_and_nobody_is_refused,
    ),
    (
        "a_successor_that_is_taken_back_leaves_all_to_the_first",
        successor::a_successor_that_is_taken_back_leaves_all_to_the_first,
    ),
    (
        "a_log_that_nobody_reads_stalls_nobody",
        strain::a_log_that_nobody_reads_stalls_nobody,
    ),
    ("a_full_disk_stops_no_traffic", strain::a_full_disk_stops_no_traffic),
    (
        "without_descriptors_it_waits_and_goes_on",
        strain::without_descriptors_it_waits_and_goes_on,
    ),
    ("nothing_is_lost_and_nothing_is_kept", soak::nothing_is_lost_and_nothing_is_kept),
    (
        "a_pod_that_ends_is_drained_from_the_start",
        leave::a_pod_that_ends_is_drained_from_the_start,
    ),
];

//! What pods ask of their capture, how their namespaces are found, and what their node sends them: real namespaces, real
//! packets.
#![allow(clippy::unwrap_used, reason = "a test; what clippy.toml allows it in has a harness")]

#[path = "support/asked.rs"]
mod asked;
#[path = "support/claims.rs"]
mod claims;
#[path = "support/found.rs"]
mod found;
#[path = "support/heard.rs"]
mod heard;
#[path = "support/mesh.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod mesh;
#[path = "support/names.rs"]
mod names;
#[path = "support/node.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod node;
#[path = "support/oracle.rs"]
mod oracle;
#[path = "support/probed.rs"]
mod probed;
#[path = "support/rights.rs"]
mod rights;

use std::{
    io::{self, Write},
    net::TcpListener,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use ambient_redirect::linux::Netns;
use ambient_testkit::harness;
use heard::{ask, exchange};
use tokio::time::sleep;

fn main() -> ExitCode {
    harness::main(&[
        (
            "what_a_pod_asks_is_followed_while_it_runs",
            asked::what_a_pod_asks_is_followed_while_it_runs,
        ),
        (
            "what_was_left_alone_is_open_before_its_capture",
            asked::what_was_left_alone_is_open_before_its_capture,
        ),
        (
            "who_goes_on_asking_is_captured_as_well",
            asked::who_goes_on_asking_is_captured_as_well,
        ),
        (
            "what_is_not_captured_after_all_is_not_kept",
            asked::what_is_not_captured_after_all_is_not_kept,
        ),
        (
            "the_nodes_own_processes_reach_its_pods_and_nobody_else_does",
            probed::the_nodes_own_processes_reach_its_pods_and_nobody_else_does,
        ),
        (
            "what_is_printed_is_what_is_put_in_force",
            oracle::what_is_printed_is_what_is_put_in_force,
        ),
        ("a_dry_run_says_what_would_change", oracle::a_dry_run_says_what_would_change),
        ("what_is_broken_of_it_is_mended", probed::what_is_broken_of_it_is_mended),
        (
            "namespaces_are_found_by_the_processes_in_them",
            found::namespaces_are_found_by_the_processes_in_them,
        ),
        (
            "a_process_that_has_left_its_namespace_does_not_stand_for_it",
            found::a_process_that_has_left_its_namespace_does_not_stand_for_it,
        ),
        (
            "whoever_has_claimed_an_address_before_its_pod_does_not_become_that_pod",
            claims::whoever_has_claimed_an_address_before_its_pod_does_not_become_that_pod,
        ),
        (
            "what_is_more_than_is_read_is_told_and_holds_up_no_other",
            claims::what_is_more_than_is_read_is_told_and_holds_up_no_other,
        ),
        (
            "processes_that_are_hidden_are_told_of",
            found::processes_that_are_hidden_are_told_of,
        ),
        (
            "what_is_said_to_be_a_pods_is_made_sure_of",
            found::what_is_said_to_be_a_pods_is_made_sure_of,
        ),
        (
            "a_process_that_loses_a_right_says_so_and_lets_nothing_by",
            rights::a_process_that_loses_a_right_says_so_and_lets_nothing_by,
        ),
        ("a_name_is_not_the_namespace", names::a_name_is_not_the_namespace),
        (
            "names_that_are_all_gone_at_once_are_not_believed",
            names::names_that_are_all_gone_at_once_are_not_believed,
        ),
        (
            "a_name_that_leads_nowhere_hides_no_other",
            names::a_name_that_leads_nowhere_hides_no_other,
        ),
        (
            "what_cannot_be_read_is_told_and_hides_no_other",
            names::what_cannot_be_read_is_told_and_hides_no_other,
        ),
        ("a_strangers_table_is_left_alone", probed::a_strangers_table_is_left_alone),
    ])
}

/// Asks until the answer is as wanted, for five seconds.
async fn ask_until(from: &Arc<Netns>, to: &str, wanted: &str) {
    let mut heard = Err(io::ErrorKind::NotConnected.into());
    for _ in 0..250 {
        heard = ask(from, to).await;
        if heard.as_deref().is_ok_and(|heard| heard == wanted) {
            return;
        }
        sleep(Duration::from_millis(20)).await;
    }
    panic!("{to}: {heard:?} and not {wanted:?}");
}

/// An application that says from where it is called.
fn application(at: &Arc<Netns>, port: u16) {
    let listener = at.run(|| TcpListener::bind(("::", port)).unwrap()).unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            if let Ok(peer) = stream.peer_addr() {
                let _ = stream.write_all(format!("app called by {}", peer.ip().to_canonical()).as_bytes());
            }
        }
    });
}

//! Sessions in containers, by real engines. `make test-engines` runs them with processes
//! and a network of their own (`tests/setup/alone.sh`), so that nothing is left of those.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "a test that cannot go on has failed"
)]

#[expect(dead_code, reason = "a server that moves needs more")]
#[path = "../faults/client.rs"]
mod client;
mod engine;
mod faults;
#[expect(dead_code, reason = "tests of plain processes need more")]
#[path = "../e2e/harness.rs"]
mod harness;
#[expect(dead_code, reason = "tests of plain processes need more")]
#[path = "../agent/host.rs"]
mod host;
mod image;
mod kubernetes;
#[expect(dead_code, reason = "storms of other engines need more")]
#[path = "../faults/ledger.rs"]
mod ledger;
#[expect(dead_code, reason = "tests of the store need more")]
#[path = "../postgres/cluster.rs"]
mod postgres;
mod pulls;
mod registry;
mod seen;
mod slurm;
mod stories;
mod storm;

/// Where engines that are started here keep what they have.
fn scratch() -> &'static std::path::Path {
    std::path::Path::new(env!("CARGO_TARGET_TMPDIR"))
}

/// The same for each engine.
macro_rules! with_each_engine {
    ($($story:ident: $room:ident,)*) => {
        mod docker {
            $(#[tokio::test]
            async fn $story() {
                super::$room::$story(super::engine::docker()).await;
            })*
        }

        mod podman {
            $(#[tokio::test]
            async fn $story() {
                super::$room::$story(super::engine::podman()).await;
            })*
        }
    };
}

with_each_engine! {
    an_app_in_an_image_is_reached_by_its_url_and_ends_when_it_is_told_to: stories,
    its_log_is_complete_and_in_order: stories,
    it_has_no_privileges_but_those_named: stories,
    nothing_can_be_written_in_a_read_only_root_but_files_and_tmp: stories,
    it_reaches_out_but_neither_the_hosts_loopback_nor_other_sessions: stories,
    an_app_that_takes_too_much_memory_ends_with_a_sentence: stories,
    a_fork_bomb_is_held_by_the_limit_on_processes: stories,
    busy_apps_get_no_more_of_a_core_than_they_may: stories,
    what_it_writes_is_limited_or_its_log_says_that_it_is_not: stories,
    the_doctor_says_what_the_engine_can: stories,
    an_image_that_is_missing_or_of_another_architecture_ends_with_a_sentence: stories,
    a_program_that_is_not_in_the_image_ends_with_a_sentence: stories,
    a_snapshot_is_a_version_that_runs_what_the_session_had_become: stories,
    jupyterlab_in_an_image_computes: stories,
    a_server_that_is_killed_finds_its_containers_again: stories,
    what_is_left_in_the_engine_of_a_session_that_is_not_open_is_swept: stories,
    a_pull_says_how_far_it_is: pulls,
    a_pull_that_stalls_ends_with_its_limit_and_one_that_nobody_wants_at_once: pulls,
    a_registry_that_goes_in_the_midst_ends_with_a_sentence: pulls,
    an_image_store_that_is_full_ends_with_a_sentence_until_there_is_room: pulls,
    an_engine_that_ends_its_containers_as_it_goes_ends_their_sessions_with_a_sentence: pulls,
    time_is_up_with_no_server_at_all: faults,
    an_extension_is_kept: faults,
    an_app_that_exits_ends_with_its_status_and_last_words: faults,
    an_agent_that_is_killed_takes_its_container_along: faults,
    a_container_whose_agent_is_paused_ends_on_time_and_is_billed_to_its_end: faults,
    a_container_whose_keeper_is_killed_or_paused_ends: faults,
    a_container_whose_keeper_and_agent_are_told_to_go_ends_with_a_sentence: faults,
    what_is_left_when_agent_and_keeper_are_killed_at_once_is_ended_by_the_next: faults,
    a_container_that_somebody_removes_ends_its_session_with_a_sentence: faults,
    a_container_that_somebody_pauses_ends_on_time: faults,
    an_engine_that_is_killed_and_comes_back_loses_no_session_and_no_line: faults,
    time_is_up_with_the_engine_gone: faults,
    an_agent_that_dies_while_its_container_is_started_leaves_nothing: faults,
}

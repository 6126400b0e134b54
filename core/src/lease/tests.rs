//! What the lease promises, one example each.

use super::*;
use std::net::Ipv4Addr;

const TERMS: Terms = Terms {
    granted_ms: Millis(60_000),
    start_limit_ms: Millis(10_000),
    grace_ms: Millis(5_000),
    timeout_grace_ms: Millis(800),
};

fn upstream() -> Upstream {
    Upstream::Direct((Ipv4Addr::LOCALHOST, 9).into())
}

fn running_since(ready_at: u64) -> Lease {
    let mut lease = Lease::new(TERMS, Monotonic(0));
    lease.app_answered(upstream(), Monotonic(ready_at));
    while lease.next_command().is_some() {}
    lease
}

fn commands(lease: &mut Lease) -> Vec<Command> {
    std::iter::from_fn(|| lease.next_command()).collect()
}

fn ending(lease: &Lease) -> Ending {
    match lease.status(Monotonic(u64::MAX)).phase {
        AgentPhase::Stopping { ending, .. } | AgentPhase::Ended { ending, .. } => ending,
        phase @ (AgentPhase::Asks { .. } | AgentPhase::Starting | AgentPhase::Running { .. }) => {
            panic!("still {phase:?}")
        }
    }
}

#[test]
fn a_cold_start_does_not_eat_the_users_time() {
    assert_eq!(running_since(9_000).deadline(), Some(Monotonic(69_000)));
}

#[test]
fn time_up_means_term_then_kill_then_gone() {
    let mut lease = running_since(0);
    lease.advance(Monotonic(59_999));
    assert_eq!(commands(&mut lease), []);
    lease.advance(Monotonic(60_000));
    assert_eq!(
        commands(&mut lease),
        [Command::TerminateTree, Command::Report]
    );
    lease.advance(Monotonic(60_800));
    assert_eq!(commands(&mut lease), [Command::KillTree]);
    lease.tree_gone(Monotonic(60_801));
    assert!(lease.is_over());
    assert_eq!(ending(&lease).reason, EndReason::TimedOut);
    assert_eq!(lease.status(Monotonic(99_999)).held_ms, Millis(60_801));
}

#[test]
fn an_agent_that_was_paused_at_the_last_moment_gives_no_more_grace() {
    let mut lease = running_since(0);
    lease.advance(Monotonic(60_700));
    assert_eq!(lease.deadline(), Some(Monotonic(60_800)));
    let mut never_answered = Lease::new(TERMS, Monotonic(0));
    never_answered.advance(Monotonic(10_700));
    assert_eq!(never_answered.deadline(), Some(Monotonic(10_800)));
}

#[test]
fn an_agent_that_was_paused_past_the_grace_kills_at_once() {
    let mut lease = running_since(0);
    lease.advance(Monotonic(3_600_000));
    assert_eq!(
        commands(&mut lease),
        [Command::TerminateTree, Command::Report, Command::KillTree]
    );
    assert_eq!(ending(&lease).reason, EndReason::TimedOut);
}

#[test]
fn nothing_said_later_can_un_end_a_session() {
    let mut lease = running_since(0);
    // The timer has not fired, and the word comes in a moment too late.
    lease.heard(
        &ServerMessage::Lease {
            granted_ms: Millis(600_000),
        },
        Monotonic(60_000),
    );
    assert_eq!(ending(&lease).reason, EndReason::TimedOut);
    lease.heard(
        &ServerMessage::Lease {
            granted_ms: Millis(700_000),
        },
        Monotonic(60_001),
    );
    lease.app_answered(upstream(), Monotonic(60_002));
    lease.heard(
        &ServerMessage::Stop {
            ending: Ending::plain(EndReason::Cancelled),
        },
        Monotonic(60_003),
    );
    assert_eq!(ending(&lease).reason, EndReason::TimedOut);
    assert_eq!(lease.deadline(), Some(Monotonic(60_800)));
}

#[test]
fn what_comes_after_the_last_moment_comes_too_late_though_no_timer_has_fired() {
    let mut stopped = running_since(0);
    let ending_late = Ending::plain(EndReason::Cancelled);
    let stop = ServerMessage::Stop {
        ending: ending_late,
    };
    stopped.heard(&stop, Monotonic(60_000));
    assert_eq!(ending(&stopped).reason, EndReason::TimedOut);
    assert_eq!(stopped.deadline(), Some(Monotonic(60_800)));
    let mut answers = Lease::new(TERMS, Monotonic(0));
    answers.app_answered(upstream(), Monotonic(10_000));
    assert_eq!(ending(&answers).reason, EndReason::Failed);
}

#[test]
fn a_late_lease_never_shortens_a_newer_one() {
    let mut lease = running_since(0);
    lease.heard(
        &ServerMessage::Lease {
            granted_ms: Millis(120_000),
        },
        Monotonic(1),
    );
    lease.heard(
        &ServerMessage::Lease {
            granted_ms: Millis(90_000),
        },
        Monotonic(2),
    );
    assert_eq!(lease.deadline(), Some(Monotonic(120_000)));
}

#[test]
fn fetching_has_a_limit_of_its_own_and_takes_nothing_from_the_apps() {
    let fetching = || {
        let mut lease = Lease::new(TERMS, Monotonic(0));
        lease.prepares_within(Millis(90_000));
        lease
    };
    let mut in_time = fetching();
    assert_eq!(in_time.kill_at_latest(), Some(Monotonic(90_900)));
    in_time.prepared(Monotonic(80_000));
    assert_eq!(in_time.deadline(), Some(Monotonic(90_000)));
    in_time.app_answered(upstream(), Monotonic(85_000));
    assert_eq!(in_time.deadline(), Some(Monotonic(145_000)));
    let mut late = fetching();
    late.prepared(Monotonic(90_001));
    let sentence = "What the app needs was not fetched within 1 min 30 s";
    assert_eq!(ending(&late).error.as_deref(), Some(sentence));
    assert!(!late.goes_on());
}

#[test]
fn an_app_that_never_answers_fails_with_a_sentence() {
    let mut lease = Lease::new(TERMS, Monotonic(0));
    lease.advance(Monotonic(10_000));
    assert_eq!(
        ending(&lease),
        Ending::failed("The app did not answer on its port within 10 s".into())
    );
}

#[test]
fn whoever_watches_over_a_paused_agent_knows_when_to_act() {
    let mut lease = Lease::new(TERMS, Monotonic(0));
    assert_eq!(lease.kill_at_latest(), Some(Monotonic(10_900)));
    lease.app_answered(upstream(), Monotonic(1_000));
    assert_eq!(lease.kill_at_latest(), Some(Monotonic(61_900)));
    lease.advance(Monotonic(61_000));
    assert_eq!(lease.kill_at_latest(), Some(Monotonic(61_900)));
    let mut extended = running_since(0);
    let granted_ms = Millis(90_000);
    extended.heard(&ServerMessage::Lease { granted_ms }, Monotonic(7));
    assert_eq!(extended.kill_at_latest(), Some(Monotonic(90_900)));
    let ending = Ending::plain(EndReason::Cancelled);
    let mut stopped = running_since(0);
    stopped.heard(&ServerMessage::Stop { ending }, Monotonic(7));
    assert_eq!(stopped.kill_at_latest(), Some(Monotonic(5_107)));
}

#[test]
fn what_was_ended_for_a_paused_agent_is_billed_to_when_it_was_gone() {
    let mut lease = running_since(0);
    lease.ended_by_watch(Monotonic(60_905));
    // It learns of it an hour later.
    let status = lease.status(Monotonic(3_600_000));
    assert_eq!(status.held_ms, Millis(60_905));
    assert_eq!(ending(&lease).reason, EndReason::TimedOut);
    assert!(lease.is_over());
}

#[test]
fn an_agent_paused_while_its_tree_goes_bills_no_more_than_it_saw() {
    let killed_at_5 = || {
        let mut lease = running_since(0);
        lease.app_exited(Exit::Status(0), None, Monotonic(5));
        lease
    };
    let held = |lease: &Lease| lease.status(Monotonic(3_600_000)).held_ms;
    let mut in_time = killed_at_5();
    in_time.tree_gone(Monotonic(505));
    assert_eq!(held(&in_time), Millis(505));
    let mut late = killed_at_5();
    late.tree_gone(Monotonic(3_600_000));
    assert_eq!(held(&late), Millis(5));
    // Whoever killed it in the agent's place knows when.
    let mut watched = killed_at_5();
    watched.ended_by_watch(Monotonic(700));
    assert_eq!(held(&watched), Millis(700));
}

#[test]
fn an_app_that_cannot_be_started_ends_with_its_sentence_and_one_that_was_does_not() {
    let mut lease = Lease::new(TERMS, Monotonic(0));
    commands(&mut lease);
    lease.app_not_started("There is no such program", Monotonic(3));
    assert_eq!(commands(&mut lease), [Command::KillTree, Command::Report]);
    assert_eq!(
        ending(&lease),
        Ending::failed("There is no such program".into())
    );
    let mut runs = running_since(0);
    runs.app_not_started("There is no such program", Monotonic(3));
    assert_eq!(commands(&mut runs), []);
}

#[test]
fn the_end_tells_for_how_long_the_app_had_answered() {
    let running_ms = |lease: &Lease| match lease.status(Monotonic(99_999)).phase {
        AgentPhase::Stopping { running_ms, .. } | AgentPhase::Ended { running_ms, .. } => {
            running_ms
        }
        phase @ (AgentPhase::Asks { .. } | AgentPhase::Starting | AgentPhase::Running { .. }) => {
            panic!("still {phase:?}")
        }
    };
    let mut lease = running_since(1_000);
    lease.app_exited(Exit::Status(0), None, Monotonic(8_000));
    assert_eq!(running_ms(&lease), Some(Millis(7_000)));
    lease.tree_gone(Monotonic(8_001));
    assert_eq!(running_ms(&lease), Some(Millis(7_000)));
    let mut never_answered = Lease::new(TERMS, Monotonic(0));
    never_answered.advance(Monotonic(10_000));
    assert_eq!(running_ms(&never_answered), None);
}

#[test]
fn a_lease_that_is_told_again_is_no_news() {
    let mut lease = running_since(0);
    let granted_ms = TERMS.granted_ms;
    lease.heard(&ServerMessage::Lease { granted_ms }, Monotonic(1));
    assert_eq!(commands(&mut lease), []);
}

#[test]
fn an_exit_kills_what_the_app_left_behind() {
    let mut lease = running_since(0);
    lease.app_exited(Exit::Status(3), Some("out of cheese"), Monotonic(5));
    assert_eq!(commands(&mut lease), [Command::KillTree, Command::Report]);
    assert!(!lease.is_over());
    assert_eq!(
        ending(&lease),
        Ending {
            reason: EndReason::Exited,
            error: Some("The app exited with status 3: out of cheese".into())
        }
    );
}

#[test]
fn a_tree_that_outlives_its_kill_is_killed_again() {
    let mut lease = running_since(0);
    lease.app_exited(Exit::Signal(9), None, Monotonic(0));
    commands(&mut lease);
    lease.advance(Monotonic(500));
    assert_eq!(commands(&mut lease), [Command::KillTree]);
    lease.advance(Monotonic(1_000));
    assert_eq!(commands(&mut lease), [Command::KillTree]);
}

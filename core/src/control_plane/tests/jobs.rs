//! What is promised of sessions in jobs of a cluster's engine.

use super::*;
use crate::job::{Cluster, JobState, Jobs, Offer};
use crate::session::Place;

/// How often the engine is asked for all jobs.
const LOOK_EVERY: Millis = Millis(5_000);

/// All that an agent may take: its start limit, 15 minutes, and its grace.
const LONGEST_LEASE: Millis = Millis(10 * 60_000 + 15 * 60_000 + 10_000);
/// What the engine leaves an agent beyond that.
const SPARE: Millis = Millis(60_000);

fn slurm() -> LauncherName {
    LauncherName("slurm".into())
}

fn cluster() -> Cluster {
    Cluster {
        name: slurm(),
        gpu_types: BTreeSet::from([GpuType("A10G".into())]),
        jobs_max: None,
        runs_images: false,
        moves_time_limits: true,
    }
}

fn settings_of(gpus: u32, offers: &[Offer]) -> Settings {
    Settings {
        places: Places {
            offers: offers.to_vec(),
            ..settings(gpus).places
        },
        ..settings(gpus)
    }
}

/// A server without GPUs of its own, but with this cluster.
fn world_with(cluster: Cluster) -> World {
    world_of(
        0,
        &[Offer::Host { runs_images: false }, Offer::Cluster(cluster)],
    )
}

fn world_of(gpus: u32, offers: &[Offer]) -> World {
    let mut world = World::new(gpus);
    world.restart_with(settings_of(gpus, offers));
    world
}

fn job(id: &str, state: JobState, words: &str) -> JobStatus {
    JobStatus {
        id: JobId(id.into()),
        state,
        words: words.into(),
        starts_at: None,
        time_limit: Some(LONGEST_LEASE.plus(SPARE)),
    }
}

fn pending() -> JobStatus {
    job("7", JobState::Pending, "PENDING (Resources)")
}

fn runs() -> JobStatus {
    job("7", JobState::Running, "RUNNING")
}

fn failed() -> JobStatus {
    job("7", JobState::Ended, "NODE_FAIL")
}

impl World {
    /// The engine is asked now and answers at once; all its jobs are session 1's.
    fn look(&mut self, jobs: &[JobStatus]) -> Vec<Command> {
        let jobs: Vec<_> = jobs.iter().map(|job| (1, job.clone())).collect();
        self.look_at(&jobs, self.ms)
    }

    /// The same, later.
    fn look_after(&mut self, span: Millis, jobs: &[JobStatus]) -> Vec<Command> {
        let mut commands = self.after(span);
        commands.extend(self.look(jobs));
        commands
    }

    /// The engine was asked at `asked_at_ms`, and its answer comes now.
    fn look_at(&mut self, jobs: &[(u128, JobStatus)], asked_at_ms: u64) -> Vec<Command> {
        let jobs = jobs
            .iter()
            .map(|(session, job)| (id(*session), job.clone()));
        let (jobs, asked_at) = (Jobs(jobs.collect()), Monotonic(asked_at_ms));
        self.plane.jobs_are(&slurm(), &jobs, asked_at, self.now());
        self.commit()
    }

    /// Session 1, whose job waits.
    fn create_pending(&mut self) {
        self.create_plain(1);
        self.submitted(&pending());
    }

    fn submitted(&mut self, job: &JobStatus) -> Vec<Command> {
        self.launched(1, LaunchOutcome::Submitted(job.clone()));
        self.commit()
    }

    /// Session 1, whose job and app run.
    fn create_running_job(&mut self) {
        self.create_pending();
        self.look(&[runs()]);
        self.heard(1, &running(4_000, 0, 15));
    }

    /// Its agent speaks and the engine is asked, for so long.
    fn goes_on(&mut self, span: Millis, jobs: &[JobStatus]) {
        let held = self.stored(1).gpu_event.held().0;
        for passed in (0..=span.0).step_by(10_000) {
            self.heard(1, &running(held + passed, passed, 15));
            self.look(jobs);
            self.after(Millis(10_000));
        }
    }

    fn cancel(&mut self) -> Vec<Command> {
        let owner = alice().owner();
        self.plane
            .cancel_session(&owner, id(1), self.now())
            .unwrap();
        self.commit()
    }

    fn job(&self) -> &crate::job::Job {
        self.stored(1).job.as_ref().unwrap()
    }

    fn error(&self) -> &str {
        match &self.stored(1).state {
            State::Ended { ending, .. } => ending.error.as_deref().unwrap(),
            state => panic!("not ended but {state:?}"),
        }
    }
}

fn cancelled(commands: &[Command]) -> Vec<&str> {
    fn of(command: &Command) -> Option<&str> {
        match command {
            Command::CancelJob { launcher, job, .. } if *launcher == slurm() => Some(&job.0),
            _ => None,
        }
    }
    commands.iter().filter_map(of).collect()
}

fn limited(commands: &[Command]) -> Vec<Millis> {
    let of = |command: &Command| match command {
        Command::LimitJob { time_limit, .. } => Some(*time_limit),
        _ => None,
    };
    commands.iter().filter_map(of).collect()
}

fn launch(commands: &[Command]) -> &Launch {
    match commands {
        [Command::Launch(launch)] => launch,
        commands => panic!("not one launch but {commands:?}"),
    }
}

// --- Waiting ----------------------------------------------------------------

#[test]
fn a_job_that_waits_for_hours_loses_nothing_and_uses_no_time() {
    let mut world = world_with(cluster());
    world.create_pending();
    let day = Millis::from_minutes(24 * 60);
    for _ in 0..day.0 / 60_000 {
        assert_eq!(world.look_after(Millis(60_000), &[pending()]), []);
    }
    assert!(matches!(world.stored(1).state, State::Starting { .. }));
    assert_eq!(world.stored(1).gpu_event.held(), Millis::ZERO);
    // It has a place, and its agent calls as late as it may.
    world.look(&[runs()]);
    let lost_after = Limits::default().lost_after;
    assert_eq!(world.look_after(lost_after.minus(Millis(1)), &[runs()]), []);
    world.heard(1, &running(4_000, 0, 15));
    let State::Running { timeout_end, .. } = world.stored(1).state else {
        panic!("not running but {:?}", world.stored(1).state)
    };
    assert_eq!(timeout_end, world.now().wall.plus(Millis::from_minutes(15)));
    assert_eq!(
        world.stored(1).gpu_event.start(),
        Some(world.now().wall.minus(Millis(4_000)))
    );
}

#[test]
fn a_job_that_waits_while_its_engine_is_silent_waits_on() {
    let mut world = world_with(cluster());
    world.create_pending();
    for _ in 0..1_000 {
        assert_eq!(world.after(Millis(60_000)), []);
        // Nobody wakes for it more often than for any other.
        let next = world.now().monotonic.plus(Limits::default().relaunch_after);
        assert_eq!(world.plane.deadline(), Some(next));
    }
    assert_eq!(world.look(&[pending()]), []);
    world.look(&[runs()]);
    world.heard(1, &running(0, 0, 15));
    assert!(matches!(world.stored(1).state, State::Running { .. }));
}

#[test]
fn an_engines_words_are_kept_each_once_and_no_more_than_32() {
    let mut world = world_with(cluster());
    world.create_pending();
    world.look_after(LOOK_EVERY, &[pending()]);
    world.look_after(
        LOOK_EVERY,
        &[job("7", JobState::Pending, "PENDING (Priority)")],
    );
    world.look_after(LOOK_EVERY, &[runs()]);
    world.look_after(LOOK_EVERY, &[runs()]);
    let said: Vec<_> = world.job().said.iter().map(|it| &*it.words).collect();
    let words = ["PENDING (Resources)", "PENDING (Priority)", "RUNNING"];
    assert_eq!(said, words);
    let at: Vec<_> = world.job().said.iter().map(|said| said.at).collect();
    assert_eq!(at, [0, 10_000, 15_000].map(|ms| moment(ms).wall));

    for count in 0..40 {
        world.look(&[job("7", JobState::Running, &format!("RUNNING {count}"))]);
    }
    assert_eq!(world.job().said.len(), 32);
    assert_eq!(world.job().words(), "RUNNING 39");
    assert_eq!(world.job().said[0].words, "RUNNING 8");
}

#[test]
fn an_estimate_that_jitters_writes_nothing_and_one_that_moves_does() {
    let mut world = world_with(cluster());
    world.create_pending();
    let estimated = |ms| JobStatus {
        starts_at: Some(Timestamp(ms)),
        ..pending()
    };
    world.look(&[estimated(600_000)]);
    assert_eq!(world.job().starts_at, Some(Timestamp(600_000)));
    // To both sides, over where it would be rounded otherwise too.
    for ms in [629_999, 630_001, 659_999, 570_000, 540_001, 600_000] {
        let jobs = Jobs(vec![(id(1), estimated(ms))]);
        let now = world.now();
        world.plane.jobs_are(&slurm(), &jobs, now.monotonic, now);
        assert_eq!(world.plane.changes(), [], "{ms}");
    }
    world.look(&[estimated(689_000)]);
    assert_eq!(world.job().starts_at, Some(Timestamp(660_000)));
    world.look(&[pending()]);
    assert_eq!(world.job().starts_at, None);
}

#[test]
fn a_word_that_nobody_knows_means_neither_that_it_waits_nor_that_it_ended() {
    let mut world = world_with(cluster());
    world.create_pending();
    let unknown = [job("7", JobState::Unknown, "STAGE_OUT")];
    for _ in 0..100 {
        assert_eq!(world.look_after(Millis(60_000), &unknown), []);
    }
    assert_eq!(world.job().words(), "STAGE_OUT");
    // Nor does one that ran owe an agent meanwhile.
    world.look(&[runs()]);
    for _ in 0..100 {
        world.look_after(Millis(60_000), &unknown);
    }
    // It runs now, and its agent has its time to call.
    world.look(&[runs()]);
    world.look_after(Millis(30_000), &[runs()]);
    assert!(matches!(world.stored(1).state, State::Starting { .. }));
    // One that was cancelled is not over with such a word.
    assert_eq!(cancelled(&world.cancel()), ["7"]);
    assert_eq!(cancelled(&world.look(&unknown)), ["7"]);
    assert!(world.stored(1).is_open());
}

// --- Cancelling -------------------------------------------------------------

#[test]
fn a_session_cancelled_while_its_job_waits_cancels_it_and_ends_when_that_is_over() {
    let mut world = world_with(cluster());
    world.create_pending();
    assert_eq!(cancelled(&world.cancel()), ["7"]);
    // That was lost; so it is asked again.
    assert_eq!(cancelled(&world.look(&[pending()])), ["7"]);
    assert_eq!(cancelled(&world.look(&[pending()])), ["7"]);
    assert!(matches!(world.stored(1).state, State::Stopping { .. }));
    world.look(&[job("7", JobState::Ended, "CANCELLED")]);
    assert_eq!(reason(world.stored(1)), EndReason::Cancelled);
    assert_eq!(world.stored(1).gpu_event.end(), None);
}

#[test]
fn a_session_cancelled_before_its_job_is_known_cancels_it_as_soon_as_it_is() {
    let mut world = world_with(cluster());
    world.create_plain(1);
    assert_eq!(cancelled(&world.cancel()), [] as [&str; 0]);
    assert_eq!(cancelled(&world.submitted(&pending())), ["7"]);
    world.look_after(LOOK_EVERY, &[]);
    assert_eq!(reason(world.stored(1)), EndReason::Cancelled);

    // It is not clear whether there is one: the next look shows it, or that there is none.
    for jobs in [&[pending()] as &[_], &[]] {
        let mut world = world_with(cluster());
        world.create_plain(1);
        world.cancel();
        world.launched(1, LaunchOutcome::Unclear("timed out".into()));
        let commands = world.look_after(LOOK_EVERY, jobs);
        assert_eq!(cancelled(&commands).len(), jobs.len());
        assert_eq!(world.stored(1).is_open(), !jobs.is_empty());
    }
}

#[test]
fn a_session_cancelled_while_its_agent_speaks_is_its_agents_to_end() {
    let mut world = world_with(cluster());
    world.create_running_job();
    let stop = ServerMessage::Stop {
        ending: Ending::plain(EndReason::Cancelled),
    };
    let commands = world.cancel();
    assert_eq!(told(&commands), [stop]);
    assert_eq!(cancelled(&commands), [] as [&str; 0]);
    let commands = world.look_after(LOOK_EVERY, &[runs()]);
    assert_eq!(cancelled(&commands), [] as [&str; 0]);
    world.heard(1, &ended(9_000, EndReason::Cancelled));
    assert_eq!(reason(world.stored(1)), EndReason::Cancelled);

    // One that is not heard of any more, though its job runs, goes with its job.
    let mut world = world_with(cluster());
    world.create_running_job();
    world.cancel();
    let commands = world.look_after(Limits::default().lost_after, &[runs()]);
    assert_eq!(cancelled(&commands), ["7"]);
    world.look_after(LOOK_EVERY, &[job("7", JobState::Ended, "CANCELLED")]);
    assert_eq!(reason(world.stored(1)), EndReason::Cancelled);
}

// --- Ends -------------------------------------------------------------------

#[test]
fn how_a_job_ended_is_put_down_though_its_agent_was_faster() {
    let mut world = world_with(cluster());
    world.create_running_job();
    world.heard(1, &ended(9_000, EndReason::Failed));
    world.look_after(LOOK_EVERY, &[runs()]);
    world.look_after(LOOK_EVERY, &[job("7", JobState::Running, "COMPLETING")]);
    let preempted = [job("7", JobState::Ended, "PREEMPTED")];
    world.look_after(LOOK_EVERY, &preempted);
    let said = world.job().said.iter().map(|it| &*it.words);
    assert!(said.eq(["PENDING (Resources)", "RUNNING", "COMPLETING", "PREEMPTED"]));
    // Nobody waits for anything else, from a job that is called the same by now.
    world.look_after(LOOK_EVERY, &[runs()]);
    assert_eq!(world.job().words(), "PREEMPTED");

    // Nor for the last words of one that is forgotten.
    let mut world = world_with(cluster());
    world.create_running_job();
    world.heard(1, &ended(9_000, EndReason::Failed));
    world.look_after(LOOK_EVERY, &[]);
    world.look_after(LOOK_EVERY, &preempted);
    assert_eq!(world.job().words(), "RUNNING");
}

#[test]
fn how_a_job_ended_is_said_again_where_it_could_not_be_put_down() {
    let mut world = world_with(cluster());
    world.create_running_job();
    // Neither could its session's end at first.
    world
        .plane
        .heard(id(1), &ended(9_000, EndReason::Failed), world.now());
    world.plane.roll_back(world.now());
    world.look_after(LOOK_EVERY, &[job("7", JobState::Running, "SUSPENDED")]);
    assert!(world.stored(1).is_open());
    world.heard(1, &ended(9_000, EndReason::Failed));
    let over = [job("7", JobState::Ended, "PREEMPTED")];
    let jobs = Jobs(vec![(id(1), over[0].clone())]);
    let now = world.now();
    world.plane.jobs_are(&slurm(), &jobs, now.monotonic, now);
    world.plane.roll_back(now);
    assert_eq!(world.job().words(), "SUSPENDED");
    world.look_after(LOOK_EVERY, &over);
    assert_eq!(world.job().words(), "PREEMPTED");
}

#[test]
fn a_job_that_ended_before_its_agent_called_fails_its_session_in_the_engines_words() {
    let mut world = world_with(cluster());
    world.create_pending();
    world.look_after(
        LOOK_EVERY,
        &[job("7", JobState::Ended, "FAILED (exit 127)")],
    );
    assert_eq!(reason(world.stored(1)), EndReason::Failed);
    assert_eq!(world.error(), "slurm ended its job: FAILED (exit 127)");
    assert_eq!(world.job().words(), "FAILED (exit 127)");
    assert_eq!(world.stored(1).gpu_event.cost(), MicroDollars(0));

    let mut world = world_with(cluster());
    world.create_pending();
    world.look_after(LOOK_EVERY, &[]);
    assert_eq!(reason(world.stored(1)), EndReason::Failed);
    assert_eq!(world.error(), "slurm does not know its job 7 any more");
}

#[test]
fn a_job_that_ended_after_its_agent_called_loses_its_session_at_the_last_proof_of_life() {
    for later in [&[failed()] as &[_], &[]] {
        let mut world = world_with(cluster());
        world.create_running_job();
        let relaunch_after = Limits::default().relaunch_after;
        world.look_after(relaunch_after.minus(Millis(1)), &[failed()]);
        assert!(world.stored(1).is_open());
        world.look_after(Millis(1), later);
        assert_eq!(reason(world.stored(1)), EndReason::Lost);
        assert_eq!(world.error(), "slurm ended its job: NODE_FAIL");
        assert_eq!(world.stored(1).gpu_event.held(), Millis(4_000));
        assert!(world.stored(1).gpu_event.end().is_some());
    }
}

#[test]
fn an_agent_whose_line_broke_as_its_job_ended_has_five_seconds_to_call_again() {
    let mut world = world_with(cluster());
    world.create_running_job();
    world.plane.hung_up(id(1), world.now());
    world.look_after(Millis(4_999), &[failed()]);
    assert!(world.stored(1).is_open());
    // It did.
    world.heard(1, &running(9_000, 5_000, 15));
    world.look_after(Millis(5_000), &[failed()]);
    assert!(world.stored(1).is_open());
    // It did not.
    world.plane.hung_up(id(1), world.now());
    world.look(&[failed()]);
    assert_eq!(reason(world.stored(1)), EndReason::Lost);
}

#[test]
fn an_agent_that_still_speaks_though_its_job_ended_goes_on_and_ends_by_its_lease() {
    let mut world = world_with(cluster());
    world.create_running_job();
    world.goes_on(Millis(60_000), &[failed()]);
    world.goes_on(Millis(60_000), &[]);
    let timed_out = ended(900_000, EndReason::TimedOut);
    let forget = told(&world.heard(1, &timed_out));
    assert_eq!(forget, [ServerMessage::Forget]);
    assert_eq!(reason(world.stored(1)), EndReason::TimedOut);
    assert_eq!(world.stored(1).gpu_event.held(), Millis(900_000));
}

#[test]
fn a_job_that_runs_and_whose_agent_never_calls_is_cancelled_and_fails_with_a_sentence() {
    let mut world = world_with(cluster());
    world.create_pending();
    world.look_after(Millis(600_000), &[runs()]);
    let lost_after = Limits::default().lost_after;
    let commands = world.look_after(lost_after.minus(Millis(1)), &[runs()]);
    assert_eq!(commands, []);
    let commands = world.look_after(Millis(1), &[runs()]);
    assert_eq!(cancelled(&commands), ["7"]);
    assert!(world.stored(1).is_open());
    world.look_after(LOOK_EVERY, &[job("7", JobState::Ended, "CANCELLED")]);
    assert_eq!(reason(world.stored(1)), EndReason::Failed);
    assert_eq!(
        world.error(),
        "Its job runs, but its agent did not call within 1 min; can the nodes reach the server?"
    );
}

#[test]
fn a_job_may_take_long_to_be_prepared_and_not_as_long_to_be_stuck() {
    let image = |state, words| job("7", state, words);
    let pulls = image(JobState::Preparing, "Pending (ContainerCreating)");
    let backs_off = image(JobState::Stuck, "Pending (ImagePullBackOff: no such image)");
    let mut world = world_with(cluster());
    world.create_pending();
    world.look(std::slice::from_ref(&pulls));
    let minutes = |minutes| Millis::from_minutes(minutes);
    let commands = world.look_after(minutes(29), std::slice::from_ref(&pulls));
    assert_eq!(commands, []);
    world.look(std::slice::from_ref(&backs_off));
    let commands = world.look_after(Millis(59_999), std::slice::from_ref(&backs_off));
    assert_eq!(commands, []);
    let commands = world.look_after(Millis(1), std::slice::from_ref(&backs_off));
    assert_eq!(cancelled(&commands), ["7"]);
    world.look_after(LOOK_EVERY, &[]);
    assert_eq!(
        world.error(),
        "Its job did not start within 1 min: Pending (ImagePullBackOff: no such image)"
    );

    let mut world = world_with(cluster());
    world.create_pending();
    world.look(std::slice::from_ref(&pulls));
    let commands = world.look_after(minutes(30), std::slice::from_ref(&pulls));
    assert_eq!(cancelled(&commands), ["7"]);
}

#[test]
fn a_job_that_is_refused_fails_its_session_in_the_engines_words() {
    let mut world = world_with(cluster());
    world.create_plain(1);
    let why = "slurm: Invalid account";
    world.launched(1, LaunchOutcome::Failed(why.into()));
    world.commit();
    assert_eq!(reason(world.stored(1)), EndReason::Failed);
    assert_eq!(world.error(), why);

    // Not one that has a job, of which this was a second.
    let mut world = world_with(cluster());
    world.create_pending();
    world.launched(1, LaunchOutcome::Failed(why.into()));
    world.commit();
    assert!(world.stored(1).is_open());
}

// --- Launches ---------------------------------------------------------------

#[test]
fn a_launch_of_which_nothing_is_known_is_looked_for_and_asked_again() {
    let Limits { relaunch_after, .. } = Limits::default();
    let mut world = world_with(cluster());
    assert!(!launch(&world.create_plain(1)).may_have_begun);
    world.launched(1, LaunchOutcome::Unclear("timed out".into()));
    // By a look, which shows that there is none. The launcher looks once more.
    let commands = world.look_after(LOOK_EVERY, &[]);
    assert!(launch(&commands).may_have_begun);
    // While that one is under way there is no second.
    assert_eq!(world.look_after(LOOK_EVERY, &[]), []);
    assert_eq!(world.after(Millis(600_000)), []);
    // Or, while its engine is silent, by time.
    world.launched(1, LaunchOutcome::Unclear("timed out".into()));
    assert_eq!(world.after(relaunch_after.minus(Millis(1))), []);
    let commands = world.after(relaunch_after);
    assert!(launch(&commands).may_have_begun);
    // It was there: nothing is launched any more.
    world.launched(1, LaunchOutcome::Unclear("timed out".into()));
    assert_eq!(world.look_after(LOOK_EVERY, &[pending()]), []);
    for _ in 0..100 {
        assert_eq!(world.look_after(LOOK_EVERY, &[pending()]), []);
    }
    assert_eq!(world.job().id, JobId("7".into()));
}

#[test]
fn a_look_from_before_a_launch_ends_nothing_and_launches_nothing() {
    let mut world = world_with(cluster());
    world.after(Millis(1_000));
    world.create_plain(1);
    assert_eq!(world.look_at(&[], 0), []);
    world.after(Millis(2_000));
    world.submitted(&pending());
    // It was asked before the job was there, or while it was being submitted.
    for asked_at_ms in [0, 2_000, 3_000] {
        assert_eq!(world.look_at(&[], asked_at_ms), []);
    }
    assert!(world.stored(1).is_open());
    world.after(Millis(1));
    world.look(&[]);
    assert!(!world.stored(1).is_open());
}

#[test]
fn a_job_that_ended_and_is_forgotten_ends_nothing_of_what_was_launched_since() {
    let mut world = world_with(cluster());
    world.create_plain(1);
    world.launched(1, LaunchOutcome::Unclear("timed out".into()));
    world.after(Limits::default().relaunch_after);
    let asked_at_ms = world.ms;
    // Its launcher looked later than that, and there was none any more.
    assert_eq!(world.look_at(&[(1, failed())], asked_at_ms), []);
    let other = job("8", JobState::Pending, "PENDING");
    world.submitted(&other);
    assert_eq!(world.look_at(&[(1, failed())], asked_at_ms), []);
    assert_eq!(world.job().id, JobId("8".into()));
    assert_eq!(world.look_after(LOOK_EVERY, &[failed(), other]), []);
    assert!(world.stored(1).is_open());
}

#[test]
fn a_look_from_before_the_server_came_to_decide_ends_nothing() {
    let mut world = world_with(cluster());
    world.create_pending();
    world.after(Millis(60_000));
    world.restart_with(settings_of(0, &[Offer::Cluster(cluster())]));
    assert_eq!(world.look_at(&[], 59_999), []);
    assert!(world.stored(1).is_open());
    world.look_at(&[], 60_000);
    assert!(!world.stored(1).is_open());
}

#[test]
fn what_the_store_refused_leaves_a_launch_under_way_and_asks_for_no_second() {
    let mut world = world_with(cluster());
    world.create_plain(1);
    // A first word comes before the launcher's, and the store is full.
    let now = world.now();
    world.plane.heard(id(1), &ended(5, EndReason::Exited), now);
    world.plane.roll_back(now);
    assert_eq!(world.look_after(LOOK_EVERY, &[]), []);
    world.launched(1, LaunchOutcome::Unclear("timed out".into()));
    assert_eq!(launched(&world.look_after(LOOK_EVERY, &[])), [id(1)]);

    // A launch that the store refused was none.
    let mut world = world_with(cluster());
    world.create_plain(1);
    world.launched(1, LaunchOutcome::Unclear("timed out".into()));
    world.after(LOOK_EVERY);
    let now = world.now();
    let none = Jobs::default();
    world.plane.jobs_are(&slurm(), &none, now.monotonic, now);
    world.plane.roll_back(now);
    assert_eq!(launched(&world.look_after(LOOK_EVERY, &[])), [id(1)]);
}

#[test]
fn an_end_that_the_store_refused_comes_with_the_next_look() {
    let mut world = world_with(cluster());
    world.create_pending();
    world.after(LOOK_EVERY);
    let now = world.now();
    let jobs = Jobs(vec![(id(1), failed())]);
    world.plane.jobs_are(&slurm(), &jobs, now.monotonic, now);
    world.plane.roll_back(now);
    assert_eq!(world.plane.session(id(1)), Some(world.stored(1)));
    world.look_after(LOOK_EVERY, &[failed()]);
    assert_eq!(reason(world.stored(1)), EndReason::Failed);
}

// --- Jobs that are one too many ---------------------------------------------

#[test]
fn of_two_jobs_of_one_session_one_is_kept_and_the_other_cancelled_at_the_second_look() {
    let mut world = world_with(cluster());
    world.create_pending();
    let other = job("6", JobState::Pending, "PENDING");
    let both = [other, pending()];
    assert_eq!(world.look_after(LOOK_EVERY, &both), []);
    assert_eq!(cancelled(&world.look_after(LOOK_EVERY, &both)), ["6"]);
    // That was lost.
    assert_eq!(cancelled(&world.look_after(LOOK_EVERY, &both)), ["6"]);
    assert_eq!(world.look_after(LOOK_EVERY, &[pending()]), []);
    assert_eq!(world.job().id, JobId("7".into()));
}

#[test]
fn of_two_jobs_of_one_session_the_one_that_is_not_over_counts() {
    let mut world = world_with(cluster());
    world.create_pending();
    let other = job("8", JobState::Pending, "PENDING");
    let both = [failed(), other];
    assert_eq!(world.look_after(LOOK_EVERY, &both), []);
    assert_eq!(world.look_after(LOOK_EVERY, &both), []);
    assert_eq!(world.job().id, JobId("8".into()));
}

#[test]
fn of_two_jobs_of_one_session_the_one_that_its_agent_can_be_in_is_kept() {
    // The agent that was heard of is not in the one that was thought to be its.
    let mut world = world_with(cluster());
    world.create_pending();
    world.heard(1, &running(4_000, 0, 15));
    let other = job("8", JobState::Running, "RUNNING");
    for both in [
        [pending(), other.clone()],
        [failed(), pending()],
        [pending(), failed()],
    ] {
        world.look_after(LOOK_EVERY, &both);
        assert!(world.job().state != JobState::Pending, "{both:?}");
    }
    // Nor has one begun that was not heard of, if another may have.
    let mut world = world_with(cluster());
    world.create_plain(1);
    world.launched(1, LaunchOutcome::Unclear("timed out".into()));
    world.look_after(LOOK_EVERY, &[pending(), other]);
    assert_eq!(world.job().id, JobId("8".into()));
}

#[test]
fn a_job_of_no_open_session_is_cancelled_at_the_second_look_and_not_at_the_first() {
    let mut world = world_with(cluster());
    let jobs = [(9, runs()), (8, failed())];
    assert_eq!(world.look_at(&jobs, 0), []);
    assert_eq!(cancelled(&world.look_at(&jobs, 0)), ["7"]);
    assert_eq!(cancelled(&world.look_at(&jobs, 0)), ["7"]);
    assert_eq!(world.look_at(&[], 0), []);
    // Another look begins anew.
    assert_eq!(world.look_at(&jobs, 0), []);
    // A server that comes back looks twice itself.
    world.restart_with(settings_of(0, &[Offer::Cluster(cluster())]));
    assert_eq!(world.look_at(&jobs, 0), []);
    assert_eq!(cancelled(&world.look_at(&jobs, 0)), ["7"]);
}

#[test]
fn a_job_whose_session_is_elsewhere_is_no_open_sessions() {
    let mut world = world_of(
        1,
        &[
            Offer::Host { runs_images: false },
            Offer::Cluster(cluster()),
        ],
    );
    world.create_running(1);
    assert_eq!(world.look(&[runs()]), []);
    assert_eq!(cancelled(&world.look(&[runs()])), ["7"]);
    assert!(world.stored(1).job.is_none());
}

// --- Time limits ------------------------------------------------------------

#[test]
fn a_time_limit_is_longer_than_the_lease_and_moved_with_it_until_the_engine_shows_it() {
    let mut world = world_with(cluster());
    let time_limit = launch(&world.create_plain(1)).time_limit;
    assert_eq!(time_limit, LONGEST_LEASE.plus(SPARE));
    world.submitted(&pending());
    world.look(&[runs()]);
    world.heard(1, &running(0, 0, 15));
    assert_eq!(limited(&world.look_after(LOOK_EVERY, &[runs()])), []);
    world
        .plane
        .extend_session(&alice().owner(), id(1), 5)
        .unwrap();
    let longer = time_limit.plus(Millis::from_minutes(5));
    for _ in 0..3 {
        let commands = world.look_after(LOOK_EVERY, &[runs()]);
        assert_eq!(limited(&commands), [longer]);
    }
    // Engines round, and may let it run for longer.
    for shown in [longer, longer.plus(SPARE)] {
        let moved = JobStatus {
            time_limit: Some(shown),
            ..runs()
        };
        assert_eq!(limited(&world.look_after(LOOK_EVERY, &[moved])), []);
    }
    let unlimited = JobStatus {
        time_limit: None,
        ..runs()
    };
    assert_eq!(limited(&world.look_after(LOOK_EVERY, &[unlimited])), []);
}

#[test]
fn where_limits_cannot_be_moved_a_job_has_the_longest_that_its_session_may_come_to_need() {
    let mut world = world_with(Cluster {
        moves_time_limits: false,
        ..cluster()
    });
    let time_limit = launch(&world.create_plain(1)).time_limit;
    // 60 minutes are the longest here.
    let longest = LONGEST_LEASE.plus(Millis::from_minutes(45)).plus(SPARE);
    assert_eq!(time_limit, longest);
    world.submitted(&pending());
    world.look(&[runs()]);
    world.heard(1, &running(0, 0, 15));
    world
        .plane
        .extend_session(&alice().owner(), id(1), 45)
        .unwrap();
    let given = JobStatus {
        time_limit: Some(longest),
        ..runs()
    };
    assert_eq!(limited(&world.look_after(LOOK_EVERY, &[given])), []);
    // Nor is it asked of an engine that cannot.
    assert_eq!(limited(&world.look_after(LOOK_EVERY, &[runs()])), []);
}

// --- Where sessions are put -------------------------------------------------

#[test]
fn a_session_is_put_where_it_is_preferred_to_be_and_there_is_room() {
    let is_in_job = |world: &World, number| {
        let placement = world.stored(number).placement();
        placement.map(|placement| matches!(placement.place, Place::Job { .. }))
    };
    let placed = |offers: &[Offer]| {
        let mut world = world_of(1, offers);
        for number in 1..=3 {
            world.create_plain(number);
        }
        [1, 2, 3].map(|number| is_in_job(&world, number))
    };
    let one_job = Offer::Cluster(Cluster {
        jobs_max: Some(1),
        ..cluster()
    });
    let (here, there, nowhere) = (Some(false), Some(true), None);
    let any = Offer::Cluster(cluster());
    assert_eq!(
        placed(&[Offer::Host { runs_images: false }, any.clone()]),
        [here, there, there]
    );
    assert_eq!(
        placed(&[any, Offer::Host { runs_images: false }]),
        [there, there, there]
    );
    assert_eq!(
        placed(&[one_job.clone(), Offer::Host { runs_images: false }]),
        [there, here, nowhere]
    );
    assert_eq!(placed(&[one_job]), [there, nowhere, nowhere]);
    let other_type = Offer::Cluster(Cluster {
        gpu_types: BTreeSet::from([GpuType("H100".into())]),
        ..cluster()
    });
    assert_eq!(
        placed(&[other_type, Offer::Host { runs_images: false }]),
        [here, nowhere, nowhere]
    );
}

#[test]
fn where_no_more_jobs_may_be_sessions_wait_here_and_are_served_when_one_ends() {
    let mut world = world_with(Cluster {
        jobs_max: Some(1),
        ..cluster()
    });
    world.create_pending();
    world.create_plain(2);
    world.create_plain(3);
    assert_eq!(launched(&world.look_after(LOOK_EVERY, &[pending()])), []);
    // Not when it is to end, only when it has.
    assert_eq!(launched(&world.cancel()), []);
    let commands = world.look_after(LOOK_EVERY, &[job("7", JobState::Ended, "CANCELLED")]);
    assert_eq!(launched(&commands), [id(2)]);
    assert!(matches!(world.stored(3).state, State::Queued { .. }));
    // A server that comes back counts the same.
    world.restart_with(world.plane.settings().clone());
    assert_eq!(launched(&world.after(Millis::ZERO)), [id(2)]);
    let two = job("8", JobState::Ended, "FAILED");
    world.launched(2, LaunchOutcome::Submitted(two.clone()));
    world.after(Millis(1));
    let commands = world.look_at(&[(2, two)], world.ms);
    assert_eq!(launched(&commands), [id(3)]);
}

// --- Silence ----------------------------------------------------------------

/// The first moment, to a minute, at which session 1 has ended while nobody says anything.
fn ends_after(world: &mut World, at_most: Millis) -> Option<Millis> {
    let since = world.ms;
    while world.ms - since <= at_most.0 {
        world.after(Millis(60_000));
        if !world.stored(1).is_open() {
            return Some(Millis(world.ms - since));
        }
    }
    None
}

#[test]
fn a_session_whose_engine_and_agent_are_silent_ends_when_its_lease_must_have_and_not_before() {
    let held = Millis(400_000);
    let phases = [
        status(held.0, 15, AgentPhase::Starting),
        running(held.0, 1_000, 15),
        status(
            held.0,
            15,
            AgentPhase::Stopping {
                ending: Ending::plain(EndReason::Cancelled),
                running_ms: None,
            },
        ),
    ];
    for phase in phases {
        let mut world = world_with(cluster());
        world.create_pending();
        world.heard(1, &phase);
        let must_be_over = LONGEST_LEASE.plus(SPARE).minus(held);
        let after = ends_after(&mut world, must_be_over.plus(Millis(180_000))).unwrap();
        assert!(after >= must_be_over, "{phase:?}: {after}");
        assert_eq!(reason(world.stored(1)), EndReason::Lost);
        assert_eq!(world.stored(1).gpu_event.held(), held);
    }
}

#[test]
fn no_step_of_the_servers_clock_ends_a_session_before_its_lease() {
    let mut world = world_with(cluster());
    world.create_running_job();
    let day = Millis::from_minutes(24 * 60);
    let mut later = world.now();
    later.wall = later.wall.plus(day);
    later.monotonic = later.monotonic.plus(Limits::default().lost_after);
    world.plane.advance(later);
    assert!(world.plane.session(id(1)).is_some());
    // Nor keeps one.
    let mut earlier = world.now();
    earlier.wall = earlier.wall.minus(day);
    earlier.monotonic = earlier.monotonic.plus(LONGEST_LEASE).plus(SPARE);
    world.plane.advance(earlier);
    assert!(world.plane.session(id(1)).is_none());
}

#[test]
fn a_session_whose_cluster_is_configured_no_more_ends_by_its_lease_or_for_want_of_an_agent() {
    let without = || settings_of(1, &[Offer::Host { runs_images: false }]);
    // One whose agent speaks goes on.
    let mut world = world_with(cluster());
    world.create_running_job();
    world.restart_with(without());
    for passed in 0..10 {
        world.after(Millis(10_000));
        world.heard(1, &running(passed * 10_000 + 14_000, passed * 10_000, 15));
    }
    assert!(world.stored(1).is_open());
    // And after that ends when its lease must have.
    let held = world.stored(1).gpu_event.held();
    let after = ends_after(&mut world, LONGEST_LEASE.plus(Millis(180_000))).unwrap();
    assert!(after >= LONGEST_LEASE.minus(held), "{after}");
    assert_eq!(reason(world.stored(1)), EndReason::Lost);

    // One that never had any cannot be looked for.
    for is_cancelled in [false, true] {
        let mut world = world_with(cluster());
        world.create_pending();
        if is_cancelled {
            world.cancel();
        }
        world.restart_with(without());
        let lost_after = Limits::default().lost_after;
        world.after(lost_after.minus(Millis(1)));
        assert!(world.stored(1).is_open());
        assert!(ends_after(&mut world, Millis(120_000)).is_some());
        let expected = if is_cancelled {
            EndReason::Cancelled
        } else {
            EndReason::Failed
        };
        assert_eq!(reason(world.stored(1)), expected);
        // Should its agent call after all, it is told to end.
        let commands = world.heard(1, &status(1, 15, AgentPhase::Starting));
        assert!(matches!(*told(&commands), [ServerMessage::Stop { .. }]));
    }
}

// --- A server that comes back -----------------------------------------------

#[test]
fn a_server_that_comes_back_owes_a_job_that_is_not_known_and_none_that_is() {
    let again = || settings_of(0, &[Offer::Cluster(cluster())]);
    // Whether it was submitted is not known: the launcher looks first.
    let mut world = world_with(cluster());
    world.create_plain(1);
    world.restart_with(again());
    let commands = world.after(Millis::ZERO);
    assert!(launch(&commands).may_have_begun);
    // A look meanwhile launches no second, and shows the job.
    assert_eq!(world.look(&[]), []);
    assert_eq!(world.look(&[pending()]), []);

    world.restart_with(again());
    assert_eq!(world.after(Millis(600_000)), []);
    assert_eq!(world.look(&[pending()]), []);
    // It ran and ended while there was no server.
    world.restart_with(again());
    world.look(&[failed()]);
    assert_eq!(reason(world.stored(1)), EndReason::Failed);
}

#[test]
fn a_server_that_comes_back_gives_an_agent_its_time_to_call() {
    let again = || settings_of(0, &[Offer::Cluster(cluster())]);
    let mut world = world_with(cluster());
    world.create_running_job();
    world.after(Millis(600_000));
    world.restart_with(again());
    // Whatever its engine says.
    world.look(&[]);
    world.look_after(Millis(4_999), &[failed()]);
    assert!(world.stored(1).is_open());
    world.heard(1, &running(610_000, 605_000, 15));
    world.look_after(Millis(10_000), &[failed()]);
    assert!(world.stored(1).is_open());

    world.restart_with(again());
    world.look_after(Millis(5_000), &[failed()]);
    assert_eq!(reason(world.stored(1)), EndReason::Lost);
}

#[test]
fn a_server_that_comes_back_cancels_what_it_was_cancelling() {
    let again = || settings_of(0, &[Offer::Cluster(cluster())]);
    let mut world = world_with(cluster());
    world.create_pending();
    world.cancel();
    world.restart_with(again());
    assert_eq!(world.after(Millis(600_000)), []);
    assert_eq!(cancelled(&world.look(&[pending()])), ["7"]);
    world.restart_with(again());
    world.look(&[]);
    assert_eq!(reason(world.stored(1)), EndReason::Cancelled);

    // Before its job was known.
    let mut world = world_with(cluster());
    world.create_plain(1);
    world.cancel();
    world.restart_with(again());
    assert_eq!(cancelled(&world.look(&[pending()])), ["7"]);

    // And when there is none.
    let mut world = world_with(cluster());
    world.create_plain(1);
    world.cancel();
    world.restart_with(again());
    assert_eq!(launched(&world.after(Millis::ZERO)), []);
    world.look(&[]);
    assert_eq!(reason(world.stored(1)), EndReason::Cancelled);
}

#[test]
fn a_server_that_comes_back_moves_a_limit_that_it_owed() {
    let mut world = world_with(cluster());
    world.create_running_job();
    let owner = alice().owner();
    world.plane.extend_session(&owner, id(1), 5).unwrap();
    world.commit();
    world.restart_with(settings_of(0, &[Offer::Cluster(cluster())]));
    let longer = LONGEST_LEASE.plus(SPARE).plus(Millis::from_minutes(5));
    assert_eq!(limited(&world.look(&[runs()])), [longer]);
}

// --- Leave to begin ---------------------------------------------------------

impl World {
    fn asks(&mut self, agent: &str) -> Vec<ServerMessage> {
        let agent = agent.to_owned();
        told(&self.heard(1, &status(1, 15, AgentPhase::Asks { agent })))
    }
}

#[test]
fn of_all_agents_that_an_engine_starts_for_a_session_one_begins() {
    let mut world = world_with(cluster());
    world.create_pending();
    assert_eq!(world.asks("first"), [ServerMessage::Begin]);
    // It holds no GPU of ours before it has begun.
    assert_eq!(world.stored(1).gpu_event.start(), None);
    assert_eq!(world.asks("second"), [ServerMessage::Forget]);
    // It may not have heard.
    assert_eq!(world.asks("first"), [ServerMessage::Begin]);
    world.restart();
    assert_eq!(world.asks("second"), [ServerMessage::Forget]);
    world.heard(1, &running(4_000, 0, 15));
    let before = world.stored(1).clone();
    assert_eq!(world.asks("second"), [ServerMessage::Forget]);
    // What it asked comes again, late: an agent that is told so forgets what it has to tell.
    assert_eq!(world.asks("first"), []);
    assert_eq!(*world.stored(1), before);
    // It is a word of the agent's all the same: nobody gives it up for its silence.
    world.plane.hung_up(id(1), world.now());
    world.look_after(Millis(4_999), &[failed()]);
    world.asks("first");
    world.look_after(Millis(4_999), &[failed()]);
    assert!(world.stored(1).is_open());
}

#[test]
fn an_agent_that_has_leave_to_begin_may_have_begun() {
    let Limits { lost_after, .. } = Limits::default();
    let begun = || {
        let mut world = world_with(cluster());
        world.create_pending();
        world.look(&[runs()]);
        world.asks("first");
        world
    };
    // Its engine gives up its node: it speaks, and goes on.
    let mut world = begun();
    world.look_after(LOOK_EVERY, &[failed()]);
    world.heard(1, &running(4_000, 0, 15));
    assert!(matches!(world.stored(1).state, State::Running { .. }));
    // It is cut off, while its job runs: its lease ends it.
    let mut world = begun();
    world.look_after(lost_after, &[runs()]);
    assert!(matches!(world.stored(1).state, State::Starting { .. }));
    assert!(ends_after(&mut world, LONGEST_LEASE.plus(Millis(180_000))).is_some());
    // It died before it could say anything.
    let mut world = begun();
    world.look_after(lost_after, &[failed()]);
    assert_eq!(world.error(), "slurm ended its job: NODE_FAIL");
    // Whatever becomes of what is known of its job, no second is asked for.
    let mut world = world_with(cluster());
    world.create_plain(1);
    world.launched(1, LaunchOutcome::Unclear("timed out".into()));
    world.asks("first");
    assert_eq!(launched(&world.look_after(LOOK_EVERY, &[])), []);
    assert_eq!(launched(&world.after(lost_after)), []);
}

#[test]
fn nothing_is_begun_for_a_session_that_is_to_end_or_has_ended() {
    let mut world = world_with(cluster());
    world.create_pending();
    world.cancel();
    assert_eq!(world.asks("first"), [ServerMessage::Forget]);
    world.look_after(LOOK_EVERY, &[job("7", JobState::Ended, "CANCELLED")]);
    assert!(!world.stored(1).is_open());
    assert_eq!(world.asks("first"), [ServerMessage::Forget]);
}

// --- Images -----------------------------------------------------------------

fn in_image() -> Source {
    let container = crate::machine::Container {
        image: "app:1".into(),
        read_only: false,
        capabilities: Vec::new(),
    };
    Source::Recipe(Box::new(Recipe {
        container: Some(container),
        ..recipe()
    }))
}

#[test]
fn a_session_in_an_image_goes_where_images_run_and_holds_up_nobody_else() {
    let runs_images = |runs_images| Offer::Host { runs_images };
    let cluster = |runs_images| {
        Offer::Cluster(Cluster {
            jobs_max: Some(1),
            runs_images,
            ..cluster()
        })
    };
    let mut world = world_of(1, &[runs_images(false), cluster(true)]);
    for number in 1..=3 {
        world.create(number, in_image()).unwrap();
    }
    // The second and the third wait for the cluster; the host's GPU is no use to them.
    world.create(4, Source::Recipe(Box::new(recipe()))).unwrap();
    world.commit();
    let is_placed = |number| !matches!(world.stored(number).state, State::Queued { .. });
    assert_eq!([1, 2, 3, 4].map(is_placed), [true, false, false, true]);

    let mut world = world_of(1, &[runs_images(false), cluster(false)]);
    let refused = world.create(1, in_image()).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "Nothing here runs images on A10G; that takes a [[launcher]] that does in the server's \
         config"
    );
}

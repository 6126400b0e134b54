//! Sessions in jobs: what their launcher does, and what happens at the engine.

use super::*;
use crate::engine::{BOOT_MS, EngineJob, Stage, number_of};

impl World {
    // --- The launcher -----------------------------------------------------------

    /// See to it that there is a job: look first, if one may have been had.
    pub(super) fn launch_job(&mut self, asked: LaunchUnderWay) {
        let Some(engine) = &self.engine else { return };
        let id = asked.launch.session;
        let by = asked.by;
        if asked.launch.may_have_begun {
            if engine.unreachable_until > self.now {
                self.outcome(by, id, LaunchOutcome::Unclear("no answer".into()));
                return;
            }
            let mut jobs = engine.jobs.iter().filter(|(_, job)| job.session == id);
            let is_over = |(_, job): &(&u32, &EngineJob)| job.stage == Stage::Over;
            let present = jobs.by_ref().min_by_key(is_over);
            if let Some((number, job)) = present {
                let status = job.status(*number, self.moment().wall);
                self.say(&format!("a job is there already: {}", short(id)));
                self.outcome(by, id, LaunchOutcome::Submitted(status));
                return;
            }
        }
        let takes = self.random.u64(1..2_000);
        self.at(takes, Event::Submit(asked));
    }

    pub(super) fn submit(&mut self, asked: LaunchUnderWay) {
        let (by, id) = (asked.by, asked.launch.session);
        if by != self.process {
            self.say(&format!("a dead server's job comes: {}", short(id)));
            self.take_job(asked, true);
            return;
        }
        let unclear = || LaunchOutcome::Unclear("no answer".into());
        let unreachable = self
            .engine
            .as_ref()
            .is_none_or(|it| it.unreachable_until > self.now);
        if unreachable {
            self.outcome(by, id, unclear());
        } else if !self.calm && self.chance(1, 30) {
            self.say(&format!("a job is refused: {}", short(id)));
            self.outcome(by, id, LaunchOutcome::Failed("Invalid account".into()));
        } else if !self.calm && self.chance(1, 10) {
            self.say(&format!("what became of a job is lost: {}", short(id)));
            self.outcome(by, id, unclear());
            match self.random.u8(0..3) {
                0 => {}
                1 => {
                    self.take_job(asked, true);
                }
                _ => {
                    let late = self.random.u64(1..20_000);
                    let asked = LaunchUnderWay { by: 0, ..asked };
                    self.at(late, Event::Submit(asked));
                }
            }
        } else if let Some(number) = self.take_job(asked, false)
            && let Some(job) = self.engine.as_ref().and_then(|it| it.jobs.get(&number))
        {
            let status = job.status(number, self.moment().wall);
            self.outcome(by, id, LaunchOutcome::Submitted(status));
        }
    }

    fn outcome(&mut self, by: u32, id: SessionId, outcome: LaunchOutcome) {
        self.at(1, Event::Launched { by, id, outcome });
    }

    /// The engine takes a job. Does nobody know that yet?
    fn take_job(&mut self, asked: LaunchUnderWay, is_unknown: bool) -> Option<u32> {
        let id = asked.launch.session;
        if is_unknown {
            self.may_double.insert(id);
        }
        self.check(invariants::check_job(self, id));
        let jobs = self.engine.as_ref().map_or(0, |it| it.jobs_of(id).count());
        if jobs > 0 {
            self.say(&format!("a job is one too many: {}", short(id)));
        }
        // One that its engine forgot before anybody put it on record.
        if self.sites_of(id).any(|(post, _)| post.job.is_some()) {
            self.may_double.insert(id);
        }
        let engine = self.engine.as_mut()?;
        let number = engine.take(asked.launch);
        self.say(&format!("{} waits for job {number}", short(id)));
        let soon = self.random.u64(1..2_000);
        self.at(soon, Event::EngineSchedules);
        Some(number)
    }

    // --- Looks ------------------------------------------------------------------

    pub(super) fn look(&mut self, by: u32) {
        let Some(engine) = self.engine.as_ref().filter(|_| by == self.process) else {
            return;
        };
        if engine.unreachable_until > self.now {
            return self.at(30_000, Event::Look { by });
        }
        let asked_at = self.moment().monotonic;
        let jitter = self.random.u64(0..100_000);
        let estimate = self.moment().wall.plus(Millis(jitter));
        let mut jobs: Vec<_> = engine
            .jobs
            .iter()
            .map(|(number, job)| (job.session, job.status(*number, estimate)))
            .collect();
        self.random.shuffle(&mut jobs);
        if !self.calm
            && self.chance(1, 15)
            && let Some((_, status)) = jobs.first_mut()
            && status.state != JobState::Ended
        {
            self.say(&format!("an unknown word for job {}", status.id));
            status.state = JobState::Unknown;
            status.words = "STAGE_OUT".into();
        }
        let takes = if !self.calm && self.chance(1, 10) {
            self.random.u64(1..60_000)
        } else {
            self.random.u64(1..500)
        };
        let jobs = Jobs(jobs);
        self.at(takes, Event::Looked { by, asked_at, jobs });
    }

    pub(super) fn looked(&mut self, by: u32, asked_at: Monotonic, jobs: &Jobs) {
        let Some(engine) = self.engine.as_ref().filter(|_| by == self.process) else {
            return;
        };
        let (name, look_every) = (engine.cluster.name.clone(), engine.look_every);
        self.limited.clear();
        let heard = self.serve(|plane, now| plane.jobs_are(&name, jobs, asked_at, now));
        if heard.is_some() {
            self.check(invariants::limits_are_moved(self, jobs));
            let checked = invariants::jobs_too_many_go(self);
            self.check(checked);
        }
        if by == self.process {
            self.at(look_every, Event::Look { by });
        }
    }

    /// An engine is asked to do something about a job.
    pub(super) fn ask_engine(&mut self, job: &JobId, time_limit: Option<Millis>) {
        if time_limit.is_some() {
            self.limited.insert(job.clone());
        }
        let number = number_of(job);
        let takes = self.random.u64(1..2_000);
        if !self.calm && self.chance(1, 8) {
            self.say(&format!("a word about job {number} is lost"));
            return;
        }
        self.at(takes, Event::JobAsked { number, time_limit });
    }

    pub(super) fn job_is_asked(&mut self, number: u32, time_limit: Option<Millis>) {
        let now = self.now;
        let Some(engine) = self.engine.as_mut() else {
            return;
        };
        if engine.unreachable_until > now {
            return;
        }
        let time_limit = time_limit.map(|limit| engine.rounded(limit));
        match (time_limit, engine.jobs.get_mut(&number)) {
            (None, Some(_)) => self.end_job(number, "CANCELLED"),
            (Some(limit), Some(job)) if job.stage != Stage::Over => {
                job.time_limit = limit;
                self.say(&format!("job {number} may run for {limit}"));
                self.watch_limit(number);
            }
            _ => {}
        }
    }

    // --- What happens at the engine ---------------------------------------------

    pub(super) fn engine_schedules(&mut self) {
        if !self.calm && self.chance(1, 4) {
            // Others use its nodes.
            let later = self.random.u64(1_000..120_000);
            return self.at(later, Event::EngineSchedules);
        }
        loop {
            let away = &self.away;
            let Some(engine) = &mut self.engine else {
                return;
            };
            let Some((number, gpu)) = engine.next_start(|gpu| away.contains(gpu)) else {
                return;
            };
            if let Some(job) = engine.jobs.get_mut(&number) {
                job.stage = Stage::Runs;
                job.node = Some(gpu.clone());
                job.started_at = self.now;
            }
            self.say(&format!("job {number} starts on {gpu}"));
            let boots = self.random.u64(50..BOOT_MS);
            self.at(boots, Event::JobAgent(number));
            self.watch_limit(number);
        }
    }

    fn watch_limit(&mut self, number: u32) {
        let grain_ms = self.engine.as_ref().map_or(2, |engine| engine.grain_ms);
        let late = self.random.u64(0..grain_ms / 2);
        if let Some(job) = self.engine.as_ref().and_then(|it| it.jobs.get(&number))
            && job.stage == Stage::Runs
        {
            let wait = job.limit_at().saturating_sub(self.now);
            self.at(wait + late, Event::JobLimit(number));
        }
    }

    /// The node has all that the job needs: its agent starts.
    pub(super) fn job_agent(&mut self, number: u32) {
        let Some(job) = self.engine.as_ref().and_then(|it| it.jobs.get(&number)) else {
            return;
        };
        let (Stage::Runs, Some(gpu)) = (job.stage, job.node.clone()) else {
            return;
        };
        if self.away.contains(&gpu) {
            return self.at(10_000, Event::JobAgent(number));
        }
        let terms = job.launch.terms;
        let post = Post {
            session: job.session,
            job: Some(number),
        };
        let clock_base = self.random.u64(0..1_000_000);
        let mut site = Site::new(gpu, terms, self.nature(), clock_base);
        if !self.calm && self.chance(1, 12) {
            self.say(&format!("its node does not reach the server: {post}"));
            site.partitioned_until = self.now + self.random.u64(30_000..1_000_000);
        }
        site.start_agent_in_job(self.now);
        let incarnation = site.incarnations;
        self.sites.insert(post, site);
        self.say(&format!("an agent asks whether it is to begin: {post}"));
        self.at(1, Event::Heartbeat(post, incarnation));
        self.with_site(post, Site::settle);
    }

    /// An agent in a job that asks is told whether it is the one that begins.
    pub(super) fn agent_is_answered(&mut self, post: Post, message: &ServerMessage) {
        // One that stood still meanwhile may be too late.
        self.with_site(post, Site::advance);
        let Some(site) = self.sites.get(&post).filter(|site| site.asks()) else {
            return;
        };
        if *message == ServerMessage::Begin {
            self.start_agent(post, site.terms, true, false);
            self.with_site(post, Site::settle);
        } else {
            self.say(&format!("an agent is not to begin: {post}"));
        }
    }

    /// Its agent and its processes may be gone.
    pub(super) fn job_may_be_over(&mut self, post: Post) {
        let is_left = |site: &Site| site.agent.is_some() || site.tree.is_some();
        if let Some(number) = post.job
            && !self.sites.get(&post).is_some_and(is_left)
        {
            self.job_is_over(number, "COMPLETED");
        }
    }

    fn job_is_over(&mut self, number: u32, why: &str) {
        let Some(job) = self
            .engine
            .as_mut()
            .and_then(|it| it.jobs.get_mut(&number))
            .filter(|job| job.stage != Stage::Over)
        else {
            return;
        };
        job.stage = Stage::Over;
        if job.why.is_empty() {
            why.clone_into(&mut job.why);
        }
        let said = format!("job {number} is over: {}", job.why);
        self.say(&said);
        let forgotten = self.random.u64(1_000..300_000);
        self.at(forgotten, Event::JobPurged(number));
        let soon = self.random.u64(1..5_000);
        self.at(soon, Event::EngineSchedules);
    }

    /// The engine ends a job: TERM to all, and KILL after a while.
    pub(super) fn end_job(&mut self, number: u32, why: &str) {
        let Some(job) = self.engine.as_mut().and_then(|it| it.jobs.get_mut(&number)) else {
            return;
        };
        match job.stage {
            Stage::Waits => self.job_is_over(number, why),
            Stage::Runs => {
                job.stage = Stage::Ends;
                why.clone_into(&mut job.why);
                let post = Post {
                    session: job.session,
                    job: Some(number),
                };
                if let (Some(_), Some(gpu)) = (job.suspended_at, job.node.clone())
                    && self.away.remove(&gpu)
                {
                    self.host_goes_on(&gpu);
                }
                self.say(&format!("the engine ends job {number}: {why}"));
                let hears = self.sites.get(&post).is_some_and(|site| {
                    !self.away.contains(&site.gpu) && !site.agent_stands_still(self.now)
                });
                if hears {
                    let ending = Ending::failed("Its job was told to end".into());
                    let stop = ServerMessage::Stop { ending };
                    self.with_site(post, |site, now| site.hear(&stop, now));
                }
                let kill_wait = self.random.u64(1_000..30_000);
                self.at(kill_wait, Event::JobKill(number));
            }
            Stage::Ends | Stage::Over => {}
        }
    }

    pub(super) fn kill_job(&mut self, number: u32) {
        let Some(job) = self.engine.as_ref().and_then(|it| it.jobs.get(&number)) else {
            return;
        };
        let post = Post {
            session: job.session,
            job: Some(number),
        };
        let is_away = job.node.as_ref().is_some_and(|gpu| self.away.contains(gpu));
        // If its node stands still, it comes to that when that goes on.
        if job.stage == Stage::Ends && !is_away {
            self.kill_if_alive(post);
            self.job_may_be_over(post);
        }
    }

    fn kill_if_alive(&mut self, post: Post) {
        let has_agent = |site: &Site| site.agent.is_some();
        if self.sites.get(&post).is_some_and(has_agent) {
            self.kill_agent(post);
        }
    }

    pub(super) fn job_is_at_its_limit(&mut self, number: u32) {
        let Some(job) = self.engine.as_ref().and_then(|it| it.jobs.get(&number)) else {
            return;
        };
        let is_due = job.limit_at() <= self.now && job.suspended_at.is_none();
        if job.stage == Stage::Runs && is_due {
            self.check(invariants::limit_is_longer_than_lease(self, number, job));
            self.end_job(number, "TIMEOUT");
        }
    }

    // --- What goes wrong there --------------------------------------------------

    pub(super) fn engine_fault(&mut self) {
        let Some(engine) = &mut self.engine else {
            return;
        };
        let in_stage = |wanted: &[Stage]| -> Vec<u32> {
            let jobs = engine.jobs.iter();
            jobs.filter(|(_, job)| wanted.contains(&job.stage))
                .map(|(number, _)| *number)
                .collect()
        };
        let (running, any) = (
            in_stage(&[Stage::Runs]),
            in_stage(&[Stage::Runs, Stage::Waits]),
        );
        match self.random.u8(0..10) {
            0 => {
                let lasts = if self.random.u8(0..3) > 0 {
                    self.random.u64(1_000..60_000)
                } else {
                    self.random.u64(60_000..1_800_000)
                };
                engine.unreachable_until = self.now + lasts;
                self.say(&format!("the engine does not answer for {lasts} ms"));
            }
            1 | 2 => self.with_job(&running, |world, job| world.end_job(job, "PREEMPTED")),
            3 => self.with_job(&any, |world, job| {
                world.end_job(job, "CANCELLED by 0");
            }),
            4 | 5 => self.with_job(&running, Self::node_of_job_fails),
            6 | 7 => self.with_job(&running, Self::job_is_suspended),
            8 => self.with_job(&running, Self::node_of_job_stands_still),
            _ if self.chance(1, 6) => self.engine_loses_its_state(),
            _ => {}
        }
    }

    fn with_job(&mut self, jobs: &[u32], happens: impl FnOnce(&mut Self, u32)) {
        if let Some(job) = self.pick(jobs).copied() {
            happens(self, job);
        }
    }

    fn node_of(&self, job: u32) -> Option<GpuId> {
        self.engine.as_ref()?.jobs.get(&job)?.node.clone()
    }

    /// The engine does not hear of a node any more; what runs there runs on.
    fn node_of_job_fails(&mut self, job: u32) {
        if let Some(gpu) = self.node_of(job) {
            self.node_fails(&gpu);
        }
    }

    pub(super) fn node_fails(&mut self, gpu: &GpuId) {
        let Some(engine) = &mut self.engine else {
            return;
        };
        let job = engine.on_node(gpu);
        let Some(node) = engine.node(gpu).filter(|node| !node.is_down) else {
            return;
        };
        node.is_down = true;
        self.say(&format!("the engine does not hear of {gpu}"));
        if let Some(number) = job {
            if let Some(job) = self.engine.as_mut().and_then(|it| it.jobs.get_mut(&number)) {
                job.why.clear();
            }
            self.job_is_over(number, "NODE_FAIL");
        }
        let back = self.random.u64(10_000..600_000);
        self.at(back, Event::NodeReturns(gpu.clone()));
    }

    /// The engine has what it does not know (any more) killed there.
    pub(super) fn node_returns(&mut self, gpu: &GpuId) {
        if self.away.contains(gpu) {
            return self.at(10_000, Event::NodeReturns(gpu.clone()));
        }
        let is_left = |site: &Site| site.agent.is_some() || site.tree.is_some();
        let posts = self.sites_on(gpu);
        if posts
            .iter()
            .any(|post| self.sites.get(post).is_some_and(is_left))
        {
            for post in posts {
                self.kill_if_alive(post);
            }
            return self.at(ORPHAN_MS, Event::NodeReturns(gpu.clone()));
        }
        if let Some(node) = self.engine.as_mut().and_then(|it| it.node(gpu)) {
            node.is_down = false;
        }
        self.say(&format!("{gpu} is back at its engine"));
        self.at(1, Event::EngineSchedules);
    }

    fn job_is_suspended(&mut self, number: u32) {
        let Some(gpu) = self.node_of(number).filter(|gpu| !self.away.contains(gpu)) else {
            return;
        };
        if let Some(job) = self.engine.as_mut().and_then(|it| it.jobs.get_mut(&number)) {
            job.suspended_at = Some(self.now);
        }
        self.say(&format!("job {number} is suspended"));
        let lasts = self.random.u64(1_000..600_000);
        self.stand_still(&gpu, lasts);
    }

    /// It is not heard of, and its engine may give it up.
    fn node_of_job_stands_still(&mut self, job: u32) {
        let Some(gpu) = self.node_of(job) else { return };
        let lasts = self.random.u64(100..400_000);
        self.stand_still(&gpu, lasts);
        if self.random.bool() && lasts > 60_000 {
            self.at(30_000, Event::NodeFails(gpu));
        }
    }

    /// A node that stood still goes on; what was to be done there is done now.
    pub(super) fn node_goes_on(&mut self, gpu: &GpuId) {
        let now = self.now;
        let Some(engine) = &mut self.engine else {
            return;
        };
        let there = engine.on_node(gpu);
        self.at(1, Event::EngineSchedules);
        let (Some(number), Some(engine)) = (there, &mut self.engine) else {
            return;
        };
        if let Some(job) = engine.jobs.get_mut(&number)
            && let Some(suspended_at) = job.suspended_at.take()
        {
            job.suspended_ms += now - suspended_at;
            self.say(&format!("job {number} goes on"));
            self.watch_limit(number);
        }
        self.at(1, Event::JobKill(number));
    }

    fn engine_loses_its_state(&mut self) {
        let Some(engine) = &mut self.engine else {
            return;
        };
        let suspended: Vec<_> = engine
            .jobs
            .values()
            .filter(|job| job.suspended_at.is_some())
            .filter_map(|job| job.node.clone())
            .collect();
        engine.jobs.clear();
        let nodes: Vec<_> = engine.nodes.iter_mut().collect();
        let mut back = Vec::new();
        for node in nodes {
            if !node.is_down {
                node.is_down = true;
                back.push(node.gpu.clone());
            }
        }
        self.say("the engine lost all it knew");
        for gpu in suspended {
            if self.away.remove(&gpu) {
                self.host_goes_on(&gpu);
            }
        }
        for gpu in back {
            let after = self.random.u64(1..60_000);
            self.at(after, Event::NodeReturns(gpu));
        }
    }
}

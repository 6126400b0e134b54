use super::*;

impl World {
    pub(super) fn fault(&mut self) {
        if self.calm {
            return;
        }
        let wait = self.random.u64(500..120_000) / self.haste;
        self.at(wait, Event::Fault);
        if self.engine.is_some() && self.chance(1, 3) {
            return self.engine_fault();
        }
        let alive: Vec<Post> = self
            .sites
            .iter()
            .filter(|(_, site)| site.agent.is_some())
            .map(|(post, _)| *post)
            .collect();
        match (self.random.u8(0..18), self.pick(&alive).copied()) {
            (0, _) if self.plane.is_some() => self.crash("at rest"),
            (1, _) if self.plane.is_some() => self.server_stops(),
            (2, _) if self.plane.is_some() => self.server_is_replaced(),
            (3, _) if self.plane.is_some() && self.chance(1, 3) => self.server_ends_sessions(),
            (4, _) => self.clock_steps(),
            (5, _) if !self.store_refuses => self.store_refuses(),
            (6, _) => {
                self.launcher_broken_until = self.now + self.random.u64(1_000..200_000);
                self.say("the launcher is broken");
            }
            (7 | 8, Some(post)) => self.agent_is_killed(post),
            (9 | 10, Some(post)) => self.network_is_cut(post),
            (11 | 12, Some(post)) => self.agent_is_paused(post),
            (13 | 14, _) => self.host_stands_still(),
            (15, _) => self.host_loses_what_it_kept(),
            (16, _) if self.plane.is_some() && self.server_missed.is_none() => {
                self.everything_sleeps();
            }
            _ => {}
        }
    }

    fn clock_steps(&mut self) {
        const DAY_MS: i64 = 86_400_000;
        let by = match self.random.u8(0..4) {
            0 => DAY_MS,
            1 => -DAY_MS,
            _ => self.random.i64(-DAY_MS..DAY_MS),
        };
        self.wall_offset += by;
        let direction = if by < 0 { "back" } else { "forward" };
        let runs = self
            .store
            .open()
            .any(|session| matches!(session.state, State::Running { .. }));
        let during = if runs { "a session" } else { "nothing" };
        self.say(&format!(
            "the clock steps {direction} during {during}: {by} ms"
        ));
    }

    fn store_refuses(&mut self) {
        self.store_refuses = true;
        let lasts = if self.chance(1, 3) {
            self.say("the store refuses for long: its disk is full");
            self.random.u64(60_000..900_000)
        } else {
            self.say("the store refuses");
            self.random.u64(100..20_000)
        };
        self.at(lasts, Event::StoreRecovers);
    }

    fn agent_is_killed(&mut self, post: Post) {
        self.say(&format!("the agent is killed: {}", short(post)));
        self.kill_agent(post);
    }

    pub(super) fn kill_agent(&mut self, post: Post) {
        let now = self.now;
        let Some(site) = self.sites.get_mut(&post) else {
            return;
        };
        site.kill_agent(now);
        let tree = site.trees;
        let orphaned = self.random.u64(0..ORPHAN_MS);
        self.at(orphaned, Event::TreeGone { post, tree });
        self.at(1, Event::HangsUp(post.session));
        self.release(post);
        self.job_may_be_over(post);
    }

    fn network_is_cut(&mut self, post: Post) {
        self.say(&format!("the network is cut: {}", short(post)));
        let lasts = self.random.u64(100..300_000);
        if let Some(site) = self.sites.get_mut(&post) {
            site.partitioned_until = self.now + lasts;
        }
        self.at(1, Event::HangsUp(post.session));
    }

    fn agent_is_paused(&mut self, post: Post) {
        let Some(site) = self.sites.get_mut(&post) else {
            return;
        };
        site.pause();
        let incarnation = site.incarnations;
        let lasts = if self.random.bool() {
            self.random.u64(100..5_000)
        } else {
            self.random.u64(100..300_000)
        };
        self.say(&format!(
            "the agent is paused for {lasts} ms: {}",
            short(post)
        ));
        self.at(lasts, Event::AgentGoesOn(post, incarnation));
    }

    fn host_stands_still(&mut self) {
        let gpus: Vec<GpuId> = self.inventory.iter().map(|gpu| gpu.id.clone()).collect();
        let lasts = if self.random.bool() {
            self.random.u64(100..30_000)
        } else {
            self.random.u64(30_000..400_000)
        };
        if let Some(gpu) = self.pick(&gpus) {
            self.stand_still(gpu, lasts);
        }
    }

    /// Agent, first process and app stop where they are and cannot be reached; the
    /// host's clock counts on.
    pub(super) fn stand_still(&mut self, gpu: &GpuId, lasts: u64) {
        if !self.away.insert(gpu.clone()) {
            return;
        }
        self.say(&format!("the host of {gpu} stands still for {lasts} ms"));
        for post in self.sites_on(gpu) {
            // A network may say so, or nothing may be heard any more.
            if self.random.bool() {
                self.at(1, Event::HangsUp(post.session));
            }
        }
        self.at(lasts, Event::HostGoesOn(gpu.clone()));
    }

    /// The server, and often all hosts with it, as on a laptop that is shut.
    fn everything_sleeps(&mut self) {
        let lasts = self.random.u64(1_000..200_000);
        self.server_stands_still(lasts);
        if self.random.bool() {
            let gpus: Vec<GpuId> = self.inventory.iter().map(|gpu| gpu.id.clone()).collect();
            for gpu in &gpus {
                self.stand_still(gpu, lasts);
            }
        }
    }

    pub(super) fn host_goes_on(&mut self, gpu: &GpuId) {
        self.say(&format!("the host of {gpu} goes on"));
        let now = self.now;
        for post in self.sites_on(gpu) {
            if let Some(site) = self.sites.get_mut(&post) {
                site.host_goes_on(now);
            }
            self.release(post);
        }
        self.node_goes_on(gpu);
    }

    pub(super) fn sites_on(&self, gpu: &GpuId) -> Vec<Post> {
        self.sites
            .iter()
            .filter(|(_, site)| site.gpu == *gpu)
            .map(|(post, _)| *post)
            .collect()
    }

    /// The agent is dead and its journal gone; the app may outlive both for a moment.
    fn host_loses_what_it_kept(&mut self) {
        let posts: Vec<Post> = self
            .sites
            .iter()
            .filter(|(post, _)| post.job.is_none())
            .filter(|(_, site)| site.journal.is_some() && !self.away.contains(&site.gpu))
            .map(|(post, _)| *post)
            .collect();
        let Some(post) = self.pick(&posts).copied() else {
            return;
        };
        let id = post.session;
        let was_heard_of = self.proven.contains_key(&id);
        self.kill_agent(post);
        if let Some(site) = self.sites.get_mut(&post) {
            site.journal = None;
        }
        self.launches_fail(id);
        if was_heard_of {
            self.say(&format!("what a host kept is lost: {}", short(id)));
            return;
        }
        self.say(&format!(
            "what a host kept is lost unheard of: {}",
            short(id)
        ));
        // What nobody had read yet is lost too: nothing of it is left to meet an app
        // that is started anew.
        let is_left = |event: &Event| !matches!(event, Event::ToServer(of, _) if *of == post);
        self.events.retain(|_, event| is_left(event));
        if let Some(missed) = &mut self.server_missed {
            missed.retain(is_left);
        }
        self.tree_gone(post);
    }

    /// What was on its way to a host that lost everything arrives nowhere.
    fn launches_fail(&mut self, of: SessionId) {
        for (at, event) in std::mem::take(&mut self.events) {
            let event = match event {
                Event::Launch(LaunchUnderWay { by, launch, .. }) if launch.session == of => {
                    Event::Launched {
                        by,
                        id: of,
                        outcome: LaunchOutcome::Failed("Its host lost it".into()),
                    }
                }
                other => other,
            };
            self.events.insert(at, event);
        }
    }
}

use super::*;

impl World {
    pub(super) fn launch(&mut self, asked: &LaunchUnderWay) {
        let launch = &asked.launch;
        let id = launch.session;
        let broken = !self.calm && (self.launcher_broken_until > self.now || self.chance(1, 25));
        let clock_base = self.random.u64(0..1_000_000);
        let nature = self.nature();
        let Some(gpu) = launch.placement.gpu() else {
            return;
        };
        let host_is_away = self.away.contains(gpu);
        let site = self
            .sites
            .entry(id.into())
            .or_insert_with(|| Site::new(gpu.clone(), launch.terms, nature, clock_base));
        site.host_was_away = host_is_away;
        let outcome = if host_is_away {
            self.say(&format!("its host cannot be reached: {}", short(id)));
            LaunchOutcome::Failed("Its host cannot be reached".into())
        } else if let Some(agent) = &site.agent {
            if agent.is_paused {
                let incarnation = agent.incarnation;
                self.say(&format!("a paused agent is sent on: {}", short(id)));
                self.at(1, Event::AgentGoesOn(id.into(), incarnation));
            }
            self.say(&format!("an agent lives already: {}", short(id)));
            LaunchOutcome::AlreadyRunning
        } else if broken {
            self.say(&format!("no agent can be started: {}", short(id)));
            LaunchOutcome::Failed("no room".into())
        } else {
            self.start_agent(
                id.into(),
                launch.terms,
                launch.may_begin,
                asked.was_heard_of,
            );
            LaunchOutcome::Started
        };
        self.with_site(id.into(), Site::settle);
        let by = asked.by;
        self.at(1, Event::Launched { by, id, outcome });
    }

    pub(super) fn start_agent(
        &mut self,
        post: Post,
        terms: Terms,
        may_begin: bool,
        was_heard_of: bool,
    ) {
        let now = self.now;
        let Some(site) = self.sites.get_mut(&post) else {
            return;
        };
        let starts_app = site.start_agent(terms, may_begin, now);
        let (nature, incarnation, tree) = (site.nature, site.incarnations, site.trees);
        self.at(1, Event::Heartbeat(post, incarnation));
        self.say(&format!("agent {incarnation} of {} starts", short(post)));
        if !starts_app {
            return;
        }
        if tree > 1 {
            self.say(&format!(
                "an app that was lost is started anew: {}",
                short(post)
            ));
        }
        if let Some(after) = nature.answers_after_ms {
            self.at(after, Event::AppAnswers { post, tree });
        }
        if let Some((after, status)) = nature.exits_after_ms {
            self.at(after, Event::AppExits { post, tree, status });
        }
        self.check(invariants::check_start(self, post, was_heard_of));
    }

    pub(super) fn nature(&mut self) -> AppNature {
        let answers = self.random.u64(50..20_000);
        let exits = (self.random.u64(10..200_000), self.random.i32(0..2));
        let heeds = self.random.u64(1..3_000);
        AppNature {
            answers_after_ms: (!self.chance(1, 8)).then_some(answers),
            exits_after_ms: self.chance(1, 4).then_some(exits),
            heeds_term_ms: self.chance(2, 3).then_some(heeds),
        }
    }

    /// Something happens to a session's agent; then it does what it wants done.
    pub(super) fn with_site(&mut self, post: Post, happens: impl FnOnce(&mut Site, u64)) {
        let now = self.now;
        let Some(site) = self.sites.get_mut(&post) else {
            return;
        };
        happens(site, now);
        site.settle(now);
        let wishes = site.wishes();
        let (nature, incarnation, tree) = (site.nature, site.incarnations, site.trees);
        let (wakes_at, watch_wakes_at) = (site.next_wake(), site.next_watch());
        for wish in wishes {
            match wish {
                Wish::Report => self.report(post),
                Wish::TermToApp => {
                    if let Some(after) = nature.heeds_term_ms {
                        let status = 0;
                        self.at(after, Event::AppExits { post, tree, status });
                    }
                }
                Wish::KillTree => {
                    let after = self.random.u64(1..20);
                    self.at(after, Event::TreeGone { post, tree });
                }
            }
        }
        if let Some(at) = wakes_at {
            let wait = at.saturating_sub(now);
            self.at(wait, Event::AgentWakes(post, incarnation));
        }
        if let Some(at) = watch_wakes_at {
            let wait = at.saturating_sub(now);
            self.at(wait, Event::WatchWakes { post, tree });
        }
        self.job_may_be_over(post);
    }

    /// The first process looks at its clock.
    pub(super) fn watch(&mut self, post: Post) {
        let now = self.now;
        let Some(site) = self.sites.get_mut(&post) else {
            return;
        };
        let (number, has_agent) = (site.trees, site.agent.is_some());
        let Some(tree) = &mut site.tree else { return };
        tree.watch_wakes_at = None;
        if !has_agent {
            return;
        }
        match tree.watch_at {
            Some(at) if at <= now => {
                let is_early = tree.promise.goes_on(now);
                tree.killed_by_watch = true;
                let after = self.random.u64(1..20);
                self.at(after, Event::TreeGone { post, tree: number });
                self.say(&format!("killed in the agent's place: {}", short(post)));
                if is_early {
                    self.broken = Some(format!("{post} was killed before its time was up"));
                }
            }
            Some(at) => {
                tree.watch_wakes_at = Some(at);
                self.at(at - now, Event::WatchWakes { post, tree: number });
            }
            None => {}
        }
    }

    /// A paused agent's process goes on.
    pub(super) fn wake_agent(&mut self, post: Post) {
        let is_paused = |site: &Site| site.agent.as_ref().is_some_and(|agent| agent.is_paused);
        if self.sites.get(&post).is_some_and(is_paused) {
            self.say(&format!("the agent goes on: {}", short(post)));
            self.with_site(post, Site::go_on);
            self.release(post);
        }
    }

    /// What was put off happens now, in its order.
    pub(super) fn release(&mut self, post: Post) {
        for event in self.put_off.remove(&post).unwrap_or_default() {
            self.at(1, event);
        }
    }

    pub(super) fn tree_gone(&mut self, post: Post) {
        let Some(site) = self.sites.get(&post) else {
            return;
        };
        let checked = invariants::check_end(self, post, site);
        self.check(checked);
        let refuses = if self.store_refuses {
            " while the store refuses"
        } else {
            ""
        };
        self.say(&format!("the tree is gone{refuses}: {}", short(post)));
        self.with_site(post, Site::tree_is_gone);
        self.report(post);
        self.release(post);
        if let Some(site) = self.sites.get(&post) {
            let checked = invariants::what_is_told_is_true(self, post, site);
            self.check(checked);
        }
    }

    pub(super) fn report(&mut self, post: Post) {
        let Some(site) = self.sites.get(&post) else {
            return;
        };
        if self.away.contains(&site.gpu) || site.agent_stands_still(self.now) {
            return;
        }
        let Some(status) = site.status(self.now) else {
            return;
        };
        for delay in self.delivery(post) {
            self.at(delay, Event::ToServer(post, status.clone()));
        }
    }

    /// When copies of a message arrive, if any do.
    pub(super) fn delivery(&mut self, post: Post) -> Vec<u64> {
        if self.calm {
            return vec![self.random.u64(1..50)];
        }
        if self
            .sites
            .get(&post)
            .is_some_and(|site| site.partitioned_until > self.now)
        {
            return Vec::new();
        }
        match self.random.u8(0..40) {
            0 | 1 => {
                self.say(&format!("a message is lost: {}", short(post)));
                Vec::new()
            }
            2 | 3 => {
                self.say(&format!("a message comes twice: {}", short(post)));
                vec![self.random.u64(1..50), self.random.u64(1..5_000)]
            }
            4 => vec![self.random.u64(1..30_000)],
            _ => vec![self.random.u64(1..50)],
        }
    }

    pub(super) fn is_alive(&self, post: Post, incarnation: u32) -> bool {
        self.sites.get(&post).is_some_and(|site| {
            site.agent
                .as_ref()
                .is_some_and(|agent| agent.incarnation == incarnation)
        })
    }

    pub(super) fn has_tree(&self, post: Post, tree: u32) -> bool {
        self.sites
            .get(&post)
            .is_some_and(|site| site.tree.is_some() && site.trees == tree)
    }
}

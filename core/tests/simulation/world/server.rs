use super::*;

impl World {
    pub(super) fn server_starts(&mut self) {
        if self.plane.is_some() {
            return;
        }
        let a10g = GpuType("A10G".into());
        let settings = Settings {
            limits: LIMITS,
            prices: Prices([(a10g, HourlyRate(MicroDollars(1_100_000)))].into()),
            places: Places {
                inventory: self.inventory.clone(),
                offers: self.offers(),
            },
            ports: PortPool::new(PORTS, self.random.u16(PORTS)),
        };
        let snapshot = Snapshot {
            sessions: self.store.open().cloned().collect(),
            machines: self.store.machines.values().cloned().collect(),
            keys: self.store.keys.values().cloned().collect(),
            shares: self.store.open_shares().cloned().collect(),
            gpu_free_since: self
                .last_events
                .iter()
                .map(|(gpu, (_, end))| (gpu.clone(), *end))
                .collect(),
        };
        let now = self.moment();
        self.plane = Some(ControlPlane::recover(settings, snapshot, now));
        self.process += 1;
        self.shuts_down = false;
        self.say("the server is back");
        let posts: Vec<_> = self.sites.keys().copied().collect();
        for post in posts {
            // Agents find it within a moment.
            self.report(post);
        }
        if self.engine.is_some() {
            let by = self.process;
            self.at(1, Event::Look { by });
        }
        self.serve(|_, _| ());
    }

    fn offers(&self) -> Vec<Offer> {
        let cluster = self.engine.as_ref().map(|it| it.cluster.clone());
        let cluster = cluster.map(Offer::Cluster);
        let mut offers: Vec<_> = [Offer::Host { runs_images: false }]
            .into_iter()
            .chain(cluster)
            .collect();
        if self.cluster_comes_first {
            offers.reverse();
        }
        offers
    }

    pub(super) fn crash(&mut self, when: &str) {
        self.process_ends();
        self.say(&format!("the server crashes {when}"));
        let back = self.random.u64(100..20_000);
        self.at(back, Event::ServerStarts);
    }

    /// What waits is answered; sessions go on.
    pub(super) fn server_stops(&mut self) {
        self.serve(|_, _| ());
        if self.plane.is_none() || self.server_missed.is_some() {
            return;
        }
        self.process_ends();
        self.say("the server is stopped");
        let back = self.random.u64(100..20_000);
        self.at(back, Event::ServerStarts);
    }

    /// A new process takes over at once; the agents hang up and call again.
    pub(super) fn server_is_replaced(&mut self) {
        self.serve(|_, _| ());
        if self.plane.is_none() || self.server_missed.is_some() {
            return;
        }
        self.process_ends();
        self.say("the server is replaced in place");
        self.server_starts();
    }

    /// Told to stop and to leave nothing behind.
    pub(super) fn server_ends_sessions(&mut self) {
        if self.server_missed.is_some() {
            return;
        }
        self.say("the server is told to end all sessions");
        let waits = |session: &Session| (session.id, session.placement().is_none());
        let open: Vec<_> = self.store.open().map(waits).collect();
        let is_on_record = self.serve(ControlPlane::cancel_all).is_some();
        if self.plane.is_none() {
            return;
        }
        self.shuts_down = true;
        for (id, waited) in open {
            if let Some(acknowledged) = self.acknowledged.get_mut(&id)
                && is_on_record
            {
                acknowledged.cancelled = true;
                acknowledged.cancelled_in_queue |= waited;
                self.check(invariants::acknowledged_requests_hold(self, id));
            }
        }
        let after = self.random.u64(100..15_000);
        let process = self.process;
        self.at(after, Event::ServerStops { process });
    }

    /// It decides nothing for a while; its clock counts on.
    pub(super) fn server_stands_still(&mut self, lasts: u64) {
        self.say(&format!("the server stands still for {lasts} ms"));
        self.server_missed = Some(Vec::new());
        let process = self.process;
        self.at(lasts, Event::ServerGoesOn { process });
    }

    pub(super) fn server_goes_on(&mut self) {
        if let Some(missed) = self.server_missed.take() {
            self.say("the server goes on");
            self.serve(|_, _| ());
            for event in missed {
                self.at(1, event);
            }
        }
    }

    /// With the process go its launchers. What one had just done stays done, though
    /// nobody learns of it.
    fn process_ends(&mut self) {
        self.plane = None;
        self.server_missed = None;
        self.server_wakes_at = None;
        for (at, event) in std::mem::take(&mut self.events) {
            match event {
                Event::Launch(_) if self.random.bool() => {
                    self.events.insert((self.now + 1, at.1), event);
                }
                Event::Launch(_) => {}
                // It may be on its way to its engine for as long as the next one takes.
                Event::Submit(_) if self.random.bool() => {
                    let late = self.random.u64(1..30_000);
                    self.events.insert((self.now + late, at.1), event);
                }
                Event::Submit(_) => {}
                _ => {
                    self.events.insert(at, event);
                }
            }
        }
    }

    pub(super) fn server_hears(&mut self, post: Post, status: &AgentStatus) {
        let id = post.session;
        // What it answers goes to who spoke last.
        self.speaks.insert(id, post);
        let heard = self.serve(|plane, now| plane.heard(id, status, now));
        if heard.is_some() {
            let asks = matches!(status.phase, AgentPhase::Asks { .. });
            let session = self.store.sessions.get(&id);
            // It may come late.
            if !asks || session.is_some_and(|it| matches!(it.state, State::Starting { .. })) {
                self.last_heard.insert(id, self.now);
            }
            // One that asks need not be the one whose GPU it is about.
            if !asks {
                let proven = self.proven.entry(id).or_default();
                *proven = status.held_ms.max(*proven);
            }
        }
    }

    pub(super) fn wake_server(&mut self, wait: u64) {
        if is_sooner(&mut self.server_wakes_at, self.now + wait).is_some() {
            self.at(wait, Event::ServerWakes);
        }
    }

    /// One step of the driver: decide, commit, act. `None` when nobody answered, or
    /// the answer was that it could not be put on record.
    pub(super) fn serve<T>(
        &mut self,
        decide: impl FnOnce(&mut ControlPlane, Moment) -> T,
    ) -> Option<T> {
        if self.server_missed.is_some() {
            return None;
        }
        let now = self.moment();
        let mut plane = self.plane.take()?;
        self.served = true;
        plane.advance(now);
        let answer = decide(&mut plane, now);
        let changes = plane.changes();
        if !self.calm && !changes.is_empty() && self.chance(1, 150) {
            self.crash("before it commits");
            return None;
        }
        if self.store_refuses && !changes.is_empty() {
            plane.roll_back(now);
            self.at_rest = false;
            self.plane = Some(plane);
            self.wake_server(1_000);
            return None;
        }
        self.plane = Some(plane);
        for change in changes {
            self.commit(change);
        }
        let commands = self
            .plane
            .as_mut()
            .map(ControlPlane::commit)
            .unwrap_or_default();
        if !self.calm && !commands.is_empty() && self.chance(1, 100) {
            // On record, and so acknowledged or not; nothing of it was done.
            self.crash("before it acts");
            return None;
        }
        for command in commands {
            self.perform(command);
        }
        self.at_rest = true;
        if let Some(deadline) = self.plane.as_ref().and_then(ControlPlane::deadline) {
            let wait = deadline.0.saturating_sub(self.moment().monotonic.0);
            self.wake_server(wait.max(1));
        }
        Some(answer)
    }

    fn commit(&mut self, change: Change) {
        match change {
            Change::Session(session) => {
                let before = self.store.sessions.get(&session.id).cloned();
                let checked = invariants::check_change(self, before.as_ref(), &session);
                self.check(checked);
                if before.as_ref().map(|before| name(&before.state)) != Some(name(&session.state)) {
                    self.say(&format!("{} is {}", short(session.id), described(&session)));
                }
                if let (State::Ended { .. }, Some(gpu), Some(end)) = (
                    &session.state,
                    &session.gpu_event.gpu,
                    session.gpu_event.end(),
                ) {
                    self.last_events.insert(gpu.clone(), (session.id, end));
                }
                let (id, has_ended) = (session.id, !session.is_open());
                self.store.put(*session);
                self.check(invariants::acknowledged_requests_hold(self, id));
                let mut given_up = Vec::new();
                for (post, site) in self.sites.range_mut(posts_of(id)) {
                    if has_ended && site.tree.is_some() {
                        site.is_given_up = true;
                        given_up.push(*post);
                    }
                }
                for post in given_up {
                    let place = post.job.map_or("host", |_| "job");
                    self.say(&format!("{} is given up with its {place}", short(post)));
                }
            }
            Change::Machine(machine) => {
                self.store.machines.insert(machine.id, *machine);
            }
            Change::MachineVersion(machine, version) => {
                self.store.versions.insert((machine, version.id));
            }
            Change::MachineDeleted(id) => {
                self.store.machines.remove(&id);
                self.store.versions.retain(|(machine, _)| *machine != id);
                self.acknowledged_versions
                    .retain(|(machine, _)| *machine != id);
            }
            Change::Key(key) => {
                self.store.keys.insert(key.id, key);
            }
            Change::Share(share) => {
                self.check(invariants::check_share(self, &share));
                self.store.shares.insert((share.session, share.id), *share);
            }
            Change::ForgetEndedBefore(_) => {}
        }
    }

    fn perform(&mut self, command: Command) {
        self.commands += 1;
        match command {
            Command::Launch(launch) => {
                let (id, port) = (launch.session, launch.placement.port);
                let takes = if self.calm {
                    5
                } else if self.chance(1, 15) {
                    self.random.u64(1..40_000)
                } else {
                    self.random.u64(1..3_000)
                };
                if !self.calm && self.chance(1, 40) {
                    self.at(1, Event::PortTaken(id, port));
                }
                let launch = LaunchUnderWay {
                    by: self.process,
                    was_heard_of: self.proven.contains_key(&id),
                    launch,
                };
                self.at(takes, Event::Launch(launch));
            }
            Command::Tell { session, message } => {
                let post = self.speaks.get(&session).copied();
                let post = post.unwrap_or(session.into());
                for delay in self.delivery(post) {
                    self.at(delay, Event::ToAgent(post, message.clone()));
                }
            }
            Command::CancelJob { job, .. } => self.ask_engine(&job, None),
            Command::LimitJob {
                job, time_limit, ..
            } => self.ask_engine(&job, Some(time_limit)),
        }
    }
}

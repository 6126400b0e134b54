use super::*;

impl World {
    pub(super) fn client(&mut self) {
        if self.calm {
            return;
        }
        let wait = self.random.u64(10..40_000) / self.haste;
        self.at(wait, Event::Client);
        match self.random.u8(0..22) {
            0..=9 => self.client_creates(),
            10..=12 => self.client_cancels(),
            13..=15 => self.client_extends(),
            16 | 17 => self.client_changes_machine(),
            18 => self.client_deletes_machine(),
            19 => self.client_shares(),
            20 => self.client_revokes_or_visits(),
            _ => self.client_makes_key(),
        }
    }

    fn principal(&mut self) -> Principal {
        let (user, org) = *self
            .pick(&[("ada", None), ("bob", None), ("ada", Some("lab"))])
            .unwrap();
        Principal {
            user: UserId(user.into()),
            org: org.map(|org| OrgId(org.into())),
            admin: user == "bob",
        }
    }

    fn client_creates(&mut self) {
        let principal = self.principal();
        let id = SessionId(self.new_id());
        let minutes = *self.pick(&[0, 1, 1, 2, 5, 31]).unwrap();
        let machines: Vec<MachineId> = self.store.machines.keys().copied().collect();
        let source = match self.pick(&machines).copied() {
            Some(machine) if self.random.bool() => Source::Machine(machine),
            _ => Source::Recipe(Box::new(recipe(self.random.u16(1..9)))),
        };
        let gpu = self
            .pick(&[None, Some("A10G"), Some("A10G"), Some("CPU"), Some("H100")])
            .copied()
            .flatten();
        let new = NewSession {
            id,
            gpu_event_id: GpuEventId(id.0),
            principal: principal.clone(),
            source,
            gpu: gpu.map(|gpu| GpuType(gpu.into())),
            timeout_minutes: Some(minutes),
        };
        let answer = self.serve(|plane, now| plane.create_session(new, now));
        if self.said(&format!("create {} for {minutes} min", short(id)), &answer) {
            if self.shuts_down {
                self.broken = Some(format!("{id} was granted by a server that shuts down"));
            }
            let granted = Millis::from_minutes(if minutes == 0 { 2 } else { minutes });
            let (owner, cancelled, cancelled_in_queue) = (principal.owner(), false, false);
            self.acknowledged.insert(
                id,
                Acknowledged {
                    owner,
                    granted,
                    cancelled,
                    cancelled_in_queue,
                },
            );
            self.check(invariants::acknowledged_requests_hold(self, id));
        } else if answer.is_some() && self.store.sessions.contains_key(&id) {
            self.broken = Some(format!("{id} was refused and is there"));
        }
    }

    fn client_cancels(&mut self) {
        let Some((id, owner)) = self.some_session() else {
            return;
        };
        let queued = matches!(
            self.store.sessions.get(&id).map(|s| &s.state),
            Some(State::Queued { .. })
        );
        let answer = self.serve(|plane, now| plane.cancel_session(&owner, id, now));
        if self.said(&format!("cancel {}", short(id)), &answer)
            && let Some(acknowledged) = self.acknowledged.get_mut(&id)
        {
            acknowledged.cancelled = true;
            acknowledged.cancelled_in_queue |= queued;
            self.check(invariants::acknowledged_requests_hold(self, id));
            self.ensure_own(id, &owner);
        }
    }

    fn client_extends(&mut self) {
        let Some((id, owner)) = self.some_session() else {
            return;
        };
        let minutes = self.random.u32(0..4);
        let answer = self.serve(|plane, _| plane.extend_session(&owner, id, minutes));
        if self.said(&format!("extend {} by {minutes} min", short(id)), &answer) {
            self.ensure_own(id, &owner);
            let granted = self.store.sessions[&id].granted_ms;
            self.say(&format!("{} is extended to {granted}", short(id)));
            if let Some(acknowledged) = self.acknowledged.get_mut(&id) {
                acknowledged.granted = granted;
                self.check(invariants::acknowledged_requests_hold(self, id));
            }
        }
    }

    /// Some session, asked for by its owner or, now and then, by somebody else.
    fn some_session(&mut self) -> Option<(SessionId, Owner)> {
        let ids: Vec<SessionId> = self.store.open().map(|s| s.id).collect();
        let id = *self.pick(&ids)?;
        let owner = self.store.sessions[&id].owner.clone();
        let owner = if self.chance(1, 6) {
            self.principal().owner()
        } else {
            owner
        };
        Some((id, owner))
    }

    fn ensure_own(&mut self, id: SessionId, owner: &Owner) {
        if self.store.sessions[&id].owner != *owner {
            self.broken = Some(format!("{owner:?} touched {id}"));
        }
    }

    fn client_changes_machine(&mut self) {
        let principal = self.principal();
        let version_id = MachineVersionId(self.new_id());
        let machines: Vec<MachineId> = self.store.machines.keys().copied().collect();
        let existing = self.pick(&machines).copied().filter(|_| self.random.bool());
        let id = existing.unwrap_or_else(|| MachineId(self.new_id()));
        let port = self.random.u16(1..9);
        let answer = self.serve(|plane, now| match existing {
            Some(id) => {
                let patch = MachinePatch {
                    port: Some(Some(port)),
                    ..MachinePatch::default()
                };
                plane.change_machine(&principal, id, patch, version_id, now)
            }
            None => {
                let (name, recipe) = ("m".to_owned(), recipe(port));
                plane.create_machine(
                    NewMachine {
                        id,
                        version_id,
                        principal,
                        name,
                        recipe,
                    },
                    now,
                )
            }
        });
        if self.said("change a machine", &answer)
            && let Some(Ok(machine)) = answer
        {
            self.acknowledged_versions.insert((id, machine.current.id));
        }
    }

    fn client_deletes_machine(&mut self) {
        let owner = self.principal().owner();
        let machines: Vec<MachineId> = self.store.machines.keys().copied().collect();
        let known = self.pick(&machines).copied();
        let id = known.unwrap_or_else(|| MachineId(self.new_id()));
        let answer = self.serve(|plane, _| plane.delete_machine(&owner, id));
        self.said("delete a machine", &answer);
    }

    fn client_makes_key(&mut self) {
        let (by, principal) = (self.principal(), self.principal());
        let id = KeyId(self.new_id());
        let now = self.moment().wall;
        let key = Key {
            id,
            name: "k".into(),
            hash: KeyHash([0; 32]),
            principal: principal.clone(),
            created_at: now,
            revoked_at: None,
        };
        let answer = self.serve(|plane, _| plane.create_key(key, Some(&by)));
        if self.said("make a key", &answer) {
            self.acknowledged_keys.insert(id);
            if by != principal && !by.admin {
                self.broken = Some(format!("{by:?} made a key for {principal:?}"));
            }
        }
    }

    fn client_shares(&mut self) {
        let Some((session, _)) = self.some_session() else {
            return;
        };
        let principal = self.principal();
        for _ in 0..self.random.u8(1..4) {
            self.client_makes_link(session, &principal);
        }
    }

    fn client_makes_link(&mut self, session: SessionId, principal: &Principal) {
        let id = ShareId(self.new_id());
        let good_for = self.random.bool().then_some(Millis(60_000));
        let new = NewShare {
            id,
            principal: principal.clone(),
            session,
            name: "s".into(),
            hash: KeyHash([0; 32]),
            scope: Scope::View,
            good_for,
            default_access: Access::Private,
        };
        let answer = self.serve(|plane, now| plane.create_share(new, now));
        if self.said(&format!("share {}", short(session)), &answer) {
            self.acknowledged_shares.insert((session, id), false);
            self.ensure_own(session, &principal.owner());
        }
    }

    fn client_revokes_or_visits(&mut self) {
        let shares: Vec<_> = self.store.open_shares().cloned().collect();
        let Some(share) = self.pick(&shares).cloned() else {
            return;
        };
        let (session, id) = (share.session, share.id);
        if self.random.bool() {
            let visit = Visit {
                from: Ipv4Addr::LOCALHOST.into(),
                at: self.moment().wall,
            };
            self.serve(|plane, _| plane.share_visited(session, id, visit));
            return;
        }
        let principal = self.principal();
        let answer = self.serve(|plane, now| plane.revoke_share(&principal, session, id, now));
        if self.said(&format!("revoke a link to {}", short(session)), &answer) {
            self.acknowledged_shares.insert((session, id), true);
            self.ensure_own(session, &principal.owner());
        }
    }

    /// Put down what came of a request; was it granted?
    fn said<T>(&mut self, request: &str, answer: &Option<Result<T, Refusal>>) -> bool {
        let outcome = match answer {
            None => "no answer".to_owned(),
            Some(Ok(_)) => "granted".to_owned(),
            Some(Err(refusal)) => format!("refused: {refusal}"),
        };
        self.say(&format!("{request}: {outcome}"));
        matches!(answer, Some(Ok(_)))
    }
}

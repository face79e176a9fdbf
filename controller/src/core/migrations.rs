//! Migrations: admitted, driven, told of.

use std::collections::BTreeMap;

use throughline_cutover::{
    Binding, CoordinatorEffect, CoordinatorEvent, Failure, Generation, GuestName, HostName, Limits, News, Phase, Power,
    RebindId, Role, Step,
    admission::{self, Denial, Manner, Verdict},
    fence::Word,
};
use tokio::sync::watch;

use super::{Core, GuestState, Observation, resources::page_of};
use crate::{
    audit::Object,
    links::{Downlink, Rebind},
    planner::{self, Wish},
    record::{Asked, Happening, Known, MigrationRecord},
};

/// Part of a migration's history.
#[derive(Debug)]
pub(crate) struct Chapter {
    /// The migration.
    pub(crate) migration: MigrationRecord,
    /// What happened since.
    pub(crate) happenings: Vec<Happening>,
    /// Changes when more has happened; `None`: nothing more will.
    pub(crate) more: Option<watch::Receiver<u64>>,
}

impl Core {
    /// Moves a guest; the same request again gives the same migration.
    ///
    /// # Errors
    /// See [`admission::migrate`], and `TOO_MANY_MIGRATIONS`.
    pub(crate) fn migrate(&mut self, wish: Asked, limits: Limits) -> Result<Known, Denial> {
        let earlier = self.record.begun_by(&wish.request.request_id);
        match admission::migrate(self, &wish.request, earlier)? {
            Verdict::Known { migration } => self.known(&migration),
            Verdict::Admitted { destination, manner, .. } => {
                self.has_room_for_another(&wish)?;
                self.begin(wish, &destination, limits, manner).map(|begun| Known::Whole(Box::new(begun)))
            }
        }
    }

    /// One operator's migrations must not take what all others need: a host moves so many ports at one time and no more.
    fn has_room_for_another(&self, wish: &Asked) -> Result<(), Denial> {
        let Some(operator) = &wish.requested_by else { return Ok(()) };
        let live = self.live.keys().filter_map(|id| self.record.migrations().get(id));
        let theirs = live.filter(|it| it.requested_by.as_ref() == Some(operator)).count();
        let most = self.policy.migrations_per_operator;
        if theirs < most as usize {
            return Ok(());
        }
        Err(Denial::TooManyMigrations { operator: operator.clone(), most })
    }

    fn begin(
        &mut self,
        wish: Asked,
        destination: &HostName,
        limits: Limits,
        manner: Manner,
    ) -> Result<MigrationRecord, Denial> {
        let hosts = self.connections();
        let request = &wish.request;
        let unknown = || Denial::UnknownGuest { field: "guest".to_owned(), name: request.guest.clone() };
        let guest = self.record.guests().get(&request.guest).ok_or_else(unknown)?;
        let (cold, flatten) = (manner != Manner::Running, request.flatten);
        let wish_for = Wish { guest, destination, limits, cold, flatten, hosts: &hosts };
        let mut plan = planner::plan(&self.record, &wish_for, &mut rand::rng())?;
        if let Manner::StoppedFirst(stop) = manner {
            self.set_power(&request.guest, Power::Off(stop.stop()), GuestState::Stopping);
            plan.generation = self.generation_of(&request.guest).unwrap_or(plan.generation);
        }
        let (id, name) = (plan.id.clone(), request.guest.clone());
        let (source, target) = (plan.source.host.clone(), plan.destination.host.clone());
        tracing::info!(migration = id, guest = %name, %source, destination = %target, "migration admitted");
        let number = self.record.next_migration();
        let migration = MigrationRecord::new(number, wish, plan, self.clock.now());
        self.record.put_migration(match manner {
            Manner::StoppedFirst(stop) => migration.after_stop(stop),
            Manner::Running | Manner::Stopped => migration,
        });
        self.record.change_guest(&name, |guest| guest.migration = Some(id.clone()));
        self.live.insert(id.clone(), watch::Sender::new(0));
        let hosts: BTreeMap<_, _> = hosts.into_iter().collect();
        self.step_migration(&id, CoordinatorEvent::Begin { hosts });
        self.migration(&id)
    }

    /// One migration, as much as is left of it.
    ///
    /// # Errors
    /// `UNKNOWN_MIGRATION`.
    pub(crate) fn known(&self, id: &str) -> Result<Known, Denial> {
        self.record.known(id).ok_or(Denial::UnknownMigration)
    }

    /// One migration, with all that happened.
    ///
    /// # Errors
    /// `UNKNOWN_MIGRATION`.
    pub(crate) fn migration(&self, id: &str) -> Result<MigrationRecord, Denial> {
        self.record.migrations().get(id).cloned().ok_or(Denial::UnknownMigration)
    }

    /// Migrations older than a number, newest first, of one guest or of all, and whether there are more.
    pub(crate) fn migrations(
        &self,
        before: Option<u64>,
        guest: Option<&GuestName>,
        size: usize,
    ) -> (Vec<MigrationRecord>, bool) {
        let wanted = |it: &&MigrationRecord| {
            before.is_none_or(|before| it.number < before) && guest.is_none_or(|guest| it.request.guest == *guest)
        };
        let mut found: Vec<_> = self.record.migrations().values().filter(wanted).collect();
        found.sort_unstable_by_key(|it| std::cmp::Reverse(it.number));
        let (page, more) = page_of(found.into_iter(), size);
        (page.into_iter().cloned().collect(), more)
    }

    /// Undoes a migration that has not committed.
    ///
    /// # Errors
    /// `UNKNOWN_MIGRATION`, `TOO_LATE`.
    pub(crate) fn cancel(&mut self, id: &str) -> Result<MigrationRecord, Denial> {
        admission::cancel(id, self.migration(id)?.coordinator.phase())?;
        let failure = Failure::new("CANCELLED", "cancelled by request; the guest stays where it was");
        self.step_migration(id, CoordinatorEvent::Cancel(failure));
        self.migration(id)
    }

    /// Ends a migration by an operator's word, its destination being gone for good.
    ///
    /// # Errors
    /// `UNKNOWN_MIGRATION`, and see [`admission::resolve`].
    pub(crate) fn resolve(&mut self, id: &str, word: Word) -> Result<MigrationRecord, Denial> {
        let coordinator = self.migration(id)?.coordinator;
        let destination = coordinator.host_of(Role::Destination);
        admission::resolve(id, coordinator.is_unresolved(), destination, self.links.is_connected(destination))?;
        tracing::warn!(migration = id, ?word, "an operator says what became of the guest");
        self.step_migration(id, CoordinatorEvent::Resolve { guest_stays: word == Word::GuestStays });
        self.migration(id)
    }

    /// What happened to a migration after `sequence`.
    ///
    /// # Errors
    /// `UNKNOWN_MIGRATION`.
    pub(crate) fn chapter(&self, id: &str, sequence: u64) -> Result<Chapter, Denial> {
        let migration = self.migration(id)?;
        let happenings = migration.since(sequence).to_vec();
        let more = self.live.get(id).map(watch::Sender::subscribe);
        Ok(Chapter { migration, happenings, more })
    }

    /// Takes up what a record from before a restart left under way.
    pub(super) fn resume_migrations(&mut self) {
        let live = self.record.migrations().values().filter(|it| !it.has_ended());
        self.live = live.map(|it| (it.id().to_owned(), watch::Sender::new(it.sequence()))).collect();
        self.tell_migrations(|| CoordinatorEvent::Restarted);
    }

    /// The same event for every live migration.
    pub(super) fn tell_migrations(&mut self, event: impl Fn() -> CoordinatorEvent) {
        let live: Vec<String> = self.live.keys().cloned().collect();
        for id in live {
            self.step_migration(&id, event());
        }
    }

    pub(super) fn tick_migration(&mut self, id: &str) {
        self.step_migration(id, CoordinatorEvent::Tick);
    }

    /// Event in, decisions out, decisions done.
    pub(super) fn step_migration(&mut self, id: &str, event: CoordinatorEvent) {
        let now = self.clock.now();
        let Some(migration) = self.record.migration_mut(id) else { return };
        let effects = migration.coordinator.step(event, now);
        let mere_words = |effect: &CoordinatorEffect| matches!(effect, CoordinatorEffect::Event { .. });
        if migration.has_talked_enough() && effects.iter().all(mere_words) {
            return;
        }
        let passing = |effect: &CoordinatorEffect| {
            matches!(effect, CoordinatorEffect::Progressed | CoordinatorEffect::RefreshEnd { .. })
        };
        let changed = !effects.iter().all(passing);
        for effect in effects {
            self.execute(id, effect);
        }
        // One that has ended may be kept as an outline only, by now.
        if changed {
            self.record.save_migration(id);
        }
    }

    fn execute(&mut self, id: &str, effect: CoordinatorEffect) {
        let now = self.clock.now();
        let Some(migration) = self.record.migration_mut(id) else { return };
        match effect {
            CoordinatorEffect::Expect => {
                self.order(id, Role::Destination, |it| Downlink::Expect(Box::new(it.plan().clone())))
            }
            CoordinatorEffect::Start => self.order(id, Role::Source, |it| Downlink::Start(Box::new(it.plan().clone()))),
            CoordinatorEffect::Abort { role, failure } => {
                self.order(id, role, |it| Downlink::Abort { migration: it.id().to_owned(), failure });
            }
            CoordinatorEffect::Settle { role } => {
                self.order(id, role, |it| Downlink::Settle { migration: it.id().to_owned() });
            }
            CoordinatorEffect::Rebind { host, port, marker_index } => self.rebind(id, &host, port, marker_index),
            CoordinatorEffect::RecordOwner { generation } => {
                let (guest, host) = (migration.plan().guest.name.clone(), migration.plan().destination.host.clone());
                self.record_owner(guest, host, generation);
            }
            CoordinatorEffect::Resolve { guest_stays } => {
                self.order(id, Role::Source, |it| Downlink::Resolve { migration: it.id().to_owned(), guest_stays });
            }
            CoordinatorEffect::FenceDestination { generation, ended } => {
                let (guest, host) = (migration.plan().guest.name.clone(), migration.plan().destination.host.clone());
                let source = migration.plan().source.host.clone();
                self.record.end_guest(host, guest.clone(), ended, None);
                self.record_owner(guest, source, generation);
            }
            CoordinatorEffect::GuestRuns => {
                let guest = migration.plan().guest.name.clone();
                self.saw(guest, GuestState::Running);
            }
            CoordinatorEffect::Refresh => {
                [Role::Source, Role::Destination].into_iter().for_each(|role| self.refresh_end(id, role));
            }
            CoordinatorEffect::RefreshEnd { role } => {
                self.refresh_end(id, role);
                self.want_desired_states();
            }
            CoordinatorEffect::Progressed => {
                migration.progressed(now);
                self.announce(id);
            }
            CoordinatorEffect::Event { phase, message } => {
                tracing::info!(migration = id, ?phase, "{message}");
                migration.happened(phase, message, now);
                self.announce(id);
            }
            CoordinatorEffect::Done | CoordinatorEffect::Aborted { .. } => self.end(id),
        }
    }

    /// An order to one end, once the decision behind it is durable.
    fn order(&mut self, id: &str, role: Role, message: impl FnOnce(&MigrationRecord) -> Downlink) {
        if let Some(migration) = self.record.migrations().get(id) {
            let host = migration.coordinator.host_of(role).clone();
            let message = message(migration);
            self.when_durable(move |core| core.links.send(&host, message));
        }
    }

    /// The record follows a commit, unless it knows a later one: then the migration is one of an old copy of the record.
    fn record_owner(&mut self, guest: GuestName, host: HostName, generation: Generation) {
        if self.generation_of(&guest).is_none_or(|recorded| recorded >= generation) {
            tracing::warn!(%guest, %generation, recorded = ?self.generation_of(&guest), "an older commit; the record stands");
            return;
        }
        self.record.change_guest(&guest, |guest| {
            (guest.host, guest.generation, guest.started) = (host, generation, true);
        });
        let is_off = self.record.guests().get(&guest).is_some_and(|guest| guest.power != Power::On);
        self.saw(guest, if is_off { GuestState::Stopped } else { GuestState::Paused });
    }

    /// Whether a migration leaves its guest to that host, at that generation, by what has come of it so far.
    pub(super) fn is_the_guests_owner(&self, id: &str, host: &HostName, generation: Generation) -> bool {
        let migration = self.record.migrations().get(id);
        migration.is_some_and(|it| it.coordinator.owner() == (host, generation))
    }

    fn generation_of(&self, guest: &GuestName) -> Option<Generation> {
        self.record.guests().get(guest).map(|guest| guest.generation)
    }

    /// At once: the destination's gate waits for the peers.
    fn rebind(&mut self, id: &str, host: &HostName, port: usize, marker_index: u32) {
        let Some(migration) = self.record.migrations().get(id) else { return };
        let plan = migration.plan();
        if self.generation_of(&plan.guest.name) != Some(plan.generation.next()) {
            return;
        }
        let Some(moved) = plan.ports.get(port) else { return };
        let counted = moved.markers.iter().find(|peer| peer.host == *host);
        let rebind = Rebind {
            id: RebindId { migration: id.to_owned(), port },
            binding: Binding {
                vni: moved.vni,
                port: moved.port.clone(),
                host: plan.destination.host.clone(),
                vtep: Some(plan.destination.vtep),
                generation: plan.generation.next(),
            },
            old_vtep: plan.source.vtep,
            marker_mac: moved.marker_mac,
            marker_index,
            marker_secret: counted.map(|peer| peer.secret),
            carry_id: moved.carry_id,
        };
        self.links.send(host, Downlink::Rebind(Box::new(rebind)));
    }

    fn saw(&mut self, guest: GuestName, state: GuestState) {
        self.observed.insert(guest, Observation { state, detail: String::new() });
    }

    /// An end ignored its desired state for the guest and its ports while it moved.
    fn refresh_end(&mut self, id: &str, role: Role) {
        if let Some(migration) = self.record.migrations().get(id) {
            self.links.forget_desired(migration.coordinator.host_of(role));
        }
    }

    /// Wakes whoever watches. They read from the history, each at its own pace.
    fn announce(&self, id: &str) {
        if let (Some(migration), Some(watchers)) = (self.record.migrations().get(id), self.live.get(id)) {
            watchers.send_replace(migration.sequence());
        }
    }

    fn end(&mut self, id: &str) {
        let Some(migration) = self.record.migrations().get(id) else { return };
        let (plan, coordinator) = (migration.plan(), &migration.coordinator);
        let guest = plan.guest.name.clone();
        let object = Object {
            source: Some(plan.source.host.clone()),
            destination: Some(plan.destination.host.clone()),
            guest: Some(guest.clone()),
            ..Object::migration(id)
        };
        // If somebody else has it, as an older copy of the record may learn, it is not this migration's to start.
        let recorded = self.record.guests().get(&guest);
        let is_its_own = recorded.is_some_and(|it| self.is_the_guests_owner(id, &it.host, it.generation));
        let start_after = migration.start_after && is_its_own;
        let (asked_by, moved) = (migration.requested_by.as_ref(), coordinator.phase() == Phase::Done);
        self.audit.ended(asked_by, object, coordinator.failure(), moved);
        self.record.change_guest(&guest, |guest| {
            if guest.migration.as_deref() == Some(id) {
                guest.migration = None;
            }
        });
        if start_after {
            self.set_power(&guest, Power::On, GuestState::Starting);
        }
        self.live.remove(id);
        self.record.outline_oldest(self.policy.keep_migrations);
    }

    /// An end of a migration nobody remembers is told to undo it; if it has committed it will not. Until it has ended its part it
    /// ignores what is wanted of the guest.
    pub(super) fn forbid_unknown(&mut self, host: &HostName, migration: &str, news: &News) {
        if matches!(news.step, Step::Aborted | Step::Settled) {
            self.links.forget_desired(host);
            self.want_desired_states();
        }
        if !matches!(news.step, Step::Aborted | Step::Settled | Step::Committed) {
            let failure = Failure::new("UNKNOWN_MIGRATION", "the controller has no record of this migration; undo it");
            self.links.send(host, Downlink::Abort { migration: migration.to_owned(), failure });
        }
    }
}

//! Who obeys this controller, and what it learns from those it does not know everything of.

use std::net::IpAddr;

use throughline_cutover::{
    Binding, DiskFate, Failure, GuestName, HostName, Mandate, OwnedGuest, Port, Power, ReplicaName, Stop, Term, Vni,
    admission::{Denial, Enrolment},
    fence::{self, Claim, Ownership, Recorded},
};
use throughline_wire::Refusal;

use super::{Core, Observation};
use crate::record::{GuestRecord, Report};

/// Whether this controller commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It does.
    Commands,
    /// Another one has taken over: it only answers questions, from a record that grows old.
    StoodDown(Failure),
}

fn shares(some: &[IpAddr], others: &[IpAddr]) -> bool {
    some.iter().any(|ip| others.contains(ip))
}

/// A host of another fabric.
#[derive(Debug, Clone)]
pub(super) struct Stranger {
    pub(super) enrolment: Enrolment,
    pub(super) refusal: Failure,
}

/// A guest that a host has and the record does not know.
#[derive(Debug, Clone)]
pub(super) struct UnknownGuest {
    pub(super) host: HostName,
    pub(super) owned: OwnedGuest,
    pub(super) observation: Observation,
}

impl Core {
    /// Nothing, while this controller may be told to do something.
    ///
    /// # Errors
    /// `STALE_TERM` once it has stood down.
    pub(crate) fn commands(&self) -> Result<(), Denial> {
        match &*self.standing.borrow() {
            Standing::Commands => Ok(()),
            Standing::StoodDown(failure) => Err(Denial::StoodDown(failure.clone())),
        }
    }

    pub(super) fn has_stood_down(&self) -> bool {
        self.commands().is_err()
    }

    /// Why a host does not obey, if it is known not to.
    pub(super) fn refusal(&self, host: &HostName) -> Option<Failure> {
        match &*self.standing.borrow() {
            Standing::StoodDown(failure) => Some(failure.clone()),
            Standing::Commands => self.strangers.get(host).map(|stranger| stranger.refusal.clone()),
        }
    }

    /// Takes command of a host that connects, or finds that it may not.
    ///
    /// # Errors
    /// `OTHER_FABRIC`, `STALE_TERM`, `TERM_UNPROVED`.
    pub(super) fn claim(&mut self, enrolment: &Enrolment, obeyed: Option<&Mandate>) -> Result<(), Denial> {
        let host = &enrolment.host;
        let proved = obeyed.is_some_and(|obeyed| self.record.proves(obeyed));
        match fence::claim(self.record.mandate(), obeyed, proved, self.commanded.contains(host)) {
            Claim::Command => {}
            Claim::RaiseAbove(term) => self.raise_term(host, term),
            Claim::Leave(refusal) => {
                tracing::warn!(%host, %refusal, "not this fabric's host");
                self.strangers
                    .insert(host.clone(), Stranger { enrolment: enrolment.clone(), refusal: refusal.clone() });
                return Err(Denial::OtherFabric(refusal));
            }
            Claim::Doubt(refusal) => {
                tracing::error!(%host, %refusal, "the host's word is not believed");
                return Err(Denial::TermUnproved(refusal));
            }
            Claim::StandDown(beaten) => {
                self.stand_down(beaten.clone());
                return Err(Denial::StoodDown(beaten));
            }
        }
        self.strangers.remove(host);
        self.commanded.insert(host.clone());
        Ok(())
    }

    /// This record is a copy from before `heard`. Agents that are connected hear of the new term as soon as it is durable.
    fn raise_term(&mut self, host: &HostName, heard: Term) {
        self.record.take_command(heard);
        self.is_old = true;
        let mandate = self.record.mandate().clone();
        tracing::warn!(%host, %heard, term = %mandate.term, "the host has obeyed a later term; this record is an older copy");
        self.when_durable(move |core| core.links.welcome_all(&mandate));
    }

    /// Commands nobody any more. Only a new start, which is an operator's decision, makes it command again: two controllers
    /// that took over from each other by themselves would never end it.
    pub(super) fn stand_down(&mut self, beaten: Failure) {
        tracing::error!(%beaten, "another controller commands; this one stands down and only answers questions");
        self.links.end_all(&Refusal::Denied(Denial::StoodDown(beaten.clone())));
        self.standing.send_replace(Standing::StoodDown(beaten));
    }

    /// An agent does not obey the mandate it was offered. That concerns its host alone: what it obeys instead it proves when it
    /// attaches again.
    pub(super) fn refused(&mut self, host: &HostName, session: u64, failure: Failure) {
        tracing::warn!(%host, %failure, "the agent does not obey");
        let enrolment = self.record.hosts().get(host).and_then(|record| record.enrolment.clone());
        if let Some(enrolment) = enrolment {
            self.strangers.insert(host.clone(), Stranger { enrolment, refusal: failure });
        }
        self.detach(host, session, None);
    }

    /// Compares what a host owns with the record, before the host is told anything. The record may be an old copy.
    pub(super) fn learn(&mut self, host: &HostName, guests: Vec<OwnedGuest>) {
        self.unknown.retain(|_, it| it.host != *host);
        let held: Vec<_> = guests.iter().map(|it| (it.spec.name.clone(), it.generation)).collect();
        self.record.confirm_removals(host, Report { guests: &held, replicas: &[], revision: 0, all_done: false });
        for owned in guests {
            self.record.saw_generation(owned.generation);
            owned.spec.ports.iter().for_each(|port| self.record.saw_port(port.id));
            let name = owned.spec.name.clone();
            let recorded = self.recorded(host, &name);
            match fence::ownership(owned.generation, recorded, self.record.ended(host, &name)) {
                Ownership::AsRecorded => self.started(host, &name),
                Ownership::TakeOver if self.is_old => self.take_over(host, owned),
                Ownership::TakeOver => self.doubt(host, &owned),
                Ownership::End(generation) => self.record.end_guest(host.clone(), name, generation, None),
                Ownership::Unknown => self.note_unknown(host, owned),
            }
        }
        // What is known of unknown guests is part of the desired states and of no record.
        self.want_desired_states();
    }

    fn recorded(&self, host: &HostName, name: &GuestName) -> Option<Recorded> {
        let guest = self.record.guests().get(name)?;
        let live = self.live.keys().filter_map(|id| self.record.migrations().get(id)).map(|it| it.plan());
        let mut here = live.filter(|plan| plan.guest.name == *name && plan.destination.host == *host);
        Some(Recorded {
            is_here: guest.host == *host,
            generation: guest.generation,
            arriving: here.next().map(|plan| plan.generation.next()),
        })
    }

    /// The host has been seen to have a guest of its own. If it was promoted there, the replica has become its disks.
    pub(super) fn started(&mut self, host: &HostName, name: &GuestName) {
        if self.record.took(host, name) {
            self.end_replica(&ReplicaName { guest: name.clone(), host: host.clone() });
        }
    }

    /// Nobody but this controller gives a guest to a host, and its record is no older copy: what the host says cannot be. Its
    /// copy, if there is one, is left alone, and nothing leads there.
    fn doubt(&self, host: &HostName, owned: &OwnedGuest) {
        let OwnedGuest { spec, generation, .. } = owned;
        tracing::error!(guest = %spec.name, %host, %generation, "CLAIM_NOT_BELIEVED: the host says it has the guest at a generation \
            that this controller never gave it; if the record was restored from a copy, start the controller once with \
            --restored; if not, the host's certificate may be in wrong hands");
        self.audit.doubted(host, &spec.name);
    }

    fn take_over(&mut self, host: &HostName, owned: OwnedGuest) {
        let OwnedGuest { spec, generation, stopped, .. } = owned;
        let name = spec.name.clone();
        let power = if stopped { Power::Off(Stop::default()) } else { Power::On };
        let before = self.record.guests().get(&name);
        let migration = before.and_then(|guest| guest.migration.clone());
        let known = before.map(|guest| guest.generation);
        tracing::warn!(guest = %name, %host, %generation, ?known, "the record is older than the host's; it follows");
        self.record.put_guest(GuestRecord { migration, ..GuestRecord::new(spec, host.clone(), generation, power) });
        self.observed.remove(&name);
        self.started(host, &name);
    }

    fn note_unknown(&mut self, host: &HostName, owned: OwnedGuest) {
        let name = owned.spec.name.clone();
        tracing::warn!(guest = %name, %host, generation = %owned.generation, "UNKNOWN_GUEST: left alone until it is deleted");
        if self.unknown.get(&name).is_none_or(|other| other.owned.generation < owned.generation) {
            let detail = "the record does not know this guest (UNKNOWN_GUEST); it runs on until it is deleted";
            let observation = Observation { detail: detail.to_owned(), ..Observation::default() };
            self.unknown.insert(name, UnknownGuest { host: host.clone(), owned, observation });
        }
    }

    /// Ports of guests the record does not know: they lead where they are all the same, unless the record has given an address of
    /// theirs to somebody else. Only of an older copy that says nothing.
    pub(super) fn unknown_bindings(&self) -> Vec<Binding> {
        let recorded: Vec<_> = self.record.networks().values().flat_map(|it| self.record.bindings(it)).collect();
        let is_taken = |port: &Port, vni: Vni| {
            let same = |it: &&Binding| it.vni == vni && (it.port.mac == port.mac || shares(&it.port.ips, &port.ips));
            !self.is_old && recorded.iter().any(|it| same(&it))
        };
        let ports = self.unknown.values().flat_map(|it| {
            let OwnedGuest { spec, generation, vnis, .. } = &it.owned;
            let free = spec.ports.iter().zip(vnis).filter(|(port, vni)| !is_taken(port, **vni)).collect::<Vec<_>>();
            free.into_iter().map(move |(port, vni)| Binding {
                vni: *vni,
                port: port.clone(),
                host: it.host.clone(),
                vtep: self.record.hosts().get(&it.host).and_then(crate::record::HostRecord::vtep),
                generation: *generation,
            })
        });
        ports.collect()
    }

    /// Ends a guest the record does not know.
    pub(super) fn end_unknown(&mut self, name: &GuestName, fate: DiskFate) {
        if let Some(UnknownGuest { host, owned, .. }) = self.unknown.remove(name) {
            self.record.end_guest(host, name.clone(), owned.generation, Some(fate));
        }
    }
}

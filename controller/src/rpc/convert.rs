//! What callers and agents are told, in the protocol's words.

mod replica;

use throughline_cutover::{CutoverReport, Failure, Generation, InvalidRebindId};
use throughline_wire::{
    InvalidField, Problem,
    limits::{LONGEST_ID, LONGEST_TEXT, MOST_GUESTS, MOST_PROBLEMS, cut},
    nested, parsed, stop_of, v1,
};

use crate::{
    core::{GuestState, GuestView, HostView, ObservedGuest, Uplink},
    desired::{Desired, DesiredGuest, DesiredNetwork},
    links::{Downlink, Rebind},
    record::{Happening, Known, MigrationRecord, Outline, Snapshot, What},
};

impl From<HostView> for v1::Host {
    fn from(view: HostView) -> Self {
        let mut host = Self {
            name: view.record.name.into(),
            connected: view.connected,
            memory_used_kib: view.memory_used_kib,
            refusal: view.refusal.map(Into::into),
            ..Self::default()
        };
        if let Some(enrolment) = view.record.enrolment {
            host.vtep = enrolment.vtep.to_string();
            host.peer_endpoint = enrolment.peer_endpoint;
            host.memory_kib = enrolment.memory_kib;
            host.accelerator = enrolment.accelerator;
            host.agent_version = enrolment.agent_version;
            host.peer_only = enrolment.peer_only;
        }
        host
    }
}

impl From<GuestState> for v1::GuestState {
    fn from(state: GuestState) -> Self {
        match state {
            GuestState::Unknown => Self::Unspecified,
            GuestState::Starting => Self::Starting,
            GuestState::Running => Self::Running,
            GuestState::Paused => Self::Paused,
            GuestState::Failed => Self::Failed,
            GuestState::Stopping => Self::Stopping,
            GuestState::Stopped => Self::Stopped,
        }
    }
}

impl From<v1::GuestState> for GuestState {
    fn from(state: v1::GuestState) -> Self {
        match state {
            v1::GuestState::Unspecified => Self::Unknown,
            v1::GuestState::Starting => Self::Starting,
            v1::GuestState::Running => Self::Running,
            v1::GuestState::Paused => Self::Paused,
            v1::GuestState::Failed => Self::Failed,
            v1::GuestState::Stopping => Self::Stopping,
            v1::GuestState::Stopped => Self::Stopped,
        }
    }
}

impl From<GuestView> for v1::Guest {
    fn from(view: GuestView) -> Self {
        Self {
            spec: Some(view.spec.into()),
            host: view.host.into(),
            generation: view.generation.0,
            state: v1::GuestState::from(view.observation.state).into(),
            detail: view.observation.detail,
            migration_id: view.migration.unwrap_or_default(),
            unknown: view.unknown,
            promoted_from: view.promoted_from.map(Into::into).unwrap_or_default(),
        }
    }
}

/// A migration as it was at some moment.
fn migration_at(record: &MigrationRecord, at: Snapshot) -> v1::Migration {
    let plan = record.plan();
    v1::Migration {
        id: plan.id.clone(),
        request_id: record.request.request_id.clone(),
        guest: plan.guest.name.to_string(),
        source_host: plan.source.host.to_string(),
        destination_host: plan.destination.host.to_string(),
        phase: v1::Phase::from(at.phase).into(),
        generation: plan.generation.0,
        limits: Some(plan.limits.into()),
        created_at_ms: record.created_at_ms,
        ended_at_ms: at.ended_at_ms,
        progress: at.progress.map(Into::into),
        report: (at.report != CutoverReport::default()).then(|| at.report.into()),
        failure: at.failure.map(Into::into),
        stalls: record.coordinator.stalls().to_vec(),
        requested_by: record.requested_by.clone().map(Into::into).unwrap_or_default(),
        stop_first: record.stopped_first().map(Into::into),
    }
}

impl From<Outline> for v1::Migration {
    fn from(outline: Outline) -> Self {
        Self {
            id: outline.id,
            request_id: outline.request.request_id,
            guest: outline.request.guest.into(),
            source_host: outline.source.into(),
            destination_host: outline.destination.into(),
            phase: v1::Phase::from(outline.phase).into(),
            generation: outline.generation.0,
            limits: Some(outline.limits.into()),
            created_at_ms: outline.created_at_ms,
            ended_at_ms: outline.ended_at_ms,
            failure: outline.failure.map(Into::into),
            requested_by: outline.requested_by.map(Into::into).unwrap_or_default(),
            stop_first: outline.stop_first.map(Into::into),
            ..Self::default()
        }
    }
}

impl From<Known> for v1::Migration {
    fn from(known: Known) -> Self {
        match known {
            Known::Whole(record) => (&*record).into(),
            Known::Outline(outline) => (*outline).into(),
        }
    }
}

impl From<&MigrationRecord> for v1::Migration {
    fn from(record: &MigrationRecord) -> Self {
        migration_at(record, record.snapshot())
    }
}

/// Something that happened to a migration.
pub(super) fn event(record: &MigrationRecord, happening: Happening) -> v1::MigrationEvent {
    v1::MigrationEvent {
        sequence: happening.sequence,
        at_ms: happening.at_ms,
        migration: Some(migration_at(record, happening.after)),
        message: happening.message,
    }
}

impl From<Downlink> for v1::ControllerMessage {
    fn from(message: Downlink) -> Self {
        use v1::controller_message::Message;
        let message = match message {
            Downlink::Welcome { heartbeat, mandate } => {
                let heartbeat_ms = u32::try_from(heartbeat.as_millis()).unwrap_or(u32::MAX);
                Message::Welcome(v1::Welcome { heartbeat_ms, mandate: Some(mandate.into()) })
            }
            Downlink::Desired { revision, desired } => Message::Desired(desired_state(revision, desired)),
            Downlink::Expect(plan) => Message::Expect(v1::ExpectMigration { plan: Some((*plan).into()) }),
            Downlink::Start(plan) => Message::Start(v1::StartMigration { plan: Some((*plan).into()) }),
            Downlink::Abort { migration, failure } => {
                Message::Abort(v1::AbortMigration { migration_id: migration, failure: Some(failure.into()) })
            }
            Downlink::Rebind(it) => Message::Rebind((*it).into()),
            Downlink::Settle { migration } => Message::Settle(v1::SettleMigration { migration_id: migration }),
            Downlink::Resolve { migration, guest_stays } => {
                Message::Resolve(v1::ResolveMigration { migration_id: migration, guest_stays })
            }
        };
        Self { message: Some(message) }
    }
}

impl From<Rebind> for v1::Rebind {
    fn from(rebind: Rebind) -> Self {
        Self {
            rebind_id: rebind.id.to_string(),
            migration_id: rebind.id.migration,
            binding: Some(rebind.binding.into()),
            old_vtep: rebind.old_vtep.to_string(),
            marker_mac: rebind.marker_mac.into(),
            marker_index: rebind.marker_index,
            marker_secret: rebind.marker_secret.map(|secret| secret.bytes().to_vec()).unwrap_or_default(),
            carry_id: rebind.carry_id.get(),
        }
    }
}

fn desired_state(revision: u64, desired: Desired) -> v1::DesiredState {
    let guest = |DesiredGuest { spec, generation, boot, power, promotion }| v1::DesiredGuest {
        spec: Some(v1::GuestSpec::from(spec)),
        generation: generation.0,
        boot,
        stop: stop_of(power),
        promotion: promotion.map(Into::into),
    };
    let (mut end_guests, mut remove_endpoints) = (Vec::new(), Vec::new());
    let (mut remove_networks, mut remove_replicas) = (Vec::new(), Vec::new());
    for removal in desired.removals {
        match removal {
            What::Guest { name, generation, disks } => {
                let disks = v1::DiskFate::from(disks).into();
                end_guests.push(v1::EndGuest { name: name.into(), generation: generation.0, disks });
            }
            What::Endpoint { port } => remove_endpoints.push(port.get()),
            What::Network { vni } => remove_networks.push(vni.get()),
            What::Replica { id } => remove_replicas.push(id.into()),
        }
    }
    v1::DesiredState {
        revision,
        networks: desired.networks.into_iter().map(Into::into).collect(),
        guests: desired.guests.into_iter().map(guest).collect(),
        endpoints: desired.endpoints.into_iter().map(Into::into).collect(),
        end_guests,
        remove_endpoints,
        remove_networks,
        replications: desired.replications.into_iter().map(Into::into).collect(),
        replicas: desired.replicas.into_iter().map(Into::into).collect(),
        remove_replicas,
    }
}

impl From<DesiredNetwork> for v1::DesiredNetwork {
    fn from(desired: DesiredNetwork) -> Self {
        Self {
            network: Some(desired.network.into()),
            flood_vteps: desired.flood.iter().map(ToString::to_string).collect(),
            bindings: desired.bindings.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<v1::ObservedGuest> for ObservedGuest {
    type Error = InvalidField;
    fn try_from(guest: v1::ObservedGuest) -> Result<Self, InvalidField> {
        let state = guest.state().into();
        Ok(Self {
            name: parsed("name", &guest.name)?,
            generation: Generation(guest.generation),
            state,
            detail: words(&guest.detail),
        })
    }
}

impl TryFrom<v1::AgentMessage> for Uplink {
    type Error = InvalidField;
    fn try_from(message: v1::AgentMessage) -> Result<Self, InvalidField> {
        use v1::agent_message::Message;
        match message.message {
            Some(Message::Heartbeat(_)) => Ok(Self::Heartbeat),
            Some(Message::Observed(it)) => {
                if it.guests.len() > MOST_GUESTS {
                    let (value, most) = (it.guests.len() as u64, MOST_GUESTS as u64);
                    let range = Problem::Range { value, least: 0, most, unit: "guests a host" };
                    return Err(InvalidField::new("observed.guests", range));
                }
                let guests = it.guests.into_iter().enumerate();
                let guests = guests.map(|(at, guest)| {
                    ObservedGuest::try_from(guest).map_err(|e| e.within(format_args!("observed.guests[{at}]")))
                });
                let problems = it.problems.iter().take(MOST_PROBLEMS).map(|problem| words(problem)).collect();
                let (revision, replicas) = (it.revision, replica::observed(it.replicas)?);
                Ok(Self::Observed { revision, guests: guests.collect::<Result<_, _>>()?, replicas, problems })
            }
            Some(Message::RebindAck(ack)) => {
                let invalid = |e| InvalidField::new("rebind_ack.rebind_id", Problem::Other(format!("{e}")));
                id("rebind_ack.rebind_id", &ack.rebind_id)?;
                let id = ack.rebind_id.parse().map_err(|e: InvalidRebindId| invalid(e))?;
                Ok(Self::RebindAck { id, outcome: outcome(ack.applied, ack.failure.map(told)) })
            }
            Some(Message::Refused(failure)) => Ok(Self::Refused(told(failure).into())),
            Some(Message::Migration(mut update)) => {
                update.failure = update.failure.map(told);
                let migration = id("migration.migration_id", &update.migration_id)?;
                Ok(Self::News { migration, news: Box::new(nested("migration", Some(update))?) })
            }
            Some(Message::Hello(_)) => {
                let words = "comes a second time; one greeting a stream".to_owned();
                Err(InvalidField::new("hello", Problem::Other(words)))
            }
            None => Err(InvalidField::new("message", Problem::Missing)),
        }
    }
}

/// An agent's words, as they may be kept, logged and shown: not without end, and on one line.
fn words(text: &str) -> String {
    cut(text.chars().map(|it| if it.is_control() { char::REPLACEMENT_CHARACTER } else { it }).collect(), LONGEST_TEXT)
}

fn told(failure: v1::Failure) -> v1::Failure {
    v1::Failure { reason: words(&failure.reason), message: words(&failure.message) }
}

/// Checks the length of an id that the controller gave out.
fn id(field: &str, id: &str) -> Result<String, InvalidField> {
    // A rebind's has the port's number besides.
    const MOST: usize = LONGEST_ID + 8;
    if id.len() > MOST {
        let range = Problem::Range { value: id.len() as u64, least: 1, most: MOST as u64, unit: "bytes" };
        return Err(InvalidField::new(field, range));
    }
    Ok(id.to_owned())
}

/// Reads what an agent says after its greeting.
///
/// # Errors
/// What is wrong with it, and with which field: its stream would end.
pub fn read_agent_message(message: v1::AgentMessage) -> Result<(), InvalidField> {
    Uplink::try_from(message).map(drop)
}

fn outcome(applied: bool, failure: Option<v1::Failure>) -> Result<(), Failure> {
    if applied {
        return Ok(());
    }
    let unexplained = || Failure::new("UNEXPLAINED", "the agent gave no reason; see its log");
    Err(failure.map_or_else(unexplained, Into::into))
}

#[cfg(test)]
mod tests {
    use throughline_wire::limits::MOST_REPLICAS;

    use super::*;

    fn field(message: v1::agent_message::Message) -> String {
        read_agent_message(v1::AgentMessage { message: Some(message) }).expect_err("must be refused").field
    }

    #[test]
    fn an_agents_words_are_on_one_line() {
        assert_eq!(words("QEMU ended\nERROR forged\u{1b}[2J"), "QEMU ended\u{fffd}ERROR forged\u{fffd}[2J");
    }

    #[test]
    fn what_agents_say_is_bounded_and_the_field_is_named() {
        use v1::agent_message::Message;
        let observed = |guests| Message::Observed(v1::ObservedState { guests, ..Default::default() });
        let nameless = v1::ObservedGuest::default();
        assert_eq!(field(observed(vec![nameless.clone(); MOST_GUESTS + 1])), "observed.guests");
        assert_eq!(field(observed(vec![nameless])), "observed.guests[0].name");
        let kept = |replicas| Message::Observed(v1::ObservedState { replicas, ..Default::default() });
        let replica = v1::ObservedReplica { id: "r-1".into(), ..Default::default() };
        assert_eq!(field(kept(vec![replica.clone(); MOST_REPLICAS + 1])), "observed.replicas");
        let nameless = v1::ObservedReplica { id: "../r".into(), ..Default::default() };
        assert_eq!(field(kept(vec![replica.clone(), nameless])), "observed.replicas[1].id");
        let points = vec![v1::Point::default(); 65];
        let many = v1::ObservedReplica { points: points.clone(), ..replica.clone() };
        assert_eq!(field(kept(vec![many])), "observed.replicas[0].points");
        let odd = v1::ObservedReplica { points: points[..1].to_vec(), ..replica };
        assert_eq!(field(kept(vec![odd])), "observed.replicas[0].points[0].number");
        let long = "m".repeat(1 << 20);
        let ack = v1::RebindAck { rebind_id: format!("{long}/0"), ..Default::default() };
        assert_eq!(field(Message::RebindAck(ack)), "rebind_ack.rebind_id");
        let update = v1::MigrationUpdate { migration_id: long, ..Default::default() };
        assert_eq!(field(Message::Migration(update)), "migration.migration_id");
    }

    #[test]
    fn problems_are_text_for_people_and_cut() {
        let problems = vec!["p".repeat(1 << 16); 2 * MOST_PROBLEMS];
        let state = v1::ObservedState { problems, ..Default::default() };
        let message = v1::AgentMessage { message: Some(v1::agent_message::Message::Observed(state)) };
        let Ok(Uplink::Observed { problems, .. }) = Uplink::try_from(message) else { panic!("it reads") };
        assert_eq!(problems.len(), MOST_PROBLEMS);
        assert!(problems.iter().all(|problem| problem.len() == LONGEST_TEXT));
    }
}

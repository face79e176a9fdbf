//! The controller: its coordinator, the streams to the agents, and what it sends on each, as `controller/src/core` has it.
//! What it decides is durable with what it tells of it, with one exception: a `Rebind` may be out when it dies.

use std::collections::BTreeMap;

use throughline_cutover::{
    Coordinator, CoordinatorEffect, CoordinatorEvent, CutoverReport, HostName, News as Report, Phase, Role, Step,
};

use crate::{
    machines::When,
    source::why,
    state::{Link, News, Order, Process},
    system::{GENERATION, Hands, Host, host_name},
};

/// The coordinator's events, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum On {
    Begin,
    News(Role, Step),
    Ack(Host),
    HostLost(Host),
    HostBack(Host),
    Restarted,
    Tick,
}

fn event(on: On, peers: usize) -> CoordinatorEvent {
    match on {
        On::Begin => {
            let hosts: BTreeMap<HostName, bool> = Host::all(peers).map(|host| (host_name(host), true)).collect();
            CoordinatorEvent::Begin { hosts }
        }
        On::News(role, step) => CoordinatorEvent::News(Box::new(Report {
            role,
            step,
            progress: None,
            failure: (step == Step::Aborted).then(why),
            report: CutoverReport::default(),
            generation: (step == Step::Committed).then(|| GENERATION.next()),
        })),
        On::Ack(host) => CoordinatorEvent::RebindAck { host: host_name(host), port: 0, outcome: Ok(()) },
        On::HostLost(host) => CoordinatorEvent::HostLost(host_name(host)),
        On::HostBack(host) => CoordinatorEvent::HostBack(host_name(host)),
        On::Restarted => CoordinatorEvent::Restarted,
        On::Tick => CoordinatorEvent::Tick,
    }
}

impl Process {
    /// Reports a step, now and whenever a stream begins.
    pub(crate) fn report(&mut self, news: News) {
        self.last = Some(news);
        self.say(news);
    }

    fn say(&mut self, news: News) {
        if self.news.last() != Some(&news) {
            self.news.push(news);
        }
    }

    /// The move has left the agent's table.
    pub(crate) fn leave(&mut self) {
        self.machine = None;
        self.ended = true;
        let last = self.last.take();
        last.into_iter().for_each(|last| self.say(last));
    }

    pub(crate) fn hear_desired(&mut self, moved: bool) {
        self.desired = Some((moved, self.ended));
    }
}

impl Hands<'_> {
    pub(crate) fn phase(&self) -> Phase {
        self.fabric.coordinators.look(self.state.controller.machine, Coordinator::phase)
    }

    /// Being undone, and not over.
    pub(crate) fn is_aborting(&self) -> bool {
        let failing = |it: &Coordinator| it.failure().is_some() && it.phase() < Phase::Committed;
        self.fabric.coordinators.look(self.state.controller.machine, failing)
    }

    pub(crate) fn drive_controller(&mut self, on: On, when: When) {
        let peers = self.state.peers.len();
        let machine = self.state.controller.machine;
        let (next, effects) = self.fabric.coordinators.step(machine, on, when, || event(on, peers));
        let rebinds = |effect: &&CoordinatorEffect| matches!(effect, CoordinatorEffect::Rebind { .. });
        for effect in effects.iter().filter(rebinds) {
            if let CoordinatorEffect::Rebind { host, .. } = effect {
                let host = Host::all(peers).find(|it| host_name(*it) == *host).expect("a host of the plan");
                // All of them, and then it dies or does not.
                self.send(host, Order::Rebind);
            }
        }
        if effects.iter().any(|effect| rebinds(&effect)) && !self.part() {
            return;
        }
        self.part();
        if !self.lives() {
            return;
        }
        self.state.controller.machine = next;
        for effect in effects.iter() {
            match effect {
                CoordinatorEffect::Expect => self.send(Host::Destination, Order::Expect),
                CoordinatorEffect::Start => self.send(Host::Source, Order::Start),
                CoordinatorEffect::Abort { role, .. } => self.send(end(*role), Order::Abort),
                CoordinatorEffect::Settle { role } => {
                    self.note_who_was_not_told(when == When::Overdue);
                    self.send(end(*role), Order::Settle);
                }
                CoordinatorEffect::RecordOwner { .. } => self.state.controller.moved = true,
                CoordinatorEffect::Refresh => {
                    self.state.source.link.has = None;
                    self.state.destination.link.has = None;
                }
                CoordinatorEffect::RefreshEnd { role } => self.link(end(*role)).has = None,
                _ => {}
            }
        }
        self.send_desired_states();
    }

    fn send(&mut self, host: Host, order: Order) {
        let link = self.link(host);
        if link.up && !link.down.contains(&order) {
            link.down.push(order);
        }
    }

    fn send_desired_states(&mut self) {
        let moved = self.state.controller.moved;
        for host in Host::all(self.state.peers.len()) {
            let link = self.link(host);
            if link.up && link.has != Some(moved) {
                link.has = Some(moved);
                // A peer that is about to rebind learns nothing from it.
                if !(moved && matches!(host, Host::Peer(_)) && link.down.contains(&Order::Rebind)) {
                    link.down.push(Order::Desired { moved });
                }
            }
        }
    }

    pub(crate) fn link(&mut self, host: Host) -> &mut Link {
        match host {
            Host::Source => &mut self.state.source.link,
            Host::Destination => &mut self.state.destination.link,
            Host::Peer(peer) => &mut self.state.peers[usize::from(peer)].link,
        }
    }

    pub(crate) fn process(&mut self, host: Host) -> Option<&mut Process> {
        match host {
            Host::Source => self.state.source.agent.as_mut().map(|agent| &mut agent.process),
            Host::Destination => self.state.destination.agent.as_mut().map(|agent| &mut agent.process),
            Host::Peer(peer) => self.state.peers[usize::from(peer)].agent.as_mut(),
        }
    }

    pub(crate) fn controller_hears(&mut self, host: Host) {
        let Some(process) = self.process(host) else { return };
        let news = process.news.remove(0);
        let role = if host == Host::Source { Role::Source } else { Role::Destination };
        let on = match news {
            News::Ack => On::Ack(host),
            News::Underway => On::News(role, Step::Precopy),
            News::Expecting => On::News(role, Step::Expecting),
            News::Owns => On::News(role, Step::Committed),
            News::Settled => On::News(role, Step::Settled),
            News::Aborted => On::News(role, Step::Aborted),
        };
        self.drive_controller(on, When::Now);
    }

    /// A stream begins: the agent says its last step again, the controller sends what it wants of the host.
    pub(crate) fn connect(&mut self, host: Host) {
        *self.link(host) = Link { up: true, ..Link::default() };
        if let Some(process) = self.process(host)
            && process.machine.is_some()
            && let Some(last) = process.last
        {
            process.say(last);
        }
        self.drive_controller(On::HostBack(host), When::Now);
    }

    /// A stream ends: the first `news` of what was on its way up are lost. What is on its way down may be heard until the
    /// next stream begins.
    pub(crate) fn break_link(&mut self, host: Host, news: usize) {
        if let Some(process) = self.process(host) {
            process.news.drain(..news);
            process.news.retain(|news| *news != News::Ack);
        }
        let link = self.link(host);
        let was_up = link.up;
        (link.up, link.has) = (false, None);
        if was_up && self.state.controller.up {
            // The whole of it: that the controller died of this is another story.
            let fuel = std::mem::replace(&mut self.fuel, usize::MAX);
            let parts = self.parts;
            self.drive_controller(On::HostLost(host), When::Now);
            (self.fuel, self.parts) = (fuel, parts);
        }
    }

    /// It dies; what was on its way to it is lost, or was heard by nobody else's count: then it is still to come.
    pub(crate) fn crash_controller(&mut self, news_lost: bool) {
        self.state.controller.up = false;
        for host in Host::all(self.state.peers.len()) {
            let sent = self.process(host).filter(|_| news_lost).map_or(0, |process| process.news.len());
            if self.link(host).up {
                self.break_link(host, sent);
            }
        }
    }

    /// An answer goes up the stream that the question came down, or nowhere.
    pub(crate) fn acknowledge(&mut self, host: Host) {
        if self.link(host).up
            && let Some(process) = self.process(host)
        {
            process.news.push(News::Ack);
        }
    }

    pub(crate) fn restart_controller(&mut self) {
        self.state.controller.up = true;
        self.drive_controller(On::Restarted, When::Now);
        for host in Host::all(self.state.peers.len()) {
            self.connect_at_once(host);
        }
    }

    /// Whoever starts connects, unless starting and connecting are two things here.
    pub(crate) fn connect_at_once(&mut self, host: Host) {
        let alive = self.process(host).is_some();
        if self.fabric.prompt && self.lives() && self.state.controller.up && alive && !self.link(host).up {
            self.connect(host);
        }
    }
}

fn end(role: Role) -> Host {
    match role {
        Role::Source => Host::Source,
        Role::Destination => Host::Destination,
    }
}

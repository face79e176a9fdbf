//! Frames, from a peer to the guest: each bridge, tunnel and port decides as it does on a host, and anything may take as long
//! as it likes. Whether the guest's frames stay in order while lines are sealed is shown finer in `tests/order`; here they
//! bear witness to what crashes do to them.

use throughline_abi::Verdict;

use crate::{
    state::{DestinationVm, Frame, Order},
    system::{Hands, Host},
};

impl Hands<'_> {
    fn peer(&mut self, peer: u8) -> &mut crate::state::Peer {
        &mut self.state.peers[usize::from(peer)]
    }

    pub(crate) fn send_frame(&mut self, peer: u8) {
        let sender = self.peer(peer);
        let frame = Frame::Data { peer, number: sender.sent };
        sender.sent += 1;
        if sender.flipped { &mut sender.new_path } else { &mut sender.old_path }.push(frame);
    }

    pub(crate) fn arrive_at_source(&mut self, peer: u8) {
        let frame = self.peer(peer).old_path.remove(0);
        let source = &self.state.source;
        // Markers have an address of their own, whose entry leads to the tap.
        if !source.port.there || (source.leads_away && matches!(frame, Frame::Data { .. })) {
            return self.lose(frame);
        }
        match source.port.decide(false, frame) {
            Verdict::Pass => {
                self.state.source.port.ring.push(frame);
                self.read_at_source();
            }
            Verdict::Divert => self.state.source.port.line.push(frame),
            Verdict::Carry => self.state.carry.push(frame),
            Verdict::Mute | Verdict::Overflow | Verdict::Flooded => self.lose(frame),
        }
    }

    pub(crate) fn arrive_at_destination(&mut self, peer: u8) {
        let frame = self.peer(peer).new_path.remove(0);
        let destination = &self.state.destination;
        if !destination.port.there || !destination.leads_here {
            return self.lose(frame);
        }
        match destination.port.decide(true, frame) {
            Verdict::Pass => {
                self.state.destination.port.ring.push(frame);
                self.read_at_destination();
            }
            Verdict::Divert => self.state.destination.port.line.push(frame),
            Verdict::Carry | Verdict::Mute | Verdict::Overflow | Verdict::Flooded => self.lose(frame),
        }
    }

    pub(crate) fn pump_at_source(&mut self) {
        let frame = self.state.source.port.line.remove(0);
        self.state.carry.push(frame);
    }

    /// The place of the frame that the pump would write back next, of one peer's lane.
    pub(crate) fn next_at_gate(&self, peer: u8) -> Option<usize> {
        let port = &self.state.destination.port;
        let open = port.pumping || port.open_lanes & 1 << peer != 0;
        let of_peer = |frame: &Frame| matches!(frame, Frame::Data { peer: of, .. } if *of == peer);
        port.line.iter().position(of_peer).filter(|_| open)
    }

    pub(crate) fn pump_at_gate(&mut self, peer: u8) {
        if let Some(place) = self.next_at_gate(peer) {
            let frame = self.state.destination.port.line.remove(place);
            self.state.destination.port.ring.push(frame);
            self.read_at_destination();
        }
    }

    pub(crate) fn land(&mut self) {
        match self.state.carry.remove(0) {
            frame if !self.state.destination.landing => self.lose(frame),
            Frame::Marker { peer } => self.peer(peer).markers_in = true,
            frame => {
                // Marked: it has had its turn.
                self.state.destination.port.ring.push(frame);
                self.read_at_destination();
            }
        }
    }

    pub(crate) fn read_at_source(&mut self) {
        if self.state.source.vm.runs() {
            let ring = std::mem::take(&mut self.state.source.port.ring);
            ring.into_iter().for_each(|frame| self.deliver(frame));
        }
    }

    pub(crate) fn read_at_destination(&mut self) {
        if self.state.destination.vm == DestinationVm::Runs {
            let ring = std::mem::take(&mut self.state.destination.port.ring);
            ring.into_iter().for_each(|frame| self.deliver(frame));
        }
    }

    fn deliver(&mut self, frame: Frame) {
        let Frame::Data { peer, number } = frame else { return };
        let expected = self.peer(peer).next;
        let fate = &mut self.state.fate;
        if number < expected {
            fate.disordered |= !fate.may_disorder;
        } else if number > expected {
            fate.disordered |= !(fate.may_disorder || fate.may_lose);
        }
        let receiver = self.peer(peer);
        receiver.next = expected.max(number + 1);
    }

    pub(crate) fn lose(&mut self, frame: Frame) {
        if matches!(frame, Frame::Data { .. }) {
            self.state.fate.lost |= !self.state.fate.may_lose;
        }
    }

    /// The source is to stop carrying when nothing comes: what a peer sends later that could not be told in time is lost
    /// until it can be, and the promise says so.
    pub(crate) fn note_who_was_not_told(&mut self, late: bool) {
        let untold = self.state.peers.iter().any(|peer| !peer.flipped && (late || !peer.link.up));
        self.state.fate.may_lose |= untold;
    }

    pub(crate) fn remove_source_port(&mut self) {
        let port = std::mem::take(&mut self.state.source.port);
        port.line.into_iter().chain(port.ring).for_each(|frame| self.lose(frame));
    }

    pub(crate) fn remove_destination_port(&mut self) {
        let port = std::mem::take(&mut self.state.destination.port);
        port.line.into_iter().chain(port.ring).for_each(|frame| self.lose(frame));
    }

    pub(crate) fn peer_hears_order(&mut self, peer: u8) {
        let host = self.peer(peer);
        let order = host.link.down.remove(0);
        let Some(agent) = host.agent.as_mut() else { return };
        match order {
            Order::Rebind => {
                agent.applied_new = true;
                host.flipped = true;
                host.old_path.push(Frame::Marker { peer });
                self.acknowledge(Host::Peer(peer));
            }
            Order::Desired { moved } => {
                agent.applied_new |= moved;
                host.flipped = agent.applied_new;
            }
            Order::Expect | Order::Start | Order::Abort | Order::Settle => {}
        }
    }
}

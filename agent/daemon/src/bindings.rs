//! Networks and bindings as this host knows them: what was applied at which generation, and what is not to be touched just now.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard},
};

use throughline_cutover::{Failure, Generation, GuestSpec, MacAddr, Mtu, Network, NetworkName, Vni};
use throughline_netlink::{BindingWanted, Path};

use crate::{lock::lock, resident::Segment};

/// Shared by reconciliation, moves and flips.
#[derive(Debug, Default)]
pub struct Bindings {
    inner: Mutex<Inner>,
    /// Held by whoever writes entries, from reading what is newest to the kernel's answer: a reconciliation that had read
    /// before a flip must not write after it.
    pub writing: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Inner {
    networks: HashMap<NetworkName, Segment>,
    applied: HashMap<(Vni, MacAddr), (Generation, BindingWanted)>,
    moving: HashMap<Vni, usize>,
}

/// While it lives, the networks it names are left as the move makes them.
#[derive(Debug)]
pub struct MovingNetworks<'a> {
    bindings: &'a Bindings,
    vnis: Vec<Vni>,
}

impl Bindings {
    /// These are the networks of this host, and no others.
    pub fn know_networks<'a>(&self, networks: impl Iterator<Item = &'a Network>) {
        let segment = |network: &Network| Segment { vni: network.vni, mtu: network.mtu };
        self.lock().networks = networks.map(|network| (network.name.clone(), segment(network))).collect();
    }

    /// VNI and MTU of a network.
    pub fn segment(&self, name: &NetworkName) -> Option<Segment> {
        self.lock().networks.get(name).copied()
    }

    /// The networks that a guest's ports are on, in their order.
    ///
    /// # Errors
    /// `UNKNOWN_NETWORK` when one is not on this host.
    pub fn segments(&self, spec: &GuestSpec) -> Result<Vec<Segment>, Failure> {
        let unknown =
            |network: &NetworkName| Failure::new("UNKNOWN_NETWORK", format!("network {network} is not on this host"));
        let ports = spec.ports.iter();
        ports.map(|port| self.segment(&port.network).ok_or_else(|| unknown(&port.network))).collect()
    }

    /// MTU of a network.
    ///
    /// # Errors
    /// `UNKNOWN_NETWORK` when it is not on this host.
    pub fn mtu_of(&self, vni: Vni) -> Result<Mtu, Failure> {
        let found = self.lock().networks.values().find(|segment| segment.vni == vni).map(|segment| segment.mtu);
        found.ok_or_else(|| Failure::new("UNKNOWN_NETWORK", format!("VNI {vni} is not on this host yet; try again")))
    }

    /// Takes note that a binding is being applied at `generation`.
    ///
    /// # Errors
    /// `STALE_GENERATION` when a newer one was applied here: the instruction comes from the past.
    pub fn advance(&self, vni: Vni, wanted: &BindingWanted, generation: Generation) -> Result<(), Failure> {
        let mut inner = self.lock();
        if let Some((applied, _)) = inner.applied.get(&(vni, wanted.mac))
            && *applied > generation
        {
            let message = format!(
                "{} on VNI {vni} is bound at generation {applied} here; generation {generation} is older and was refused",
                wanted.mac
            );
            return Err(Failure::new("STALE_GENERATION", message));
        }
        inner.applied.insert((vni, wanted.mac), (generation, wanted.clone()));
        Ok(())
    }

    /// Advances to `wanted`, or, if a newer one was applied, gives that.
    pub fn newest(&self, vni: Vni, wanted: BindingWanted, generation: Generation) -> BindingWanted {
        match self.advance(vni, &wanted, generation) {
            Ok(()) => wanted,
            Err(_) => self.lock().applied.get(&(vni, wanted.mac)).map_or(wanted, |(_, newer)| newer.clone()),
        }
    }

    /// What was applied at a newer generation, if anything was.
    pub fn newer_than(&self, vni: Vni, mac: MacAddr, generation: Generation) -> Option<BindingWanted> {
        let inner = self.lock();
        inner.applied.get(&(vni, mac)).filter(|(applied, _)| *applied > generation).map(|(_, wanted)| wanted.clone())
    }

    /// Every port known on a network, and where it is.
    pub fn ports_on(&self, vni: Vni) -> Vec<(MacAddr, Path)> {
        let inner = self.lock();
        let on_network = inner.applied.iter().filter(|((on, _), _)| *on == vni);
        on_network.map(|((_, mac), (_, wanted))| (*mac, wanted.path.clone())).collect()
    }

    /// Forgets ports that are no more.
    pub fn forget_all_but(&self, vni: Vni, macs: &[MacAddr]) {
        self.lock().applied.retain(|(on, mac), _| *on != vni || macs.contains(mac));
    }

    /// Keeps reconciliation away from these networks for as long as the guard lives.
    pub fn moving(&self, vnis: Vec<Vni>) -> MovingNetworks<'_> {
        let mut inner = self.lock();
        for vni in &vnis {
            *inner.moving.entry(*vni).or_default() += 1;
        }
        drop(inner);
        MovingNetworks { bindings: self, vnis }
    }

    /// True while a move is under way on that network.
    pub fn is_moving(&self, vni: Vni) -> bool {
        self.lock().moving.contains_key(&vni)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }
}

impl Drop for MovingNetworks<'_> {
    fn drop(&mut self) {
        let mut inner = self.bindings.lock();
        for vni in &self.vnis {
            if let Some(count) = inner.moving.get_mut(vni) {
                *count -= 1;
                if *count == 0 {
                    inner.moving.remove(vni);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vni() -> Vni {
        Vni::try_from(7_u32).expect("valid")
    }

    fn at(last: u8) -> BindingWanted {
        let path = Path::Remote { vtep: [192, 0, 2, last].into() };
        BindingWanted { mac: MacAddr::new([2, 0, 0, 0, 0, 1]), ips: vec![], path }
    }

    #[test]
    fn an_older_generation_is_refused_with_the_one_that_beat_it() {
        let bindings = Bindings::default();
        bindings.advance(vni(), &at(1), Generation(2)).expect("first");
        bindings.advance(vni(), &at(1), Generation(2)).expect("the same again");
        let refusal = bindings.advance(vni(), &at(2), Generation(1)).expect_err("older");
        assert_eq!(refusal.reason, "STALE_GENERATION");
        assert!(refusal.message.contains("generation 2"), "{refusal}");
        assert_eq!(bindings.newest(vni(), at(2), Generation(1)), at(1));
        assert_eq!(bindings.newest(vni(), at(3), Generation(3)), at(3));
        assert_eq!(bindings.newer_than(vni(), at(3).mac, Generation(2)), Some(at(3)));
        assert_eq!(bindings.newer_than(vni(), at(3).mac, Generation(3)), None);
    }

    #[test]
    fn two_moves_on_one_network_both_keep_it() {
        let bindings = Bindings::default();
        let first = bindings.moving(vec![vni()]);
        let second = bindings.moving(vec![vni()]);
        drop(first);
        assert!(bindings.is_moving(vni()));
        drop(second);
        assert!(!bindings.is_moving(vni()));
    }
}

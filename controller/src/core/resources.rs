//! Networks, hosts, guests and endpoints: admitted, recorded, listed.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};

use throughline_cutover::{
    DiskFate, Endpoint, GuestName, HostName, InterfaceName, Network, NetworkName, Power, ReplicaName, Stop,
    admission::{self, Denial, Kind, NewEndpoint, NewGuest},
};

use super::{Core, GuestState, GuestView, HostView, Observation};
use crate::record::{GuestRecord, HostRecord};

/// What comes after a key, at most `size`; and whether there is more.
fn page<'a, K: Ord, V>(all: &'a BTreeMap<K, V>, after: Option<&K>, size: usize) -> (Vec<&'a V>, bool) {
    page_of(entries_after(all, after).map(|(_, value)| value), size)
}

pub(super) fn entries_after<'a, K: Ord, V>(
    all: &'a BTreeMap<K, V>,
    after: Option<&K>,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    let from = after.map_or(Bound::Unbounded, Bound::Excluded);
    all.range((from, Bound::Unbounded))
}

fn keys_after<'a, K: Ord, V: 'a>(all: &'a BTreeMap<K, V>, after: Option<&K>) -> impl Iterator<Item = &'a K> {
    entries_after(all, after).map(|(key, _)| key)
}

/// The first `size`, and whether there are more.
pub(super) fn page_of<T>(values: impl Iterator<Item = T>, size: usize) -> (Vec<T>, bool) {
    let mut values = values.fuse();
    let page: Vec<_> = values.by_ref().take(size).collect();
    (page, values.next().is_some())
}

impl Core {
    /// Creates a network.
    ///
    /// # Errors
    /// See [`admission::create_network`].
    pub(crate) fn create_network(&mut self, network: Network) -> Result<Network, Denial> {
        admission::create_network(self, &network)?;
        self.record.revive_network(network.vni);
        self.record.put_network(network.clone());
        Ok(network)
    }

    /// One network.
    ///
    /// # Errors
    /// `UNKNOWN_NETWORK`.
    pub(crate) fn network(&self, name: &NetworkName) -> Result<Network, Denial> {
        let unknown = || Denial::UnknownNetwork { field: "name".to_owned(), name: name.clone() };
        self.record.networks().get(name).cloned().ok_or_else(unknown)
    }

    /// Networks after a name, and whether there are more.
    pub(crate) fn networks(&self, after: Option<&NetworkName>, size: usize) -> (Vec<Network>, bool) {
        let (page, more) = page(self.record.networks(), after, size);
        (page.into_iter().cloned().collect(), more)
    }

    /// Deletes a network.
    ///
    /// # Errors
    /// See [`admission::delete_network`].
    pub(crate) fn delete_network(&mut self, name: &NetworkName) -> Result<(), Denial> {
        admission::delete_network(self, name)?;
        let vni = self.network(name)?.vni;
        self.record.remove_network(name);
        self.record.end_network(vni);
        Ok(())
    }

    /// Announces a host.
    ///
    /// # Errors
    /// See [`admission::create_host`].
    pub(crate) fn create_host(&mut self, name: HostName) -> Result<HostView, Denial> {
        admission::create_host(self, &name)?;
        let record = HostRecord { name, enrolment: None };
        self.record.put_host(record.clone());
        Ok(self.host_view(&record))
    }

    /// One host.
    ///
    /// # Errors
    /// `UNKNOWN_HOST`.
    pub(crate) fn host(&self, name: &HostName) -> Result<HostView, Denial> {
        let unknown = || Denial::UnknownHost { field: "name".to_owned(), name: name.clone() };
        self.find_host(name).ok_or_else(unknown)
    }

    /// Hosts after a name, and whether there are more.
    pub(crate) fn hosts(&self, after: Option<&HostName>, size: usize) -> (Vec<HostView>, bool) {
        let names: BTreeSet<_> =
            keys_after(self.record.hosts(), after).chain(keys_after(&self.strangers, after)).collect();
        page_of(names.into_iter().filter_map(|name| self.find_host(name)), size)
    }

    /// Forgets a host.
    ///
    /// # Errors
    /// See [`admission::delete_host`].
    pub(crate) fn delete_host(&mut self, name: &HostName) -> Result<(), Denial> {
        admission::delete_host(self, name)?;
        self.record.remove_host(name);
        self.record.forget_removals_of(name);
        Ok(())
    }

    /// Creates a guest; its host's agent starts it.
    ///
    /// # Errors
    /// See [`admission::create_guest`], and `PORTS_EXHAUSTED`.
    pub(crate) fn create_guest(&mut self, mut guest: NewGuest, host: HostName) -> Result<GuestView, Denial> {
        if self.unknown.contains_key(&guest.name) {
            let (field, kind, name) = ("spec.name".to_owned(), Kind::Guest, guest.name.to_string());
            return Err(Denial::NameInUse { field, kind, name });
        }
        admission::create_guest(self, &guest, &host)?;
        let ports = self.record.allot(std::mem::take(&mut guest.ports))?;
        let spec = guest.allot(ports);
        let name = spec.name.clone();
        let generation = self.record.new_generation();
        self.record.put_guest(GuestRecord::new(spec, host, generation, Power::On));
        self.observed.insert(name.clone(), Observation::default());
        self.guest(&name)
    }

    /// One guest.
    ///
    /// # Errors
    /// `UNKNOWN_GUEST`.
    pub(crate) fn guest(&self, name: &GuestName) -> Result<GuestView, Denial> {
        self.guest_view(name).ok_or_else(|| Denial::UnknownGuest { field: "name".to_owned(), name: name.clone() })
    }

    /// Guests after a name, on one host or on all, and whether there are more.
    pub(crate) fn guests(
        &self,
        after: Option<&GuestName>,
        host: Option<&HostName>,
        size: usize,
    ) -> (Vec<GuestView>, bool) {
        let names: BTreeSet<_> =
            keys_after(self.record.guests(), after).chain(keys_after(&self.unknown, after)).collect();
        let all = names.into_iter().filter_map(|name| self.guest_view(name));
        page_of(all.filter(|it| host.is_none_or(|host| it.host == *host)), size)
    }

    /// Stops a guest, as `stop` says; its host keeps it.
    ///
    /// # Errors
    /// See [`admission::stop_guest`].
    pub(crate) fn stop_guest(&mut self, name: &GuestName, stop: Stop) -> Result<GuestView, Denial> {
        admission::stop_guest(self, name)?;
        self.set_power(name, Power::Off(stop), GuestState::Stopping);
        self.guest(name)
    }

    /// Starts a guest that was stopped; its host's agent boots it.
    ///
    /// # Errors
    /// See [`admission::start_guest`].
    pub(crate) fn start_guest(&mut self, name: &GuestName) -> Result<GuestView, Denial> {
        admission::start_guest(self, name)?;
        self.set_power(name, Power::On, GuestState::Starting);
        self.guest(name)
    }

    /// Each turn of the switch has a generation of its own: an order from before it, by an old copy of the record above all, neither
    /// starts nor stops the guest.
    pub(super) fn set_power(&mut self, name: &GuestName, power: Power, until_reported: GuestState) {
        let Some(before) = self.record.guests().get(name).map(|guest| guest.power) else { return };
        if before == power {
            return;
        }
        let turned = (before == Power::On) != (power == Power::On);
        let generation = turned.then(|| self.record.new_generation());
        self.record.change_guest(name, |guest| {
            guest.power = power;
            guest.generation = generation.unwrap_or(guest.generation);
        });
        if turned {
            self.observed.insert(name.clone(), Observation { state: until_reported, ..Observation::default() });
        }
    }

    /// Forgets a guest, one the record does not know included; its host's agent stops it, and does with its disks as `fate` says.
    ///
    /// # Errors
    /// See [`admission::delete_guest`].
    pub(crate) fn delete_guest(&mut self, name: &GuestName, fate: Option<DiskFate>) -> Result<(), Denial> {
        if !self.record.guests().contains_key(name)
            && let Some(unknown) = self.unknown.get(name)
        {
            let fate = admission::disk_fate(name, unknown.owned.spec.disks.len(), fate)?;
            self.end_unknown(name, fate);
            return Ok(());
        }
        let fate = admission::delete_guest(self, name, fate)?;
        if let Some(GuestRecord { host, generation, .. }) = self.record.guests().get(name).cloned() {
            self.end_replica_as_disks(&ReplicaName { guest: name.clone(), host: host.clone() }, fate);
            self.record.end_guest(host, name.clone(), generation, Some(fate));
        }
        self.record.remove_guest(name);
        self.observed.remove(name);
        Ok(())
    }

    /// Creates an endpoint; its host's agent makes the interface.
    ///
    /// # Errors
    /// See [`admission::create_endpoint`], and `PORTS_EXHAUSTED`.
    pub(crate) fn create_endpoint(&mut self, endpoint: NewEndpoint) -> Result<Endpoint, Denial> {
        admission::create_endpoint(self, &endpoint)?;
        let mut ports = self.record.allot(vec![endpoint.port.clone()])?;
        let endpoint = endpoint.allot(ports.remove(0), self.record.new_generation());
        self.record.put_endpoint(endpoint.clone());
        Ok(endpoint)
    }

    /// One endpoint.
    ///
    /// # Errors
    /// `UNKNOWN_ENDPOINT`.
    pub(crate) fn endpoint(&self, name: &InterfaceName) -> Result<Endpoint, Denial> {
        let unknown = || Denial::UnknownEndpoint { name: name.clone() };
        self.record.endpoints().get(name).cloned().ok_or_else(unknown)
    }

    /// Endpoints after a name, and whether there are more.
    pub(crate) fn endpoints(&self, after: Option<&InterfaceName>, size: usize) -> (Vec<Endpoint>, bool) {
        let (page, more) = page(self.record.endpoints(), after, size);
        (page.into_iter().cloned().collect(), more)
    }

    /// Forgets an endpoint; its host's agent removes the interface.
    ///
    /// # Errors
    /// See [`admission::delete_endpoint`].
    pub(crate) fn delete_endpoint(&mut self, name: &InterfaceName) -> Result<(), Denial> {
        admission::delete_endpoint(self, name)?;
        let Endpoint { host, port, .. } = self.endpoint(name)?;
        self.record.remove_endpoint(name);
        self.record.end_endpoint(host, port.id);
        Ok(())
    }
}

//! A guest as text.

use throughline_wire::v1::{Guest, GuestSpec};

use super::disk::shown;
use crate::{output::Show, units};

/// The state by name; a number when it is from a newer protocol. Of a guest the record does not know it says so.
fn state(guest: &Guest) -> String {
    use throughline_wire::v1::GuestState::{Failed, Paused, Running, Starting, Stopped, Stopping, Unspecified};
    let state = match guest.state.try_into() {
        Ok(Unspecified) => "not reported".to_owned(),
        Ok(Starting) => "starting".to_owned(),
        Ok(Running) => "running".to_owned(),
        Ok(Paused) => "paused".to_owned(),
        Ok(Failed) => "failed".to_owned(),
        Ok(Stopping) => "stopping".to_owned(),
        Ok(Stopped) => "stopped".to_owned(),
        Err(_) => guest.state.to_string(),
    };
    if guest.unknown { format!("{state}, unknown") } else { state }
}

fn memory(spec: &GuestSpec) -> String {
    units::bytes(spec.memory_kib.saturating_mul(1024))
}

impl Show<7> for Guest {
    const HEADING: [&'static str; 7] = ["NAME", "HOST", "STATE", "VCPUS", "MEMORY", "IPS", "MIGRATION"];

    fn row(&self) -> [String; 7] {
        let spec = self.spec.clone().unwrap_or_default();
        let ips: Vec<_> = spec.ports.iter().flat_map(|port| port.ips.clone()).collect();
        [
            spec.name.clone(),
            self.host.clone(),
            state(self),
            spec.vcpus.to_string(),
            memory(&spec),
            ips.join(","),
            self.migration_id.clone(),
        ]
    }

    fn properties(&self) -> Vec<(&'static str, String)> {
        let spec = self.spec.clone().unwrap_or_default();
        let boot = spec.boot.clone().unwrap_or_default();
        let mut all = vec![
            ("name", spec.name.clone()),
            ("host", self.host.clone()),
            ("state", state(self)),
            ("detail", self.detail.clone()),
            ("generation", self.generation.to_string()),
            ("migration", self.migration_id.clone()),
            ("promoted from", self.promoted_from.clone()),
            ("vcpus", spec.vcpus.to_string()),
            ("queues", spec.queues.to_string()),
            ("memory", memory(&spec)),
            ("guest agent", if spec.guest_agent { "yes" } else { "" }.to_owned()),
            ("kernel", boot.kernel),
            ("initrd", boot.initrd),
            ("cmdline", boot.cmdline),
        ];
        let ports = spec.ports.into_iter();
        all.extend(ports.map(|port| ("port", format!("{} {} {}", port.network, port.mac, port.ips.join(", ")))));
        all.extend(spec.disks.iter().map(|disk| ("disk", shown(disk))));
        all
    }
}

//! What this host's devices are called. Everything that names a device takes the name from here, so that what is left
//! over after a crash can be recognised by its name alone.

use throughline_cutover::{PortId, Vni};

/// The device that carries departed guests' frames; one a host.
pub const CARRY: &str = "tlcarry0";

const BRIDGE: &str = "tlb";
const VXLAN: &str = "tlx";
const TAP: &str = "tlt";
const HOLD: &str = "tlh";
const ENDPOINT: &str = "tle";

/// A network's bridge.
pub fn bridge(vni: Vni) -> String {
    format!("{BRIDGE}{vni}")
}

/// A network's VXLAN device.
pub fn vxlan(vni: Vni) -> String {
    format!("{VXLAN}{vni}")
}

/// The tap of a guest's port.
pub fn tap(port: PortId) -> String {
    format!("{TAP}{:08x}", port.get())
}

/// The hold of a port on the move.
pub fn hold(port: PortId) -> String {
    format!("{HOLD}{:08x}", port.get())
}

/// The end of an endpoint's veth pair that is in the bridge.
pub fn endpoint(port: PortId) -> String {
    format!("{ENDPOINT}{:08x}", port.get())
}

/// VNI of a bridge or VXLAN device, if `name` is one of ours.
pub fn network_of(name: &str) -> Option<Vni> {
    let digits = name.strip_prefix(BRIDGE).or_else(|| name.strip_prefix(VXLAN))?;
    let vni = Vni::try_from(digits.parse::<u32>().ok()?).ok()?;
    (digits == vni.to_string()).then_some(vni)
}

/// Port of an endpoint's bridge end, if `name` is one of ours.
pub fn endpoint_of(name: &str) -> Option<PortId> {
    let digits = name.strip_prefix(ENDPOINT)?;
    let port = PortId::try_from(u32::from_str_radix(digits, 16).ok()?).ok()?;
    (name == endpoint(port)).then_some(port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_the_kernel_and_read_back() {
        let vni = Vni::try_from(0xff_ffff_u32).unwrap();
        let port = PortId::try_from(u32::MAX).unwrap();
        for name in [bridge(vni), vxlan(vni), tap(port), hold(port), endpoint(port), CARRY.to_owned()] {
            assert!(name.len() < libc::IFNAMSIZ, "{name}");
        }
        assert_eq!(network_of(&bridge(vni)), Some(vni));
        assert_eq!(network_of(&vxlan(vni)), Some(vni));
        assert_eq!(endpoint_of(&endpoint(port)), Some(port));
    }

    #[test]
    fn strangers_are_not_taken_for_ours() {
        for name in ["tlb", "tlb007", "tlb0", "tlb+1", "tlb16777216", "tlx1a", "docker0", "tlcarry0", "tlt00000001"] {
            assert_eq!(network_of(name), None, "{name}");
        }
        for name in ["tle", "tle1", "tle00000000", "tle0000000G", "tle0000000A", "tle000000001"] {
            assert_eq!(endpoint_of(name), None, "{name}");
        }
    }
}

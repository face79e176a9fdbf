//! QEMU's arguments, from what a guest is. Pure.
//!
//! QEMU runs in its run directory, so that its own files are names there; everything else is a descriptor it inherits.

use std::{
    ffi::{OsStr, OsString},
    os::fd::RawFd,
};

use throughline_cutover::{GuestName, MacAddr, Mtu, PortId};
use uuid::Uuid;

use crate::{
    Accelerator, FdRole, RunDir,
    disk::arguments::{self, DiskArgs},
    ram_kib,
};

/// First PCI slot of a network card; 0 is the host bridge. Slots are fixed, because a migration finds devices by them.
const FIRST_SLOT: usize = 2;
/// PCI slot of the guest agent's channel, fixed as cards' are: beyond those and disks.
const AGENT_SLOT: usize = 0x13;
/// Receive descriptors of a network card, the most QEMU allows. A guest that stands still for a moment must not run out of
/// them: QEMU up to 9.0 may then wait for a kick that never comes, and the card is deaf (hw/net/virtio-net.c, "update event
/// idx if guest has made extra buffers during double check").
const RX_QUEUE: u32 = 1024;
/// Set of the descriptor the serial line is written to; cards' are counted from 0.
const SERIAL_SET: u32 = 1_000;
/// System calls QEMU gives up once it is set up: old ones, those that change who it is, start programs, or take what other
/// processes have.
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// A network card by descriptor numbers, as QEMU will inherit them.
pub(crate) struct NicArgs {
    pub(crate) port: PortId,
    pub(crate) mac: MacAddr,
    pub(crate) mtu: Mtu,
    /// The tap QEMU serves, queue by queue; none: the card is plugged into nothing.
    pub(crate) tap: Vec<RawFd>,
    /// What it keeps for the agent.
    pub(crate) kept: Vec<(FdRole, RawFd)>,
}

/// The values of `-accel` and `-cpu`. A guest moves only between hosts with the same: under KVM, of one processor model.
pub(crate) fn processor(accelerator: Accelerator) -> (&'static str, &'static str) {
    match accelerator {
        Accelerator::Kvm => ("kvm", "host,migratable=on"),
        Accelerator::Tcg => ("tcg,thread=multi", "max"),
    }
}

/// What a guest boots, by descriptor numbers.
pub(crate) struct BootArgs<'a> {
    pub(crate) kernel: RawFd,
    pub(crate) initrd: Option<RawFd>,
    pub(crate) cmdline: &'a str,
}

/// Everything the arguments are made of.
pub(crate) struct CommandLine<'a> {
    pub(crate) name: &'a GuestName,
    pub(crate) vcpus: u32,
    pub(crate) memory_kib: u64,
    pub(crate) boot: BootArgs<'a>,
    pub(crate) serial_log: RawFd,
    pub(crate) accelerator: Accelerator,
    pub(crate) nics: &'a [NicArgs],
    pub(crate) disks: &'a [DiskArgs],
    pub(crate) guest_agent: bool,
    pub(crate) incoming: bool,
}

impl CommandLine<'_> {
    /// The arguments, without the program. The same guest gets the same devices at both ends of a migration.
    pub(crate) fn arguments(&self) -> Vec<OsString> {
        let mut args = Arguments(Vec::new());
        self.machine(&mut args);
        self.boot(&mut args);
        self.monitor_and_serial(&mut args);
        let mut set = 0;
        for (index, nic) in self.nics.iter().enumerate() {
            nic.arguments(FIRST_SLOT + index, &mut set, &mut args);
        }
        for (option, value) in arguments::options(self.disks) {
            args.option(option, value);
        }
        if self.guest_agent {
            args.guest_agent();
        }
        if self.incoming {
            args.option("-incoming", "defer");
            args.flag("-S");
        }
        args.0
    }

    fn machine(&self, args: &mut Arguments) {
        args.process(self.name);
        // Nothing that a guest with a serial line and virtio cards does not use: it starts faster and migrates less.
        args.option("-machine", "q35,usb=off,sata=off,smbus=off,smm=off,vmport=off,hpet=off,dump-guest-core=off");
        let (accel, cpu) = processor(self.accelerator);
        args.option("-accel", accel);
        args.option("-cpu", cpu);
        args.option("-smp", self.vcpus.to_string());
        args.option("-m", format!("{}k", ram_kib(self.memory_kib, self.accelerator)));
        args.option("-overcommit", "mem-lock=off");
    }

    fn boot(&self, args: &mut Arguments) {
        let BootArgs { kernel, initrd, cmdline } = self.boot;
        args.option("-kernel", own(kernel));
        if let Some(initrd) = initrd {
            args.option("-initrd", own(initrd));
        }
        if !cmdline.is_empty() {
            args.option("-append", cmdline);
        }
    }

    fn monitor_and_serial(&self, args: &mut Arguments) {
        args.monitor();
        args.option("-add-fd", format!("fd={},set={SERIAL_SET},opaque=serial", self.serial_log));
        args.option("-chardev", format!("file,id=serial0,append=on,path=/dev/fdset/{SERIAL_SET}"));
        args.option("-serial", "chardev:serial0");
    }
}

impl NicArgs {
    fn arguments(&self, slot: usize, set: &mut u32, args: &mut Arguments) {
        let Self { port, mac, mtu, tap, kept } = self;
        for (role, fd) in kept {
            args.option("-add-fd", format!("fd={fd},set={set},opaque={role}"));
            *set += 1;
        }
        let mut plug = String::new();
        if !tap.is_empty() {
            // vhost would read the tap while the guest is paused; the hand-over needs the frames to stay in the ring.
            args.option("-netdev", format!("tap,id=net-{port},{},vhost=off", descriptors(tap)));
            plug = format!("netdev=net-{port},");
        }
        args.option(
            "-device",
            format!(
                "virtio-net-pci,id=nic-{port},{plug}bus=pcie.0,addr={slot:#x},mac={mac},host_mtu={mtu},\
                 rx_queue_size={RX_QUEUE},romfile={}",
                queue_pairs(tap.len())
            ),
        );
    }
}

fn descriptors(tap: &[RawFd]) -> String {
    let numbers: Vec<_> = tap.iter().map(RawFd::to_string).collect();
    format!("{}={}", if tap.len() > 1 { "fds" } else { "fd" }, numbers.join(":"))
}

/// What a card with several queues is told besides; a plain one stays as it always was. An interrupt for each queue, each
/// way, one for changes of the configuration, one for the queue of commands.
fn queue_pairs(queues: usize) -> String {
    if queues > 1 { format!(",mq=on,vectors={}", 2 * queues + 2) } else { String::new() }
}

/// The arguments of a QEMU that runs no guest and has disks.
pub(crate) fn keeper(name: &GuestName, id: &Uuid, disks: &[DiskArgs]) -> Vec<OsString> {
    let mut args = Arguments(Vec::new());
    args.process(name);
    args.option("-uuid", id.to_string());
    // No processor, no memory, no device.
    args.option("-machine", "none");
    args.flag("-S");
    args.monitor();
    for (option, value) in arguments::kept(disks) {
        args.option(option, value);
    }
    args.0
}

struct Arguments(Vec<OsString>);

impl Arguments {
    /// What every QEMU is told of itself.
    fn process(&mut self, name: &GuestName) {
        self.option("-name", format!("guest={name},debug-threads=on"));
        self.flag("-nodefaults");
        self.flag("-no-user-config");
        self.option("-display", "none");
        self.option("-msg", "timestamp=on");
        self.option("-sandbox", SANDBOX);
    }

    fn monitor(&mut self) {
        self.option("-pidfile", RunDir::PID_FILE);
        self.option("-chardev", format!("socket,id=qmp,server=on,wait=off,path={}", RunDir::QMP_SOCKET));
        self.option("-mon", "chardev=qmp,mode=control");
        // A monitor that never disconnects: with the last one QEMU closes the kept descriptors of a running guest.
        self.option("-chardev", "file,id=keep,path=/dev/null");
        self.option("-mon", "chardev=keep,mode=control");
    }

    /// A port by the name that agents look for. Who connects is served; QEMU waits for nobody.
    fn guest_agent(&mut self) {
        self.option("-chardev", format!("socket,id=agent,server=on,wait=off,path={}", RunDir::AGENT_SOCKET));
        // The first port is a console's.
        self.option("-device", format!("virtio-serial-pci,id=ports,bus=pcie.0,addr={AGENT_SLOT:#x},max_ports=2"));
        self.option("-device", "virtserialport,bus=ports.0,nr=1,chardev=agent,name=org.qemu.guest_agent.0");
    }

    fn flag(&mut self, flag: &str) {
        self.0.push(flag.into());
    }

    fn option(&mut self, option: &str, value: impl AsRef<OsStr>) {
        self.0.push(option.into());
        self.0.push(value.as_ref().to_owned());
    }
}

/// The path by which a process opens a file it has open.
pub(crate) fn own(descriptor: RawFd) -> String {
    format!("/proc/self/fd/{descriptor}")
}

#[cfg(test)]
mod tests {
    use throughline_cutover::{DiskBus, DiskFormat};

    use super::*;

    fn nic(port: u32, tap: RawFd) -> NicArgs {
        let port = PortId::try_from(port).unwrap();
        NicArgs {
            port,
            mac: format!("02:00:00:00:00:{:02x}", port.get()).parse().unwrap(),
            mtu: Mtu::try_from(1450_u32).unwrap(),
            tap: vec![tap],
            kept: vec![(FdRole::Tap(port), tap + 1), (FdRole::Hold(port), tap + 2)],
        }
    }

    fn nic_with_three_queues() -> NicArgs {
        let nic = nic(7, 20);
        NicArgs { tap: vec![20, 23, 24], ..nic }
    }

    fn render(accelerator: Accelerator, nics: &[NicArgs], incoming: bool) -> String {
        render_with(accelerator, nics, &[], incoming)
    }

    fn render_with(accelerator: Accelerator, nics: &[NicArgs], disks: &[DiskArgs], incoming: bool) -> String {
        render_guest(accelerator, nics, disks, false, incoming)
    }

    fn render_guest(
        accelerator: Accelerator,
        nics: &[NicArgs],
        disks: &[DiskArgs],
        guest_agent: bool,
        incoming: bool,
    ) -> String {
        let name = "web-1".parse().unwrap();
        let line = CommandLine {
            name: &name,
            vcpus: 2,
            memory_kib: 262_144,
            boot: BootArgs { kernel: 10, initrd: Some(11), cmdline: "console=ttyS0 a,b" },
            serial_log: 12,
            accelerator,
            nics,
            disks,
            guest_agent,
            incoming,
        };
        let args: Vec<_> = line.arguments().into_iter().map(|a| a.into_string().unwrap()).collect();
        args.join("\n").replace("\n-", "\u{0}-").replace('\n', " ").replace('\u{0}', "\n")
    }

    #[test]
    fn golden_tcg_with_two_cards_waiting_for_a_migration() {
        let golden = "\
-name guest=web-1,debug-threads=on
-nodefaults
-no-user-config
-display none
-msg timestamp=on
-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
-machine q35,usb=off,sata=off,smbus=off,smm=off,vmport=off,hpet=off,dump-guest-core=off
-accel tcg,thread=multi
-cpu max
-smp 2
-m 262136k
-overcommit mem-lock=off
-kernel /proc/self/fd/10
-initrd /proc/self/fd/11
-append console=ttyS0 a,b
-pidfile qemu.pid
-chardev socket,id=qmp,server=on,wait=off,path=qmp.sock
-mon chardev=qmp,mode=control
-chardev file,id=keep,path=/dev/null
-mon chardev=keep,mode=control
-add-fd fd=12,set=1000,opaque=serial
-chardev file,id=serial0,append=on,path=/dev/fdset/1000
-serial chardev:serial0
-add-fd fd=21,set=0,opaque=tap:7
-add-fd fd=22,set=1,opaque=hold:7
-netdev tap,id=net-7,fd=20,vhost=off
-device virtio-net-pci,id=nic-7,netdev=net-7,bus=pcie.0,addr=0x2,mac=02:00:00:00:00:07,host_mtu=1450,rx_queue_size=1024,romfile=
-add-fd fd=31,set=2,opaque=tap:9
-add-fd fd=32,set=3,opaque=hold:9
-netdev tap,id=net-9,fd=30,vhost=off
-device virtio-net-pci,id=nic-9,netdev=net-9,bus=pcie.0,addr=0x3,mac=02:00:00:00:00:09,host_mtu=1450,rx_queue_size=1024,romfile=
-incoming defer
-S";
        assert_eq!(render(Accelerator::Tcg, &[nic(7, 20), nic(9, 30)], true), golden);
    }

    #[test]
    fn golden_keeper() {
        let (name, format, bus) = ("root".parse().unwrap(), DiskFormat::Qcow2, DiskBus::VirtioBlk);
        let args = keeper(
            &"web-1".parse().unwrap(),
            &Uuid::nil(),
            &[DiskArgs { name, format, bus, image: 40, device: false, below: None }],
        );
        let args: Vec<_> = args.into_iter().map(|arg| arg.into_string().unwrap()).collect();
        let line = args.join(" ");
        let golden = "\
-name guest=web-1,debug-threads=on -nodefaults -no-user-config -display none -msg timestamp=on \
-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny \
-uuid 00000000-0000-0000-0000-000000000000 -machine none -S -pidfile qemu.pid -chardev socket,id=qmp,server=on,wait=off,path=qmp.sock -mon chardev=qmp,mode=control \
-chardev file,id=keep,path=/dev/null -mon chardev=keep,mode=control -add-fd fd=40,set=2000,opaque=disk:root -blockdev ";
        assert!(line.starts_with(golden), "{line}");
    }

    #[test]
    fn a_card_with_several_queues_has_a_descriptor_and_interrupts_for_each() {
        let line = render(Accelerator::Tcg, &[nic_with_three_queues()], false);
        assert!(line.contains("-netdev tap,id=net-7,fds=20:23:24,vhost=off\n"), "{line}");
        assert!(line.contains(",rx_queue_size=1024,romfile=,mq=on,vectors=8"), "{line}");
    }

    #[test]
    fn a_card_without_a_tap_is_plugged_into_nothing() {
        let card = NicArgs { tap: vec![], kept: vec![], ..nic(7, 20) };
        let line = render(Accelerator::Tcg, &[card], false);
        assert!(!line.contains("netdev") && !line.contains("opaque=tap"), "{line}");
        assert!(line.contains("-device virtio-net-pci,id=nic-7,bus=pcie.0,addr=0x2,mac=02:00:00:00:00:07,"), "{line}");
    }

    #[test]
    fn disks_come_after_cards_and_before_a_migration() {
        let (name, format, bus) = ("root".parse().unwrap(), DiskFormat::Raw, DiskBus::VirtioBlk);
        let disk = DiskArgs { name, format, bus, image: 40, device: false, below: None };
        let line = render_with(Accelerator::Tcg, &[nic(7, 20)], &[disk], true);
        let places =
            ["-device virtio-net-pci", "-add-fd fd=40,", "-blockdev {", "-device virtio-blk-pci", "-incoming defer"];
        let places = places.map(|option| line.find(option).unwrap());
        assert!(places.is_sorted(), "{line}");
    }

    #[test]
    fn an_agents_channel_is_added_and_moves_nothing() {
        let with = render_guest(Accelerator::Tcg, &[nic(7, 20)], &[], true, true);
        let channel = "\
-chardev socket,id=agent,server=on,wait=off,path=agent.sock
-device virtio-serial-pci,id=ports,bus=pcie.0,addr=0x13,max_ports=2
-device virtserialport,bus=ports.0,nr=1,chardev=agent,name=org.qemu.guest_agent.0
";
        assert!(with.contains(channel), "{with}");
        assert_eq!(with.replace(channel, ""), render(Accelerator::Tcg, &[nic(7, 20)], true));
    }

    #[test]
    fn kvm_without_cards_runs_at_once_and_keeps_its_ram() {
        let line = render(Accelerator::Kvm, &[], false);
        assert!(line.contains("-accel kvm\n-cpu host,migratable=on\n"), "{line}");
        assert!(line.contains("-m 262144k\n"), "{line}");
        assert!(!line.contains("-incoming") && !line.contains("\n-S") && !line.contains("-netdev"), "{line}");
    }
}

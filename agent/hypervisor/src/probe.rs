//! Which accelerator works on this host. That `/dev/kvm` opens says little: it may be served by software that emulates
//! the guest one instruction at a time, or refuse the registers QEMU needs.

use std::{
    io::{self, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    process::{Command, Stdio},
    time::Duration,
};

use nix::sys::memfd::{MFdFlags, memfd_create};
use tokio::time::{Instant, timeout};
use tracing::info;

use crate::{
    Accelerator, AcceleratorChoice, Confinement,
    command_line::{own, processor},
    launch::PROGRAM,
    probe_rom,
};

/// How long the probe may take. Where KVM works it takes some 0.2 s, on a translator 0.3 s.
const DEADLINE: Duration = Duration::from_secs(2);

/// The probe itself could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The firmware image could not be provided.
    #[error("cannot find out whether KVM works: cannot make an image for the probe: {0}")]
    Image(#[source] io::Error),
    /// QEMU could not be started.
    #[error("cannot find out whether KVM works: cannot start {PROGRAM}: {0}; is QEMU installed?")]
    Spawn(#[source] io::Error),
}

/// The accelerator for `choice`. For [`AcceleratorChoice::Auto`] a QEMU is started under KVM, as guests are, with a
/// firmware that switches to long mode and copies 32 MiB; unless that succeeds within 2 s the answer is
/// [`Accelerator::Tcg`], and the log has the reason. It is confined as guests are, so the answer holds for them. Ask once and
/// keep it.
///
/// # Errors
/// [`ProbeError`] if no QEMU could be started at all.
pub async fn probe_accelerator(
    choice: AcceleratorChoice,
    confinement: &Confinement,
) -> Result<Accelerator, ProbeError> {
    match choice {
        AcceleratorChoice::Kvm => Ok(Accelerator::Kvm),
        AcceleratorChoice::Tcg => Ok(Accelerator::Tcg),
        AcceleratorChoice::Auto => {
            let started = Instant::now();
            let verdict = try_out(Accelerator::Kvm, confinement).await?;
            let took = started.elapsed();
            Ok(match verdict {
                Ok(()) => {
                    info!(?took, "KVM runs 64-bit guests here");
                    Accelerator::Kvm
                }
                Err(reason) => {
                    info!(?took, reason, "KVM does not run 64-bit guests here; guests are translated (tcg)");
                    Accelerator::Tcg
                }
            })
        }
    }
}

/// Runs the probe under `accelerator`; the inner error is why it does not work.
async fn try_out(accelerator: Accelerator, confinement: &Confinement) -> Result<Result<(), String>, ProbeError> {
    let image = image().map_err(ProbeError::Image)?;
    let (accel, cpu) = processor(accelerator);
    let mut command = Command::new(PROGRAM);
    command
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35", "-no-reboot"])
        .args(["-accel", accel, "-cpu", cpu, "-m", &format!("{}M", probe_rom::RAM_MIB)])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=1"])
        .arg("-bios")
        .arg(own(image.as_raw_fd()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    confinement.probe(&mut command, vec![image.as_raw_fd()]);
    let mut command = tokio::process::Command::from(command);
    let child = command.kill_on_drop(true).spawn().map_err(ProbeError::Spawn)?;
    Ok(match timeout(DEADLINE, child.wait_with_output()).await {
        Ok(Ok(output)) if output.status.code() == Some(probe_rom::WELL_EXIT) => Ok(()),
        Ok(Ok(output)) => {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(format!("{}; QEMU said: {}", output.status, said.trim()))
        }
        Ok(Err(error)) => Err(format!("the probe was lost: {error}")),
        Err(_) => Err(format!("it did not copy 32 MiB in {DEADLINE:?}")),
    })
}

/// The firmware in memory, for QEMU to open by descriptor: nothing to clean up.
fn image() -> io::Result<OwnedFd> {
    let memory = memfd_create(c"throughline-probe", MFdFlags::MFD_CLOEXEC)?;
    let mut file = std::fs::File::from(memory);
    file.write_all(&probe_rom::image())?;
    // Whoever QEMU is may read it.
    file.set_permissions(std::fs::Permissions::from_mode(0o444))?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Without groups: a probe needs none.
    fn confinement() -> Confinement {
        Confinement::new(&"61000".parse().unwrap(), Path::new("")).unwrap()
    }

    #[tokio::test]
    async fn the_probe_succeeds_where_the_accelerator_works() {
        assert_eq!(try_out(Accelerator::Tcg, &confinement()).await.unwrap(), Ok(()));
    }

    #[tokio::test]
    async fn auto_answers_in_time_and_a_choice_at_once() {
        let started = Instant::now();
        let auto = probe_accelerator(AcceleratorChoice::Auto, &confinement()).await.unwrap();
        println!("auto: {auto} after {:?}", started.elapsed());
        assert!(started.elapsed() < Duration::from_secs(5));
        assert_eq!(probe_accelerator(AcceleratorChoice::Kvm, &confinement()).await.unwrap(), Accelerator::Kvm);
        assert_eq!(probe_accelerator(AcceleratorChoice::Tcg, &confinement()).await.unwrap(), Accelerator::Tcg);
    }
}

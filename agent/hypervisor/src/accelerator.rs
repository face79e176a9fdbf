//! What runs the guest's instructions, and what that means for its RAM.

use std::{fmt, str::FromStr};

/// What runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Accelerator {
    /// The processor itself, through the kernel's KVM.
    Kvm,
    /// QEMU's translator, one thread a virtual processor.
    Tcg,
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}

/// What the operator asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum AcceleratorChoice {
    /// KVM where it can run a 64-bit guest, else TCG.
    #[default]
    Auto,
    /// KVM without asking whether it works.
    Kvm,
    /// TCG.
    Tcg,
}

/// Not the name of an accelerator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("is not an accelerator; use auto, kvm or tcg")]
pub struct InvalidAccelerator;

impl FromStr for AcceleratorChoice {
    type Err = InvalidAccelerator;
    fn from_str(text: &str) -> Result<Self, InvalidAccelerator> {
        match text {
            "auto" => Ok(Self::Auto),
            "kvm" => Ok(Self::Kvm),
            "tcg" => Ok(Self::Tcg),
            _ => Err(InvalidAccelerator),
        }
    }
}

impl fmt::Display for AcceleratorChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}

/// QEMU rounds RAM up to this (`QEMU_ALIGN_UP(ram_size, 8192)`), KiB.
const RAM_STEP_KIB: u64 = 8;
/// 64 pages, KiB: what one word of TCG's dirty bitmap covers.
const DIRTY_WORD_KIB: u64 = 256;

/// The RAM a guest really gets, KiB: `memory_kib` rounded up as QEMU does, and under TCG 8 KiB less where that is a
/// multiple of 256 KiB.
///
/// QEMU before 8.2 loses writes of a migrating TCG guest when a RAM block is a multiple of 64 pages: its fast path for
/// reading the dirty bitmap a word at a time never resets the TLB. Any other size takes the correct, slower path. Both
/// ends compute the same size, because both are given the same `memory_kib`.
pub fn ram_kib(memory_kib: u64, accelerator: Accelerator) -> u64 {
    let rounded = memory_kib.div_ceil(RAM_STEP_KIB).saturating_mul(RAM_STEP_KIB);
    match accelerator {
        Accelerator::Tcg if rounded.is_multiple_of(DIRTY_WORD_KIB) => rounded.saturating_sub(RAM_STEP_KIB),
        Accelerator::Tcg | Accelerator::Kvm => rounded,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tcg_never_gets_a_multiple_of_64_pages() {
        for asked in (65_536..131_072).step_by(4) {
            let given = ram_kib(asked, Accelerator::Tcg);
            assert!(!given.is_multiple_of(DIRTY_WORD_KIB), "{asked}");
            assert!(given.is_multiple_of(RAM_STEP_KIB), "{asked}: QEMU would round {given}");
            assert!(given.abs_diff(asked) <= RAM_STEP_KIB, "{asked} became {given}");
        }
        assert_eq!(ram_kib(262_144, Accelerator::Tcg), 262_136);
        assert_eq!(ram_kib(262_143, Accelerator::Tcg), 262_136, "QEMU would round it up to 262144");
        assert_eq!(ram_kib(262_136, Accelerator::Tcg), 262_136, "what was reduced stays as it is");
    }

    #[test]
    fn kvm_gets_what_was_asked() {
        assert_eq!(ram_kib(262_144, Accelerator::Kvm), 262_144);
        assert_eq!(ram_kib(262_143, Accelerator::Kvm), 262_144);
        assert_eq!(ram_kib(u64::MAX, Accelerator::Kvm), u64::MAX);
    }

    #[test]
    fn choice_round_trips() {
        for choice in [AcceleratorChoice::Auto, AcceleratorChoice::Kvm, AcceleratorChoice::Tcg] {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        assert_eq!("hvf".parse::<AcceleratorChoice>(), Err(InvalidAccelerator));
    }
}

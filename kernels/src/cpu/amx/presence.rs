//! Whether this process may use AMX: the processor has it, the system keeps its registers, Linux grants them, and
//! the self-check agrees.
//!
//! Asked once, by [`Isa`](crate::cpu::Isa) before any context is made: permission is a property of the process
//! (threads made later share it), and Linux refuses it while a thread has a signal stack too small for the larger
//! frames. Everything else about tiles is in `tiles`.

use super::self_check;
use nix::errno::Errno;
use nix::libc::{SYS_arch_prctl, c_long, syscall};
use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
use std::sync::OnceLock;

/// `arch_prctl` code that asks for a dynamically enabled register state (linux/arch/x86/include/uapi/asm/prctl.h).
const ARCH_REQ_XCOMP_PERM: c_long = 0x1023;
/// The state component of the tile data, and its bit in XCR0 beside that of the tile configuration.
const XFEATURE_XTILEDATA: c_long = 18;
const XCR0_TILES: u64 = 1 << 17 | 1 << 18;
/// CPUID leaf 7, EDX: AMX-TILE and AMX-INT8.
const AMX_TILE_AND_INT8: u32 = 1 << 24 | 1 << 25;

/// Why there is no AMX path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Absent {
    /// What most processors lack; not worth a word.
    #[error("this processor has no amx-int8, or not the avx-512 vnni beside it")]
    Processor,
    #[error("the operating system does not keep amx tiles (xcr0 is {xcr0:#x})")]
    System { xcr0: u64 },
    #[error("linux refused amx tiles to this process: {0}")]
    Refused(Errno),
    #[error("the amx self-check found other bits than avx-512 gives, for {0}")]
    OtherBits(&'static str),
}

/// Whether the AMX path can be used, asked and checked once per process.
pub(crate) fn presence() -> Result<(), Absent> {
    static PRESENCE: OnceLock<Result<(), Absent>> = OnceLock::new();
    *PRESENCE.get_or_init(|| {
        if !in_processor() {
            return Err(Absent::Processor);
        }
        // SAFETY: CPUID says OSXSAVE wherever AVX-512 is detected, which `in_processor` asked for.
        let xcr0 = unsafe { extended_control() };
        if xcr0 & XCR0_TILES != XCR0_TILES {
            return Err(Absent::System { xcr0 });
        }
        // SAFETY: this request takes two integers and writes no memory of ours.
        let granted = unsafe { syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) };
        Errno::result(granted).map_err(Absent::Refused)?;
        // SAFETY: all that the instructions need was just asked for.
        unsafe { self_check::run() }.map_err(Absent::OtherBits)
    })
}

fn in_processor() -> bool {
    let wide = std::is_x86_feature_detected!("avx512f")
        && std::is_x86_feature_detected!("avx512bw")
        && std::is_x86_feature_detected!("avx512vl")
        && std::is_x86_feature_detected!("avx512vnni")
        && std::is_x86_feature_detected!("avx2")
        && std::is_x86_feature_detected!("fma")
        && std::is_x86_feature_detected!("f16c");
    if !wide || __cpuid(0).eax < 0x1d || __cpuid_count(7, 0).edx & AMX_TILE_AND_INT8 != AMX_TILE_AND_INT8 {
        return false;
    }
    // Palette 1: 8 tiles of at least 16 rows of 64 bytes, which is what `tiles` configures.
    let palette = __cpuid_count(0x1d, 1);
    let (row_bytes, tiles, rows) = (palette.ebx & 0xffff, palette.ebx >> 16, palette.ecx & 0xffff);
    __cpuid_count(0x1d, 0).eax >= 1 && (row_bytes, tiles, rows) == (64, 8, 16)
}

#[target_feature(enable = "xsave")]
fn extended_control() -> u64 {
    // SAFETY: register 0 exists wherever the instruction does.
    unsafe { _xgetbv(0) }
}

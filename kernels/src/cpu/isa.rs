//! Which vector instructions a kernel may use.
//!
//! The worker picks one [`Isa`] at start (the best present, or the one `ROCMFORGE_CPU_ISA` names) and every
//! operation dispatches on it. What always holds: an `Isa` other than [`Isa::Portable`] inside a
//! [`Cpu`](super::Cpu) is present on this processor; that is what makes the `target_feature` calls sound.

#[cfg(target_arch = "x86_64")]
use super::amx;
use crate::KernelError;

/// A code path. Later variants need more of the processor; all of them give the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Plain Rust, on any processor.
    Portable,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, VL and VNNI, beside all of [`Isa::Avx2`].
    Avx512,
    /// AMX-INT8 tiles, granted by Linux and found to give the same bits, beside all of [`Isa::Avx512`].
    Amx,
}

/// Every code path there is, least demanding first.
const ALL: [Isa; 4] = [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Amx];

impl Isa {
    /// The best code path this processor has.
    #[must_use]
    pub fn detect() -> Isa {
        ALL.into_iter().rev().find(|isa| isa.is_present()).unwrap_or(Isa::Portable)
    }

    /// Every code path this processor has, least demanding first.
    #[must_use]
    pub fn available() -> Vec<Isa> {
        ALL.into_iter().filter(|isa| isa.is_present()).collect()
    }

    /// The code path called `name` (`portable`, `avx2`, `avx512`, `amx`, any case).
    ///
    /// Errors: [`KernelError::UnsupportedIsa`] if the name is unknown or this processor lacks it.
    pub fn parse(name: &str) -> Result<Isa, KernelError> {
        let known = ALL.into_iter().find(|isa| isa.name().eq_ignore_ascii_case(name.trim()));
        known.filter(|isa| isa.is_present()).ok_or_else(|| unsupported(name))
    }

    /// The name [`Isa::parse`] understands.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Amx => "amx",
        }
    }

    /// Fails with [`KernelError::UnsupportedIsa`] where this processor lacks the instructions.
    pub(crate) fn require(self) -> Result<Isa, KernelError> {
        if self.is_present() { Ok(self) } else { Err(unsupported(self.name())) }
    }

    #[cfg(target_arch = "x86_64")]
    fn is_present(self) -> bool {
        let avx2 = || {
            std::is_x86_feature_detected!("avx2")
                && std::is_x86_feature_detected!("fma")
                && std::is_x86_feature_detected!("f16c")
        };
        let avx512 = || {
            std::is_x86_feature_detected!("avx512f")
                && std::is_x86_feature_detected!("avx512bw")
                && std::is_x86_feature_detected!("avx512vl")
                && std::is_x86_feature_detected!("avx512vnni")
        };
        match self {
            Isa::Portable => true,
            Isa::Avx2 => avx2(),
            Isa::Avx512 => avx2() && avx512(),
            Isa::Amx => amx::presence().is_ok(),
        }
    }

    /// Why a processor that has AMX runs without it: its registers are not granted, or the self-check failed.
    /// `None` where it is used or there is none.
    #[must_use]
    pub fn amx_refusal() -> Option<String> {
        #[cfg(target_arch = "x86_64")]
        return amx::presence()
            .err()
            .filter(|absent| *absent != amx::Absent::Processor)
            .map(|absent| absent.to_string());
        #[cfg(not(target_arch = "x86_64"))]
        None
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn is_present(self) -> bool {
        self == Isa::Portable
    }
}

impl std::fmt::Display for Isa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

fn unsupported(name: &str) -> KernelError {
    let available: Vec<&str> = Isa::available().into_iter().map(Isa::name).collect();
    // The name comes from the environment, so what is echoed is bounded.
    let isa = name.trim().chars().take(32).collect();
    KernelError::UnsupportedIsa { isa, available: available.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_available_path_parses_back_from_its_name() {
        for isa in Isa::available() {
            assert_eq!(Isa::parse(&isa.name().to_uppercase()), Ok(isa));
            assert!(isa <= Isa::detect());
        }
    }

    #[test]
    fn amx_is_there_or_refused() {
        assert_eq!(Isa::parse("amx").is_ok(), Isa::detect() == Isa::Amx);
        assert!(Isa::amx_refusal().is_none() || Isa::detect() < Isa::Amx);
    }

    #[test]
    fn an_unknown_or_missing_path_is_refused_with_those_that_work() {
        for name in ["", "avx3"] {
            let message = Isa::parse(name).unwrap_err().to_string();
            assert!(message.contains("available: portable"), "{message}");
        }
    }
}

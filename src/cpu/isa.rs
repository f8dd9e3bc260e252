//! Which instruction sets this processor has, and which of them the kernels may use.

use std::sync::OnceLock;

use crate::error::{Error, Result};

/// Names the most that kernels may use, for runs that must give the same bits on different processors and for
/// comparing them: `portable`, `neon`, `avx2`, `avx512`, `avx512bf16` or `amx`.
pub const VARIABLE: &str = "TRIMTAB_CPU";

/// Instruction sets with kernels of their own, each with all of the ones of its architecture before it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Isa {
    /// What the compiler's target has anyway.
    Portable,
    /// Advanced SIMD, which every 64-bit ARM processor has.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// With FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX512F and AVX512BW.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX512_BF16, for what may be rounded to bf16.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    /// AMX's tiles of bf16, and the operating system's leave to use them.
    #[cfg(target_arch = "x86_64")]
    Amx,
}

impl Isa {
    const ALL: &[(&str, Isa)] = &[
        ("portable", Isa::Portable),
        #[cfg(target_arch = "aarch64")]
        ("neon", Isa::Neon),
        #[cfg(target_arch = "x86_64")]
        ("avx2", Isa::Avx2),
        #[cfg(target_arch = "x86_64")]
        ("avx512", Isa::Avx512),
        #[cfg(target_arch = "x86_64")]
        ("avx512bf16", Isa::Avx512Bf16),
        #[cfg(target_arch = "x86_64")]
        ("amx", Isa::Amx),
    ];

    /// The best that the processor has.
    fn found() -> Isa {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            if !(has!("avx2") && has!("fma") && has!("f16c")) {
                return Isa::Portable;
            }
            if !(has!("avx512f") && has!("avx512bw")) {
                return Isa::Avx2;
            }
            match has!("avx512bf16") {
                false => Isa::Avx512,
                true if has_amx() => Isa::Amx,
                true => Isa::Avx512Bf16,
            }
        }
        #[cfg(target_arch = "aarch64")]
        return Isa::Neon;
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        Isa::Portable
    }

    /// The best that kernels may use here: what the processor has, up to what [`VARIABLE`] names. A name that is not
    /// known counts as not given; [`Isa::checked`] refuses it before work begins.
    pub fn best() -> Isa {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| limit().ok().flatten().map_or_else(Isa::found, |most| most.min(Isa::found())))
    }

    /// [`Isa::best`], or an error if [`VARIABLE`] holds what it cannot.
    pub fn checked() -> Result<Isa> {
        limit().map(|_| Isa::best())
    }

    /// Every set that [`Isa::best`] implies, itself last.
    pub fn usable() -> impl Iterator<Item = Isa> {
        Isa::ALL.iter().map(|(_, isa)| *isa).filter(|isa| *isa <= Isa::best())
    }

    /// Its name as [`VARIABLE`] takes it.
    pub fn name(self) -> &'static str {
        Isa::ALL.iter().find(|(_, isa)| *isa == self).map_or("portable", |(name, _)| name)
    }
}

fn limit() -> Result<Option<Isa>> {
    match std::env::var(VARIABLE) {
        Err(_) => Ok(None),
        Ok(value) => parse(&value),
    }
}

fn parse(value: &str) -> Result<Option<Isa>> {
    match Isa::ALL.iter().find(|(name, _)| *name == value) {
        Some((_, isa)) => Ok(Some(*isa)),
        None if value.is_empty() => Ok(None),
        None => Err(Error::Config {
            key: VARIABLE.into(),
            found: format!("{value:?}"),
            expected: Isa::ALL.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", "),
        }),
    }
}

/// Whether tiles of bf16 are there and this process may use them. Linux keeps their 8 KiB of state a thread from
/// processes that have not asked for it (Linux, Documentation/arch/x86/xstate.rst).
#[cfg(target_arch = "x86_64")]
fn has_amx() -> bool {
    #[cfg(target_os = "linux")]
    {
        use std::arch::x86_64::__cpuid_count;
        /// CPUID leaf 7: AMX-BF16 and AMX-TILE.
        const AMX: u32 = 1 << 22 | 1 << 24;
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_long = 18;
        if __cpuid_count(0, 0).eax < 7 || __cpuid_count(7, 0).edx & AMX != AMX {
            return false;
        }
        // SAFETY: the call takes two numbers and no pointers; a kernel that does not know it answers with an error.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
    }
    #[cfg(not(target_os = "linux"))]
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_others_refused() {
        for (name, isa) in Isa::ALL {
            assert_eq!(parse(name).unwrap(), Some(*isa));
            assert_eq!(isa.name(), *name);
        }
        assert_eq!(parse("").unwrap(), None);
        let refused = parse("avx1024").unwrap_err().to_string();
        assert!(refused.contains(VARIABLE) && refused.contains("portable"), "{refused}");
    }

    #[test]
    fn the_best_is_the_last_that_is_usable() {
        assert_eq!(Isa::usable().last(), Some(Isa::best()));
        assert_eq!(Isa::usable().next(), Some(Isa::Portable));
    }
}

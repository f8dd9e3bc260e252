//! The devices that tests run on: the CPU always, and a GPU (a software rasterizer will do) if there is one and this build
//! has code for it.

#[cfg(feature = "cuda")]
use super::ptx::Ptx;
use trimtab::backend::Backend;
#[cfg(feature = "wgpu")]
use trimtab::backend::Tiling;
use trimtab::backend::cpu::Cpu;
#[cfg(feature = "wgpu")]
use trimtab::backend::wgpu::{Ask, Wgpu, adapters};
#[cfg(feature = "cuda")]
use trimtab::backend::{
    Caps,
    cuda::{self, Cuda},
};

#[derive(Clone, Debug)]
pub struct Device {
    pub name: String,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Cpu,
    /// What is asked for, the largest binding, and whether subgroup operations are used where they are there.
    #[cfg(feature = "wgpu")]
    Wgpu(Ask, u64, bool),
    /// What is changed about one that is asked for all it offers.
    #[cfg(feature = "wgpu")]
    WgpuWith(fn(Wgpu) -> Wgpu),
    /// Architecture and largest binding.
    #[cfg(feature = "cuda")]
    Ptx(u32, u64),
    /// What the card can do.
    #[cfg(feature = "cuda")]
    PtxOf(Box<Caps>),
    #[cfg(feature = "cuda")]
    Cuda,
}

impl Device {
    pub fn cpu() -> Device {
        Device { name: "cpu".into(), kind: Kind::Cpu }
    }

    pub fn open(&self) -> Box<dyn Backend> {
        match &self.kind {
            Kind::Cpu => Box::new(Cpu::new()),
            #[cfg(feature = "cuda")]
            Kind::Cuda => match Cuda::new(None) {
                Ok(card) => Box::new(card),
                Err(e) => panic!("{e}"),
            },
            #[cfg(feature = "cuda")]
            Kind::Ptx(arch, max) => Box::new(Ptx::new(*arch, *max)),
            #[cfg(feature = "cuda")]
            Kind::PtxOf(caps) => Box::new(Ptx::like((**caps).clone())),
            #[cfg(feature = "wgpu")]
            Kind::WgpuWith(change) => match Wgpu::with(None, Ask::Adapter) {
                Ok(gpu) => Box::new(change(gpu)),
                Err(e) => panic!("{e}"),
            },
            #[cfg(feature = "wgpu")]
            Kind::Wgpu(ask, max, subgroups) => match Wgpu::with(None, ask.clone()) {
                Ok(gpu) if !subgroups => Box::new(gpu.limit_binding(*max).without_subgroups()),
                Ok(gpu) => Box::new(gpu.limit_binding(*max)),
                Err(e) => panic!("{e}"),
            },
        }
    }
}

#[cfg(feature = "wgpu")]
impl Device {
    /// The adapter, with all it offers; None if there is none.
    pub fn wgpu() -> Option<Device> {
        Device::wgpu_like("wgpu", Ask::Adapter, u64::MAX, true)
    }

    /// The adapter without its optional features.
    pub fn wgpu_plain() -> Option<Device> {
        Device::wgpu_like("wgpu without optional features", Ask::Plain, u64::MAX, true)
    }

    /// The adapter with all it offers but subgroup operations, which sum in another order: what is left must not differ
    /// from the plain kernels in any bit.
    pub fn wgpu_without_subgroups() -> Option<Device> {
        Device::wgpu_like("wgpu without subgroups", Ask::Adapter, u64::MAX, false)
    }

    /// The adapter with all it offers, with large tiles wherever a product can have them.
    pub fn wgpu_with_large_tiles() -> Option<Device> {
        Device::wgpu_with("wgpu with large tiles", |gpu| gpu.with_tiling(Tiling::Large))
    }

    /// The adapter with all it offers, every access of every shader checked.
    pub fn wgpu_checked() -> Option<Device> {
        Device::wgpu_with("wgpu, checked", Wgpu::with_checks)
    }

    fn wgpu_with(name: &str, change: fn(Wgpu) -> Wgpu) -> Option<Device> {
        Device::wgpu().map(|_| Device { name: name.into(), kind: Kind::WgpuWith(change) })
    }

    /// The adapter under WebGPU's default limits, and with no binding larger than `max_binding` bytes.
    pub fn wgpu_small(max_binding: u64) -> Option<Device> {
        Device::wgpu_like("wgpu under small limits", Ask::Defaults, max_binding, true)
    }

    fn wgpu_like(name: &str, ask: Ask, max_binding: u64, subgroups: bool) -> Option<Device> {
        if !adapters().is_empty() {
            return Some(Device { name: name.into(), kind: Kind::Wgpu(ask, max_binding, subgroups) });
        }
        let why = "no Vulkan, Metal or DX12 adapter (on Debian: apt-get install mesa-vulkan-drivers)";
        let required = std::env::var_os("TRIMTAB_REQUIRE_WGPU").is_some_and(|v| v == "1");
        assert!(!required, "{why}, and TRIMTAB_REQUIRE_WGPU=1");
        eprintln!("SKIPPED on wgpu: {why}");
        None
    }
}

#[cfg(not(feature = "wgpu"))]
impl Device {
    pub fn wgpu() -> Option<Device> {
        None
    }
    pub fn wgpu_plain() -> Option<Device> {
        None
    }
    pub fn wgpu_without_subgroups() -> Option<Device> {
        None
    }
    pub fn wgpu_small(_: u64) -> Option<Device> {
        None
    }
}

#[cfg(feature = "cuda")]
impl Device {
    /// The CUDA card; None if there is none.
    pub fn cuda() -> Option<Device> {
        if cuda::choose().is_some() {
            return Some(Device { name: "cuda".into(), kind: Kind::Cuda });
        }
        let required = std::env::var_os("TRIMTAB_REQUIRE_CUDA").is_some_and(|v| v == "1");
        assert!(!required, "no CUDA card with a compiler, and TRIMTAB_REQUIRE_CUDA=1");
        None
    }

    /// A CUDA card of this architecture, interpreted; None if there is no NVRTC to compile for it.
    pub fn ptx(arch: u32) -> Option<Device> {
        Device::ptx_small(arch, u64::MAX)
    }

    /// A card with these abilities, interpreted.
    pub fn ptx_of(name: &str, caps: Caps) -> Option<Device> {
        let (name, kind) = (format!("interpreted {name}"), Kind::PtxOf(Box::new(caps)));
        Device::ptx(80).map(|_| Device { name, kind })
    }

    /// The same where scratch memory that need not be larger stays within `max_binding` bytes.
    pub fn ptx_small(arch: u32, max_binding: u64) -> Option<Device> {
        match cuda::version() {
            Ok(_) => Some(Device { name: format!("interpreted sm_{arch}"), kind: Kind::Ptx(arch, max_binding) }),
            Err(why) => {
                let required = std::env::var_os("TRIMTAB_REQUIRE_NVRTC").is_some_and(|v| v == "1");
                assert!(!required, "{why}, and TRIMTAB_REQUIRE_NVRTC=1");
                eprintln!("SKIPPED on interpreted sm_{arch}: {why}");
                None
            }
        }
    }
}

#[cfg(not(feature = "cuda"))]
impl Device {
    pub fn cuda() -> Option<Device> {
        None
    }
    pub fn ptx(_: u32) -> Option<Device> {
        None
    }
    pub fn ptx_small(_: u32, _: u64) -> Option<Device> {
        None
    }
}

/// Every device there is.
pub fn devices() -> Vec<Device> {
    [Some(Device::cpu()), Device::wgpu(), Device::cuda()].into_iter().flatten().collect()
}

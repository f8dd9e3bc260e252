//! `trimtab devices`: what there is to compute on, and which of it `--device auto` takes.

use super::{Outcome, print};

/// List adapters, features and limits, and which one --device auto takes and why
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  trimtab devices")]
pub struct Args {}

/// Lines about devices of one kind, and what `auto` takes, and why, if no other kind is there.
struct Kind {
    text: String,
    auto: Result<String, &'static str>,
}

pub fn run(_: Args) -> Outcome {
    let (cuda, wgpu) = (cuda::cards(), wgpu::adapters());
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let auto = cuda.auto.or(wgpu.auto).unwrap_or_else(|why| format!("cpu: {why}"));
    let cpu = std::env::consts::ARCH;
    print(&format!("cpu     {cpu}, {threads} threads\n{}{}auto    takes {auto}\n", cuda.text, wgpu.text))
}

#[cfg(feature = "cuda")]
mod cuda {
    use trimtab::backend::cuda::{self, CardInfo};
    use trimtab::run::progress::human;

    use super::Kind;

    /// Driver, compiler, cards.
    pub fn cards() -> Kind {
        let auto = cuda::choose().map(|i| format!("cuda:{i}: a CUDA card with kernels of its own"));
        Kind { text: text(), auto: auto.ok_or("no CUDA card was found") }
    }

    fn text() -> String {
        let (driver, cards) = match cuda::start().and_then(|version| Ok((version, cuda::cards()?))) {
            Ok(found) => found,
            Err(why) => return format!("cuda    none: {why}\n"),
        };
        let compiler = match cuda::version() {
            Ok((major, minor)) => format!("NVRTC {major}.{minor}"),
            Err(why) => why.to_string(),
        };
        cards.iter().enumerate().map(|(i, card)| card_text(i, card, driver, &compiler)).collect()
    }

    fn card_text(i: usize, card: &CardInfo, driver: i32, compiler: &str) -> String {
        let kernels = if cuda::usable(card) { "" } else { ", no kernels (sm_75 or newer has)" };
        format!(
            "cuda:{i}  {} (sm_{}{kernels})\n        \
             driver for CUDA {}.{}, {compiler}\n        \
             {} of memory, {} multiprocessors, {} of shared memory for a block\n",
            card.name,
            card.arch,
            driver / 1000,
            driver % 1000 / 10,
            human(card.memory),
            card.multiprocessors,
            human(card.shared.into())
        )
    }
}

#[cfg(feature = "wgpu")]
mod wgpu {
    use trimtab::backend::wgpu::{self, AdapterInfo, choose};
    use trimtab::run::progress::human;

    use super::Kind;

    pub fn adapters() -> Kind {
        let adapters = wgpu::adapters();
        Kind { text: adapters.iter().enumerate().map(|(i, a)| text(i, a)).collect(), auto: auto(&adapters) }
    }

    fn text(i: usize, a: &AdapterInfo) -> String {
        let software = if a.software { ", a software rasterizer" } else { "" };
        let mut text = format!("wgpu:{i}  {} ({:?}, {}{software})\n", a.name, a.device_type, a.backend);
        if !a.driver.is_empty() {
            text += &format!("        driver {}\n", a.driver);
        }
        text += &format!(
            "        buffers of up to {}, bindings of up to {}, subgroups of {} to {}\n",
            human(a.max_buffer),
            human(a.max_binding),
            a.subgroup.0,
            a.subgroup.1
        );
        let mut features: Vec<String> = Vec::new();
        features.extend(a.has_f16.then(|| "f16".into()));
        features.extend(a.has_subgroups.then(|| "subgroup operations".into()));
        features.extend(a.matrix.iter().map(|m| format!("matrix {m}")));
        let features = if features.is_empty() { "none of the optional ones".into() } else { features.join(", ") };
        text + &format!("        features: {features}\n")
    }

    fn auto(adapters: &[AdapterInfo]) -> Result<String, &'static str> {
        let i = choose(adapters).ok_or(match adapters.is_empty() {
            true => "no Vulkan, Metal or DX12 adapter was found",
            false => "the only adapters are software rasterizers, which native kernels beat",
        })?;
        let others = adapters.iter().enumerate().any(|(j, a)| j != i && !a.software);
        let why = if others { "the fastest kind of hardware GPU, the first of its kind" } else { "the hardware GPU" };
        Ok(format!("wgpu:{i}: {why}"))
    }
}

#[cfg(not(feature = "cuda"))]
mod cuda {
    use super::Kind;

    pub fn cards() -> Kind {
        Kind { text: "cuda    not in this build\n".into(), auto: Err("this build has no CUDA") }
    }
}

#[cfg(not(feature = "wgpu"))]
mod wgpu {
    use super::Kind;

    pub fn adapters() -> Kind {
        Kind {
            text: "wgpu    not in this build\n".into(),
            auto: Err("this build has no wgpu, and no CUDA card was found"),
        }
    }
}

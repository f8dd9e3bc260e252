//! `trimtab devices`: what there is to compute on, and which of it `--device auto` takes.

use trimtab::backend::cuda;
use trimtab::backend::wgpu::{AdapterInfo, adapters, choose};
use trimtab::run::progress::human;

use super::{Outcome, print};

/// List adapters, features and limits, and which one --device auto takes and why
#[derive(clap::Args)]
pub struct Args {}

pub fn run(_: Args) -> Outcome {
    print(&listing(&cards(), &adapters()))
}

/// The lines about CUDA: driver, compiler, cards.
fn cards() -> String {
    let (driver, cards) = match cuda::start().and_then(|version| Ok((version, cuda::cards()?))) {
        Ok(found) => found,
        Err(why) => return format!("cuda    none: {why}\n"),
    };
    let compiler = match cuda::version() {
        Ok((major, minor)) => format!("NVRTC {major}.{minor}"),
        Err(why) => why.to_string(),
    };
    let mut text = String::new();
    for (i, card) in cards.iter().enumerate() {
        let kernels = if cuda::usable(card) { "" } else { ", no kernels (sm_75 or newer has)" };
        text += &format!("cuda:{i}  {} (sm_{}{kernels})\n", card.name, card.arch);
        text += &format!("        driver for CUDA {}.{}, {compiler}\n", driver / 1000, driver % 1000 / 10);
        text += &format!(
            "        {} of memory, {} multiprocessors, {} of shared memory for a block\n",
            human(card.memory),
            card.multiprocessors,
            human(card.shared.into())
        );
    }
    text
}

fn listing(cards: &str, adapters: &[AdapterInfo]) -> String {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let mut text = format!("cpu     {}, {threads} threads\n{cards}", std::env::consts::ARCH);
    for (i, a) in adapters.iter().enumerate() {
        let software = if a.software { ", a software rasterizer" } else { "" };
        text += &format!("wgpu:{i}  {} ({:?}, {}{software})\n", a.name, a.device_type, a.backend);
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
        text += &format!("        features: {features}\n");
    }
    text + &verdict(adapters)
}

/// What `auto` takes, and why.
fn verdict(adapters: &[AdapterInfo]) -> String {
    if let Some(i) = cuda::choose() {
        return format!("auto    takes cuda:{i}: a CUDA card with kernels of its own\n");
    }
    let (device, why) = match choose(adapters) {
        Some(i) => {
            let others = adapters.iter().enumerate().any(|(j, a)| j != i && !a.software);
            let why =
                if others { "the fastest kind of hardware GPU, the first of its kind" } else { "the hardware GPU" };
            (format!("wgpu:{i}"), why)
        }
        None if adapters.is_empty() => ("cpu".into(), "no Vulkan, Metal or DX12 adapter was found"),
        None => ("cpu".into(), "the only adapters are software rasterizers, which native kernels beat"),
    };
    format!("auto    takes {device}: {why}\n")
}

//! `trimtab devices`: what there is to compute on, and which of it `--device auto` takes.

use trimtab::backend::wgpu::{AdapterInfo, adapters, choose};
use trimtab::train::progress::human;

use super::{Outcome, print};

/// List adapters, features and limits, and which one --device auto takes and why
#[derive(clap::Args)]
pub struct Args {}

pub fn run(_: Args) -> Outcome {
    print(&listing(&adapters()))
}

fn listing(adapters: &[AdapterInfo]) -> String {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let mut text = format!("cpu     {}, {threads} threads\n", std::env::consts::ARCH);
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

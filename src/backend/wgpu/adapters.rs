//! Which GPUs there are, and which one to take.

use pollster::block_on;
use wgpu::{Backends, DeviceType, Features, Instance, InstanceDescriptor, InstanceFlags};

/// An adapter, as `trimtab devices` shows it.
#[derive(Clone, Debug)]
pub struct AdapterInfo {
    /// Name that the driver gives it.
    pub name: String,
    /// `vulkan`, `metal` or `dx12`.
    pub backend: String,
    /// Discrete, integrated, virtual, or a CPU.
    pub device_type: DeviceType,
    /// Name and version of the driver.
    pub driver: String,
    /// A CPU that pretends to be a GPU.
    pub software: bool,
    /// Largest single allocation, in bytes.
    pub max_buffer: u64,
    /// Largest range that a kernel can bind, in bytes.
    pub max_binding: u64,
    /// Smallest and largest subgroup.
    pub subgroup: (u32, u32),
    /// Shaders may use 16-bit floats.
    pub has_f16: bool,
    /// Shaders may use subgroup operations.
    pub has_subgroups: bool,
    /// Matrix units that WGSL can reach: `16x16x16 f16 to f32`.
    pub matrix: Vec<String>,
    /// Among them the shape and types of `shaders/common/tile_coop.wgsl`.
    pub has_coop: bool,
    /// Among them those of `shaders/common/tile_coop16.wgsl`.
    pub has_coop16: bool,
}

impl AdapterInfo {
    pub(super) fn of(adapter: &wgpu::Adapter) -> AdapterInfo {
        let (info, limits, features) = (adapter.get_info(), adapter.limits(), adapter.features());
        let matrix: Vec<String> = if features.contains(Features::EXPERIMENTAL_COOPERATIVE_MATRIX) {
            let shape = |p: &wgpu::CooperativeMatrixProperties| {
                format!("{}x{}x{} {:?} to {:?}", p.m_size, p.n_size, p.k_size, p.ab_type, p.cr_type).to_lowercase()
            };
            adapter.cooperative_matrix_properties().iter().map(shape).collect()
        } else {
            Vec::new()
        };
        let has_subgroups = features.contains(Features::SUBGROUP);
        let has = |wanted: &str| has_subgroups && matrix.iter().any(|m| m == wanted);
        AdapterInfo {
            backend: info.backend.to_str().to_string(),
            software: info.device_type == DeviceType::Cpu,
            device_type: info.device_type,
            driver: format!("{} {}", info.driver, info.driver_info).trim().to_string(),
            name: info.name,
            max_buffer: limits.max_buffer_size,
            max_binding: limits.max_storage_buffer_binding_size,
            subgroup: (info.subgroup_min_size, info.subgroup_max_size),
            has_f16: features.contains(Features::SHADER_F16),
            has_subgroups,
            has_coop: has("8x8x8 f32 to f32"),
            has_coop16: has("16x16x16 f16 to f32") && features.contains(Features::SHADER_F16),
            matrix,
        }
    }
}

pub(super) fn all() -> Vec<wgpu::Adapter> {
    let instance = Instance::new(InstanceDescriptor {
        backends: Backends::VULKAN | Backends::METAL | Backends::DX12,
        // Shaders are validated when the crate is built; the API's validation layers slow every call down.
        flags: InstanceFlags::empty().with_env(),
        ..InstanceDescriptor::new_without_display_handle()
    });
    block_on(instance.enumerate_adapters(Backends::all()))
}

/// Every adapter, in the order of `--device gpu:<index>`.
pub fn adapters() -> Vec<AdapterInfo> {
    all().iter().map(AdapterInfo::of).collect()
}

/// What `--device auto` takes: a discrete GPU before an integrated or virtual one, the first of its kind. None, which
/// means the CPU backend, if there is only a rasterizer that runs on the CPU itself: native kernels beat it.
pub fn choose(adapters: &[AdapterInfo]) -> Option<usize> {
    let rank = |a: &AdapterInfo| match a.device_type {
        _ if a.software => None,
        DeviceType::DiscreteGpu => Some(0),
        DeviceType::IntegratedGpu => Some(1),
        DeviceType::VirtualGpu => Some(2),
        DeviceType::Other => Some(3),
        DeviceType::Cpu => None,
    };
    let ranked = adapters.iter().enumerate().filter_map(|(i, a)| Some((rank(a)?, i)));
    ranked.min().map(|(_, i)| i)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter(device_type: DeviceType) -> AdapterInfo {
        AdapterInfo {
            name: "test".into(),
            backend: "vulkan".into(),
            device_type,
            driver: String::new(),
            software: device_type == DeviceType::Cpu,
            max_buffer: 1 << 28,
            max_binding: 1 << 27,
            subgroup: (4, 128),
            has_f16: false,
            has_subgroups: false,
            matrix: Vec::new(),
            has_coop: false,
            has_coop16: false,
        }
    }

    #[test]
    fn auto_prefers_discrete_then_integrated_and_never_takes_software() {
        use DeviceType::*;
        let pick = |types: &[DeviceType]| choose(&types.iter().map(|&t| adapter(t)).collect::<Vec<_>>());
        assert_eq!(pick(&[Cpu, IntegratedGpu, DiscreteGpu, DiscreteGpu]), Some(2));
        assert_eq!(pick(&[Cpu, VirtualGpu, IntegratedGpu]), Some(2));
        assert_eq!(pick(&[Cpu]), None);
        assert_eq!(pick(&[]), None);
    }
}

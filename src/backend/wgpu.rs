//! Any Vulkan, Metal or DX12 GPU.

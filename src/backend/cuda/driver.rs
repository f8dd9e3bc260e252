//! CUDA's driver: loading it, the cards it knows, and its errors as this crate's.

use std::ffi::c_int;
use std::sync::OnceLock;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute};

use crate::error::{Error, Result};

/// The oldest driver that has everything that is called: CUDA 12.0.
const OLDEST: c_int = 12_000;

const INSTALL: &str =
    "install NVIDIA's driver 525 or newer (https://www.nvidia.com/drivers), or use --device wgpu or cpu";

/// A card, as `trimtab devices` lists it.
#[derive(Clone, Debug, PartialEq)]
pub struct CardInfo {
    /// Name that the driver gives it.
    pub name: String,
    /// Compute capability as in `sm_90`.
    pub arch: u32,
    /// Bytes of device memory, used or not.
    pub memory: u64,
    /// Most bytes of shared memory that a block can have.
    pub shared: u32,
    /// Number of streaming multiprocessors.
    pub multiprocessors: u32,
}

/// What the driver said of an error during `what`.
pub fn said(what: &str, e: DriverError) -> String {
    let text = e.error_string().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    let name = e.error_name().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    format!("{what}: {text} ({name})")
}

/// An error of the driver during `what`.
pub fn fail(what: &str, e: DriverError) -> Error {
    let hint = "if the card was lost, run again; `trimtab devices` lists what is there";
    Error::device("cuda", said(what, e), hint)
}

/// Loads and starts the driver, once; gives its version (13000 is CUDA 13.0). `cudarc` panics where the library is
/// missing, so that is asked first.
pub fn start() -> Result<c_int> {
    static STARTED: OnceLock<std::result::Result<c_int, String>> = OnceLock::new();
    let start = || {
        // SAFETY: loading the driver runs its initialisers, which have no preconditions.
        if !unsafe { sys::is_culib_present() } {
            return Err("no CUDA driver".to_string());
        }
        let mut version = 0;
        // SAFETY: writes one integer.
        unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(|e| said("asking its version", e))?;
        if version < OLDEST {
            return Err(format!("a driver for CUDA {}.{}", version / 1000, version % 1000 / 10));
        }
        result::init().map_err(|e| said("starting", e))?;
        Ok(version)
    };
    STARTED.get_or_init(start).clone().map_err(|found| Error::device("cuda", found, INSTALL))
}

/// Every card of the driver.
pub fn cards() -> Result<Vec<CardInfo>> {
    start()?;
    let count = result::device::get_count().map_err(|e| fail("counting cards", e))?;
    (0..count).map(|i| card(i).map_err(|e| fail("asking a card", e))).collect()
}

fn card(index: c_int) -> std::result::Result<CardInfo, DriverError> {
    let device = result::device::get(index)?;
    // SAFETY: `device` is from `device::get`.
    let attribute = |a: Attribute| unsafe { result::device::get_attribute(device, a) }.map(|v| v as u32);
    let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    Ok(CardInfo {
        name: result::device::get_name(device)?,
        arch: 10 * major + minor,
        // SAFETY: as above.
        memory: unsafe { result::device::total_mem(device)? } as u64,
        shared: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
    })
}

/// What a caller checks before it prefers this backend: a card there is a kernel for.
pub fn usable(card: &CardInfo) -> bool {
    card.arch >= 75
}

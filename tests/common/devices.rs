//! The devices that tests run on.

use trimtab::backend::{Backend, cpu::Cpu};

pub struct Device {
    pub name: String,
}

impl Device {
    pub fn cpu() -> Device {
        Device { name: "cpu".into() }
    }
    pub fn open(&self) -> Box<dyn Backend> {
        Box::new(Cpu::new())
    }
}

pub fn devices() -> Vec<Device> {
    vec![Device::cpu()]
}

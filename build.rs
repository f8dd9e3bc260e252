//! Preprocesses every variant of every shader and writes the table that the wgpu backend embeds; a mistake in a directive
//! fails the build, with the file and line it was written at. CUDA sources are carried as they are. Without the features
//! `wgpu` and `cuda` there is nothing to do.
#![cfg_attr(not(all(feature = "wgpu", feature = "cuda")), allow(dead_code))]

#[cfg(feature = "cubins")]
#[path = "build/cubins.rs"]
mod cubins;
#[cfg(feature = "cuda")]
#[path = "build/kernels.rs"]
mod kernels;
#[cfg(feature = "wgpu")]
#[path = "build/preprocess.rs"]
mod preprocess;
#[cfg(feature = "wgpu")]
#[path = "build/shaders.rs"]
mod shaders;

use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=build");
    println!("cargo:rerun-if-changed=shaders");
    println!("cargo:rerun-if-changed=kernels");
    #[cfg(feature = "wgpu")]
    write("shaders.rs", shaders::table("shaders".as_ref()));
    #[cfg(feature = "cuda")]
    {
        write("kernels.rs", kernels::table("kernels".as_ref()));
        write("cubins.rs", machine_code());
    }
}

/// The table of compiled CUDA kernels; empty unless the feature asks for it and NVRTC is there.
fn machine_code() -> Result<String, String> {
    #[cfg(feature = "cubins")]
    {
        println!("cargo:rerun-if-env-changed=TRIMTAB_NVRTC");
        match cubins::nvrtc() {
            Some(library) => return cubins::table(&library, "kernels".as_ref(), &out_dir()),
            None => {
                println!("cargo::warning=no NVRTC: no compiled CUDA kernels are embedded (TRIMTAB_NVRTC names one)")
            }
        }
    }
    Ok("&[]\n".into())
}

fn out_dir() -> PathBuf {
    PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default())
}

fn write(name: &str, code: Result<String, String>) {
    let out = out_dir().join(name);
    match code.and_then(|code| std::fs::write(&out, code).map_err(|e| format!("{}: {e}", out.display()))) {
        Ok(()) => {}
        Err(errors) => fail(&errors),
    }
}

fn fail(message: &str) -> ! {
    for line in message.lines() {
        println!("cargo::error={line}");
    }
    std::process::exit(1);
}

//! Cooperative matrices are experimental in wgpu, so a device that lists them is tried before products use them: one tile of
//! whole numbers, whose sums are exact in whatever order they are added.

use super::{AdapterInfo, Wgpu};
use crate::backend::{Backend, Kernel, Launch, Slice};
use crate::error::Result;
use crate::graph::op::WgslDispatch;

const ROWS: usize = 64;
const TERMS: usize = 32;

/// Whole numbers that differ from row to row and from column to column.
fn operand(seed: usize) -> Vec<f32> {
    (0..ROWS * TERMS).map(|i| ((i / TERMS * 7 + i % TERMS * 3 + i * i % 11 + seed) % 17) as f32 - 8.0).collect()
}

/// The products of rows of `a` with rows of `b`.
fn product(a: &[f32], b: &[f32]) -> Vec<f32> {
    let dot = |m: usize, n: usize| (0..TERMS).map(|k| a[m * TERMS + k] * b[n * TERMS + k]).sum::<f32>();
    (0..ROWS * ROWS).map(|i| dot(i / ROWS, i % ROWS)).collect()
}

/// Has the device use cooperative matrices that its adapter lists and that pass, first those of f32, which serve more products.
/// Weights are not bound as f16 beside these.
pub fn matrices(gpu: &mut Wgpu, info: &AdapterInfo) {
    let kinds: [(bool, &[&'static str], bool); 2] =
        [(info.has_coop, &["COOP"], false), (info.has_coop16, &["HALF", "COOP"], gpu.caps.f16)];
    for (_, symbols, f16) in kinds.into_iter().filter(|kind| kind.0) {
        match wrong(gpu, symbols) {
            None => {
                (gpu.caps.coop, gpu.caps.f16) = (true, f16);
                return;
            }
            Some(what) => {
                eprintln!("{}: its cooperative matrices are wrong and are not used: {what}", gpu.caps.device);
            }
        }
    }
}

/// What is wrong with the tile's variant of these symbols on this device, if anything.
fn wrong(gpu: &mut Wgpu, symbols: &[&'static str]) -> Option<String> {
    let (a, b) = (operand(0), operand(5));
    match run(gpu, symbols, &a, &b) {
        Ok(found) => differs(&found, &product(&a, &b)),
        Err(e) => Some(e.to_string()),
    }
}

fn differs(found: &[f32], expected: &[f32]) -> Option<String> {
    let at = found.iter().zip(expected).position(|(f, e)| f.to_bits() != e.to_bits())?;
    Some(format!("element {},{} is {}, not {}", at / ROWS, at % ROWS, found[at], expected[at]))
}

fn run(gpu: &mut Wgpu, symbols: &[&'static str], a: &[f32], b: &[f32]) -> Result<Vec<f32>> {
    let sizes = [ROWS * ROWS, a.len(), b.len()].map(|n| 4 * n as u64);
    let buffer = gpu.alloc(sizes.iter().sum())?;
    let slices = [0, sizes[0], sizes[0] + sizes[1]];
    let slice = |i: usize| Slice { buffer, offset: slices[i], bytes: sizes[i] };
    let launch = Launch {
        name: "cooperative matrices".into(),
        kernel: Kernel::Wgsl(WgslDispatch {
            shader: "coop_check",
            defines: symbols.to_vec(),
            entry: "tile",
            constants: Vec::new(),
            grid: [1, 1, 1],
            args: Vec::new(),
            params: Vec::new(),
            flops: 2 * (ROWS * ROWS * TERMS) as u64,
        }),
        args: (0..3).map(slice).collect(),
        flops: 0,
    };
    let mut found = vec![0f32; ROWS * ROWS];
    let result = gpu.upload(slice(1), bytemuck::cast_slice(a)).and_then(|()| {
        gpu.upload(slice(2), bytemuck::cast_slice(b))?;
        let recording = gpu.record(&[launch])?;
        let ran = gpu.replay(recording).and_then(|()| gpu.download(slice(0), bytemuck::cast_slice_mut(&mut found)));
        gpu.forget(recording);
        ran
    });
    gpu.free(buffer);
    result.map(|()| found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A matrix that is loaded transposed, blocks of 8 that are exchanged, and a sum that lacks a term are seen.
    #[test]
    fn what_a_device_may_get_wrong_is_seen() {
        let (a, b) = (operand(0), operand(5));
        let expected = product(&a, &b);
        assert_eq!(differs(&expected, &expected), None);
        let turned: Vec<f32> = (0..ROWS * ROWS).map(|i| expected[i % ROWS * ROWS + i / ROWS]).collect();
        let blocks: Vec<f32> = (0..ROWS * ROWS).map(|i| expected[i ^ 8]).collect();
        let short =
            product(&a, &b.iter().enumerate().map(|(i, &x)| if i % TERMS == 31 { 0.0 } else { x }).collect::<Vec<_>>());
        for wrong in [turned, blocks, short] {
            assert!(differs(&wrong, &expected).is_some());
        }
        assert!(expected.iter().any(|&x| x != 0.0) && expected.iter().all(|x| x.abs() < 1e6));
    }

    /// The tile without cooperative matrices passes; so the trial itself is right.
    #[test]
    fn the_plain_tile_passes() {
        if crate::backend::wgpu::adapters().is_empty() {
            eprintln!("SKIPPED: no adapter");
            return;
        }
        let mut gpu = Wgpu::with(None, crate::backend::wgpu::Ask::Plain).unwrap();
        assert_eq!(wrong(&mut gpu, &[]), None);
        assert_eq!(gpu.memory(), 0);
        // One that the device cannot compile is wrong, and does no harm.
        assert!(wrong(&mut gpu, &["COOP"]).is_some());
        assert!(wrong(&mut gpu, &["HALF", "COOP"]).is_some());
        assert_eq!(wrong(&mut gpu, &[]), None);
    }
}

//! The wgpu backend itself: bytes in, across and out; what it refuses, and how it says so; what it counts.

mod common;

use std::time::{Duration, Instant};

use trimtab::Error;
use trimtab::backend::params;
use trimtab::backend::wgpu::{Ask, SHADERS, Wgpu, adapters, richest, shader};
use trimtab::backend::{Backend, Buffer, Caps, Kernel, Launch, Slice};
use trimtab::bench::operands::Random;
use trimtab::dtype::DType;
use trimtab::ops::WgslDispatch;
use trimtab::ops::quant::weight_define;

fn open() -> Option<Wgpu> {
    common::devices::Device::wgpu()?;
    Some(Wgpu::new(None).unwrap())
}

fn slice(buffer: Buffer, offset: u64, bytes: u64) -> Slice {
    Slice { buffer, offset, bytes }
}

fn noise(n: usize, seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    (0..n).map(|_| random.word() as u8).collect()
}

/// Column sums of one row: a copy of `n` words from `x` to `y`.
fn launch(y: Slice, x: Slice, n: u32) -> Launch {
    Launch {
        name: "layers.3:sum_rows".into(),
        kernel: Kernel::Wgsl(WgslDispatch {
            shader: "sum_rows",
            defines: vec![],
            entry: "sum_rows",
            constants: vec![],
            grid: [n.div_ceil(64), 1, 1],
            args: vec![],
            params: vec![1, n],
            flops: n as u64,
        }),
        args: vec![y, x],
        flops: n as u64,
    }
}

#[test]
fn memory_is_zero_and_holds_what_is_written() {
    let Some(mut gpu) = open() else { return };
    // More than one chunk of the staging buffers, and odd ends.
    let n = (9 << 20) + 7;
    let b = gpu.alloc(n as u64).unwrap();
    let mut out = vec![1; n];
    gpu.download(slice(b, 0, n as u64), &mut out).unwrap();
    assert!(out.iter().all(|&x| x == 0));
    let mut expected = noise(n, 1);
    gpu.upload(slice(b, 0, n as u64), &expected).unwrap();
    // Ranges that begin and end within words leave their neighbours alone.
    for (offset, len) in [(1, 1), (5, 2), (6, 3), (10, 9), (1023, 1025), (n - 1, 1), (n - 6, 5)] {
        let part = noise(len, offset as u64);
        expected[offset..offset + len].copy_from_slice(&part);
        gpu.upload(slice(b, offset as u64, len as u64), &part).unwrap();
    }
    gpu.download(slice(b, 0, n as u64), &mut out).unwrap();
    assert!(out == expected);
    let mut part = vec![0; 1001];
    gpu.download(slice(b, 4099, 1001), &mut part).unwrap();
    assert_eq!(part, expected[4099..5100]);
}

#[test]
fn copies_may_overlap() {
    let Some(mut gpu) = open() else { return };
    let n = 9 << 20;
    let mut expected = noise(n, 2);
    let b = gpu.alloc(n as u64).unwrap();
    gpu.upload(slice(b, 0, n as u64), &expected).unwrap();
    for (to, from, len) in [(0, 256, n - 256), (512, 0, n - 512), (4, 8, 400), (9, 2, 31)] {
        expected.copy_within(from..from + len, to);
        gpu.copy(slice(b, to as u64, len as u64), slice(b, from as u64, len as u64)).unwrap();
    }
    let c = gpu.alloc(n as u64).unwrap();
    gpu.copy(slice(c, 0, n as u64), slice(b, 0, n as u64)).unwrap();
    let mut out = vec![0; n];
    gpu.download(slice(c, 0, n as u64), &mut out).unwrap();
    assert!(out == expected);
}

#[test]
fn launches_run_in_order_however_they_are_cut_into_submits() {
    let Some(mut gpu) = open() else { return };
    let n = 1000u32;
    let bytes = 4 * n as u64;
    let b = gpu.alloc(8 * 4096).unwrap();
    let data: Vec<f32> = (0..n).map(|i| i as f32).collect();
    gpu.upload(slice(b, 0, bytes), bytemuck::cast_slice(&data)).unwrap();
    // A chain of copies through 7 places; then the flops say that each takes a submit of its own.
    for flops in [0, 1 << 40] {
        let launches: Vec<Launch> = (0..7u64)
            .map(|i| Launch { flops, ..launch(slice(b, (i + 1) * 4096, bytes), slice(b, i * 4096, bytes), n) })
            .collect();
        let recording = gpu.record(&launches).unwrap();
        gpu.upload(slice(b, 7 * 4096, bytes), &vec![0; bytes as usize]).unwrap();
        gpu.replay(recording).unwrap();
        let mut out = vec![0f32; n as usize];
        gpu.download(slice(b, 7 * 4096, bytes), bytemuck::cast_slice_mut(&mut out)).unwrap();
        assert_eq!(out, data);
        gpu.forget(recording);
    }
}

/// What a list takes by the device's clock is within what passes here meanwhile, and its results are those of `replay`.
#[test]
fn a_list_is_timed_by_the_devices_clock() {
    let Some(mut gpu) = open() else { return };
    let n = 1 << 16;
    let (x, y, z) = (gpu.alloc(4 * n).unwrap(), gpu.alloc(4 * n).unwrap(), gpu.alloc(4 * n).unwrap());
    let of = |buffer| slice(buffer, 0, 4 * n);
    let floats: Vec<f32> = (0..n).map(|i| i as f32).collect();
    gpu.upload(of(x), bytemuck::cast_slice(&floats)).unwrap();
    let list = gpu.record(&[launch(of(y), of(x), n as u32), launch(of(z), of(y), n as u32)]).unwrap();
    let began = Instant::now();
    let took = gpu.replay_timed(list).unwrap();
    assert!(took > Duration::ZERO && took <= began.elapsed(), "{took:?} of {:?}", began.elapsed());
    let mut out = vec![0f32; n as usize];
    gpu.download(of(z), bytemuck::cast_slice_mut(&mut out)).unwrap();
    assert_eq!(out, floats);
    // The control: nothing takes no time.
    let nothing = gpu.record(&[]).unwrap();
    assert_eq!(gpu.replay_timed(nothing).unwrap(), Duration::ZERO);
    gpu.forget(list);
    assert!(gpu.replay_timed(list).is_err());
}

#[test]
fn memory_counts_what_was_allocated_and_recorded() {
    let Some(mut gpu) = open() else { return };
    assert_eq!(gpu.memory(), 0);
    let b = gpu.alloc(5000).unwrap();
    assert_eq!(gpu.memory(), 5000);
    // Three launches, two distinct parameter blocks.
    let launches = [
        launch(slice(b, 0, 64), slice(b, 256, 64), 16),
        launch(slice(b, 512, 64), slice(b, 256, 64), 16),
        launch(slice(b, 0, 32), slice(b, 256, 32), 8),
    ];
    let recording = gpu.record(&launches).unwrap();
    assert_eq!(params::bytes(&launches), 512);
    assert_eq!(gpu.memory(), 5512);
    gpu.forget(recording);
    gpu.free(b);
    assert_eq!(gpu.memory(), 0);
    assert!(gpu.replay(recording).is_err());
}

#[test]
fn a_launch_that_cannot_be_is_refused_by_name() {
    let Some(_) = open() else { return };
    let mut gpu = Wgpu::with(None, Ask::Defaults).unwrap().limit_binding(4096);
    let b = gpu.alloc(16 << 10).unwrap();
    let good = launch(slice(b, 0, 256), slice(b, 256, 256), 64);
    assert!(gpu.record(std::slice::from_ref(&good)).is_ok());
    let dispatch = |change: &dyn Fn(&mut WgslDispatch)| {
        let mut bad = good.clone();
        if let Kernel::Wgsl(dispatch) = &mut bad.kernel {
            change(dispatch);
        }
        bad
    };
    let args = |y: Slice, x: Slice| Launch { args: vec![y, x], ..good.clone() };
    let bad = [
        ("overlap", args(slice(b, 0, 512), slice(b, 256, 256))),
        ("no multiple", args(slice(b, 4, 128), slice(b, 256, 256))),
        ("4096 is the most", args(slice(b, 0, 256), slice(b, 256, 8192))),
        ("is empty", args(slice(b, 0, 256), slice(b, 256, 0))),
        ("not within", args(slice(b, 0, 256), slice(b, 15 << 10, 4096))),
        ("not within", args(slice(Buffer(99), 0, 256), slice(b, 256, 256))),
        ("storage buffers", Launch { args: (0..9).map(|i| slice(b, 256 * i, 256)).collect(), ..good.clone() }),
        ("parameters", dispatch(&|d| d.params = vec![0; 17])),
        ("grid", dispatch(&|d| d.grid = [1, 1 << 20, 1])),
        ("no such variant", dispatch(&|d| d.shader = "nowhere")),
        ("no such variant", dispatch(&|d| d.defines = vec!["NOTHING"])),
        ("nothing_here", dispatch(&|d| d.entry = "nothing_here")),
        (
            // A variant for subgroups on a device that was opened without them.
            "missing capability",
            dispatch(&|d| (d.shader, d.defines, d.entry) = ("optim", vec!["SUM", "SUBGROUP"], "sum")),
        ),
        ("no WGSL kernel", Launch { kernel: Kernel::Nothing, ..good.clone() }),
        // Fewer operands than the shader has: the driver's own check must become an error, too.
        ("layers.3:sum_rows", Launch { args: vec![slice(b, 0, 256)], ..good.clone() }),
    ];
    for (what, launch) in bad {
        match gpu.record(std::slice::from_ref(&launch)) {
            Err(Error::Device { found, .. }) => {
                assert!(found.contains(what) || found.contains(&launch.name), "{what}: {found}");
            }
            other => panic!("{what}: {other:?}"),
        }
    }
    // And the device still works.
    let recording = gpu.record(&[good]).unwrap();
    gpu.replay(recording).unwrap();
    gpu.sync().unwrap();
}

#[test]
fn what_does_not_exist_is_an_error() {
    let Some(mut gpu) = open() else { return };
    assert!(matches!(Wgpu::new(Some(adapters().len())), Err(Error::Device { .. })));
    assert!(matches!(gpu.alloc(u64::MAX / 2), Err(Error::Device { .. })));
    assert!(gpu.download(slice(Buffer(7), 0, 4), &mut [0; 4]).is_err());
    assert!(gpu.upload(slice(Buffer(7), u64::MAX, 4), &[0; 4]).is_err());
}

#[test]
fn default_limits_are_webgpus() {
    let Some(_) = open() else { return };
    let gpu = Wgpu::with(None, Ask::Defaults).unwrap();
    let caps = gpu.caps();
    assert_eq!((caps.max_binding, caps.max_buffer), (128 << 20, 256 << 20));
    assert_eq!((caps.max_bindings, caps.max_groups, caps.max_invocations), (8, 65535, 256));
    assert_eq!((caps.workgroup_memory, caps.f16, caps.subgroup), (16 << 10, false, None));
}

#[test]
fn shaders_are_found_by_stem_and_symbols() {
    assert!(!SHADERS.is_empty());
    for (stem, defines, text) in SHADERS {
        let defines: Vec<&str> = defines.split_whitespace().collect();
        assert_eq!(shader(stem, &defines), Some(*text), "{stem} {defines:?}");
    }
    assert_eq!(shader("matmul", &["NO_SUCH"]), None);
}

#[test]
fn a_device_takes_the_richest_variant_that_it_can_run() {
    let Some(_) = open() else { return };
    let plain = Wgpu::with(None, Ask::Plain).unwrap().caps().clone();
    assert_eq!((plain.f16, plain.subgroup), (false, None));
    let able = Caps { subgroup: Some((4, 128)), ..plain.clone() };
    for (stem, defines, reduces) in [("optim", "SUM", true), ("optim", "ADAMW", false), ("nowhere", "SUM", false)] {
        let best = if reduces { vec![defines, "SUBGROUP"] } else { vec![defines] };
        assert_eq!(richest(stem, &[defines], "sum", &able), best);
        assert_eq!(richest(stem, &[defines], "sum", &plain), [defines]);
    }
    let able = Caps { coop: true, ..able };
    assert_eq!(richest("linear", &["W_F32"], "tile", &able), ["W_F32", "COOP"]);
    assert_eq!(richest("linear", &["W_F32", "VEC"], "tile", &able), ["W_F32", "VEC", "COOP"]);
    assert_eq!(richest("linear_row", &["W_F32"], "row", &able), ["W_F32", "SUBGROUP"]);
    // Matrices of f16 are for activations and weights of no more than 16 bits, those of f32 for all others.
    let half = Caps { f16: true, ..able.clone() };
    for (stored, by_matrices) in
        [(&["W_NF4"][..], true), (&["W_F16", "F16"], true), (&["W_BF16"], false), (&["W_F32"], false)]
    {
        let wide = [stored, &["VEC"]].concat();
        let narrow = [stored, &["VEC", "HALF"]].concat();
        let best = if by_matrices { [narrow.as_slice(), &["COOP"]].concat() } else { narrow.clone() };
        assert_eq!(richest("linear", &narrow, "tile", &half), best);
        assert_eq!(richest("linear", &wide, "tile", &half), wide);
        assert_eq!(richest("linear", &narrow, "tile", &able), narrow);
        let dtype = [DType::Nf4, DType::F16, DType::BF16, DType::F32]
            .into_iter()
            .find(|&d| weight_define(d) == Some(stored[0]));
        assert_eq!(half.by_matrices(DType::F16, dtype.unwrap()), by_matrices);
        assert!(!half.by_matrices(DType::F32, dtype.unwrap()) && able.by_matrices(DType::F32, dtype.unwrap()));
        assert!(!able.by_matrices(DType::F16, dtype.unwrap()));
    }
}

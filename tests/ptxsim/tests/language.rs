//! What kernels may use of CUDA: calls, local arrays, constants, the math library, collectives; against the host.

mod common;

use ptxsim::{Launch, Memory, Module, Param, Schedule, run};

fn module() -> Option<Module> {
    let library = common::nvrtc()?;
    Some(Module::parse(&common::ptx(&library, "language.cu", &common::source("language.cu"), &[])).unwrap())
}

/// Runs under every schedule; the same bits each time.
fn all_schedules(
    module: &Module,
    entry: &str,
    grid: u32,
    block: u32,
    make: &dyn Fn(&mut Memory) -> Vec<Param>,
) -> Vec<u8> {
    let mut first: Option<Vec<u8>> = None;
    for schedule in Schedule::all() {
        let mut memory = Memory::new();
        let params = make(&mut memory);
        let Param::U64(out) = params[0] else { panic!("the first parameter is the output") };
        let (grid, block) = ([grid, 1, 1], [block, 1, 1]);
        let launch = Launch { entry, grid, block, shared_bytes: 0, params: &params, schedule };
        run(module, &mut memory, &launch).unwrap_or_else(|f| panic!("{f}"));
        let bits = memory.read(out).to_vec();
        assert!(first.as_ref().is_none_or(|f| *f == bits), "{entry}: {schedule:?} differs");
        first = Some(bits);
    }
    first.unwrap()
}

#[test]
fn calls_arrays_and_constants() {
    let Some(module) = module() else { return };
    assert_eq!(module.entries(), ["calls", "collectives", "math"]);
    let start: Vec<f32> = (0..64).map(|i| i as f32 * 0.5 - 3.0).collect();
    let (a, b, c, n, d) = (3i32, 1.5f32, 1000i64, 7u32, 1u64 << 40);
    let mut pair = a.to_le_bytes().to_vec();
    pair.extend(b.to_le_bytes());
    pair.extend(c.to_le_bytes());
    let got = common::floats(&all_schedules(&module, "calls", 1, 64, &|memory| {
        let out = memory.alloc("out", &common::bytes(&start));
        vec![Param::U64(out), Param::Bytes(pair.clone()), Param::U32(n), Param::U64(d)]
    }));
    let table = [1.0, 2.0, -3.0, 0.5];
    let bytes = [9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 200.0];
    let offsets = [[0.25, 0.5], [0.75, 1.0]];
    let called = |a: i64, b: f64, c: i64, x: f64| if x > 0.0 { b * x.exp() } else { (c / a) as f64 };
    for (i, got) in got.iter().enumerate() {
        let j = (i * 7) & 15;
        let mut y = f64::from(start[j]) * j as f64 + called(a.into(), b.into(), c, i as f64 - 8.0);
        y += table[i & 3] + bytes[i & 7] + offsets[i >> 1 & 1][i & 1];
        y += ((d + i as u64) / u64::from(n)) as f64 + ((d + i as u64) % u64::from(n)) as f64;
        if i & 1 == 1 {
            let deep = (i * 3) as i64 - 1;
            y = called(deep, y, 7, 1.0) + y - deep as f64;
        }
        // f32 sums: a few rounding errors of the largest term.
        assert!((f64::from(*got) - y).abs() <= 4.0 * f64::from(f32::EPSILON) * y.abs(), "{i}: {got} is not {y}");
    }
}

#[test]
fn the_math_library() {
    let Some(module) = module() else { return };
    let x: Vec<f32> = (0..128).map(|i| (i as f32 - 64.0) * 0.11).collect();
    let got = common::floats(&all_schedules(&module, "math", 2, 64, &|memory| {
        let out = memory.alloc_uninit("out", 4 * 12 * 128);
        let input = memory.alloc("x", &common::bytes(&x));
        memory.read_only(input);
        vec![Param::U64(out), Param::U64(input)]
    }));
    for (i, &x) in x.iter().enumerate() {
        let v = f64::from(x);
        let want = [
            v.exp(),
            (v.abs() + f64::from(0.1f32)).ln(),
            v.sin(),
            f64::from(x * 1000.0).cos(),
            v.tanh(),
            v.abs().powf(f64::from(1.7f32)),
            1.0 / (v.abs() + 1.0).sqrt(),
            erf(v),
            v * v / 3.0 + v.abs().sqrt(),
            v.floor() + v.round_ties_even() + v.trunc(),
            v.exp() + (v.abs() + 1.0).ln() + v / 3.0 + v.abs().sqrt(),
            1.0 / (1.0 + (-v).exp2()) + f64::from(x % 0.7f32),
        ];
        for (k, w) in want.iter().enumerate() {
            let got = f64::from(got[12 * i + k]);
            assert!((got - w).abs() <= 2e-6 * w.abs().max(1.0), "function {k} of {x}: {got} is not {w}");
        }
    }
}

/// erf by its series; enough terms for |x| < 8.
fn erf(x: f64) -> f64 {
    if x.abs() > 5.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

#[test]
fn warp_collectives() {
    let Some(module) = module() else { return };
    const N: u32 = 96;
    let bits = all_schedules(&module, "collectives", 1, N, &|memory| {
        vec![Param::U64(memory.alloc_uninit("out", 4 * N as usize))]
    });
    for i in 0..N {
        let lane = i & 31;
        let matching = (0..32).filter(|l| l % 5 == lane % 5).fold(0u32, |m, l| m | 1 << l);
        let mut r = matching.wrapping_mul(3).wrapping_add(31 * 16).wrapping_add(31);
        let both = u64::from(0x1234_5678u32) << 32 | u64::from(i);
        let permuted = (0..4).fold(0u32, |v, k| {
            // __byte_perm takes three bits of each nibble.
            let pick = (0x4210 + lane) >> (4 * k) & 7;
            v | ((both >> (8 * pick) & 255) as u32) << (8 * k)
        });
        let first_set = if i == 0 { 0 } else { i.trailing_zeros() + 1 };
        let terms = [32, first_set, i.leading_zeros(), i.reverse_bits(), permuted, u32::MAX, 1, 1, 1];
        r = terms.iter().fold(r, |r, t| r.wrapping_add(*t));
        r = r.wrapping_add(if lane < 16 { (i & !31) + (lane ^ 5) } else { 0xaaaa_0000 });
        let thirds = (0..N).filter(|k| k % 3 == 0).count() as u32;
        r = r.wrapping_add(thirds + 10 + 20);
        let (x, y) = (i.wrapping_mul(0x0103_0507), 0x1122_3344u32);
        let dot = (0..4).fold(5i32, |s, k| s + i32::from((x >> (8 * k)) as i8) * i32::from((y >> (8 * k)) as i8));
        r = r.wrapping_add(dot as u32);
        r = r.wrapping_add(((u64::from(!i) << 32 | u64::from(i)) << 7 >> 32) as u32);
        r = r.wrapping_add(((u64::from(i.wrapping_mul(77_777_777)) * 99_999_999) >> 32) as u32);
        r = match lane {
            0 => r ^ 3,
            1 => r.wrapping_add(5),
            2 => r.wrapping_mul(7),
            3 => r.wrapping_sub(11),
            4 => r ^ 1000,
            5 => r.wrapping_mul(3),
            6 => r.wrapping_add(r >> 3),
            7 => !r,
            _ => r,
        };
        let at = 4 * i as usize;
        let got = u32::from_le_bytes(bits[at..at + 4].try_into().unwrap());
        assert_eq!(got, r, "thread {i}");
    }
}

//! Transcendental functions of CPU kernels, as branch-free scalar functions that LLVM vectorizes in any loop, and
//! over slices.
//!
//! They use additions, multiplications, divisions and integer shifts only (no fused multiply-add, no libm), so every
//! machine gets the same bits. Errors against float64 are asserted by the tests below: at most 2 ulp for `exp`,
//! 3 for the others. Methods and coefficients: Cephes (S. Moshier, `expf.c`, `tanhf.c`) for exp and tanh, N. Juffa's
//! two-range fit for erf.

/// Runs a block compiled for the widest instruction set that this processor has (AVX-512, or AVX2 with FMA, on x86-64), with
/// the same bits from each: `vectorized!({ for x in row { … } })`. Keep it one loop, and mark what it calls
/// `#[inline(always)]`. A macro, as only what is inlined is compiled for the caller's instructions: a closure that is called
/// in three places is not, unless it says so, and then runs with those of the lowest common set.
macro_rules! vectorized {
    ($block:expr) => {
        $crate::cpu::math::widest(
            #[inline(always)]
            || $block,
        )
    };
}
pub(crate) use vectorized;

/// Runs `f` as [`vectorized`] says, if it is `#[inline(always)]`.
#[inline]
pub fn widest<R>(f: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    {
        use super::isa::Isa;
        #[target_feature(enable = "avx512f,avx512bw,avx2,fma")]
        fn avx512<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        #[target_feature(enable = "avx2,fma")]
        fn avx2<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        if Isa::best() >= Isa::Avx512 {
            // SAFETY: the processor has the features, as was just found.
            return unsafe { avx512(f) };
        }
        if Isa::best() >= Isa::Avx2 {
            // SAFETY: as above.
            return unsafe { avx2(f) };
        }
    }
    f()
}

/// eˣ: x = n·ln 2 + r with |r| ≤ ln 2 / 2, and eˣ = 2ⁿ·p(r). Overflow gives ∞, underflow goes through the
/// subnormals to 0, NaN stays NaN.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Adding 1.5·2²³ rounds to an integer in the low bits of the significand.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    // Comparisons in this form keep NaN.
    let x = if x < -104.0 { -104.0 } else { x };
    let x = if x > 89.0 { 89.0 } else { x };
    let z = x * std::f32::consts::LOG2_E + ROUND;
    let n = z - ROUND;
    let r = x - n * LN2_HI - n * LN2_LO;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let p = p * (r * r) + r + 1.0;
    // 2ⁿ in two factors, since 2¹²⁸ and subnormal powers are no normal numbers.
    let n = (z.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = n >> 1;
    p * power_of_two(half) * power_of_two(n - half)
}

/// One of two, by masks: of an `if` between two long chains the compiler makes a jump, and a loop with jumps is not vectorized
/// (a gradient of GELU took six times as long).
#[inline(always)]
fn pick(first: bool, a: f32, b: f32) -> f32 {
    let mask = u32::from(first).wrapping_neg();
    f32::from_bits((a.to_bits() & mask) | (b.to_bits() & !mask))
}

/// 2ⁿ for −126 ≤ n ≤ 127.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// 1 / (1 + e⁻ˣ).
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Hyperbolic tangent: an odd polynomial near 0, else 1 − 2 / (e²ˣ + 1).
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let z = x * x;
    let p = -5.704_988_7e-3;
    let p = p * z + 2.063_909e-2;
    let p = p * z - 5.373_971_5e-2;
    let p = p * z + 1.333_144_2e-1;
    let p = p * z - 3.333_328e-1;
    let near = p * z * x + x;
    let far = 1.0 - 2.0 / (exp(2.0 * x.abs()) + 1.0);
    pick(x.abs() < 0.625, near, far.copysign(x))
}

/// The error function: an odd polynomial near 0, else 1 − exp of a polynomial in |x|.
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    let t = x.abs();
    let s = x * x;
    // Beyond 4 the result is 1 in f32, and the polynomial is no longer what was fitted.
    let t4 = if t > 4.0 { 4.0 } else { t };
    let s4 = t4 * t4;
    let q = -1.728_534_7e-5 * t4 + 3.831_971_3e-4;
    let u = -3.883_964_4e-3 * t4 + 2.425_462_2e-2;
    let q = q * s4 + u;
    let q = q * t4 - 1.067_778_8e-1;
    let q = q * t4 - 6.348_467e-1;
    let q = q * t4 - 1.287_175_1e-1;
    let q = q * t4 - t4;
    let far = (1.0 - exp(q)).copysign(x);
    let p = -5.967_617e-4;
    let p = p * s + 4.991_194e-3;
    let p = p * s - 2.676_813_5e-2;
    let p = p * s + 1.128_199_2e-1;
    let p = p * s - 3.761_253_4e-1;
    let p = p * s + 1.283_791_7e-1;
    let near = p * x + x;
    pick(t > 0.927_734_4, far, near)
}

/// x·sigmoid(x).
#[inline(always)]
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// d silu(x) / dx = σ·(1 + x·(1 − σ)).
#[inline(always)]
pub fn silu_grad(x: f32) -> f32 {
    let s = sigmoid(x);
    s * (1.0 + x * (1.0 - s))
}

const SQRT_2_OVER_PI: f32 = 0.797_884_6;
const GELU_CUBE: f32 = 0.044_715;

/// ½x·(1 + tanh(√(2/π)·(x + 0.044715 x³))): Hugging Face's `gelu_pytorch_tanh`.
#[inline(always)]
pub fn gelu_tanh(x: f32) -> f32 {
    0.5 * x * (1.0 + tanh(SQRT_2_OVER_PI * (x + GELU_CUBE * x * x * x)))
}

/// Its derivative.
#[inline(always)]
pub fn gelu_tanh_grad(x: f32) -> f32 {
    let t = tanh(SQRT_2_OVER_PI * (x + GELU_CUBE * x * x * x));
    0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * SQRT_2_OVER_PI * (1.0 + 3.0 * GELU_CUBE * x * x)
}

/// x·Φ(x) = ½x·(1 + erf(x/√2)).
#[inline(always)]
pub fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// d gelu(x) / dx = Φ(x) + x·φ(x).
#[inline(always)]
pub fn gelu_grad(x: f32) -> f32 {
    const INV_SQRT_2_PI: f32 = 0.398_942_3;
    0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2)) + x * INV_SQRT_2_PI * exp(-0.5 * x * x)
}

/// max(x, 0); NaN stays NaN.
#[inline(always)]
pub fn relu(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}

/// Its derivative, 0 at 0.
#[inline(always)]
pub fn relu_grad(x: f32) -> f32 {
    if x <= 0.0 { 0.0 } else { 1.0 }
}

/// d tanh(x) / dx = 1 − tanh²(x).
#[inline(always)]
pub fn tanh_grad(x: f32) -> f32 {
    let t = tanh(x);
    1.0 - t * t
}

const QUICK: f32 = 1.702;

/// x·sigmoid(1.702 x): Hugging Face's `quick_gelu`.
#[inline(always)]
pub fn quick_gelu(x: f32) -> f32 {
    x / (1.0 + exp(-QUICK * x))
}

/// Its derivative.
#[inline(always)]
pub fn quick_gelu_grad(x: f32) -> f32 {
    let s = sigmoid(QUICK * x);
    s * (1.0 + QUICK * x * (1.0 - s))
}

/// Partial sums of [`dot`] and [`sum`].
const LANES: usize = 16;

/// Σ aᵢ·bᵢ over the shorter length, in 16 partial sums that are added pairwise: the order is fixed.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let n = a.len().min(b.len());
    let (a, b) = (&a[..n], &b[..n]);
    let mut sums = [0f32; LANES];
    let (whole_a, whole_b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    for (i, (x, y)) in whole_a.remainder().iter().zip(whole_b.remainder()).enumerate() {
        sums[i] = x * y;
    }
    for (x, y) in whole_a.zip(whole_b) {
        for i in 0..LANES {
            sums[i] += x[i] * y[i];
        }
    }
    pairwise(sums)
}

/// Σ aᵢ, in the order of [`dot`].
#[inline(always)]
pub fn sum(a: &[f32]) -> f32 {
    let mut sums = [0f32; LANES];
    let whole = a.chunks_exact(LANES);
    sums[..whole.remainder().len()].copy_from_slice(whole.remainder());
    for x in whole {
        for i in 0..LANES {
            sums[i] += x[i];
        }
    }
    pairwise(sums)
}

#[inline(always)]
fn pairwise(mut sums: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            sums[i] += sums[i + width];
        }
        width /= 2;
    }
    sums[0]
}

/// Defines a function that applies a scalar one to each element of a slice.
macro_rules! over_slices {
    ($($name:ident = $f:ident;)*) => {$(
        #[doc = concat!("x\\[i\\] ← [`", stringify!($f), "`]\\(x\\[i\\]\\).")]
        pub fn $name(x: &mut [f32]) {
            vectorized!({
                for v in x.iter_mut() {
                    *v = $f(*v);
                }
            })
        }
    )*};
}

over_slices! {
    exp_slice = exp;
    sigmoid_slice = sigmoid;
    tanh_slice = tanh;
    erf_slice = erf;
    silu_slice = silu;
    gelu_tanh_slice = gelu_tanh;
    gelu_slice = gelu;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The distance in units of the last place of the f32 nearest to `want`.
    fn ulps(got: f32, want: f64) -> f64 {
        let near = (want.abs() as f32).max(f32::MIN_POSITIVE);
        (got as f64 - want).abs() / (f32::from_bits(near.to_bits() + 1) - near) as f64
    }

    /// erf by its Maclaurin series, and by the continued fraction of erfc where that one cancels.
    fn erf64(x: f64) -> f64 {
        if x.abs() > 3.0 {
            let t = x.abs();
            let tail = (1..200).rev().fold(t, |f, k| t + k as f64 / 2.0 / f);
            return (1.0 - (-t * t).exp() / std::f64::consts::PI.sqrt() / tail).copysign(x);
        }
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= -x * x / n as f64;
            sum += term / (2 * n + 1) as f64;
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    }

    #[test]
    fn errors_are_a_few_ulp() {
        type Case = (&'static str, fn(f32) -> f32, fn(f64) -> f64, f32, f32, f64);
        let cases: [Case; 4] = [
            ("exp", exp, f64::exp, -87.0, 88.7, 2.0),
            ("sigmoid", sigmoid, |x| 1.0 / (1.0 + (-x).exp()), -87.0, 40.0, 3.0),
            ("tanh", tanh, f64::tanh, -12.0, 12.0, 3.0),
            ("erf", erf, erf64, -6.0, 6.0, 3.0),
        ];
        for (name, f, want, lo, hi, bound) in cases {
            let mut worst = (0.0, 0.0);
            for i in 0..=1_000_000 {
                let x = lo + (hi - lo) * (i as f32 / 1e6);
                let e = ulps(f(x), want(x as f64));
                if e > worst.0 {
                    worst = (e, x);
                }
            }
            assert!(worst.0 <= bound, "{name}: {} ulp at {}", worst.0, worst.1);
            // The control: libm's answer to an input 1e-6 off is worse than the bound allows.
            assert!(ulps(want(1.25 * (1.0 + 1e-5)) as f32, want(1.25)) > bound, "{name}: the test sees nothing");
        }
    }

    #[test]
    fn activations_follow_their_definitions() {
        let phi = |x: f64| 0.5 * (1.0 + erf64(x / 2f64.sqrt()));
        let tanh_arg = |x: f64| (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
        for i in -1000..=1000 {
            let x = i as f32 / 100.0;
            let v = x as f64;
            let cases = [
                ("silu", silu(x), v / (1.0 + (-v).exp())),
                ("gelu", gelu(x), v * phi(v)),
                ("gelu_tanh", gelu_tanh(x), 0.5 * v * (1.0 + tanh_arg(v).tanh())),
                ("quick_gelu", quick_gelu(x), v / (1.0 + (-1.702 * v).exp())),
            ];
            for (name, got, want) in cases {
                // 1 + erf cancels for negative x: the error is relative to |x|.
                assert!((got as f64 - want).abs() <= 4e-7 * v.abs().max(1e-3), "{name}({x}): {got} {want}");
            }
            // Derivatives against central differences in float64.
            let h = 1e-5;
            let slope = |f: &dyn Fn(f64) -> f64| (f(v + h) - f(v - h)) / (2.0 * h);
            let cases = [
                ("silu", silu_grad(x), slope(&|v| v / (1.0 + (-v).exp()))),
                ("gelu", gelu_grad(x), slope(&|v| v * phi(v))),
                ("gelu_tanh", gelu_tanh_grad(x), slope(&|v| 0.5 * v * (1.0 + tanh_arg(v).tanh()))),
                ("quick_gelu", quick_gelu_grad(x), slope(&|v| v / (1.0 + (-1.702 * v).exp()))),
                ("tanh", tanh_grad(x), slope(&f64::tanh)),
            ];
            for (name, got, want) in cases {
                assert!((got as f64 - want).abs() <= 2e-6, "{name}'({x}): {got} {want}");
            }
        }
    }

    #[test]
    fn sums_are_of_every_length() {
        for n in 0..100usize {
            let a: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let want: usize = (0..n).map(|i| i * i).sum();
            assert_eq!(dot(&a, &a), want as f32);
            assert_eq!(sum(&a), (0..n).sum::<usize>() as f32);
        }
    }

    #[test]
    fn limits() {
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-200.0), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(89.0), f32::INFINITY);
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan());
        assert!(tanh(f32::NAN).is_nan() && erf(f32::NAN).is_nan());
        assert_eq!((tanh(40.0), tanh(-40.0)), (1.0, -1.0));
        assert_eq!((erf(40.0), erf(-40.0)), (1.0, -1.0));
        assert_eq!((sigmoid(-200.0), sigmoid(200.0)), (0.0, 1.0));
        assert_eq!((silu(-200.0), quick_gelu(-200.0)), (0.0, 0.0));
        assert_eq!((relu(-2.0), relu(3.0), relu_grad(-2.0), relu_grad(0.0), relu_grad(3.0)), (0.0, 3.0, 0.0, 0.0, 1.0));
        assert!(relu(f32::NAN).is_nan());
    }

    #[test]
    fn slices_give_the_bits_of_scalars() {
        let x: Vec<f32> = (0..1000).map(|i| (i - 500) as f32 * 0.173).collect();
        let mut y = x.clone();
        exp_slice(&mut y);
        assert!(x.iter().zip(&y).all(|(&x, y)| exp(x).to_bits() == y.to_bits()));
        y.clone_from(&x);
        gelu_slice(&mut y);
        assert!(x.iter().zip(&y).all(|(&x, y)| gelu(x).to_bits() == y.to_bits()));
    }
}

//! Functions that the compiler turns into vector code, and the elementary functions in a form that it can.

/// Compiles each function three times on x86-64, for AVX-512, for AVX2 with FMA and for the baseline, and picks by the processor.
/// Products are fused and sums ordered alike in all three.
macro_rules! vectorised {
    ($($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $out:ty)? $body:block)*) => {$(
        $(#[$meta])*
        $vis fn $name($($arg: $type),*) $(-> $out)? {
            #[inline(always)]
            fn body($($arg: $type),*) $(-> $out)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn wide($($arg: $type),*) $(-> $out)? {
                    body($($arg),*)
                }
                #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
                fn widest($($arg: $type),*) $(-> $out)? {
                    body($($arg),*)
                }
                if std::arch::is_x86_feature_detected!("avx512f")
                    && std::arch::is_x86_feature_detected!("avx512vl")
                    && std::arch::is_x86_feature_detected!("avx512bw")
                    && std::arch::is_x86_feature_detected!("avx512dq")
                {
                    // SAFETY: the processor has the features that `widest` is compiled for.
                    return unsafe { widest($($arg),*) };
                }
                if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
                    // SAFETY: the processor has the two features that `wide` is compiled for.
                    return unsafe { wide($($arg),*) };
                }
            }
            body($($arg),*)
        }
    )*};
}
pub(crate) use vectorised;

const LANES: usize = 16;

/// 1.5 * 2^23: adding it to less than 2^22 rounds to an integer, halves to even, in the low bits.
pub const MAGIC: f32 = 12_582_912.0;

/// e^x to 2e-7 relative; 0 below -87.3, where f32 leaves its normal range, and NaN for NaN.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let clamped = if x > 88.37 { 88.37 } else { x };
    let clamped = if clamped < -87.3 { -87.3 } else { clamped };
    let shifted = clamped.mul_add(std::f32::consts::LOG2_E, MAGIC);
    let n = shifted - MAGIC;
    // ln 2 in two parts, as in Cephes' expf, with its polynomial.
    let r = n.mul_add(2.121_944_4e-4, n.mul_add(-0.693_359_4, clamped));
    let p = 1.987_569_1e-4_f32
        .mul_add(r, 1.398_199_9e-3)
        .mul_add(r, 8.333_452e-3)
        .mul_add(r, 4.166_579_6e-2)
        .mul_add(r, 1.666_666_5e-1)
        .mul_add(r, 0.5);
    let fraction = (p * r).mul_add(r, r) + 1.0;
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000));
    if x < -87.3 { 0.0 } else { fraction * power }
}

/// 1 / (1 + e^-x).
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The normal distribution function, 2e-7 absolute: W. J. Cody's erfc in the form of Numerical Recipes, 6.2.
#[inline(always)]
pub fn normal_cdf(x: f32) -> f32 {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / z.mul_add(0.5, 1.0);
    let p = 0.170_872_77_f32
        .mul_add(t, -0.822_152_23)
        .mul_add(t, 1.488_515_9)
        .mul_add(t, -1.135_204)
        .mul_add(t, 0.278_868_07)
        .mul_add(t, -0.186_288_06)
        .mul_add(t, 0.096_784_18)
        .mul_add(t, 0.374_091_96)
        .mul_add(t, 1.000_023_7)
        .mul_add(t, -1.265_512_2);
    let tail = 0.5 * t * exp((-z).mul_add(z, p));
    if x < 0.0 { tail } else { 1.0 - tail }
}

/// The normal density.
#[inline(always)]
pub fn normal_density(x: f32) -> f32 {
    const INVERSE_SQRT_TAU: f32 = 0.398_942_3;
    INVERSE_SQRT_TAU * exp(-0.5 * x * x)
}

/// Folds `f` of the values at each place of slices as long as the first over fixed lanes: the order of additions does not depend on the processor.
#[inline(always)]
pub fn sum_of<const N: usize>(slices: [&[f32]; N], f: impl Fn([f32; N]) -> f32) -> f32 {
    let (n, mut lanes, mut values) = (slices[0].len(), [0.0f32; LANES], [0.0; N]);
    let whole = n / LANES * LANES;
    for start in (0..whole).step_by(LANES) {
        // as arrays: a check of each index would keep the compiler from taking the lanes at once
        let mut chunks = [&[0.0; LANES]; N];
        for which in 0..N {
            chunks[which] = slices[which][start..][..LANES].try_into().expect("the slice has as many values");
        }
        for lane in 0..LANES {
            for which in 0..N {
                values[which] = chunks[which][lane];
            }
            lanes[lane] += f(values);
        }
    }
    let mut total = 0.0;
    for i in whole..n {
        total += f(slices.map(|slice| slice[i]));
    }
    // else the compiler turns the lanes in each round of the loop as these last sums would have them
    let lanes = std::hint::black_box(lanes);
    let (mut eight, mut four) = ([0.0; 8], [0.0; 4]);
    for i in 0..8 {
        eight[i] = lanes[i] + lanes[i + 8];
    }
    for i in 0..4 {
        four[i] = eight[i] + eight[i + 4];
    }
    total + ((four[0] + four[2]) + (four[1] + four[3]))
}

/// Sum of a slice.
#[inline(always)]
pub fn sum(x: &[f32]) -> f32 {
    sum_of([x], |[x]| x)
}

/// Inner product of two slices of one length.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    sum_of([a, b], |[a, b]| a * b)
}

vectorised! {
    /// [`dot`] for callers outside vector code.
    pub fn dot_of(a: &[f32], b: &[f32]) -> f32 {
        dot(a, b)
    }
}

/// Largest value; NaN is passed over, -inf for nothing.
#[inline(always)]
pub fn largest(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = if x > *lane { x } else { *lane };
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a })
}

/// The largest magnitude; NaN where there is one, 0 for nothing.
#[inline(always)]
pub fn largest_magnitude(x: &[f32]) -> f32 {
    // of the bits: in integers the compiler takes it in lanes, and NaN is larger than all
    let mut largest = 0;
    for x in x {
        largest = (x.to_bits() & 0x7fff_ffff).max(largest);
    }
    f32::from_bits(largest)
}

/// Replaces x by e^(x - shift) and returns the sum.
#[inline(always)]
pub fn exp_and_sum(x: &mut [f32], shift: f32) -> f32 {
    for x in x.iter_mut() {
        *x = exp(*x - shift);
    }
    sum(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ten_millionths() {
        for i in -87_000..88_000 {
            let x = i as f32 * 1e-3 + 3e-4;
            let exact = f64::from(x).exp();
            assert!((f64::from(exp(x)) / exact - 1.0).abs() < 2e-7, "exp({x}) = {} instead of {exact}", exp(x));
        }
        assert_eq!((exp(0.0), exp(f32::NEG_INFINITY), exp(-200.0)), (1.0, 0.0, 0.0));
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn normal_cdf_agrees_with_known_values() {
        // scipy.special.ndtr
        let known =
            [(0.0, 0.5), (1.0, 0.841_344_746), (-1.0, 0.158_655_254), (2.5, 0.993_790_335), (-3.0, 0.001_349_898), (-6.0, 9.865_876e-10)];
        for (x, p) in known {
            let found = f64::from(normal_cdf(x));
            assert!((found - p).abs() < 2e-7 && (found / p - 1.0).abs() < 2e-6, "cdf({x}) = {found} instead of {p}");
        }
        assert_eq!((normal_cdf(40.0), normal_cdf(-40.0)), (1.0, 0.0));
        assert!(normal_cdf(f32::NAN).is_nan());
    }

    #[test]
    fn sums_cover_every_length() {
        for n in 0..70 {
            let x: Vec<f32> = (0..n).map(|i| i as f32 - 20.0).collect();
            assert_eq!(sum(&x), x.iter().sum::<f32>());
            assert_eq!(dot(&x, &x), x.iter().map(|x| x * x).sum::<f32>());
            assert_eq!(largest(&x), x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        }
    }
}

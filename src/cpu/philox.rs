//! Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3"): random words
//! from a counter and a key, so that they depend on no order of evaluation. `shaders/common/philox.wgsl` is its twin.

use crate::graph::attr::Dropout;

const M0: u32 = 0xD251_1F53;
const M1: u32 = 0xCD9E_8D57;
const W0: u32 = 0x9E37_79B9;
const W1: u32 = 0xBB67_AE85;

/// Four random words.
#[inline(always)]
pub fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let ([mut x, mut y, mut z, mut w], [mut k0, mut k1]) = (counter, key);
    for _ in 0..10 {
        let (a, b) = (x as u64 * M0 as u64, z as u64 * M1 as u64);
        (x, y, z, w) = ((b >> 32) as u32 ^ y ^ k0, b as u32, (a >> 32) as u32 ^ w ^ k1, a as u32);
        k0 = k0.wrapping_add(W0);
        k1 = k1.wrapping_add(W1);
    }
    [x, y, z, w]
}

/// The dropout mask of one site in one micro-batch: element i draws lane i mod 4 of counter
/// (i/4, site, step, micro-batch) under the seed as key, and is kept iff that word is at least p·2³². What i/4 has beyond
/// its low word is in the site's upper twelve bits: there are fewer than 2²⁰ sites, and fewer than 2⁴⁶ elements.
#[derive(Clone, Copy, Debug)]
pub struct Mask {
    key: [u32; 2],
    site: u32,
    step: u32,
    micro: u32,
    threshold: u32,
    scale: f32,
}

/// The smallest word that keeps an element, and the factor of a kept one: what kernels of every backend use.
pub fn keep(drop: Dropout) -> (u32, f32) {
    ((drop.p as f64 * 4_294_967_296.0) as u32, 1.0 / (1.0 - drop.p))
}

impl Mask {
    /// `rng` is [seed's low word, seed's high word, step, micro-batch].
    pub fn new(rng: [u32; 4], drop: Dropout) -> Mask {
        let (threshold, scale) = keep(drop);
        Mask { key: [rng[0], rng[1]], site: drop.site, step: rng[2], micro: rng[3], threshold, scale }
    }

    /// 0 or 1/(1−p).
    pub fn factor(&self, i: usize) -> f32 {
        self.factors(i / 4)[i % 4]
    }

    #[inline(always)]
    fn factors(&self, quad: usize) -> [f32; 4] {
        let high = (quad as u64 >> 32) as u32;
        let words = philox([quad as u32, self.site ^ high << 20, self.step, self.micro], self.key);
        words.map(|w| if w >= self.threshold { self.scale } else { 0.0 })
    }

    /// The factors of elements `start..start + out.len()`.
    pub fn fill(&self, start: usize, out: &mut [f32]) {
        let head = (start.next_multiple_of(4) - start).min(out.len());
        let (first, rest) = out.split_at_mut(head);
        for (i, f) in first.iter_mut().enumerate() {
            *f = self.factor(start + i);
        }
        let quad = (start + head) / 4;
        for (q, f) in rest.chunks_mut(4).enumerate() {
            f.copy_from_slice(&self.factors(quad + q)[..f.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers that come with the authors' Random123 library (`kat_vectors`, philox4x32 10).
    #[test]
    fn known_answers() {
        let table = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, words) in table {
            assert_eq!(philox(counter, key), words);
        }
        // The control: another key gives other words.
        assert_ne!(philox([0; 4], [1, 0]), table[0].2);
    }

    #[test]
    fn ranges_of_a_mask_agree_with_its_elements_and_keep_the_share_they_should() {
        let mask = Mask::new([7, 8, 9, 10], Dropout { p: 0.25, site: 3 });
        let whole: Vec<f32> = (0..4099).map(|i| mask.factor(i)).collect();
        for (start, len) in [(0, 4099), (1, 2), (3, 1), (5, 1000), (4096, 3)] {
            let mut part = vec![9.0; len];
            mask.fill(start, &mut part);
            assert_eq!(part, whole[start..start + len]);
        }
        // Far elements too, and those 2³⁴ apart, whose number of the group has the same low word, are not one.
        for start in [(1u64 << 32) - 2, (1 << 34) - 6, 1 << 40] {
            let Ok(start) = usize::try_from(start) else { continue };
            let mut part = vec![9.0; 4099];
            mask.fill(start, &mut part);
            assert!(part.iter().enumerate().all(|(i, &f)| f == mask.factor(start + i)), "{start}");
            assert_ne!(part, whole, "{start}");
        }
        // Below that, the counter is the number of the group and the site as it is.
        let word = philox([u32::MAX, 3, 9, 10], [7, 8])[3];
        let last = usize::try_from((1u64 << 34) - 1).map(|i| mask.factor(i));
        assert!(last.is_err() || last == Ok(if word >= 1 << 30 { 1.0 / 0.75 } else { 0.0 }));
        // Kept elements are binomial: 4099·¾ with standard deviation √(4099·¾·¼) = 28; five of them.
        let kept = whole.iter().filter(|&&f| f == 1.0 / 0.75).count() as f64;
        assert!((kept - 4099.0 * 0.75).abs() < 140.0, "{kept}");
    }
}

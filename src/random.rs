//! Random numbers by counter: Philox 4x32 with 10 rounds (Salmon et al., SC 2011), the same on every machine.
//!
//! A number is a pure function of (seed, stream, index), so that splitting a batch or resuming a run changes none.
//! There is no global generator and nothing is seeded from the clock. Not for cryptography. Uniform numbers and
//! integers are the same bits everywhere; normal ones go through the platform's `ln`, `sin` and `cos`, whose last bit
//! may differ between C libraries.
#![forbid(unsafe_code)]

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
// Fractions of the golden ratio and of the square root of 3, added to the key after each round.
const KEY_STEPS: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// The bijection itself: ten rounds of Philox 4x32 on `counter` under `key`.
///
/// ```
/// assert_eq!(warpsmith::random::philox4x32([0; 2], [0; 4])[0], 0x6627_e8d5);
/// ```
#[inline(always)]
pub fn philox4x32(mut key: [u32; 2], mut counter: [u32; 4]) -> [u32; 4] {
    for _ in 0..ROUNDS {
        let a = u64::from(MULTIPLIERS[0]) * u64::from(counter[0]);
        let b = u64::from(MULTIPLIERS[1]) * u64::from(counter[2]);
        counter = [
            (b >> 32) as u32 ^ counter[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ counter[3] ^ key[1],
            a as u32,
        ];
        key = [key[0].wrapping_add(KEY_STEPS[0]), key[1].wrapping_add(KEY_STEPS[1])];
    }
    counter
}

/// A uniform number in [0, 1) from the upper 24 bits of `word`: every result is a multiple of 2⁻²⁴.
pub fn unit_f32(word: u32) -> f32 {
    (word >> 8) as f32 * (1.0 / (1u32 << 24) as f32)
}

/// A uniform number in [0, 1) from the upper 53 bits of `word`: every result is a multiple of 2⁻⁵³.
pub fn unit_f64(word: u64) -> f64 {
    (word >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

/// Random access to one stream of numbers: the pure function (seed, stream, index) → number.
///
/// The seed is the key; the stream (call site and step, say) is the upper half of the counter and the index the lower
/// one, so streams of one seed never overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Philox {
    key: [u32; 2],
    stream: u64,
}

impl Philox {
    /// The stream number `stream` of `seed`.
    pub fn new(seed: u64, stream: u64) -> Self {
        Philox { key: [seed as u32, (seed >> 32) as u32], stream }
    }

    /// The stream of one call site at one step: `site` in the upper, `step` in the lower half of the stream's number.
    pub fn for_step(seed: u64, site: u32, step: u32) -> Self {
        Philox::new(seed, u64::from(site) << 32 | u64::from(step))
    }

    /// Four words: block number `block`.
    #[inline(always)]
    pub fn at(&self, block: u64) -> [u32; 4] {
        let counter = [block as u32, (block >> 32) as u32, self.stream as u32, (self.stream >> 32) as u32];
        philox4x32(self.key, counter)
    }

    /// Word number `index`: four of them a block.
    pub fn word_at(&self, index: u64) -> u32 {
        self.at(index / 4)[(index % 4) as usize]
    }

    /// Element `index` of an endless array of uniform numbers in [0, 1).
    pub fn uniform_f32_at(&self, index: u64) -> f32 {
        unit_f32(self.word_at(index))
    }

    /// Element `index` of an endless array of uniform numbers in [0, 1).
    pub fn uniform_f64_at(&self, index: u64) -> f64 {
        let block = self.at(index / 2);
        let at = (index % 2) as usize * 2;
        unit_f64(u64::from(block[at]) | u64::from(block[at + 1]) << 32)
    }

    /// Elements 2 `block` and 2 `block` + 1 of an endless array of standard normal numbers (Box and Muller).
    pub fn normal_pair_at(&self, block: u64) -> [f64; 2] {
        let words = self.at(block);
        // In (0, 1]: the logarithm of 0 must not happen. The largest result is about 8.57.
        let first = 1.0 - unit_f64(u64::from(words[0]) | u64::from(words[1]) << 32);
        let second = unit_f64(u64::from(words[2]) | u64::from(words[3]) << 32);
        let radius = (-2.0 * first.ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * second).sin_cos();
        [radius * cos, radius * sin]
    }

    /// Element `index` of an endless array of standard normal numbers.
    pub fn normal_at(&self, index: u64) -> f64 {
        self.normal_pair_at(index / 2)[(index % 2) as usize]
    }

    /// Reads the stream's words one after the other from word `position` on.
    pub fn sequence(&self, position: u64) -> Sequence {
        Sequence { philox: *self, position, block: self.at(position / 4) }
    }
}

/// Reads one stream word after word, for draws whose number is not known beforehand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    philox: Philox,
    position: u64,
    block: [u32; 4],
}

impl Sequence {
    /// How many words have been read; [`Philox::sequence`] goes on from there.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The next word.
    pub fn next_u32(&mut self) -> u32 {
        let lane = (self.position % 4) as usize;
        let word = self.block[lane];
        self.position = self.position.wrapping_add(1);
        if lane == 3 {
            self.block = self.philox.at(self.position / 4);
        }
        word
    }

    /// The next two words, the lower one first.
    pub fn next_u64(&mut self) -> u64 {
        u64::from(self.next_u32()) | u64::from(self.next_u32()) << 32
    }

    /// A uniform number in [0, 1); reads one word.
    pub fn uniform_f32(&mut self) -> f32 {
        unit_f32(self.next_u32())
    }

    /// A uniform number in [0, 1); reads two words.
    pub fn uniform_f64(&mut self) -> f64 {
        unit_f64(self.next_u64())
    }

    /// A uniform integer below `bound`, every one equally likely (Lemire 2019: multiply, reject the uneven rest).
    /// 0 where `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        loop {
            let product = u128::from(self.next_u64()) * u128::from(bound);
            let low = product as u64;
            // The division is paid only where the draw could lie in the uneven rest.
            if low >= bound || low >= bound.wrapping_neg() % bound.max(1) {
                return (product >> 64) as u64;
            }
        }
    }

    /// Puts `items` into a random order, each order equally likely (Fisher and Yates, from the end).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors that the authors publish with Random123 (kat_vectors).
    #[test]
    fn known_answers() {
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        for (key, counter, want) in [
            ([0; 2], [0; 4], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 2], [u32::MAX; 4], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            ([0xa409_3822, 0x299f_31d0], pi, [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]),
        ] {
            assert_eq!(philox4x32(key, counter), want);
        }
        // The same through the parts of a `Philox`: seed, stream and block are little-endian halves.
        let stream = Philox::new(0x299f_31d0_a409_3822, 0x0370_7344_1319_8a2e);
        assert_eq!(stream.at(0x85a3_08d3_243f_6a88), [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    #[test]
    fn a_sequence_reads_what_random_access_gives() {
        let philox = Philox::for_step(7, 3, 11);
        let mut all = philox.sequence(0);
        let words: Vec<u32> = (0..23).map(|_| all.next_u32()).collect();
        assert_eq!(words, (0..23).map(|i| philox.word_at(i)).collect::<Vec<_>>());
        assert_eq!(all.position(), 23);
        for start in [1, 4, 6, 19] {
            assert_eq!(philox.sequence(start).next_u32(), words[start as usize]);
        }
        let mut pairs = philox.sequence(0);
        assert_eq!(
            (0..9).map(|_| pairs.uniform_f64()).collect::<Vec<_>>(),
            (0..9).map(|i| philox.uniform_f64_at(i)).collect::<Vec<_>>()
        );
    }

    #[test]
    fn streams_and_seeds_differ() {
        let first = Philox::new(1, 0).at(0);
        for other in [Philox::new(2, 0), Philox::new(1, 1), Philox::new(1 << 32, 0), Philox::new(1, 1 << 32)]
        {
            assert_ne!(other.at(0), first);
        }
    }

    #[test]
    fn uniform_numbers_stay_below_one_and_look_uniform() {
        assert_eq!(unit_f32(0), 0.0);
        assert!(unit_f32(u32::MAX) < 1.0 && unit_f64(u64::MAX) < 1.0);
        let philox = Philox::new(5, 0);
        let mut buckets = [0u32; 16];
        for i in 0..160_000 {
            buckets[(philox.uniform_f32_at(i) * 16.0) as usize] += 1;
        }
        // Chi-squared with 15 degrees of freedom: 37.7 is exceeded once in a thousand; the seed is fixed.
        let chi: f64 = buckets.iter().map(|&n| (f64::from(n) - 1e4).powi(2) / 1e4).sum();
        assert!(chi < 37.7, "{chi}");
    }

    #[test]
    fn normal_numbers_have_the_moments_of_the_normal_distribution() {
        let philox = Philox::new(9, 2);
        let n = 200_000;
        let draws: Vec<f64> = (0..n).map(|i| philox.normal_at(i)).collect();
        let moment = |k: i32| draws.iter().map(|x| x.powi(k)).sum::<f64>() / n as f64;
        // Standard errors of the four: 0.0022, 0.0032, 0.0087, 0.022. Four of them are allowed.
        assert!(moment(1).abs() < 0.009, "{}", moment(1));
        assert!((moment(2) - 1.0).abs() < 0.013, "{}", moment(2));
        assert!(moment(3).abs() < 0.035, "{}", moment(3));
        assert!((moment(4) - 3.0).abs() < 0.09, "{}", moment(4));
        assert!(draws.iter().all(|x| x.is_finite()));
    }

    #[test]
    fn bounded_integers_are_even_and_bounded() {
        let mut sequence = Philox::new(3, 0).sequence(0);
        assert_eq!(sequence.below(0), 0);
        assert_eq!(sequence.below(1), 0);
        let mut counts = [0u32; 7];
        for _ in 0..70_000 {
            counts[sequence.below(7) as usize] += 1;
        }
        let chi: f64 = counts.iter().map(|&n| (f64::from(n) - 1e4).powi(2) / 1e4).sum();
        assert!(chi < 22.5, "{chi}"); // 6 degrees of freedom, one in a thousand
        // Just above half the range nearly half of the draws are rejected; the mean shows a bias if they are not.
        let bound = (1u64 << 63) + 1;
        let mean = (0..20_000).map(|_| sequence.below(bound) as f64 / bound as f64).sum::<f64>() / 20_000.0;
        assert!((mean - 0.5).abs() < 0.01, "{mean}");
    }

    #[test]
    fn a_shuffle_is_a_permutation_and_never_changes() {
        let mut items: Vec<u32> = (0..12).collect();
        Philox::new(42, 1).sequence(0).shuffle(&mut items);
        assert_eq!(items, GOLDEN_SHUFFLE);
        items.sort_unstable();
        assert_eq!(items, (0..12).collect::<Vec<_>>());
    }

    // What this code gave when it was written; a change would change every split and every run.
    const GOLDEN_SHUFFLE: [u32; 12] = [5, 3, 11, 6, 10, 4, 8, 0, 2, 9, 7, 1];
}

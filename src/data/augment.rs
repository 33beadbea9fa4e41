//! [`Augment`]: training rows changed at random, anew in each epoch, and each a pure function of (seed, epoch, row).
//!
//! Pictures are moved about as raw pixels, before they are scaled, so that what comes in from outside is black. Which
//! numbers a change draws does not depend on the other changes: adding noise leaves the flips as they were.
#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::store::Store;
use crate::random::{Philox, unit_f64};
use crate::{Error, Result};

/// Blocks of random numbers that a row has to itself; noise takes one for two values.
const BLOCKS: u64 = 1 << 28;
/// The first of them that noise takes.
const NOISE: u64 = 4;

/// How training rows are changed; by default not at all.
///
/// Its text form is a list of what is wanted, as in `flip,crop:4,noise:0.05`; nothing is `none`.
///
/// ```
/// use warpsmith::data::Augment;
/// let augment: Augment = "flip,crop:4".parse()?;
/// assert_eq!(augment, Augment { flip: true, crop: 4, ..Augment::default() });
/// assert_eq!(augment.to_string(), "flip,crop:4");
/// # Ok::<(), warpsmith::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Augment {
    /// Mirror every second picture, left for right.
    pub flip: bool,
    /// Surround a picture by so many black pixels on each side, and cut one of its size out of that.
    pub crop: usize,
    /// Move a picture by up to so many pixels down or up and to a side; its edge is repeated where it left.
    pub shift: usize,
    /// Turn a picture by up to so many degrees, bilinear, black corners.
    pub rotate: f64,
    /// Add normal noise of this deviation to the scaled values. For tables too.
    pub noise: f64,
    /// Make a square of this side grey (the channel's mean), anywhere in a picture, partly outside perhaps.
    pub cutout: usize,
    /// Mix each row and its target with another training row, in shares from the beta distribution (a, a) for this a;
    /// small ones leave most rows almost pure. 0 for none, else 1e-6 at least. For tables too.
    pub mixup: f64,
}

impl Augment {
    /// Whether nothing is changed.
    pub fn is_none(&self) -> bool {
        *self == Augment::default()
    }

    /// Whether pixels are moved or covered, which only pictures have.
    pub fn needs_pictures(&self) -> bool {
        self.moves() || self.cutout > 0
    }

    fn moves(&self) -> bool {
        self.flip || self.crop > 0 || self.shift > 0 || self.rotate > 0.0
    }

    /// Refuses numbers that are wrong by themselves (kind `Argument`).
    pub fn check(&self) -> Result<()> {
        let bad = |what: String| Err(Error::argument(format!("augment {what}")));
        if !(0.0..=180.0).contains(&self.rotate) {
            return bad(format!("rotate:{}: expected degrees from 0 to 180", self.rotate));
        }
        if !(0.0..=1e3).contains(&self.noise) {
            return bad(format!("noise:{}: expected a deviation of at least 0", self.noise));
        }
        // Logarithms of draws of a smaller shape reach beyond f64: then there are no shares, as infinity less infinity.
        if self.mixup != 0.0 && !(1e-6..=1e3).contains(&self.mixup) {
            return bad(format!("mixup:{:?}: expected 0 or a number from 0.000001 to 1000", self.mixup));
        }
        Ok(())
    }

    /// Refuses what cannot be done to the rows of `store` (kind `Argument`).
    pub fn check_for(&self, store: &Store) -> Result<()> {
        self.check()?;
        if !self.needs_pictures() {
            return Ok(());
        }
        let [_, height, width] = *store.shape() else { return Err(self.only_for_pictures()) };
        if !store.is_pictures() {
            return Err(self.only_for_pictures());
        }
        // A crop of as many would leave nothing of some pictures.
        let (least, most) = (height.min(width), height.max(width));
        let least = least.saturating_sub(1);
        for (what, pixels, most) in
            [("crop", self.crop, least), ("shift", self.shift, most), ("cutout", self.cutout, most)]
        {
            if pixels > most {
                let message = format!(
                    "augment {what}:{pixels}: pictures of {height}x{width} pixels can take {most} at most"
                );
                return Err(Error::argument(message));
            }
        }
        Ok(())
    }

    fn only_for_pictures(&self) -> Error {
        Error::argument(format!("augment {self}: flip, crop, shift, rotate and cutout are for pictures"))
            .with_help("of a table, rows can be changed by noise and mixup")
    }

    /// Reads the row `row` of `store`, prepared and changed. `key` is the row's place in `draws`, and `spare` memory.
    pub(super) fn read(
        &self,
        store: &Store,
        row: usize,
        (draws, key): (&Philox, u64),
        into: &mut [f32],
        spare: &mut Vec<f32>,
    ) {
        let first = key * BLOCKS;
        let words: [u32; 8] = bytemuck::cast([draws.at(first), draws.at(first + 1)]);
        let extents = <[usize; 3]>::try_from(store.shape()).unwrap_or([1, 1, into.len()]);
        if self.moves() {
            spare.resize(into.len(), 0.0);
            store.read_pixels(row, into);
            if self.rotate > 0.0 {
                let angle = self.rotate.to_radians() * (2.0 * unit_f64(u64::from(words[5]) << 32) - 1.0);
                rotate(into, extents, angle, spare);
                into.copy_from_slice(spare);
            }
            if self.flip || self.crop > 0 || self.shift > 0 {
                let within = |word: u32, most: usize| {
                    ((u64::from(word) * (2 * most as u64 + 1)) >> 32) as isize - most as isize
                };
                let moved = Move {
                    flip: self.flip && words[0] >> 31 == 1,
                    crop: [within(words[1], self.crop), within(words[2], self.crop)],
                    shift: [within(words[3], self.shift), within(words[4], self.shift)],
                };
                spare.copy_from_slice(into);
                moved.apply(spare, extents, into);
            }
            store.scale_pixels(into);
        } else {
            store.read(row, into);
        }
        if self.noise > 0.0 {
            for (block, pair) in into.chunks_mut(2).enumerate() {
                let normal = draws.normal_pair_at(first + NOISE + block as u64);
                for (value, normal) in pair.iter_mut().zip(normal) {
                    *value += (self.noise * normal) as f32;
                }
            }
        }
        if self.cutout > 0 {
            cut_out(into, extents, self.cutout, [words[6], words[7]]);
        }
    }

    /// The share of its own that a row keeps when it is mixed, and a number to pick the other row by.
    pub(super) fn mix(&self, draws: &Philox, key: u64) -> (f32, u64) {
        let mut words = draws.sequence(key << 10);
        let other = words.next_u64();
        let [own, others] = [0, 1].map(|_| ln_gamma_draw(self.mixup, &mut words));
        // own / (own + others), from logarithms because small shapes make numbers that f64 has not.
        ((1.0 / (1.0 + (others - own).exp())) as f32, other)
    }
}

/// The logarithm of a draw from the gamma distribution of `shape` (Marsaglia and Tsang 2000).
fn ln_gamma_draw(shape: f64, words: &mut crate::random::Sequence) -> f64 {
    // A smaller shape by way of the next larger one: G(a) = G(a + 1) U^(1/a).
    let (boost, shape) = match shape < 1.0 {
        true => ((1.0 - words.uniform_f64()).ln() / shape, shape + 1.0),
        false => (0.0, shape),
    };
    let d = shape - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let radius = (-2.0 * (1.0 - words.uniform_f64()).ln()).sqrt();
        let normal = radius * (std::f64::consts::TAU * words.uniform_f64()).cos();
        let v = (1.0 + c * normal).powi(3);
        let u = 1.0 - words.uniform_f64();
        if v > 0.0 && u.ln() < 0.5 * normal * normal + d - d * v + d * v.ln() {
            return boost + (d * v).ln();
        }
    }
}

/// Whole pixels' moves, applied in this order: shift, crop, flip.
struct Move {
    flip: bool,
    /// Down and to the right, black outside.
    crop: [isize; 2],
    /// Down and to the right, the edge repeated outside.
    shift: [isize; 2],
}

impl Move {
    fn apply(&self, from: &[f32], [_, height, width]: [usize; 3], into: &mut [f32]) {
        // Where a row or column of the result comes from; nothing where it is black.
        let source = |at: usize, axis: usize, extent: usize| -> Option<usize> {
            let cropped = at as isize + self.crop[axis];
            let inside = (0..extent as isize).contains(&cropped);
            inside.then(|| (cropped + self.shift[axis]).clamp(0, extent as isize - 1) as usize)
        };
        let flipped = |x: usize| if self.flip { width - 1 - x } else { x };
        let columns: Vec<Option<usize>> = (0..width).map(|x| source(flipped(x), 1, width)).collect();
        let planes = from.chunks_exact(height * width).zip(into.chunks_exact_mut(height * width));
        for (from, into) in planes {
            for (y, into) in into.chunks_exact_mut(width).enumerate() {
                let Some(y) = source(y, 0, height) else {
                    into.fill(0.0);
                    continue;
                };
                let from = &from[y * width..(y + 1) * width];
                for (value, column) in into.iter_mut().zip(&columns) {
                    *value = column.map_or(0.0, |x| from[x]);
                }
            }
        }
    }
}

/// Turns pictures about their middle; a positive angle turns them clockwise.
fn rotate(from: &[f32], [_, height, width]: [usize; 3], angle: f64, into: &mut [f32]) {
    let (sin, cos) = (angle.sin() as f32, angle.cos() as f32);
    let [middle_y, middle_x] = [height, width].map(|extent| (extent as f32 - 1.0) / 2.0);
    let plane = height * width;
    for y in 0..height {
        let dy = y as f32 - middle_y;
        for x in 0..width {
            let dx = x as f32 - middle_x;
            let from_x = middle_x + cos * dx + sin * dy;
            let from_y = middle_y - sin * dx + cos * dy;
            let (left, top) = (from_x.floor(), from_y.floor());
            let (right_share, bottom_share) = (from_x - left, from_y - top);
            let at = |y: f32, x: f32| {
                let inside = y >= 0.0 && x >= 0.0 && y < height as f32 && x < width as f32;
                inside.then(|| y as usize * width + x as usize)
            };
            let corners = [
                (at(top, left), (1.0 - bottom_share) * (1.0 - right_share)),
                (at(top, left + 1.0), (1.0 - bottom_share) * right_share),
                (at(top + 1.0, left), bottom_share * (1.0 - right_share)),
                (at(top + 1.0, left + 1.0), bottom_share * right_share),
            ];
            for (from, into) in from.chunks_exact(plane).zip(into.chunks_exact_mut(plane)) {
                into[y * width + x] =
                    corners.iter().map(|(at, share)| at.map_or(0.0, |at| from[at]) * share).sum();
            }
        }
    }
}

/// Zeros in a square of `side` around a pixel that `words` pick.
fn cut_out(row: &mut [f32], [_, height, width]: [usize; 3], side: usize, words: [u32; 2]) {
    let [rows, columns] = [(words[0], height), (words[1], width)].map(|(word, extent)| {
        let middle = ((u64::from(word) * extent as u64) >> 32) as usize;
        let first = middle as isize - side as isize / 2;
        first.max(0) as usize..(first + side as isize).min(extent as isize) as usize
    });
    for plane in row.chunks_exact_mut(height * width) {
        for y in rows.clone() {
            plane[y * width..][columns.clone()].fill(0.0);
        }
    }
}

impl fmt::Display for Augment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        parts.extend(self.flip.then(|| "flip".to_owned()));
        for (name, pixels) in [("crop", self.crop), ("shift", self.shift)] {
            parts.extend((pixels > 0).then(|| format!("{name}:{pixels}")));
        }
        parts.extend((self.rotate > 0.0).then(|| format!("rotate:{}", self.rotate)));
        parts.extend((self.noise > 0.0).then(|| format!("noise:{}", self.noise)));
        parts.extend((self.cutout > 0).then(|| format!("cutout:{}", self.cutout)));
        parts.extend((self.mixup > 0.0).then(|| format!("mixup:{}", self.mixup)));
        f.write_str(if parts.is_empty() { "none" } else { "" })?;
        f.write_str(&parts.join(","))
    }
}

impl FromStr for Augment {
    type Err = Error;

    /// # Errors
    /// Kind `Argument`: an unknown or doubled name, or a number that does not fit.
    fn from_str(text: &str) -> Result<Augment> {
        let mut augment = Augment::default();
        if text == "none" {
            return Ok(augment);
        }
        let mut seen = Vec::new();
        for part in text.split(',').map(str::trim) {
            let (name, value) =
                part.split_once(':').map_or((part, None), |(name, value)| (name, Some(value)));
            let expected = || {
                Error::argument(format!(
                    "augment {part:?}: expected none, or of flip, crop:PIXELS, shift:PIXELS, rotate:DEGREES, \
                     noise:DEVIATION, cutout:PIXELS and mixup:ALPHA some, with commas between"
                ))
            };
            let pixels =
                || value.and_then(|v| v.parse::<u32>().ok()).map(|v| v as usize).ok_or_else(expected);
            let number = || value.and_then(|v| v.parse::<f64>().ok()).ok_or_else(expected);
            match name {
                "flip" if value.is_none() => augment.flip = true,
                "crop" => augment.crop = pixels()?,
                "shift" => augment.shift = pixels()?,
                "rotate" => augment.rotate = number()?,
                "noise" => augment.noise = number()?,
                "cutout" => augment.cutout = pixels()?,
                "mixup" => augment.mixup = number()?,
                _ => return Err(expected()),
            }
            if seen.contains(&name) {
                return Err(Error::argument(format!("augment {text:?}: {name} stands there twice")));
            }
            seen.push(name);
        }
        augment.check()?;
        Ok(augment)
    }
}

impl Serialize for Augment {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Augment {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Augment, D::Error> {
        String::deserialize(d)?.parse().map_err(|e: Error| serde::de::Error::custom(e.message()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    const FOUR: [f32; 16] = [1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15., 16.];

    fn moved(moves: Move) -> Vec<f32> {
        let mut into = vec![-1.0; 16];
        moves.apply(&FOUR, [1, 4, 4], &mut into);
        into
    }

    #[test]
    fn texts_come_back() {
        for text in ["none", "flip", "flip,crop:4,shift:2,rotate:10,noise:0.05,cutout:8,mixup:0.2"] {
            assert_eq!(text.parse::<Augment>().unwrap().to_string(), text);
        }
        assert_eq!("crop:0".parse::<Augment>().unwrap().to_string(), "none");
        for text in [
            "",
            "flip:1",
            "crop",
            "crop:-1",
            "crop:x",
            "rotate:181",
            "rotate:nan",
            "noise:-1",
            "mixup:inf",
            "mixup:-0.1",
            "mixup:1e-310",
            "mixup:9e-7",
            "zoom:2",
            "flip,flip",
            "flip,,crop:1",
        ] {
            assert_eq!(text.parse::<Augment>().unwrap_err().kind(), ErrorKind::Argument, "{text:?}");
        }
    }

    #[test]
    fn whole_pixels_move_exactly() {
        let still = || Move { flip: false, crop: [0, 0], shift: [0, 0] };
        assert_eq!(moved(still()), FOUR);
        assert_eq!(
            moved(Move { flip: true, ..still() }),
            [4., 3., 2., 1., 8., 7., 6., 5., 12., 11., 10., 9., 16., 15., 14., 13.]
        );
        assert_eq!(
            moved(Move { crop: [1, -2], ..still() }),
            [0., 0., 5., 6., 0., 0., 9., 10., 0., 0., 13., 14., 0., 0., 0., 0.]
        );
        assert_eq!(
            moved(Move { shift: [-1, 1], ..still() }),
            [2., 3., 4., 4., 2., 3., 4., 4., 6., 7., 8., 8., 10., 11., 12., 12.]
        );
    }

    #[test]
    fn quarter_turns_are_exact_and_no_turn_changes_nothing() {
        let mut into = [0.0; 16];
        rotate(&FOUR, [1, 4, 4], 0.0, &mut into);
        assert_eq!(into, FOUR);
        rotate(&FOUR, [1, 4, 4], std::f64::consts::FRAC_PI_2, &mut into);
        let turned = [13., 9., 5., 1., 14., 10., 6., 2., 15., 11., 7., 3., 16., 12., 8., 4.];
        for (value, want) in into.iter().zip(turned) {
            // The cosine of a right angle is not quite 0.
            approx::assert_abs_diff_eq!(*value, want, epsilon = 1e-4);
        }
        // Two planes of 2 x 2, an eighth turn: the corners are mixed with black.
        let mut into = [0.0; 8];
        rotate(&[1., 1., 1., 1., 8., 8., 8., 8.], [2, 2, 2], std::f64::consts::FRAC_PI_4, &mut into);
        assert!(into[..4].iter().all(|&v| v > 0.5 && v < 1.0), "{into:?}");
        assert!(into[..4].iter().zip(&into[4..]).all(|(a, b)| a * 8.0 == *b), "{into:?}");
    }

    #[test]
    fn cutouts_stay_inside() {
        for (words, zeros) in [([0, 0], 4), ([1 << 31, 1 << 31], 9), ([u32::MAX, 0], 4)] {
            let mut row = [1.0; 32];
            cut_out(&mut row, [2, 4, 4], 3, words);
            assert_eq!(row.iter().filter(|&&v| v == 0.0).count(), 2 * zeros, "{words:?}");
        }
    }

    #[test]
    fn shares_are_of_the_beta_distribution() {
        for alpha in [1e-6, 0.05, 0.2, 1.0, 4.0] {
            let augment = Augment { mixup: alpha, ..Augment::default() };
            let draws = Philox::for_step(3, 1, 0);
            let shares: Vec<f64> = (0..20_000).map(|key| f64::from(augment.mix(&draws, key).0)).collect();
            assert!(shares.iter().all(|share| (0.0..=1.0).contains(share)));
            let mean = shares.iter().sum::<f64>() / shares.len() as f64;
            let variance = shares.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / shares.len() as f64;
            // The variance of beta(a, a) is 1 / (4 (2a + 1)).
            approx::assert_abs_diff_eq!(mean, 0.5, epsilon = 0.01);
            approx::assert_abs_diff_eq!(variance, 0.25 / (2.0 * alpha + 1.0), epsilon = 0.005);
        }
    }
}

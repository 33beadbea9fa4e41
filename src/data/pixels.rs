//! [`PixelScaling`]: how the bytes of pictures become a network's numbers. Fitted per channel on the training part and
//! saved in the model, so that raw pictures predict the same.
//!
//! Statistics are taken over a histogram of each channel's 256 values: exact counts, so neither the order of the rows nor
//! the number of threads can be seen in them.
#![forbid(unsafe_code)]

use std::fmt;

use serde::{Deserialize, Serialize};

use super::scaling::{Scale, Scaling};
use crate::cpu::par;
use crate::{Error, ErrorKind, Result};

/// The most values of one picture that is taken for one: 2²⁸, a gibibyte of f32.
const MAX_VALUES: usize = 1 << 28;

/// The size of pictures, and the scaling of their channels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PixelScaling {
    /// 1 for grey, 3 for red, green and blue.
    pub channels: usize,
    /// Rows of pixels.
    pub height: usize,
    /// Columns of pixels.
    pub width: usize,
    /// Whether picture files of another size are resized to this one; else they are refused.
    pub resize: bool,
    /// Whether picture files of another number of channels are converted; else they are refused.
    pub convert: bool,
    /// The rule that the scaling was fitted by.
    pub scale: Scale,
    /// For each channel the value (0 to 255) that becomes 0.
    pub shift: Vec<f64>,
    /// For each channel the distance that becomes 1; 0 for a constant channel.
    pub divisor: Vec<f64>,
}

impl fmt::Display for PixelScaling {
    /// `pictures of 28x28 pixels in 1 channel`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&described(self.shape()))
    }
}

/// Pictures of a shape `[C, H, W]` in words.
pub(super) fn described([channels, height, width]: [usize; 3]) -> String {
    format!(
        "pictures of {height}x{width} pixels in {channels} {}",
        super::dataset::plural(channels, "channel")
    )
}

impl PixelScaling {
    /// Fits `rule` to the pictures `rows` of `pixels`, `[.., C, H, W]` in C order.
    ///
    /// # Panics
    /// Where one of `rows` is not there.
    pub fn fit(rule: Scale, pixels: &[u8], [channels, height, width]: [usize; 3], rows: &[usize]) -> Self {
        let plane = height * width;
        // A million pixels a task: many beside the histograms' 4 KiB a channel, and few enough for 32-bit counts.
        let grain = (1usize << 20).div_ceil((channels * plane).max(1));
        let counts = par::map_chunks(rows.len(), grain, |range| {
            let mut counts = vec![[[0u32; 256]; 4]; channels];
            for &row in &rows[range] {
                for (channel, counts) in counts.iter_mut().enumerate() {
                    count(&pixels[(row * channels + channel) * plane..][..plane], counts);
                }
            }
            counts
        });
        let mut total = vec![[0u64; 256]; channels];
        for (channel, parts) in counts.iter().flat_map(|counts| counts.iter().enumerate()) {
            for part in parts {
                total[channel].iter_mut().zip(part).for_each(|(total, &part)| *total += u64::from(part));
            }
        }
        let scalings: Vec<Scaling> = total.iter().map(|counts| fit_counts(rule, counts)).collect();
        PixelScaling {
            channels,
            height,
            width,
            resize: false,
            convert: false,
            scale: rule,
            shift: scalings.iter().map(|scaling| scaling.shift).collect(),
            divisor: scalings.iter().map(|scaling| scaling.divisor).collect(),
        }
    }

    /// `[C, H, W]`.
    pub fn shape(&self) -> [usize; 3] {
        [self.channels, self.height, self.width]
    }

    /// For each channel what a byte is multiplied by, and what is then added.
    pub(super) fn factors(&self) -> Vec<[f32; 2]> {
        let factor = |(&shift, &divisor): (&f64, &f64)| match divisor {
            0.0 => [0.0, 0.0],
            _ => [(1.0 / divisor) as f32, (-shift / divisor) as f32],
        };
        self.shift.iter().zip(&self.divisor).map(factor).collect()
    }

    pub(super) fn check(&self) -> Result<()> {
        let error =
            |what: String| Err(Error::new(ErrorKind::Data, format!("preparation of pictures: {what}")));
        check_shape(self.shape()).map_err(|e| Error::new(ErrorKind::Data, e))?;
        if self.shift.len() != self.channels || self.divisor.len() != self.channels {
            return error(format!("expected a shift and a divisor for each of {} channels", self.channels));
        }
        for (&shift, &divisor) in self.shift.iter().zip(&self.divisor) {
            let factor = if divisor == 0.0 { 0.0 } else { ((shift.abs() + 255.0) / divisor) as f32 };
            if !(Scaling { rule: self.scale, shift, divisor }).is_sound() || !factor.is_finite() {
                return error("a number is not finite or too small, or a divisor is negative".to_owned());
            }
        }
        Ok(())
    }
}

/// What is wrong with a picture's shape, if anything.
pub(super) fn check_shape(shape: [usize; 3]) -> Result<(), String> {
    let values = shape.iter().try_fold(1usize, |product, &extent| product.checked_mul(extent));
    match values {
        Some(0) => Err(format!("{} have no pixels", described(shape))),
        Some(values) if values <= MAX_VALUES => Ok(()),
        _ => Err(format!("{} are too large", described(shape))),
    }
}

/// Counts the bytes of `plane`: in four tables, because pictures have long runs of one value and each increment would wait
/// for the one before.
fn count(plane: &[u8], counts: &mut [[u32; 256]; 4]) {
    let mut fours = plane.chunks_exact(4);
    for four in &mut fours {
        for (counts, &byte) in counts.iter_mut().zip(four) {
            counts[byte as usize] += 1;
        }
    }
    fours.remainder().iter().for_each(|&byte| counts[0][byte as usize] += 1);
}

/// [`Scaling::fit`] from the counts of the 256 values.
fn fit_counts(rule: Scale, counts: &[u64; 256]) -> Scaling {
    let used =
        || counts.iter().enumerate().filter(|(_, count)| **count > 0).map(|(v, &c)| (v as f64, c as f64));
    let (min, max) =
        used().fold((255.0f64, 0.0f64), |(min, max), (value, _)| (min.min(value), max.max(value)));
    let total: f64 = used().map(|(_, count)| count).sum();
    if rule == Scale::None || total == 0.0 {
        return Scaling { rule, shift: 0.0, divisor: 1.0 };
    }
    if min == max {
        return Scaling { rule, shift: min, divisor: 0.0 };
    }
    if rule == Scale::MinMax {
        return Scaling { rule, shift: min, divisor: max - min };
    }
    let mean = used().map(|(value, count)| value * count).sum::<f64>() / total;
    let variance = used().map(|(value, count)| (value - mean).powi(2) * count).sum::<f64>() / total;
    Scaling { rule, shift: mean, divisor: variance.sqrt() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_those_of_each_channel() {
        // Three pictures of two channels and 1 x 3 pixels; the last is not fitted.
        let pixels = [0, 0, 255, 7, 7, 7, 255, 255, 0, 7, 7, 7, 9, 9, 9, 1, 2, 3];
        let fitted = PixelScaling::fit(Scale::Standard, &pixels, [2, 1, 3], &[0, 1]);
        assert_eq!((fitted.shift[0], fitted.divisor[0]), (127.5, 127.5));
        assert_eq!((fitted.shift[1], fitted.divisor[1]), (7.0, 0.0));
        assert_eq!(fitted.factors()[1], [0.0, 0.0]);
        assert_eq!(fitted.factors()[0][1], -1.0);
        let min_max = PixelScaling::fit(Scale::MinMax, &pixels, [2, 1, 3], &[0, 2]);
        assert_eq!((min_max.shift, min_max.divisor), (vec![0.0, 1.0], vec![255.0, 6.0]));
        let none = PixelScaling::fit(Scale::None, &pixels, [2, 1, 3], &[0]);
        assert_eq!(none.factors(), [[1.0, 0.0]; 2]);
        assert_eq!(fitted.to_string(), "pictures of 1x3 pixels in 2 channels");
    }

    #[test]
    fn every_length_is_counted_whole() {
        for len in [0, 1, 3, 4, 7, 1025] {
            let plane: Vec<u8> = (0..len).map(|i: u32| (i * 7 % 256) as u8).collect();
            let mut counts = [[0; 256]; 4];
            count(&plane, &mut counts);
            assert_eq!(counts.iter().flatten().sum::<u32>(), len);
            let sevens: u32 = counts.iter().map(|counts| counts[7]).sum();
            assert_eq!(sevens, plane.iter().filter(|&&byte| byte == 7).count() as u32);
        }
    }

    #[test]
    fn unsound_scalings_are_refused() {
        let sound = PixelScaling::fit(Scale::Standard, &[0, 1, 2, 3], [1, 2, 2], &[0]);
        assert!(sound.check().is_ok());
        for bad in [
            PixelScaling { channels: 2, ..sound.clone() },
            PixelScaling { height: 0, ..sound.clone() },
            PixelScaling { height: usize::MAX, ..sound.clone() },
            PixelScaling { divisor: vec![-1.0], ..sound.clone() },
            PixelScaling { divisor: vec![1e-300], ..sound.clone() },
            PixelScaling { shift: vec![f64::NAN], ..sound.clone() },
        ] {
            assert_eq!(bad.check().unwrap_err().kind(), ErrorKind::Data, "{bad:?}");
        }
    }
}

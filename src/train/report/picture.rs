//! Small pictures of rows: PNG with filter 0 and zlib, as a data URI.

#![forbid(unsafe_code)]

use std::io::Write;

use flate2::Compression;
use flate2::write::ZlibEncoder;

use crate::data::{Input, Preparation, Scaling};

/// The picture that prepared `features` came from, its darkest value black and its brightest white. Nothing where rows are
/// no pictures of one or three channels.
pub(super) fn png(features: &[f32], preparation: &Preparation) -> Option<Vec<u8>> {
    let (channels, height, width) = match *preparation.shape() {
        [channels @ (1 | 3), height, width] => (channels, height, width),
        _ => return None,
    };
    let plane = height.checked_mul(width)?;
    if features.is_empty() || features.len() != channels.checked_mul(plane)? {
        return None;
    }
    let values: Vec<f64> = match preparation.pixels() {
        Some(pixels) => {
            let scaling = |i: usize| {
                let (rule, channel) = (pixels.scale, i / plane);
                Some(Scaling {
                    rule,
                    shift: *pixels.shift.get(channel)?,
                    divisor: *pixels.divisor.get(channel)?,
                })
            };
            let original = |(i, &v): (usize, &f32)| Some(scaling(i)?.invert(f64::from(v)));
            features.iter().enumerate().map(original).collect::<Option<_>>()?
        }
        None => {
            let original = |(&value, input): (&f32, &Input)| match *input {
                Input::Number { scale: rule, shift, divisor, .. } => {
                    Some(Scaling { rule, shift, divisor }.invert(f64::from(value)))
                }
                Input::Category { .. } => None,
            };
            features.iter().zip(preparation.inputs()).map(original).collect::<Option<_>>()?
        }
    };
    if values.len() != features.len() {
        return None;
    }
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let range = values.iter().copied().fold(f64::NEG_INFINITY, f64::max) - low;
    let level = |v: f64| if range > 0.0 { ((v - low) / range * 255.0).round() as u8 } else { 0 };
    let mut lines = Vec::with_capacity(height * (1 + width * channels));
    for y in 0..height {
        lines.push(0);
        for x in 0..width {
            lines.extend((0..channels).map(|c| level(values[c * plane + y * width + x])));
        }
    }
    encode(u32::try_from(width).ok()?, u32::try_from(height).ok()?, channels, &lines)
}

/// A PNG of 8-bit `lines`, each with its filter byte.
fn encode(width: u32, height: u32, channels: usize, lines: &[u8]) -> Option<Vec<u8>> {
    let mut out = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut chunk = |name: &[u8; 4], body: &[u8]| {
        out.extend((body.len() as u32).to_be_bytes());
        let start = out.len();
        out.extend(name);
        out.extend(body);
        let sum = crc32fast::hash(&out[start..]);
        out.extend(sum.to_be_bytes());
    };
    let colour = if channels == 3 { 2 } else { 0 };
    let mut header = [width.to_be_bytes(), height.to_be_bytes()].concat();
    header.extend([8, colour, 0, 0, 0]);
    // Writing to a vector cannot fail; if it did, there would be no picture.
    let mut zlib = ZlibEncoder::new(Vec::new(), Compression::best());
    zlib.write_all(lines).ok()?;
    let data = zlib.finish().ok()?;
    chunk(b"IHDR", &header);
    chunk(b"IDAT", &data);
    chunk(b"IEND", &[]);
    Some(out)
}

/// Standard base64 with padding.
pub(super) fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let at = |i: usize| u32::from(chunk.get(i).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for digit in 0..4 {
            let value = (bits >> (18 - 6 * digit)) as usize & 63;
            text.push(if digit > chunk.len() { '=' } else { DIGITS[value] as char });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_has_the_vectors_of_rfc_4648() {
        for (text, want) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(text.as_bytes()), want);
        }
    }

    #[test]
    fn a_png_holds_its_lines_and_sums() {
        use std::io::Read;

        let lines = [0, 1, 2, 3, 0, 4, 5, 6];
        let png = encode(3, 2, 1, &lines).unwrap();
        assert_eq!(&png[..8], b"\x89PNG\r\n\x1a\n");
        let (mut rest, mut names, mut packed) = (&png[8..], Vec::new(), Vec::new());
        while !rest.is_empty() {
            let len = u32::from_be_bytes(rest[..4].try_into().unwrap()) as usize;
            let (name, body) = (&rest[4..8], &rest[8..8 + len]);
            let sum = u32::from_be_bytes(rest[8 + len..12 + len].try_into().unwrap());
            assert_eq!(crc32fast::hash(&rest[4..8 + len]), sum);
            names.push(name);
            if name == b"IDAT" {
                packed = body.to_vec();
            }
            rest = &rest[12 + len..];
        }
        assert_eq!(names, [b"IHDR", b"IDAT", b"IEND"]);
        let mut unpacked = Vec::new();
        flate2::read::ZlibDecoder::new(&packed[..]).read_to_end(&mut unpacked).unwrap();
        assert_eq!(unpacked, lines);
    }
}

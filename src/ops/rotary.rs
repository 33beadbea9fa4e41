//! Rotary position embedding: pairs of a head's elements turned by angles proportional to the position.
//!
//! Pairs are (i, i + D/2), "half-split", as in GPT-NeoX and Llama; pair i turns by position · θ^(−2i/D). Cosines and sines are
//! made once on the host in f64 and rounded: at position 100,000 the product in f32 would be off by 1/256 of a radian.
//! A fused query-key-value tensor needs one pass: its leading heads are turned, the rest (the values) copied.

#![forbid(unsafe_code)]

use std::ops::RangeInclusive;

use super::reduce::{float_only, packed};
use super::{Arg, Case, Cases, Op, Plan, Tolerance, Values, run1};
use crate::cpu::par;
use crate::cpu::reduce::GRAIN;
use crate::cpu::simd::vectorize;
use crate::device::Stream;
use crate::device::kernels::rotary as kernels;
use crate::device::launch::{Strides, narrow};
use crate::dtype::{Float, Real};
use crate::tensor::{BackwardCx, Meta, Mode, Out, Saves, Tensor, View};
use crate::{DType, Device, Error, Result, Shape, dispatch};

super::family!(Rotary);

/// The cosines and sines that [`Tensor::rotary_embedding`] turns by: `[positions, 2, width / 2]` in f32, cosines first.
#[derive(Clone, Debug)]
pub struct RotaryTable {
    tensor: Tensor,
}

impl RotaryTable {
    /// The table of positions `0..positions` for heads of `width` elements; pair i has the frequency theta^(−2i / width)
    /// (`theta` is 10,000 in most models).
    ///
    /// # Errors
    /// If `width` is odd, or `theta` is not positive and finite.
    pub fn new(positions: usize, width: usize, theta: f64, device: Device) -> Result<RotaryTable> {
        if !width.is_multiple_of(2) {
            return Err(Error::argument(format!("a head's width must be even to be turned, found {width}"))
                .with_op(Rotary::NAME));
        }
        if !(theta > 0.0 && theta.is_finite()) {
            return Err(Error::argument(format!("theta must be positive and finite, found {theta}"))
                .with_op(Rotary::NAME));
        }
        let (half, shape) = (width / 2, Shape::new(&[positions, 2, width / 2])?);
        let frequencies: Vec<f64> = (0..half).map(|i| theta.powf(-2.0 * i as f64 / width as f64)).collect();
        let mut values = vec![0f32; shape.numel()];
        for (position, row) in values.chunks_exact_mut(width.max(1)).enumerate() {
            let (cosines, sines) = row.split_at_mut(half);
            for ((c, s), frequency) in cosines.iter_mut().zip(sines).zip(&frequencies) {
                let (sine, cosine) = (position as f64 * frequency).sin_cos();
                (*c, *s) = (cosine as f32, sine as f32);
            }
        }
        Ok(RotaryTable { tensor: Tensor::from_slice(&values, shape, device)? })
    }

    /// The values, for [`Tensor::rotary_embedding`].
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// How many positions there are.
    pub fn positions(&self) -> usize {
        self.tensor.shape()[0]
    }
}

/// x `[B, T, H, D]` with the first `heads` of H turned by a table `[positions, 2, D/2]`: (p, q) becomes
/// (p cos − q sin, q cos + p sin). Gradient: the same with the sines negated.
#[derive(Clone, Copy, Debug)]
pub struct Rotary {
    /// How many of the leading heads are turned.
    pub heads: usize,
    /// The position of row 0.
    pub offset: usize,
    /// Whether to turn back.
    pub inverse: bool,
}

impl Op for Rotary {
    const NAME: &'static str = "rotary_embedding";
    const INPUTS: RangeInclusive<usize> = 2..=2;
    const ACCUMULATES: bool = true;

    fn saves(&self, needs: &[bool]) -> Saves {
        if needs[0] { Saves::inputs(&[1]) } else { Saves::NONE }
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let (x, table) = (inputs[0], inputs[1]);
        float_only(Self::NAME, x.dtype)?;
        if table.dtype != DType::F32 {
            return Err(Error::dtype(Self::NAME, format!("the table must be f32, found {}", table.dtype))
                .with_help("make it by RotaryTable::new"));
        }
        let &[_, length, all, width] = &x.shape[..] else {
            return Err(Error::shape(
                Self::NAME,
                format!("needs [batch, length, heads, width], found {}", x.shape),
            ));
        };
        if !width.is_multiple_of(2) || table.shape.rank() != 3 || table.shape[1..] != [2, width / 2] {
            let message = format!("a table of {} does not fit heads of width {width}", table.shape);
            return Err(Error::shape(Self::NAME, message)
                .with_help("it must be [positions, 2, width / 2], of an even width"));
        }
        if self.heads > all {
            return Err(Error::shape(
                Self::NAME,
                format!("{} heads to turn of {all} in {}", self.heads, x.shape),
            ));
        }
        if self.offset.checked_add(length).is_none_or(|end| end > table.shape[0]) {
            let message = format!(
                "positions {} to {} of a table of {}",
                self.offset,
                self.offset.saturating_add(length),
                table.shape[0]
            );
            return Err(Error::shape(Self::NAME, message));
        }
        Ok(Plan::one(x))
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        dispatch!(float inputs[0].dtype(), T => self.turn::<T>(inputs[0], inputs[1], &mut outputs[0]),
            else float_only(Self::NAME, inputs[0].dtype()))
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let (x, shape) = (inputs[0], inputs[0].shape());
        if shape.numel() == 0 {
            return Ok(());
        }
        let [batch, length, all, width] = [shape[0], shape[1], shape[2], shape[3]];
        let (half, strides) = (width / 2, &x.layout().strides);
        let table = stream.contiguous(&inputs[1])?;
        let table = table.src().part((self.offset * width) as u64, (length * width) as u64);
        let add = u32::from(outputs[0].mode() == Mode::Accumulate);
        let (x, y) = (x.src(), outputs[0].dst());
        let vector = 16 / x.dtype().size();
        let aligned = [x.address(), y.address(), table.address()].iter().all(|a| a.is_multiple_of(16));
        let steps = strides[..3].iter().all(|s| s.is_multiple_of(vector));
        let wide = aligned && steps && strides[3] == 1 && half.is_multiple_of(vector);
        let (tokens, groups) = (batch * length, all.div_ceil(4));
        let work = tokens * groups * (if wide { half / vector } else { half });
        kernels::Rotary {
            wide: wide.into(),
            x,
            table,
            y,
            xs: Strides::of(strides),
            tokens: tokens as u64,
            length: narrow("a sequence", length)?,
            all: narrow("a number of heads", all)?,
            groups: groups as u32,
            heads: self.heads as u32,
            half: narrow("a head's width", half)?,
            work: work as u64,
            sign: if self.inverse { -1.0 } else { 1.0 },
            add,
        }
        .launch(stream)
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        let Some(dy) = dys[0].as_ref().filter(|_| cx.needs(0)) else { return Ok(()) };
        let table = cx.input(1)?;
        cx.run(Rotary { inverse: !self.inverse, ..*self }, &[dy, &table], &[0])
    }

    fn cases() -> Cases<Self> {
        // Shape, heads turned, offset, positions.
        let list: [(&[usize; 4], usize, usize, usize); 10] = [
            (&[1, 1, 1, 2], 1, 0, 1),
            (&[2, 3, 5, 8], 3, 2, 6),
            (&[1, 3, 9, 16], 9, 0, 3),
            (&[2, 5, 3, 6], 2, 1, 6),
            (&[1, 3, 2, 64], 1, 0, 4),
            (&[1, 130, 1, 4], 1, 3, 140),
            (&[1, 2, 3, 4], 0, 0, 2),
            (&[0, 3, 2, 4], 1, 0, 3),
            (&[1, 0, 2, 4], 1, 3, 3),
            (&[2, 2, 1, 0], 1, 0, 2),
        ];
        let case =
            |(k, &(shape, heads, offset, positions)): (usize, &(&[usize; 4], usize, usize, usize))| Case {
                op: Rotary { heads, offset, inverse: k % 2 == 1 },
                inputs: vec![
                    Arg::new(shape, Values::Normal(1.0)),
                    Arg::typed(&[positions, 2, shape[3] / 2], Values::Uniform(-1.0, 1.0), DType::F32),
                ],
            };
        let tolerance = Tolerance::Sum(2.0, "two products and their sum");
        Cases { dtypes: &DType::FLOATS, tolerance, list: list.iter().enumerate().map(case).collect() }
    }
}

impl Rotary {
    fn turn<T: Float>(&self, x: View<'_>, table: View<'_>, out: &mut Out<'_>) -> Result<()> {
        let (shape, strides) = (x.shape(), x.layout().strides);
        if shape.numel() == 0 {
            return Ok(());
        }
        let [_, length, all, width] = [shape[0], shape[1], shape[2], shape[3]];
        let (half, add, mut copy) = (width / 2, out.mode() == Mode::Accumulate, None);
        let table = &packed::<f32>(&table, &mut copy)?[self.offset * width..];
        let (x, sign) = (x.data::<T>(), if self.inverse { -1f32 } else { 1.0 });
        let tokens = (GRAIN / (all * width)).max(1);
        par::for_each_chunk_mut(out.slice::<T>(), tokens * all * width, |task, out| {
            let mut gathered = vec![T::default(); if strides[3] == 1 { 0 } else { width }];
            let mut angles = vec![T::Acc::ZERO; width];
            vectorize(
                #[inline(always)]
                || {
                    for (k, y) in out.chunks_exact_mut(all * width).enumerate() {
                        let (b, t) = ((task * tokens + k) / length, (task * tokens + k) % length);
                        for (i, (to, &from)) in angles.iter_mut().zip(&table[t * width..]).enumerate() {
                            *to = T::Acc::of(f64::from(if i < half { from } else { sign * from }));
                        }
                        for (h, y) in y.chunks_exact_mut(width).enumerate() {
                            let start = b * strides[0] + t * strides[1] + h * strides[2];
                            let x = if strides[3] == 1 {
                                &x[start..start + width]
                            } else {
                                gathered
                                    .iter_mut()
                                    .enumerate()
                                    .for_each(|(i, g)| *g = x[start + i * strides[3]]);
                                &gathered[..]
                            };
                            match (h < self.heads, add) {
                                (true, false) => turn_head(x, &angles, y, |_, v| v),
                                (true, true) => turn_head(x, &angles, y, |old, v| old + v),
                                (false, false) => y.copy_from_slice(x),
                                (false, true) => y
                                    .iter_mut()
                                    .zip(x)
                                    .for_each(|(y, x)| *y = T::from_acc(y.to_acc() + x.to_acc())),
                            }
                        }
                    }
                },
            );
        });
        Ok(())
    }
}

/// Turns one head; `angles`: its cosines, then its sines.
#[inline(always)]
fn turn_head<T: Float>(x: &[T], angles: &[T::Acc], y: &mut [T], put: impl Fn(T::Acc, T::Acc) -> T::Acc) {
    let half = x.len() / 2;
    let ((p, q), (cosines, sines)) = (x.split_at(half), angles.split_at(half));
    let (u, v) = y.split_at_mut(half);
    let (q, cosines, sines, v) = (&q[..half], &cosines[..half], &sines[..half], &mut v[..half]);
    for i in 0..half {
        let (a, b) = (p[i].to_acc(), q[i].to_acc());
        u[i] = T::from_acc(put(u[i].to_acc(), a * cosines[i] - b * sines[i]));
        v[i] = T::from_acc(put(v[i].to_acc(), b * cosines[i] + a * sines[i]));
    }
}

impl Tensor {
    /// Rotary position embedding of `[batch, length, heads, width]`: the leading `heads` heads are turned, the rest copied.
    ///
    /// Elements i and i + width/2 of a head are a pair ("half-split", as in GPT-NeoX and Llama), turned by position ·
    /// theta^(−2i / width); row t has position `offset` + t. `table` is [`RotaryTable::tensor`]. Of a fused
    /// query-key-value tensor give the number of query and key heads: the values are copied.
    ///
    /// # Errors
    /// If the shape is not of rank 4, the table of another width or type, or too short for `offset` + length.
    #[track_caller]
    pub fn rotary_embedding(&self, table: &Tensor, heads: usize, offset: usize) -> Result<Tensor> {
        run1(Rotary { heads, offset, inverse: false }, &[self, table])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn the_table_is_exact_at_far_positions() {
        let table = RotaryTable::new(100_001, 4, 10_000.0, Device::Cpu).unwrap();
        let row = table.tensor().narrow(0, 100_000, 1).unwrap().to_f64_vec().unwrap();
        // cos and sin of 100,000 and of 1,000, to 9 digits.
        let want = [-0.999360807, 0.562379076, 0.035748798, 0.826879541];
        row.iter().zip(want).for_each(|(got, want)| assert!((got - want).abs() < 1e-7, "{got} {want}"));
    }

    #[test]
    fn products_of_turned_vectors_depend_on_the_distance_alone() {
        let table = RotaryTable::new(64, 8, 10_000.0, Device::Cpu).unwrap();
        let of = |seed: f32, offset: usize| {
            let values: Vec<f32> = (0..8).map(|i| (i as f32 * seed).sin()).collect();
            let x = Tensor::from_slice(&values, [1, 1, 1, 8], Device::Cpu).unwrap();
            x.rotary_embedding(table.tensor(), 1, offset).unwrap().to_f64_vec().unwrap()
        };
        let dot = |a: usize, b: usize| -> f64 { of(1.7, a).iter().zip(of(0.6, b)).map(|(x, y)| x * y).sum() };
        assert!((dot(5, 2) - dot(60, 57)).abs() < 1e-6);
        assert!((dot(5, 2) - dot(2, 5)).abs() > 1e-2);
        // Position 0 turns nothing.
        assert_eq!(of(1.7, 0)[3], f64::from((3.0 * 1.7f32).sin()));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let table = RotaryTable::new(4, 6, 10_000.0, Device::Cpu).unwrap();
        let x = |shape: [usize; 4]| Tensor::zeros(shape, DType::F32, Device::Cpu).unwrap();
        let kind = |r: Result<Tensor>| r.unwrap_err().kind();
        assert_eq!(kind(x([1, 5, 2, 6]).rotary_embedding(table.tensor(), 2, 0)), ErrorKind::Shape);
        assert_eq!(kind(x([1, 2, 2, 6]).rotary_embedding(table.tensor(), 2, usize::MAX)), ErrorKind::Shape);
        assert_eq!(kind(x([1, 2, 2, 6]).rotary_embedding(table.tensor(), 3, 0)), ErrorKind::Shape);
        assert_eq!(kind(x([1, 2, 2, 7]).rotary_embedding(table.tensor(), 2, 0)), ErrorKind::Shape);
        let wide = table.tensor().to_dtype(DType::F64).unwrap();
        assert_eq!(kind(x([1, 2, 2, 6]).rotary_embedding(&wide, 2, 0)), ErrorKind::DType);
        assert_eq!(RotaryTable::new(4, 5, 1e4, Device::Cpu).unwrap_err().kind(), ErrorKind::Argument);
        assert_eq!(RotaryTable::new(4, 6, 0.0, Device::Cpu).unwrap_err().kind(), ErrorKind::Argument);
    }
}

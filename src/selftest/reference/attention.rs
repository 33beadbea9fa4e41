//! Attention and its gradients from their definition, score by score.

#![forbid(unsafe_code)]

use std::any::Any;

use crate::{DType, ops};

use super::dd::{Dd, dd};
use super::{Expected, Specials};
use crate::selftest::Value;

/// The place of element 0 of (batch, head, position).
type Place = Box<dyn Fn(usize, usize, usize) -> usize>;

/// One attention: sizes, where the vectors lie, who sees whom.
struct Problem<'a> {
    /// Buffers of queries, keys and values.
    from: [&'a Value; 3],
    /// Where vectors lie in each of them.
    place: [Place; 3],
    batch: usize,
    heads: usize,
    kv_heads: usize,
    rows: [usize; 2],
    width: usize,
    scale: f64,
    sees: Box<dyn Fn(usize, usize, usize) -> bool + 'a>,
}

/// What one query gives: for each key that it sees its number, the score, and how much rounding moves that.
struct Score {
    key: usize,
    score: Dd,
    size: Dd,
}

impl Problem<'_> {
    fn get(&self, which: usize, b: usize, h: usize, t: usize, d: usize) -> Dd {
        let h = if which == 0 { h } else { h * self.kv_heads / self.heads };
        dd(self.from[which].data[self.place[which](b, h, t) + d])
    }

    /// Σ and Σ| | of products of a vector with `other`.
    fn dot(&self, which: usize, (b, h, t): (usize, usize, usize), other: impl Fn(usize) -> Dd) -> (Dd, Dd) {
        let products = || (0..self.width).map(|d| self.get(which, b, h, t, d) * other(d));
        (products().sum(), products().map(Dd::abs).sum())
    }

    fn scores(&self, b: usize, h: usize, i: usize) -> Vec<Score> {
        let of = |key: usize| {
            let (sum, size) = self.dot(1, (b, h, key), |d| self.get(0, b, h, i, d));
            Score { key, score: sum * dd(self.scale), size: size * dd(self.scale.abs()) }
        };
        (0..self.rows[1]).filter(|&j| (self.sees)(b, i, j)).map(of).collect()
    }

    /// The vectors, in the order batch row, query, head, and the logarithms, in the order batch row, head, query.
    fn forward(&self, shape: &[usize], statistics: &[usize]) -> Vec<Expected> {
        let dtype = self.from[0].dtype;
        let mut o = vec![(Dd::ZERO, Dd::ZERO); shape.iter().product()];
        let mut lse = Vec::new();
        // Kernels for 16-bit types round the weights to the type before they multiply; in units of the tolerance, 16 · 2⁻²⁴.
        let own = if dtype.size() == 2 { dtype.unit_roundoff() * 2f64.powi(20) } else { 0.0 };
        for (b, h) in (0..self.batch).flat_map(|b| (0..self.heads).map(move |h| (b, h))) {
            for i in 0..self.rows[0] {
                let scores = self.scores(b, h, i);
                if scores.is_empty() {
                    lse.push((dd(f64::NEG_INFINITY), Dd::ZERO));
                    continue;
                }
                let max = scores.iter().fold(dd(f64::NEG_INFINITY), |m, s| m.max(s.score));
                let sum: Dd = scores.iter().map(|s| (s.score - max).exp()).sum();
                let weights: Vec<Dd> = scores.iter().map(|s| (s.score - max).exp() / sum).collect();
                let moved: Dd = weights.iter().zip(&scores).map(|(&p, s)| p * (s.size + Dd::ONE)).sum();
                let log = max + sum.ln();
                lse.push((log, moved + max.abs() + log.abs() + Dd::ONE));
                for d in 0..self.width {
                    let terms =
                        || scores.iter().zip(&weights).map(|(s, &p)| (s, p * self.get(2, b, h, s.key, d)));
                    let rounding = |(s, t): (&Score, Dd)| t.abs() * (s.size + moved + dd(1.0 + own));
                    let at = ((b * self.rows[0] + i) * self.heads + h) * self.width + d;
                    o[at] = (terms().map(|(_, t)| t).sum(), terms().map(rounding).sum());
                }
            }
        }
        let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
        vec![Expected::scaled(shape, dtype, o), Expected::scaled(statistics, wide, lse)]
    }

    /// dq, dk and dv, in the places of q, k and v, from o, lse and dy.
    fn backward(&self, [o, lse, dy]: [&Value; 3], out: &mut [Vec<(Dd, Dd)>; 3], one: bool) {
        let scale = dd(self.scale);
        for (b, h) in (0..self.batch).flat_map(|b| (0..self.heads).map(move |h| (b, h))) {
            let kv = h * self.kv_heads / self.heads;
            for i in 0..self.rows[0] {
                let row = ((b * self.rows[0] + i) * self.heads + h) * self.width;
                let log = dd(lse.data[(b * self.heads + h) * self.rows[0] + i]);
                let (dy, o) = (|d: usize| dd(dy.data[row + d]), |d: usize| dd(o.data[row + d]));
                let delta: Dd = (0..self.width).map(|d| dy(d) * o(d)).sum();
                let delta_size: Dd = (0..self.width).map(|d| (dy(d) * o(d)).abs()).sum();
                for s in self.scores(b, h, i) {
                    let p = (s.score - log).exp();
                    let loose = s.size + s.score.abs() + log.abs() + Dd::ONE;
                    let (dp, dp_size) = self.dot(2, (b, h, s.key), dy);
                    let (ds, ds_size) = (p * (dp - delta), p * (dp_size + delta_size) * loose);
                    for d in 0..self.width {
                        let (q, k) = (self.get(0, b, h, i, d) * scale, self.get(1, b, h, s.key, d) * scale);
                        let places = [
                            (0, self.place[0](b, h, i), ds * k, ds_size * k.abs()),
                            (1, self.place[1](b, kv, s.key), ds * q, ds_size * q.abs()),
                            (2, self.place[2](b, kv, s.key), p * dy(d), p * dy(d).abs() * loose),
                        ];
                        for (which, place, v, size) in places {
                            let slot = &mut out[if one { 0 } else { which }][place + d];
                            *slot = (slot.0 + v, slot.1 + size);
                        }
                    }
                }
            }
        }
    }
}

fn apart<'a>(inputs: &'a [Value], lengths: Option<&'a Value>, causal: bool, scale: f64) -> Problem<'a> {
    let (q, k) = (&inputs[0].shape, &inputs[1].shape);
    let place = |s: &[usize]| -> Box<dyn Fn(usize, usize, usize) -> usize> {
        let (h, t, d) = (s[1], s[2], s[3]);
        Box::new(move |b, head, row| ((b * h + head) * t + row) * d)
    };
    let (t, s) = (q[2], k[2]);
    Problem {
        from: [&inputs[0], &inputs[1], &inputs[2]],
        place: [place(q), place(k), place(k)],
        batch: q[0],
        heads: q[1],
        kv_heads: k[1],
        rows: [t, s],
        width: q[3],
        scale,
        sees: Box::new(move |b, i, j| {
            lengths.is_none_or(|l| (j as f64) < l.data[b]) && (!causal || j + t <= i + s)
        }),
    }
}

/// `qkv`: [batch, rows, heads + 2 kv_heads, width], or without the batch.
fn packed<'a>(
    qkv: &'a Value,
    (heads, kv_heads): (usize, usize),
    scale: f64,
    sees: impl Fn(usize, usize, usize) -> bool + 'a,
) -> Problem<'a> {
    let rank = qkv.shape.len();
    let (rows, all, width) = (qkv.shape[rank - 3], qkv.shape[rank - 2], qkv.shape[rank - 1]);
    let place = |first: usize| -> Box<dyn Fn(usize, usize, usize) -> usize> {
        Box::new(move |b, head, row| ((b * rows + row) * all + first + head) * width)
    };
    Problem {
        from: [qkv; 3],
        place: [place(0), place(heads), place(heads + kv_heads)],
        batch: if rank == 4 { qkv.shape[0] } else { 1 },
        heads,
        kv_heads,
        rows: [rows; 2],
        width,
        scale,
        sees: Box::new(sees),
    }
}

fn zeros(v: &Value) -> Vec<(Dd, Dd)> {
    vec![(Dd::ZERO, Dd::ZERO); v.numel()]
}

/// Whether two rows lie in one document.
fn together(bounds: &Value, i: usize, j: usize) -> bool {
    let document = |row: usize| bounds.data.iter().filter(|&&b| b <= row as f64).count();
    document(i) == document(j)
}

/// The gradient of a packed buffer.
fn packed_gradient(problem: &Problem<'_>, inputs: &[Value]) -> Vec<Expected> {
    let mut out = [zeros(&inputs[0]), vec![], vec![]];
    problem.backward([&inputs[1], &inputs[2], &inputs[3]], &mut out, true);
    let [out, ..] = out;
    vec![Expected::scaled(&inputs[0].shape, inputs[0].dtype, out)]
}

pub fn expected(op: &dyn Any, inputs: &[Value]) -> Option<Vec<Expected>> {
    if let Some(op) = op.downcast_ref::<ops::Attention>() {
        let p = apart(inputs, inputs.get(3), op.causal, op.scale);
        return Some(p.forward(&[p.batch, p.rows[0], p.heads, p.width], &[p.batch, p.heads, p.rows[0]]));
    }
    if let Some(op) = op.downcast_ref::<ops::AttentionBackward>() {
        let mut out = [zeros(&inputs[0]), zeros(&inputs[1]), zeros(&inputs[2])];
        let p = apart(inputs, inputs.get(6), op.causal, op.scale);
        p.backward([&inputs[3], &inputs[4], &inputs[5]], &mut out, false);
        let each = out.into_iter().zip(inputs);
        return Some(each.map(|(out, v)| Expected::scaled(&v.shape, v.dtype, out)).collect());
    }
    let visible = |lengths: Option<Value>, causal: bool| {
        move |b: usize, i: usize, j: usize| {
            lengths.as_ref().is_none_or(|l| (j as f64) < l.data[b]) && (!causal || j <= i)
        }
    };
    if let Some(op) = op.downcast_ref::<ops::PackedAttention>() {
        let sees = visible(inputs.get(1).cloned(), op.causal);
        let p = packed(&inputs[0], (op.heads, op.kv_heads), op.scale, sees);
        return Some(p.forward(&[p.batch, p.rows[0], p.heads, p.width], &[p.batch, p.heads, p.rows[0]]));
    }
    if let Some(op) = op.downcast_ref::<ops::PackedAttentionBackward>() {
        let sees = visible(inputs.get(4).cloned(), op.causal);
        return Some(packed_gradient(&packed(&inputs[0], (op.heads, op.kv_heads), op.scale, sees), inputs));
    }
    if let Some(op) = op.downcast_ref::<ops::SegmentedAttention>() {
        let sees = |_: usize, i: usize, j: usize| together(&inputs[1], i, j) && (!op.causal || j <= i);
        let p = packed(&inputs[0], (op.heads, op.kv_heads), op.scale, sees);
        return Some(p.forward(&[p.rows[0], p.heads, p.width], &[p.heads, p.rows[0]]));
    }
    let op = op.downcast_ref::<ops::SegmentedAttentionBackward>()?;
    let sees = |_: usize, i: usize, j: usize| together(&inputs[4], i, j) && (!op.causal || j <= i);
    Some(packed_gradient(&packed(&inputs[0], (op.heads, op.kv_heads), op.scale, sees), inputs))
}

/// A NaN in a query is one in its results, one in a key in those of the queries that see it. (One in a value may reach its
/// neighbours too: weights of 0 are multiplied with it.)
pub fn specials(op: &dyn Any, input: usize) -> Option<Specials> {
    (op.is::<ops::Attention>() && input < 2).then_some(Specials::NotInfinite)
}

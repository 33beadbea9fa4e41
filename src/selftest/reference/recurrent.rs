//! Recurrent networks from their equations, step by step, with a running bound of the rounding error.
//!
//! Every number comes with the sum of what the roundings on the way to it contribute, in units of the roundoff of the type that
//! is computed in: each operation adds its own result's magnitude, and passes on what its operands bring by its slope in them.
//! States and sums' gradients that are stored in 16 bits before they are used again bring a rounding of that type.

#![forbid(unsafe_code)]

use std::any::Any;

use crate::DType;
use crate::cpu::activation::Activation;
use crate::ops::{self, Direction};

use super::dd::{Dd, dd};
use super::{Expected, Specials, round};
use crate::selftest::Value;

/// A number and the bound of its error.
#[derive(Clone, Copy)]
struct Num {
    v: Dd,
    e: Dd,
}

impl Num {
    const ZERO: Num = Num { v: Dd::ZERO, e: Dd::ZERO };

    /// An input: exact.
    fn of(v: f64) -> Num {
        Num { v: dd(v), e: Dd::ZERO }
    }

    /// A result with what its operands brought: its own rounding comes on top. Infinities are exact.
    fn rounded(v: Dd, brought: Dd) -> Num {
        let own = v.abs() + dd(round::underflow(DType::F32));
        Num { v, e: if v.is_finite() { brought + own } else { Dd::ZERO } }
    }

    fn add(self, other: Num) -> Num {
        Num::rounded(self.v + other.v, self.e + other.e)
    }

    fn sub(self, other: Num) -> Num {
        Num::rounded(self.v - other.v, self.e + other.e)
    }

    fn mul(self, other: Num) -> Num {
        Num::rounded(self.v * other.v, self.e * other.v.abs() + other.e * self.v.abs())
    }

    /// 1 − x.
    fn complement(self) -> Num {
        Num { v: Dd::ONE, e: Dd::ZERO }.sub(self)
    }

    fn sigmoid(self) -> Num {
        let y = self.v.sigmoid();
        Num::rounded(y, self.e * dd(0.25) + y.abs() * dd(2.0))
    }

    fn tanh(self) -> Num {
        let y = self.v.tanh();
        Num::rounded(y, self.e + y.abs() * dd(2.0))
    }

    /// As it is after it was stored in `dtype`.
    fn stored(self, dtype: DType) -> Num {
        let ratio = dtype.unit_roundoff() / DType::F32.unit_roundoff();
        let rounds = dtype.size() == 2 && self.v.is_finite();
        if rounds { Num { e: self.e + self.v.abs() * dd(ratio), ..self } } else { self }
    }
}

/// Σ of products: every term counts with its magnitude.
fn dot(terms: impl Iterator<Item = (Num, Num)>) -> Num {
    terms.fold(Num::ZERO, |sum, (a, b)| {
        let p = a.mul(b);
        Num { v: sum.v + p.v, e: sum.e + p.e }
    })
}

fn expected_of(shape: &[usize], dtype: DType, values: Vec<Num>) -> Expected {
    Expected::scaled(shape, dtype, values.into_iter().map(|n| (n.v, n.e)).collect())
}

/// A pass over a sequence; a cell is one of one step whose sums are given.
struct Pass {
    dtype: DType,
    steps: usize,
    batch: usize,
    hidden: usize,
    direction: Direction,
}

impl Pass {
    fn place(&self, k: usize) -> usize {
        if self.direction == Direction::Reverse { self.steps - 1 - k } else { k }
    }

    /// Element j of row b at step t of a sequence of `width` numbers a row.
    fn at(&self, data: &Value, t: usize, b: usize, width: usize, j: usize) -> Num {
        Num::of(data.data[(t * self.batch + b) * width + j])
    }

    /// Row b of a state.
    fn row(&self, data: &Value, b: usize) -> Vec<Num> {
        (0..self.hidden).map(|j| self.at(data, 0, b, self.hidden, j)).collect()
    }

    fn shape(&self, width: usize) -> Vec<usize> {
        vec![self.steps, self.batch, width]
    }

    /// Puts what `row(b)` says at [t, b, ..] for all steps t, and returns the whole.
    fn gather(&self, width: usize, rows: &[Vec<Vec<Num>>]) -> Expected {
        let all = (0..self.steps).flat_map(|t| rows.iter().flat_map(move |row| row[t].clone()));
        expected_of(&self.shape(width), self.dtype, all.collect())
    }

    fn states(&self, rows: Vec<Vec<Num>>) -> Expected {
        expected_of(&[self.batch, self.hidden], self.dtype, rows.concat())
    }
}

/// What comes from the state: the state times the weights, and a bias; or it is given.
enum Recurrent<'a> {
    Weights(&'a Value, Option<&'a Value>),
    Given(&'a Value),
}

impl Recurrent<'_> {
    /// Sum number j of row b.
    fn sum(&self, pass: &Pass, gates: usize, b: usize, j: usize, state: &[Num]) -> Num {
        match self {
            Recurrent::Given(given) => pass.at(given, 0, b, gates * pass.hidden, j),
            Recurrent::Weights(w, bias) => {
                let n = pass.hidden;
                let product = dot((0..n).map(|k| (state[k], Num::of(w.data[j * n + k]))));
                bias.map_or(product, |bias| product.add(Num::of(bias.data[j])))
            }
        }
    }
}

/// y, last c, gates, cell states.
fn lstm(pass: &Pass, xw: &Value, h0: Option<&Value>, c0: &Value, from: &Recurrent<'_>) -> Vec<Expected> {
    let n = pass.hidden;
    let (mut ys, mut gates, mut cells, mut last) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for b in 0..pass.batch {
        let mut h = h0.map_or(vec![Num::ZERO; n], |h0| pass.row(h0, b));
        let mut c = pass.row(c0, b);
        let mut row =
            [vec![Vec::new(); pass.steps], vec![Vec::new(); pass.steps], vec![Vec::new(); pass.steps]];
        for k in 0..pass.steps {
            let t = pass.place(k);
            let sum = |j: usize| pass.at(xw, t, b, 4 * n, j).add(from.sum(pass, 4, b, j, &h));
            let act: Vec<Num> =
                (0..4 * n).map(|j| if j / n == 2 { sum(j).tanh() } else { sum(j).sigmoid() }).collect();
            c = (0..n).map(|j| act[n + j].mul(c[j]).add(act[j].mul(act[2 * n + j]))).collect();
            let new: Vec<Num> = (0..n).map(|j| act[3 * n + j].mul(c[j].tanh())).collect();
            h = new.iter().map(|v| v.stored(pass.dtype)).collect();
            row[0][t] = new;
            row[1][t] = act;
            row[2][t] = c.clone();
        }
        let [y, g, s] = row;
        ys.push(y);
        gates.push(g);
        cells.push(s);
        last.push(c);
    }
    vec![pass.gather(n, &ys), pass.states(last), pass.gather(4 * n, &gates), pass.gather(n, &cells)]
}

/// The tensors that an LSTM's backward reads.
struct LstmTape<'a> {
    dy: &'a Value,
    last: &'a Value,
    gates: &'a Value,
    cells: &'a Value,
    c0: &'a Value,
    weights: Option<&'a Value>,
}

/// The gradients of the sums, of h0, of c0.
fn lstm_backward(pass: &Pass, tape: &LstmTape<'_>) -> Vec<Expected> {
    let n = pass.hidden;
    let (mut sums, mut dh0, mut dc0) = (Vec::new(), Vec::new(), Vec::new());
    for b in 0..pass.batch {
        let (mut dh, mut dc) = (vec![Num::ZERO; n], pass.row(tape.last, b));
        let mut row = vec![Vec::new(); pass.steps];
        for k in (0..pass.steps).rev() {
            let t = pass.place(k);
            let mut ds = vec![Num::ZERO; 4 * n];
            for j in 0..n {
                let [i, f, g, o] = [0, 1, 2, 3].map(|q| pass.at(tape.gates, t, b, 4 * n, q * n + j));
                let tanh = pass.at(tape.cells, t, b, n, j).tanh();
                let before = match k {
                    0 => pass.at(tape.c0, 0, b, n, j),
                    _ => pass.at(tape.cells, pass.place(k - 1), b, n, j),
                };
                let d = dh[j].add(pass.at(tape.dy, t, b, n, j));
                // c' reaches the loss by itself and through h' = o tanh c'.
                let c = dc[j].add(d.mul(o).mul(tanh.mul(tanh).complement()));
                let slope = |s: Num| s.mul(s.complement());
                ds[j] = c.mul(g).mul(slope(i));
                ds[n + j] = c.mul(before).mul(slope(f));
                ds[2 * n + j] = c.mul(i).mul(g.mul(g).complement());
                ds[3 * n + j] = d.mul(tanh).mul(slope(o));
                dc[j] = c.mul(f);
            }
            if let Some(w) = tape.weights {
                dh = through(pass, w, &ds);
            }
            row[t] = ds;
        }
        sums.push(row);
        dh0.push(dh);
        dc0.push(dc);
    }
    let sums = pass.gather(4 * n, &sums);
    match tape.weights {
        Some(_) => vec![sums, pass.states(dh0), pass.states(dc0)],
        None => vec![sums, pass.states(dc0)],
    }
}

/// The gradient of a state from that of the sums it was multiplied into.
fn through(pass: &Pass, w: &Value, ds: &[Num]) -> Vec<Num> {
    let n = pass.hidden;
    let stored: Vec<Num> = ds.iter().map(|d| d.stored(pass.dtype)).collect();
    (0..n).map(|k| dot((0..ds.len()).map(|j| (stored[j], Num::of(w.data[j * n + k]))))).collect()
}

/// y, and r, z, n and the part of n's sum that comes from the state.
fn gru(pass: &Pass, xw: &Value, h0: &Value, from: &Recurrent<'_>) -> Vec<Expected> {
    let n = pass.hidden;
    let (mut ys, mut kept) = (Vec::new(), Vec::new());
    for b in 0..pass.batch {
        let mut h = pass.row(h0, b);
        let (mut y, mut all) = (vec![Vec::new(); pass.steps], vec![Vec::new(); pass.steps]);
        for k in 0..pass.steps {
            let t = pass.place(k);
            let x = |j: usize| pass.at(xw, t, b, 3 * n, j);
            let s = |j: usize| from.sum(pass, 3, b, j, &h);
            let r: Vec<Num> = (0..n).map(|j| x(j).add(s(j)).sigmoid()).collect();
            let z: Vec<Num> = (0..n).map(|j| x(n + j).add(s(n + j)).sigmoid()).collect();
            let bn: Vec<Num> = (0..n).map(|j| s(2 * n + j)).collect();
            let new: Vec<Num> = (0..n).map(|j| x(2 * n + j).add(r[j].mul(bn[j])).tanh()).collect();
            let next: Vec<Num> = (0..n).map(|j| z[j].complement().mul(new[j]).add(z[j].mul(h[j]))).collect();
            h = next.iter().map(|v| v.stored(pass.dtype)).collect();
            y[t] = next;
            all[t] = [r, z, new, bn].concat();
        }
        ys.push(y);
        kept.push(all);
    }
    vec![pass.gather(n, &ys), pass.gather(4 * n, &kept)]
}

/// The gradients of the sums from the input, of those from the state, of h0.
fn gru_backward(
    pass: &Pass,
    dy: &Value,
    kept: &Value,
    states: [Option<&Value>; 2],
    w: Option<&Value>,
) -> Vec<Expected> {
    let n = pass.hidden;
    let [y, h0] = states;
    let (mut from_x, mut from_h, mut dh0) = (Vec::new(), Vec::new(), Vec::new());
    for b in 0..pass.batch {
        let mut dh = vec![Num::ZERO; n];
        let (mut gx, mut gh) = (vec![Vec::new(); pass.steps], vec![Vec::new(); pass.steps]);
        for k in (0..pass.steps).rev() {
            let t = pass.place(k);
            let (mut dx, mut ds) = (vec![Num::ZERO; 3 * n], vec![Num::ZERO; 3 * n]);
            for j in 0..n {
                let [r, z, new, bn] = [0, 1, 2, 3].map(|q| pass.at(kept, t, b, 4 * n, q * n + j));
                let before = match (k, y, h0) {
                    (1.., Some(y), _) => pass.at(y, pass.place(k - 1), b, n, j),
                    (_, _, Some(h0)) => pass.at(h0, 0, b, n, j),
                    _ => unreachable!("a backward has the states it needs"),
                };
                let d = dh[j].add(pass.at(dy, t, b, n, j));
                let slope = |s: Num| s.mul(s.complement());
                let dn = d.mul(z.complement()).mul(new.mul(new).complement());
                let dz = d.mul(before.sub(new)).mul(slope(z));
                let dr = dn.mul(bn).mul(slope(r));
                for (to, q) in [(dr, 0), (dz, 1)] {
                    (dx[q * n + j], ds[q * n + j]) = (to, to);
                }
                (dx[2 * n + j], ds[2 * n + j]) = (dn, dn.mul(r));
                dh[j] = d.mul(z);
            }
            if let Some(w) = w {
                let more = through(pass, w, &ds);
                dh = dh.iter().zip(more).map(|(a, b)| a.add(b)).collect();
            }
            (gx[t], gh[t]) = (dx, ds);
        }
        from_x.push(gx);
        from_h.push(gh);
        dh0.push(dh);
    }
    vec![pass.gather(3 * n, &from_x), pass.gather(3 * n, &from_h), pass.states(dh0)]
}

fn function(activation: Activation, x: Num) -> Num {
    match activation {
        Activation::Tanh => x.tanh(),
        Activation::Relu if x.v.get() < 0.0 => Num { v: Dd::ZERO, e: x.e },
        _ => x,
    }
}

fn rnn(
    pass: &Pass,
    activation: Activation,
    xw: &Value,
    h0: Option<&Value>,
    from: &Recurrent<'_>,
) -> Vec<Expected> {
    let n = pass.hidden;
    let mut ys = Vec::new();
    for b in 0..pass.batch {
        let mut h = h0.map_or(vec![Num::ZERO; n], |h0| pass.row(h0, b));
        let mut y = vec![Vec::new(); pass.steps];
        for k in 0..pass.steps {
            let t = pass.place(k);
            let sum = |j: usize| pass.at(xw, t, b, n, j).add(from.sum(pass, 1, b, j, &h));
            let next: Vec<Num> = (0..n).map(|j| function(activation, sum(j))).collect();
            h = next.iter().map(|v| v.stored(pass.dtype)).collect();
            y[t] = next;
        }
        ys.push(y);
    }
    vec![pass.gather(n, &ys)]
}

fn rnn_backward(pass: &Pass, activation: Activation, [dy, w, y]: [&Value; 3]) -> Vec<Expected> {
    let n = pass.hidden;
    let (mut sums, mut dh0) = (Vec::new(), Vec::new());
    for b in 0..pass.batch {
        let mut dh = vec![Num::ZERO; n];
        let mut row = vec![Vec::new(); pass.steps];
        for k in (0..pass.steps).rev() {
            let t = pass.place(k);
            let slope = |j: usize, d: Num| {
                let y = pass.at(y, t, b, n, j);
                match activation {
                    // Nothing comes through, not even a NaN; of a NaN everything does, as in PyTorch.
                    Activation::Relu if y.v.get() <= 0.0 => Num::ZERO,
                    Activation::Relu => d,
                    _ => d.mul(y.mul(y).complement()),
                }
            };
            let ds: Vec<Num> = (0..n).map(|j| slope(j, dh[j].add(pass.at(dy, t, b, n, j)))).collect();
            dh = through(pass, w, &ds);
            row[t] = ds;
        }
        sums.push(row);
        dh0.push(dh);
    }
    vec![pass.gather(n, &sums), pass.states(dh0)]
}

pub fn expected(op: &dyn Any, inputs: &[Value]) -> Option<Vec<Expected>> {
    let dtype = inputs.first()?.dtype;
    // By the first tensor of a sequence and the number of states side by side in it.
    let pass = |x: &Value, gates: usize, direction: Direction| {
        let lead = x.shape.len() - 2;
        let steps = if lead == 1 { x.shape[0] } else { 1 };
        Pass { dtype, steps, batch: x.shape[lead], hidden: x.shape[lead + 1] / gates, direction }
    };
    let flat = |mut all: Vec<Expected>, shapes: &[usize]| {
        // A cell has no dimension of steps.
        for &k in shapes {
            all[k].shape.remove(0);
        }
        all
    };
    let i = inputs;
    if op.is::<ops::LstmCell>() {
        let pass = pass(&i[0], 4, Direction::Forward);
        let mut all = lstm(&pass, &i[0], None, &i[2], &Recurrent::Given(&i[1]));
        all.pop();
        return Some(flat(all, &[0, 2]));
    }
    if op.is::<ops::LstmCellBackward>() {
        let pass = pass(&i[0], 1, Direction::Forward);
        let tape = LstmTape { dy: &i[0], last: &i[1], gates: &i[2], c0: &i[3], cells: &i[4], weights: None };
        return Some(flat(lstm_backward(&pass, &tape), &[0]));
    }
    if let Some(op) = op.downcast_ref::<ops::Lstm>() {
        let pass = pass(&i[0], 4, op.direction);
        return Some(lstm(&pass, &i[0], Some(&i[1]), &i[2], &Recurrent::Weights(&i[3], None)));
    }
    if let Some(op) = op.downcast_ref::<ops::LstmBackward>() {
        let tape =
            LstmTape { dy: &i[0], last: &i[1], weights: Some(&i[2]), gates: &i[3], cells: &i[4], c0: &i[5] };
        return Some(lstm_backward(&pass(&i[0], 1, op.direction), &tape));
    }
    if op.is::<ops::GruCell>() {
        let pass = pass(&i[0], 3, Direction::Forward);
        return Some(flat(gru(&pass, &i[0], &i[2], &Recurrent::Given(&i[1])), &[0, 1]));
    }
    if op.is::<ops::GruCellBackward>() {
        let pass = pass(&i[0], 1, Direction::Forward);
        return Some(flat(gru_backward(&pass, &i[0], &i[1], [None, Some(&i[2])], None), &[0, 1]));
    }
    if let Some(op) = op.downcast_ref::<ops::Gru>() {
        let pass = pass(&i[0], 3, op.direction);
        return Some(gru(&pass, &i[0], &i[1], &Recurrent::Weights(&i[2], i.get(3))));
    }
    if let Some(op) = op.downcast_ref::<ops::GruBackward>() {
        let pass = pass(&i[0], 1, op.direction);
        return Some(gru_backward(&pass, &i[0], &i[2], [Some(&i[3]), Some(&i[4])], Some(&i[1])));
    }
    if let Some(op) = op.downcast_ref::<ops::RnnCell>() {
        let pass = pass(&i[0], 1, Direction::Forward);
        return Some(flat(rnn(&pass, op.activation, &i[0], None, &Recurrent::Given(&i[1])), &[0]));
    }
    if let Some(op) = op.downcast_ref::<ops::Rnn>() {
        let pass = pass(&i[0], 1, op.direction);
        return Some(rnn(&pass, op.activation, &i[0], Some(&i[1]), &Recurrent::Weights(&i[2], None)));
    }
    if let Some(op) = op.downcast_ref::<ops::RnnBackward>() {
        let pass = pass(&i[0], 1, op.direction);
        return Some(rnn_backward(&pass, op.activation, [&i[0], &i[1], &i[2]]));
    }
    None
}

/// A NaN reaches all units of its row at later steps (earlier ones, backwards) and no other row. Backwards an infinite weight is
/// left out: what it meets may have vanished where it was stored in 16 bits.
pub fn specials(op: &dyn Any, input: usize) -> Option<Specials> {
    let cell = op.is::<ops::LstmCell>() || op.is::<ops::GruCell>() || op.is::<ops::RnnCell>();
    if cell || op.is::<ops::Lstm>() || op.is::<ops::Gru>() || op.is::<ops::Rnn>() {
        return Some(Specials::NotHuge);
    }
    let cell = op.is::<ops::LstmCellBackward>() || op.is::<ops::GruCellBackward>();
    let weights = match input {
        1 => op.is::<ops::GruBackward>() || op.is::<ops::RnnBackward>(),
        _ => input == 2 && op.is::<ops::LstmBackward>(),
    };
    let sequence = op.is::<ops::LstmBackward>() || op.is::<ops::GruBackward>() || op.is::<ops::RnnBackward>();
    (cell || sequence).then_some(if weights { Specials::NotInfinite } else { Specials::NotSmall })
}

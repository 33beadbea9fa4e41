//! Pooling and resizing of images, element by element from the definitions.

#![forbid(unsafe_code)]

use std::any::Any;

use crate::{DType, ops};

use super::dd::{Dd, dd};
use super::{Expected, Specials};
use crate::selftest::Value;

type Pair = (Dd, Dd);

/// The number of planes, and the height and width of each.
fn planes(shape: &[usize]) -> (usize, [usize; 2]) {
    let rank = shape.len();
    (shape[..rank - 2].iter().product(), [shape[rank - 2], shape[rank - 1]])
}

fn resized(shape: &[usize], image: [usize; 2]) -> Vec<usize> {
    [&shape[..shape.len() - 2], &image].concat()
}

/// The number of windows along a dimension, counted one by one: those that lie within the padded image and, in ceil mode, one
/// more that reaches beyond it, if it starts in the image or before.
fn windows(window: &ops::Window<2>, d: usize, size: usize) -> usize {
    let start = |o: usize| o as i64 * window.stride[d] as i64 - window.padding[d] as i64;
    let span = ((window.kernel[d] - 1) * window.dilation[d] + 1) as i64;
    let mut count = 0;
    while start(count) + span <= (size + window.padding[d]) as i64 {
        count += 1;
    }
    // The end of the padded image must not come before the last whole window ends.
    let unfinished = count == 0 || start(count - 1) + span < (size + window.padding[d]) as i64;
    if window.ceil_mode && unfinished && start(count) < size as i64 {
        count += 1;
    }
    count
}

/// The places along a dimension that window `o` looks at, those outside the image too.
fn places(window: &ops::Window<2>, d: usize, o: usize) -> Vec<i64> {
    let start = o as i64 * window.stride[d] as i64 - window.padding[d] as i64;
    (0..window.kernel[d]).map(|k| start + (k * window.dilation[d]) as i64).collect()
}

fn within(places: Vec<i64>, size: usize) -> Vec<usize> {
    places.into_iter().filter(|&p| (0..size as i64).contains(&p)).map(|p| p as usize).collect()
}

/// For each output of each plane: the elements that make it up, in row-major order.
fn made_of(rows: &[Vec<usize>], columns: &[Vec<usize>], width: usize) -> Vec<Vec<usize>> {
    let mut all = Vec::new();
    for row in rows {
        for column in columns {
            all.push(row.iter().flat_map(|y| column.iter().map(move |x| y * width + x)).collect());
        }
    }
    all
}

fn max_pool(window: &ops::Window<2>, x: &Value) -> Vec<Expected> {
    let (count, size) = planes(&x.shape);
    let out = [windows(window, 0, size[0]), windows(window, 1, size[1])];
    let seen = |d: usize| (0..out[d]).map(|o| within(places(window, d, o), size[d])).collect::<Vec<_>>();
    let sets = made_of(&seen(0), &seen(1), size[1]);
    let (mut values, mut indices) = (Vec::new(), Vec::new());
    for plane in 0..count {
        for set in &sets {
            let value = |i: usize| x.data[plane * size[0] * size[1] + i];
            // The last NaN, else the first of the largest.
            let nan = set.iter().rev().find(|i| value(**i).is_nan());
            let best = set.iter().map(|&i| value(i)).fold(f64::NEG_INFINITY, f64::max);
            let chosen =
                nan.or_else(|| set.iter().find(|i| value(**i) == best)).expect("a window has an element");
            values.push(dd(value(*chosen)));
            indices.push(dd(*chosen as f64));
        }
    }
    let shape = resized(&x.shape, out);
    vec![Expected::of(&shape, x.dtype, values), Expected::of(&shape, DType::I32, indices)]
}

fn max_pool_backward(op: &ops::MaxPool2dBackward, dy: &Value, index: &Value) -> Vec<Expected> {
    let (count, out) = planes(&dy.shape);
    let size = op.input;
    let mut dx: Vec<Pair> = vec![(Dd::ZERO, Dd::ZERO); count * size[0] * size[1]];
    for i in 0..dy.data.len() {
        let (plane, o) = (i / (out[0] * out[1]), i % (out[0] * out[1]));
        let rows = within(places(&op.window, 0, o / out[1]), size[0]);
        let columns = within(places(&op.window, 1, o % out[1]), size[1]);
        let at = index.data[i];
        let member = rows.iter().any(|y| columns.iter().any(|x| (y * size[1] + x) as f64 == at));
        if member {
            let slot = &mut dx[plane * size[0] * size[1] + at as usize];
            *slot = (slot.0 + dd(dy.data[i]), slot.1 + dd(dy.data[i].abs()));
        }
    }
    vec![Expected::scaled(&resized(&dy.shape, size), dy.dtype, dx)]
}

/// For each output along both dimensions: its elements and its part of the divisor.
type Parts = [Vec<(Vec<usize>, usize)>; 2];

fn window_parts(op: &ops::AvgPool2d, size: [usize; 2]) -> Parts {
    [0, 1].map(|d| {
        let part = |o: usize| {
            let all = places(&op.window, d, o);
            let last = (size[d] + op.window.padding[d]) as i64;
            let counted = all.iter().filter(|&&p| p < last).count();
            let inside = within(all, size[d]);
            let divisor = if op.count_include_pad { counted } else { inside.len() };
            (inside, divisor)
        };
        (0..windows(&op.window, d, size[d])).map(part).collect()
    })
}

fn even_parts(size: [usize; 2], out: [usize; 2]) -> Parts {
    [0, 1].map(|d| {
        let part = |o: usize| {
            // Element e is in part o where the intervals [e, e + 1) / size and [o, o + 1) / out meet.
            let meets = |e: &usize| e * out[d] < (o + 1) * size[d] && (e + 1) * out[d] > o * size[d];
            let inside: Vec<usize> = (0..size[d]).filter(meets).collect();
            let divisor = inside.len();
            (inside, divisor)
        };
        (0..out[d]).map(part).collect()
    })
}

/// Each element of each output with its weight.
fn weights(parts: &Parts, width: usize) -> Vec<Vec<(usize, Dd)>> {
    let mut all = Vec::new();
    for (rows, by_row) in &parts[0] {
        for (columns, by_column) in &parts[1] {
            let divisor = dd((by_row * by_column) as f64);
            let elements = rows.iter().flat_map(|y| columns.iter().map(move |x| y * width + x));
            all.push(elements.map(|i| (i, Dd::ONE / divisor)).collect());
        }
    }
    all
}

/// y = Σ weight · x, of planes of `size` into images of `out`.
fn gathered(x: &Value, out: [usize; 2], weights: &[Vec<(usize, Dd)>]) -> Vec<Expected> {
    let (count, size) = planes(&x.shape);
    let mut y: Vec<Pair> = Vec::new();
    for plane in 0..count {
        for elements in weights {
            let term = |&(i, w): &(usize, Dd)| dd(x.data[plane * size[0] * size[1] + i]) * w;
            y.push((elements.iter().map(term).sum(), elements.iter().map(|e| term(e).abs()).sum()));
        }
    }
    vec![Expected::scaled(&resized(&x.shape, out), x.dtype, y)]
}

/// The transpose of [`gathered`], into images of `size`.
fn scattered(dy: &Value, size: [usize; 2], weights: &[Vec<(usize, Dd)>]) -> Vec<Expected> {
    let (count, _) = planes(&dy.shape);
    let mut dx: Vec<Pair> = vec![(Dd::ZERO, Dd::ZERO); count * size[0] * size[1]];
    for plane in 0..count {
        for (o, elements) in weights.iter().enumerate() {
            for &(i, w) in elements {
                let v = dd(dy.data[plane * weights.len() + o]) * w;
                let slot = &mut dx[plane * size[0] * size[1] + i];
                *slot = (slot.0 + v, slot.1 + v.abs());
            }
        }
    }
    vec![Expected::scaled(&resized(&dy.shape, size), dy.dtype, dx)]
}

/// Where output `o` along a dimension lies in the input: PyTorch's rule with its roundings, in f32 or (`exact`) in f64.
fn coordinate(op: &ops::Interpolate, d: usize, input: usize, o: usize, exact: bool) -> f64 {
    let (input, output) = (input as f64, op.size[d] as f64);
    let nearest = op.mode == ops::Interpolation::Nearest;
    let corners = op.mode == ops::Interpolation::Bilinear { align_corners: true };
    let round = |v: f64| if exact && !nearest { v } else { v as f32 as f64 };
    let step = match op.scale {
        _ if corners && output == 1.0 => 0.0,
        _ if corners => (input - 1.0) / (output - 1.0),
        Some(scale) if output != input && !(nearest && output == 2.0 * input) => 1.0 / scale[d],
        Some(_) => input / output,
        None => input / output,
    };
    let (o, step) = (o as f64, round(step));
    let at = if nearest || corners { round(o * step) } else { round(round((o + 0.5) * step) - 0.5) };
    at.max(0.0)
}

fn resize_weights(op: &ops::Interpolate, size: [usize; 2], exact: bool) -> Vec<Vec<(usize, Dd)>> {
    let along = [0, 1].map(|d| -> Vec<Vec<(usize, Dd)>> {
        let taps = |o: usize| {
            let at = coordinate(op, d, size[d], o, exact);
            // Beyond the last element that one is both neighbours.
            let last = (size[d] - 1) as f64;
            let first = at.floor().min(last) as usize;
            if op.mode == ops::Interpolation::Nearest {
                return vec![(first, Dd::ONE)];
            }
            let part = dd((at - first as f64).min(1.0));
            vec![(first, Dd::ONE - part), ((first + 1).min(size[d] - 1), part)]
        };
        (0..op.size[d]).map(taps).collect()
    });
    let mut all = Vec::new();
    for rows in &along[0] {
        for columns in &along[1] {
            let pairs =
                rows.iter().flat_map(|&(y, a)| columns.iter().map(move |&(x, b)| (y * size[1] + x, a * b)));
            all.push(pairs.collect());
        }
    }
    all
}

pub fn expected(op: &dyn Any, inputs: &[Value]) -> Option<Vec<Expected>> {
    if let Some(op) = op.downcast_ref::<ops::MaxPool2d>() {
        return Some(max_pool(&op.window, &inputs[0]));
    }
    if let Some(op) = op.downcast_ref::<ops::MaxPool2dBackward>() {
        return Some(max_pool_backward(op, &inputs[0], &inputs[1]));
    }
    let (_, image) = planes(&inputs.first().filter(|v| v.shape.len() > 2)?.shape);
    let first = &inputs[0];
    let counts = |parts: &Parts| [parts[0].len(), parts[1].len()];
    if let Some(op) = op.downcast_ref::<ops::AvgPool2d>() {
        let parts = window_parts(op, image);
        return Some(gathered(first, counts(&parts), &weights(&parts, image[1])));
    }
    if let Some(op) = op.downcast_ref::<ops::AvgPool2dBackward>() {
        return Some(scattered(first, op.input, &weights(&window_parts(&op.pool, op.input), op.input[1])));
    }
    if let Some(op) = op.downcast_ref::<ops::AdaptiveAvgPool2d>() {
        return Some(gathered(first, op.size, &weights(&even_parts(image, op.size), image[1])));
    }
    if let Some(op) = op.downcast_ref::<ops::AdaptiveAvgPool2dBackward>() {
        return Some(scattered(first, op.input, &weights(&even_parts(op.input, image), op.input[1])));
    }
    let exact = first.dtype == DType::F64;
    if let Some(op) = op.downcast_ref::<ops::Interpolate>() {
        return Some(gathered(first, op.size, &resize_weights(op, image, exact)));
    }
    let op = op.downcast_ref::<ops::InterpolateBackward>()?;
    Some(scattered(first, op.input, &resize_weights(&op.resize, op.input, exact)))
}

/// Elements beside an image are no part of any window. A neighbour with weight 0 is a part of a resized image all the same, as in
/// PyTorch: an infinity there gives NaN.
pub fn specials(op: &dyn Any, _: usize) -> Option<Specials> {
    if op.is::<ops::MaxPool2d>() {
        return Some(Specials::All);
    }
    let average = op.is::<ops::AvgPool2d>() || op.is::<ops::AdaptiveAvgPool2d>();
    let spread = op.is::<ops::AvgPool2dBackward>() || op.is::<ops::AdaptiveAvgPool2dBackward>();
    let resize = op.is::<ops::Interpolate>() || op.is::<ops::InterpolateBackward>();
    (average || spread || resize || op.is::<ops::MaxPool2dBackward>()).then_some(Specials::NotHuge)
}

//! The rows of ops that put elements elsewhere, and of those that go by their order.

#![forbid(unsafe_code)]

use super::{Cases, N, row_of};
use crate::bench::wrong;
use crate::nn::Cx;
use crate::{Arena, DType, Result, Tensor};

/// Lookup, gathering, joining, transposition, dropout.
pub(super) fn moving(cases: &mut Cases) -> Result<()> {
    let (x, other) = (cases.normal(&[N, N], 0)?, cases.normal(&[N, N], 1)?);
    let table = cases.normal(&[10_000, 256], 7)?;
    let (ids, index) = cases.below(&[4096], 10_000, 3)?;
    cases.add(
        "embedding",
        &[&table],
        move |t| t[0].embedding(&index),
        move |v, i| v[0][ids[i / 256] as usize * 256 + i % 256] as f64,
    );
    let (columns, index) = cases.below(&[N, N], N, 4)?;
    cases.add(
        "gather",
        &[&x],
        move |t| t[0].gather(1, &index),
        move |v, i| v[0][i / N * N + columns[i] as usize] as f64,
    );
    let (rows, index) = cases.below(&[N], N, 5)?;
    cases.add(
        "index_select",
        &[&x],
        move |t| t[0].index_select(0, &index),
        move |v, i| v[0][rows[i / N] as usize * N + i % N] as f64,
    );
    let inputs = [&x, &other];
    cases.forward_only(
        "cat_axis0",
        &inputs,
        |t| Tensor::cat(&[&t[0], &t[1]], 0),
        |v, i| v[i / (N * N)][i % (N * N)] as f64,
    );
    cases.forward_only(
        "cat_axis1",
        &inputs,
        |t| Tensor::cat(&[&t[0], &t[1]], 1),
        |v, i| {
            let (row, column) = (i / (2 * N), i % (2 * N));
            v[column / N][row * N + column % N] as f64
        },
    );
    cases.forward_only(
        "transpose_copy",
        &[&x],
        |t| t[0].t()?.contiguous(),
        |v, i| v[0][i % N * N + i / N] as f64,
    );
    let arena = Arena::new(DType::F32, cases.device)?;
    let dropped: Vec<bool> = {
        let y = Cx::train(arena.step_block(), 3)?
            .dropout(&Tensor::ones([N, N], DType::F32, cases.device)?, 0.5)?;
        y.to_vec::<f32>()?.iter().map(|&v| v == 0.0).collect()
    };
    let share = dropped.iter().filter(|&&d| d).count() as f64 / dropped.len() as f64;
    // Half, give or take ten standard deviations of a million coins.
    if (share - 0.5).abs() > 0.005 {
        return Err(wrong("dropout", format!("it drops {share} of the elements")));
    }
    cases.add(
        "dropout",
        &[&x],
        move |t| Cx::train(arena.step_block(), 3)?.dropout(&t[0], 0.5),
        move |v, i| {
            if dropped[i] { 0.0 } else { 2.0 * v[0][i] as f64 }
        },
    );
    Ok(())
}

/// The elements of row `i` in descending order.
fn descending(values: &[f32], i: usize) -> Vec<f32> {
    let mut row = row_of(values, i * N, N).to_vec();
    row.sort_by(|a, b| b.total_cmp(a));
    row
}

/// Sorting, the ten largest, running sums, addition by index.
pub(super) fn ordering(cases: &mut Cases) -> Result<()> {
    const K: usize = 10;
    let (x, other) = (cases.normal(&[N, N], 0)?, cases.normal(&[N, N], 1)?);
    // The gradient goes along as long as the difference swaps no two elements, as good as none of it.
    let ascending = |v: &[Vec<f32>], i: usize| descending(&v[0], i / N)[N - 1 - i % N] as f64;
    cases.add("sort", &[&x], |t| Ok(t[0].sort(1, false, false)?.0), ascending).probe = 1e-5;
    cases.forward_only(
        "argsort",
        &[&x],
        |t| t[0].argsort(1, true),
        |v, i| {
            let row = row_of(&v[0], i, N);
            row.iter().position(|&value| value == descending(&v[0], i / N)[i % N]).unwrap_or(N) as f64
        },
    );
    let largest = |v: &[Vec<f32>], i: usize| descending(&v[0], i / K)[i % K] as f64;
    cases.add("topk", &[&x], |t| Ok(t[0].topk(K, 1, true, true)?.0), largest).probe = 1e-5;
    let sum = |values: &mut dyn Iterator<Item = &f32>| values.map(|&v| v as f64).sum::<f64>();
    cases.add(
        "cumsum_axis0",
        &[&x],
        |t| t[0].cumsum(0),
        move |v, i| sum(&mut v[0].iter().skip(i % N).step_by(N).take(i / N + 1)),
    );
    cases.add(
        "cumsum_axis1",
        &[&x],
        |t| t[0].cumsum(1),
        move |v, i| sum(&mut row_of(&v[0], i, N)[..i % N + 1].iter()),
    );
    let (columns, index) = cases.below(&[N, N], N, 4)?;
    cases.add(
        "scatter_add",
        &[&x, &other],
        move |t| t[0].scatter_add(1, &index, &t[1]),
        move |v, i| {
            let chosen = columns[i / N * N..][..N].iter().zip(row_of(&v[1], i, N));
            let added = chosen.filter(|(c, _)| **c as usize == i % N).map(|(_, &s)| s as f64).sum::<f64>();
            v[0][i] as f64 + added
        },
    );
    let (classes, index) = cases.below(&[N], N, 5)?;
    cases.forward_only(
        "one_hot",
        &[&x],
        move |_| index.one_hot(N),
        move |_, i| if classes[i / N] as usize == i % N { 1.0 } else { 0.0 },
    );
    Ok(())
}

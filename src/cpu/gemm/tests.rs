//! Tests of the product: against sums in f64, against the bit contract, over threads, layouts, types and epilogues.

#![forbid(unsafe_code)]

use super::*;
use crate::dtype::{bf16, f16};

/// Numbers in −1..1 that repeat after 2³² at the earliest.
fn value(i: usize) -> f64 {
    let x = (i as u32).wrapping_mul(2_654_435_761) ^ 0x9e37_79b9;
    (x.wrapping_mul(0x85eb_ca6b) >> 8) as f64 / (1 << 23) as f64 - 1.0
}

/// How a matrix lies in memory.
#[derive(Clone, Copy, Debug)]
enum Layout {
    Rows,
    Columns,
    Strided,
    SameRow,
    SameColumn,
}

const LAYOUTS: [Layout; 5] =
    [Layout::Rows, Layout::Columns, Layout::Strided, Layout::SameRow, Layout::SameColumn];

/// A matrix and the slice it lies in.
struct Owned<T> {
    data: Vec<T>,
    shape: [usize; 2],
    strides: [usize; 2],
}

impl<T: Element> Owned<T> {
    fn new([rows, cols]: [usize; 2], layout: Layout, of: impl Fn(usize) -> f64) -> Self {
        let strides = match layout {
            Layout::Rows => [cols, 1],
            Layout::Columns => [1, rows],
            Layout::Strided => [3 * cols + 2, 3],
            Layout::SameRow => [0, 1],
            Layout::SameColumn => [1, 0],
        };
        let len = if rows * cols == 0 { 0 } else { (rows - 1) * strides[0] + (cols - 1) * strides[1] + 1 };
        Owned { data: (0..len).map(|i| T::from_f64(of(i))).collect(), shape: [rows, cols], strides }
    }

    fn view(&self) -> MatRef<'_, T> {
        MatRef::new(&self.data, self.shape[0], self.shape[1], self.strides[0], self.strides[1])
    }

    fn at(&self, i: usize, j: usize) -> T {
        self.data[i * self.strides[0] + j * self.strides[1]]
    }
}

/// What the header of the module promises, element by element.
fn contract<T: Float>(a: &Owned<T>, b: &Owned<T>, i: usize, j: usize, old: Option<T>) -> T::Acc {
    let k = a.shape[1];
    let mut sum = old.map(|o| o.to_acc());
    for start in (0..k.max(1)).step_by(RUN) {
        let step = |s: T::Acc, p: usize| a.at(i, p).to_acc().mul_add(b.at(p, j).to_acc(), s);
        let run = (start..k.min(start + RUN)).fold(T::Acc::ZERO, step);
        sum = Some(sum.map_or(run, |s| s + run));
    }
    sum.expect("there is at least one run")
}

/// Sum and sum of absolute values in f64.
fn exact<T: Float>(a: &Owned<T>, b: &Owned<T>, i: usize, j: usize) -> (f64, f64) {
    let terms = (0..a.shape[1]).map(|p| a.at(i, p).to_f64() * b.at(p, j).to_f64());
    terms.fold((0.0, 0.0), |(s, t), x| (s + x, t + x.abs()))
}

const PAD: usize = 3;
const SENTINEL: f64 = -77.0;

/// Multiplies into a padded C, checks that the padding is untouched, and returns C.
fn multiply<T: Float>(
    a: &Owned<T>,
    b: &Owned<T>,
    accumulate: Accumulate,
    epilogue: Epilogue<'_, T>,
) -> Vec<T> {
    let (m, n) = (a.shape[0], b.shape[1]);
    let stride = n + PAD;
    let mut c: Vec<T> =
        (0..m * stride).map(|i| T::from_f64(if i % stride < n { value(i + 5) } else { SENTINEL })).collect();
    gemm(a.view(), b.view(), MatMut::new(&mut c, m, n, stride), accumulate, epilogue);
    let sentinel = T::from_f64(SENTINEL);
    assert!(c.chunks(stride).all(|row| row[n..].iter().all(|x| *x == sentinel)), "wrote beside the result");
    c.chunks(stride).flat_map(|row| row[..n].to_vec()).collect()
}

/// The value that `multiply` finds in C.
fn old<T: Float>(n: usize, i: usize, j: usize) -> T {
    T::from_f64(value(i * (n + PAD) + j + 5))
}

fn bits<T: Element>(v: &[T]) -> &[u8] {
    bytemuck::cast_slice(v)
}

const SHAPES: [[usize; 3]; 24] = [
    [0, 3, 2],
    [3, 0, 2],
    [3, 2, 0],
    [0, 0, 0],
    [1, 1, 1],
    [1, 7, 1],
    [2, 3, 1],
    [1, 5, 37],
    [7, 1, 9],
    [8, 16, 48],
    [9, 17, 49],
    [13, 29, 31],
    [17, 256, 16],
    [16, 257, 33],
    [5, 700, 3],
    [64, 100, 1],
    [1, 300, 100],
    [100, 1, 64],
    [23, 11, 47],
    [47, 3, 97],
    [97, 5, 23],
    [31, 513, 53],
    [6, 4, 500],
    [500, 9, 6],
];

fn check<T: Float>([m, k, n]: [usize; 3], la: Layout, lb: Layout, accumulate: Accumulate) {
    let a = Owned::<T>::new([m, k], la, value);
    let b = Owned::<T>::new([k, n], lb, |i| value(i + 12_345));
    let got = multiply(&a, &b, accumulate, Epilogue::default());
    assert_eq!(got.len(), m * n);
    let (round, round_sum) = (T::DTYPE.unit_roundoff(), T::Acc::DTYPE.unit_roundoff());
    for i in 0..m {
        for j in 0..n {
            let before = (accumulate == Accumulate::Add).then(|| old::<T>(n, i, j));
            let what = format!("{} {m}×{k}×{n} {la:?} {lb:?} {accumulate:?} at {i},{j}", T::DTYPE);
            let x = got[i * n + j];
            let (sum, size) = exact(&a, &b, i, j);
            let (sum, size) = before.map_or((sum, size), |o| (sum + o.to_f64(), size + o.to_f64().abs()));
            // Every term is rounded as a product (unless fused), once per later addition, and with the result.
            let bound = round_sum * (k + 3) as f64 * size + round * size;
            assert!((x.to_f64() - sum).abs() <= bound, "{what}: {x} is not {sum} ± {bound}");
            if Isa::detect() != Isa::Portable {
                let want = T::from_acc(contract(&a, &b, i, j, before));
                assert_eq!(bits(&[x]), bits(&[want]), "{what}: {x} is not {want}");
            }
        }
    }
}

fn check_all<T: Float>() {
    for shape in SHAPES {
        for (i, la) in LAYOUTS.into_iter().enumerate() {
            for lb in LAYOUTS {
                let accumulate = if i % 2 == 0 { Accumulate::Write } else { Accumulate::Add };
                check::<T>(shape, la, lb, accumulate);
            }
        }
        check::<T>(shape, Layout::Rows, Layout::Columns, Accumulate::Add);
        check::<T>(shape, Layout::Columns, Layout::Rows, Accumulate::Write);
    }
}

#[test]
fn f32_is_right_and_keeps_the_contract() {
    check_all::<f32>();
}

#[test]
fn f64_is_right_and_keeps_the_contract() {
    check_all::<f64>();
}

#[test]
fn sixteen_bit_types_are_summed_in_f32_and_rounded_once() {
    check_all::<bf16>();
    check_all::<f16>();
}

#[test]
fn every_instruction_set_of_this_machine_keeps_the_contract() {
    fn check<T: Float>() {
        for [m, k, n] in SHAPES {
            for (la, lb) in LAYOUTS.into_iter().flat_map(|la| LAYOUTS.map(|lb| (la, lb))) {
                let a = Owned::<T>::new([m, k], la, value);
                let b = Owned::<T>::new([k, n], lb, |i| value(i + 321));
                for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
                    let mut c = vec![T::from_f64(0.5); m * n];
                    let product = Product {
                        a: a.view(),
                        b: b.view(),
                        c: MatMut::new(&mut c, m, n, n),
                        accumulate: Accumulate::Add,
                        epilogue: Epilogue::default(),
                    };
                    product.checked().serial_on(isa);
                    for (at, &x) in c.iter().enumerate() {
                        let (i, j) = (at / n, at % n);
                        let what = format!("{isa:?} {} {m}×{k}×{n} {la:?} {lb:?} at {i},{j}", T::DTYPE);
                        if isa == Isa::Portable {
                            let (sum, size) = exact(&a, &b, i, j);
                            let (sum, size) = (sum + 0.5, size + 0.5);
                            let rounds = T::Acc::DTYPE.unit_roundoff() * (k + 3) as f64;
                            let bound = (rounds + T::DTYPE.unit_roundoff()) * size;
                            assert!((x.to_f64() - sum).abs() <= bound, "{what}: {x} is not {sum} ± {bound}");
                        } else {
                            let want = T::from_acc(contract(&a, &b, i, j, Some(T::from_f64(0.5))));
                            assert_eq!(bits(&[x]), bits(&[want]), "{what}: {x} is not {want}");
                        }
                    }
                }
            }
        }
    }
    check::<f32>();
    check::<f64>();
    check::<bf16>();
}

/// The products of a step of the networks in the bench list, and a few odd ones.
const STEP_SHAPES: [[usize; 3]; 14] = [
    [64, 1000, 500],
    [64, 500, 250],
    [64, 250, 100],
    [64, 100, 1],
    [64, 1, 100],
    [64, 100, 250],
    [500, 64, 1000],
    [1, 64, 100],
    [256, 1000, 500],
    [1000, 256, 100],
    [1024, 250, 100],
    [129, 511, 77],
    [17, 3, 1025],
    [1, 1000, 500],
];

#[test]
fn the_bits_do_not_depend_on_the_number_of_threads() {
    for [m, k, n] in STEP_SHAPES {
        for (la, lb) in
            [(Layout::Rows, Layout::Columns), (Layout::Rows, Layout::Rows), (Layout::Columns, Layout::Rows)]
        {
            let a = Owned::<f32>::new([m, k], la, value);
            let b = Owned::<f32>::new([k, n], lb, |i| value(i + 99));
            let bias: Vec<f32> = (0..n).map(|i| value(i + 7) as f32).collect();
            let run = || {
                let mut pre = vec![0f32; m * n];
                let epilogue = Epilogue {
                    bias: Some(&bias),
                    activation: Activation::Relu,
                    pre: Some(MatMut::new(&mut pre, m, n, n)),
                };
                let mut y = multiply(&a, &b, Accumulate::Add, epilogue);
                y.append(&mut pre);
                y
            };
            let one = par::with_threads(1, run).unwrap();
            for threads in [2, 3, 4, 8] {
                let more = par::with_threads(threads, run).unwrap();
                assert!(bits(&one) == bits(&more), "{m}×{k}×{n} {la:?} {lb:?} with {threads} threads");
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_every_batch() {
    let (k, n) = (300, 70);
    let x = Owned::<f32>::new([40, k], Layout::Rows, value);
    let w = Owned::<f32>::new([k, n], Layout::Columns, |i| value(i + 4));
    let all = multiply(&x, &w, Accumulate::Write, Epilogue::default());
    for (start, rows) in [(0, 1), (3, 2), (7, 9), (11, 29), (39, 1)] {
        let mut y = vec![0f32; rows * n];
        let part = x.view().part(start, rows, 0, k);
        gemm(part, w.view(), MatMut::new(&mut y, rows, n, n), Accumulate::Write, Epilogue::default());
        assert!(bits(&y) == bits(&all[start * n..(start + rows) * n]), "rows {start}..+{rows}");
    }
}

#[test]
fn a_factor_packed_once_gives_the_bits_of_the_product() {
    for [m, k, n] in [[1, 5, 3], [8, 300, 100], [13, 513, 49], [67, 128, 512], [3, 0, 4], [2, 7, 0]] {
        let a = Owned::<f32>::new([m, k], Layout::Rows, value);
        let b = Owned::<f32>::new([k, n], Layout::Columns, |i| value(i + 77));
        let old: Vec<f32> = (0..m * n).map(|i| value(i + 5) as f32).collect();
        let (mut want, mut got) = (old.clone(), old);
        let epilogue = Epilogue::default();
        gemm(a.view(), b.view(), MatMut::new(&mut want, m, n, n), Accumulate::Add, epilogue);
        let packed = PackedFactor::new(b.view()).unwrap();
        packed.add_product(&a.data, &mut MatMut::new(&mut got, m, n, n));
        assert_eq!(bits(&got), bits(&want), "{m} × {k} × {n}");
    }
}

#[test]
fn integers_are_exact() {
    // Sums stay below 2²⁴, and below 2⁸ or 2¹¹ for the types that hold no more.
    fn check<T: Float>([m, k, n]: [usize; 3], limit: usize) {
        let small =
            |shift: usize| move |i: usize| ((i * 7919 + shift) % (2 * limit + 1)) as f64 - limit as f64;
        let a = Owned::<T>::new([m, k], Layout::Rows, small(1));
        let b = Owned::<T>::new([k, n], Layout::Columns, small(3));
        let got = multiply(&a, &b, Accumulate::Write, Epilogue::default());
        for (at, x) in got.iter().enumerate() {
            assert_eq!(x.to_f64(), exact(&a, &b, at / n, at % n).0, "{} at {at}", T::DTYPE);
        }
    }
    for shape in [[64, 1000, 51], [3, 700, 130]] {
        check::<f32>(shape, 100);
        check::<f64>(shape, 1_000_000);
    }
    check::<bf16>([20, 63, 30], 2);
    check::<f16>([20, 500, 30], 2);
}

#[test]
fn an_epilogue_equals_its_steps_one_by_one() {
    fn check<T: Float>([m, k, n]: [usize; 3], layout: Layout) {
        let a = Owned::<T>::new([m, k], Layout::Rows, value);
        let b = Owned::<T>::new([k, n], layout, |i| value(i + 31));
        let bias: Vec<T> = (0..n).map(|i| T::from_f64(value(i + 77))).collect();
        for activation in [
            Activation::Identity,
            Activation::Relu,
            Activation::Gelu,
            Activation::GeluTanh,
            Activation::Silu,
            Activation::Sigmoid,
            Activation::Tanh,
        ] {
            for accumulate in [Accumulate::Write, Accumulate::Add] {
                let mut pre = vec![T::from_f64(9.0); m * n];
                let epilogue =
                    Epilogue { bias: Some(&bias), activation, pre: Some(MatMut::new(&mut pre, m, n, n)) };
                let got = multiply(&a, &b, accumulate, epilogue);
                let without = multiply(&a, &b, accumulate, Epilogue { activation, ..Epilogue::default() });
                for at in 0..m * n {
                    let (i, j) = (at / n, at % n);
                    if Isa::detect() == Isa::Portable {
                        continue;
                    }
                    let before = (accumulate == Accumulate::Add).then(|| old::<T>(n, i, j));
                    let sum = contract(&a, &b, i, j, before);
                    let biased = sum + bias[j].to_acc();
                    assert_eq!(bits(&[pre[at]]), bits(&[T::from_acc(biased)]), "{activation:?} before, {at}");
                    let want = T::from_acc(activation.apply(biased));
                    assert_eq!(bits(&[got[at]]), bits(&[want]), "{activation:?} {accumulate:?} at {at}");
                    let want = T::from_acc(activation.apply(sum));
                    assert_eq!(bits(&[without[at]]), bits(&[want]), "{activation:?} without bias, {at}");
                }
            }
        }
    }
    for (shape, layout) in [
        ([19, 30, 70], Layout::Rows),
        ([19, 270, 70], Layout::Columns),
        ([70, 30, 3], Layout::Rows),
        ([5, 0, 9], Layout::Rows),
    ] {
        check::<f32>(shape, layout);
        check::<f64>(shape, layout);
        check::<bf16>(shape, layout);
    }
}

#[test]
fn activations_have_known_values() {
    let cases = [
        (Activation::Relu, -2.0, 0.0),
        (Activation::Relu, 3.0, 3.0),
        (Activation::Gelu, 1.0, 0.841_344_746_068_543),
        (Activation::GeluTanh, 1.0, 0.841_191_990_608_276),
        (Activation::Silu, 1.0, 0.731_058_578_630_005),
        (Activation::Sigmoid, -1.0, 0.268_941_421_369_995),
        (Activation::Tanh, 0.5, 0.462_117_157_260_010),
    ];
    for (activation, x, want) in cases {
        let got: f64 = activation.apply(x);
        assert!((got - want).abs() < 1e-14, "{activation:?}({x}) = {got}, not {want}");
        assert!(activation.apply(f32::NAN).is_nan(), "{activation:?} must pass NaN on");
    }
}

#[test]
fn nan_and_infinity_go_through_also_past_zeros() {
    for (m, k, n) in [(9, 20, 33), (40, 300, 1), (1, 20, 40)] {
        let zero = Owned::<f32>::new([m, k], Layout::Rows, |_| 0.0);
        for bad in [f64::NAN, f64::INFINITY] {
            // One bad element in row k/2 of B, column n − 1: 0 · bad is NaN in the whole last column.
            let b =
                Owned::<f32>::new([k, n], Layout::Rows, |i| if i == k / 2 * n + n - 1 { bad } else { 1.0 });
            let got = multiply(&zero, &b, Accumulate::Write, Epilogue::default());
            for (at, x) in got.iter().enumerate() {
                assert_eq!(x.is_nan(), at % n == n - 1, "{m}×{k}×{n} {bad} at {at}: {x}");
            }
        }
    }
}

#[test]
fn batches_have_the_bits_of_single_products() {
    for (count, [m, k, n]) in
        [(0, [2, 2, 2]), (1, [9, 9, 9]), (37, [5, 8, 7]), (6, [40, 64, 33]), (3, [200, 300, 220])]
    {
        let a = Owned::<f32>::new([m, k], Layout::Rows, value);
        let bs: Vec<_> =
            (0..count).map(|s| Owned::<f32>::new([k, n], Layout::Columns, move |i| value(i + s))).collect();
        let want: Vec<f32> =
            bs.iter().flat_map(|b| multiply(&a, b, Accumulate::Write, Epilogue::default())).collect();
        for threads in [1, 2, 3, 4, 8] {
            let mut c = vec![0f32; count * m * n];
            let products = bs.iter().zip(c.chunks_mut(m * n)).map(|(b, c)| Product {
                a: a.view(),
                b: b.view(),
                c: MatMut::new(c, m, n, n),
                accumulate: Accumulate::Write,
                epilogue: Epilogue::default(),
            });
            par::with_threads(threads, || gemm_batch(count, products)).unwrap();
            assert!(bits(&c) == bits(&want), "{count} of {m}×{k}×{n} with {threads} threads");
        }
    }
}

#[test]
#[should_panic(expected = "shapes do not fit")]
fn shapes_that_do_not_fit_are_refused() {
    let x = [0f32; 12];
    let (a, b, mut c) = (MatRef::new(&x, 3, 4, 4, 1), MatRef::new(&x, 3, 4, 4, 1), [0f32; 12]);
    gemm(a, b, MatMut::new(&mut c, 3, 4, 4), Accumulate::Write, Epilogue::default());
}

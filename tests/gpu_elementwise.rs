//! Elementwise functions, selection, dropout, casts and copies on a GPU, the simulated one with all checks on, against the
//! CPU: bit for bit, NaN aside. Sizes are such that several blocks, ragged ends and tiles that are not full occur, which
//! the small shapes of the op cases do not reach.

use warpsmith::device::sim::{Order, SimOptions};
use warpsmith::ops::*;
use warpsmith::selftest::bits;
use warpsmith::tensor::Mode;
use warpsmith::{DType, Device, Result, Tensor, dispatch};

fn sim() -> Device {
    Device::sim_with(SimOptions { order: Order::Random, seed: 3, checked: true, ..SimOptions::default() })
}

/// Numbers of all magnitudes and signs, among them infinities, NaN, zeros and the ends of ranges.
fn values(n: usize, salt: u64) -> Vec<f64> {
    const SPECIAL: [f64; 16] = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::NAN,
        1e-40,
        -1e-45,
        3.4e38,
        -3.4e38,
        65504.0,
        0.5,
        2147483648.0,
        -2147483649.0,
        9.3e18,
    ];
    let one = |i: u64| {
        let r = (i + 1)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15 ^ (salt << 17))
            .rotate_left(23)
            .wrapping_mul(0xd134_2543_de82_ef95);
        let unit = (r >> 11) as f64 / (1u64 << 53) as f64 - 0.5;
        match i % 7 {
            0 => SPECIAL[(r >> 40) as usize % SPECIAL.len()],
            1 => unit * 2f64.powi((r >> 30) as i32 % 128),
            2 => unit * 2f64.powi(-((r >> 30) as i32 % 140)),
            3 => (unit * 300.0).round(),
            _ => unit * 8.0,
        }
    };
    (0..n as u64).map(one).collect()
}

/// The same tensor on the CPU and on `device`.
fn pair(n: &[usize], dtype: DType, salt: u64, device: Device) -> [Tensor; 2] {
    let data = values(n.iter().product(), salt);
    [Device::Cpu, device].map(|d| warpsmith::selftest::tensor(&data, n, dtype, d))
}

fn same(what: &str, [cpu, gpu]: [Tensor; 2]) {
    assert_eq!((cpu.dtype(), cpu.dims()), (gpu.dtype(), gpu.dims()), "{what}");
    if bits(&cpu) != bits(&gpu) {
        let (a, b) = (cpu.to_f64_vec().unwrap(), gpu.to_f64_vec().unwrap());
        let at =
            (0..a.len()).find(|&i| a[i].to_bits() != b[i].to_bits() && !(a[i].is_nan() && b[i].is_nan()));
        panic!("{what}: {:?} on the CPU and on the GPU", at.map(|i| (i, a[i], b[i])));
    }
}

/// `f` of each of the two.
fn both(pair: &[Tensor; 2], f: impl Fn(&Tensor) -> Result<Tensor>) -> [Tensor; 2] {
    pair.each_ref().map(|t| f(t).unwrap())
}

fn zip(a: &[Tensor; 2], b: &[Tensor; 2], f: impl Fn(&Tensor, &Tensor) -> Result<Tensor>) -> [Tensor; 2] {
    [0, 1].map(|i| f(&a[i], &b[i]).unwrap())
}

const HALF_TOO: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

/// Layouts of a matrix: in vectors, with a ragged end, and with strides.
fn layouts(t: &Tensor) -> Vec<Tensor> {
    let (rows, cols) = (t.dims()[0], t.dims()[1]);
    vec![
        t.clone(),
        t.reshape([rows * cols]).unwrap().narrow(0, 0, rows * cols - 3).unwrap(),
        t.reshape([rows * cols]).unwrap().narrow(0, 1, rows * cols - 1).unwrap(),
        t.t().unwrap(),
        t.slice(1, 0, cols, 3).unwrap(),
        t.narrow(1, 0, cols / 2 / 8 * 8).unwrap(),
    ]
}

#[test]
fn functions_of_one_operand_have_the_bits_of_the_cpu() {
    let device = sim();
    for dtype in HALF_TOO {
        let x = pair(&[7, 592], dtype, 1, device);
        let dy = pair(&[7, 592], dtype, 2, device);
        let small = pair(&[7, 592], dtype, 3, device).map(|t| t.clamp(-9.0, 9.0).unwrap());
        fn check<F: Unary>(f: F, dtype: DType, sets: [&[Tensor; 2]; 3]) {
            let [x, dy, small] = sets;
            for of in [x, small] {
                let layouts = of.each_ref().map(layouts);
                for (k, (a, b)) in layouts[0].iter().zip(&layouts[1]).enumerate() {
                    let pair = [a.clone(), b.clone()];
                    same(&format!("{f:?} of {dtype}, layout {k}"), both(&pair, |t| run1(Map(f), &[t])));
                }
            }
            let saved = MapBackward::<F>::INPUTS.contains(&2);
            for turned in [false, true] {
                let grad = [0, 1].map(|i| {
                    let of = |t: &Tensor| if turned { t.t().unwrap() } else { t.clone() };
                    let (dy, s) = (of(&dy[i]), of(&small[i]));
                    let inputs = if saved { vec![&dy, &s] } else { vec![&dy] };
                    run1(MapBackward(f), &inputs).unwrap()
                });
                same(&format!("gradient of {f:?} of {dtype}"), grad);
            }
        }
        macro_rules! all {
            ($($op:expr),*) => { $(check($op, dtype, [&x, &dy, &small]);)* };
        }
        all!(
            Relu {},
            LeakyRelu { slope: 0.01 },
            Gelu {},
            GeluTanh {},
            Silu {},
            Sigmoid {},
            Tanh {},
            Softsign {},
            Exp {},
            Log {},
            Sqrt {},
            Rsqrt {},
            Abs {},
            Neg {},
            Square {},
            Reciprocal {},
            Clamp { min: -1.5, max: 2.0 },
            Clamp { min: f64::NAN, max: 0.1 },
            AddScalar { value: 0.1 },
            MulScalar { value: -1.7 },
            DivScalar { value: 0.3 },
            Powf { exponent: 2.5 },
            Powf { exponent: 0.0 },
            Powf { exponent: -3.0 }
        );
    }
    for dtype in [DType::I32, DType::I64] {
        let x = pair(&[5, 592], dtype, 4, device);
        for k in 0..6 {
            let x = x.each_ref().map(|t| layouts(t)[k].clone());
            for (i, y) in [
                both(&x, Tensor::relu),
                both(&x, Tensor::abs),
                both(&x, Tensor::neg),
                both(&x, Tensor::square),
                both(&x, |t| t.clamp(-7.0, 40.0)),
                both(&x, |t| t.clamp(f64::NEG_INFINITY, 2e9)),
                both(&x, |t| t.add_scalar(1e9)),
                both(&x, |t| t.mul_scalar(-3.0)),
            ]
            .into_iter()
            .enumerate()
            {
                same(&format!("integer function {i} of {dtype}, layout {k}"), y);
            }
        }
    }
}

/// Shapes that broadcast, the last of them turned.
const PAIRS: [[&[usize]; 2]; 7] = [
    [&[5003], &[5003]],
    [&[9, 600], &[600]],
    [&[9, 600], &[9, 1]],
    [&[3, 5, 301], &[5, 1]],
    [&[4, 1, 520], &[3, 1]],
    [&[], &[4100]],
    [&[71, 67], &[67, 71]],
];

fn operands(k: usize, dtype: DType, device: Device) -> [[Tensor; 2]; 2] {
    let [a, b] = PAIRS[k];
    let (a, b) = (pair(a, dtype, 5, device), pair(b, dtype, 6, device));
    if k + 1 == PAIRS.len() { [a, both(&b, Tensor::t)] } else { [a, b] }
}

#[test]
fn functions_of_two_operands_have_the_bits_of_the_cpu() {
    fn check<F: Binary>(f: F, k: usize, dtype: DType, [a, b]: &[[Tensor; 2]; 2], device: Device) {
        let y = zip(a, b, |a, b| run1(Zip(f), &[a, b]));
        let dy = pair(y[0].dims(), dtype, 7, device);
        same(&format!("{f:?} of {dtype}, shapes {k}"), y);
        for operand in [0, 1].into_iter().filter(|o| dtype.is_float() && F::READS[*o] != [false; 2]) {
            let grad = [0, 1].map(|i| {
                let read = [&a[i], &b[i]].into_iter().zip(F::READS[operand]).filter(|(_, read)| *read);
                let inputs: Vec<&Tensor> = std::iter::once(&dy[i]).chain(read.map(|(t, _)| t)).collect();
                run1(ZipBackward { of: f, operand }, &inputs).unwrap()
            });
            same(&format!("gradient {operand} of {f:?} of {dtype}, shapes {k}"), grad);
        }
    }
    let device = sim();
    for k in 0..PAIRS.len() {
        for dtype in HALF_TOO {
            let of = operands(k, dtype, device);
            check(Add, k, dtype, &of, device);
            check(Sub, k, dtype, &of, device);
            check(Mul, k, dtype, &of, device);
            check(Div, k, dtype, &of, device);
            check(Pow, k, dtype, &of, device);
            check(Maximum, k, dtype, &of, device);
            check(Minimum, k, dtype, &of, device);
        }
        for dtype in [DType::I32, DType::I64] {
            let of = operands(k, dtype, device);
            check(Add, k, dtype, &of, device);
            check(Sub, k, dtype, &of, device);
            check(Mul, k, dtype, &of, device);
            check(Maximum, k, dtype, &of, device);
            check(Minimum, k, dtype, &of, device);
        }
    }
}

#[test]
fn comparison_and_selection_have_the_bits_of_the_cpu() {
    let device = sim();
    for dtype in DType::ALL {
        for k in 0..PAIRS.len() {
            // Few different values, so that some are equal.
            let few = |t: &Tensor| t.to_dtype(DType::F32)?.clamp(-2.0, 3.0)?.to_dtype(dtype);
            let [a, b] = operands(k, DType::F32, device).map(|p| both(&p, few));
            let all: [fn(&Tensor, &Tensor) -> Result<Tensor>; 6] =
                [Tensor::eq, Tensor::ne, Tensor::lt, Tensor::le, Tensor::gt, Tensor::ge];
            let compared: Vec<[Tensor; 2]> = all.iter().map(|f| zip(&a, &b, f)).collect();
            let chosen = [0, 1].map(|i| compared[2][i].where_(&a[i], &b[i]).unwrap());
            same(&format!("where of {dtype}, shapes {k}"), chosen);
            for (i, y) in compared.into_iter().enumerate() {
                same(&format!("comparison {i} of {dtype}, shapes {k}"), y);
            }
        }
    }
}

#[test]
fn dropout_draws_the_numbers_of_the_cpu() {
    let device = sim();
    for dtype in HALF_TOO {
        let x = pair(&[7, 901], dtype, 8, device);
        let step = [Device::Cpu, device].map(|d| Tensor::scalar(11i64, d).unwrap());
        for offset in [0, 3, (1 << 35) + 1] {
            let op = Dropout { p: 0.3, seed: 0x1234_5678_9abc, site: 4, offset };
            for turned in [false, true] {
                let y = [0, 1].map(|i| {
                    let x = if turned { x[i].t().unwrap() } else { x[i].clone() };
                    x.dropout(op, &step[i]).unwrap()
                });
                same(&format!("dropout of {dtype} at {offset}, turned: {turned}"), y);
            }
        }
    }
}

#[test]
fn casts_round_and_saturate_as_on_the_cpu() {
    let device = sim();
    for from in DType::ALL {
        let x = pair(&[61, 90], from, 9, device);
        for to in DType::ALL {
            for k in 0..6 {
                let x = x.each_ref().map(|t| layouts(t)[k].clone());
                same(&format!("{from} to {to}, layout {k}"), both(&x, |t| run1(Cast { to }, &[t])));
            }
            // Into a tensor of strides, overwriting.
            let y = [0, 1].map(|i| {
                let base = Tensor::zeros([90, 70], to, x[i].device()).unwrap();
                base.narrow(1, 5, 61).unwrap().t().unwrap().copy_(&x[i]).unwrap();
                base
            });
            same(&format!("{from} into turned {to}"), y);
        }
    }
}

#[test]
fn copies_of_any_layout_move_the_elements_of_the_cpu() {
    let device = sim();
    for dtype in DType::ALL {
        let matrix = pair(&[130, 75], dtype, 10, device);
        let batch = pair(&[3, 70, 66], dtype, 11, device);
        let four = pair(&[2, 9, 5, 11], dtype, 12, device);
        let moved = [
            both(&matrix, |t| t.t()?.contiguous()),
            both(&matrix, |t| t.slice(0, 1, 130, 2)?.t()?.contiguous()),
            both(&matrix, |t| t.narrow(1, 3, 64)?.contiguous()),
            both(&matrix, |t| t.slice(1, 0, 75, 4)?.contiguous()),
            both(&batch, |t| t.permute(&[0, 2, 1])?.contiguous()),
            both(&batch, |t| t.permute(&[2, 1, 0])?.contiguous()),
            both(&batch, |t| t.permute(&[1, 0, 2])?.contiguous()),
            both(&batch, |t| t.permute(&[2, 0, 1])?.contiguous()),
            both(&four, |t| t.permute(&[3, 1, 0, 2])?.contiguous()),
            both(&four, |t| t.narrow(0, 0, 1)?.expand([6, 9, 5, 11])?.contiguous()),
        ];
        for (k, y) in moved.into_iter().enumerate() {
            same(&format!("copy {k} of {dtype}"), y);
        }
        // Adding, to what is there.
        let add = [0, 1].map(|i| {
            let y = Tensor::full([75, 130], 2.0, dtype, matrix[i].device()).unwrap();
            let x =
                matrix[i].to_dtype(DType::F32).unwrap().clamp(-9.0, 9.0).unwrap().to_dtype(dtype).unwrap();
            run_into(Contiguous, &[&x.t().unwrap()], &[(&y, Mode::Accumulate)]).unwrap();
            y
        });
        same(&format!("sum of {dtype}"), add);
        dispatch!(dtype, T => {
            let y = Tensor::full([1003], 3.0, dtype, device).unwrap().to_vec::<T>().unwrap();
            assert!(y.iter().all(|v| warpsmith::dtype::Element::to_f64(*v) == 3.0));
        });
    }
}

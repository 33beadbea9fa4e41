//! The kernels at sizes that fill a GPU: bytes a second of those that memory limits, as shares of what a plain copy reaches
//! on the same card, and operations a second of matrix products. The rows are those of `scripts/bench-torch.py`.
//!
//! Times come from marks in the device's queue around several calls, so what the host does between launches is hidden as
//! it is in training. Each row's result is compared with the CPU's before it counts. What a device has no kernels for is
//! listed, not timed; what held the clocks back is reported with the figures.

#![forbid(unsafe_code)]

mod images;

use std::time::{Duration, Instant};

use super::{Times, normal, wrong};
use crate::device::nvml::{self, Nvml};
use crate::device::{Stream, cuda};
use crate::optim::{Adam, Optimizer};
use crate::tensor::no_grad;
use crate::{Arena, DType, Device, Error, ErrorKind, Result, Tensor};

/// Milliseconds that one measurement lasts at least: far above the resolution of a mark, half a microsecond.
const SPAN: f64 = 4.0;

/// What to time.
#[derive(Clone, Debug)]
pub struct KernelsBench {
    /// Only rows whose name contains one of these; all where it is empty.
    pub only: Vec<String>,
    /// How long a row is timed, at least.
    pub time: Duration,
    /// Where to run: a GPU.
    pub device: Device,
    /// Tiny sizes: to see that it works, not how fast.
    pub small: bool,
}

/// The time of one kernel, or of the few that make an op.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelRow {
    /// The row's name: op, dtype, and size where there are several.
    pub kernel: String,
    /// Median, least and 90th percentile of the microseconds of a call.
    pub median_us: f64,
    /// The least.
    pub min_us: f64,
    /// The 90th percentile.
    pub p90_us: f64,
    /// 10⁹ bytes a second that must be moved, where memory is the limit.
    pub gb_s: Option<f64>,
    /// That as a share of the copy's.
    pub share: Option<f64>,
    /// 10¹² operations a second, where arithmetic is the limit.
    pub tflop_s: Option<f64>,
}

/// All that was measured.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelReport {
    /// The device's name.
    pub gpu: String,
    /// The rows, `copy` first.
    pub rows: Vec<KernelRow>,
    /// Rows that this device has no kernels for, and why.
    pub unsupported: Vec<(String, String)>,
    /// What held the clocks back at the end, in words; empty: nothing, or nobody can tell.
    pub held_back: Vec<&'static str>,
    /// At the end: MHz of the multiprocessors, °C, watts.
    pub conditions: (Option<u32>, Option<u32>, Option<f64>),
}

/// What a call costs at least.
#[derive(Clone, Copy)]
enum Work {
    Bytes(f64),
    Operations(f64),
}

struct Sizes {
    rows: usize,
    cols: usize,
    /// Sides of the square products.
    sides: [usize; 2],
    parameters: usize,
}

type Call = fn(&[Tensor]) -> Result<Tensor>;

impl KernelsBench {
    /// Times the rows.
    ///
    /// # Errors
    /// Kind `Diverged`: a result is not what it must be. Kind `Argument`: the device is no GPU, or `only` fits no row.
    pub fn run(&self, mut progress: impl FnMut(&str)) -> Result<KernelReport> {
        let Some(stream) = self.device.stream() else {
            let help = "name a GPU, as in --device cuda; bench ops times the CPU";
            return Err(Error::argument(format!("{} has no kernels", self.device)).with_help(help));
        };
        let sizes = match self.small {
            true => Sizes { rows: 6, cols: 96, sides: [48, 64], parameters: 1000 },
            false => Sizes { rows: 16384, cols: 4096, sides: [4096, 8192], parameters: 1 << 26 },
        };
        let mut report = KernelReport {
            gpu: stream.info().name.clone(),
            rows: Vec::new(),
            unsupported: Vec::new(),
            held_back: Vec::new(),
            conditions: (None, None, None),
        };
        let copy = self.copy(stream, &sizes)?;
        let rate = copy.gb_s.unwrap_or(f64::INFINITY);
        report.rows.push(copy);
        no_grad(|| {
            for dtype in [DType::F32, DType::BF16] {
                self.elementwise(stream, dtype, &sizes, &mut report, &mut progress)?;
            }
            self.adam(stream, &sizes, &mut report, &mut progress)?;
            for dtype in [DType::F32, DType::BF16] {
                for side in sizes.sides {
                    self.product(stream, dtype, side, &mut report, &mut progress)?;
                }
                self.images(stream, dtype, &mut report, &mut progress)?;
            }
            Ok::<(), Error>(())
        })?;
        for row in &mut report.rows {
            row.share = row.gb_s.map(|gb_s| gb_s / rate);
        }
        if report.rows.len() + report.unsupported.len() == 1 && !self.only.is_empty() {
            return Err(Error::argument(format!("--only {}: no such row", self.only.join(","))));
        }
        if let Device::Cuda(index) = self.device {
            let found = cuda::survey().devices.ok().and_then(|all| all.into_iter().nth(index.into()));
            if let Some(reading) = found.and_then(|found| Nvml::open()?.read(&found.bus)) {
                report.held_back = nvml::reasons(reading.throttle.unwrap_or(0));
                report.conditions = (reading.clock.0, reading.temperature, reading.power);
            }
        }
        Ok(report)
    }

    fn wanted(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| name.contains(only.as_str()))
    }

    /// Median and others of `call`, between marks of the queue.
    fn time(
        &self,
        stream: &Stream,
        name: String,
        work: Work,
        mut call: impl FnMut() -> Result<()>,
    ) -> Result<KernelRow> {
        let mut span = |calls: usize| {
            let from = stream.record()?;
            (0..calls).try_for_each(|_| call())?;
            let to = stream.record()?;
            stream.elapsed(&from, &to)
        };
        // The first calls load modules and fill the memory pool.
        span(2)?;
        let once = span(3)? / 3.0;
        let calls = (SPAN / once.max(1e-4)).ceil().clamp(1.0, 1000.0) as usize;
        let (mut times, end) = (Vec::new(), Instant::now() + self.time);
        while times.len() < 7 || Instant::now() < end {
            times.push(span(calls)? / calls as f64);
        }
        let times = Times::sorted(times);
        let rate = |amount: f64, unit: f64| amount / (times.median() * 1e-3).max(1e-12) / unit;
        let us = |ms: f64| (ms * 1e6).round() / 1e3;
        Ok(KernelRow {
            kernel: name,
            median_us: us(times.median()),
            min_us: us(times.quantile(0.0)),
            p90_us: us(times.quantile(0.9)),
            gb_s: if let Work::Bytes(n) = work { Some(rate(n, 1e9)) } else { None },
            share: None,
            tflop_s: if let Work::Operations(n) = work { Some(rate(n, 1e12)) } else { None },
        })
    }

    /// The driver's own copy within the device's memory: what all rates of bytes are held against.
    fn copy(&self, stream: &'static Stream, sizes: &Sizes) -> Result<KernelRow> {
        let bytes = sizes.rows * sizes.cols * 4;
        let (mut from, mut to) = (stream.temp(DType::F32, bytes / 4)?, stream.temp(DType::F32, bytes / 4)?);
        let (source, target) = (from.dst().address(), to.dst().address());
        stream.fill(source, 0x5a, bytes)?;
        stream.fill(target, 0, bytes)?;
        let row = self.time(stream, "copy".to_owned(), Work::Bytes(2.0 * bytes as f64), || {
            stream.copy(target, source, bytes)
        })?;
        let mut last = [0; 4];
        stream.download(&mut last, target + (bytes - 4) as u64)?;
        match last {
            [0x5a, 0x5a, 0x5a, 0x5a] => Ok(row),
            _ => Err(wrong("copy", format!("the last bytes are {last:?}"))),
        }
    }

    /// Ops that read and write rows of a matrix, each checked on some rows against the CPU.
    fn elementwise(
        &self,
        stream: &Stream,
        dtype: DType,
        sizes: &Sizes,
        report: &mut KernelReport,
        progress: &mut impl FnMut(&str),
    ) -> Result<()> {
        let Sizes { rows, cols, .. } = *sizes;
        // Name, op, matrices read and written, whether it takes a weight and a bias.
        let cases: [(&str, Call, usize, usize); 8] = [
            ("relu", |x| x[0].relu(), 2, 0),
            ("gelu", |x| x[0].gelu(), 2, 0),
            ("add", |x| x[0].add(&x[1]), 3, 0),
            ("mul_add", |x| x[0].mul(&x[1])?.add(&x[1]), 6, 0),
            ("softmax", |x| x[0].softmax(-1), 2, 0),
            ("log_softmax", |x| x[0].log_softmax(-1), 2, 0),
            ("layer_norm", |x| x[0].layer_norm(x[2].numel(), Some(&x[2]), Some(&x[3]), 1e-5), 2, 2),
            ("rms_norm", |x| x[0].rms_norm(x[2].numel(), Some(&x[2]), 1e-6), 2, 1),
        ];
        let names: Vec<String> = cases.iter().map(|c| format!("{}_{}", c.0, dtype.name())).collect();
        if !names.iter().any(|name| self.wanted(name)) {
            return Ok(());
        }
        let inputs = [
            tensor(&[rows, cols], dtype, 1, self.device)?,
            tensor(&[rows, cols], dtype, 2, self.device)?,
            tensor(&[cols], dtype, 3, self.device)?,
            tensor(&[cols], dtype, 4, self.device)?,
        ];
        for ((_, call, matrices, vectors), name) in cases.into_iter().zip(names) {
            if !self.wanted(&name) {
                continue;
            }
            progress(&name);
            let output = match call(&inputs) {
                Ok(output) => output,
                Err(e) if e.kind() == ErrorKind::Unsupported => {
                    report.unsupported.push((name, e.to_string()));
                    continue;
                }
                Err(e) => return Err(e),
            };
            for row in [0, rows / 3 + 1, rows - 1] {
                let part = |x: &Tensor| match x.rank() {
                    2 => x.narrow(0, row, 1)?.contiguous()?.to_device(Device::Cpu),
                    _ => x.to_device(Device::Cpu),
                };
                let want = call(&inputs.iter().map(part).collect::<Result<Vec<_>>>()?)?;
                near(&name, &part(&output)?, &want, 16.0 * epsilon(dtype), 4.0 * epsilon(dtype))?;
            }
            drop(output);
            let bytes = (matrices * rows * cols + vectors * cols) * dtype.size();
            let row = self.time(stream, name, Work::Bytes(bytes as f64), || call(&inputs).map(drop))?;
            report.rows.push(row);
        }
        Ok(())
    }

    /// One step of Adam over one large parameter: value, gradient and two moments read, all but the gradient written.
    fn adam(
        &self,
        stream: &Stream,
        sizes: &Sizes,
        report: &mut KernelReport,
        progress: &mut impl FnMut(&str),
    ) -> Result<()> {
        let (name, n) = ("adam_f32".to_owned(), sizes.parameters);
        if !self.wanted(&name) {
            return Ok(());
        }
        progress(&name);
        let arena = Arena::new(DType::F32, self.device)?;
        let param = arena.register("p", n, &vec![0.25; n])?;
        let gradient = tensor(&[n], DType::F32, 5, self.device)?;
        let outcome = (|| {
            arena.grads()?.narrow(0, 0, n)?.copy_(&gradient)?;
            let mut adam = Optimizer::new(&arena, Adam::default(), 1e-3)?;
            param.set_has_grad();
            adam.step()?;
            Ok(adam)
        })();
        let mut adam = match outcome {
            Ok(adam) => adam,
            Err(e) if Error::kind(&e) == ErrorKind::Unsupported => {
                report.unsupported.push((name, e.to_string()));
                return Ok(());
            }
            Err(e) => return Err(e),
        };
        for i in [0, n / 3, n - 1] {
            let one = |x: &Tensor| Ok(x.narrow(0, i, 1)?.to_f64_vec()?[0]);
            let (value, g) = (one(&param.get()?)?, one(&gradient)?);
            // Adam's first step is the learning rate against the gradient's sign, but for eps.
            let want = 0.25 - 1e-3 * g / (g.abs() + 1e-8);
            if !((value - want).abs() <= 1e-6) {
                return Err(wrong(&name, format!("parameter {i} is {value}, expected {want}")));
            }
        }
        let row = self.time(stream, name, Work::Bytes(28.0 * n as f64), || {
            param.set_has_grad();
            adam.step()
        })?;
        report.rows.push(row);
        Ok(())
    }

    /// A product of two square matrices, some rows of it checked against the CPU.
    fn product(
        &self,
        stream: &Stream,
        dtype: DType,
        side: usize,
        report: &mut KernelReport,
        progress: &mut impl FnMut(&str),
    ) -> Result<()> {
        let name = format!("matmul_{}_{side}", dtype.name());
        if !self.wanted(&name) {
            return Ok(());
        }
        let a = tensor(&[side, side], dtype, 6, self.device)?;
        let b = tensor(&[side, side], dtype, 7, self.device)?;
        let check = |output: &Tensor| {
            let host = b.to_device(Device::Cpu)?.to_dtype(DType::F32)?;
            let spread = (side as f64).sqrt();
            [0, side / 3 + 1, side - 1].into_iter().try_for_each(|row| {
                // Sums of products of standard normal numbers: one missing or doubled is far outside of this.
                let want = on_host(&a, row)?.matmul(&host)?;
                near(&name, &on_host(output, row)?, &want, epsilon(dtype), 1e-4 * spread)
            })
        };
        let work = Work::Operations(2.0 * (side as f64).powi(3));
        self.row(stream, &name, work, report, progress, || a.matmul(&b), check)
    }

    /// Runs `call`, checks its result, times it; lists it where the device has no kernels for it.
    #[allow(clippy::too_many_arguments, reason = "one row's whole description")]
    fn row(
        &self,
        stream: &Stream,
        name: &str,
        work: Work,
        report: &mut KernelReport,
        progress: &mut impl FnMut(&str),
        call: impl Fn() -> Result<Tensor>,
        check: impl FnOnce(&Tensor) -> Result<()>,
    ) -> Result<()> {
        progress(name);
        match call() {
            Ok(output) => check(&output)?,
            Err(e) if e.kind() == ErrorKind::Unsupported => {
                report.unsupported.push((name.to_owned(), e.to_string()));
                return Ok(());
            }
            Err(e) => return Err(e),
        }
        report.rows.push(self.time(stream, name.to_owned(), work, || call().map(drop))?);
        Ok(())
    }
}

/// Entry `index` of the first dimension, which stays, in f32 on the host.
fn on_host(x: &Tensor, index: usize) -> Result<Tensor> {
    x.narrow(0, index, 1)?.contiguous()?.to_device(Device::Cpu)?.to_dtype(DType::F32)
}

/// The distance from 1 to the next number.
fn epsilon(dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => 2f64.powi(-7),
        DType::F16 => 2f64.powi(-10),
        _ => 2f64.powi(-23),
    }
}

/// Standard normal numbers on the device; a block of them repeated where there are many.
fn tensor(shape: &[usize], dtype: DType, stream: u64, device: Device) -> Result<Tensor> {
    let n: usize = shape.iter().product();
    // A prime, so that rows differ.
    let block = normal(n.min(1_000_003), 11, stream);
    let values: Vec<f32> = block.iter().copied().cycle().take(n).collect();
    let on_host = Tensor::from_slice(&values, shape, Device::Cpu)?.to_dtype(dtype)?;
    on_host.to_device(device)
}

/// Compares elements, with a relative and an absolute allowance.
fn near(name: &str, got: &Tensor, want: &Tensor, relative: f64, absolute: f64) -> Result<()> {
    let (got, want) = (got.to_f64_vec()?, want.to_f64_vec()?);
    match got.iter().zip(&want).position(|(g, w)| !((g - w).abs() <= relative * w.abs() + absolute)) {
        Some(i) => Err(wrong(name, format!("element {i} of a row is {}, expected {}", got[i], want[i]))),
        None => Ok(()),
    }
}

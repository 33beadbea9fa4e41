//! Rows of images: convolutions, forward and both backwards, at a size from the middle of a residual network, and what goes
//! between them.

#![forbid(unsafe_code)]

use super::{KernelReport, KernelsBench, Work, epsilon, near, on_host, tensor};
use crate::device::Stream;
use crate::ops::{Conv, ConvInputBackward, ConvWeightBackward, Window, run1};
use crate::{DType, Result, Tensor};

impl KernelsBench {
    /// Times convolutions, pooling and batch normalisation.
    pub(super) fn images(
        &self,
        stream: &Stream,
        dtype: DType,
        report: &mut KernelReport,
        progress: &mut impl FnMut(&str),
    ) -> Result<()> {
        let (n, c, side) = if self.small { (2, 8, 6) } else { (64, 128, 28) };
        let names = ["conv3x3", "conv3x3_dgrad", "conv3x3_wgrad", "conv1x1", "max_pool", "batch_norm"]
            .map(|name| format!("{name}_{}", dtype.name()));
        if !names.iter().any(|name| self.wanted(name)) {
            return Ok(());
        }
        let x = tensor(&[n, c, side, side], dtype, 21, self.device)?;
        let dy = tensor(&[n, c, side, side], dtype, 22, self.device)?;
        let host = |t: &Tensor| t.to_device(crate::Device::Cpu)?.to_dtype(DType::F32);
        let images = [0, n - 1];
        for kernel in [3, 1] {
            let conv = Conv { padding: [kernel / 2; 2], ..Conv::default() };
            let w = tensor(&[c, c, kernel, kernel], dtype, 23, self.device)?;
            let terms = (c * kernel * kernel) as f64;
            let work = || Work::Operations(2.0 * terms * (n * c * side * side) as f64);
            let absolute = 1e-4 * terms.sqrt();
            let name = &names[if kernel == 3 { 0 } else { 3 }];
            if self.wanted(name) {
                self.row(
                    stream,
                    name,
                    work(),
                    report,
                    progress,
                    || x.conv2d(&w, None, conv),
                    |y| {
                        images.into_iter().try_for_each(|i| {
                            let want = on_host(&x, i)?.conv2d(&host(&w)?, None, conv)?;
                            near(name, &on_host(y, i)?, &want, epsilon(dtype), absolute)
                        })
                    },
                )?;
            }
            if kernel == 3 && self.wanted(&names[1]) {
                let op = ConvInputBackward { conv, size: [side, side] };
                self.row(
                    stream,
                    &names[1],
                    work(),
                    report,
                    progress,
                    || run1(op, &[&dy, &w]),
                    |dx| {
                        images.into_iter().try_for_each(|i| {
                            let want = run1(op, &[&on_host(&dy, i)?, &host(&w)?])?;
                            near(&names[1], &on_host(dx, i)?, &want, epsilon(dtype), absolute)
                        })
                    },
                )?;
            }
            if kernel == 3 && self.wanted(&names[2]) {
                let op = ConvWeightBackward { conv, kernel: [kernel, kernel] };
                self.row(
                    stream,
                    &names[2],
                    work(),
                    report,
                    progress,
                    || run1(op, &[&dy, &x]),
                    |dw| {
                        // Two filters, each a sum over all images.
                        let of = |t: &Tensor, i: usize| host(&t.narrow(1, i, 1)?.contiguous()?);
                        let pixels = (n * side * side) as f64;
                        [0, c - 1].into_iter().try_for_each(|i| {
                            let want = run1(op, &[&of(&dy, i)?, &host(&x)?])?;
                            near(&names[2], &on_host(dw, i)?, &want, epsilon(dtype), 1e-4 * pixels.sqrt())
                        })
                    },
                )?;
            }
        }
        let bytes = |images: f64| Work::Bytes(images * (n * c * side * side * dtype.size()) as f64);
        let absolute = 4.0 * epsilon(dtype);
        if self.wanted(&names[4]) {
            let pool = |x: &Tensor| x.max_pool2d(Window::new([2, 2]));
            self.row(
                stream,
                &names[4],
                bytes(1.25),
                report,
                progress,
                || pool(&x),
                |y| {
                    images.into_iter().try_for_each(|i| {
                        near(&names[4], &on_host(y, i)?, &pool(&on_host(&x, i)?)?, 0.0, 0.0)
                    })
                },
            )?;
        }
        if self.wanted(&names[5]) {
            let (mean, var) =
                (tensor(&[c], dtype, 24, self.device)?, tensor(&[c], dtype, 25, self.device)?.square()?);
            let norm =
                |x: &Tensor, mean: &Tensor, var: &Tensor| x.batch_norm_eval(mean, var, None, None, 1e-5);
            self.row(
                stream,
                &names[5],
                bytes(2.0),
                report,
                progress,
                || norm(&x, &mean, &var),
                |y| {
                    images.into_iter().try_for_each(|i| {
                        let want = norm(&on_host(&x, i)?, &host(&mean)?, &host(&var)?)?;
                        near(&names[5], &on_host(y, i)?, &want, 16.0 * epsilon(dtype), absolute)
                    })
                },
            )?;
        }
        Ok(())
    }
}

//! The gradient checker: compares `backward` with central differences, element by element, in f64.

#![forbid(unsafe_code)]

use super::backward_from;
use crate::{DType, Device, Error, ErrorKind, Result, Tensor};

/// How [`gradcheck`] compares; the defaults suit functions of moderate curvature around 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GradCheck {
    /// Half the distance of the difference quotient.
    pub step: f64,
    /// Absolute tolerance.
    pub atol: f64,
    /// Relative tolerance.
    pub rtol: f64,
}

impl Default for GradCheck {
    fn default() -> GradCheck {
        GradCheck { step: 1e-6, atol: 1e-7, rtol: 1e-5 }
    }
}

/// Checks the whole Jacobian of `f` at `inputs` (f64; those that are floating point are differentiated).
///
/// `f` gets the inputs as leaves and returns any number of f64 outputs. The error, of kind `Internal`, names the first
/// element that disagrees: input, output, position and both values.
///
/// ```
/// use warpsmith::{Device, Tensor, autograd::{GradCheck, gradcheck}};
/// let x = Tensor::from_slice(&[0.5f64, -1.0, 2.0], [3], Device::cpu())?;
/// gradcheck(|x| Ok(vec![x[0].transpose(0, 0)?]), &[x], GradCheck::default())?;
/// # Ok::<(), warpsmith::Error>(())
/// ```
pub fn gradcheck(
    f: impl Fn(&[Tensor]) -> Result<Vec<Tensor>>,
    inputs: &[Tensor],
    options: GradCheck,
) -> Result<()> {
    let leaves = inputs
        .iter()
        .map(|t| if t.dtype().is_float() { t.as_leaf() } else { Ok(t.clone()) })
        .collect::<Result<Vec<_>>>()?;
    let outputs = f(&leaves)?;
    let constants: Vec<Tensor> = inputs.iter().map(Tensor::detach).collect();
    for (k, input) in inputs.iter().enumerate().filter(|(_, t)| t.dtype().is_float()) {
        if input.dtype() != DType::F64 {
            return Err(Error::dtype("gradcheck", format!("input {k} is {}; use f64", input.dtype())));
        }
        let numeric = numeric_jacobian(&f, &constants, k, options.step)?;
        for (o, output) in outputs.iter().enumerate().filter(|(_, t)| t.dtype().is_float()) {
            for i in 0..output.numel() {
                let row = analytic_row(output, i, &leaves[k])?;
                for (j, (&got, column)) in row.iter().zip(&numeric).enumerate() {
                    let want = column[o][i];
                    let tolerance = options.atol + options.rtol * want.abs();
                    if !(want.is_finite() && (got - want).abs() <= tolerance) {
                        let message = format!(
                            "d output {o}[{i}] / d input {k}[{j}]: backward gives {got:e}, central differences {want:e}"
                        );
                        return Err(Error::new(ErrorKind::Internal, message).with_op("gradcheck"));
                    }
                }
            }
        }
    }
    Ok(())
}

/// d output[i] / d leaf, by backward; zeros where the output does not depend on the leaf.
fn analytic_row(output: &Tensor, i: usize, leaf: &Tensor) -> Result<Vec<f64>> {
    if !output.requires_grad() {
        return Ok(vec![0.0; leaf.numel()]);
    }
    let mut seed = vec![0.0f64; output.numel()];
    seed[i] = 1.0;
    let grads = backward_from(output, &Tensor::from_slice(&seed, output.shape(), Device::cpu())?)?;
    grads.get(leaf).map_or_else(|| Ok(vec![0.0; leaf.numel()]), Tensor::to_vec)
}

/// `[j][o][i]` = d output o [i] / d input[j], by central differences.
fn numeric_jacobian(
    f: &impl Fn(&[Tensor]) -> Result<Vec<Tensor>>,
    inputs: &[Tensor],
    k: usize,
    step: f64,
) -> Result<Vec<Vec<Vec<f64>>>> {
    let base: Vec<f64> = inputs[k].to_vec()?;
    let at = |j: usize, delta: f64| -> Result<Vec<Vec<f64>>> {
        let mut moved = base.clone();
        moved[j] += delta;
        let mut args = inputs.to_vec();
        args[k] = Tensor::from_slice(&moved, inputs[k].shape(), Device::cpu())?;
        f(&args)?.iter().map(Tensor::to_f64_vec).collect()
    };
    let column = |j: usize| -> Result<Vec<Vec<f64>>> {
        let (up, down) = (at(j, step)?, at(j, -step)?);
        let slope = |(u, d): (&f64, &f64)| (u - d) / (2.0 * step);
        Ok(up.iter().zip(&down).map(|(u, d)| u.iter().zip(d).map(slope).collect()).collect())
    };
    (0..base.len()).map(column).collect()
}

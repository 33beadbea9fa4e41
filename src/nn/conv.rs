//! Convolutional layers: what PyTorch's modules of the same names do, with the same parameters and initial values.

#![forbid(unsafe_code)]

use super::{Activation, Cx, Init, Module, Scope};
use crate::ops::Conv;
use crate::{Error, Param, Result, Tensor};

/// The settings of a convolutional layer over `N` dimensions (height before width); the defaults are PyTorch's.
///
/// # Examples
/// ```
/// use warpsmith::nn::ConvOptions;
/// let options = ConvOptions { padding: [1, 1], ..ConvOptions::default() };
/// assert!(options.bias && options.stride == [1, 1] && options.groups == 1);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvOptions<const N: usize> {
    /// Pixels of the image from one place of the kernel to the next.
    pub stride: [usize; N],
    /// Zeros around the image, on both sides.
    pub padding: [usize; N],
    /// Pixels of the image from one element of the kernel to the next.
    pub dilation: [usize; N],
    /// Parts that the channels are cut into; each filter sees one of them.
    pub groups: usize,
    /// Whether there is a bias.
    pub bias: bool,
}

impl<const N: usize> Default for ConvOptions<N> {
    fn default() -> Self {
        let Conv { stride, padding, dilation, groups } = Conv::default();
        ConvOptions { stride, padding, dilation, groups, bias: true }
    }
}

impl<const N: usize> ConvOptions<N> {
    fn conv(self) -> Conv<N> {
        let ConvOptions { stride, padding, dilation, groups, .. } = self;
        Conv { stride, padding, dilation, groups }
    }

    /// An error for settings that fit no image.
    fn check(&self, inputs: usize, outputs: usize, kernel: &[usize]) -> Result<()> {
        let counts = self.stride.iter().chain(&self.dilation).chain(kernel).chain([&self.groups]);
        if counts.clone().any(|&n| n == 0) {
            let message =
                format!("kernel {kernel:?}, stride, dilation and groups must be at least 1: {self:?}");
            return Err(Error::argument(message));
        }
        if !inputs.is_multiple_of(self.groups) || !outputs.is_multiple_of(self.groups) {
            let message =
                format!("{inputs} and {outputs} channels cannot both be cut into {} groups", self.groups);
            return Err(Error::argument(message));
        }
        Ok(())
    }
}

/// The parameters `weight` and `bias` of a layer: U(−1/√fan, 1/√fan) both, where a fan is a filter's elements,
/// `shape[1] · kernel`.
fn parameters(scope: &Scope, shape: &[usize], outputs: usize, bias: bool) -> Result<(Param, Option<Param>)> {
    let fan = shape[1..].iter().try_fold(1usize, |all, &n| all.checked_mul(n));
    let fan =
        fan.ok_or_else(|| Error::argument(format!("a weight of {shape:?} is beyond the address space")))?;
    let weight = scope.param("weight", shape, Init::linear_weight())?;
    let bias = bias.then(|| scope.param("bias", outputs, Init::linear_bias(fan))).transpose()?;
    Ok((weight, bias))
}

fn get(bias: &Option<Param>) -> Result<Option<Tensor>> {
    bias.as_ref().map(Param::get).transpose()
}

/// Convolution of sequences: x `[n, in, l]`, y `[n, out, l′]`. Parameters `weight [out, in / groups, k]` and `bias [out]`,
/// drawn from U(−b, b) with b = 1/√(in / groups · k). The activation (none by default) is fused into the product.
#[derive(Clone)]
pub struct Conv1d {
    weight: Param,
    bias: Option<Param>,
    conv: Conv<1>,
    activation: Activation,
}

impl Conv1d {
    /// A layer of `outputs` filters over `inputs` channels.
    ///
    /// Errors: a size, stride or dilation of 0, channels that the groups do not divide.
    pub fn new(
        scope: &Scope,
        inputs: usize,
        outputs: usize,
        kernel: [usize; 1],
        options: ConvOptions<1>,
    ) -> Result<Conv1d> {
        options.check(inputs, outputs, &kernel)?;
        let shape = [outputs, inputs / options.groups, kernel[0]];
        let (weight, bias) = parameters(scope, &shape, outputs, options.bias)?;
        Ok(Conv1d { weight, bias, conv: options.conv(), activation: Activation::Identity })
    }

    /// Applies `activation` to the result.
    pub fn with_activation(mut self, activation: Activation) -> Conv1d {
        self.activation = activation;
        self
    }
}

impl Module for Conv1d {
    #[track_caller]
    fn forward(&self, _: &mut Cx, x: &Tensor) -> Result<Tensor> {
        x.conv1d_activated(&self.weight.get()?, get(&self.bias)?.as_ref(), self.conv, self.activation)
    }

    fn params(&self) -> Vec<Param> {
        [&self.weight].into_iter().chain(&self.bias).cloned().collect()
    }
}

/// Convolution of images: x `[n, in, h, w]`, y `[n, out, h′, w′]`. Parameters `weight [out, in / groups, kh, kw]` and
/// `bias [out]`, drawn from U(−b, b) with b = 1/√(in / groups · kh · kw). The activation (none by default) is fused into the
/// product.
#[derive(Clone)]
pub struct Conv2d {
    weight: Param,
    bias: Option<Param>,
    conv: Conv<2>,
    activation: Activation,
}

impl Conv2d {
    /// A layer of `outputs` filters over `inputs` channels.
    ///
    /// Errors: a size, stride or dilation of 0, channels that the groups do not divide.
    pub fn new(
        scope: &Scope,
        inputs: usize,
        outputs: usize,
        kernel: [usize; 2],
        options: ConvOptions<2>,
    ) -> Result<Conv2d> {
        options.check(inputs, outputs, &kernel)?;
        let shape = [outputs, inputs / options.groups, kernel[0], kernel[1]];
        let (weight, bias) = parameters(scope, &shape, outputs, options.bias)?;
        Ok(Conv2d { weight, bias, conv: options.conv(), activation: Activation::Identity })
    }

    /// Applies `activation` to the result.
    pub fn with_activation(mut self, activation: Activation) -> Conv2d {
        self.activation = activation;
        self
    }
}

impl Module for Conv2d {
    #[track_caller]
    fn forward(&self, _: &mut Cx, x: &Tensor) -> Result<Tensor> {
        x.conv2d_activated(&self.weight.get()?, get(&self.bias)?.as_ref(), self.conv, self.activation)
    }

    fn params(&self) -> Vec<Param> {
        [&self.weight].into_iter().chain(&self.bias).cloned().collect()
    }
}

/// Transposed convolution of images: x `[n, in, h, w]`, y `[n, out, h′, w′]`. Parameters `weight [in, out / groups, kh, kw]` and
/// `bias [out]`, drawn from U(−b, b) with b = 1/√(out / groups · kh · kw), which is PyTorch's reading of a fan here.
#[derive(Clone)]
pub struct ConvTranspose2d {
    weight: Param,
    bias: Option<Param>,
    conv: Conv<2>,
    output_padding: [usize; 2],
    activation: Activation,
}

impl ConvTranspose2d {
    /// A layer from `inputs` to `outputs` channels, with an output padding of 0.
    ///
    /// Errors: a size, stride or dilation of 0, channels that the groups do not divide.
    pub fn new(
        scope: &Scope,
        inputs: usize,
        outputs: usize,
        kernel: [usize; 2],
        options: ConvOptions<2>,
    ) -> Result<ConvTranspose2d> {
        options.check(inputs, outputs, &kernel)?;
        let shape = [inputs, outputs / options.groups, kernel[0], kernel[1]];
        let (weight, bias) = parameters(scope, &shape, outputs, options.bias)?;
        let activation = Activation::Identity;
        Ok(ConvTranspose2d { weight, bias, conv: options.conv(), output_padding: [0, 0], activation })
    }

    /// Rows and columns added at the end of the result: which of the sizes that a strided convolution maps to one is meant.
    pub fn with_output_padding(mut self, output_padding: [usize; 2]) -> ConvTranspose2d {
        self.output_padding = output_padding;
        self
    }

    /// Applies `activation` to the result.
    pub fn with_activation(mut self, activation: Activation) -> ConvTranspose2d {
        self.activation = activation;
        self
    }
}

impl Module for ConvTranspose2d {
    #[track_caller]
    fn forward(&self, cx: &mut Cx, x: &Tensor) -> Result<Tensor> {
        let bias = get(&self.bias)?;
        let y = x.conv_transpose2d(&self.weight.get()?, bias.as_ref(), self.conv, self.output_padding)?;
        self.activation.forward(cx, &y)
    }

    fn params(&self) -> Vec<Param> {
        [&self.weight].into_iter().chain(&self.bias).cloned().collect()
    }
}

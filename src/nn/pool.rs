//! Layers without parameters that change the size of images and rows: pooling and upsampling.

#![forbid(unsafe_code)]

use super::{Cx, Module};
use crate::ops::{Interpolation, Resize, Window};
use crate::{Param, Result, Tensor};

/// The builders that layers with a window share.
macro_rules! windowed {
    ($(#[$doc:meta])* $name:ident, $n:literal, { $($field:ident: $type:ty = $value:expr),* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name {
            window: Window<$n>,
            $($field: $type,)*
        }

        impl $name {
            /// Windows of `kernel` elements, side by side.
            pub fn new(kernel: [usize; $n]) -> $name {
                $name { window: Window::new(kernel), $($field: $value,)* }
            }

            /// The distance between windows.
            pub fn with_stride(mut self, stride: [usize; $n]) -> $name {
                self.window = self.window.with_stride(stride);
                self
            }

            /// How far windows reach beyond the edge: at most half of the kernel.
            pub fn with_padding(mut self, padding: [usize; $n]) -> $name {
                self.window = self.window.with_padding(padding);
                self
            }

            /// Whether a last window that reaches beyond the padded image counts.
            pub fn with_ceil_mode(mut self, ceil_mode: bool) -> $name {
                self.window = self.window.with_ceil_mode(ceil_mode);
                self
            }
        }
    };
}

macro_rules! without_parameters {
    ($name:ident, |$self:ident, $x:ident| $forward:expr) => {
        impl Module for $name {
            #[track_caller]
            fn forward(&$self, _: &mut Cx, $x: &Tensor) -> Result<Tensor> {
                $forward
            }

            fn params(&self) -> Vec<Param> {
                Vec::new()
            }
        }
    };
}

windowed!(
    /// The largest element of each window of `[N, C, H, W]` or `[C, H, W]`: see [`Tensor::max_pool2d`].
    MaxPool2d, 2, {}
);
windowed!(
    /// The largest element of each window of `[N, C, L]` or `[C, L]`: see [`Tensor::max_pool1d`].
    MaxPool1d, 1, {}
);
windowed!(
    /// The average of each window of `[N, C, H, W]` or `[C, H, W]`: see [`Tensor::avg_pool2d`].
    AvgPool2d, 2, { count_include_pad: bool = true }
);
windowed!(
    /// The average of each window of `[N, C, L]` or `[C, L]`: see [`Tensor::avg_pool1d`].
    AvgPool1d, 1, { count_include_pad: bool = true }
);

impl MaxPool2d {
    /// The distance between the elements of a window.
    pub fn with_dilation(self, dilation: [usize; 2]) -> MaxPool2d {
        MaxPool2d { window: self.window.with_dilation(dilation) }
    }
}

impl MaxPool1d {
    /// The distance between the elements of a window.
    pub fn with_dilation(self, dilation: [usize; 1]) -> MaxPool1d {
        MaxPool1d { window: self.window.with_dilation(dilation) }
    }
}

impl AvgPool2d {
    /// Whether the padding counts in the divisor (the default).
    pub fn with_count_include_pad(self, count_include_pad: bool) -> AvgPool2d {
        AvgPool2d { count_include_pad, ..self }
    }
}

impl AvgPool1d {
    /// Whether the padding counts in the divisor (the default).
    pub fn with_count_include_pad(self, count_include_pad: bool) -> AvgPool1d {
        AvgPool1d { count_include_pad, ..self }
    }
}

without_parameters!(MaxPool2d, |self, x| x.max_pool2d(self.window));
without_parameters!(MaxPool1d, |self, x| x.max_pool1d(self.window));
without_parameters!(AvgPool2d, |self, x| x.avg_pool2d(self.window, self.count_include_pad));
without_parameters!(AvgPool1d, |self, x| x.avg_pool1d(self.window, self.count_include_pad));

/// Averages over parts of `[N, C, H, W]` or `[C, H, W]`, as many as the result has elements: see
/// [`Tensor::adaptive_avg_pool2d`].
#[derive(Clone, Copy, Debug)]
pub struct AdaptiveAvgPool2d {
    size: [usize; 2],
}

impl AdaptiveAvgPool2d {
    /// To images of `size`.
    pub fn new(size: [usize; 2]) -> AdaptiveAvgPool2d {
        AdaptiveAvgPool2d { size }
    }
}

without_parameters!(AdaptiveAvgPool2d, |self, x| x.adaptive_avg_pool2d(self.size));

/// Averages over parts of `[N, C, L]` or `[C, L]`, as many as the result has elements: see [`Tensor::adaptive_avg_pool1d`].
#[derive(Clone, Copy, Debug)]
pub struct AdaptiveAvgPool1d {
    size: [usize; 1],
}

impl AdaptiveAvgPool1d {
    /// To rows of `size`.
    pub fn new(size: [usize; 1]) -> AdaptiveAvgPool1d {
        AdaptiveAvgPool1d { size }
    }
}

without_parameters!(AdaptiveAvgPool1d, |self, x| x.adaptive_avg_pool1d(self.size[0]));

/// Images in another size: see [`Tensor::interpolate`].
#[derive(Clone, Copy, Debug)]
pub struct Upsample {
    to: Resize,
    mode: Interpolation,
}

impl Upsample {
    /// To `to`, each element from the nearest one.
    pub fn new(to: Resize) -> Upsample {
        Upsample { to, mode: Interpolation::Nearest }
    }

    /// In another mode.
    pub fn with_mode(self, mode: Interpolation) -> Upsample {
        Upsample { mode, ..self }
    }
}

without_parameters!(Upsample, |self, x| x.interpolate(self.to, self.mode));

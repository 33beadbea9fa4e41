//! Modules made of modules, and the layers without parameters that go between them.

#![forbid(unsafe_code)]

use super::{Cx, Module};
use crate::{Error, Param, Result, Tensor};

/// Modules one after the other.
#[derive(Default)]
pub struct Sequential {
    modules: Vec<Box<dyn Module>>,
}

impl Sequential {
    /// An empty sequence: the identity.
    pub fn new() -> Sequential {
        Sequential::default()
    }

    /// Appends a module.
    pub fn push(mut self, module: impl Module + 'static) -> Sequential {
        self.modules.push(Box::new(module));
        self
    }
}

impl Module for Sequential {
    #[track_caller]
    fn forward(&self, cx: &mut Cx, x: &Tensor) -> Result<Tensor> {
        self.modules.iter().try_fold(x.clone(), |x, module| module.forward(cx, &x))
    }

    fn params(&self) -> Vec<Param> {
        self.modules.iter().flat_map(|m| m.params()).collect()
    }
}

/// `y = main(x) + shortcut(x)`, the shortcut being the identity where there is none (He et al. 2016, arXiv:1512.03385).
/// Both must give one shape.
pub struct Residual {
    main: Box<dyn Module>,
    shortcut: Option<Box<dyn Module>>,
}

impl Residual {
    /// A block whose shortcut is the identity.
    pub fn new(main: impl Module + 'static) -> Residual {
        Residual { main: Box::new(main), shortcut: None }
    }

    /// Sends the input through `shortcut` on its way past the main part.
    pub fn with_shortcut(mut self, shortcut: impl Module + 'static) -> Residual {
        self.shortcut = Some(Box::new(shortcut));
        self
    }
}

impl Module for Residual {
    #[track_caller]
    fn forward(&self, cx: &mut Cx, x: &Tensor) -> Result<Tensor> {
        let y = self.main.forward(cx, x)?;
        let past = match &self.shortcut {
            Some(shortcut) => shortcut.forward(cx, x)?,
            None => x.clone(),
        };
        // A broadcast here would be a mistake that trains.
        if y.shape() != past.shape() {
            let message = format!("the main part gives {}, the shortcut {}", y.shape(), past.shape());
            return Err(Error::shape("residual", message));
        }
        y.add(&past)
    }

    fn params(&self) -> Vec<Param> {
        let shortcut = self.shortcut.iter().flat_map(|m| m.params());
        self.main.params().into_iter().chain(shortcut).collect()
    }
}

/// `[N, ..]` to `[N, the product of the rest]`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flatten;

impl Module for Flatten {
    #[track_caller]
    fn forward(&self, _: &mut Cx, x: &Tensor) -> Result<Tensor> {
        let Some((&rows, rest)) = x.dims().split_first() else {
            return Err(Error::shape("flatten", "a tensor without dimensions has no rows"));
        };
        x.reshape([rows, rest.iter().product()])
    }

    fn params(&self) -> Vec<Param> {
        Vec::new()
    }
}

//! Activations that are computed again in backward instead of being kept: time for memory (arXiv:1604.06174).

#![forbid(unsafe_code)]

use std::sync::Arc;

use super::Engine;
use crate::tensor::node::{BackwardCx, Function, Recompute, Saves, enable_grad, record};
use crate::tensor::{Edge, no_grad};
use crate::{Error, Param, Result, Tensor};

/// Runs `f` on `inputs` without keeping what it computes in between; backward runs it again to have that.
///
/// `params` are all parameters that `f` uses. `f` must give the same bits each time: random choices must come from a state that
/// it holds, as [`Cx`](crate::nn::Cx) does.
///
/// # Errors
/// Those of `f`. In backward, if it used a parameter that is not in `params`, or gave other shapes.
#[track_caller]
pub fn checkpoint(
    inputs: &[&Tensor],
    params: &[Param],
    f: impl Fn(&[Tensor]) -> Result<Vec<Tensor>> + Send + Sync + 'static,
) -> Result<Vec<Tensor>> {
    let constants: Vec<Tensor> = inputs.iter().map(|t| t.detach()).collect();
    let outputs = no_grad(|| f(&constants))?;
    if inputs.len() > 32 {
        return Err(Error::argument(format!(
            "checkpoint of {} inputs: at most 32 are possible",
            inputs.len()
        )));
    }
    let params = params.iter().map(Param::get).collect::<Result<Vec<_>>>()?;
    let all: Vec<&Tensor> = inputs.iter().copied().chain(&params).collect();
    let count = inputs.len();
    let saves = move |_: &[bool]| (0..count).fold(Saves::NONE, |saves, i| saves.and_inputs(&[i]));
    let recompute: Arc<Recompute> = Arc::new(f);
    let outputs = outputs.into_iter().map(|t| t.detach()).collect();
    Ok(record("checkpoint", &all, outputs, &saves, &|| Function::Recompute {
        inputs: count,
        f: recompute.clone(),
    }))
}

impl Engine<'_> {
    /// Goes back through a checkpoint: runs it again, recorded this time, and walks that graph with the gradients `dys` of its
    /// outputs. Parameters of the arena get theirs in place.
    pub(super) fn recompute(
        &mut self,
        node: &crate::tensor::node::Node,
        count: usize,
        f: &Recompute,
        dys: &[Option<Tensor>],
    ) -> Result<()> {
        let inputs = {
            let cx = BackwardCx { node, deliver: self };
            let leaf = |i: usize| if cx.needs(i) { cx.input(i)?.as_leaf() } else { cx.input(i) };
            (0..count).map(leaf).collect::<Result<Vec<_>>>()?
        };
        let outputs = enable_grad(|| f(&inputs))?;
        if !outputs.iter().map(Tensor::meta).eq(node.outputs.iter().copied()) {
            return Err(Error::internal("a checkpoint gave other outputs when it was run again"));
        }
        let mut inner = Engine::new(self.arena);
        inner.params = self.params.clone();
        inner.reached = vec![false; self.params.len()];
        let seeds = outputs.iter().zip(dys).filter_map(|(t, dy)| Some((t, dy.clone()?)));
        let seeds: Vec<_> = seeds.filter(|(t, _)| t.requires_grad()).collect();
        let grads = inner.walk(&seeds, &mut None)?;
        // The inner walk has written to the arena itself.
        for (id, reached) in inner.reached.iter().enumerate().filter(|(_, reached)| **reached) {
            let named =
                |edge: &Edge| matches!(edge, Edge::Leaf(leaf) if leaf.param.is_some_and(|p| p.1 == id));
            if !node.edges[count..].iter().any(named) {
                let name = self.params[id].name();
                let message = format!("a checkpoint uses parameter {name}, which it was not told of");
                return Err(Error::argument(message).with_help("name it in the params of checkpoint"));
            }
            self.reached[id] |= reached;
        }
        let mut cx = BackwardCx { node, deliver: self };
        for (i, input) in inputs.iter().enumerate().filter(|(_, t)| t.requires_grad()) {
            if let Some(gradient) = grads.get(input) {
                cx.give(i, gradient.clone())?;
            }
        }
        // Without an arena parameters are leaves like any other.
        for (i, edge) in node.edges.iter().enumerate().skip(count) {
            if let Edge::Leaf(leaf) = edge
                && let Some(gradient) = grads.0.get(&leaf.id)
            {
                cx.give(i, gradient.clone())?;
            }
        }
        Ok(())
    }
}

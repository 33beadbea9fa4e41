//! The gradient of every op against central differences in f64: the full Jacobian of every small case, contiguous and
//! through a view, with one tensor used three times and as two inputs at once, in every float type, and for zero-size
//! inputs. An op without a gradient is on a list with the reason.

mod harness;

use std::panic::AssertUnwindSafe;

use harness::layouts::{self, Kind, embedding};
use harness::{AnyCase, AnyOp, Report, Rng, Subject, Value, guarded, inputs_of};
use warpsmith::autograd::{GradCheck, backward_from, gradcheck};
use warpsmith::device::Stream;
use warpsmith::ops::{self, Arg, Cases, Op, Plan};
use warpsmith::tensor::{BackwardCx, Meta, Out, View};
use warpsmith::{DType, Error, ErrorKind, Result, Tensor, dispatch};

/// Ops whose inputs may be floats but that have no gradient, and why. Ops named `*_backward` need no entry: gradients are
/// first-order only.
const NO_GRADIENT: &[(&str, &str)] = &[
    ("argmax", "a place is no smooth function of the values"),
    ("argmin", "a place is no smooth function of the values"),
    ("eq", "comparisons are steps"),
    ("ne", "comparisons are steps"),
    ("lt", "comparisons are steps"),
    ("le", "comparisons are steps"),
    ("gt", "comparisons are steps"),
    ("ge", "comparisons are steps"),
    ("running_stats", "running statistics are no function that is trained through"),
];

/// Above this many elements over all inputs a full Jacobian takes too long for what it would add.
const SMALL: usize = 200;

/// The sum of all inputs: a test's own op, so that fan-out does not rest on the ops under test.
#[derive(Clone, Copy, Debug)]
struct Total;

impl Op for Total {
    const NAME: &'static str = "total";

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        Ok(Plan::one(inputs[0]))
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let out = outputs[0].slice::<f64>();
        out.fill(0.0);
        for input in inputs {
            let data = input.slice::<f64>().ok_or_else(|| Error::internal("made for contiguous inputs"))?;
            out.iter_mut().zip(data).for_each(|(o, v)| *o += v);
        }
        Ok(())
    }

    fn gpu(&self, _: &Stream, _: &[View<'_>], _: &mut [Out<'_>]) -> Result<()> {
        Err(Error::unsupported(Self::NAME, "gradients are checked on the CPU"))
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        let Some(dy) = &dys[0] else { return Ok(()) };
        (0..3).try_for_each(|i| cx.give(i, dy.clone()))
    }

    fn cases() -> Cases<Self> {
        Cases::over_shapes(&[], ops::Tolerance::Exact, ops::Values::Normal(1.0), |_| Total)
    }
}

/// Runs a check for every op and prints what it found; less than `floor` comparisons are a failure too.
fn for_every_op(title: &'static str, check: fn(&Subject, &mut Report), floor: usize) {
    let mut report = Report::new(title);
    for subject in harness::subjects() {
        if report.op(subject.name) {
            check(&subject, &mut report);
        }
    }
    report.finish(floor);
}

/// The cases of an op that the check differentiates: a float input carries a gradient, f64 is among the types.
fn differentiable(subject: &Subject) -> Vec<(usize, &AnyCase)> {
    if !subject.dtypes.contains(&DType::F64) || NO_GRADIENT.iter().any(|(name, _)| *name == subject.name) {
        return Vec::new();
    }
    let wanted = |c: &AnyCase| c.inputs.iter().any(|a| a.grad && a.dtype.is_none_or(DType::is_float));
    subject.cases.iter().enumerate().filter(|(_, c)| wanted(c)).collect()
}

fn small(inputs: &[Value]) -> bool {
    inputs.iter().map(Value::numel).sum::<usize>() <= SMALL
}

/// Which inputs of a case are differentiated.
fn differentiated(case: &AnyCase, inputs: &[Value]) -> Vec<usize> {
    (0..inputs.len()).filter(|&i| case.inputs[i].grad && inputs[i].dtype.is_float()).collect()
}

/// All inputs in their order: those of `which` from `leaves`, the others from `constants`.
fn put_back(constants: &[Tensor], which: &[usize], leaves: &[Tensor]) -> Vec<Tensor> {
    let mut all = constants.to_vec();
    which.iter().zip(leaves).for_each(|(&i, leaf)| all[i] = leaf.clone());
    all
}

/// The outputs that the check looks at: without the statistics for backward, which carry no gradient, and in f64 (casts
/// have their turn where they put out f64).
fn run(subject: &Subject, op: &dyn AnyOp, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
    let mut outs = op.run(&inputs.iter().collect::<Vec<_>>())?;
    outs.truncate(outs.len() - subject.statistics);
    outs.retain(|t| t.dtype() == DType::F64);
    Ok(outs)
}

fn jacobians_of_an_op(subject: &Subject, report: &mut Report) {
    for (number, case) in differentiable(subject) {
        let inputs = inputs_of(subject.name, &case.inputs, number, DType::F64);
        let which = differentiated(case, &inputs);
        // Without elements there is nothing to differentiate (and a mean is NaN); the types below run these too.
        if !small(&inputs) || which.iter().all(|&i| inputs[i].numel() == 0) {
            continue;
        }
        let constants: Vec<Tensor> = inputs.iter().map(Value::tensor).collect();
        let bases: Vec<Tensor> = which.iter().map(|&i| constants[i].clone()).collect();
        let op = &*case.op;
        let mut check = |what: &str, outcome: std::result::Result<(), String>| {
            let id = format!("{}:{number}:f64:{what}", subject.name);
            if report.wants(&id) {
                report.check(&id, outcome.map_err(|why| format!("{op:?} on {:?}: {why}", shapes(&inputs))));
            }
        };
        let plain = |x: &[Tensor]| run(subject, op, &put_back(&constants, &which, x));
        check("Contiguous", guarded(|| gradcheck(plain, &bases, GradCheck::default())));

        // Through a view of each leaf; the garbage beside it (1 here: differences of NaN say nothing) must get zero.
        let mut rng = Rng::of(&[&subject.name, &number, &"view"]);
        let kinds = [Kind::Transposed, Kind::Offset, Kind::Strided];
        let first = rng.below(3);
        let embedded: Vec<_> = which
            .iter()
            .map(|&i| {
                let pick = (0..3).find_map(|k| embedding(&inputs[i], kinds[(first + k) % 3], 1.0, &mut rng));
                pick.unwrap_or_else(|| layouts::embed(&inputs[i], vec![], vec![], 1.0))
            })
            .collect();
        let through = |x: &[Tensor]| {
            let views = embedded.iter().zip(x).map(|(e, base)| e.view(base)).collect::<Result<Vec<_>>>()?;
            run(subject, op, &put_back(&constants, &which, &views))
        };
        let leaves: Vec<Tensor> = embedded.iter().map(|e| e.base.tensor()).collect();
        check("View", guarded(|| gradcheck(through, &leaves, GradCheck::default())));

        // One tensor used three times: the first contribution is written, the others added.
        let thrice = |x: &[Tensor]| {
            let mut totals = Vec::new();
            let uses = (0..3).map(|_| plain(x)).collect::<Result<Vec<_>>>()?;
            for ((a, b), c) in uses[0].iter().zip(&uses[1]).zip(&uses[2]) {
                totals.extend(ops::run(Total, &[a, b, c])?);
            }
            Ok(totals)
        };
        check("Thrice", guarded(|| gradcheck(thrice, &bases, GradCheck::default())));

        // The same tensor as several inputs.
        for (a, &i) in which.iter().enumerate() {
            for &j in &which[a + 1..] {
                let same =
                    inputs[i].shape == inputs[j].shape && case.inputs[i].values == case.inputs[j].values;
                if !same {
                    continue;
                }
                let shared = |x: &[Tensor]| {
                    run(subject, op, &put_back(&constants, &[i, j], &[x[0].clone(), x[0].clone()]))
                };
                let leaf = [constants[i].clone()];
                check(&format!("Same{i}{j}"), guarded(|| gradcheck(shared, &leaf, GradCheck::default())));
            }
        }
    }
}

fn shapes(inputs: &[Value]) -> Vec<Vec<usize>> {
    inputs.iter().map(|v| v.shape.clone()).collect()
}

#[test]
fn jacobians_agree_with_central_differences() {
    for_every_op("jacobians", jacobians_of_an_op, 3_100);
}

/// Gradients of every input of every case, by the first output that depends on all of them, seeded with fixed numbers.
fn gradients(case: &AnyCase, inputs: &[Value]) -> Result<Vec<Tensor>> {
    let which = differentiated(case, inputs);
    let leaves = which.iter().map(|&i| inputs[i].tensor().as_leaf()).collect::<Result<Vec<_>>>()?;
    let constants: Vec<Tensor> = inputs.iter().map(Value::tensor).collect();
    let all = put_back(&constants, &which, &leaves);
    let mut outs = case.op.run(&all.iter().collect::<Vec<_>>())?;
    outs.retain(|t| t.requires_grad());
    for out in &outs {
        let seed: Vec<f64> = (0..out.numel()).map(|i| [1.0, -0.5, 0.25, 2.0][i % 4]).collect();
        let grads = backward_from(out, &harness::tensor(&seed, out.dims(), out.dtype(), harness::CPU))?;
        if let Some(grads) = leaves.iter().map(|leaf| grads.get(leaf).cloned()).collect() {
            return Ok(grads);
        }
    }
    if outs.is_empty() { Ok(Vec::new()) } else { Err(Error::internal("an input got no gradient")) }
}

/// Backward in every float type: type and shape right, values near those of f64 for the same rounded inputs.
fn types_of_an_op(subject: &Subject, report: &mut Report) {
    let dtypes: Vec<DType> = subject.dtypes.iter().copied().filter(|d| d.is_float()).collect();
    for (number, case) in differentiable(subject) {
        for &dtype in &dtypes {
            let id = format!("{}:{number}:{dtype}:Type", subject.name);
            if !report.wants(&id) {
                continue;
            }
            let inputs = inputs_of(subject.name, &case.inputs, number, dtype);
            let outcome = guarded(|| gradients(case, &inputs)).and_then(|got| {
                // Inputs of a fixed type (tables) stay as they are.
                let wide: Vec<Value> = inputs
                    .iter()
                    .zip(&case.inputs)
                    .map(|(v, arg)| Value { dtype: arg.dtype.unwrap_or(DType::F64), ..v.clone() })
                    .collect();
                let want = guarded(|| gradients(case, &wide))?;
                let which = differentiated(case, &inputs);
                got.iter().zip(&want).zip(which).try_for_each(|((g, w), i)| near(g, w, &inputs[i], dtype))
            });
            report
                .check(&id, outcome.map_err(|why| format!("{:?} on {:?}: {why}", case.op, shapes(&inputs))));
        }
    }
}

/// A backward of a few steps rounds to the type after each: 32 roundings of the largest gradient, in norm, for the 16-bit
/// types; a thousand for f32 and f64, which also see differences of close values. The kernels' own exactness is judged by
/// their cases; this finds wrong types and lost factors.
fn near(got: &Tensor, want: &Tensor, input: &Value, dtype: DType) -> std::result::Result<(), String> {
    if got.dtype() != dtype || got.dims() != input.shape {
        return Err(format!(
            "gradient is {}{:?}, the input {dtype}{:?}",
            got.dtype(),
            got.dims(),
            input.shape
        ));
    }
    let (g, w) = (got.to_f64_vec().unwrap(), want.to_f64_vec().unwrap());
    let size = w.iter().fold(1.0f64, |m, v| m.max(v.abs()));
    let roundings = if dtype.size() == 2 { 32.0 } else { 1000.0 };
    let bound = roundings * dtype.unit_roundoff() * size;
    match g.iter().zip(&w).position(|(g, w)| !((g - w).abs() <= bound)) {
        Some(i) => Err(format!("gradient [{i}] is {:e}, in f64 {:e}", g[i], w[i])),
        None => Ok(()),
    }
}

#[test]
fn gradients_have_their_inputs_types_and_shapes() {
    for_every_op("types", types_of_an_op, 5_900);
}

/// The list of ops without gradient is complete and says the truth.
fn listing_of_an_op(subject: &Subject, report: &mut Report) {
    let listed = NO_GRADIENT.iter().any(|(name, _)| *name == subject.name);
    let Some(&dtype) = subject.dtypes.iter().find(|d| d.is_float()) else { return };
    let Some((number, case)) = subject
        .cases
        .iter()
        .enumerate()
        .find(|(_, c)| c.inputs.iter().all(|a| a.shape.iter().product::<usize>() > 0))
    else {
        return;
    };
    let inputs = inputs_of(subject.name, &case.inputs, number, dtype);
    // Where the cases differentiate nothing, everything that could carry a gradient.
    let any = case.inputs.iter().any(|a| a.grad);
    let leaf = |(v, arg): (&Value, &Arg)| {
        if v.dtype.is_float() && (arg.grad || !any) { v.tensor().as_leaf().unwrap() } else { v.tensor() }
    };
    let leaves: Vec<Tensor> = inputs.iter().zip(&case.inputs).map(leaf).collect();
    let outs = match guarded(|| case.op.run(&leaves.iter().collect::<Vec<_>>())) {
        Ok(outs) => outs,
        Err(why) => return report.check(subject.name, Err(why)),
    };
    let refused = match outs.iter().find(|t| t.requires_grad()) {
        None => true,
        Some(out) => {
            let seed = dispatch!(out.dtype(), T => {
                Tensor::full(out.shape(), 1.0, <T as warpsmith::dtype::Element>::DTYPE, harness::CPU).unwrap()
            });
            let result = std::panic::catch_unwind(AssertUnwindSafe(|| backward_from(out, &seed)));
            matches!(result, Ok(Err(e)) if e.kind() == ErrorKind::Unsupported)
        }
    };
    let outcome = match (listed, refused) {
        (true, false) => Err("is listed as without gradient but has one: take it off the list".to_owned()),
        (false, true) if !subject.name.ends_with("_backward") => {
            Err("has no gradient and is not on the list of those".to_owned())
        }
        _ => Ok(()),
    };
    report.check(subject.name, outcome);
}

#[test]
fn ops_without_gradient_are_on_the_list() {
    for (name, why) in NO_GRADIENT {
        assert!(!why.is_empty(), "{name}");
    }
    for_every_op("listing", listing_of_an_op, 112);
}

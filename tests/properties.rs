//! The algebra of shapes and views against a model that knows no strides, and the borrows of memory against a list.
//!
//! The model of a view is the list of the positions of its elements in row-major order. A tensor that holds 0, 1, 2, … reads
//! as that list, so that every view function can be compared with what it does to a plain list.

use proptest::prelude::*;
use warpsmith::shape::{Layout, MAX_RANK};
use warpsmith::{DType, Device, ErrorKind, Result, Shape, Tensor};

const CPU: Device = Device::Cpu;

/// A shape and, in row-major order, where each element lies.
#[derive(Clone, Debug, PartialEq)]
struct Model {
    shape: Vec<usize>,
    at: Vec<usize>,
}

/// All multi-indices of `shape`, in row-major order.
fn indices(shape: &[usize]) -> Vec<Vec<usize>> {
    shape.iter().fold(vec![vec![]], |all, &n| {
        all.iter().flat_map(|i: &Vec<usize>| (0..n).map(move |k| [i.as_slice(), &[k]].concat())).collect()
    })
}

impl Model {
    fn new(shape: &[usize]) -> Model {
        Model { shape: shape.to_vec(), at: (0..shape.iter().product()).collect() }
    }

    fn get(&self, index: &[usize]) -> usize {
        self.at[index.iter().zip(&self.shape).fold(0, |at, (i, n)| at * n + i)]
    }

    /// The view of `shape` whose element at `i` is that of `self` at `from(i)`.
    fn picked(&self, shape: Vec<usize>, from: impl Fn(&[usize]) -> Vec<usize>) -> Model {
        let at = indices(&shape).iter().map(|i| self.get(&from(i))).collect();
        Model { shape, at }
    }

    fn permute(&self, dims: &[usize]) -> Model {
        self.picked(dims.iter().map(|&d| self.shape[d]).collect(), |i| {
            let mut back = vec![0; dims.len()];
            dims.iter().zip(i).for_each(|(&d, &k)| back[d] = k);
            back
        })
    }

    fn slice(&self, dim: usize, start: usize, end: usize, step: usize) -> Model {
        let mut shape = self.shape.clone();
        shape[dim] = (start..end).step_by(step).count();
        self.picked(shape, |i| {
            let mut back = i.to_vec();
            back[dim] = start + i[dim] * step;
            back
        })
    }

    fn expand(&self, shape: &[usize]) -> Model {
        let lead = shape.len() - self.shape.len();
        self.picked(shape.to_vec(), |i| {
            i[lead..].iter().zip(&self.shape).map(|(&k, &n)| if n == 1 { 0 } else { k }).collect()
        })
    }

    fn reshape(&self, shape: Vec<usize>) -> Model {
        Model { shape, at: self.at.clone() }
    }
}

/// A step of a walk through views: which, and numbers that choose its arguments from what the shape allows.
type Step = (u8, usize, usize, usize);

/// Applies a step to both. `None`: the step does not apply to this shape.
fn apply(step: Step, t: &Tensor, m: &Model) -> Option<(Result<Tensor>, Model)> {
    let (kind, a, b, c) = step;
    let rank = m.shape.len();
    let dim = if rank > 0 { a % rank } else { 0 };
    // Negative dimensions half of the time.
    let signed = |d: usize| if c % 2 == 0 { d as isize } else { d as isize - rank as isize };
    match kind % 9 {
        0 => {
            let mut dims: Vec<usize> = (0..rank).collect();
            (1..rank).rev().for_each(|i| dims.swap(i, (a / (i + 1) + b) % (i + 1)));
            Some((t.permute(&dims), m.permute(&dims)))
        }
        1 if rank > 0 => {
            let other = b % rank;
            let mut dims: Vec<usize> = (0..rank).collect();
            dims.swap(dim, other);
            Some((t.transpose(signed(dim), signed(other)), m.permute(&dims)))
        }
        2 if rank > 0 => {
            let start = b % (m.shape[dim] + 1);
            let length = c % (m.shape[dim] - start + 1);
            Some((t.narrow(signed(dim), start, length), m.slice(dim, start, start + length, 1)))
        }
        3 if rank > 0 => {
            let start = b % (m.shape[dim] + 1);
            let end = start + c % (m.shape[dim] - start + 1);
            let step = 1 + (a + b) % 4;
            Some((t.slice(signed(dim), start, end, step), m.slice(dim, start, end, step)))
        }
        4 if rank > 0 && m.shape[dim] > 0 => {
            let index = b % m.shape[dim];
            let narrowed = m.slice(dim, index, index + 1, 1);
            let mut shape = narrowed.shape.clone();
            shape.remove(dim);
            Some((t.select(signed(dim), index), narrowed.reshape(shape)))
        }
        5 => {
            let mut shape: Vec<usize> = if rank < 5 && b % 2 == 0 { vec![c % 4] } else { vec![] };
            shape.extend(
                m.shape.iter().enumerate().map(|(d, &n)| if n == 1 && (a >> d) % 2 == 0 { b % 4 } else { n }),
            );
            Some((t.expand(&shape), m.expand(&shape)))
        }
        6 if rank < 6 => {
            let at = a % (rank + 1);
            let mut shape = m.shape.clone();
            shape.insert(at, 1);
            let signed = if c % 2 == 0 { at as isize } else { at as isize - rank as isize - 1 };
            Some((t.unsqueeze(signed), m.reshape(shape)))
        }
        7 if rank > 0 && m.shape[dim] == 1 => {
            let mut shape = m.shape.clone();
            shape.remove(dim);
            Some((t.squeeze(signed(dim)), m.reshape(shape)))
        }
        8 => {
            let shape = factors(m.at.len(), a, b);
            Some((t.reshape(&shape), m.reshape(shape)))
        }
        _ => None,
    }
}

/// A shape of `n` elements.
fn factors(n: usize, a: usize, b: usize) -> Vec<usize> {
    if n == 0 {
        return vec![a % 3, 0, b % 3];
    }
    let divisors: Vec<usize> = (1..=n).filter(|&d| n.is_multiple_of(d)).collect();
    let first = divisors[a % divisors.len()];
    let rest = n / first;
    let divisors: Vec<usize> = (1..=rest).filter(|&d| rest.is_multiple_of(d)).collect();
    let second = divisors[b % divisors.len()];
    vec![first, second, rest / second]
}

fn read(t: &Tensor) -> Vec<usize> {
    t.to_vec::<i64>().unwrap().into_iter().map(|v| v as usize).collect()
}

fn shapes() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![
        4 => prop::collection::vec(1usize..5, 0..5),
        1 => prop::collection::vec(0usize..4, 0..5),
        1 => prop::collection::vec(prop_oneof![Just(1usize), Just(7)], 1..4),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec((any::<u8>(), 0usize..1000, 0usize..1000, 0usize..1000), 0..7)
}

/// A tensor of 0, 1, 2, … and its model after some steps.
fn walked(shape: &[usize], steps: &[Step]) -> (Tensor, Model) {
    let base = Tensor::arange(shape.iter().product(), DType::I64, CPU).unwrap().reshape(shape).unwrap();
    let mut now = (base, Model::new(shape));
    for &step in steps {
        if now.1.at.len() > 2000 {
            break;
        }
        if let Some((t, m)) = apply(step, &now.0, &now.1) {
            now = (t.unwrap_or_else(|e| panic!("{step:?} on {:?}: {e}", now.1.shape)), m);
        }
    }
    now
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn views_of_views_read_as_the_model_says(shape in shapes(), steps in steps()) {
        let (t, m) = walked(&shape, &steps);
        prop_assert_eq!(t.dims(), &m.shape[..]);
        prop_assert_eq!(t.numel(), m.at.len());
        prop_assert_eq!(read(&t), m.at.clone());
        prop_assert_eq!(read(&t.contiguous().unwrap()), m.at.clone());
        // Through a cast the layout is walked by another loop.
        let cast: Vec<usize> = t.to_dtype(DType::F64).unwrap().to_f64_vec().unwrap().iter().map(|&v| v as usize).collect();
        prop_assert_eq!(cast, m.at);
    }

    #[test]
    fn layouts_know_their_span_and_whether_they_are_contiguous(shape in shapes(), steps in steps()) {
        let (t, _) = walked(&shape, &steps);
        let l = t.layout();
        // Positions in the storage, from the definition of a layout.
        let at: Vec<usize> = indices(t.dims())
            .iter()
            .map(|i| l.offset + i.iter().zip(l.strides.iter()).map(|(i, s)| i * s).sum::<usize>())
            .collect();
        if at.is_empty() {
            prop_assert!(t.is_contiguous());
            prop_assert!(l.span().is_empty());
        } else {
            let consecutive = at.iter().enumerate().all(|(k, &p)| p == at[0] + k);
            prop_assert_eq!(t.is_contiguous(), consecutive);
            prop_assert_eq!(l.span(), *at.iter().min().unwrap()..*at.iter().max().unwrap() + 1);
        }
    }

    /// A reshape without a copy keeps the order of the elements, and is found wherever strides for it exist.
    #[test]
    fn reshape_is_a_view_exactly_where_strides_exist(shape in shapes(), steps in steps(), a in 0usize..1000, b in 0usize..1000) {
        let (t, m) = walked(&shape, &steps);
        let l = *t.layout();
        let positions = |l: &Layout| -> Vec<usize> {
            indices(&l.shape)
                .iter()
                .map(|i| l.offset + i.iter().zip(l.strides.iter()).map(|(i, s)| i * s).sum::<usize>())
                .collect()
        };
        let want = positions(&l);
        let target = Shape::new(&factors(m.at.len(), a, b)).unwrap();
        let found = l.reshape(&target);
        if let Some(view) = &found {
            prop_assert_eq!(view.shape, target);
            prop_assert_eq!(positions(view), want.clone());
        }
        if !want.is_empty() {
            // The only candidate: the stride of a dimension is the distance of its first two elements.
            let steps: Option<Vec<usize>> = (0..target.rank()).map(|d| {
                if target[d] == 1 {
                    return Some(0);
                }
                want[target[d + 1..].iter().product::<usize>()].checked_sub(want[0])
            }).collect();
            let exists = steps.is_some_and(|s| {
                indices(&target)
                    .iter()
                    .zip(&want)
                    .all(|(i, &p)| p == want[0] + i.iter().zip(&s).map(|(i, s)| i * s).sum::<usize>())
            });
            prop_assert_eq!(found.is_some(), exists, "{:?} to {}", l, target);
        }
        prop_assert!(l.reshape(&Shape::new(&[m.at.len() + 1]).unwrap()).is_none());
    }

    #[test]
    fn broadcasting_follows_the_rule(a in shapes(), b in shapes()) {
        let rank = a.len().max(b.len());
        let of = |s: &[usize], i: usize| (i + s.len()).checked_sub(rank).map_or(1, |k| s[k]);
        let want: Option<Vec<usize>> = (0..rank).map(|i| match (of(&a, i), of(&b, i)) {
            (x, y) if x == y => Some(x),
            (1, y) => Some(y),
            (x, 1) => Some(x),
            _ => None,
        }).collect();
        let (sa, sb) = (Shape::new(&a).unwrap(), Shape::new(&b).unwrap());
        match (sa.broadcast(&sb, "test"), sb.broadcast(&sa, "test"), want) {
            (Ok(x), Ok(y), Some(want)) => {
                prop_assert_eq!(x.dims(), &want[..]);
                prop_assert_eq!(x, y);
                prop_assert!(Layout::contiguous(sa).expand(&x, "test").is_ok());
            }
            (Err(e), Err(_), None) => prop_assert_eq!(e.kind(), ErrorKind::Shape),
            (x, y, want) => prop_assert!(false, "{:?} {:?} {:?}", x, y, want),
        }
    }

    #[test]
    fn writing_through_a_view_changes_its_elements_and_no_others(shape in shapes(), steps in steps(), seed in 1000i64..2000) {
        let n: usize = shape.iter().product();
        let base = Tensor::arange(n, DType::I64, CPU).unwrap().reshape(&shape).unwrap();
        let (mut view, mut model) = (base.clone(), Model::new(&shape));
        for &step in &steps {
            // Reshape may copy, and an expanded tensor cannot be written: those have tests of their own.
            if step.0 % 9 == 8 || step.0 % 9 == 5 || model.at.len() > 2000 {
                continue;
            }
            if let Some((t, m)) = apply(step, &view, &model) {
                (view, model) = (t.unwrap(), m);
            }
        }
        let new: Vec<i64> = (0..model.at.len() as i64).map(|i| seed + i).collect();
        view.copy_(&Tensor::from_slice(&new, &model.shape, CPU).unwrap()).unwrap();
        let mut want: Vec<i64> = (0..n as i64).collect();
        model.at.iter().zip(&new).for_each(|(&p, &v)| want[p] = v);
        prop_assert_eq!(base.to_vec::<i64>().unwrap(), want);
    }

    #[test]
    fn what_does_not_fit_is_an_error_and_no_panic(shape in shapes(), a in any::<usize>(), b in any::<usize>(), c in any::<usize>(), d in any::<isize>()) {
        let (t, m) = walked(&shape, &[]);
        let rank = m.shape.len();
        for (dim, start, end, step) in [(d, a, b, c), (d % 9, a % 9, b % 9, c % 3), (0, a, a, 1), (0, 0, usize::MAX, 1)] {
            let at = if dim < 0 { dim.checked_add(rank as isize).unwrap_or(-1) } else { dim };
            let dim_ok = at >= 0 && (at as usize) < rank;
            let fits = dim_ok && start <= end && end <= m.shape[at as usize] && step > 0;
            prop_assert_eq!(t.slice(dim, start, end, step).is_ok(), fits);
            let narrow = dim_ok && start.checked_add(end).is_some_and(|e| e <= m.shape[at as usize]);
            prop_assert_eq!(t.narrow(dim, start, end).is_ok(), narrow);
            let select = dim_ok && start < m.shape[at as usize];
            prop_assert_eq!(t.select(dim, start).is_ok(), select);
        }
        prop_assert!(t.permute(&vec![0; rank + 1]).is_err());
        prop_assert!(rank < 2 || t.permute(&vec![0; rank]).is_err());
        prop_assert!(t.reshape([m.at.len() + 1]).is_err());
        prop_assert!(t.expand(&[3; MAX_RANK + 1][..]).is_err());
        prop_assert_eq!(Shape::new(&[a, b, c]).is_ok(), {
            let n = [a, b, c].iter().try_fold(1u128, |n, &d| n.checked_mul(d.max(1) as u128));
            n.is_some_and(|n| n <= isize::MAX as u128)
        });
    }

    #[test]
    fn pieces_of_a_split_cover_the_tensor(shape in shapes(), steps in steps(), a in 0usize..1000, b in 0usize..1000) {
        let (t, m) = walked(&shape, &steps);
        prop_assume!(!m.shape.is_empty());
        let dim = a % m.shape.len();
        let first = b % (m.shape[dim] + 1);
        let sizes = [first, 0, m.shape[dim] - first];
        let pieces = t.split(&sizes, dim as isize).unwrap();
        let mut start = 0;
        for (piece, size) in pieces.iter().zip(sizes) {
            prop_assert_eq!(read(piece), m.slice(dim, start, start + size, 1).at);
            start += size;
        }
        prop_assert!(t.split(&[first, m.shape[dim] - first + 1], dim as isize).is_err());
    }
}

/// What a borrow test does next: borrow a range for reading or writing, or give a borrow back.
#[derive(Clone, Debug)]
enum Borrow {
    Read(usize, usize),
    Write(usize, usize),
    Drop(usize),
}

fn borrows() -> impl Strategy<Value = Vec<Borrow>> {
    let range = || (0usize..64, 0usize..20);
    prop::collection::vec(
        prop_oneof![
            range().prop_map(|(s, n)| Borrow::Read(s, n)),
            range().prop_map(|(s, n)| Borrow::Write(s, n)),
            (0usize..8).prop_map(Borrow::Drop),
        ],
        1..40,
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// A borrow is refused exactly if a byte of it is held by a writer, or it would write and any holds a byte.
    #[test]
    fn borrows_conflict_exactly_where_bytes_do(actions in borrows()) {
        let t = Tensor::zeros([64], DType::U8, CPU).unwrap();
        let storage = t.storage().clone();
        // The guards, kept apart by kind since their types differ; ranges beside them.
        let mut readers = Vec::new();
        let mut writers = Vec::new();
        let mut writes = 0;
        for action in actions {
            match action {
                Borrow::Read(start, n) | Borrow::Write(start, n) => {
                    let range = start..start + n;
                    let is_write = matches!(action, Borrow::Write(..));
                    let shares = |held: &std::ops::Range<usize>| range.clone().any(|b| held.contains(&b));
                    let written = writers.iter().any(|(r, _)| shares(r));
                    let taken = written || is_write && readers.iter().any(|(r, _)| shares(r));
                    let outside = range.end > 64;
                    let kind = if outside { Some(ErrorKind::Internal) } else if taken { Some(ErrorKind::Borrowed) } else { None };
                    if is_write {
                        match storage.write(range.clone(), "test") {
                            Ok(mut guard) => {
                                prop_assert_eq!(kind, None);
                                prop_assert_eq!(guard.bytes().len(), n);
                                guard.bytes().fill(n as u8);
                                writes += 1;
                                writers.push((range, guard));
                            }
                            Err(e) => prop_assert_eq!(kind, Some(e.kind())),
                        }
                    } else {
                        match storage.read(range.clone()) {
                            Ok(guard) => {
                                prop_assert_eq!(kind, None);
                                prop_assert_eq!(guard.bytes().len(), n);
                                readers.push((range, guard));
                            }
                            Err(e) => prop_assert_eq!(kind, Some(e.kind())),
                        }
                    }
                }
                Borrow::Drop(k) if k % 2 == 0 && k / 2 < readers.len() => drop(readers.swap_remove(k / 2)),
                Borrow::Drop(k) if k % 2 == 1 && k / 2 < writers.len() => drop(writers.swap_remove(k / 2)),
                Borrow::Drop(_) => {}
            }
        }
        prop_assert_eq!(storage.version(&(0..64)), writes);
        drop((readers, writers));
        prop_assert!(storage.write(0..64, "test").is_ok(), "a borrow was not given back");
    }
}

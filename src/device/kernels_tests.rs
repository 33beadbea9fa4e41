//! What a generated launch does and refuses, on the simulator.

use super::super::launch::{Dims, Strides};
use super::probe::{PROBE, Probe};
use super::*;
use crate::{Device, ErrorKind};

/// Launches `probe` over 3 x 4 elements that are read column by column, after `edit`; the results.
fn probe(edit: impl FnOnce(&mut Probe<'_>)) -> Result<Vec<f32>> {
    let stream = Device::sim().gpu()?;
    let (from, mut to) = (stream.temp(DType::F32, 12)?, stream.temp(DType::F32, 12)?);
    let values: Vec<f32> = (0..12).map(|i| i as f32).collect();
    stream.upload(from.src().address(), bytemuck::cast_slice(&values))?;
    let (dims, xs) = (Dims::of(&[4, 3]), Strides::of(&[1, 4]));
    let address = to.src().address();
    let mut launch = Probe { x: from.src(), y: to.dst(), dims, xs, n: 12, a: 0.5 };
    edit(&mut launch);
    launch.launch(stream)?;
    let mut out = vec![0_f32; 12];
    stream.download(bytemuck::cast_slice_mut(&mut out), address)?;
    Ok(out)
}

fn refused(kind: ErrorKind, message: &str, edit: impl FnOnce(&mut Probe<'_>)) {
    let error = probe(edit).unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.message().contains(message), "{error}");
}

#[test]
fn a_launch_computes() {
    let expected = [0.0, 2.0, 4.0, 0.5, 2.5, 4.5, 1.0, 3.0, 5.0, 1.5, 3.5, 5.5];
    assert_eq!(probe(|_| {}).unwrap(), expected);
}

#[test]
fn what_does_not_fit_the_declaration_is_refused() {
    refused(ErrorKind::Internal, "kernel probe: `y` has 12 elements, not n = 11", |p| p.n = 11);
    refused(ErrorKind::Internal, "`x` and `y` overlap", |p| {
        p.x = Src::new(p.y.address() + 44, 9, DType::F32)
    });
    refused(ErrorKind::Unsupported, "no instance for x of f64; there are f32, bf16", |p| {
        p.x = p.x.cast(DType::F64)
    });
    refused(ErrorKind::Unsupported, "`y` is f32; this kernel takes bf16 here", |p| {
        p.x = p.x.cast(DType::BF16)
    });
}

#[test]
fn an_empty_grid_launches_nothing() {
    let stream = Device::sim().gpu().unwrap();
    let mut y = stream.temp(DType::F32, 0).unwrap();
    let x = stream.temp(DType::F32, 1).unwrap();
    let (dims, xs) = (Dims::of(&[0]), Strides::of(&[1]));
    Probe { x: x.src(), y: y.dst(), dims, xs, n: 0, a: 1.0 }.launch(stream).unwrap();
    assert_eq!(stream.launches(), 0);
}

#[test]
fn the_instance_follows_from_the_types() {
    let stream = Device::sim().gpu().unwrap();
    let (x, mut y) = (stream.temp(DType::BF16, 1).unwrap(), stream.temp(DType::BF16, 1).unwrap());
    let launch = Probe { x: x.src(), y: y.dst(), dims: Dims::of(&[1]), xs: Strides::of(&[1]), n: 1, a: 1.0 };
    let kernel = launch.kernel().unwrap();
    assert!(std::ptr::eq(kernel, &PROBE[1]));
    assert_eq!((kernel.unit, kernel.symbol, kernel.block), ("probe", c"probe_bf16", [256, 1, 1]));
    assert!(stream.has(kernel));
}

#[test]
fn every_instance_is_in_the_simulator() {
    let stream = Device::sim().gpu().unwrap();
    let all: Vec<_> = ALL.iter().copied().flatten().collect();
    assert!(all.len() >= 2);
    for kernel in all {
        assert!(stream.has(kernel), "{:?}", kernel.symbol);
    }
}

#[test]
fn a_grid_has_limits() {
    let most = |i: usize, n: u64| {
        let mut sides = [Some(1); 3];
        sides[i] = Some(n);
        grid("probe", sides, Some(0))
    };
    for (i, limit) in [0x7fff_ffff, 65_535, 65_535].into_iter().enumerate() {
        assert_eq!(most(i, limit).unwrap().unwrap().blocks[i], limit as u32);
        assert_eq!(most(i, limit + 1).unwrap_err().kind(), ErrorKind::Unsupported);
        assert!(most(i, 0).unwrap().is_none());
    }
    assert!(grid("probe", [mul(Some(u64::MAX), Some(2)), Some(1), Some(1)], Some(0)).is_err());
    assert!(grid("probe", [Some(1); 3], Some(1 << 32)).is_err());
}

#[test]
fn arithmetic_of_declarations_never_wraps() {
    assert_eq!(add(Some(u64::MAX), Some(1)), None);
    assert_eq!(sub(Some(1), Some(2)), None);
    assert_eq!(mul(Some(u64::MAX), Some(2)), None);
    assert_eq!(div(Some(1), Some(0)), None);
    assert_eq!(
        (ceil_div(Some(9), Some(4)), ceil_div(Some(8), Some(4)), ceil_div(Some(1), Some(0))),
        (Some(3), Some(2), None)
    );
}

#[test]
fn a_map_lies_within_its_buffer() {
    let stream = Device::sim().gpu().unwrap();
    let buffer = stream.temp(DType::F32, 64).unwrap();
    let desc = TensorMapDesc { address: 0, element: 4, size: [8, 9], pitch: 32, tile: [8, 8], swizzle: 0 };
    let error = Map::new(stream, buffer.src(), &desc).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Internal, "{error}");
}

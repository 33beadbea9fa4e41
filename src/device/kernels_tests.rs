//! What a generated launch does and refuses, on the simulator.

use super::super::launch::{Dims, Dst, Src, Strides};
use super::probe::Probe;
use crate::{DType, Device, ErrorKind, Result};

/// A launch of `probe` over 3 x 4 elements read column by column, after `edit`; the 12 results.
fn probe(x: DType, y: DType, edit: impl FnOnce(&mut Probe<'_>)) -> Result<Vec<f32>> {
    let stream = Device::sim().gpu()?;
    let (mut from, mut to) = (stream.temp(x, 12)?, stream.temp(y, 12)?);
    let values: Vec<f32> = (0..12).map(|i| i as f32).collect();
    let bytes = bytemuck::cast_slice(&values);
    stream.upload(from.src().address(), &bytes[..from.src().bytes() as usize])?;
    let (dims, xs) = (Dims::of(&[4, 3]), Strides::of(&[1, 4]));
    let _ = from.dst();
    let mut launch = Probe { x: from.src(), y: to.dst(), dims, xs, n: 12, a: 0.5 };
    edit(&mut launch);
    launch.launch(stream)?;
    let mut out = vec![0_f32; 12];
    stream.download(bytemuck::cast_slice_mut(&mut out), to.src().address())?;
    Ok(out)
}

#[test]
fn it_runs() {
    let got = probe(DType::F32, DType::F32, |_| {}).unwrap();
    assert_eq!(got, [0.0, 2.0, 4.0, 0.5, 2.5, 4.5, 1.0, 3.0, 5.0, 1.5, 3.5, 5.5]);
}

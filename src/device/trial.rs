//! Runs the probe kernel on a device and compares what it wrote with what it must be: whether launches, arguments and copies
//! work at all there.

use super::kernels::probe::Probe;
use super::launch::{Dims, Strides};
use crate::{DType, Device, Error, ErrorKind, Result};

/// Rows and columns of the matrix that is read column by column: several blocks, the last not full.
const SHAPE: [usize; 2] = [77, 13];
const FACTOR: f32 = 0.5;

/// Runs it in f32 and bf16. An error of kind `DeviceFailed` if a result is not what it must be.
pub fn run(device: Device) -> Result<()> {
    let stream = device.gpu()?;
    let n = SHAPE[0] * SHAPE[1];
    // Small whole numbers and their halves, which both types hold exactly.
    let value = |i: usize| (i % 199) as f32;
    let expected = |i: usize| FACTOR * value(i % SHAPE[1] * SHAPE[0] + i / SHAPE[1]);
    for dtype in [DType::F32, DType::BF16] {
        let bytes = |value: &dyn Fn(usize) -> f32| -> Vec<u8> {
            match dtype {
                DType::F32 => (0..n).flat_map(|i| value(i).to_ne_bytes()).collect(),
                _ => (0..n).flat_map(|i| half::bf16::from_f32(value(i)).to_ne_bytes()).collect(),
            }
        };
        let (mut x, mut y) = (stream.temp(dtype, n)?, stream.temp(dtype, n)?);
        stream.upload(x.dst().address(), &bytes(&value))?;
        let (dims, xs) = (Dims::of(&SHAPE), Strides::of(&[1, SHAPE[0]]));
        Probe { x: x.src(), y: y.dst(), dims, xs, n: n as u64, a: FACTOR }.launch(stream)?;
        let mut got = vec![0; n * dtype.size()];
        stream.download(&mut got, y.src().address())?;
        stream.synchronize()?;
        let want = bytes(&expected);
        let wrong = got.chunks(dtype.size()).zip(want.chunks(dtype.size())).filter(|(a, b)| a != b).count();
        if wrong > 0 {
            return Err(Error::new(
                ErrorKind::DeviceFailed,
                format!("{device}: the probe kernel in {dtype} gave {wrong} of {n} values wrong"),
            ));
        }
    }
    Ok(())
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use super::*;

    #[test]
    fn the_simulator_passes() {
        run(Device::sim()).unwrap();
    }
}

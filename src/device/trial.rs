//! Runs the probe kernel on a device and compares what it wrote with what it must be: whether launches, arguments and copies
//! work at all there. And runs kernels with planted faults, for tools that must find them.

use super::kernels::canary::{CanaryBounds, CanaryRace};
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

/// A planted fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Canary {
    /// A store one element past an allocation: harmless in itself, to be reported by memcheck.
    Bounds,
    /// A store where there is no memory: a sticky error of the device.
    Fault,
    /// Shared memory read before the barrier: to be reported by racecheck.
    Race,
}

/// Launches a kernel with a planted fault and waits for it. What the device or a checking tool makes of it is the result.
pub fn canary(device: Device, which: Canary) -> Result<()> {
    let stream = device.gpu()?;
    // Exactly one block of the pool's, so that one past the end is past what the driver gave.
    let n = super::pool::GRANULE / DType::F32.size();
    let mut y = stream.temp(DType::F32, if which == Canary::Race { 256 } else { n })?;
    match which {
        Canary::Bounds => CanaryBounds { y: y.dst(), n: n as u64, past: 0 }.launch(stream)?,
        Canary::Fault => CanaryBounds { y: y.dst(), n: n as u64, past: 1 << 42 }.launch(stream)?,
        Canary::Race => CanaryRace { y: y.dst() }.launch(stream)?,
    }
    stream.synchronize()
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use super::*;

    #[test]
    fn the_simulator_passes() {
        run(Device::sim()).unwrap();
    }

    /// Each fault is found by the simulator's checks, and named.
    #[test]
    fn the_simulator_finds_what_is_planted() {
        for (which, place) in [
            (Canary::Bounds, "canary.cu:12: writes 4 bytes"),
            (Canary::Fault, "canary.cu:12: writes 4 bytes"),
            (Canary::Race, "canary.cu:19: reads shared memory"),
        ] {
            let options = crate::device::sim::SimOptions { checked: true, ..Default::default() };
            let error = canary(Device::sim_with(options), which).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::DeviceFailed, "{which:?}");
            assert!(error.message().contains(place), "{which:?}: {error}");
        }
    }
}

use std::{path::Path, sync::atomic::AtomicBool};
use warpsmith::data::{Dataset, DatasetOptions, SplitOptions, digits};
use warpsmith::train::{EpochReport, Mlp, Observer, Predictor, Silent, TrainConfig, Trainer};
struct P;
impl Observer for P {
    fn epoch(&mut self, r: &EpochReport) {
        eprintln!("{r:?}")
    }
}
fn main() -> warpsmith::Result<()> {
    for seed in 1..=3 {
        let data = Dataset::build(
            &digits()?,
            None,
            &DatasetOptions { split: SplitOptions { seed, ..Default::default() }, ..Default::default() },
        )?;
        let (mlp, config) = (Mlp::default(), TrainConfig { seed, ..TrainConfig::default() });
        let dir = Path::new("/tmp/runs/digits");
        let device = warpsmith::Device::cpu();
        let t = std::time::Instant::now();
        let mut trainer = Trainer::new(data, mlp, config, Default::default(), device, dir)?;
        let report = warpsmith::cpu::par::with_threads(2, || {
            trainer.run(if seed == 1 { &mut P } else { &mut Silent }, &AtomicBool::new(false))
        })??;
        println!("{:?} {report:?}", t.elapsed());
        let p = Predictor::open(dir, device)?;
        println!("{:?}", p.evaluate(&digits()?)?);
    }
    Ok(())
}

//! A model folder whose content tells its number, and the two ways in which a new one takes its place.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use warpsmith::Result;
use warpsmith::io::folder::{self, Folder, MODEL, Staging};
use warpsmith::io::{HostTensor, safetensors};

/// A folder of one test's own, removed at the end.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("warpsmith-faults-save-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    pub fn model(&self) -> PathBuf {
        self.0.join("model")
    }

    pub fn entries(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(&self.0)
            .unwrap()
            .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Writes model number `k`: every file of it tells the number.
pub fn fill(staging: &mut Staging<'_>, k: u64) -> Result<()> {
    let values = vec![k as i64; 40];
    let tensors = [("weight", HostTensor::from_slice([4, 10], &values)?)];
    staging.bytes(MODEL, format!("number = {k:08}\n").as_bytes())?;
    staging.file("model.safetensors", |out| safetensors::write_to(out, &tensors, &BTreeMap::new()))?;
    staging.bytes("state/step", format!("{k:08}").repeat(500).as_bytes())
}

pub fn save(dir: &Path, k: u64) -> Result<()> {
    folder::save(dir, |staging| fill(staging, k))
}

/// The number of the whole model at `dir`; panics with the reason if there is none or its files disagree.
pub fn number(dir: &Path) -> u64 {
    let folder = Folder::open(dir).unwrap();
    folder.verify().unwrap();
    assert_eq!(folder.names().collect::<Vec<_>>(), ["model.safetensors", MODEL, "state/step"]);
    let text = String::from_utf8(folder.read(MODEL).unwrap()).unwrap();
    let k: u64 = text.strip_prefix("number = ").unwrap().trim().parse().unwrap();
    let weights = folder.safetensors("model.safetensors").unwrap();
    assert_eq!(weights.get("weight").unwrap().to_vec::<i64>().unwrap(), vec![k as i64; 40]);
    assert_eq!(folder.read("state/step").unwrap(), format!("{k:08}").repeat(500).into_bytes());
    k
}

const NO_EXCHANGE: i32 = 38; // ENOSYS

/// How the two folders change places.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Swap {
    OneStep,
    TwoSteps,
}

impl Swap {
    pub const BOTH: [Swap; 2] = [Swap::OneStep, Swap::TwoSteps];

    /// In two steps: the exchange answers as on a system that lacks it.
    pub fn answer(self, what: &str) -> io::Result<()> {
        if self == Swap::TwoSteps && what == "exchange" {
            return Err(io::Error::from_raw_os_error(NO_EXCHANGE));
        }
        Ok(())
    }
}

/// Whether the file system of the scratch folder can exchange two folders; prints if not.
pub fn can_exchange() -> bool {
    let scratch = Scratch::new("can-exchange");
    save(&scratch.model(), 1).unwrap();
    let steps = RefCell::new(Vec::new());
    let hook = |what: &str, _: &Path| {
        steps.borrow_mut().push(what.to_owned());
        Ok(())
    };
    folder::save_with(scratch.model(), &hook, |s| fill(s, 2)).unwrap();
    let can = !steps.borrow().iter().any(|what| what == "move aside");
    if !can {
        println!("skipped in part: {} has no RENAME_EXCHANGE", scratch.0.display());
    }
    can
}

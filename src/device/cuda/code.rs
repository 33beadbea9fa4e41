//! Kernels on a device: fatbins become modules when a kernel of theirs is first asked for, and functions are kept by the
//! address of their declaration.
//!
//! What can be known before the first launch is said then, in words: kernels that no driver of this age can run, an
//! architecture that the build left out, an argument struct that differs in size from the compiled one.

use std::collections::HashMap;
use std::ffi::{c_int, c_uint, c_void};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use cudarc::driver::sys;
use cudarc::driver::sys::{CUfunction_attribute_enum as Attribute, CUjit_option_enum as Jit, CUresult};

use super::call::{Entered, describe, is_sticky};
use super::probe;
use crate::device::driver::{DeviceInfo, Kernel};
use crate::device::fatbin::{self, Fit, Image};
use crate::device::kernels::{BUILD_INFO, FATBINS};
use crate::{Error, ErrorKind, Result};

/// Dynamic shared memory that a kernel may use without asking.
const SHARED_WITHOUT_ASKING: u32 = 48 << 10;
const LOG_BYTES: usize = 16 << 10;

/// Compiled kernels and what compiled them.
#[derive(Clone, Copy, Debug)]
pub struct Code {
    /// Each `.cu` file's name without extension, and its fatbin.
    pub units: &'static [(&'static str, &'static [u8])],
    /// The version of CUDA that nvcc belongs to, such as (13, 0).
    pub cuda: (u32, u32),
}

impl Code {
    /// What this build embeds; no units where it found no nvcc.
    pub fn embedded() -> Code {
        Code { units: FATBINS, cuda: BUILD_INFO.nvcc.and_then(version).unwrap_or_default() }
    }

    /// What all units together hold code for.
    pub fn images(&self) -> Vec<Image> {
        let mut all: Vec<Image> = self.units.iter().flat_map(|(_, bytes)| fatbin::images(bytes)).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// How the device of this compute capability runs the unit that it runs best; units for other architectures only
    /// have substitutes.
    pub fn fit(&self, capability: (u32, u32)) -> Fit {
        let fits = self.units.iter().map(|(_, bytes)| fatbin::fit(&fatbin::images(bytes), capability));
        fits.max().unwrap_or(Fit::Absent)
    }

    /// Whether a driver that supports CUDA `driver` can run this code on the device; an error of kind `NoDevice` that
    /// says why not. Machine code needs a driver for the same major version of CUDA or a later one, PTX one for the same
    /// version.
    pub fn check(&self, index: usize, info: &DeviceInfo, driver: (u32, u32)) -> Result<()> {
        let (major, minor) = info.capability;
        let device = format!("cuda:{index} ({}, sm_{major}{minor})", info.name);
        let refuse = |message: String, help: String| {
            Err(Error::new(ErrorKind::NoDevice, format!("{device} cannot be used: {message}"))
                .with_help(help))
        };
        if self.units.is_empty() {
            return refuse(
                "this build of warpsmith has no GPU kernels, as no nvcc was found when it was built"
                    .to_owned(),
                "scripts/get-nvcc.sh installs nvcc without root; then build again".to_owned(),
            );
        }
        let fit = self.fit(info.capability);
        if fit == Fit::Absent {
            let message = format!("its kernels were compiled for {}", fatbin::list(&self.images()));
            return refuse(
                format!("{message}, none of which it runs"),
                match major {
                    0..8 => "warpsmith needs compute capability 8.0 (Ampere) or newer".to_owned(),
                    _ => format!("build again with {major}{minor} in WARPSMITH_CUDA_ARCHS, or with it unset"),
                },
            );
        }
        let (have, need) = (driver, self.cuda);
        if have.0 < need.0 || fit == Fit::Jit && have < need {
            return refuse(
                format!(
                    "its driver supports CUDA {}.{}, and the kernels, compiled by nvcc {}.{}, need {}",
                    have.0,
                    have.1,
                    need.0,
                    need.1,
                    match fit {
                        Fit::Jit =>
                            format!("{}.{} (they are compiled by the driver for this GPU)", need.0, need.1),
                        _ => format!("{}.0", need.0),
                    }
                ),
                format!(
                    "install driver {} or newer, or build with an nvcc of CUDA {}",
                    driver_of(need.0),
                    have.0
                ),
            );
        }
        Ok(())
    }
}

/// Major and minor number of a version such as `13.0.88`.
pub fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split('.').map(str::parse);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}

/// The oldest driver that runs machine code of a major version of CUDA.
pub fn driver_of(cuda: u32) -> &'static str {
    match cuda {
        ..=11 => "450",
        12 => "525",
        _ => "580",
    }
}

/// A kernel that can be launched.
pub(super) struct Function {
    pub(super) raw: sys::CUfunction,
    /// Shared memory of a block that it has in any case, in bytes.
    fixed_shared: u32,
    /// The most dynamic shared memory that has been asked for.
    asked_shared: AtomicU32,
}

// SAFETY: ours: a handle that the driver's thread-safe calls take.
unsafe impl Send for Function {}
// SAFETY: ours: as above.
unsafe impl Sync for Function {}

impl Function {
    /// Makes sure that a launch may use this much dynamic shared memory.
    pub(super) fn allow_shared(
        &self,
        kernel: &'static Kernel,
        bytes: u32,
        entered: &Entered<'_>,
        limit: u32,
    ) -> Result<()> {
        let all = self.fixed_shared.saturating_add(bytes);
        if all <= SHARED_WITHOUT_ASKING || bytes <= self.asked_shared.load(Ordering::Relaxed) {
            return Ok(());
        }
        if all > limit {
            let message = format!("needs {all} bytes of shared memory a block, the device has {limit}");
            return Err(Error::unsupported(unit_symbol(kernel), message));
        }
        let attribute = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: a function of a loaded module; its context is current.
        let code = unsafe { sys::cuFuncSetAttribute(self.raw, attribute, bytes as c_int) };
        entered.check(code, "asking for shared memory")?;
        self.asked_shared.fetch_max(bytes, Ordering::Relaxed);
        Ok(())
    }
}

/// The kernel's name for messages.
pub(super) fn unit_symbol(kernel: &'static Kernel) -> &'static str {
    kernel.symbol.to_str().unwrap_or(kernel.unit)
}

#[derive(Clone)]
enum Entry {
    Ready(Arc<Function>),
    /// Not on this device, and why.
    Absent(Arc<str>),
}

/// The modules loaded on one device.
pub(super) struct Modules {
    code: Code,
    units: Mutex<HashMap<&'static str, Module>>,
    /// By the address of the kernel's declaration.
    functions: RwLock<HashMap<usize, Entry>>,
}

#[derive(Clone)]
enum Module {
    Loaded(usize),
    Absent(Arc<str>),
}

impl Modules {
    pub(super) fn new(code: Code) -> Modules {
        Modules { code, units: Mutex::default(), functions: RwLock::default() }
    }

    /// The function of a kernel, loaded now if it was not. Kind `Unsupported` if this device has none.
    pub(super) fn function(
        &self,
        kernel: &'static Kernel,
        entered: &Entered<'_>,
        info: &DeviceInfo,
    ) -> Result<Arc<Function>> {
        let key = std::ptr::from_ref(kernel) as usize;
        let known = self.functions.read().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        let entry = match known {
            Some(entry) => entry,
            None => {
                let entry = self.load(kernel, entered, info)?;
                let mut functions = self.functions.write().unwrap_or_else(PoisonError::into_inner);
                functions.entry(key).or_insert(entry).clone()
            }
        };
        match entry {
            Entry::Ready(function) => Ok(function),
            Entry::Absent(why) => Err(Error::unsupported(unit_symbol(kernel), &*why)),
        }
    }

    fn load(&self, kernel: &'static Kernel, entered: &Entered<'_>, info: &DeviceInfo) -> Result<Entry> {
        let module = {
            let mut units = self.units.lock().unwrap_or_else(PoisonError::into_inner);
            match units.get(kernel.unit) {
                Some(module) => module.clone(),
                None => {
                    let module = self.load_unit(kernel.unit, entered, info)?;
                    units.insert(kernel.unit, module.clone());
                    module
                }
            }
        };
        let module = match module {
            Module::Loaded(module) => module as sys::CUmodule,
            Module::Absent(why) => return Ok(Entry::Absent(why)),
        };
        let mut raw = null_mut();
        // SAFETY: a loaded module; the symbol ends with a 0.
        let code = unsafe { sys::cuModuleGetFunction(&mut raw, module, kernel.symbol.as_ptr()) };
        if code == CUresult::CUDA_ERROR_NOT_FOUND {
            let (major, minor) = info.capability;
            let why = format!("{}.cu has no such kernel for sm_{major}{minor}", kernel.unit);
            return Ok(Entry::Absent(why.into()));
        }
        entered.check(code, "looking for a kernel")?;
        check_declaration(kernel, raw, entered)?;
        let shared = attribute(raw, Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, entered)?;
        Ok(Entry::Ready(Arc::new(Function { raw, fixed_shared: shared, asked_shared: AtomicU32::new(0) })))
    }

    fn load_unit(&self, unit: &'static str, entered: &Entered<'_>, info: &DeviceInfo) -> Result<Module> {
        let Some((_, bytes)) = self.code.units.iter().find(|(name, _)| *name == unit) else {
            return Ok(Module::Absent(format!("{unit}.cu is not part of this build").into()));
        };
        let (major, minor) = info.capability;
        let images = fatbin::images(bytes);
        let absent = || {
            let list = fatbin::list(&images);
            Module::Absent(
                format!(
                    "{unit}.cu was compiled for {list}, not for sm_{major}{minor} (WARPSMITH_CUDA_ARCHS)"
                )
                .into(),
            )
        };
        if !images.is_empty() && fatbin::fit(&images, info.capability) == Fit::Absent {
            return Ok(absent());
        }
        let mut log = vec![0u8; LOG_BYTES];
        let mut options = [Jit::CU_JIT_ERROR_LOG_BUFFER, Jit::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
        let mut values: [*mut c_void; 2] = [log.as_mut_ptr().cast(), LOG_BYTES as *mut c_void];
        // Embedded bytes start anywhere; the driver reads numbers in them. It keeps what it needs of the copy.
        let mut aligned = vec![0u64; bytes.len().div_ceil(8)];
        bytemuck::cast_slice_mut::<u64, u8>(&mut aligned)[..bytes.len()].copy_from_slice(bytes);
        let (mut module, image) = (null_mut(), aligned.as_ptr().cast());
        let (option, value) = (options.as_mut_ptr(), values.as_mut_ptr());
        // SAFETY: a whole fatbin of ours, aligned; two options with their values: a buffer that outlives the call and its size.
        let code = unsafe { sys::cuModuleLoadDataEx(&mut module, image, 2 as c_uint, option, value) };
        match code {
            CUresult::CUDA_SUCCESS => Ok(Module::Loaded(module as usize)),
            CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU => Ok(absent()),
            _ if is_sticky(code) => entered.check(code, "loading kernels").map(|()| absent()),
            _ => {
                let end = log.iter().position(|&b| b == 0).unwrap_or(log.len());
                let said = String::from_utf8_lossy(&log[..end]).trim().to_owned();
                let said = if said.is_empty() { said } else { format!("\nthe driver's log: {said}") };
                let (need, has) = (self.code.cuda, probe::driver()?.version());
                Err(Error::new(
                    if code == CUresult::CUDA_ERROR_OUT_OF_MEMORY { ErrorKind::OutOfMemory } else { ErrorKind::NoDevice },
                    format!(
                        "the kernels of {unit}.cu ({}) could not be loaded for {}, sm_{major}{minor}: {}; driver for CUDA \
                         {}.{}, compiled by nvcc {}.{}{said}",
                        fatbin::list(&images), info.name, describe(code), has.0, has.1, need.0, need.1
                    ),
                )
                .with_help(format!("install driver {} or newer; warpsmith doctor checks both", driver_of(need.0))))
            }
        }
    }

    /// Gives the modules back. Nothing may run any more, and no function be used again.
    pub(super) fn unload(&mut self) {
        self.functions.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
        for (_, module) in self.units.get_mut().unwrap_or_else(PoisonError::into_inner).drain() {
            if let Module::Loaded(module) = module {
                // SAFETY: loaded once, unloaded once. After a failure of the device this fails, and that is no news.
                let _ = unsafe { sys::cuModuleUnload(module as sys::CUmodule) };
            }
        }
    }
}

/// Compares the declaration that Rust was generated from with what was compiled.
fn check_declaration(kernel: &'static Kernel, raw: sys::CUfunction, entered: &Entered<'_>) -> Result<()> {
    let differs = |what: &str, declared: u64, compiled: u64| {
        let name = kernel.symbol.to_string_lossy();
        let message = format!("{name}: {what} differ: declared {declared}, compiled {compiled}");
        Err(Error::internal(message))
    };
    let most = attribute(raw, Attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, entered)?;
    let threads: u32 = kernel.block.iter().product();
    if threads > most {
        return differs("threads of a block", threads.into(), most.into());
    }
    // CUDA 12.4 and later can tell the sizes of arguments.
    if !probe::driver()?.has(c"cuFuncGetParamInfo") {
        return Ok(());
    }
    let (mut offset, mut size) = (0, 0);
    // SAFETY: the driver has this function; writes two sizes.
    match unsafe { sys::cuFuncGetParamInfo(raw, 0, &mut offset, &mut size) } {
        // A kernel without arguments, or a driver that does not tell for this kind of code.
        CUresult::CUDA_ERROR_INVALID_VALUE if kernel.args == 0 => return Ok(()),
        CUresult::CUDA_ERROR_NOT_SUPPORTED => return Ok(()),
        code => entered.check(code, "asking for the size of a kernel's arguments")?,
    }
    if size != kernel.args {
        return differs("bytes of arguments", kernel.args as u64, size as u64);
    }
    // SAFETY: as above.
    match unsafe { sys::cuFuncGetParamInfo(raw, 1, &mut offset, &mut size) } {
        CUresult::CUDA_SUCCESS => differs("arguments", 1, 2),
        _ => Ok(()),
    }
}

fn attribute(raw: sys::CUfunction, attribute: Attribute, entered: &Entered<'_>) -> Result<u32> {
    let mut value: c_int = 0;
    // SAFETY: a function of a loaded module; writes an int.
    let code = unsafe { sys::cuFuncGetAttribute(&mut value, attribute, raw) };
    entered.check(code, "asking for a kernel's attributes")?;
    Ok(u32::try_from(value).unwrap_or(0))
}

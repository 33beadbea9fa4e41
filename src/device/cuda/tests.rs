//! The driver's wrapper against a driver without a GPU (tests/fake_gpu/cuda.c), which runs queued work as late as it may.
//! The library is opened once a process, so each scenario is a process: this test binary again, with the fake first in
//! the search path. What a GPU alone can show is not shown here.

use std::ffi::CStr;
use std::process;

use super::*;
use crate::device::driver::{Args, Launch};
use crate::device::fatbin::{self, Image};
use crate::device::library::Library;

const HOPPER: Image = Image { arch: 90, specific: false, ptx: false };

#[path = "../../../tests/fake_gpu/mod.rs"]
mod fake_gpu;

/// Runs a scenario in a process of its own and asserts that it passed.
fn play(scenario: &str, settings: &[(&str, &str)]) {
    let old: &[&str] = if settings.contains(&("OLD_DRIVER", "1")) { &["-DOLD_DRIVER"] } else { &[] };
    let Some(folder) = fake_gpu::folder(old) else { return };
    let output = process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "device::cuda::tests::scenario_of_a_child", "--nocapture"])
        .env("LD_LIBRARY_PATH", folder)
        .env("WARPSMITH_TEST_SCENARIO", scenario)
        .envs(settings.iter().copied())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("scenario passed"), "{scenario} {settings:?}: {said}");
}

/// What `play` starts; of itself it does nothing.
#[test]
fn scenario_of_a_child() {
    let Ok(name) = std::env::var("WARPSMITH_TEST_SCENARIO") else { return };
    match name.as_str() {
        "work" => work(),
        "refused" => refused(),
        "kernels" => kernels(),
        "fault" => fault(),
        "memory" => out_of_memory(),
        "graph" => graph(),
        "contexts" => contexts(),
        "maps" => maps(),
        "jit" => jit(),
        _ => panic!("no scenario {name:?}"),
    }
    println!("scenario passed");
}

fn code(units: &[(&'static str, &[Image])]) -> Code {
    let units: Vec<(&str, &[u8])> =
        units.iter().map(|(name, images)| (*name, &*fatbin::made_of(images).leak())).collect();
    Code { units: units.leak(), cuda: (13, 0) }
}

fn device() -> Cuda {
    Cuda::open(0, code(&[("unit", &[HOPPER]), ("other", &[Image { arch: 80, ..HOPPER }])])).unwrap()
}

/// A counter of the fake.
fn live(what: &CStr) -> i64 {
    let library = Library::open(&["libcuda.so.1"]).unwrap();
    // SAFETY: long fake_live(const char*).
    let ask = unsafe { library.get::<extern "C" fn(*const std::ffi::c_char) -> i64>(c"fake_live") }.unwrap();
    ask(what.as_ptr())
}

const fn kernel(unit: &'static str, symbol: &'static CStr, args: usize) -> Kernel {
    Kernel { unit, symbol, args, block: [256, 1, 1] }
}

static ADD_ONE: Kernel = kernel("unit", c"add_one", 16);
static TRAP: Kernel = kernel("unit", c"trap", 16);
static ABSENT: Kernel = kernel("unit", c"absent_f32", 16);
static DIFFERS: Kernel = kernel("unit", c"differs", 24);
static SMALL: Kernel = kernel("unit", c"small", 16);
static OTHER: Kernel = kernel("other", c"add_one", 16);
static NOWHERE: Kernel = kernel("nowhere", c"add_one", 16);
const ONE: Grid = Grid { blocks: [1, 1, 1], shared: 0 };

fn launch(cuda: &Cuda, kernel: &'static Kernel, grid: Grid, args: [u64; 2]) -> Result<()> {
    // SAFETY: the fake's kernels take an address and a length and check them.
    unsafe { cuda.launch(kernel, grid, args.as_ptr().cast(), &[]) }
}

/// Bytes that tell their place.
fn pattern(n: usize, salt: usize) -> Vec<u8> {
    (0..n).map(|i| (i * 31 + (i >> 8) * 7 + salt) as u8).collect()
}

#[test]
fn memory_copies_launches_and_events() {
    play("work", &[]);
    play("work", &[("FAKE_POOLS", "0")]);
    play("work", &[("OLD_DRIVER", "1")]);
}

fn work() {
    let cuda = device();
    assert_eq!((cuda.info().name.as_str(), cuda.info().capability), ("Fake GPU 0", (9, 0)));
    assert_eq!((cuda.info().multiprocessors, cuda.info().shared_per_block), (132, 232448));
    // Uploads of all sizes in a row, from buffers that are overwritten at once; nothing has been waited for.
    let sizes = [1, 7, 64, 4096, 1 << 20, (1 << 20) + 1, 3, 40 << 20, 5, 100_000, 200_000, 300_000, 900_000];
    let mut placed = Vec::new();
    for (salt, &n) in sizes.iter().enumerate() {
        let mut bytes = pattern(n, salt);
        let at = cuda.alloc(n).unwrap();
        cuda.upload(at, &bytes).unwrap();
        bytes.fill(0xee);
        placed.push((at, n, salt));
    }
    for i in 0..3000usize {
        cuda.upload(placed[9].0 + 8 * i as u64, &i.to_le_bytes()).unwrap();
    }
    for &(at, n, salt) in &placed {
        let mut back = vec![0; n];
        cuda.download(&mut back, at).unwrap();
        let mut expected = pattern(n, salt);
        if salt == 9 {
            (0..3000usize).for_each(|i| expected[8 * i..][..8].copy_from_slice(&i.to_le_bytes()));
        }
        assert!(back == expected, "{n} bytes came back changed");
        // An upload right behind a download, into the ring that it has just used.
        cuda.upload(at, &vec![salt as u8; n.min(3000)]).unwrap();
    }
    for (salt, &(at, n, _)) in placed.iter().enumerate() {
        let mut back = vec![0; n.min(3000)];
        cuda.download(&mut back, at).unwrap();
        assert!(back.iter().all(|&b| b == salt as u8));
    }
    cuda.download(&mut [], 1).unwrap();
    cuda.upload(1, &[]).unwrap();

    // In order: fill, kernel, copy, kernel, one download.
    let (a, b) = (placed[4].0, placed[5].0);
    let before = cuda.record().unwrap();
    cuda.fill(a, 5, 1 << 20).unwrap();
    launch(&cuda, &ADD_ONE, ONE, [a, 1000]).unwrap();
    cuda.copy(b, a, 1001).unwrap();
    launch(&cuda, &ADD_ONE, ONE, [b, 1]).unwrap();
    let after = cuda.record().unwrap();
    let mut back = [0; 1001];
    cuda.download(&mut back, b).unwrap();
    assert_eq!((back[0], back[1], back[999], back[1000]), (7, 6, 6, 5));
    assert_eq!(cuda.elapsed(&before, &after).unwrap(), 4.0);
    let stranger = cuda.elapsed(&Event(Box::new(3)), &after).unwrap_err();
    assert_eq!(stranger.kind(), ErrorKind::Internal);

    let (free, total) = cuda.memory().unwrap();
    assert!(free < total && total == 64 << 20);
    placed.iter().for_each(|&(at, n, _)| cuda.free(at, n));
    cuda.synchronize().unwrap();
    assert_eq!((live(c"allocations"), live(c"modules"), live(c"pinned")), (0, 1, 1));
    drop((before, cuda));
    assert_eq!(live(c"contexts"), 1, "an event keeps its context");
    drop(after);
    for what in [c"contexts", c"streams", c"events", c"pools", c"pinned", c"modules"] {
        assert_eq!(live(what), 0, "{what:?}");
    }
}

#[test]
fn recorded_work_is_a_graph_that_is_launched_as_one() {
    play("graph", &[]);
}

fn graph() {
    let cuda = device();
    let at = cuda.alloc(1000).unwrap();
    let recorded = |kernel, grid, args: [u64; 2]| {
        let args = Args::copy_of(bytemuck::cast_slice(&args));
        Command::Launch(Box::new(Launch {
            kernel,
            grid,
            args,
            buffers: Box::default(),
            context: Default::default(),
        }))
    };
    let add_one = |n: u64| recorded(&ADD_ONE, ONE, [at, n]);
    let commands = vec![
        Command::Fill { to: at, value: 5, bytes: 100 },
        add_one(900),
        Command::Copy { to: at + 500, from: at, bytes: 50 },
        add_one(20),
    ];
    cuda.fill(at, 1, 1000).unwrap();
    // SAFETY: the memory lives until the end.
    let executable = unsafe { cuda.instantiate(commands) }.unwrap();
    let mut back = [0; 1000];
    cuda.download(&mut back, at).unwrap();
    assert_eq!(back, [1; 1000], "nothing runs while it is recorded");
    assert_eq!((live(c"graphs"), live(c"streams")), (1, 1), "only what is launched is kept");
    for _ in 0..3 {
        cuda.replay(&executable).unwrap();
        launch(&cuda, &ADD_ONE, ONE, [at, 1]).unwrap();
    }
    cuda.download(&mut back, at).unwrap();
    assert_eq!((back[0], back[19], back[20], back[499], back[500], back[950]), (8, 7, 6, 4, 6, 1));

    // What fails while it is captured leaves no stream and no capture behind.
    let absent = recorded(&ABSENT, ONE, [0; 2]);
    // SAFETY: refused.
    assert!(unsafe { cuda.instantiate(vec![absent]) }.is_err());
    let too_wide = recorded(&ADD_ONE, Grid { blocks: [1, 70_000, 1], shared: 0 }, [0; 2]);
    // SAFETY: refused.
    assert!(unsafe { cuda.instantiate(vec![too_wide]) }.is_err());
    assert_eq!((live(c"graphs"), live(c"streams")), (1, 1));
    let stranger = cuda.replay(&Executable(Box::new(3))).unwrap_err();
    assert_eq!(stranger.kind(), ErrorKind::Internal);
    cuda.synchronize().unwrap();
    drop(executable);
    cuda.free(at, 1000);
    drop(cuda);
    for what in [c"contexts", c"streams", c"graphs"] {
        assert_eq!(live(what), 0, "{what:?}");
    }
}

#[test]
fn kernels_are_checked_when_they_are_loaded() {
    play("kernels", &[]);
}

fn kernels() {
    let cuda = device();
    assert!(cuda.has(&ADD_ONE) && !cuda.has(&ABSENT) && !cuda.has(&OTHER) && !cuda.has(&NOWHERE));
    // What is wrong with us is seen at the launch, not taken for an absence.
    assert!(cuda.has(&DIFFERS) && cuda.has(&SMALL));
    let said = |kernel| {
        let error = launch(&cuda, kernel, ONE, [0, 0]).unwrap_err();
        (error.kind(), error.to_string())
    };
    let (kind, text) = said(&ABSENT);
    assert_eq!((kind, &*text), (ErrorKind::Unsupported, "absent_f32: unit.cu has no such kernel for sm_90"));
    let (kind, text) = said(&OTHER);
    let expected = "add_one: other.cu was compiled for sm_80, not for sm_90 (WARPSMITH_CUDA_ARCHS)";
    assert_eq!((kind, &*text), (ErrorKind::Unsupported, expected));
    assert_eq!(said(&NOWHERE).1, "add_one: nowhere.cu is not part of this build");
    let (kind, text) = said(&DIFFERS);
    assert_eq!(kind, ErrorKind::Internal);
    assert!(text.contains("differs: bytes of arguments differ: declared 24, compiled 16"), "{text}");
    assert!(said(&SMALL).1.contains("threads of a block differ: declared 256, compiled 64"));
    assert_eq!(live(c"launches"), 0);

    let at = cuda.alloc(100).unwrap();
    let with = |shared| launch(&cuda, &ADD_ONE, Grid { blocks: [1, 1, 1], shared }, [at, 100]);
    with(47 << 10).unwrap();
    assert_eq!(live(c"attributes"), 0);
    // 1 KiB is static: 48 KiB more need asking, once a size.
    with(48 << 10).unwrap();
    with(48 << 10).unwrap();
    with(40 << 10).unwrap();
    assert_eq!(live(c"attributes"), 1);
    with(226 << 10).unwrap();
    assert_eq!(live(c"attributes"), 2);
    let error = with(227 << 10).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.message().contains("needs 233472 bytes of shared memory a block, the device has 232448"));
    let mut back = [0];
    cuda.download(&mut back, at).unwrap();
    assert_eq!(back[0], 0xa5 + 5, "five launches got through");
}

#[test]
fn a_sticky_error_poisons_the_device_and_nothing_else() {
    play("fault", &[]);
}

fn fault() {
    let cuda = device();
    let at = cuda.alloc(4096).unwrap();
    let event = cuda.record().unwrap();
    cuda.upload(at, &[1; 4096]).unwrap();
    launch(&cuda, &TRAP, ONE, [0, 0]).unwrap();
    assert_eq!(cuda.poisoned(), None, "the launch is asynchronous");
    let error = cuda.synchronize().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeviceFailed);
    let cause = "the driver reported CUDA_ERROR_ILLEGAL_ADDRESS (700): an illegal memory access was encountered while \
                 waiting for the device";
    assert_eq!((error.message(), cuda.poisoned()), (cause, Some(cause)));
    assert!(error.help().unwrap().contains("compute-sanitizer"));
    // Every later call gives the first cause, whatever it is.
    let mut byte = [0];
    let later = [
        cuda.synchronize().unwrap_err(),
        cuda.alloc(1).unwrap_err(),
        cuda.memory().unwrap_err(),
        cuda.upload(at, &[1]).unwrap_err(),
        cuda.download(&mut byte, at).unwrap_err(),
        cuda.copy(at, at + 8, 8).unwrap_err(),
        cuda.fill(at, 0, 8).unwrap_err(),
        launch(&cuda, &ADD_ONE, ONE, [at, 1]).unwrap_err(),
        cuda.record().err().unwrap(),
        cuda.elapsed(&event, &event).unwrap_err(),
    ];
    for error in later {
        assert_eq!(error.kind(), ErrorKind::DeviceFailed);
        assert_eq!(
            error.message(),
            format!("cuda:0 failed earlier and does no more work in this process: {cause}")
        );
    }
    assert!(!cuda.has(&ADD_ONE));
    cuda.free(at, 4096);
    drop((cuda, event));
}

#[test]
fn out_of_memory_is_an_error_and_no_end() {
    play("memory", &[("FAKE_MEMORY", "8388608")]);
    play("memory", &[("FAKE_MEMORY", "8388608"), ("FAKE_POOLS", "0")]);
}

fn out_of_memory() {
    let cuda = device();
    let a = cuda.alloc(6 << 20).unwrap();
    let error = cuda.alloc(3 << 20).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfMemory);
    let expected = "cuda:0 has no 3145728 bytes of memory left: 2097152 of 8388608 bytes are free";
    assert_eq!(error.message(), expected);
    // What was given back helps, also where the pool keeps it and it does not fit as it is.
    cuda.free(a, 6 << 20);
    let b = cuda.alloc(7 << 20).unwrap();
    cuda.fill(b, 1, 7 << 20).unwrap();
    cuda.synchronize().unwrap();
    assert_eq!(cuda.poisoned(), None);
}

#[test]
fn the_context_of_a_host_program_is_left_as_it_was() {
    play("contexts", &[]);
}

fn contexts() {
    let current = || {
        let mut raw = null_mut();
        // SAFETY: writes a pointer.
        assert_eq!(unsafe { sys::cuCtxGetCurrent(&mut raw) }, CUresult::CUDA_SUCCESS);
        raw as usize
    };
    let cuda = Arc::new(device());
    let ours = current();
    assert_ne!(ours, 0);
    let theirs = 0x1234 as sys::CUcontext;
    // SAFETY: the fake does not look behind the pointer.
    assert_eq!(unsafe { sys::cuCtxSetCurrent(theirs) }, CUresult::CUDA_SUCCESS);
    let at = cuda.alloc(64).unwrap();
    cuda.upload(at, &[3; 64]).unwrap();
    assert_eq!(current(), 0x1234);
    let event = cuda.record().unwrap();
    assert!(launch(&cuda, &ABSENT, ONE, [0, 0]).is_err());
    assert_eq!(current(), 0x1234);
    let other = cuda.clone();
    std::thread::spawn(move || {
        assert_eq!(current(), 0);
        let mut back = [0; 64];
        other.download(&mut back, at).unwrap();
        assert_eq!((back, current()), ([3; 64], ours));
    })
    .join()
    .unwrap();
    drop((cuda, event));
    assert_eq!((current(), live(c"contexts")), (0x1234, 0));
}

#[test]
fn tensor_maps() {
    play("maps", &[]);
    play("maps", &[("FAKE_CAPABILITY", "89")]);
    play("maps", &[("OLD_DRIVER", "1")]);
}

fn maps() {
    let cuda = Cuda::open(0, code(&[("unit", &[HOPPER, Image { arch: 80, ..HOPPER }])])).unwrap();
    let desc = TensorMapDesc {
        address: 0x1000,
        element: 2,
        size: [100, 40],
        pitch: 208,
        tile: [64, 32],
        swizzle: 128,
    };
    let map = cuda.tensor_map(&desc);
    if std::env::var("FAKE_CAPABILITY").is_ok() || std::env::var("OLD_DRIVER").is_ok() {
        assert_eq!(map.err().unwrap().kind(), ErrorKind::Unsupported);
        return;
    }
    let words = map.unwrap().0;
    let word = |i: usize| u64::from_ne_bytes(words[8 * i..][..8].try_into().unwrap());
    // Type 1 is u16, swizzle 3 is 128 bytes.
    assert_eq!([0, 1, 2, 3, 4, 5, 6, 7].map(word), [0x1000, 100, 40, 208, 64, 32, 1, 3]);
    let crooked = cuda.tensor_map(&TensorMapDesc { pitch: 200, ..desc }).err().unwrap();
    assert_eq!(crooked.kind(), ErrorKind::Internal);
    assert!(crooked.message().contains("pitch: 200"), "{crooked}");
}

#[test]
fn a_device_that_cannot_be_used_says_why() {
    // What the driver pretends, what the error says, what its fix names.
    type Case = (&'static [(&'static str, &'static str)], &'static str, &'static str);
    let cases: [Case; 13] = [
        (&[("FAKE_INIT", "802")], "not ready", "nvidia-fabricmanager"),
        (&[("FAKE_INIT", "100")], "no GPU is visible to this process", "CUDA_VISIBLE_DEVICES"),
        (&[("FAKE_DEVICES", "0")], "no GPU is visible to this process", "CUDA_VISIBLE_DEVICES"),
        (&[("FAKE_INIT", "34")], "only the toolkit's stub", "LD_LIBRARY_PATH"),
        (&[("FAKE_INIT", "803")], "do not fit each other", "reboot"),
        (&[("FAKE_INIT", "999")], "CUDA_ERROR_UNKNOWN (999)", "nvidia-smi"),
        (&[("INDEX", "3"), ("FAKE_DEVICES", "2")], "there are 2 GPUs, cuda:0 to cuda:1", "warpsmith doctor"),
        (&[("INDEX", "1")], "there is one GPU, cuda:0", "CUDA_VISIBLE_DEVICES"),
        (
            &[("FAKE_VERSION", "12040")],
            "its driver supports CUDA 12.4, and the kernels, compiled by nvcc 13.0, need 13.0",
            "driver 580 or newer, or build with an nvcc of CUDA 12",
        ),
        (&[("FAKE_CAPABILITY", "75")], "sm_75) cannot be used", "compute capability 8.0"),
        (
            &[("FAKE_CAPABILITY", "100")],
            "compiled for sm_80, sm_90, none of which it runs",
            "100 in WARPSMITH_CUDA_ARCHS",
        ),
        (&[("FAKE_RETAIN", "46")], "CUDA_ERROR_DEVICE_UNAVAILABLE", "compute mode"),
        (&[("NO_CODE", "1")], "has no GPU kernels", "scripts/get-nvcc.sh"),
    ];
    for (settings, message, help) in cases {
        play("refused", &[settings, &[("MESSAGE", message), ("HELP", help)]].concat());
    }
}

fn refused() {
    let var = |name| std::env::var(name).unwrap_or_default();
    let index = var("INDEX").parse().unwrap_or(0);
    let code = match var("NO_CODE").as_str() {
        "" => code(&[("unit", &[HOPPER, Image { arch: 80, ..HOPPER }])]),
        _ => code(&[]),
    };
    let error = Cuda::open(index, code).err().unwrap();
    println!("{error}");
    assert_eq!(error.kind(), ErrorKind::NoDevice);
    assert!(error.message().contains(&format!("cuda:{index}")), "{error}");
    assert!(error.message().contains(&var("MESSAGE")), "{error}");
    assert!(error.help().unwrap().contains(&var("HELP")), "{error}");
    assert_eq!(live(c"contexts"), 0);
}

#[test]
fn what_the_driver_says_of_a_module_is_passed_on() {
    play("jit", &[("FAKE_JIT", "222"), ("FAKE_VERSION", "13010")]);
}

fn jit() {
    let cuda = device();
    assert!(cuda.has(&ADD_ONE), "it was compiled for this device, so this is no absence");
    let error = launch(&cuda, &ADD_ONE, ONE, [0, 0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoDevice);
    for part in [
        "the kernels of unit.cu (sm_90) could not be loaded for Fake GPU 0, sm_90",
        "CUDA_ERROR_UNSUPPORTED_PTX_VERSION (222)",
        "driver for CUDA 13.1, compiled by nvcc 13.0",
        "ptxas fatal: the fake driver wants no kernels",
    ] {
        assert!(error.message().contains(part), "{error}");
    }
    assert_eq!(cuda.poisoned(), None);
}

#[test]
fn a_machine_without_a_driver() {
    if Library::open(&cudarc::get_lib_name_candidates("cuda")).is_some() {
        println!("skipped: this machine has a driver");
        return;
    }
    let error = open(0).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NoDevice);
    assert_eq!(error.message(), "cuda:0 cannot be used: no NVIDIA driver was found (libcuda.so.1)");
    assert!(error.help().unwrap().contains("install an NVIDIA driver"));
    assert_eq!(count().unwrap_err().kind(), ErrorKind::NoDevice);
    let survey = survey();
    assert_eq!((survey.library, survey.version), (None, None));
    assert!(survey.devices.is_err());
}

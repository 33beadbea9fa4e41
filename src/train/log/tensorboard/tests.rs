//! The bytes are those of TensorBoard's own writer, and a file goes on where its run does.

#![forbid(unsafe_code)]

use super::*;
use crate::train::Metrics;

/// Written by tensorboard 2.21.0: `RecordWriter` over `Event(...).SerializeToString()` of the three events below.
const GOLDEN: &str = "1800000000000000a37f4b220900000000004a93401a0d627261696e2e4576656e743a3265b8d3fb\
    2c00000000000000f4aecc45090000200065cdcd4110ac022a1e0a110a0a747261696e5f6c6f737315cdcccc3d0a090a026c72156f12833a7056c1df\
    2400000000000000422b804d090000000065cddd41108580808080202a120a100a09737465705f6c6f7373150000c0bf4aaf314c";

fn golden() -> Vec<u8> {
    (0..GOLDEN.len()).step_by(2).map(|i| u8::from_str_radix(&GOLDEN[i..i + 2], 16).unwrap()).collect()
}

#[test]
fn crc32c_has_its_published_check_values() {
    // The catalogue's check value, and RFC 3720's for 32 zeros and 32 ones.
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    assert_eq!((crc32c(&[0; 32]), crc32c(&[0xff; 32])), (0x8a91_36aa, 0x62a8_ab43));
}

#[test]
fn events_are_the_bytes_that_tensorboard_writes() {
    let scalar = |tag: &str, value| (tag.to_owned(), value);
    let messages = [
        Message::new().double(1, 1234.5).bytes(3, b"brain.Event:2"),
        event(1e9 + 0.25, 300, &[scalar("train_loss", 0.1), scalar("lr", 0.001)]),
        event(2e9, (1 << 40) + 5, &[scalar("step_loss", -1.5)]),
    ];
    let bytes: Vec<u8> = messages.iter().flat_map(|message| frame(&message.0)).collect();
    assert_eq!(bytes, golden());
}

#[test]
fn theirs_read_back_and_no_flipped_bit_does() {
    let bytes = golden();
    let (mut rest, mut read) = (&bytes[..], Vec::new());
    while let Some((message, behind)) = unframe(rest) {
        let event = read_event(message).unwrap();
        read.push((event.step, event.scalars));
        rest = behind;
    }
    assert!(rest.is_empty());
    assert_eq!(read[1], (300, vec![("train_loss", 0.1), ("lr", 0.001)]));
    assert_eq!(read[2], ((1 << 40) + 5, vec![("step_loss", -1.5)]));
    let first = bytes.len() - unframe(&bytes).unwrap().1.len();
    for bit in 0..first * 8 {
        let mut flipped = bytes[..first].to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(unframe(&flipped).is_none(), "bit {bit}");
    }
    for len in 0..first {
        assert!(unframe(&bytes[..len]).is_none(), "length {len}");
    }
}

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        Folder(std::env::temp_dir().join(format!("warpsmith-events-{}-{name}", std::process::id())))
    }

    fn bytes(&self) -> Vec<u8> {
        fs::read(self.0.join(EVENTS)).unwrap()
    }

    /// Steps, tags and values of the file, which must be sound to its end.
    fn scalars(&self) -> Vec<(u64, String, f32)> {
        let bytes = self.bytes();
        let (mut rest, mut all) = (&bytes[..], Vec::new());
        while !rest.is_empty() {
            let (message, behind) = unframe(rest).unwrap();
            let event = read_event(message).unwrap();
            all.extend(event.scalars.iter().map(|&(tag, value)| (event.step, tag.to_owned(), value)));
            rest = behind;
        }
        all
    }

    /// The steps at which `tag` was written.
    fn steps(&self, tag: &str) -> Vec<u64> {
        self.scalars().into_iter().filter(|(_, t, _)| t == tag).map(|(step, ..)| step).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// An epoch has 25 steps.
fn entry(epoch: u64, run: f64) -> Entry {
    let val_metrics = Metrics::from([("accuracy".to_owned(), 0.5)]);
    Entry {
        epoch,
        step: epoch * 25,
        lr: 0.1,
        train_loss: run / epoch as f64,
        val_loss: Some(0.3),
        val_metrics,
    }
}

/// What a trainer says of an epoch that becomes this entry.
fn report(epoch: u64, run: f64) -> EpochReport {
    let Entry { epoch, step: steps, lr, train_loss, val_loss, val_metrics } = entry(epoch, run);
    EpochReport { epoch, steps, train_loss, val_loss, val_metrics, lr, samples_per_second: 1.0, best: true }
}

fn train(board: &mut TensorBoard, steps: std::ops::RangeInclusive<u64>, run: f64) {
    for step in steps {
        board.step(step, run);
        if step % 25 == 0 {
            board.epoch(&report(step / 25, run));
        }
    }
}

fn done(epochs: u64, run: f64) -> Vec<Entry> {
    (1..=epochs).map(|epoch| entry(epoch, run)).collect()
}

#[test]
fn a_resumed_run_neither_repeats_nor_skips() {
    let folder = Folder::new("resume");
    let mut board = TensorBoard::open(&folder.0, &[], 0).unwrap();
    train(&mut board, 1..=110, 1.0);
    board.finish().unwrap();
    let whole = folder.scalars();
    assert_eq!(folder.steps("train_loss"), [25, 50, 75, 100]);
    assert_eq!(folder.steps("step_loss"), (10..=110).step_by(10).collect::<Vec<_>>());
    assert_eq!((folder.steps("rows_per_second").len(), folder.steps("val_accuracy").len()), (4, 4));

    // Back to the end of an epoch, to the middle of one, and to the last step before an epoch was over.
    for (epochs, steps) in [(2, 50), (2, 63), (2, 75), (4, 110)] {
        let mut board = TensorBoard::open(&folder.0, &done(epochs, 1.0), steps).unwrap();
        assert!(folder.steps("train_loss").len() == epochs as usize, "{epochs} {steps}");
        if steps == 75 {
            // The checkpoint was made before epoch 3 was judged, which comes again.
            board.epoch(&report(3, 1.0));
        }
        train(&mut board, steps + 1..=110, 1.0);
        board.finish().unwrap();
        assert_eq!(folder.scalars(), whole, "{epochs} {steps}");
    }
    // A torn last event, as a kill leaves it, goes.
    let mut bytes = folder.bytes();
    bytes.truncate(bytes.len() - 3);
    fs::write(folder.0.join(EVENTS), &bytes).unwrap();
    let mut board = TensorBoard::open(&folder.0, &done(4, 1.0), 100).unwrap();
    train(&mut board, 101..=110, 1.0);
    board.finish().unwrap();
    assert_eq!(folder.scalars(), whole);
}

#[test]
fn what_the_file_lacks_is_filled_in_and_another_run_is_replaced() {
    let folder = Folder::new("fill");
    // The first run wrote no events, or only some.
    TensorBoard::open(&folder.0, &done(2, 1.0), 50).unwrap().finish().unwrap();
    assert_eq!(folder.steps("val_loss"), [25, 50]);
    TensorBoard::open(&folder.0, &done(3, 1.0), 80).unwrap().finish().unwrap();
    assert_eq!(folder.steps("train_loss"), [25, 50, 75]);
    // Events of a run with other losses.
    TensorBoard::open(&folder.0, &done(3, 7.0), 80).unwrap().finish().unwrap();
    assert_eq!(folder.steps("train_loss"), [25, 50, 75]);
    assert_eq!(folder.scalars()[0].2, 7.0);
    // A new run, and something that is no event file.
    TensorBoard::open(&folder.0, &[], 0).unwrap().finish().unwrap();
    assert!(folder.scalars().is_empty() && !folder.bytes().is_empty());
    fs::write(folder.0.join(EVENTS), "not events").unwrap();
    TensorBoard::open(&folder.0, &done(1, 1.0), 25).unwrap().finish().unwrap();
    assert_eq!(folder.steps("train_loss"), [25]);
}

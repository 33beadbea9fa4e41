//! TensorBoard's event files: TFRecord frames around `tensorflow.Event` messages, of which a scalar needs five fields.
//!
//! ```text
//! frame    length u64 · masked CRC-32C of the length · message · masked CRC-32C of the message     (little-endian)
//! Event    1 wall_time double · 2 step int64 · 3 file_version string | 5 summary Summary
//! Summary  1 value Value, repeated
//! Value    1 tag string · 2 simple_value float
//! ```
//! The axis of all scalars is the optimiser step. There is one file a folder, of a name that does not change: a run that
//! goes on cuts off what lies behind its checkpoint and what does not agree with its log, fills in epochs that the file
//! lacks, and appends. TensorBoard may be watching meanwhile.

#![forbid(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::Entry;
use crate::train::{EpochReport, Observer};
use crate::{Error, Result};

/// The file's name; TensorBoard reads those that contain `tfevents`.
pub const EVENTS: &str = "events.out.tfevents.warpsmith";
/// Steps between two `step_loss` scalars.
const STEP_INTERVAL: u64 = 10;
/// The scalar that each epoch has.
const EPOCH_TAG: &str = "train_loss";
/// The longest message that is read back; ours have a few hundred bytes.
const MAX_MESSAGE: usize = 1 << 20;

/// Writes the scalars of a run: `train_loss`, `val_loss`, `val_…`, `lr` and `rows_per_second` an epoch, and `step_loss`
/// each 10 steps.
pub struct TensorBoard {
    out: BufWriter<File>,
    path: PathBuf,
    failure: Option<io::Error>,
}

impl TensorBoard {
    /// Opens the event file in `dir` for a run that has finished the epochs `done` and `steps` optimiser steps. Events of
    /// another run are replaced.
    ///
    /// # Errors
    /// Kind `Data`: the folder or the file cannot be written.
    pub fn open(dir: &Path, done: &[Entry], steps: u64) -> Result<TensorBoard> {
        fs::create_dir_all(dir).map_err(|e| Error::io(dir, "create", e))?;
        let path = dir.join(EVENTS);
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = opened.map_err(|e| Error::io(&path, "open for writing", e))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(|e| Error::io(&path, "read", e))?;
        let (kept, epochs) = if steps == 0 { (0, 0) } else { agreeing(&bytes, done, steps) };
        let cut = file.set_len(kept as u64).and_then(|()| file.seek(SeekFrom::End(0)));
        cut.map_err(|e| Error::io(&path, "write", e))?;
        let mut board = TensorBoard { out: BufWriter::new(file), path, failure: None };
        if kept == 0 {
            board.write(&Message::new().double(1, now()).bytes(3, b"brain.Event:2"));
        }
        for entry in &done[epochs..] {
            board.epoch_scalars(entry, None);
        }
        board.flush();
        match board.failure.take() {
            None => Ok(board),
            Some(e) => Err(Error::io(&board.path, "write", e)),
        }
    }

    /// Writes what is left. The first failure of the run is reported here, for a log is no reason to stop training.
    pub fn finish(mut self) -> Result<()> {
        self.flush();
        match self.failure.take() {
            None => Ok(()),
            Some(e) => Err(Error::io(&self.path, "write", e).with_help("the events are incomplete")),
        }
    }

    fn epoch_scalars(&mut self, entry: &Entry, rows_per_second: Option<f64>) {
        let mut scalars = vec![(EPOCH_TAG.to_owned(), entry.train_loss), ("lr".to_owned(), entry.lr)];
        scalars.extend(entry.val_loss.map(|loss| ("val_loss".to_owned(), loss)));
        scalars.extend(entry.val_metrics.iter().map(|(name, &value)| (format!("val_{name}"), value)));
        scalars.extend(rows_per_second.map(|rate| ("rows_per_second".to_owned(), rate)));
        self.write(&event(now(), entry.step, &scalars));
    }

    fn write(&mut self, message: &Message) {
        if self.failure.is_none() {
            self.failure = self.out.write_all(&frame(&message.0)).err();
        }
    }

    fn flush(&mut self) {
        if self.failure.is_none() {
            self.failure = self.out.flush().err();
        }
    }
}

impl Observer for TensorBoard {
    fn step(&mut self, step: u64, loss: f64) {
        if step.is_multiple_of(STEP_INTERVAL) {
            self.write(&event(now(), step, &[("step_loss".to_owned(), loss)]));
        }
    }

    fn epoch(&mut self, report: &EpochReport) {
        self.epoch_scalars(&report.into(), Some(report.samples_per_second));
        self.flush();
    }

    fn saved(&mut self, _dir: &Path) {
        self.flush();
    }
}

/// How many bytes of an event file belong to a run with these epochs and steps, and how many epochs those bytes hold.
fn agreeing(bytes: &[u8], done: &[Entry], steps: u64) -> (usize, usize) {
    let (mut kept, mut epochs) = (0, 0);
    let mut rest = bytes;
    while let Some((message, behind)) = unframe(rest) {
        let Some(read) = read_event(message) else { break };
        let loss = read.scalars.iter().find(|(tag, _)| *tag == EPOCH_TAG).map(|&(_, value)| value);
        let fits = match (loss, done.get(epochs)) {
            // The head of the file, and only there.
            _ if read.scalars.is_empty() => kept == 0,
            (Some(loss), Some(entry)) => {
                read.step == entry.step && loss.to_bits() == (entry.train_loss as f32).to_bits()
            }
            (Some(_), None) => false,
            // A step in an epoch that the file lacks would come before that epoch's figures.
            (None, next) => read.step <= next.map_or(steps, |entry| entry.step.min(steps)),
        };
        if !fits || (kept == 0 && !read.scalars.is_empty()) {
            break;
        }
        epochs += usize::from(loss.is_some());
        kept = bytes.len() - behind.len();
        rest = behind;
    }
    (kept, epochs)
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |t| t.as_secs_f64())
}

fn event(time: f64, step: u64, scalars: &[(String, f64)]) -> Message {
    let value =
        |(tag, value): &(String, f64)| Message::new().bytes(1, tag.as_bytes()).float(2, *value as f32);
    let summary = scalars.iter().fold(Message::new(), |summary, scalar| summary.bytes(1, &value(scalar).0));
    Message::new().double(1, time).varint(2, step).bytes(5, &summary.0)
}

/// A protobuf message in the making.
struct Message(Vec<u8>);

impl Message {
    fn new() -> Message {
        Message(Vec::new())
    }

    fn raw_varint(mut self, mut value: u64) -> Message {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
        self
    }

    fn varint(self, field: u64, value: u64) -> Message {
        self.raw_varint(field << 3).raw_varint(value)
    }

    fn fixed(self, field: u64, kind: u64, bytes: &[u8]) -> Message {
        let mut message = self.raw_varint(field << 3 | kind);
        message.0.extend(bytes);
        message
    }

    fn double(self, field: u64, value: f64) -> Message {
        self.fixed(field, 1, &value.to_le_bytes())
    }

    fn float(self, field: u64, value: f32) -> Message {
        self.fixed(field, 5, &value.to_le_bytes())
    }

    fn bytes(self, field: u64, bytes: &[u8]) -> Message {
        let mut message = self.raw_varint(field << 3 | 2).raw_varint(bytes.len() as u64);
        message.0.extend(bytes);
        message
    }
}

/// What is read back of an event.
struct ReadEvent<'a> {
    step: u64,
    scalars: Vec<(&'a str, f32)>,
}

fn read_event(message: &[u8]) -> Option<ReadEvent<'_>> {
    let mut event = ReadEvent { step: 0, scalars: Vec::new() };
    for field in fields(message)? {
        match field {
            (2, Field::Varint(step)) => event.step = step,
            (5, Field::Bytes(summary)) => {
                for (_, value) in fields(summary)? {
                    let Field::Bytes(value) = value else { return None };
                    let (mut tag, mut scalar) = ("", 0.0);
                    for field in fields(value)? {
                        match field {
                            (1, Field::Bytes(name)) => tag = std::str::from_utf8(name).ok()?,
                            (2, Field::Float(value)) => scalar = value,
                            _ => {}
                        }
                    }
                    event.scalars.push((tag, scalar));
                }
            }
            _ => {}
        }
    }
    Some(event)
}

enum Field<'a> {
    Varint(u64),
    Double,
    Bytes(&'a [u8]),
    Float(f32),
}

fn fields(mut message: &[u8]) -> Option<Vec<(u64, Field<'_>)>> {
    fn varint(message: &mut &[u8]) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = message.split_first()?;
            *message = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }
    let mut fields = Vec::new();
    while !message.is_empty() {
        let key = varint(&mut message)?;
        let field = match key & 7 {
            0 => Field::Varint(varint(&mut message)?),
            1 => {
                message = message.get(8..)?;
                Field::Double
            }
            2 => {
                let len = usize::try_from(varint(&mut message)?).ok()?;
                let (bytes, rest) = message.split_at_checked(len)?;
                message = rest;
                Field::Bytes(bytes)
            }
            5 => {
                let (bytes, rest) = message.split_first_chunk::<4>()?;
                message = rest;
                Field::Float(f32::from_le_bytes(*bytes))
            }
            _ => return None,
        };
        fields.push((key >> 3, field));
    }
    Some(fields)
}

fn frame(message: &[u8]) -> Vec<u8> {
    let len = (message.len() as u64).to_le_bytes();
    let mut frame = len.to_vec();
    frame.extend(masked(crc32c(&len)).to_le_bytes());
    frame.extend(message);
    frame.extend(masked(crc32c(message)).to_le_bytes());
    frame
}

/// The message of the first frame and what is behind it; nothing where there is no whole, sound frame.
fn unframe(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = bytes.split_first_chunk::<8>()?;
    let (len_sum, rest) = rest.split_first_chunk::<4>()?;
    let size = usize::try_from(u64::from_le_bytes(*len)).ok().filter(|&size| size <= MAX_MESSAGE)?;
    let (message, rest) = rest.split_at_checked(size)?;
    let (sum, rest) = rest.split_first_chunk::<4>()?;
    let sound = u32::from_le_bytes(*len_sum) == masked(crc32c(len))
        && u32::from_le_bytes(*sum) == masked(crc32c(message));
    sound.then_some((message, rest))
}

/// TFRecord's mask: a checksum of bytes that hold checksums would be weak.
fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), reflected.
fn crc32c(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut i = 0;
        while i < 256 {
            let (mut crc, mut bit) = (i as u32, 0);
            while bit < 8 {
                crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
                bit += 1;
            }
            table[i] = crc;
            i += 1;
        }
        table
    };
    !bytes.iter().fold(!0, |crc, &byte| TABLE[(crc as u8 ^ byte) as usize] ^ crc >> 8)
}

#[cfg(test)]
mod tests;

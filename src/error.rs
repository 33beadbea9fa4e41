//! The one error type of the crate: what kind of failure, where, why, and what to do about it.
//!
//! [`Error`] is opaque so that its insides can grow; callers ask [`Error::kind`] and print the rest. A message says
//! what was expected and what was found. Bad input never panics; a panic is a bug of ours.

#![forbid(unsafe_code)]

use std::error::Error as StdError;
use std::fmt;
use std::path::{Path, PathBuf};

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, coarsely: decides the exit code and what a caller can do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Shapes that do not fit each other or the op.
    Shape,
    /// Element types that do not fit each other or the op. Nothing is promoted implicitly.
    DType,
    /// Tensors on different devices.
    Device,
    /// The op, dtype or layout is not implemented on this device.
    Unsupported,
    /// A value that is wrong by itself: a negative width, a learning rate of NaN, contradicting flags.
    Argument,
    /// A file or its content cannot be used.
    Data,
    /// Memory ran out.
    OutOfMemory,
    /// No usable device of the kind asked for.
    NoDevice,
    /// A device failed while it worked.
    DeviceFailed,
    /// A rank of a distributed run was lost.
    RankLost,
    /// Training diverged: a loss or a parameter is no longer finite.
    Diverged,
    /// A registered parameter received no gradient.
    MissingGradient,
    /// A tensor saved for backward was changed in place before backward read it.
    Stale,
    /// A range of memory is borrowed in a way that excludes this access.
    Borrowed,
    /// The user asked to stop.
    Interrupted,
    /// Our own bug.
    Internal,
}

impl ErrorKind {
    /// The process exit code for this kind (see `docs/ARCHITECTURE.md`).
    pub fn exit_code(self) -> u8 {
        match self {
            ErrorKind::Diverged => 1,
            ErrorKind::Argument => 2,
            ErrorKind::Data => 4,
            ErrorKind::OutOfMemory => 5,
            ErrorKind::NoDevice => 6,
            ErrorKind::DeviceFailed => 7,
            ErrorKind::RankLost => 8,
            ErrorKind::Interrupted => 130,
            ErrorKind::Shape
            | ErrorKind::DType
            | ErrorKind::Device
            | ErrorKind::Unsupported
            | ErrorKind::MissingGradient
            | ErrorKind::Stale
            | ErrorKind::Borrowed
            | ErrorKind::Internal => 70,
        }
    }
}

/// Where in a file something is wrong. Lines and columns count from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: PathBuf,
    /// The line, where the file has lines.
    pub line: Option<u64>,
    /// The column: a field's name or its number.
    pub column: Option<String>,
}

struct Inner {
    kind: ErrorKind,
    op: Option<&'static str>,
    message: String,
    place: Option<Place>,
    help: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// The error of every fallible function in this crate.
pub struct Error(Box<Inner>);

impl Error {
    /// An error of `kind` that says `message`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error(Box::new(Inner {
            kind,
            op: None,
            message: message.into(),
            place: None,
            help: None,
            source: None,
        }))
    }

    /// Shapes that do not fit.
    pub fn shape(op: &'static str, message: impl Into<String>) -> Self {
        Error::new(ErrorKind::Shape, message).with_op(op)
    }

    /// Element types that do not fit.
    pub fn dtype(op: &'static str, message: impl Into<String>) -> Self {
        Error::new(ErrorKind::DType, message).with_op(op)
    }

    /// A value that is wrong by itself.
    pub fn argument(message: impl Into<String>) -> Self {
        Error::new(ErrorKind::Argument, message)
    }

    /// Something not implemented for this device, dtype or layout.
    pub fn unsupported(op: &'static str, message: impl Into<String>) -> Self {
        Error::new(ErrorKind::Unsupported, message).with_op(op)
    }

    /// A file or its content that cannot be used.
    pub fn data(file: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Error::new(ErrorKind::Data, message).at(file, None, None::<String>)
    }

    /// A failed file operation: `what` completes "could not …", as in "open for reading".
    pub fn io(file: impl AsRef<Path>, what: &str, cause: std::io::Error) -> Self {
        Error::data(file, format!("could not {what}")).caused_by(cause)
    }

    /// A broken invariant of ours.
    pub fn internal(message: impl Into<String>) -> Self {
        Error::new(ErrorKind::Internal, message).with_help("this is a bug in warpsmith; please report it")
    }

    /// Names the op that failed, unless an inner op has already been named.
    pub fn with_op(mut self, op: &'static str) -> Self {
        self.0.op.get_or_insert(op);
        self
    }

    /// Names the place in a file; `line` and `column` count from 1.
    pub fn at(
        mut self,
        file: impl AsRef<Path>,
        line: Option<u64>,
        column: Option<impl Into<String>>,
    ) -> Self {
        self.0.place = Some(Place { file: file.as_ref().to_owned(), line, column: column.map(Into::into) });
        self
    }

    /// Says what to do about it.
    pub fn with_help(mut self, help: impl Into<String>) -> Self {
        self.0.help = Some(help.into());
        self
    }

    /// Keeps the underlying cause; it is printed behind the message.
    pub fn caused_by(mut self, cause: impl StdError + Send + Sync + 'static) -> Self {
        self.0.source = Some(Box::new(cause));
        self
    }

    /// Puts `context` and a colon before the message.
    pub fn context(mut self, context: impl fmt::Display) -> Self {
        self.0.message = format!("{context}: {}", self.0.message);
        self
    }

    /// What went wrong, coarsely.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The op that failed, where an op did.
    pub fn op(&self) -> Option<&'static str> {
        self.0.op
    }

    /// The place in a file, where a file is to blame.
    pub fn place(&self) -> Option<&Place> {
        self.0.place.as_ref()
    }

    /// What to do about it, where there is something.
    pub fn help(&self) -> Option<&str> {
        self.0.help.as_deref()
    }

    /// The message alone, without op, place, cause or help.
    pub fn message(&self) -> &str {
        &self.0.message
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &*self.0;
        if let Some(place) = &inner.place {
            write!(f, "{}", place.file.display())?;
            if let Some(line) = place.line {
                write!(f, ", line {line}")?;
            }
            if let Some(column) = &place.column {
                write!(f, ", column {column}")?;
            }
            f.write_str(": ")?;
        }
        if let Some(op) = inner.op {
            write!(f, "{op}: ")?;
        }
        f.write_str(&inner.message)?;
        if let Some(cause) = &inner.source {
            write!(f, ": {cause}")?;
        }
        if let Some(help) = &inner.help {
            write!(f, "\nhelp: {help}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.0.kind)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|e| e as &(dyn StdError + 'static))
    }
}

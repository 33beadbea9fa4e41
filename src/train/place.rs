//! Where a run saves: the folder of the finished model, and the one beside it for checkpoints while another model is there.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use super::checkpoint;
use crate::io::folder::{self, Folder};
use crate::{Error, ErrorKind, Result};

/// Where a run saves. Absolute, as replacing the current directory leaves relative paths pointing nowhere.
pub(super) struct Place {
    /// The folder of the finished model, as it is shown.
    pub(super) shown: PathBuf,
    pub(super) dir: PathBuf,
    /// Where checkpoints go when `dir` holds a model that this run does not go on with.
    partial: Option<PathBuf>,
    /// Whether what is in `partial` is this run's.
    owns_partial: bool,
}

impl Place {
    /// `resumed` is the folder that the run goes on with.
    pub(super) fn new(dir: &Path, resumed: Option<&Folder>) -> Result<Place> {
        let absolute = std::path::absolute(dir).map_err(|e| Error::io(dir, "find", e))?;
        // `.` has no name to make another of.
        let named = if dir.file_name().is_some() { Ok(absolute) } else { absolute.canonicalize() };
        let named = named.map_err(|e| Error::io(dir, "find", e))?;
        let shown = if dir.file_name().is_some() { dir.to_owned() } else { named.clone() };
        let same = |a: &Path| {
            let read = resumed.and_then(|folder| folder.path().canonicalize().ok());
            read.is_some() && read == a.canonicalize().ok()
        };
        let found = Folder::open(&named);
        let is_resumed = match &found {
            Ok(found) => same(found.path()),
            Err(_) => false,
        };
        let is_model = found.is_ok() || named.join(folder::MODEL).exists();
        let partial = (is_model && !is_resumed).then(|| checkpoint::partial_of(&named));
        if let Some(partial) = &partial {
            folder::check_writable(partial)?;
        }
        let owns_partial = partial.as_deref().is_some_and(same);
        Ok(Place { shown, dir: named, partial, owns_partial })
    }

    /// Where checkpoints go.
    pub(super) fn checkpoints(&self) -> &Path {
        self.partial.as_deref().unwrap_or(&self.dir)
    }

    /// [`Place::checkpoints`] as it is shown.
    pub(super) fn shown_checkpoints(&self) -> PathBuf {
        if self.partial.is_some() { checkpoint::partial_of(&self.shown) } else { self.shown.clone() }
    }

    /// A checkpoint was written: what is in `partial` is this run's.
    pub(super) fn checkpoint_written(&mut self) {
        self.owns_partial = self.partial.is_some();
    }

    /// The finished model was written: `dir` is this run's own from here on, and its checkpoints beside it go.
    pub(super) fn result_written(&mut self) -> Result<()> {
        match self.partial.take() {
            Some(partial) if self.owns_partial => checkpoint::remove(&partial),
            _ => Ok(()),
        }
    }

    /// The error of a run that was interrupted `when`, after its checkpoint was written.
    pub(super) fn interrupted(&self, when: &str) -> Error {
        let message = format!("interrupted {when}; saved to {}", self.shown_checkpoints().display());
        Error::new(ErrorKind::Interrupted, message).with_help(format!("go on with: {}", self.how_to_go_on()))
    }

    /// The command that goes on from the checkpoint.
    fn how_to_go_on(&self) -> String {
        let from = self.shown_checkpoints();
        let mut command = format!("warpsmith train --resume {}", from.display());
        if self.partial.is_some() {
            command += &format!(" --out {}", self.shown.display());
        }
        command
    }
}

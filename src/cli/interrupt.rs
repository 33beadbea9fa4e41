//! Ctrl-C: the first one asks the training loop to save and leave, the second one leaves at once.

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};

use super::output::{self, Log};
use crate::{Error, Result};

static STOP: AtomicBool = AtomicBool::new(false);

/// From now on SIGINT and SIGTERM (and what other systems have for them) set the flag that this returns.
///
/// # Errors
/// Kind `Internal`: the system refused the handler.
pub(super) fn flag_on_interrupt(log: Log) -> Result<&'static AtomicBool> {
    ctrlc::set_handler(move || {
        if STOP.swap(true, Ordering::Relaxed) {
            output::to_stderr("interrupted again: leaving without saving");
            std::process::exit(130);
        }
        log.note("interrupted: saving a checkpoint; press Ctrl-C again to leave at once");
    })
    .map_err(|e| Error::internal("could not listen for Ctrl-C").caused_by(e))?;
    Ok(&STOP)
}

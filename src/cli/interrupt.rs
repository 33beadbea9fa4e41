//! Ctrl-C: the first one asks whatever runs to end in order (training saves), the second one leaves at once.

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};

use super::output::{self, Log};
use crate::{Error, Result};

/// What training does when it is interrupted.
pub(super) const SAVING: &str = "saving a checkpoint";

static STOP: AtomicBool = AtomicBool::new(false);

/// From now on SIGINT and SIGTERM (and what other systems have for them) set the flag that this returns; `doing` tells the user
/// what then happens.
///
/// # Errors
/// Kind `Internal`: the system refused the handler.
pub(super) fn flag_on_interrupt(log: Log, doing: &'static str) -> Result<&'static AtomicBool> {
    ctrlc::set_handler(move || {
        if STOP.swap(true, Ordering::Relaxed) {
            output::to_stderr("interrupted again: leaving without saving");
            std::process::exit(130);
        }
        log.note(&format!("interrupted: {doing}; press Ctrl-C again to leave at once"));
    })
    .map_err(|e| Error::internal("could not listen for Ctrl-C").caused_by(e))?;
    Ok(&STOP)
}

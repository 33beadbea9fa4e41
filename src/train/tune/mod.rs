//! Hyper-parameter search: settings drawn from ranges, trained, compared by validation loss.
//!
//! Which settings are tried, for how long, and which of them go on is a pure function of the [`Plan`]: neither the number
//! of runs side by side nor an interruption changes it. Figures of the test part decide nothing. What a trial is made of is
//! the caller's business, by way of an [`Objective`].
//!
//! Of trials with the same settings the first is trained; the others have its results, and go on to no further rung.
//!
//! A search lives in a folder:
//!
//! | file | what |
//! | --- | --- |
//! | `search.toml` | the plan, so that nothing else is continued by mistake |
//! | `trials.jsonl` | one line a trial and rung that is over |
//! | `trials/00007/` | the model folder of trial 7, which is also where its training goes on |
//! | `best/` | a copy of the best trial's model, at the end |
//! | `report.html` | table and plots, at the end |

#![forbid(unsafe_code)]

mod page;
mod plan;
mod search;
mod space;

pub use page::shown;
pub use plan::{Method, Plan, Rung};
pub(super) use search::{BEST, PLAN};
pub use search::{Event, Finish, Objective, Outcome, Record, Run, Status, run};
pub use space::{Range, Space};

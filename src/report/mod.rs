//! Reports of what a bench has measured: for a terminal, and as files. All are made of [`Results`] and of the
//! [`Summary`] computed from them. And of one run that was recorded: [`run_stats`], [`timeline`].
//!
//! [`Results`]: crate::bench::model::Results
//! [`Summary`]: crate::bench::summary::Summary

pub mod ablate;
pub mod container_stats;
pub mod csv;
pub mod density;
pub mod html;
pub mod hyperfine;
pub mod json;
pub mod markdown;
pub mod number;
mod page;
pub mod run_stats;
mod sheet;
pub mod steady;
pub mod table;
pub mod text;
pub mod timeline;

use thiserror::Error;

/// Why a report could not be made.
#[derive(Debug, Error)]
pub enum ReportError {
    /// There is no JSON for it.
    #[error("cannot write the results as JSON")]
    Json(#[from] serde_json::Error),
}

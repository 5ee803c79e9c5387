//! Many at once: how long until all are up, and what each of them takes of the host's memory.

mod level;
pub mod model;
mod room;
mod run;
pub mod summary;

pub use room::reserve;
pub use run::{Observer, Plan, run};

/// Says that it is up, and waits until it is let go: its standard input ends then.
pub const COMMAND: [&str; 3] = ["sh", "-c", "echo; read _; true"];

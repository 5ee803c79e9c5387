//! What each choice costs: the same command in a container that gets one layer more from step to step, and in a virtual
//! machine of which one option is changed at a time.

mod contestants;
pub mod summary;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use contestants::{PRIVILEGED, Site, Variant, container, vm};

/// What a step is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// Layers, each added to those before.
    Container,
    /// Options, each changed alone.
    Vm,
}

/// A contestant, and whom it is compared with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// The contestant's name.
    pub name: String,
    pub side: Side,
    /// What it adds or changes, in words.
    pub what: String,
    /// The step that lacks just this; `None` of the first of a side.
    pub against: Option<String>,
}

/// What is not measured, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Omitted {
    pub name: String,
    pub reason: String,
}

/// What is compared with what.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ablation {
    /// In the order of the tables, which is that of the layers.
    pub steps: Vec<Step>,
    pub omitted: Vec<Omitted>,
}

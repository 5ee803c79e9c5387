//! What every bench is, whatever it measures: when and where, and under which name.

use super::environment::Conditions;
use super::model::Environment;

/// The occasion of a bench.
#[derive(Clone, Debug)]
pub struct Occasion {
    /// This process is a subreaper and has no children of its own.
    pub subreaper: bool,
    /// Names this bench, among all on this host; begins the ids of its runs.
    pub label: String,
    /// UTC, RFC 3339.
    pub began: String,
    pub environment: Environment,
    pub conditions: Conditions,
}

#[cfg(test)]
impl Occasion {
    /// Of a test, beside which others run in the same process.
    pub fn of_test() -> Self {
        Self {
            subreaper: false,
            label: "test-1".into(),
            began: "2026-01-01T00:00:00Z".into(),
            environment: Environment::default(),
            conditions: Conditions::now(),
        }
    }
}

//! The findings and how they are shown.

use std::fmt::Write;

use serde::Serialize;

use crate::cli::bench::trial::Tried;

/// How a finding bears on Tandem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Ok,
    /// Works, with a limit worth knowing.
    Warning,
    /// Not there or not usable.
    Missing,
}

/// One thing found out about the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Stable name for scripts.
    pub id: &'static str,
    /// How it bears on Tandem.
    pub state: State,
    /// Whether `tandem run` needs it.
    pub required: bool,
    /// What was found.
    pub value: String,
    /// What that means for the user.
    pub meaning: String,
    /// What to do about it, unless all is well.
    pub remedy: Option<String>,
}

impl Finding {
    /// A finding with nothing to do about it.
    pub fn ok(id: &'static str, value: impl Into<String>, meaning: impl Into<String>) -> Self {
        let (value, meaning) = (value.into(), meaning.into());
        Self { id, state: State::Ok, required: false, value, meaning, remedy: None }
    }

    /// The same as a limit, with what can be done about it.
    pub fn warning(self, remedy: impl Into<String>) -> Self {
        Self { state: State::Warning, remedy: Some(remedy.into()), ..self }
    }

    /// The same as something that is not there, with what can be done about it.
    pub fn missing(self, remedy: impl Into<String>) -> Self {
        Self { state: State::Missing, remedy: Some(remedy.into()), ..self }
    }

    /// The same as something that `tandem run` cannot do without.
    pub fn required(self) -> Self {
        Self { required: true, ..self }
    }
}

/// All findings.
#[derive(Debug)]
pub struct Report {
    /// In the order in which they are shown.
    pub findings: Vec<Finding>,
}

#[derive(Serialize)]
struct Json<'a> {
    can_run: bool,
    findings: &'a [Finding],
    #[serde(skip_serializing_if = "Option::is_none")]
    contestants: Option<&'a [Tried]>,
}

impl Report {
    /// Whether everything that `tandem run` needs is there.
    pub fn can_run(&self) -> bool {
        self.blocking().next().is_none()
    }

    fn blocking(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|f| f.required && f.state == State::Missing)
    }

    /// One JSON object: `can_run`, `findings` and, if they were tried, `contestants`.
    pub fn to_json(&self, contestants: Option<&[Tried]>) -> String {
        let json = Json { can_run: self.can_run(), findings: &self.findings, contestants };
        // Plain strings and booleans always serialise.
        serde_json::to_string_pretty(&json).unwrap_or_default()
    }

    /// A line for each finding, its remedy below it, and the verdict.
    pub fn to_text(&self, colour: bool) -> String {
        let width = self.findings.iter().map(|f| f.id.len()).max().unwrap_or(0);
        let mut text = String::new();
        for Finding { id, state, value, meaning, remedy, .. } in &self.findings {
            let (word, sgr) = match state {
                State::Ok => ("ok", "32"),
                State::Warning => ("warning", "33"),
                State::Missing => ("missing", "31"),
            };
            let (on, off) = if colour { (format!("\x1b[{sgr}m"), "\x1b[0m") } else { (String::new(), "") };
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{on}{word:<7}{off}  {id:<width$}  {value}: {meaning}");
            if let Some(remedy) = remedy {
                let _ = writeln!(text, "{:7}  {:width$}  -> {remedy}", "", "");
            }
        }
        let blocking: Vec<_> = self.blocking().map(|f| f.id).collect();
        let verdict = match blocking.is_empty() {
            true => "`tandem run` can work here.".to_owned(),
            false => format!("`tandem run` cannot work here yet: see {}.", blocking.join(", ")),
        };
        let _ = writeln!(text, "\n{verdict}");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::{Finding, Report};

    fn report(last: Finding) -> Report {
        Report {
            findings: vec![
                Finding::ok("cpu", "fast", "good"),
                Finding::ok("long-name", "half", "so so").warning("buy"),
                last,
            ],
        }
    }

    #[test]
    fn text_is_aligned_and_ends_with_the_verdict() {
        let text = report(Finding::ok("kvm", "none", "bad").missing("load it").required()).to_text(false);
        let expected = "ok       cpu        fast: good\n\
                        warning  long-name  half: so so\n                    -> buy\n\
                        missing  kvm        none: bad\n                    -> load it\n\n\
                        `tandem run` cannot work here yet: see kvm.\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn only_what_is_required_and_missing_blocks() {
        assert!(report(Finding::ok("crun", "none", "no peer").missing("install")).can_run());
        assert!(report(Finding::ok("kvm", "slow", "").warning("").required()).can_run());
        assert!(!report(Finding::ok("kvm", "none", "").missing("").required()).can_run());
    }

    #[test]
    fn colours_only_on_request() {
        let report = report(Finding::ok("a", "b", "c"));
        assert!(!report.to_text(false).contains('\x1b'));
        assert!(report.to_text(true).contains("\x1b[33mwarning\x1b[0m  long-name"));
    }

    #[test]
    fn json_has_every_field() {
        let json: serde_json::Value = serde_json::from_str(
            &report(Finding::ok("kvm", "no \"kvm\"", "bad").missing("load it").required()).to_json(None),
        )
        .unwrap();
        assert_eq!(json["can_run"], false);
        let expected = serde_json::json!({
            "id": "kvm", "state": "missing", "required": true,
            "value": "no \"kvm\"", "meaning": "bad", "remedy": "load it",
        });
        assert_eq!(json["findings"][2], expected);
        assert!(json["findings"][0]["remedy"].is_null());
    }
}

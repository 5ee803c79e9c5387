//! What a run tells of itself on [`super::contestant::REPORT_FD`]: one JSON object per line.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::model::MILESTONES;

/// No run tells more; the rest of one that does is not read.
const LIMIT: usize = 1 << 20;

#[derive(Debug, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Line {
    Held,
    Finished(Box<Finished>),
    #[serde(other)]
    Other,
}

#[derive(Debug, Default, Deserialize)]
struct Finished {
    #[serde(default)]
    spawned_monotonic_ns: Option<u64>,
    #[serde(default)]
    milestones_ns: BTreeMap<String, Option<u64>>,
    #[serde(default)]
    exits: BTreeMap<String, u64>,
}

/// The lines of one run, as they come.
#[derive(Debug, Default)]
pub struct ReportLines {
    /// Bytes in all.
    read: usize,
    /// The line that has not ended yet.
    partial: Vec<u8>,
    held: bool,
    finished: Option<Box<Finished>>,
}

impl ReportLines {
    /// Takes some bytes. What is no line of a report is passed over.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.read = self.read.saturating_add(bytes.len());
        if self.read > LIMIT {
            return;
        }
        for byte in bytes {
            if *byte == b'\n' {
                self.line();
            } else {
                self.partial.push(*byte);
            }
        }
    }

    fn line(&mut self) {
        match serde_json::from_slice(&std::mem::take(&mut self.partial)) {
            Ok(Line::Held) => self.held = true,
            Ok(Line::Finished(finished)) => self.finished = Some(finished),
            Ok(Line::Other) | Err(_) => {}
        }
    }

    /// The workload is stopped just before its end.
    pub fn is_held(&self) -> bool {
        self.held
    }

    /// Whether it has told of its end.
    #[cfg(test)]
    fn is_finished(&self) -> bool {
        self.finished.is_some()
    }

    /// Its milestones, in nanoseconds from `spawned`, a moment of `CLOCK_MONOTONIC`. What lies before is left out.
    pub fn milestones(&self, spawned: u64) -> BTreeMap<String, u64> {
        let Some(finished) = &self.finished else { return BTreeMap::new() };
        let Some(base) = finished.spawned_monotonic_ns else { return BTreeMap::new() };
        let known = finished.milestones_ns.iter().filter(|(name, _)| MILESTONES.contains(&name.as_str()));
        known
            .filter_map(|(name, at)| {
                let at = base.checked_add((*at)?)?.checked_sub(spawned)?;
                Some((name.clone(), at))
            })
            .collect()
    }

    /// Exits of its vCPUs by reason.
    pub fn exits(&self) -> BTreeMap<String, u64> {
        self.finished.as_ref().map(|finished| finished.exits.clone()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn milestones_count_from_the_runners_stamp() {
        let mut lines = ReportLines::default();
        lines.feed(b"{\"event\":\"he");
        assert!(!lines.is_held());
        lines.feed(b"ld\"}\n{\"event\":\"later\",\"x\":1}\nnonsense\n");
        assert!(lines.is_held() && !lines.is_finished());
        lines.feed(
            b"{\"event\":\"finished\",\"exit_code\":0,\"spawned_monotonic_ns\":1000,\"exits\":{\"io\":3},\
              \"milestones_ns\":{\"spawned\":0,\"ready\":50,\"first_output\":null,\"stopped\":60,\"clean\":90}}\n",
        );
        let expected = [("clean".to_owned(), 290), ("ready".to_owned(), 250)];
        assert_eq!(lines.milestones(800), BTreeMap::from(expected));
        // A clock that went backwards is no milestone.
        assert_eq!(lines.milestones(1060).get("ready"), None);
        assert_eq!(lines.exits(), BTreeMap::from([("io".to_owned(), 3)]));
    }

    proptest! {
        #[test]
        fn any_bytes_are_accepted(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut lines = ReportLines::default();
            lines.feed(&bytes);
            prop_assert!(!lines.is_finished() && lines.milestones(0).is_empty());
        }
    }
}

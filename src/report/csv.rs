//! CSV: a line for each run, warm-ups and failures too, quoted as RFC 4180 says. What is not known is empty.

use std::borrow::Cow;
use std::collections::BTreeSet;

use crate::bench::model::{MILESTONES, Results, Sample};

/// The document. Times are nanoseconds. Exits have a column for each reason.
pub fn render(results: &Results) -> String {
    let reasons: BTreeSet<&str> =
        results.samples.iter().flat_map(|sample| sample.exits.keys().map(String::as_str)).collect();
    let mut header: Vec<String> =
        ["contestant", "round", "warmup", "position", "spawned_at_ns", "failure", "status"]
            .map(Into::into)
            .into();
    header.extend(MILESTONES.iter().map(|milestone| format!("{milestone}_ns")));
    header.extend(["cpu_user_ns", "cpu_system_ns", "output_bytes"].map(Into::into));
    header.extend(reasons.iter().map(|reason| format!("exits_{reason}")));
    let rows = results.samples.iter().map(|sample| row(sample, &reasons));
    std::iter::once(header).chain(rows).map(|fields| line(&fields)).collect()
}

fn row(sample: &Sample, reasons: &BTreeSet<&str>) -> Vec<String> {
    let known = |value: Option<u64>| value.map(|value| value.to_string()).unwrap_or_default();
    let mut fields = vec![
        sample.contestant.clone(),
        sample.round.to_string(),
        sample.warmup.to_string(),
        sample.position.to_string(),
        sample.spawned_at.to_string(),
        sample.failure.clone().unwrap_or_default(),
        sample.status.map(|status| status.to_string()).unwrap_or_default(),
    ];
    fields.extend(MILESTONES.iter().map(|milestone| known(sample.milestones.get(*milestone).copied())));
    fields.extend([known(sample.cpu_user), known(sample.cpu_system), sample.output_bytes.to_string()]);
    // Where exits are told at all, what is not named did not occur.
    let rest = (!sample.exits.is_empty()).then_some(0);
    fields.extend(reasons.iter().map(|reason| known(sample.exits.get(*reason).copied().or(rest))));
    fields
}

pub(super) fn line(fields: &[String]) -> String {
    let quoted: Vec<Cow<'_, str>> = fields.iter().map(|field| quoted(field)).collect();
    quoted.join(",") + "\r\n"
}

fn quoted(field: &str) -> Cow<'_, str> {
    if field.contains(['"', ',', '\r', '\n']) {
        format!("\"{}\"", field.replace('"', "\"\"")).into()
    } else {
        field.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::fixture;

    #[test]
    fn every_run_has_a_line_with_all_columns() {
        let results = fixture::results();
        let text = render(&results);
        let lines: Vec<&str> = text.split_terminator("\r\n").collect();
        assert_eq!(lines.len(), 1 + results.samples.len());
        assert_eq!(
            lines[0],
            "contestant,round,warmup,position,spawned_at_ns,failure,status,ready_ns,kernel_entered_ns,init_started_ns,\
             workload_started_ns,first_output_ns,workload_exited_ns,reaped_ns,clean_ns,cpu_user_ns,cpu_system_ns,\
             output_bytes,exits_hlt,exits_io,exits_mmio"
        );
        let columns = lines[0].split(',').count();
        let of = |name: &str| lines.iter().find(|line| line.starts_with(name)).unwrap();
        assert_eq!(of("vm,").split(',').count(), columns);
        assert_eq!(of("vm,").split(',').next_back(), Some("38"));
        assert_eq!(of("runc,").split(',').count(), columns);
        assert!(of("runc,").contains(",0,,,,,3"), "unknown milestones are empty: {}", of("runc,"));
        let quoted = ",\"exit status 125: docker: error during connect: \"\"unix:///run/d.sock\"\"\",125,";
        assert!(of("docker,").contains(quoted), "{}", of("docker,"));
    }

    #[test]
    fn fields_are_quoted_where_they_have_to_be() {
        let quote = |field: &str| quoted(field).into_owned();
        assert_eq!(quote("plain text"), "plain text");
        assert_eq!(quote("a,b"), "\"a,b\"");
        assert_eq!(quote("two\nlines"), "\"two\nlines\"");
    }
}

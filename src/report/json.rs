//! JSON: the results as they are, to be read again, and the `summary` of them.

use serde::Serialize;

use super::ReportError;

/// The document of any bench, ending in a newline. Times are nanoseconds, memory bytes.
///
/// # Errors
/// See [`ReportError`].
pub fn render(results: &impl Serialize, summary: &impl Serialize) -> Result<String, ReportError> {
    #[derive(Serialize)]
    struct Document<'a, R, S> {
        #[serde(flatten)]
        results: &'a R,
        summary: &'a S,
    }
    Ok(serde_json::to_string_pretty(&Document { results, summary })? + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::fixture;
    use crate::bench::model::Results;

    #[test]
    fn results_are_read_again_as_they_were() {
        let results = fixture::results();
        let text = render(&results, fixture::summary()).unwrap();
        assert_eq!(serde_json::from_str::<Results>(&text).unwrap(), results);
        let document: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(document["summary"]["headline"], "first_output");
        let vm = document["summary"]["contestants"].as_array().unwrap().last().unwrap();
        assert_eq!((vm["name"].as_str(), vm["verdict"].as_str()), (Some("vm"), Some("more")));
        assert!(vm["ratio"]["estimate"]["interval"]["low"].as_f64().unwrap() > 1.0);
    }
}

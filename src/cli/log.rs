//! What the rooms below log, as lines on stderr. A subscriber of this size starts faster than a general one, which
//! allocates room for spans; Tandem has none.

use std::fmt::{Debug, Write as _};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use super::say;

/// Prints events from a level on.
struct Lines(LevelFilter);

/// Prints warnings and errors, or from the level that TANDEM_LOG names.
pub(super) fn to_stderr() {
    let wanted = std::env::var("TANDEM_LOG").ok().and_then(|level| level.parse().ok());
    // Fails only if there is a subscriber already.
    let _ = tracing::subscriber::set_global_default(Lines(wanted.unwrap_or(LevelFilter::WARN)));
}

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.0
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.0)
    }

    fn event(&self, event: &Event<'_>) {
        say(line(event));
    }

    // Spans all look alike, for nobody looks at them.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// An event's fields as they come, the message without its name.
#[derive(Default)]
struct Fields {
    message: String,
    others: String,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        // Writing to a string does not fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.others, " {name}={value:?}"),
        };
    }
}

fn line(event: &Event<'_>) -> String {
    let mut fields = Fields::default();
    event.record(&mut fields);
    format!("{} {}: {}{}", event.metadata().level(), event.metadata().target(), fields.message, fields.others)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Keeps the lines instead of printing them.
    struct Kept(Lines, Arc<Mutex<Vec<String>>>);

    impl Subscriber for Kept {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            self.0.enabled(metadata)
        }
        fn event(&self, event: &Event<'_>) {
            self.1.lock().unwrap().push(line(event));
        }
        fn new_span(&self, attributes: &Attributes<'_>) -> Id {
            self.0.new_span(attributes)
        }
        fn record(&self, _: &Id, _: &Record<'_>) {}
        fn record_follows_from(&self, _: &Id, _: &Id) {}
        fn enter(&self, _: &Id) {}
        fn exit(&self, _: &Id) {}
    }

    #[test]
    fn warnings_are_lines_and_the_rest_is_nothing() {
        let lines = Arc::default();
        let subscriber = Kept(Lines(LevelFilter::WARN), Arc::clone(&lines));
        tracing::subscriber::with_default(subscriber, || {
            tracing::debug!("unheard");
            tracing::error!(gsi = 4, source = "none", "cannot route an interrupt");
        });
        let module = module_path!();
        let expected = format!("ERROR {module}: cannot route an interrupt gsi=4 source=\"none\"");
        assert_eq!(*lines.lock().unwrap(), [expected]);
    }
}

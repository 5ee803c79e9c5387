//! Numbers and foreign text as the page shows them. Escaping is the template's; here is what a browser would still
//! show in a misleading way.

use std::fmt::Write;

/// Three significant digits, no exponent, thousands apart.
pub(super) fn number(value: f64) -> String {
    if !value.is_finite() {
        return "n/a".to_owned();
    }
    let size = value.abs();
    let decimals = match size {
        _ if size >= 99.95 => 0,
        _ if size >= 9.995 => 1,
        _ if size >= 0.9995 || size == 0.0 => 2,
        _ => 3,
    };
    thousands(&format!("{value:.decimals$}"))
}

/// A whole number, thousands apart.
pub(super) fn count(value: u64) -> String {
    thousands(&value.to_string())
}

/// The value of a line on an axis: as few digits as it needs.
pub(super) fn tick(value: f64) -> String {
    let text = format!("{value:.4}");
    thousands(text.trim_end_matches('0').trim_end_matches('.'))
}

/// Nanoseconds in milliseconds, without the unit.
pub(super) fn ms(nanoseconds: f64) -> String {
    number(nanoseconds / 1e6)
}

/// Bytes in MiB, without the unit.
pub(super) fn mib(bytes: f64) -> String {
    number(bytes / f64::from(1 << 20))
}

fn thousands(digits: &str) -> String {
    let (whole, rest) = digits.split_once('.').map_or((digits, None), |(whole, rest)| (whole, Some(rest)));
    let length = whole.trim_start_matches('-').len();
    let mut text = String::new();
    for (index, digit) in whole.trim_start_matches('-').chars().enumerate() {
        if index > 0 && (length - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    let sign = if whole.starts_with('-') { "-" } else { "" };
    rest.map_or_else(|| format!("{sign}{text}"), |rest| format!("{sign}{text}.{rest}"))
}

/// A place in per cent, for SVG and CSS.
pub(super) fn percent(value: f64) -> String {
    format!("{value:.2}%")
}

/// Foreign text with every character visible that would otherwise colour, reorder or hide others.
pub(super) fn visible(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut shown, character| {
        match character {
            '\n' | '\t' => shown.push(character),
            _ if is_deceptive(character) => _ = write!(shown, "\\u{{{:x}}}", u32::from(character)),
            _ => shown.push(character),
        }
        shown
    })
}

/// Control characters, marks of direction, and what XML does not allow.
pub(super) fn is_deceptive(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}')
        || matches!(character, '\u{feff}' | '\u{fffe}' | '\u{ffff}')
}

/// The beginning of a text that is longer than `most` characters.
pub(super) fn shortened(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default().trim_end()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits() {
        let shown =
            [0.0, 0.0421, 0.812, 3.5049, 9.996, 45.04, 99.96, 150.4, 1_234.5, 12_345_678.0].map(number);
        assert_eq!(
            shown,
            ["0.00", "0.042", "0.812", "3.50", "10.0", "45.0", "100", "150", "1,234", "12,345,678"]
        );
        assert_eq!(number(-1234.0), "-1,234");
        assert_eq!(number(f64::NAN), "n/a");
        assert_eq!([0.0, 0.5, 20.0, 1000.0].map(tick), ["0", "0.5", "20", "1,000"]);
    }

    #[test]
    fn nothing_is_hidden() {
        assert_eq!(visible("a\u{1b}[31m\u{202e}b\nc"), "a\\u{1b}[31m\\u{202e}b\nc");
        assert_eq!(shortened("äöü", 2), "äö…");
        assert_eq!(shortened("äöü", 3), "äöü");
    }
}

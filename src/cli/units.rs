//! Sizes and durations as users write them.

use std::time::Duration;

/// A size like `128M` or `2GiB`, in bytes. A unit is required: 128 of what?
///
/// # Errors
/// A message for the user.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text);
    let shift = match unit.to_ascii_lowercase().trim_end_matches("ib").trim_end_matches('b') {
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "" => return Err(format!("'{text}' has no unit: say for example {text}M")),
        _ => return Err(format!("'{unit}' is no unit of size: use K, M, G or T")),
    };
    let number: u64 = number.parse().map_err(|_| format!("'{number}' is no whole number"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("{text} is more than 64 bits can address"))
}

/// A number of processors, whole or not.
///
/// # Errors
/// A message for the user.
pub fn parse_cpus(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(cpus) if cpus.is_finite() && cpus >= 0.0 => Ok(cpus),
        _ => Err(format!("'{text}' is no number of processors")),
    }
}

/// A duration like `1.5s`, `200ms` or `2m`; a bare number is in seconds.
///
/// # Errors
/// A message for the user.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text);
    let seconds = match unit {
        "ms" => 1e-3,
        "s" | "" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("'{unit}' is no unit of time: use ms, s, m or h")),
    };
    let number: f64 = number.parse().map_err(|_| format!("'{number}' is no number"))?;
    match Duration::try_from_secs_f64(number * seconds) {
        Ok(time) if !time.is_zero() => Ok(time),
        _ => Err(format!("{text} is not a time to wait for")),
    }
}

fn split(text: &str) -> (&str, &str) {
    let text = text.trim();
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    (number, unit.trim())
}

/// Bytes in the largest unit that divides them, for example `128 MiB`.
pub fn format_size(bytes: u64) -> String {
    let units = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.iter().find(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit)) {
        Some((unit, name)) => format!("{} {name}", bytes / unit),
        None => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("128M"), Ok(128 << 20));
        assert_eq!(parse_size("2GiB"), Ok(2 << 30));
        assert_eq!(parse_size("64 kb"), Ok(64 << 10));
        assert_eq!(parse_size("128").unwrap_err(), "'128' has no unit: say for example 128M");
        assert!(parse_size("12Q").unwrap_err().contains("no unit of size"));
        assert!(parse_size("-1M").is_err());
        assert!(parse_size("1.5G").unwrap_err().contains("no whole number"));
        assert!(parse_size("99999999999T").unwrap_err().contains("64 bits"));
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration("1s"), Ok(Duration::from_secs(1)));
        assert_eq!(parse_duration("1.5"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_duration("200ms"), Ok(Duration::from_millis(200)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        for bad in ["0", "x", "1d", "-1", "1e400h", ".", ""] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn formatting() {
        assert_eq!(format_size(128 << 20), "128 MiB");
        assert_eq!(format_size((128 << 20) + 4096), "131076 KiB");
        assert_eq!(format_size(3), "3 bytes");
    }
}

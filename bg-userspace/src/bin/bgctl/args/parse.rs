//! Numbers, shares, durations and moments, as people write them.

use std::time::Duration;

/// The most flows that may be asked for: more than that is a slip of the finger.
pub(super) const MAX_FLOWS: u32 = 1 << 26;

/// Parses a number from `least` to `most`: digits, then optionally a decimal suffix.
pub(super) fn count(least: u32, most: u32) -> impl Fn(&str) -> Result<u32, String> + Clone {
    const SUFFIXES: [(&str, u64); 6] =
        [("k", 1_000), ("K", 1_000), ("m", 1_000_000), ("M", 1_000_000), ("g", 1_000_000_000), ("G", 1_000_000_000)];
    move |text| {
        let (digits, unit) =
            SUFFIXES.iter().find_map(|(suffix, unit)| Some((text.strip_suffix(suffix)?, *unit))).unwrap_or((text, 1));
        let count = digits.parse::<u64>().ok().and_then(|count| count.checked_mul(unit));
        let count = count.and_then(|count| u32::try_from(count).ok()).filter(|count| (least..=most).contains(count));
        count.ok_or_else(|| {
            format!("expected {least} to {most}, or a number with k, M or G behind it, such as 2k or 1M")
        })
    }
}

/// Parses a percentage, into basis points.
pub(super) fn percent(text: &str) -> Result<u16, String> {
    let expected = || format!("expected a percentage from 0 to 100 with at most two decimals, got \"{text}\"");
    let digits = text.strip_suffix('%').unwrap_or(text);
    let (whole, decimals) = digits.split_once('.').unwrap_or((digits, "00"));
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(whole) || !is_number(decimals) || decimals.len() > 2 {
        return Err(expected());
    }
    let points = format!("{whole}{decimals:0<2}").parse::<u16>().ok();
    points.filter(|points| *points <= 10_000).ok_or_else(expected)
}

/// Parses a duration that is not zero.
pub(super) fn period(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(period) if !period.is_zero() => Ok(period),
        _ => Err("expected a duration such as 500ms or 10s".to_owned()),
    }
}

/// Parses a moment: a time, or how long ago it was.
pub(super) fn moment(text: &str) -> Result<jiff::Timestamp, String> {
    if let Ok(moment) = text.parse() {
        return Ok(moment);
    }
    let ago = humantime::parse_duration(text).map_err(|_| {
        "expected an RFC 3339 time such as 2025-03-01T12:00:00Z, or a duration such as 2h or 7days".to_owned()
    })?;
    Ok(jiff::Timestamp::now().checked_sub(ago).unwrap_or(jiff::Timestamp::MIN))
}

#[cfg(test)]
mod tests {
    use bg_userspace::MAX_BACKENDS;

    use super::*;

    #[test]
    fn numbers_are_counted_in_thousands_and_millions() {
        let flow_count = count(1, MAX_FLOWS);
        for (text, count) in [("1", 1), ("500k", 500_000), ("500K", 500_000), ("1M", 1_000_000), ("67108864", 1 << 26)]
        {
            assert_eq!(flow_count(text), Ok(count), "{text}");
        }
        for text in
            ["", "0", "k", "-1", "1.5M", "1G", "67108865", "99999999999999999999", "18446744073709551615G", "1 M"]
        {
            assert!(flow_count(text).is_err(), "{text}");
        }
        let backend_count = count(2, MAX_BACKENDS);
        assert_eq!([backend_count("1"), backend_count("2")].map(|count| count.ok()), [None, Some(2)]);
        assert!(backend_count("262145").unwrap_err().starts_with("expected 2 to 262144, "));
    }

    #[test]
    fn a_percentage_has_at_most_two_decimals() {
        for (text, points) in
            [("0", 0), ("5", 500), ("12.5", 1250), ("99.99%", 9999), ("100", 10_000), ("100.00", 10_000)]
        {
            assert_eq!(percent(text), Ok(points), "{text}");
        }
        for text in ["", "%", "-1", "1.234", "100.01", "101", ".5", "5.", "1e1", "99999", "+5"] {
            assert!(percent(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_moment_is_a_time_or_a_duration_ago() {
        let now = jiff::Timestamp::now();
        assert_eq!(moment("2025-03-01T12:00:00Z").unwrap().to_string(), "2025-03-01T12:00:00Z");
        assert_eq!(moment("2025-03-01T13:00:00+01:00").unwrap().to_string(), "2025-03-01T12:00:00Z");
        let two_hours = moment("2h").unwrap();
        assert!((now.as_second() - two_hours.as_second() - 7200).abs() < 60);
        assert_eq!(moment("99999years").unwrap(), jiff::Timestamp::MIN);
        for text in ["", "yesterday", "12", "-2h", "99999999999999999999years"] {
            assert!(moment(text).is_err(), "{text}");
        }
    }
}

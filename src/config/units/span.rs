//! Spans of time: `"500ms"`, `"1h30m"`, `"7d"`.

use std::{fmt, str::FromStr, time::Duration};

use super::{letters, not_a_number, split_digits, too_large, whole_number};
use crate::config::literal::{Fault, Literal, literal};

/// A span of time, in whole milliseconds: `"500ms"`, `"1h30m"`, `"7d"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// A span of time that can be switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanOrOff {
    Off,
    After(Span),
}

const OFF: &str = "off";

/// In milliseconds.
const SPAN_UNITS: &[(&str, u64)] = &[
    ("w", 7 * 24 * 3_600_000),
    ("d", 24 * 3_600_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];

impl Literal for Span {
    const KIND: &'static str = "duration";
    const NOUN: &'static str = "a duration";
    const EXPECTED: &'static str = "a duration such as \"500ms\", \"30s\" or \"1h30m\"";
    const PATTERN: &'static str = "^(?=.)([0-9]{1,20}w)?([0-9]{1,20}d)?([0-9]{1,20}h)?([0-9]{1,20}m)?([0-9]{1,20}s)?([0-9]{1,20}ms)?$";

    /// Milliseconds.
    fn magnitude(&self) -> Option<u128> {
        Some(self.0.as_millis())
    }
}

impl FromStr for Span {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        if text.is_empty() {
            return Err(Fault::new("empty"));
        }
        if text.contains(char::is_whitespace) {
            let fault = Fault::new("no spaces here");
            let compact: String = text.split_whitespace().collect();
            return Err(match compact.parse::<Span>() {
                Ok(_) => fault.fix(compact),
                Err(Fault { fix, .. }) => Fault { fix, ..fault },
            });
        }
        let mut rest = text;
        let mut total: u64 = 0;
        let mut units = SPAN_UNITS;
        while !rest.is_empty() {
            let (number, after) = split_digits(rest);
            if number.is_empty() {
                return Err(not_a_number(text));
            }
            let (unit, tail) = after.split_at(letters(after));
            let Some(at) = units.iter().position(|(name, _)| *name == unit) else {
                return Err(bad_span_unit(text, number, unit, tail));
            };
            total = whole_number(number)
                .and_then(|number| number.checked_mul(units[at].1))
                .and_then(|value| total.checked_add(value))
                .ok_or_else(too_large)?;
            units = &units[at + 1..];
            rest = tail;
        }
        Ok(Span(Duration::from_millis(total)))
    }
}

impl fmt::Display for Span {
    /// Two days and more in days, less in hours: `"24h"`, `"7d"`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        if rest == 0 {
            return f.write_str("0s");
        }
        let days_from = 2 * SPAN_UNITS[1].1;
        for (unit, scale) in &SPAN_UNITS[1..] {
            if *unit == "d" && rest < days_from {
                continue;
            }
            if rest >= *scale {
                write!(f, "{}{unit}", rest / scale)?;
                rest %= scale;
            }
        }
        Ok(())
    }
}

impl Literal for SpanOrOff {
    const KIND: &'static str = "duration-or-off";
    const NOUN: &'static str = "a duration";
    const EXPECTED: &'static str = "a duration such as \"60s\", or \"off\"";
    const PATTERN: &'static str = "^(off|(?=.)([0-9]{1,20}w)?([0-9]{1,20}d)?([0-9]{1,20}h)?([0-9]{1,20}m)?([0-9]{1,20}s)?([0-9]{1,20}ms)?)$";

    fn magnitude(&self) -> Option<u128> {
        match self {
            SpanOrOff::Off => None,
            SpanOrOff::After(span) => span.magnitude(),
        }
    }
}

impl FromStr for SpanOrOff {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        match text {
            OFF => Ok(SpanOrOff::Off),
            _ => text.parse().map(SpanOrOff::After),
        }
    }
}

impl fmt::Display for SpanOrOff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SpanOrOff::Off => f.write_str(OFF),
            SpanOrOff::After(span) => span.fmt(f),
        }
    }
}

literal!(Span);
literal!(SpanOrOff);

fn bad_span_unit(text: &str, number: &str, unit: &str, tail: &str) -> Fault {
    if unit.is_empty() {
        let whole = text == number;
        let label = match tail.chars().next() {
            Some('.' | ',') => "no fractions; use a smaller unit",
            Some(c) if c.is_whitespace() => "no spaces here",
            _ => "a number without unit",
        };
        let fault = Fault::new(label);
        return if whole {
            fault.fix(format!("{number}s"))
        } else {
            fault
        };
    }
    if SPAN_UNITS.iter().any(|(name, _)| *name == unit) {
        return Fault::new("larger units come first, each once");
    }
    let meant = match unit.to_ascii_lowercase().as_str() {
        "sec" | "secs" | "second" | "seconds" => "s",
        "min" | "mins" | "minute" | "minutes" => "m",
        "hr" | "hrs" | "hour" | "hours" => "h",
        "day" | "days" => "d",
        "week" | "weeks" => "w",
        "msec" | "millis" | "milliseconds" => "ms",
        lower => match SPAN_UNITS.iter().find(|(name, _)| *name == lower) {
            Some((name, _)) => name,
            None => return Fault::new("not a unit of time (w, d, h, m, s, ms)"),
        },
    };
    let fault = Fault::new(format!("the unit is {meant}"));
    if text.len() == number.len() + unit.len() {
        fault.fix(format!("{number}{meant}"))
    } else {
        fault
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(text: &str) -> Fault {
        text.parse::<Span>().expect_err(text)
    }

    #[test]
    fn spans_add_up_and_days_appear_from_two_on() {
        assert_eq!("1h30m".parse(), Ok(Span(Duration::from_secs(5_400))));
        assert_eq!("500ms".parse(), Ok(Span(Duration::from_millis(500))));
        assert_eq!("1w".parse::<Span>().expect("a week").to_string(), "7d");
        assert_eq!("1d".parse::<Span>().expect("a day").to_string(), "24h");
        assert_eq!("90m".parse::<Span>().expect("minutes").to_string(), "1h30m");
        assert_eq!(fault("30m1h").label, "larger units come first, each once");
        assert_eq!(fault("1800").fix.as_deref(), Some("1800s"));
        assert_eq!(fault("5min").fix.as_deref(), Some("5m"));
        assert_eq!(fault("1.5h").label, "no fractions; use a smaller unit");
        assert_eq!(fault("-5m").label, "negative");
    }
}

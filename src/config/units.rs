//! Quantities with a unit: sizes, spans of time, rates, bandwidth. A number without unit is a fault that names the fix.

use std::{fmt, str::FromStr};

use crate::{
    config::literal::{Fault, Literal, literal},
    relay::{Limit, Rate},
};

mod span;

pub use span::{Span, SpanOrOff};

/// Bytes: `"64KiB"`, `"20MB"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// Bytes per second: `"200Mbit/s"`, `"25MiB/s"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bandwidth(pub u64);

/// So many per span of time: `"30/2m"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PerSpan(pub Rate);

/// The word for "without bound". Zero never means it.
const UNLIMITED: &str = "unlimited";

/// Largest first within each family, so that the first that divides gives the shortest text.
const SIZE_UNITS: &[(&str, u64)] = &[
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("kB", 1_000),
    ("B", 1),
];

/// In bits per second.
const BANDWIDTH_UNITS: &[(&str, u64)] = &[
    ("GiB/s", 8 << 30),
    ("MiB/s", 8 << 20),
    ("KiB/s", 8 << 10),
    ("Gbit/s", 1_000_000_000),
    ("Mbit/s", 1_000_000),
    ("kbit/s", 1_000),
    ("bit/s", 1),
    ("GB/s", 8_000_000_000),
    ("MB/s", 8_000_000),
    ("kB/s", 8_000),
    ("B/s", 8),
];

/// Powers of ten are shown in bits, as links are sold.
const BANDWIDTH_SHOWN: &[(&str, u64)] = BANDWIDTH_UNITS.split_at(7).0;

impl Literal for Size {
    const KIND: &'static str = "size";
    const NOUN: &'static str = "a size";
    const EXPECTED: &'static str = "a size such as \"64KiB\" or \"20MB\"";
    const PATTERN: &'static str = "^[0-9]{1,20}([KMGT]iB|[kMGT]?B)$";

    fn magnitude(&self) -> Option<u128> {
        Some(self.0.into())
    }
}

impl FromStr for Size {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        scaled(text, SIZE_UNITS, "a size").map(Size)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        display_scaled(f, self.0, SIZE_UNITS, "B")
    }
}

impl Literal for Bandwidth {
    const KIND: &'static str = "bandwidth";
    const NOUN: &'static str = "a bandwidth";
    const EXPECTED: &'static str = "a bandwidth such as \"200Mbit/s\" or \"25MiB/s\"";
    const PATTERN: &'static str = "^[0-9]{1,20}([KMG]iB|[kMG]?B|[kMG]?bit)/s$";

    fn magnitude(&self) -> Option<u128> {
        Some(self.0.into())
    }
}

impl FromStr for Bandwidth {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        let bits = scaled(text, BANDWIDTH_UNITS, "a bandwidth")?;
        if bits % 8 != 0 {
            return Err(Fault::new("not a whole number of bytes per second")
                .fix(Bandwidth((bits / 8).saturating_add(1)).to_string()));
        }
        Ok(Bandwidth(bits / 8))
    }
}

impl fmt::Display for Bandwidth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.checked_mul(8) {
            Some(bits) if bits > 0 => display_scaled(f, bits, BANDWIDTH_SHOWN, "bit/s"),
            _ => write!(f, "{}B/s", self.0),
        }
    }
}

impl Literal for PerSpan {
    const KIND: &'static str = "rate";
    const NOUN: &'static str = "a rate";
    const EXPECTED: &'static str = "a rate such as \"30/2m\": so many in so much time";
    const PATTERN: &'static str = "^[0-9]{1,20}/(?=.)([0-9]{1,20}w)?([0-9]{1,20}d)?([0-9]{1,20}h)?([0-9]{1,20}m)?([0-9]{1,20}s)?([0-9]{1,20}ms)?$";
}

impl FromStr for PerSpan {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        let Some((count, per)) = text.split_once('/') else {
            return Err(Fault::new("a count and a time are needed"));
        };
        if count.is_empty() || !count.bytes().all(|b| b.is_ascii_digit()) {
            return Err(Fault::new("the count is not a number"));
        }
        let count = whole_number(count)
            .and_then(|count| u32::try_from(count).ok())
            .ok_or_else(|| Fault::new("the count is too large"))?;
        if !per.is_empty() && letters(per) == per.len() {
            let fault = Fault::new("the time has no number");
            let fixed = format!("1{per}");
            return Err(match fixed.parse::<Span>() {
                Ok(_) => fault.fix(format!("{count}/{fixed}")),
                Err(_) => fault,
            });
        }
        let per = per.parse::<Span>().map_err(|fault| Fault {
            label: format!("the time: {}", fault.label),
            fix: fault.fix.map(|fix| format!("{count}/{fix}")),
        })?;
        if count == 0 {
            return Err(Fault::new("0 could mean none or unlimited"));
        }
        if per.0.is_zero() {
            return Err(Fault::new("the time is zero"));
        }
        Ok(PerSpan(Rate { count, per: per.0 }))
    }
}

impl fmt::Display for PerSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.0.count, Span(self.0.per))
    }
}

impl<T: FromStr<Err = Fault>> FromStr for Limit<T> {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        match text {
            UNLIMITED => Ok(Limit::Unlimited),
            _ if text.eq_ignore_ascii_case(UNLIMITED)
                || matches!(text, "none" | "infinite" | "inf") =>
            {
                Err(Fault::new("the word is \"unlimited\"").fix(UNLIMITED))
            }
            _ => text.parse().map(Limit::At),
        }
    }
}

impl<T: fmt::Display> fmt::Display for Limit<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Limit::Unlimited => f.write_str(UNLIMITED),
            Limit::At(value) => value.fmt(f),
        }
    }
}

macro_rules! or_unlimited {
    ($type:ty, $kind:literal, $expected:literal, $pattern:literal) => {
        impl Literal for Limit<$type> {
            const KIND: &'static str = $kind;
            const NOUN: &'static str = <$type as Literal>::NOUN;
            const EXPECTED: &'static str = concat!($expected, ", or \"unlimited\"");
            const PATTERN: &'static str = concat!("^(unlimited|", $pattern, ")$");

            fn magnitude(&self) -> Option<u128> {
                match self {
                    Limit::Unlimited => None,
                    Limit::At(value) => value.magnitude(),
                }
            }
        }

        literal!(Limit<$type>);
    };
}

or_unlimited!(
    Size,
    "size-or-unlimited",
    "a size such as \"64KiB\" or \"1GiB\"",
    "[0-9]{1,20}([KMGT]iB|[kMGT]?B)"
);
or_unlimited!(
    Span,
    "duration-or-unlimited",
    "a duration such as \"30m\"",
    "(?=.)([0-9]{1,20}w)?([0-9]{1,20}d)?([0-9]{1,20}h)?([0-9]{1,20}m)?([0-9]{1,20}s)?([0-9]{1,20}ms)?"
);
or_unlimited!(
    Bandwidth,
    "bandwidth-or-unlimited",
    "a bandwidth such as \"200Mbit/s\" or \"25MiB/s\"",
    "[0-9]{1,20}([KMG]iB|[kMG]?B|[kMG]?bit)/s"
);
or_unlimited!(
    PerSpan,
    "rate-or-unlimited",
    "a rate such as \"30/2m\" (so many in so much time)",
    "[0-9]{1,20}/(?=.)([0-9]{1,20}w)?([0-9]{1,20}d)?([0-9]{1,20}h)?([0-9]{1,20}m)?([0-9]{1,20}s)?([0-9]{1,20}ms)?"
);

literal!(Size);
literal!(Bandwidth);
literal!(PerSpan);

/// Whether a bare number lacks only its unit.
pub fn has_unit(kind: &str) -> bool {
    ["size", "duration", "bandwidth"]
        .iter()
        .any(|unit| kind.starts_with(unit))
}

/// What somebody who wrote a bare number for a literal of this kind probably meant.
pub fn with_unit(kind: &str, number: u64) -> Option<String> {
    match kind {
        "size" | "size-or-unlimited" => Some(Size(number).to_string()),
        "duration" | "duration-or-unlimited" | "duration-or-off" => Some(format!("{number}s")),
        _ => None,
    }
}

/// `number unit`, without anything between or around.
fn scaled(text: &str, units: &[(&str, u64)], what: &str) -> Result<u64, Fault> {
    let (number, unit) = split_digits(text);
    if text.is_empty() {
        return Err(Fault::new("empty"));
    }
    if number.is_empty() {
        return Err(not_a_number(text));
    }
    let Some((_, scale)) = units.iter().find(|(name, _)| *name == unit) else {
        return Err(bad_unit(number, unit, units, what));
    };
    whole_number(number)
        .and_then(|number| number.checked_mul(*scale))
        .ok_or_else(too_large)
}

/// At most the twenty digits that a `u64` can need, as the patterns say.
fn whole_number(digits: &str) -> Option<u64> {
    if digits.len() > 20 {
        None
    } else {
        digits.parse().ok()
    }
}

fn too_large() -> Fault {
    Fault::new("too large to represent")
}

/// The unit that divides `value` and leaves the smallest number.
fn display_scaled(
    f: &mut fmt::Formatter<'_>,
    value: u64,
    units: &[(&str, u64)],
    smallest: &str,
) -> fmt::Result {
    let best = units
        .iter()
        .filter(|(_, scale)| value > 0 && value.is_multiple_of(*scale))
        .min_by_key(|(_, scale)| value / scale);
    match best {
        Some((unit, scale)) => write!(f, "{}{unit}", value / scale),
        None => write!(f, "{value}{smallest}"),
    }
}

fn split_digits(text: &str) -> (&str, &str) {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    text.split_at(digits)
}

fn letters(text: &str) -> usize {
    text.bytes().take_while(u8::is_ascii_alphabetic).count()
}

fn not_a_number(text: &str) -> Fault {
    match text.chars().next() {
        Some('-') => Fault::new("negative"),
        _ if text == UNLIMITED => Fault::new("a bound is needed here"),
        Some(c) if c.is_whitespace() => Fault::new("no spaces here"),
        _ => Fault::new("no number where one is needed"),
    }
}

fn bad_unit(number: &str, unit: &str, units: &[(&str, u64)], what: &str) -> Fault {
    if unit.is_empty() {
        return Fault::new("a number without unit");
    }
    if unit.starts_with(['.', ',']) {
        return Fault::new("no fractions; use a smaller unit");
    }
    let written = unit.trim();
    let nearest = units
        .iter()
        .map(|(name, _)| *name)
        .find(|name| name.eq_ignore_ascii_case(written))
        .or_else(|| {
            units
                .iter()
                .map(|(name, _)| *name)
                .find(|name| abbreviates(written, name))
        });
    match nearest {
        Some(name) => Fault::new(format!("the unit is {name}")).fix(format!("{number}{name}")),
        None => Fault::new(format!("not a unit of {}", what.trim_start_matches("a "))),
    }
}

/// `k` for `KiB`, `mbit` or `Mbps` for `Mbit/s`, `MiB` for `MiB/s`.
fn abbreviates(written: &str, unit: &str) -> bool {
    let lower = written.to_ascii_lowercase();
    let unit = unit.to_ascii_lowercase();
    let short = unit.trim_end_matches("/s");
    lower == short
        || lower == short.trim_end_matches("ib")
        || lower == format!("{}ps", short.trim_end_matches("it"))
        || lower == format!("{short}ps")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn fault<T: Literal + fmt::Debug>(text: &str) -> Fault {
        text.parse::<T>().expect_err(text)
    }

    #[test]
    fn sizes_count_in_powers_of_two_and_of_ten() {
        assert_eq!("64KiB".parse(), Ok(Size(65_536)));
        assert_eq!("20MB".parse(), Ok(Size(20_000_000)));
        assert_eq!("1B".parse(), Ok(Size(1)));
        assert_eq!(Size(20_000_000).to_string(), "20MB");
        assert_eq!(Size(1 << 30).to_string(), "1GiB");
        assert_eq!(Size(0).to_string(), "0B");
    }

    #[test]
    fn a_size_in_the_wrong_spelling_names_the_right_one() {
        assert_eq!(fault::<Size>("64kib").fix.as_deref(), Some("64KiB"));
        assert_eq!(fault::<Size>("1g").fix.as_deref(), Some("1GiB"));
        assert_eq!(fault::<Size>("64 KiB").fix.as_deref(), Some("64KiB"));
        assert_eq!(
            fault::<Size>("1.5GiB").label,
            "no fractions; use a smaller unit"
        );
        assert_eq!(fault::<Size>("-1B").label, "negative");
        assert_eq!(
            fault::<Size>("99999999999TiB").label,
            "too large to represent"
        );
    }

    #[test]
    fn bandwidth_counts_bits_or_bytes() {
        assert_eq!("200Mbit/s".parse(), Ok(Bandwidth(25_000_000)));
        assert_eq!("25MiB/s".parse(), Ok(Bandwidth(25 << 20)));
        assert_eq!(Bandwidth(25_000_000).to_string(), "200Mbit/s");
        assert_eq!(Bandwidth(25 << 20).to_string(), "25MiB/s");
        assert_eq!(
            fault::<Bandwidth>("200Mbps").fix.as_deref(),
            Some("200Mbit/s")
        );
        assert_eq!(fault::<Bandwidth>("25MiB").fix.as_deref(), Some("25MiB/s"));
        assert_eq!(
            fault::<Bandwidth>("12bit/s").fix.as_deref(),
            Some("16bit/s")
        );
    }

    #[test]
    fn a_rate_is_a_count_and_a_span() {
        let rate = Rate {
            count: 30,
            per: Duration::from_secs(120),
        };
        assert_eq!("30/2m".parse(), Ok(PerSpan(rate)));
        assert_eq!(fault::<PerSpan>("30/m").fix.as_deref(), Some("30/1m"));
        assert_eq!(
            fault::<PerSpan>("0/2m").label,
            "0 could mean none or unlimited"
        );
        assert_eq!(fault::<PerSpan>("30/0s").label, "the time is zero");
        assert_eq!(
            fault::<PerSpan>("30").label,
            "a count and a time are needed"
        );
    }

    #[test]
    fn without_bound_is_one_word() {
        assert_eq!("unlimited".parse(), Ok(Limit::<Size>::Unlimited));
        assert_eq!(
            fault::<Limit<Size>>("Unlimited").fix.as_deref(),
            Some("unlimited")
        );
        assert_eq!(
            fault::<Limit<Span>>("none").fix.as_deref(),
            Some("unlimited")
        );
    }

    proptest! {
        #[test]
        fn every_quantity_survives_being_written(n in any::<u64>(), count in 1u32.., per in 1u64..1 << 50) {
            prop_assert_eq!(Size(n).to_string().parse(), Ok(Size(n)));
            let span = Span(Duration::from_millis(n));
            prop_assert_eq!(span.to_string().parse(), Ok(span));
            let bandwidth = Bandwidth(n >> 3);
            prop_assert_eq!(bandwidth.to_string().parse(), Ok(bandwidth));
            let rate = PerSpan(Rate { count, per: Duration::from_millis(per) });
            prop_assert_eq!(rate.to_string().parse(), Ok(rate));
        }

        #[test]
        fn no_text_makes_a_quantity_panic(text in "\\PC*") {
            let _ = text.parse::<Size>();
            let _ = text.parse::<Span>();
            let _ = text.parse::<Limit<Bandwidth>>();
            let _ = text.parse::<PerSpan>();
        }
    }
}

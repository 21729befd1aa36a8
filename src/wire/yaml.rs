//! Strings in YAML as the library of the reference writes them, so that a token made here is the token made there.

/// Writes a string as the value of a block mapping. What a reader of YAML 1.1 would take for a number, a truth value, a date
/// or nothing is put in double quotes, what would end or begin something else in single ones. Exact for every string without
/// control characters and shorter than a line (80 characters); all others are written so that they are read back unchanged.
pub fn scalar(text: &str) -> String {
    if text.chars().any(|c| !is_printable(c)) {
        return escaped(text);
    }
    if reads_as_something_else(text) {
        return escaped(text);
    }
    if is_plain(text) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', "''"))
    }
}

/// Printable in YAML 1.1 without a line break; the byte order mark is not.
fn is_printable(c: char) -> bool {
    matches!(c,
        ' '..='~' | '\u{a0}'..='\u{2027}' | '\u{202a}'..='\u{d7ff}' | '\u{e000}'..='\u{fefe}' | '\u{ff00}'..='\u{fffd}' | '\u{10000}'..)
}

fn escaped(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            c if is_printable(c) => quoted.push(c),
            c if u32::from(c) > 0xffff => quoted.push_str(&format!("\\U{:08X}", u32::from(c))),
            c => quoted.push_str(&format!("\\u{:04X}", u32::from(c))),
        }
    }
    quoted.push('"');
    quoted
}

/// Nothing in the text is an indicator where it stands.
fn is_plain(text: &str) -> bool {
    let Some(first) = text.chars().next() else {
        return false;
    };
    let begins_something = "#,[]{}&*!|>'\"%@`".contains(first)
        || ("?:-".contains(first) && text.chars().nth(1).is_none_or(|c| c == ' '));
    let marks_a_document = text.starts_with("---") || text.starts_with("...");
    !begins_something
        && !marks_a_document
        && !text.starts_with(' ')
        && !text.ends_with([' ', ':'])
        && !text.contains(": ")
        && !text.contains(" #")
}

fn reads_as_something_else(text: &str) -> bool {
    const WORDS: [&str; 36] = [
        "", "~", "null", "Null", "NULL", "y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE",
        "on", "On", "ON", "n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off",
        "OFF", ".nan", ".NaN", ".NAN", ".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF",
    ];
    const NEGATIVE: [&str; 3] = ["-.inf", "-.Inf", "-.INF"];
    if WORDS.contains(&text) || NEGATIVE.contains(&text) {
        return true;
    }
    let Some(first) = text.bytes().next() else {
        return true;
    };
    match first {
        b'.' => is_float(text),
        b'+' | b'-' | b'0'..=b'9' => {
            let digits = text.replace('_', "");
            is_integer(&digits) || is_float(&digits) || is_base_60(text) || is_timestamp(text)
        }
        _ => false,
    }
}

/// An integer of 64 bits, signed or not, in any base with a prefix.
fn is_integer(text: &str) -> bool {
    let (negative, signed, digits) = match text.as_bytes() {
        [b'-', ..] => (true, true, text.get(1..).unwrap_or_default()),
        [b'+', ..] => (false, true, text.get(1..).unwrap_or_default()),
        _ => (false, false, text),
    };
    let prefixed = |base, length| (base, digits.get(length..).unwrap_or_default());
    let (base, digits) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => prefixed(16, 2),
        [b'0', b'b' | b'B', ..] => prefixed(2, 2),
        [b'0', b'o' | b'O', ..] => prefixed(8, 2),
        [b'0', _, ..] => prefixed(8, 1),
        _ => (10, digits),
    };
    // `from_str_radix` would take a second sign.
    if !digits.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return false;
    }
    match u64::from_str_radix(digits, base) {
        Ok(value) if negative => value <= 1 << 63,
        Ok(value) if signed => value < 1 << 63,
        Ok(_) => true,
        Err(_) => false,
    }
}

/// Digits with at most one point and at most one exponent, within the range of 64-bit floating point.
fn is_float(text: &str) -> bool {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (unsigned, None),
    };
    let all_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    all_digits(whole)
        && all_digits(fraction)
        && !(whole.is_empty() && fraction.is_empty())
        && exponent.is_none_or(|exponent| {
            let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
            !digits.is_empty() && all_digits(digits)
        })
        && unsigned.parse::<f64>().is_ok_and(f64::is_finite)
}

/// Hours, minutes and seconds as YAML 1.1 counts them: `1:30`, `12:30:45.5`.
fn is_base_60(text: &str) -> bool {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let mut parts = unsigned.split(':');
    let digits = |text: &str| {
        text.bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'_')
    };
    let first = parts
        .next()
        .is_some_and(|first| first.starts_with(|c: char| c.is_ascii_digit()) && digits(first));
    let rest: Vec<&str> = parts.collect();
    let Some((last, middle)) = rest.split_last() else {
        return false;
    };
    let sixty = |text: &str| match text.as_bytes() {
        [one] => one.is_ascii_digit(),
        [ten, one] => (b'0'..=b'5').contains(ten) && one.is_ascii_digit(),
        _ => false,
    };
    let (last, fraction) = last.split_once('.').unwrap_or((last, ""));
    first && middle.iter().all(|part| sixty(part)) && sixty(last) && digits(fraction)
}

/// `2001-01-01`, or with a time after it.
fn is_timestamp(text: &str) -> bool {
    let (date, time) = match text.split_once(['T', 't', ' ']) {
        Some((date, time)) => (date, Some(time)),
        None => (text, None),
    };
    let mut parts = date.split('-');
    let mut number = |lengths: std::ops::RangeInclusive<usize>| {
        parts
            .next()
            .filter(|part| {
                lengths.contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit())
            })
            .and_then(|part| part.parse::<u32>().ok())
    };
    let (Some(_), Some(month), Some(day)) = (number(4..=4), number(1..=2), number(1..=2)) else {
        return false;
    };
    parts.next().is_none()
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && time.is_none_or(|time| {
            time.bytes()
                .all(|byte| byte.is_ascii_digit() || b":.+-Z ".contains(&byte))
                && time.contains(':')
        })
}

//! Any bytes as a configuration file and as its list files: no panic, and either a configuration or an error.

#![no_main]

use edgevpn::config::{Diagnostic, Format, diagnostic::render, examine};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let checked = examine(bytes);
    assert_eq!(checked.config.is_none(), checked.diagnostics.iter().any(Diagnostic::is_error));
    for format in [Format::Human, Format::Short, Format::Json, Format::Github] {
        render(std::slice::from_ref(&checked), format, false);
    }
});

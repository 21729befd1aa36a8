#![no_main]

#[allow(dead_code, reason = "each target checks one of them")]
mod wire_bytes;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| wire_bytes::token(bytes));

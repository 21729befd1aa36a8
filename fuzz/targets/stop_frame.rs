#![no_main]

#[allow(dead_code, reason = "each target checks one of them")]
mod frames;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| frames::stop(bytes));

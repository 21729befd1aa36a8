//! The configuration file: text in, a `Config` or all diagnostics out.

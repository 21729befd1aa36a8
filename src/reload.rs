//! One attempt to apply the file, and its outcome.

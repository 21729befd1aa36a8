//! A running node: start, prepare, commit, stop.

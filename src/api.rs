//! The unix-socket API.

//! Named tasks whose end is noticed.

//! The shared ledger: buckets of entries that every member holds a copy of, merged without coordination.

use serde::{Deserialize, Serialize};

/// `ledger.ownership`: what is asked of an entry before it is merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Ownership {
    /// Nothing; whole blocks replace one another.
    Off,
    /// Rules are evaluated and reported, never enforced.
    Observe,
    /// What breaks a rule is not merged.
    Enforce,
}

//! What a new configuration changes, and what that costs.

//! How circuits end.

/// How a circuit ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// Both ends have closed their side.
    Closed,
    MaxData,
    MaxDuration,
    /// A reader took nothing while bytes waited.
    Stalled,
    /// By a policy, a shutdown, or because the connection of one end is gone.
    Cut,
    /// A stream broke.
    Broken,
    /// It never opened: the destination refused, failed or said nothing.
    NoConsent,
    /// Its task panicked, which harms no other circuit.
    Panicked,
}

impl End {
    pub fn label(self) -> &'static str {
        match self {
            End::Closed => "closed",
            End::MaxData => "max_data",
            End::MaxDuration => "max_duration",
            End::Stalled => "stalled",
            End::Cut => "cut",
            End::Broken => "broken",
            End::NoConsent => "no_consent",
            End::Panicked => "panicked",
        }
    }
}

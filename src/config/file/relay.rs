//! `[relay]` and `[relay.resources]`.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use validator::Validate;

use crate::{
    config::{
        names::PeerWithAddress,
        units::{Bandwidth, PerSpan, Size, Span},
    },
    relay::{Limit, Rate},
};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields, default)]
pub struct RelayFile {
    /// Offer circuit relay v2 to other peers; `[acl]` says to whom. Switched off, the protocol is no longer announced,
    /// reservations end at once, and running circuits follow `on_shrink`.
    ///
    /// Environment: `EDGEVPN_RELAY_SERVICE`. Example: `service = false`.
    #[schemars(extend("x-edgevpn-reload" = "live"))]
    pub service: bool,

    /// Reserve slots on relays of others while this node cannot be reached directly, so that others reach it through them.
    ///
    /// Example: `client = false`.
    #[schemars(extend("x-edgevpn-reload" = "live"))]
    pub client: bool,

    /// Relays to reserve on, each with its address and `/p2p/<id>`. They are used first, and also while this node can be
    /// reached directly.
    ///
    /// Example: `peers = ["/dns4/hub.example.org/tcp/4501/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"]`.
    #[validate(length(max = 64))]
    #[schemars(extend("x-edgevpn-reload" = "live", "uniqueItems" = true))]
    pub peers: Vec<PeerWithAddress>,

    /// Reserve on the relays in `peers` only, and on none that was found.
    ///
    /// Example: `static_only = true`.
    #[schemars(extend("x-edgevpn-reload" = "live"))]
    pub static_only: bool,

    /// What happens to load above a cap that was lowered.
    ///
    /// Example: `on_shrink = "evict"`.
    #[schemars(extend("x-edgevpn-reload" = "live"))]
    pub on_shrink: OnShrinkFile,

    /// What one circuit, one peer and all of them together may use. Every key changes live, for running circuits too.
    #[validate(nested)]
    pub resources: ResourcesFile,
}

impl Default for RelayFile {
    fn default() -> Self {
        Self {
            service: true,
            client: true,
            peers: Vec::new(),
            static_only: false,
            on_shrink: OnShrinkFile::Drain,
            resources: ResourcesFile::default(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnShrinkFile {
    /// Nobody new is admitted until the load fits, and nothing is cut.
    Drain,
    /// The newest surplus is closed.
    Evict,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields, default)]
pub struct ResourcesFile {
    /// Bytes that a circuit may carry in each direction before it ends, or `"unlimited"`. A running circuit is measured
    /// against a new value at once: raised, it goes on; lowered below what it has carried, it is closed.
    ///
    /// Environment: `EDGEVPN_RELAY_MAX_DATA`. Example: `max_data = "64MiB"`.
    #[schemars(extend("x-edgevpn-reload" = "live", "x-edgevpn-minimum" = "1B"))]
    pub max_data: Limit<Size>,

    /// How long a circuit may last, counted from the answer OK, or `"unlimited"`. Applies to running circuits as
    /// `max_data` does. With both unlimited no limit is announced, and clients treat the circuit as a full connection.
    ///
    /// Environment: `EDGEVPN_RELAY_MAX_DURATION`. Example: `max_duration = "2m"`.
    #[schemars(extend("x-edgevpn-reload" = "live", "x-edgevpn-minimum" = "1s", "x-edgevpn-maximum" = "365d"))]
    pub max_duration: Limit<Span>,

    /// Circuits per peer over all its connections, counted as source and as destination. At the cap the answer is
    /// RESOURCE_LIMIT_EXCEEDED.
    ///
    /// Environment: `EDGEVPN_RELAY_MAX_CIRCUITS`. Example: `max_circuits = 16`.
    #[validate(range(min = 1, max = 1000000))]
    #[schemars(extend("x-edgevpn-reload" = "live"))]
    pub max_circuits: u32,

    /// How long a reservation lasts until it must be renewed. Held reservations keep what they were promised; renewals
    /// see the new value.
    ///
    /// Environment: `EDGEVPN_RELAY_RESERVATION_TTL`. Example: `reservation_ttl = "15m"`.
    #[schemars(extend("x-edgevpn-reload" = "live", "x-edgevpn-minimum" = "1s", "x-edgevpn-maximum" = "30d"))]
    pub reservation_ttl: Span,

    /// Bytes that may wait for a slow reader, per circuit and direction. Two of these fit into `max_buffers`.
    ///
    /// Environment: `EDGEVPN_RELAY_BUFFER_SIZE`. Example: `buffer_size = "256KiB"`.
    #[schemars(extend("x-edgevpn-reload" = "live", "x-edgevpn-minimum" = "1KiB", "x-edgevpn-maximum" = "16MiB"))]
    pub buffer_size: Size,

    /// Reservations in total. When full, newcomers get RESERVATION_REFUSED; renewals are never refused for it.
    ///
    /// Example: `max_reservations = 1000`.
    #[validate(range(min = 1, max = 1000000))]
    #[schemars(extend("x-edgevpn-reload" = "live"))]
    pub max_reservations: u32,

    /// Reservations from one IPv4 address or one IPv6 /64. At most `max_reservations` take effect.
    ///
    /// Example: `max_reservations_per_ip = 1`.
    #[validate(range(min = 1, max = 1000000))]
    #[schemars(extend("x-edgevpn-reload" = "live"))]
    pub max_reservations_per_ip: u32,

    /// Circuits in total.
    ///
    /// Example: `max_circuits_total = 256`.
    #[validate(range(min = 1, max = 1000000))]
    #[schemars(extend("x-edgevpn-reload" = "live"))]
    pub max_circuits_total: u32,

    /// Reservation requests per peer, renewals included, or `"unlimited"`: so many at once, then evenly spread over the
    /// time.
    ///
    /// Example: `reservation_rate = "10/1m"`.
    #[schemars(extend("x-edgevpn-reload" = "live"))]
    pub reservation_rate: Limit<PerSpan>,

    /// Circuit requests per source peer, or `"unlimited"`.
    ///
    /// Example: `circuit_rate = "120/1m"`.
    #[schemars(extend("x-edgevpn-reload" = "live"))]
    pub circuit_rate: Limit<PerSpan>,

    /// Relayed bytes per second of the whole node, both directions together, or `"unlimited"`.
    ///
    /// Example: `bandwidth = "200Mbit/s"`.
    #[schemars(extend("x-edgevpn-reload" = "live", "x-edgevpn-minimum" = "1KiB/s"))]
    pub bandwidth: Limit<Bandwidth>,

    /// Relayed bytes per second of one circuit, both directions together, or `"unlimited"`.
    ///
    /// Example: `bandwidth_per_circuit = "10Mbit/s"`.
    #[schemars(extend("x-edgevpn-reload" = "live", "x-edgevpn-minimum" = "1KiB/s"))]
    pub bandwidth_per_circuit: Limit<Bandwidth>,

    /// Bytes that all circuits together really hold for slow readers. While above it, new circuits get
    /// RESOURCE_LIMIT_EXCEEDED.
    ///
    /// Example: `max_buffers = "64MiB"`.
    #[schemars(extend("x-edgevpn-reload" = "live", "x-edgevpn-minimum" = "2KiB", "x-edgevpn-maximum" = "16TiB"))]
    pub max_buffers: Size,
}

impl Default for ResourcesFile {
    fn default() -> Self {
        /// EdgeVPN's: thirty within two minutes.
        const RATE: Limit<PerSpan> = Limit::At(PerSpan(Rate {
            count: 30,
            per: Duration::from_secs(120),
        }));
        Self {
            max_data: Limit::At(Size(1 << 30)),
            max_duration: Limit::At(Span(Duration::from_secs(30 * 60))),
            max_circuits: 64,
            reservation_ttl: Span(Duration::from_secs(3600)),
            buffer_size: Size(64 << 10),
            max_reservations: 128,
            max_reservations_per_ip: 8,
            max_circuits_total: 1024,
            reservation_rate: RATE,
            circuit_rate: RATE,
            bandwidth: Limit::Unlimited,
            bandwidth_per_circuit: Limit::Unlimited,
            max_buffers: Size(256 << 20),
        }
    }
}

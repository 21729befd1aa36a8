//! `[limits]`, `[api]`, `[log]` and `[reload]`: how the process is run.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use validator::Validate;

use crate::config::{
    Class, LogFormat, Watch,
    names::{ApiAddress, Directives, MaybeSocket},
    units::{Size, Span, SpanOrOff},
};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsFile {
    /// Established connections in total. A lowered value closes nothing; it admits nobody until the load fits.
    ///
    /// Example: `connections = 4096`.
    #[validate(range(min = 1, max = 1000000))]
    #[schemars(extend("x-edgevpn-reload" = "live"))]
    pub connections: u32,

    /// Established connections per peer.
    ///
    /// Example: `connections_per_peer = 2`.
    #[validate(range(min = 1, max = 1024))]
    #[schemars(extend("x-edgevpn-reload" = "live"))]
    pub connections_per_peer: u32,

    /// Connections that are being set up, incoming and outgoing counted apart.
    ///
    /// Example: `pending = 512`.
    #[validate(range(min = 1, max = 65536))]
    #[schemars(extend("x-edgevpn-reload" = "live"))]
    pub pending: u32,

    /// Resident memory above which no new connection is accepted.
    ///
    /// Example: `memory = "2GiB"`.
    #[schemars(extend("x-edgevpn-reload" = "live", "x-edgevpn-minimum" = "16MiB", "x-edgevpn-maximum" = "16TiB"))]
    pub memory: Size,
}

impl Default for LimitsFile {
    fn default() -> Self {
        Self {
            connections: 512,
            connections_per_peer: 8,
            pending: 128,
            memory: Size(512 << 20),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields, default)]
pub struct ApiFile {
    /// Unix socket that `status`, `reload` and `plan` speak to (HTTP/1 and JSON, mode 0660), or `""` for off. A relative
    /// name starts at the runtime directory: `$RUNTIME_DIRECTORY` (set by systemd), else `/run/edgevpn` for root, else
    /// `$XDG_RUNTIME_DIR/edgevpn`, else `state_dir`.
    ///
    /// Example: `listen = "unix:/run/edgevpn/hub.sock"`.
    #[schemars(extend("x-edgevpn-reload" = "rebind"))]
    pub listen: ApiAddress,

    /// Address that serves Prometheus metrics at `/metrics`, or `""` for off. There is no access control: keep it on
    /// loopback or behind a firewall.
    ///
    /// Example: `metrics = "127.0.0.1:9477"`.
    #[schemars(extend("x-edgevpn-reload" = "rebind"))]
    pub metrics: MaybeSocket,
}

impl Default for ApiFile {
    fn default() -> Self {
        Self {
            listen: ApiAddress(Some("api.sock".to_owned())),
            metrics: MaybeSocket(None),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields, default)]
pub struct LogFile {
    /// How much is logged: `off`, `error`, `warn`, `info`, `debug` or `trace`, or directives that say it per module.
    ///
    /// Example: `level = "info,edgevpn::relay=debug"`.
    #[schemars(length(max = 1000), extend("x-edgevpn-reload" = "live"))]
    pub level: Directives,

    /// How a line is written.
    ///
    /// Example: `format = "json"`.
    #[schemars(extend("x-edgevpn-reload" = "live"))]
    pub format: LogFormat,
}

impl Default for LogFile {
    fn default() -> Self {
        Self {
            level: Directives("info".to_owned()),
            format: LogFormat::Auto,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields, default)]
pub struct ReloadFile {
    /// How a change of this file or of a list is noticed. `reload` and SIGHUP work in every case; with `"off"` list
    /// files too are read only then.
    ///
    /// Example: `watch = "poll"`.
    #[schemars(extend("x-edgevpn-reload" = "live"))]
    pub watch: Watch,

    /// Quiet time before a changed file is read.
    ///
    /// Example: `settle = "2s"`.
    #[schemars(extend("x-edgevpn-reload" = "live", "x-edgevpn-minimum" = "0s", "x-edgevpn-maximum" = "1m"))]
    pub settle: Span,

    /// How often contents are compared in case an event was lost.
    ///
    /// Example: `poll_interval = "1m"`.
    #[schemars(extend("x-edgevpn-reload" = "live", "x-edgevpn-minimum" = "100ms", "x-edgevpn-maximum" = "1h"))]
    pub poll_interval: Span,

    /// What a change of the file may cost. One that costs more is refused as a whole, with its keys named; the value in
    /// force decides, not that of the new file.
    ///
    /// Example: `max_impact = "live"`.
    #[schemars(extend("x-edgevpn-reload" = "live"))]
    pub max_impact: Class,

    /// Undo a change unless it is confirmed within this time (`reload --confirm`), or `"off"`. It also counts as
    /// confirmed when, at the end of the time, a peer is connected that was connected when the change came; a node
    /// without peers has to be told. A file that was undone is not applied again until it changes or `reload --force`
    /// insists. The value of the new file decides; a start is not undone.
    ///
    /// Example: `confirm = "60s"`.
    #[schemars(extend("x-edgevpn-reload" = "live", "x-edgevpn-minimum" = "1s", "x-edgevpn-maximum" = "1h"))]
    pub confirm: SpanOrOff,

    /// Applied files that are kept in `state_dir`.
    ///
    /// Example: `history = 50`.
    #[validate(range(min = 1, max = 1000))]
    #[schemars(extend("x-edgevpn-reload" = "live"))]
    pub history: u32,
}

impl Default for ReloadFile {
    fn default() -> Self {
        Self {
            watch: Watch::Auto,
            settle: Span(Duration::from_millis(200)),
            poll_interval: Span(Duration::from_secs(10)),
            max_impact: Class::Rejoin,
            confirm: SpanOrOff::Off,
            history: 10,
        }
    }
}

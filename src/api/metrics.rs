//! The status report as metrics: one source for what `status` shows and what is scraped.

use super::{NetworkReport, ReachReport, StatusReport, VpnReport};
use crate::plan::{Outcome, State, Trigger};
use prometheus_client::{
    encoding::text,
    metrics::{
        counter::ConstCounter,
        counter::Counter,
        family::Family,
        gauge::{ConstGauge, Gauge},
        info::Info,
    },
    registry::{Registry, Unit},
};

/// The text of `GET /metrics`.
pub(super) fn exposition(report: &StatusReport) -> String {
    let mut registry = Registry::with_prefix("edgevpn");
    config(&mut registry, report);
    relay(&mut registry, report);
    connections(&mut registry, report);
    if let Some(report) = &report.node.reach {
        reach(&mut registry, report);
    }
    if let Some(report) = &report.node.network {
        network(&mut registry, report);
    }
    if let Some(report) = &report.node.vpn {
        vpn(&mut registry, report);
    }
    let version = vec![("version", report.version.clone())];
    registry.register("build", "The program that runs", Info::new(version));
    registry.register_with_unit(
        "uptime",
        "Time since the start",
        Unit::Seconds,
        gauge(report.uptime_s as f64),
    );
    let mut text = String::new();
    // Writing into a String cannot fail.
    let _ = text::encode(&mut text, &registry);
    text
}

fn config(registry: &mut Registry, report: &StatusReport) {
    let successful = match &report.last_attempt {
        Some(attempt) => attempt.outcome.is_success(),
        None => report.state != State::LastKnownGood,
    };
    registry.register(
        "config_last_reload_successful",
        "1 if the latest attempt to apply the file ended well",
        flag(successful),
    );
    registry.register_with_unit(
        "config_last_reload_success_timestamp",
        "When an attempt last ended well, since the epoch",
        Unit::Seconds,
        gauge(report.last_success_at),
    );
    let reloads = Family::<Vec<(&'static str, &'static str)>, Counter>::default();
    let counter = |trigger: Trigger, result: Outcome| {
        let labels = vec![("trigger", trigger.as_str()), ("result", result.as_str())];
        reloads.get_or_create_owned(&labels)
    };
    // A series that appears with its first event hides that event from `increase()`.
    for (trigger, result) in Trigger::ALL
        .into_iter()
        .flat_map(|trigger| Outcome::ALL.map(|result| (trigger, result)))
    {
        counter(trigger, result);
    }
    for reload in &report.reloads {
        counter(reload.trigger, reload.result).inc_by(reload.count);
    }
    registry.register("config_reloads", "Attempts to apply the file", reloads);
    registry.register(
        "config_generation",
        "The generation in force",
        gauge(report.generation.0 as f64),
    );
    registry.register(
        "config_in_sync",
        "1 if the node runs what its file says, for good, and edits will be noticed",
        flag(report.state == State::InSync),
    );
    registry.register(
        "config_watch_healthy",
        "1 if edits of the file and its lists will be noticed in time",
        flag(report.watcher.healthy),
    );
}

fn relay(registry: &mut Registry, report: &StatusReport) {
    let relay = &report.node.relay;
    for (name, help, value) in [
        (
            "relay_reservations",
            "Reservations held",
            relay.reservations,
        ),
        (
            "relay_reservations_max",
            "relay.resources.max_reservations",
            relay.max_reservations,
        ),
        (
            "relay_guests",
            "Reservations that only the bootstrap window admits",
            relay.guests,
        ),
        ("relay_circuits", "Circuits established", relay.circuits),
        (
            "relay_circuits_max",
            "relay.resources.max_circuits_total",
            relay.max_circuits,
        ),
        (
            "relay_circuits_draining",
            "Circuits above a lowered cap that run out",
            relay.draining,
        ),
        (
            "relay_handshakes",
            "Circuits whose destination has not answered yet",
            relay.handshakes,
        ),
    ] {
        registry.register(name, help, gauge(value.into()));
    }
    registry.register(
        "relay_service",
        "1 if the relay service is offered",
        flag(relay.service),
    );
    for (name, help, value) in [
        (
            "relay_reservations_made",
            "Reservations admitted, renewals apart",
            relay.reservations_total,
        ),
        (
            "relay_renewals",
            "Reservations renewed",
            relay.renewals_total,
        ),
        (
            "relay_circuits_opened",
            "Circuits established since the start",
            relay.circuits_total,
        ),
        (
            "relay_shadow_refused",
            "Requests that acl.mode = shadow let through",
            relay.shadow_refused,
        ),
    ] {
        registry.register(name, help, ConstCounter::new(value));
    }
    registry.register(
        "relay_refused",
        "Requests refused",
        by("reason", &relay.refused),
    );
    registry.register(
        "relay_circuits_ended",
        "Circuits that ended",
        by("reason", &relay.ended),
    );
    let carried = Family::<Vec<(&'static str, &'static str)>, Counter>::default();
    for (direction, bytes) in [
        ("to_destination", relay.bytes.to_destination),
        ("to_source", relay.bytes.to_source),
    ] {
        carried
            .get_or_create(&vec![("direction", direction)])
            .inc_by(bytes);
    }
    registry.register_with_unit("relay", "Bytes carried by circuits", Unit::Bytes, carried);
    registry.register_with_unit(
        "relay_buffered",
        "Bytes that circuits hold for slow readers",
        Unit::Bytes,
        gauge(relay.buffered as f64),
    );
    registry.register_with_unit(
        "relay_buffered_max",
        "relay.resources.max_buffers",
        Unit::Bytes,
        gauge(relay.max_buffers as f64),
    );
}

fn connections(registry: &mut Registry, report: &StatusReport) {
    let connections = &report.node.connections;
    for (name, help, value) in [
        (
            "connections",
            "Connections established",
            connections.established,
        ),
        (
            "connections_pending",
            "Connections in their handshake",
            connections.pending,
        ),
        ("connections_max", "limits.connections", connections.max),
        (
            "connected_peers",
            "Peers with a connection",
            connections.peers,
        ),
    ] {
        registry.register(name, help, gauge(value.into()));
    }
    registry.register(
        "connections_refused",
        "Connections refused by [limits] or transport.block",
        ConstCounter::new(connections.refused_total),
    );
    registry.register(
        "task_panics",
        "Tasks that ended by a panic; anything but 0 is a fault in the program",
        ConstCounter::new(report.node.panics),
    );
}

fn reach(registry: &mut Registry, report: &ReachReport) {
    for (name, help, value) in [
        (
            "relay_client_reservations",
            "Reservations held on other relays",
            report.reservations,
        ),
        (
            "relay_client_reservations_wanted",
            "Reservations this node wants to hold",
            report.reservations_wanted,
        ),
    ] {
        registry.register(name, help, gauge(value.into()));
    }
    registry.register(
        "reachable",
        "1 if others reach this node without a relay, 0 if they do not or it is not known",
        flag(report.reachability == "public"),
    );
}

fn network(registry: &mut Registry, report: &NetworkReport) {
    for (name, help, value) in [
        ("members", "Members beside this node", report.members),
        (
            "ledger_neighbours",
            "Nodes that exchange ledgers with this one",
            report.neighbours,
        ),
    ] {
        registry.register(name, help, gauge(value.into()));
    }
    registry.register(
        "ledger_entries",
        "Entries of the ledger, tombstones included",
        gauge(report.ledger.entries as f64),
    );
    registry.register_with_unit(
        "ledger",
        "Size of the ledger",
        Unit::Bytes,
        gauge(report.ledger.bytes as f64),
    );
    registry.register(
        "ledger_entries_merged",
        "Entries taken over from other nodes",
        ConstCounter::new(report.ledger.merged_total),
    );
    registry.register(
        "ledger_rejected",
        "Messages and entries of other nodes that were not taken",
        by("reason", &report.rejected),
    );
    let messages = Family::<Vec<(&'static str, &'static str)>, Counter>::default();
    let bytes = Family::<Vec<(&'static str, &'static str)>, Counter>::default();
    for (way, traffic) in [("gossip", &report.gossip), ("exchange", &report.exchange)] {
        for (direction, sent, size) in [
            ("in", traffic.messages_in, traffic.bytes_in),
            ("out", traffic.messages_out, traffic.bytes_out),
        ] {
            let labels = vec![("way", way), ("direction", direction)];
            messages.get_or_create_owned(&labels).inc_by(sent);
            bytes.get_or_create_owned(&labels).inc_by(size);
        }
    }
    registry.register(
        "ledger_messages",
        "Messages about the ledger, by gossip and between our own nodes",
        messages,
    );
    registry.register_with_unit(
        "ledger_traffic",
        "Bytes of these messages",
        Unit::Bytes,
        bytes,
    );
    registry.register_with_unit(
        "rotation_in",
        "Time until topics and keys change",
        Unit::Seconds,
        gauge(report.rotation_in_s as f64),
    );
    if let Some(age) = report.heartbeat_age_s {
        registry.register_with_unit(
            "heartbeat_age",
            "Time since this node said that it is alive",
            Unit::Seconds,
            gauge(age as f64),
        );
    }
    registry.register(
        "bootstrap_open",
        "1 while strangers may reserve because no member is known yet",
        flag(report.bootstrap.open),
    );
    registry.register(
        "clock_steps",
        "Times the system clock was set by more than 30 s",
        ConstCounter::new(report.clock_steps),
    );
}

fn vpn(registry: &mut Registry, report: &VpnReport) {
    let carriers = Family::<Vec<(&'static str, String)>, Gauge>::default();
    let bytes = Family::<Vec<(&'static str, String)>, Counter>::default();
    for peer in &report.peers {
        carriers
            .get_or_create(&vec![("carrier", peer.carrier.replace(' ', "_"))])
            .inc();
        for (direction, traffic) in [("in", peer.received), ("out", peer.sent)] {
            let labels = vec![
                ("direction", direction.to_owned()),
                ("peer", peer.peer.clone()),
            ];
            bytes.get_or_create(&labels).inc_by(traffic.bytes);
        }
    }
    registry.register(
        "vpn_peers",
        "Members with an address in the overlay, by how packets reach them",
        carriers,
    );
    registry.register_with_unit(
        "vpn_traffic",
        "Bytes of packets carried",
        Unit::Bytes,
        bytes,
    );
    registry.register(
        "vpn_dropped",
        "Packets that went no further",
        by("reason", &report.dropped),
    );
}

fn gauge(value: f64) -> ConstGauge<f64> {
    ConstGauge::new(value)
}

fn flag(value: bool) -> ConstGauge<i64> {
    ConstGauge::new(value.into())
}

/// One counter for each label value. The values are names from our own enums, never from a peer.
fn by(
    label: &'static str,
    counts: &std::collections::BTreeMap<String, u64>,
) -> Family<Vec<(&'static str, String)>, Counter> {
    let family = Family::<Vec<(&'static str, String)>, Counter>::default();
    for (value, count) in counts {
        family
            .get_or_create(&vec![(label, value.clone())])
            .inc_by(*count);
    }
    family
}

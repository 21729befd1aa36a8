//! The overlay in `edgevpn status`.

use crate::{
    api::{VpnPeer, VpnReport},
    cli::text::*,
};

/// Peers listed; `--json` has all.
const LISTED: usize = 20;

/// The device, and how packets travel.
pub(super) fn lines(vpn: &VpnReport, paint: Paint) -> String {
    let by = |carrier: &str| {
        let peers = vpn.peers.iter().filter(|peer| peer.carrier == carrier);
        peers.count()
    };
    let mut text = row(
        "vpn",
        &[
            format!(
                "{} {} mtu {}",
                vpn.interface,
                vpn.addresses.join(" "),
                vpn.mtu
            ),
            format!(
                "{} direct, {} by stream, {} relayed, {} idle",
                by("direct"),
                by("stream") + by("edgevpn"),
                by("relayed stream"),
                by("none"),
            ),
        ],
    );
    let dropped: Vec<String> = vpn
        .dropped
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(reason, count)| format!("{} {}", grouped(*count), reason.replace('_', " ")))
        .collect();
    if !dropped.is_empty() {
        text.push_str(&row("dropped", &[dropped.join(", ")]));
    }
    for conflict in &vpn.conflicts {
        text.push_str(&row("address", &[paint.bad(conflict)]));
    }
    text
}

/// A line for each member with an address.
pub(super) fn table(vpn: &VpnReport) -> String {
    if vpn.peers.is_empty() {
        return String::new();
    }
    let mut text = format!(
        "\n{:<16} {:<15} {:<14} {:>9} {:>21}  {}\n",
        "ADDRESS", "PEER", "CARRIER", "RTT", "IN / OUT", "PATH"
    );
    for peer in vpn.peers.iter().take(LISTED) {
        text.push_str(&line(peer));
    }
    let more = vpn.peers.len().saturating_sub(LISTED);
    if more > 0 {
        text.push_str(&format!("and {}\n", count(more as u64, "more member")));
    }
    text
}

fn line(peer: &VpnPeer) -> String {
    let rtt = peer
        .rtt_ms
        .map_or_else(String::new, |rtt| format!("{rtt:.1} ms"));
    let traffic = format!(
        "{} / {}",
        bytes(peer.received.bytes),
        bytes(peer.sent.bytes)
    );
    let id: String = peer.peer.chars().take(14).chain(['…']).collect();
    format!(
        "{:<16} {:<15} {:<14} {:>9} {:>21}  {}\n",
        peer.addresses.join(" "),
        id,
        peer.carrier,
        rtt,
        traffic,
        peer.remote.as_deref().unwrap_or_default(),
    )
}

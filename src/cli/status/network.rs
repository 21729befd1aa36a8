//! The private network in `edgevpn status`: a line for what there is, a table of who.

use crate::{
    api::{MemberReport, NetworkReport, ReachReport},
    cli::text::*,
};

/// Peers listed; `--json` has more.
const LISTED: usize = 20;

/// Members, ledger, rotation, and whether strangers are admitted meanwhile.
pub(super) fn lines(network: &NetworkReport, paint: Paint) -> String {
    let both = |traffic: crate::api::Traffic| {
        format!(
            "{} in, {} out",
            bytes(traffic.bytes_in),
            bytes(traffic.bytes_out)
        )
    };
    let accepted = match network.accepted.len() as u64 {
        0 => String::new(),
        more => format!(" and {}", count(more, "more token")),
    };
    let mut text = row(
        "network",
        &[
            format!(
                "{} · ledger {}, {} · rotation in {}",
                count(network.members.into(), "member"),
                match network.ledger.entries {
                    1 => "1 entry".to_owned(),
                    entries => format!("{} entries", grouped(entries)),
                },
                bytes(network.ledger.bytes),
                span(network.rotation_in_s),
            ),
            format!("token {}{accepted}", network.fingerprint),
        ],
    );
    text.push_str(&row(
        "ledger",
        &[
            format!(
                "exchanged with {}: {}",
                count(network.neighbours.into(), "neighbour"),
                both(network.exchange)
            ),
            format!("gossip {}", both(network.gossip)),
        ],
    ));
    if network.bootstrap.open {
        let left = network.bootstrap.closes_in_s.map_or_else(
            || "until a member is known".to_owned(),
            |left| format!("for {} or until a member is known", span(left)),
        );
        let open = format!("strangers are admitted {left} (`acl.bootstrap`)");
        text.push_str(&row("bootstrap", &[paint.warn(&open)]));
    }
    let rejected = network
        .rejected
        .values()
        .fold(0u64, |sum, count| sum.saturating_add(*count));
    if rejected > 0 {
        let mut reasons: Vec<_> = network
            .rejected
            .iter()
            .filter(|(_, count)| **count > 0)
            .collect();
        reasons.sort_by_key(|(reason, count)| (std::cmp::Reverse(**count), *reason));
        let mut items = vec!["not taken from peers:".to_owned()];
        items.extend(
            reasons
                .into_iter()
                .map(|(reason, count)| format!("{} {}", grouped(*count), reason.replace('_', " "))),
        );
        text.push_str(&row("", &items));
    }
    text
}

/// How others reach this node, as far as there is something to say.
pub(super) fn reach(reach: &ReachReport, in_network: bool) -> String {
    let mut items = Vec::new();
    if in_network || reach.reachability != "unknown" {
        items.push(match reach.reachability.as_str() {
            "public" => "directly from everywhere".to_owned(),
            "private" => "not directly".to_owned(),
            _ => "not known yet".to_owned(),
        });
    }
    if reach.reservations > 0 || reach.reservations_wanted > 0 {
        items.push(format!(
            "{} of {} on relays",
            grouped(reach.reservations.into()),
            count(
                reach.reservations_wanted.max(reach.reservations).into(),
                "reservation"
            )
        ));
        for relay in reach.relays.iter().filter(|relay| relay.stage == "active") {
            items.extend(relay.addresses.iter().cloned());
        }
        for relay in &reach.relays {
            if let (Some(why), Some(rests)) = (&relay.last_failure, relay.rests_for_s) {
                let next = span(rests);
                items.push(format!(
                    "{}: {why}, next try in {next}",
                    short_peer(&relay.relay)
                ));
            }
        }
    }
    let mut text = match items.is_empty() {
        true => String::new(),
        false => row("reachable", &items),
    };
    if in_network {
        text.push_str(&row("found", &found(reach)));
    }
    text
}

/// Where peers come from, whom the node keeps, and how it stands with the distributed hash table.
fn found(reach: &ReachReport) -> Vec<String> {
    let places = [
        ("file", "in the file"),
        ("ledger", "in the ledger"),
        ("mdns", "by mDNS"),
        ("dht", "in the DHT"),
    ];
    let by_place: Vec<String> = places
        .into_iter()
        .filter_map(|(place, words)| {
            let peers = reach.found.get(place).filter(|peers| **peers > 0)?;
            Some(format!("{} {words}", grouped(*peers)))
        })
        .collect();
    let by_place = match by_place.is_empty() {
        true => "nobody yet".to_owned(),
        false => by_place.join(", "),
    };
    let kept = format!(
        "{by_place} · {} of {} kept peers connected",
        grouped(reach.kept_connected),
        grouped(reach.kept)
    );
    let dht = reach.dht.as_ref().map(|dht| {
        let looked = dht.last_look_s.map_or("not looked yet".to_owned(), |ago| {
            format!("looked {} ago", span(ago))
        });
        format!(
            "DHT: {} of {} entrances connected, {} known, {looked}, announced again in {}",
            grouped(dht.entrances_connected),
            grouped(reach.found.get("bootstrap").copied().unwrap_or(0)),
            count(dht.routing, "server"),
            span(dht.next_announce_in_s),
        )
    });
    [kept].into_iter().chain(dht).collect()
}

/// Who is a member, and who is not and why.
pub(super) fn table(network: &NetworkReport) -> String {
    if network.peers.is_empty() {
        return String::new();
    }
    let mut text = format!(
        "\n{:<14} {:<16} {:<8} {:<9} {:<10} {}\n",
        "MEMBER", "NAME", "PATH", "RTT", "HEARTBEAT", "ADDRESSES"
    );
    for peer in network.peers.iter().take(LISTED) {
        text.push_str(&line(peer));
    }
    let listed = network.peers.len().min(LISTED);
    let rest = (network.peers.len() - listed) as u64 + u64::from(network.peers_omitted);
    if rest > 0 {
        text.push_str(&format!("and {}\n", count(rest, "more peer")));
    }
    text
}

fn line(peer: &MemberReport) -> String {
    let heartbeat = peer
        .heartbeat_age_s
        .map_or("none".to_owned(), |age| format!("{} ago", span(age)));
    let last = match &peer.why_not {
        Some(why) => format!("no member: {why}"),
        None => peer.addresses.join(" "),
    };
    format!(
        "{:<14} {:<16} {:<8} {:<9} {heartbeat:<10} {last}\n",
        short_peer(&peer.peer),
        if peer.name.is_empty() {
            "-"
        } else {
            &peer.name
        },
        peer.path.as_deref().unwrap_or("-"),
        peer.rtt_ms.map_or("-".to_owned(), took),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{BootstrapReport, DhtReport, LedgerReport, Traffic};

    fn network() -> NetworkReport {
        NetworkReport {
            fingerprint: "4f1c9e02".into(),
            members: 1,
            neighbours: 1,
            rotation_in_s: 130,
            ledger: LedgerReport {
                entries: 5,
                bytes: 1210,
                merged_total: 3,
            },
            exchange: Traffic {
                bytes_in: 2048,
                bytes_out: 1024,
                ..Traffic::default()
            },
            peers: vec![
                MemberReport {
                    peer: "12D3KooWGRaaaaaaaaaaaaa".into(),
                    name: "hub".into(),
                    member: true,
                    heartbeat_age_s: Some(12),
                    path: Some("direct".into()),
                    rtt_ms: Some(0.8),
                    addresses: vec!["/ip4/192.0.2.7/tcp/4501".into()],
                    ..MemberReport::default()
                },
                MemberReport {
                    peer: "12D3KooWQx9aaaaaaaaaaaa".into(),
                    why_not: Some("it withdrew its heartbeat".into()),
                    ..MemberReport::default()
                },
            ],
            ..NetworkReport::default()
        }
    }

    #[test]
    fn status_says_where_peers_come_from_and_how_the_dht_stands() {
        let report = ReachReport {
            reachability: "private".to_owned(),
            found: [("mdns", 2), ("dht", 1), ("bootstrap", 5), ("ledger", 0)]
                .map(|(place, peers)| (place.to_owned(), peers))
                .into(),
            kept: 8,
            kept_connected: 6,
            dht: Some(DhtReport {
                entrances_connected: 4,
                routing: 37,
                next_announce_in_s: 120,
                last_look_s: Some(3),
                ..DhtReport::default()
            }),
            ..ReachReport::default()
        };
        let text = reach(&report, true);
        assert!(
            text.contains("2 by mDNS, 1 in the DHT · 6 of 8 kept peers connected"),
            "{text}"
        );
        assert!(
            text.contains("4 of 5 entrances connected, 37 servers known, looked 3 s ago"),
            "{text}"
        );
        let alone = ReachReport {
            reachability: "unknown".to_owned(),
            ..ReachReport::default()
        };
        assert_eq!(reach(&alone, false), "");
    }

    #[test]
    fn the_network_is_a_line_and_a_table() {
        let text = lines(&network(), Paint::new(false)) + &table(&network());
        for fact in [
            "1 member · ledger 5 entries",
            "rotation in 2 min",
            "token 4f1c9e02",
            "exchanged with 1 neighbour",
            "hub",
            "direct",
            "12 s ago",
            "/ip4/192.0.2.7/tcp/4501",
            "no member: it withdrew its heartbeat",
        ] {
            assert!(text.contains(fact), "{fact} in\n{text}");
        }
        assert!(!text.contains("bootstrap"), "{text}");
    }

    #[test]
    fn an_open_window_is_a_warning_with_its_end() {
        let mut network = network();
        network.bootstrap = BootstrapReport {
            open: true,
            closes_in_s: Some(90),
            why: None,
        };
        let text = lines(&network, Paint::new(false));
        assert!(text.contains("strangers are admitted for 1 min"), "{text}");
    }
}

//! What a change does to those who use the relay now, in the words of `plan`.

use crate::{
    acl::{Membership, Window},
    config::Config,
    plan::{Change, Plan},
    relay::admission::Impact,
};

/// Sections whose changes can cost somebody something. Each is weighed alone, so that its effect stands beside its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    Acl,
    Relay,
}

impl Section {
    pub const ALL: [Section; 2] = [Section::Acl, Section::Relay];

    /// The first change of this section, which carries the effect of all of them.
    pub fn change_in(self, plan: &mut Plan) -> Option<&mut Change> {
        let prefix = match self {
            Section::Acl => "acl.",
            Section::Relay => "relay.",
        };
        plan.changes
            .iter_mut()
            .find(|change| change.key.starts_with(prefix))
    }

    /// The applied configuration with this section of the new one.
    pub fn taken_over(self, applied: &Config, new: &Config) -> Config {
        let mut config = applied.clone();
        match self {
            Section::Acl => config.acl = new.acl.clone(),
            Section::Relay => config.relay = new.relay.clone(),
        }
        config
    }
}

/// What a change of this key does to who is a member. `None` if that stays as it is.
pub fn on_members(key: &str, applied: &Config, new: &Config, known: &Membership) -> Option<String> {
    match key {
        "network.token" => Some(match (&applied.network, &new.network) {
            (None, Some(_)) => "joins a network: nobody is a member yet".to_owned(),
            (Some(_), None) => format!("leaves its network: {}", left_behind(known)),
            (Some(_), Some(_)) => format!(
                "leaves one network and joins the other: {}",
                left_behind(known)
            ),
            (None, None) => return None,
        }),
        "acl.bootstrap" if known.window == Window::Open && new.access.bootstrap.is_zero() => {
            Some("the window closes: guests lose their reservations within 2 s".to_owned())
        }
        "acl.bootstrap" if known.window == Window::Closed => {
            Some("the window is closed and stays so".to_owned())
        }
        _ => None,
    }
}

fn left_behind(known: &Membership) -> String {
    match known.members.len() {
        0 => "no member is known".to_owned(),
        1 => "1 member is no longer one, and keeps what it holds until it renews it".to_owned(),
        many => {
            format!("{many} members are no longer any, and keep what they hold until they renew it")
        }
    }
}

/// `None` if nobody notices.
pub fn in_words(impact: &Impact) -> Option<String> {
    let mut parts = Vec::new();
    for (count, one, many, does) in [
        (
            impact.reservations_ended,
            "reservation",
            "reservations",
            "ends within 2 s",
        ),
        (
            impact.circuits_cut,
            "circuit",
            "circuits",
            "is cut within 2 s",
        ),
        (impact.peers_closed, "peer", "peers", "is disconnected once"),
        (
            impact.reservations_draining,
            "reservation",
            "reservations",
            "stays until it expires",
        ),
        (impact.circuits_draining, "circuit", "circuits", "drains"),
    ] {
        match count {
            0 => {}
            1 => parts.push(format!("1 {one} {does}")),
            _ => parts.push(format!("{count} {many} {}", plural(does))),
        }
    }
    (!parts.is_empty()).then(|| parts.join(", "))
}

fn plural(does: &str) -> String {
    let (verb, rest) = does
        .split_once(' ')
        .map_or((does, ""), |(verb, rest)| (verb, rest));
    let verb = match verb {
        "is" => "are",
        other => other.strip_suffix('s').unwrap_or(other),
    };
    if rest.is_empty() {
        verb.to_owned()
    } else {
        format!("{verb} {}", rest.replace("it expires", "they expire"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{PeerId, UnixTime};

    #[test]
    fn an_effect_reads_as_a_sentence() {
        let impact = Impact {
            reservations_ended: 1,
            circuits_cut: 2,
            circuits_draining: 41,
            ..Impact::default()
        };
        let words = in_words(&impact).expect("an effect");
        assert_eq!(
            words,
            "1 reservation ends within 2 s, 2 circuits are cut within 2 s, 41 circuits drain"
        );
    }

    #[test]
    fn a_change_of_network_tells_whom_it_leaves_behind() {
        let text = |token: &str| format!("version = 1\nnetwork.token = \"{token}\"");
        let token = crate::wire::Token::generate(360, |bytes: &mut [u8]| bytes.fill(7));
        let member = Config::from_toml(&text(&token.to_base64())).expect("valid");
        let mut known = Membership::default();
        let told = |old: &Config, new: &Config, known: &Membership| {
            on_members("network.token", old, new, known)
        };
        let joins = told(&Config::empty(), &member, &known);
        assert_eq!(
            joins.as_deref(),
            Some("joins a network: nobody is a member yet")
        );
        known
            .members
            .insert(PeerId::random(), UnixTime::from_secs(1));
        let leaves = told(&member, &Config::empty(), &known);
        assert_eq!(
            leaves.as_deref(),
            Some(
                "leaves its network: 1 member is no longer one, and keeps what it holds until it renews it"
            )
        );
    }

    #[test]
    fn a_change_nobody_notices_has_no_effect() {
        assert_eq!(in_words(&Impact::default()), None);
    }
}

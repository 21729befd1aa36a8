//! The buckets that are known by name, and what is asked of an entry in each.

use std::{borrow::Cow, fmt};

use serde::{
    Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};

/// A bucket by its name. Names are case-sensitive.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Bucket {
    /// Overlay addresses and the peers that have them.
    Machines,
    /// Tunnels by name.
    Services,
    /// Offered files by name.
    Files,
    /// Peers that may use services.
    Users,
    /// Peers that offer HTTP egress.
    Egress,
    /// Heartbeats.
    Healthcheck,
    /// Names and their records.
    Dns,
    /// Names and addresses of members ([`super::Node`]). Ours: EdgeVPN does not know it and is never sent it.
    Nodes,
    /// Who assigns addresses.
    Dhcp,
    /// Peers that PeerGuardian trusts.
    Trustzone,
    /// Keys that PeerGuardian trusts.
    TrustzoneAuth,
    Other(Box<str>),
}

/// Every bucket with a name of its own; the position is its code in our encodings and never changes.
const KNOWN: [(Bucket, &str); 11] = [
    (Bucket::Machines, "machines"),
    (Bucket::Services, "services"),
    (Bucket::Files, "files"),
    (Bucket::Users, "users"),
    (Bucket::Egress, "egress"),
    (Bucket::Healthcheck, "healthcheck"),
    (Bucket::Dns, "dns"),
    (Bucket::Nodes, "nodes"),
    (Bucket::Dhcp, "dhcp"),
    (Bucket::Trustzone, "trustzone"),
    (Bucket::TrustzoneAuth, "trustzoneAuth"),
];

impl Bucket {
    pub fn named(name: &str) -> Bucket {
        KNOWN
            .iter()
            .find(|(_, known)| *known == name)
            .map_or_else(|| Bucket::Other(name.into()), |(bucket, _)| bucket.clone())
    }

    pub fn name(&self) -> &str {
        match self {
            Bucket::Machines => "machines",
            Bucket::Services => "services",
            Bucket::Files => "files",
            Bucket::Users => "users",
            Bucket::Egress => "egress",
            Bucket::Healthcheck => "healthcheck",
            Bucket::Dns => "dns",
            Bucket::Nodes => "nodes",
            Bucket::Dhcp => "dhcp",
            Bucket::Trustzone => "trustzone",
            Bucket::TrustzoneAuth => "trustzoneAuth",
            Bucket::Other(name) => name,
        }
    }

    /// One byte for a known bucket.
    pub(super) fn code(&self) -> Option<u8> {
        KNOWN
            .iter()
            .position(|(known, _)| known == self)
            .and_then(|at| u8::try_from(at).ok())
    }

    pub(super) fn from_code(code: u8) -> Option<Bucket> {
        KNOWN
            .get(usize::from(code))
            .map(|(bucket, _)| bucket.clone())
    }

    /// What the policy table of EdgeVPN says about the bucket, and ours about `nodes`.
    pub(super) fn policy(&self) -> Policy {
        match self {
            Bucket::Machines | Bucket::Services | Bucket::Files => Policy::Owned(OwnerIs::InValue),
            Bucket::Users | Bucket::Egress | Bucket::Healthcheck | Bucket::Nodes => {
                Policy::Owned(OwnerIs::Key)
            }
            Bucket::Dns => Policy::Owned(OwnerIs::Author),
            Bucket::Dhcp | Bucket::Trustzone | Bucket::TrustzoneAuth | Bucket::Other(_) => {
                Policy::Open
            }
        }
    }

    /// Whom an entry belongs to by its key or value: `None` in buckets that do not say; empty when the value says nothing.
    pub(super) fn implied_owner<'a>(&self, key: &'a str, value: &str) -> Option<Cow<'a, str>> {
        match self.policy() {
            Policy::Owned(OwnerIs::Key) => Some(Cow::Borrowed(key)),
            Policy::Owned(OwnerIs::InValue) => {
                Some(Cow::Owned(peer_id_in(value).unwrap_or_default()))
            }
            Policy::Owned(OwnerIs::Author) | Policy::Open => None,
        }
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Policy {
    /// Entries are signed by their owner and last as long as the owner's heartbeat.
    Owned(OwnerIs),
    /// The higher version wins, whoever wrote it; entries never expire.
    Open,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OwnerIs {
    /// Member `PeerID` of the value.
    InValue,
    Key,
    /// Whoever wrote it first.
    Author,
}

/// Member `PeerID` of a JSON object. The reference compares names without regard to case and lets the last one win, so
/// this does too; anything but an object with a text there belongs to nobody.
fn peer_id_in(value: &str) -> Option<String> {
    let mut json = serde_json::Deserializer::from_str(value);
    let found = json.deserialize_map(PeerIdMember).ok()?;
    json.end().ok()?;
    found
}

struct PeerIdMember;

impl<'de> Visitor<'de> for PeerIdMember {
    type Value = Option<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(name) = map.next_key::<Cow<'de, str>>()? {
            if name.eq_ignore_ascii_case("PeerID") {
                // `null` leaves what an earlier member set.
                found = map.next_value::<Option<String>>()?.or(found);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_bucket_keeps_its_name_and_code() {
        for (code, (bucket, name)) in KNOWN.iter().enumerate() {
            let code = u8::try_from(code).expect("few buckets");
            assert_eq!(Bucket::named(name), *bucket);
            assert_eq!(bucket.name(), *name);
            assert_eq!(bucket.code(), Some(code));
            assert_eq!(Bucket::from_code(code).as_ref(), Some(bucket));
        }
        assert_eq!(
            Bucket::named("Machines"),
            Bucket::Other("Machines".into()),
            "names are case-sensitive"
        );
        assert_eq!(Bucket::from_code(11), None);
    }

    #[test]
    fn the_owner_in_a_value_is_found_as_the_reference_finds_it() {
        for (value, owner) in [
            (r#"{"PeerID":"a"}"#, Some("a")),
            (r#"{"peerid":"a","X":[1,{}]}"#, Some("a")),
            (r#"{"PeerID":"a","PEERID":"b"}"#, Some("b")),
            (r#"{"PeerID":"a","peerId":null}"#, Some("a")),
            (r#"{"PeerID":7}"#, None),
            (r#"{"Name":"a"}"#, None),
            (r#"{"PeerID":"a"} x"#, None),
            (r#""a""#, None),
            ("", None),
        ] {
            assert_eq!(peer_id_in(value).as_deref(), owner, "{value}");
        }
    }
}

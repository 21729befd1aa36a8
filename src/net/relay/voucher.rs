//! Reservation vouchers: a signed statement that a peer may be reached through this relay, which it can show to others.
//!
//! <https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md#reservation-vouchers>

use libp2p::{PeerId, core::SignedEnvelope, identity::Keypair};
use prost::Message;

/// What the signature covers besides the payload.
pub const DOMAIN: &str = "libp2p-relay-rsvp";

/// The multicodec `libp2p-relay-rsvp`, 0x0302, as the two bytes that every implementation writes.
pub const PAYLOAD_TYPE: [u8; 2] = [0x03, 0x02];

/// Signs that `peer` holds a reservation on `relay` (the owner of `key`) until `expiration`, in seconds of unix time.
///
/// `None` when the key cannot sign; a reservation is valid without a voucher.
pub fn issue(key: &Keypair, relay: PeerId, peer: PeerId, expiration: u64) -> Option<Vec<u8>> {
    let payload = Voucher {
        relay: relay.to_bytes(),
        peer: peer.to_bytes(),
        expiration,
    };
    let envelope = SignedEnvelope::new(
        key,
        DOMAIN.to_owned(),
        PAYLOAD_TYPE.to_vec(),
        payload.encode_to_vec(),
    );
    envelope.ok().map(SignedEnvelope::into_protobuf_encoding)
}

#[derive(Clone, PartialEq, Eq, Message)]
struct Voucher {
    #[prost(bytes = "vec", tag = "1")]
    relay: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    peer: Vec<u8>,
    #[prost(uint64, tag = "3")]
    expiration: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_voucher_verifies_and_names_relay_peer_and_expiration() {
        let key = Keypair::generate_ed25519();
        let (relay, peer) = (key.public().to_peer_id(), PeerId::random());
        let voucher = issue(&key, relay, peer, 1_900_000_000).unwrap();

        let envelope = SignedEnvelope::from_protobuf_encoding(&voucher).unwrap();
        let (payload, signer) = envelope
            .payload_and_signing_key(DOMAIN.to_owned(), &PAYLOAD_TYPE)
            .unwrap();
        assert_eq!(signer.to_peer_id(), relay);
        assert_eq!(
            Voucher::decode(payload).unwrap(),
            Voucher {
                relay: relay.to_bytes(),
                peer: peer.to_bytes(),
                expiration: 1_900_000_000
            }
        );
    }
}

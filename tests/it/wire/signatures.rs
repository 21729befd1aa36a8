//! Which signatures count, on the edges of what is possible. The verdicts are those of Go (see the script that made them).

use super::parse;
use edgevpn::wire::{Block, Bounds, SignatureError};
use libp2p::identity::Keypair;

#[test]
fn the_accept_set_is_that_of_go() {
    let vectors = parse(include_str!("../../vectors/wire-signatures.json"));
    let vectors = vectors.as_array().expect("vectors");
    for vector in vectors {
        let (bucket, key) = (super::text(&vector["bucket"]), super::text(&vector["key"]));
        let json = format!(
            r#"{{"Storage":{{"{bucket}":{{"{key}":{}}}}}}}"#,
            vector["entry"]
        );
        let block = Block::from_json(json.as_bytes(), &Bounds::default()).expect("a block");
        let verdict = block.storage[bucket][key].verify(bucket, key);
        assert_eq!(
            verdict.is_ok(),
            vector["valid"].as_bool().expect("a verdict"),
            "{}: {verdict:?}",
            vector["note"]
        );
    }
    assert_eq!(vectors.len(), 31);
}

#[test]
fn owners_with_a_secp256k1_key_sign_and_are_believed() {
    let secret = libp2p::identity::secp256k1::SecretKey::try_from_bytes([7; 32]).expect("a secret");
    let keypair = Keypair::from(libp2p::identity::secp256k1::Keypair::from(secret));
    let mut entry = edgevpn::wire::Entry::default();
    entry.sign("dns", "x", &keypair).expect("signed");
    assert_eq!(entry.verify("dns", "x"), Ok(keypair.public().to_peer_id()));
    assert_eq!(entry.verify("dns", "y"), Err(SignatureError::Wrong));
}

#[test]
fn an_owner_must_be_an_id_in_base58_that_holds_its_key() {
    let keypair = super::keypair();
    let peer = keypair.public().to_peer_id();
    let mut entry = edgevpn::wire::Entry::default();
    assert_eq!(entry.verify("b", "k"), Err(SignatureError::Unsigned));
    entry.sign("b", "k", &keypair).expect("signed");

    let cid = multibase::encode(
        multibase::Base::Base32Lower,
        [&[0x01, 0x72], &*peer.to_bytes()].concat(),
    );
    for (owner, verdict) in [
        (cid.as_str(), SignatureError::NotAPeer),
        ("12D3", SignatureError::NotAPeer),
        ("", SignatureError::Unsigned),
        // The id of an RSA key is a hash of it.
        (
            "QmNnooDu7bfjPFoTZYxMNLWUQJyrVwtbZg5gBMjTezGAJN",
            SignatureError::NoKey,
        ),
    ] {
        let named = edgevpn::wire::Entry {
            owner: owner.to_owned(),
            ..entry.clone()
        };
        assert_eq!(named.verify("b", "k"), Err(verdict), "{owner}");
    }
}

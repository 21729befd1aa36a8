//! What must hold for any bytes as a token, as a block and as a message. Used by the fuzz targets and by the replay of the
//! corpus.

use edgevpn::wire::{Block, Bounds, SealKey, Token, open, open_bytes, seal, seal_bytes};

/// A token that is taken is written and read again as the same one, and derives without complaint.
pub fn token(bytes: &[u8]) {
    let Ok(token) = Token::parse(bytes) else {
        return;
    };
    assert!(token.dht.interval > 0 && token.crypto.interval > 0);
    assert!(token.dht.length <= 44 && token.crypto.length <= 44);
    assert!(token.max_message_size > 0);
    for form in [token.to_yaml(), token.to_base64()] {
        // Escaped, a text near the longest that is looked at passes it.
        if form.len() > 64 << 10 {
            continue;
        }
        assert_eq!(Token::parse(form.as_bytes()), Ok(token.clone()), "{form}");
    }
    let now = edgevpn::id::UnixTime::from_secs(1_785_931_200);
    let window = token.window(now);
    assert_eq!(token.topic(window).len(), 32);
    token.seal_key(window);
    token.rendezvous(token.dht_window(now));
}

/// A block that is taken keeps within the bounds and is written and read again as the same one.
pub fn block(bytes: &[u8]) {
    if let Ok(block) = Block::from_json(bytes, &BOUNDS) {
        within_bounds(&block);
        let json = block.to_json();
        let again = Block::from_json(json.as_bytes(), &BOUNDS);
        // An entry without owner, version and signature is written as its value alone.
        assert_eq!(again.map(|block| block.to_json()), Ok(json));
        block.checksum();
        for (bucket, entries) in &block.storage {
            for (key, entry) in entries {
                let _ = entry.verify(bucket, key);
            }
        }
    }
}

/// The bytes as a whole message, and as what a member has sealed.
pub fn message(bytes: &[u8]) {
    let key = || SealKey::new([7; 32]);
    let sealed = seal_bytes(bytes, &key(), [1; 12], &[]);
    assert_eq!(open_bytes(&sealed, &[key()], &[]), Ok(bytes.to_vec()));
    let digits: String = sealed.iter().map(|byte| format!("{byte:02x}")).collect();
    let inside = format!(r#"{{"Message":"{digits}"}}"#);
    for data in [bytes, inside.as_bytes()] {
        if let Ok(block) = open(data, &[key()], &BOUNDS) {
            within_bounds(&block);
            let data = seal(&block, &key(), [2; 12]);
            assert!(open(&data, &[key()], &BOUNDS).is_ok());
        }
    }
}

/// Small, so that a fuzzer reaches them.
const BOUNDS: Bounds = Bounds {
    inflated: 1 << 20,
    ratio: 100,
    entries: 32,
    key: 64,
    value: 256,
};

fn within_bounds(block: &Block) {
    let entries: usize = block.storage.values().map(|bucket| bucket.len() + 1).sum();
    assert!(entries <= BOUNDS.entries);
    for (bucket, entries) in &block.storage {
        assert!(bucket.len() <= BOUNDS.key);
        for (key, entry) in entries {
            assert!(key.len() <= BOUNDS.key && entry.owner.len() <= BOUNDS.key);
            assert!(entry.value.len() <= BOUNDS.value && entry.signature.len() <= 256);
        }
    }
}

//! Who leads: a choice that every node makes alone and alike, from the ids of the living.

/// The id with the highest weight; among equals, which Go picks at random, the one that comes last in the alphabet.
pub fn leader<'a>(ids: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    ids.into_iter().max_by_key(|id| (weight(id), *id))
}

/// FNV-1a of the text, 32 bits, <http://www.isthe.com/chongo/tech/comp/fnv/>.
pub fn weight(id: &str) -> u32 {
    const OFFSET_BASIS: u32 = 0x811c_9dc5;
    const PRIME: u32 = 0x0100_0193;
    id.bytes().fold(OFFSET_BASIS, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(PRIME)
    })
}

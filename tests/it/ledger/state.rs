//! The ledger survives a restart, and a file that is not whole is an error.

use edgevpn::ledger::{Ledger, Ownership, StateError};

use super::{Author, NOW, after, block, plain, terms};

fn filled() -> Ledger {
    let (us, they) = (Author::new(0), Author::new(1));
    let mut ledger = us.ledger(Ownership::Enforce);
    ledger.merge(&they.beat(NOW), NOW);
    ledger.merge(&they.machine("10.1.0.1", NOW), NOW);
    let tombstone = they.tombstone("machines", "10.1.0.1", after(1));
    ledger.merge(&block("machines", "10.1.0.1", tombstone), after(1));
    ledger.merge(
        &block("dhcp", "leader", they.entry("dhcp", "leader", "\"é\"", NOW)),
        after(1),
    );
    ledger.block(after(1));
    ledger
}

fn read(bytes: &[u8]) -> Result<Ledger, StateError> {
    Ledger::from_state(Author::new(0).peer, terms(Ownership::Enforce), bytes)
}

#[test]
fn everything_is_there_again_after_a_restart() {
    let mut before = filled();
    let state = before.to_state();
    let mut ledger = read(&state).expect("just written");
    assert_eq!(
        ledger.to_state(),
        state,
        "the same bytes for the same content"
    );
    let held = |ledger: &Ledger| ledger.iter().map(|one| plain(one)).collect::<Vec<_>>();
    assert_eq!(held(&ledger), held(&before));
    assert_eq!(ledger.size(), before.size());
    ledger.maintain(after(2));
    assert_eq!(ledger.membership(after(2)), before.membership(after(2)));
    assert_eq!(ledger.block(after(2)), before.block(after(2)));
    ledger.maintain(after(500));
    assert!(
        ledger.membership(after(500)).0.is_empty(),
        "it is not fooled by age"
    );
}

#[test]
fn every_flipped_bit_and_every_cut_is_an_error() {
    let state = filled().to_state();
    for position in 0..state.len() {
        for bit in 0..8 {
            let mut damaged = state.clone();
            damaged[position] ^= 1 << bit;
            assert!(read(&damaged).is_err(), "bit {bit} of byte {position}");
        }
        assert!(read(&state[..position]).is_err(), "cut at {position}");
    }
    let mut longer = state.clone();
    longer.push(0);
    assert!(read(&longer).is_err());
}

#[test]
fn errors_say_what_is_wrong() {
    let state = filled().to_state();
    assert_eq!(read(b"").err(), Some(StateError::NotAState));
    let mut newer = state.clone();
    newer[14] = 9;
    assert_eq!(read(&newer).err(), Some(StateError::Version { version: 9 }));
    let mut damaged = state;
    damaged[40] ^= 1;
    assert_eq!(read(&damaged).err(), Some(StateError::Checksum));
}

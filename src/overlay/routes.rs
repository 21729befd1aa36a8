//! Longest-prefix match over both address families.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use ipnet::IpNet;

/// Prefixes with what they lead to. Immutable: a change is a new table.
#[derive(Clone, Debug)]
pub struct Table<T> {
    four: Vec<Level<T>>,
    six: Vec<Level<T>>,
}

/// All prefixes of one length.
#[derive(Clone, Debug)]
struct Level<T> {
    length: u8,
    /// By their bits, the rest zero.
    prefixes: HashMap<u128, T>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self {
            four: Vec::new(),
            six: Vec::new(),
        }
    }
}

impl<T> Table<T> {
    /// Of two entries for one prefix the first counts.
    pub fn of(entries: impl IntoIterator<Item = (IpNet, T)>) -> Self {
        let mut levels: [BTreeMap<u8, HashMap<u128, T>>; 2] = Default::default();
        for (prefix, to) in entries {
            let [four, six] = &mut levels;
            let family = if prefix.addr().is_ipv4() { four } else { six };
            let level = family.entry(prefix.prefix_len()).or_default();
            level
                .entry(bits(prefix.network(), prefix.prefix_len()))
                .or_insert(to);
        }
        let [four, six] = levels.map(|levels| {
            let longest_first = levels.into_iter().rev();
            longest_first
                .map(|(length, prefixes)| Level { length, prefixes })
                .collect()
        });
        Self { four, six }
    }

    /// What the longest prefix around this address leads to.
    pub fn find(&self, address: IpAddr) -> Option<&T> {
        let levels = if address.is_ipv4() {
            &self.four
        } else {
            &self.six
        };
        levels
            .iter()
            .find_map(|level| level.prefixes.get(&bits(address, level.length)))
    }

    pub fn len(&self) -> usize {
        self.four
            .iter()
            .chain(&self.six)
            .map(|level| level.prefixes.len())
            .sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The first `length` bits, left-aligned.
fn bits(address: IpAddr, length: u8) -> u128 {
    let all = match address {
        IpAddr::V4(address) => u128::from(address.to_bits()) << 96,
        IpAddr::V6(address) => address.to_bits(),
    };
    let mask = u128::MAX
        .checked_shl(128 - u32::from(length.min(128)))
        .unwrap_or(0);
    all & mask
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn naive(entries: &[(IpNet, usize)], address: IpAddr) -> Option<usize> {
        let around = entries
            .iter()
            .filter(|(prefix, _)| prefix.contains(&address));
        let longest = around
            .clone()
            .map(|(prefix, _)| prefix.prefix_len())
            .max()?;
        around
            .filter(|(prefix, _)| prefix.prefix_len() == longest)
            .map(|(_, to)| *to)
            .next()
    }

    fn any_address() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            (0_u32..1 << 10).prop_map(|low| IpAddr::V4((0x0a00_0000 | low << 16).into())),
            (0_u128..1 << 10).prop_map(|low| IpAddr::V6((0xfd00 << 112 | low << 60).into())),
        ]
    }

    proptest! {
        #[test]
        fn it_finds_what_a_walk_over_all_entries_finds(
            prefixes in prop::collection::vec((any_address(), 0_u8..=128), 0..50), addresses in prop::collection::vec(any_address(), 1..50),
        ) {
            let prefix = |(address, length): (IpAddr, u8)| {
                let most = if address.is_ipv4() { 32 } else { 128 };
                IpNet::new(address, length.min(most)).unwrap().trunc()
            };
            let entries: Vec<(IpNet, usize)> = prefixes.into_iter().map(prefix).zip(0..).collect();
            let table = Table::of(entries.clone());
            for address in addresses {
                prop_assert_eq!(table.find(address).copied(), naive(&entries, address));
            }
        }
    }
}

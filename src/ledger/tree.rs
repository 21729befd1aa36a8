//! Sums over everything that lives in the ledger, at four levels of detail: two nodes whose roots are equal hold the same,
//! and where roots differ, sixteen sums a level lead to the difference.
//!
//! A change counts only once it has *settled*: ten to twenty seconds after its author wrote it, at a full ten seconds of the
//! calendar, on every node at the same moment. While it travels, nodes that have it and nodes that do not have it yet
//! agree; what has not arrived by then is missing for good, and the sums say so.

use std::collections::BTreeMap;

use super::record::Id;
use crate::id::UnixTime;

/// Seconds. Many times longer than a change takes from one end of a network to the other.
const SETTLE: u64 = 10;
/// Whatever an author claims about its clock, its change settles after so many steps: entries may be dated 30 s ahead.
const LATEST_STEPS: u64 = 5;

/// Levels below the root; each splits sixteenfold, so there are 4,096 leaves, ten entries each in a large network.
pub(super) const DEPTH: u8 = 3;
pub(super) const FAN: usize = 16;

/// Nodes on all levels, root first: 1 + 16 + 256 + 4,096.
const NODES: usize = 4_369;

#[derive(Debug)]
pub(super) struct Tree {
    sums: Box<[u64]>,
    /// Changes on their way into the sums, by the step at which they settle.
    unsettled: BTreeMap<u64, Vec<(Id, u64)>>,
    step: u64,
    /// The root during the step before.
    before: u64,
}

impl Default for Tree {
    fn default() -> Self {
        Tree {
            sums: vec![0; NODES].into(),
            unsettled: BTreeMap::new(),
            step: 0,
            before: 0,
        }
    }
}

impl Tree {
    /// Hashes before and after; 0 stands for nothing there (or nothing alive).
    pub fn change(&mut self, id: Id, from: u64, to: u64, updated_at: i64) {
        let difference = to.wrapping_sub(from);
        if difference == 0 {
            return;
        }
        let written = u64::try_from(updated_at).unwrap_or(0) / SETTLE;
        let settles = written
            .saturating_add(2)
            .min(self.step.saturating_add(LATEST_STEPS));
        if settles <= self.step {
            self.apply(id, difference);
        } else {
            self.unsettled
                .entry(settles)
                .or_default()
                .push((id, difference));
        }
    }

    /// Whether a change of that date has settled.
    pub fn is_settled(&self, updated_at: i64) -> bool {
        let written = u64::try_from(updated_at).unwrap_or(0) / SETTLE;
        written.saturating_add(2) <= self.step
    }

    pub fn advance(&mut self, now: UnixTime) {
        let step = now.as_secs() / SETTLE;
        if step == self.step {
            return;
        }
        self.before = self.root();
        // A clock that was set back leaves what has settled as it is.
        self.step = step;
        while let Some(first) = self.unsettled.first_entry()
            && *first.key() <= step
        {
            for (id, difference) in first.remove() {
                self.apply(id, difference);
            }
        }
    }

    pub fn step(&self) -> u64 {
        self.step
    }

    pub fn root(&self) -> u64 {
        self.sums.first().copied().unwrap_or(0)
    }

    /// The root as it was during that step, if that is known.
    pub fn root_at(&self, step: u64) -> u64 {
        if step.checked_add(1) == Some(self.step) {
            self.before
        } else {
            self.root()
        }
    }

    /// `None` for leaves.
    pub fn children(&self, prefix: Prefix) -> Option<[u64; FAN]> {
        let first = prefix.child(0)?.position();
        self.sums
            .get(first..first.checked_add(FAN)?)?
            .try_into()
            .ok()
    }

    fn apply(&mut self, id: Id, difference: u64) {
        for depth in 0..=DEPTH {
            if let Some(sum) = self.sums.get_mut(Prefix::of(id, depth).position()) {
                *sum = sum.wrapping_add(difference);
            }
        }
    }
}

/// A node of the tree: the ids that begin with its digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    /// How many digits of four bits, [`DEPTH`] at most.
    depth: u8,
    /// The digits as a number.
    digits: u16,
}

impl Prefix {
    pub(super) const ROOT: Prefix = Prefix {
        depth: 0,
        digits: 0,
    };

    pub(super) fn new(depth: u8, digits: u16) -> Option<Prefix> {
        let known = depth <= DEPTH && u32::from(digits) < 1 << (4 * u32::from(depth));
        known.then_some(Prefix { depth, digits })
    }

    pub(super) fn parts(self) -> (u8, u16) {
        (self.depth, self.digits)
    }

    fn of(id: Id, depth: u8) -> Prefix {
        let digits = match depth {
            0 => 0,
            depth => (id.0 >> (128 - 4 * u32::from(depth.min(DEPTH)))) as u16,
        };
        Prefix { depth, digits }
    }

    /// `None` below a leaf.
    pub(super) fn child(self, digit: u16) -> Option<Prefix> {
        (self.depth < DEPTH).then(|| Prefix {
            depth: self.depth + 1,
            digits: self.digits << 4 | digit & 0xf,
        })
    }

    /// The first and the last id below it, in the form that travels.
    pub(super) fn range(self) -> (u64, u64) {
        if self.depth == 0 {
            return (0, u64::MAX);
        }
        let shift = 64 - 4 * u32::from(self.depth);
        let first = u64::from(self.digits) << shift;
        (first, first | ((1 << shift) - 1))
    }

    fn position(self) -> usize {
        let above = match self.depth {
            0 => 0,
            1 => 1,
            2 => 17,
            _ => 273,
        };
        above + usize::from(self.digits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> UnixTime {
        UnixTime::from_secs(seconds)
    }

    #[test]
    fn every_level_sums_to_the_root() {
        let mut tree = Tree::default();
        tree.advance(at(1000));
        for n in 0..500_u128 {
            let id = Id(n.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c834));
            tree.change(id, 0, 7 + n as u64, 0);
        }
        let mut level = vec![Prefix::ROOT];
        while let Some(first) = level.first().copied()
            && tree.children(first).is_some()
        {
            let sum = level
                .iter()
                .filter_map(|node| tree.children(*node))
                .flatten()
                .fold(0, u64::wrapping_add);
            assert_eq!(sum, tree.root());
            level = level
                .iter()
                .flat_map(|node| (0..16).filter_map(|digit| node.child(digit)))
                .collect();
        }
        assert_eq!(level.len(), 4096, "leaves are reached");
    }

    #[test]
    fn a_change_counts_once_it_has_settled_and_at_the_same_moment_everywhere() {
        let (mut early, mut late) = (Tree::default(), Tree::default());
        early.advance(at(1001));
        late.advance(at(1001));
        early.change(Id(1), 0, 5, 1001);
        assert_eq!(early.root(), late.root(), "it is still on its way");
        late.advance(at(1008));
        late.change(Id(1), 0, 5, 1001);
        for now in [1009, 1012, 1019, 1020, 1021] {
            early.advance(at(now));
            late.advance(at(now));
            assert_eq!(early.root(), late.root(), "at {now}");
        }
        assert_eq!(early.root(), 5);
        assert_eq!(early.root_at(101), 0, "the step before is remembered");
    }

    #[test]
    fn a_change_that_never_arrives_shows() {
        let (mut has, mut lacks) = (Tree::default(), Tree::default());
        has.advance(at(1000));
        has.change(Id(1), 0, 5, 1000);
        for tree in [&mut has, &mut lacks] {
            tree.advance(at(1020));
        }
        assert_ne!(has.root(), lacks.root());
        lacks.change(Id(1), 0, 5, 1000);
        assert_eq!(has.root(), lacks.root(), "late is at once");
    }

    #[test]
    fn no_date_keeps_a_change_from_settling() {
        for date in [i64::MIN, -1, 0, i64::MAX] {
            let mut tree = Tree::default();
            tree.advance(at(1000));
            tree.change(Id(1), 0, 5, date);
            tree.advance(at(1060));
            assert_eq!(tree.root(), 5, "{date}");
        }
    }

    #[test]
    fn a_prefix_covers_the_ids_that_begin_with_it() {
        let prefix = Prefix::new(2, 0xab).expect("a prefix");
        assert_eq!(
            prefix.range(),
            (0xab00_0000_0000_0000, 0xabff_ffff_ffff_ffff)
        );
        assert_eq!(Prefix::ROOT.range(), (0, u64::MAX));
        assert_eq!(Prefix::new(2, 0x100), None);
        assert_eq!(Prefix::new(4, 0), None);
    }
}

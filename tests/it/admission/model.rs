//! Admission as a list of sentences: plain vectors, and everything is counted anew for each question.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    time::{Duration, Instant},
};

use edgevpn::{
    acl::{Audience, Mode, Operation, Standing},
    relay::{
        OnShrink,
        admission::{GUEST_TTL, MAX_GUESTS},
    },
};

use super::{File, PEERS, peer};

pub struct Model {
    file: File,
    members: Members,
    connections: Vec<(u8, u64, Option<IpAddr>)>,
    reservations: Vec<Held>,
    circuits: Vec<Circuit>,
    next: u64,
}

/// Who is a member, who has said that it leaves, and whether strangers are guests meanwhile.
#[derive(Clone, Debug, Default)]
pub struct Members {
    pub live: BTreeSet<u8>,
    pub withdrawn: BTreeSet<u8>,
    pub open: bool,
}

#[derive(Clone)]
struct Held {
    peer: u8,
    expires: Instant,
    connection: u64,
    place: IpAddr,
    /// It was admitted as a member, or has become one under a file that asks for it.
    as_member: bool,
    guest: bool,
    /// Where it counts: the first place.
    prefix: String,
}

#[derive(Clone)]
struct Circuit {
    id: u64,
    source: (u8, u64, IpAddr),
    destination: (u8, u64, IpAddr),
    source_as_member: bool,
    destination_as_member: bool,
    established: bool,
}

pub struct Load {
    pub circuits: usize,
    pub handshakes: usize,
    reservations: usize,
    by_prefix: Vec<(String, usize)>,
    by_peer: Vec<usize>,
}

impl Model {
    pub fn new(file: File) -> Self {
        Self {
            file,
            members: Members::default(),
            connections: Vec::new(),
            reservations: Vec::new(),
            circuits: Vec::new(),
            next: 0,
        }
    }

    pub fn connected(&mut self, peer: u8, key: u64, place: Option<IpAddr>) {
        let place = place.map(|place| place.to_canonical());
        self.connections.push((peer, key, place));
    }

    pub fn disconnected(&mut self, number: u8, key: u64) -> BTreeSet<String> {
        let mut effects = BTreeSet::new();
        self.connections.retain(|(_, known, _)| *known != key);
        let home = self.direct(number);
        self.reservations.retain_mut(|held| {
            if held.peer != number || held.connection != key {
                return true;
            }
            match home {
                Some((connection, place)) => {
                    held.connection = connection;
                    held.place = place;
                    true
                }
                None => {
                    effects.insert(format!("end {}", peer(number)));
                    false
                }
            }
        });
        self.circuits.retain(|circuit| {
            let over = circuit.source.1 == key || circuit.destination.1 == key;
            if over {
                effects.insert(format!("cut {}", circuit.id));
            }
            !over
        });
        effects
    }

    pub fn reserve(&mut self, number: u8, key: u64, now: Instant) -> Result<bool, &'static str> {
        let place = self.open_to(key)?;
        self.admitted(self.access(Operation::Reserve, number, Some(place)))?;
        self.sweep(now);
        let as_member = self.asks(Operation::Reserve) && self.members.live.contains(&number);
        let guest = self.is_guest(number, place, as_member);
        let guests = self.reservations.iter().filter(|held| held.guest);
        if guest && guests.filter(|held| held.peer != number).count() >= MAX_GUESTS as usize {
            return Err("guests_full");
        }
        let resources = &self.file.settings.resources;
        let most = if guest { GUEST_TTL } else { Duration::MAX };
        let expires = now + resources.reservation_ttl.min(most);
        if let Some(held) = self
            .reservations
            .iter_mut()
            .find(|held| held.peer == number)
        {
            held.expires = expires;
            held.connection = key;
            held.place = place;
            held.as_member = as_member;
            held.guest = guest;
            return Ok(true);
        }
        if self.reservations.len() >= resources.max_reservations as usize {
            return Err("node_full");
        }
        let prefix = prefix(place);
        let there = self
            .reservations
            .iter()
            .filter(|held| held.prefix == prefix);
        if there.count() >= resources.max_reservations_per_ip as usize {
            return Err("address_full");
        }
        self.reservations.push(Held {
            peer: number,
            expires,
            connection: key,
            place,
            as_member,
            guest,
            prefix,
        });
        Ok(false)
    }

    pub fn connect(
        &mut self,
        number: u8,
        key: u64,
        to: u8,
        now: Instant,
    ) -> Result<(u64, u64), &'static str> {
        let place = self.open_to(key)?;
        if number == to {
            return Err("to_itself");
        }
        let held = self.reservations.iter().find(|held| held.peer == to);
        let held = held.filter(|held| held.expires > now).cloned();
        self.admitted(self.access(Operation::Connect, number, Some(place)))?;
        let there = held.as_ref().map(|held| held.place);
        self.admitted(
            self.access(Operation::Connect, to, there)
                || self.access(Operation::Reserve, to, there),
        )?;
        let held = held.ok_or("no_reservation")?;
        self.room(number, to)?;
        let id = self.next;
        self.next += 1;
        self.circuits.push(Circuit {
            id,
            source: (number, key, place),
            destination: (to, held.connection, held.place),
            source_as_member: self.asks(Operation::Connect) && self.members.live.contains(&number),
            destination_as_member: held.as_member,
            established: false,
        });
        Ok((id, held.connection))
    }

    pub fn established(&mut self, id: u64) -> Result<(), &'static str> {
        let circuit = self.circuits.iter().find(|circuit| circuit.id == id);
        let circuit = circuit.expect("the test asks for known ones").clone();
        if circuit.established {
            return Ok(());
        }
        let room = self.room(circuit.source.0, circuit.destination.0);
        if room.is_err() {
            self.closed(id);
        }
        for circuit in &mut self.circuits {
            circuit.established |= circuit.id == id;
        }
        room
    }

    pub fn closed(&mut self, id: u64) {
        self.circuits.retain(|circuit| circuit.id != id);
    }

    pub fn sweep(&mut self, now: Instant) -> BTreeSet<String> {
        let expired = self.reservations.iter().filter(|held| held.expires <= now);
        let expired = expired.map(|held| format!("end {}", peer(held.peer)));
        let expired = expired.collect();
        self.reservations.retain(|held| held.expires > now);
        expired
    }

    pub fn set_file(&mut self, new: File) -> BTreeSet<String> {
        let lost = |operation, number, place, as_member| {
            let standing = self.members.at_best(number, as_member);
            let passes = |file: &File| {
                file.access.mode == Mode::Shadow
                    || file.access.admits(operation, number, Some(place), standing)
            };
            passes(&self.file) && !passes(&new)
        };
        let mut ended = BTreeSet::new();
        let mut cut = BTreeSet::new();
        let mut hurt = BTreeSet::new();
        for held in &self.reservations {
            if lost(Operation::Reserve, held.peer, held.place, held.as_member) {
                ended.insert(held.peer);
                hurt.insert(held.peer);
            }
        }
        for circuit in &self.circuits {
            let (source, destination) = (circuit.source, circuit.destination);
            let source_lost = lost(
                Operation::Connect,
                source.0,
                source.2,
                circuit.source_as_member,
            );
            let destination_lost = lost(
                Operation::Reserve,
                destination.0,
                destination.2,
                circuit.destination_as_member,
            );
            if source_lost {
                hurt.insert(source.0);
            }
            if destination_lost {
                hurt.insert(destination.0);
            }
            let end_lost = ended.contains(&source.0) || ended.contains(&destination.0);
            if source_lost || destination_lost || end_lost {
                cut.insert(circuit.id);
            }
        }
        let evict = new.settings.on_shrink == OnShrink::Evict;
        self.file = new;
        if !self.file.settings.service {
            ended.extend(self.reservations.iter().map(|held| held.peer));
            let ends = self
                .circuits
                .iter()
                .filter(|circuit| evict || !circuit.established);
            cut.extend(ends.map(|circuit| circuit.id));
        } else if evict {
            self.evict(&mut ended, &mut cut, &mut hurt);
        }
        let effects = self.end(ended, cut, hurt);
        let asks = self.asks(Operation::Reserve);
        for at in 0..self.reservations.len() {
            let mut held = self.reservations[at].clone();
            held.as_member |= asks && self.members.live.contains(&held.peer);
            held.guest = self.is_guest(held.peer, held.place, held.as_member);
            self.reservations[at] = held;
        }
        effects
    }

    pub fn set_members(&mut self, new: Members) -> BTreeSet<String> {
        let old = std::mem::replace(&mut self.members, new);
        let (mut ended, mut cut, mut hurt) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let access = &self.file.access;
        let closed = old.open && !self.members.open;
        let revoked = |operation, number, place, as_member| {
            let admits = |standing| access.admits(operation, number, Some(place), standing);
            let by_window = admits(Standing::Guest) && !admits(Standing::Stranger);
            closed && by_window && !admits(self.members.at_best(number, as_member))
        };
        if access.mode == Mode::Enforce {
            for held in &self.reservations {
                let left = self.members.withdrawn.contains(&held.peer)
                    && !old.withdrawn.contains(&held.peer)
                    && !self.access(Operation::Reserve, held.peer, Some(held.place));
                if left || revoked(Operation::Reserve, held.peer, held.place, held.as_member) {
                    ended.insert(held.peer);
                    hurt.insert(held.peer);
                }
            }
            for circuit in &self.circuits {
                let (source, destination) = (circuit.source, circuit.destination);
                for (operation, end, as_member) in [
                    (Operation::Connect, source, circuit.source_as_member),
                    (
                        Operation::Reserve,
                        destination,
                        circuit.destination_as_member,
                    ),
                ] {
                    if revoked(operation, end.0, end.2, as_member) {
                        cut.insert(circuit.id);
                        hurt.insert(end.0);
                    }
                }
            }
        }
        let effects = self.end(ended, cut, hurt);
        for held in &mut self.reservations {
            if held.guest && self.members.live.contains(&held.peer) {
                held.guest = false;
                held.as_member = true;
            }
        }
        effects
    }

    pub fn members(&self) -> &Members {
        &self.members
    }

    pub fn guests(&self) -> usize {
        self.reservations.iter().filter(|held| held.guest).count()
    }

    fn end(
        &mut self,
        ended: BTreeSet<u8>,
        cut: BTreeSet<u64>,
        hurt: BTreeSet<u8>,
    ) -> BTreeSet<String> {
        self.reservations.retain(|held| !ended.contains(&held.peer));
        self.circuits.retain(|circuit| !cut.contains(&circuit.id));
        let closed = hurt.into_iter().filter(|number| {
            let reserved = self.reservations.iter().any(|held| held.peer == *number);
            !reserved && !self.circuits.iter().any(|circuit| circuit.has(*number))
        });
        let closed: Vec<String> = closed
            .map(|number| format!("close {}", peer(number)))
            .collect();
        let ended = ended
            .into_iter()
            .map(|number| format!("end {}", peer(number)));
        let cut = cut.into_iter().map(|id| format!("cut {id}"));
        ended.chain(cut).chain(closed).collect()
    }

    /// Keeps the oldest that fit.
    fn evict(&self, ended: &mut BTreeSet<u8>, cut: &mut BTreeSet<u64>, hurt: &mut BTreeSet<u8>) {
        let resources = &self.file.settings.resources;
        let mut kept: Vec<&Held> = Vec::new();
        for held in &self.reservations {
            if ended.contains(&held.peer) {
                continue;
            }
            let there = kept
                .iter()
                .filter(|other| other.prefix == held.prefix)
                .count();
            if kept.len() < resources.max_reservations as usize
                && there < resources.max_reservations_per_ip as usize
            {
                kept.push(held);
            } else {
                ended.insert(held.peer);
                hurt.insert(held.peer);
            }
        }
        let mut kept: Vec<&Circuit> = Vec::new();
        for circuit in self.circuits.iter().filter(|circuit| circuit.established) {
            if cut.contains(&circuit.id) {
                continue;
            }
            let of = |number| kept.iter().filter(|other| other.has(number)).count();
            let most = resources.max_circuits as usize;
            if kept.len() < resources.max_circuits_total as usize
                && of(circuit.source.0) < most
                && of(circuit.destination.0) < most
            {
                kept.push(circuit);
            } else {
                cut.insert(circuit.id);
            }
        }
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    pub fn evicts(&self) -> bool {
        self.file.settings.on_shrink == OnShrink::Evict && self.file.settings.service
    }

    pub fn assert_caps_hold(&self) {
        self.assert_nothing_grew_beyond_its_cap(&Load {
            circuits: 0,
            handshakes: 0,
            reservations: 0,
            by_prefix: Vec::new(),
            by_peer: vec![0; usize::from(PEERS)],
        });
    }

    /// A cap holds, or what was above it before has not become more.
    pub fn assert_nothing_grew_beyond_its_cap(&self, before: &Load) {
        let (now, resources) = (self.load(), &self.file.settings.resources);
        let holds = |has: usize, had: usize, cap: u32| has <= had.max(cap as usize);
        assert!(holds(
            now.circuits,
            before.circuits,
            resources.max_circuits_total
        ));
        assert!(holds(
            now.reservations,
            before.reservations,
            resources.max_reservations
        ));
        for (has, had) in now.by_peer.iter().zip(&before.by_peer) {
            assert!(holds(*has, *had, resources.max_circuits));
        }
        for (prefix, has) in &now.by_prefix {
            let had = before.by_prefix.iter().find(|(other, _)| other == prefix);
            let had = had.map_or(0, |(_, had)| *had);
            assert!(holds(*has, had, resources.max_reservations_per_ip));
        }
    }

    pub fn load(&self) -> Load {
        let established = |circuit: &&Circuit| circuit.established;
        let prefixes: BTreeSet<_> = self.reservations.iter().map(|held| &held.prefix).collect();
        let there = |prefix: &String| {
            self.reservations
                .iter()
                .filter(|held| held.prefix == *prefix)
                .count()
        };
        Load {
            circuits: self.circuits.iter().filter(established).count(),
            handshakes: self
                .circuits
                .iter()
                .filter(|circuit| !circuit.established)
                .count(),
            reservations: self.reservations.len(),
            by_prefix: prefixes
                .into_iter()
                .map(|prefix| (prefix.clone(), there(prefix)))
                .collect(),
            by_peer: (0..PEERS).map(|number| self.circuits_of(number)).collect(),
        }
    }

    pub fn holds(&self, number: u8, now: Instant) -> bool {
        let mut held = self.reservations.iter();
        held.any(|held| held.peer == number && held.expires > now)
    }

    /// The connection at a position, counted around.
    pub fn connection(&self, at: usize) -> Option<(u8, u64)> {
        let at = at.checked_rem(self.connections.len())?;
        self.connections
            .get(at)
            .map(|(number, key, _)| (*number, *key))
    }

    pub fn circuit(&self, at: usize) -> Option<u64> {
        let at = at.checked_rem(self.circuits.len())?;
        self.circuits.get(at).map(|circuit| circuit.id)
    }

    fn room(&self, source: u8, destination: u8) -> Result<(), &'static str> {
        let resources = &self.file.settings.resources;
        let all = self
            .circuits
            .iter()
            .filter(|circuit| circuit.established)
            .count();
        if all >= resources.max_circuits_total as usize {
            return Err("circuits_full");
        }
        if self.circuits_of(source) >= resources.max_circuits as usize {
            return Err("source_full");
        }
        if self.circuits_of(destination) >= resources.max_circuits as usize {
            return Err("destination_full");
        }
        Ok(())
    }

    fn circuits_of(&self, number: u8) -> usize {
        let established = self.circuits.iter().filter(|circuit| circuit.established);
        established.filter(|circuit| circuit.has(number)).count()
    }

    fn open_to(&self, key: u64) -> Result<IpAddr, &'static str> {
        let known = self.connections.iter().find(|(_, known, _)| *known == key);
        let place = known.ok_or("gone")?.2.ok_or("relayed")?;
        if !self.file.settings.service {
            return Err("service_off");
        }
        Ok(place)
    }

    fn access(&self, operation: Operation, number: u8, place: Option<IpAddr>) -> bool {
        let standing = self.members.standing(number);
        self.file.access.admits(operation, number, place, standing)
    }

    /// Whether the file asks for members.
    fn asks(&self, operation: Operation) -> bool {
        self.file.access.audience(operation) == Audience::Members
    }

    /// Whether it holds its reservation because the window is open, and for nothing else.
    fn is_guest(&self, number: u8, place: IpAddr, as_member: bool) -> bool {
        let access = &self.file.access;
        let admits = |standing| access.admits(Operation::Reserve, number, Some(place), standing);
        let standing = self.members.at_best(number, as_member);
        access.mode == Mode::Enforce
            && standing == Standing::Guest
            && admits(Standing::Guest)
            && !admits(Standing::Stranger)
    }

    fn admitted(&self, admits: bool) -> Result<(), &'static str> {
        if admits || self.file.access.mode == Mode::Shadow {
            Ok(())
        } else {
            Err("denied")
        }
    }

    fn direct(&self, number: u8) -> Option<(u64, IpAddr)> {
        let mut newest_first = self.connections.iter().rev();
        newest_first
            .find_map(|(peer, key, place)| Some((*key, (*place)?)).filter(|_| *peer == number))
    }
}

impl Members {
    pub fn standing(&self, number: u8) -> Standing {
        if self.live.contains(&number) {
            Standing::Member
        } else if self.open {
            Standing::Guest
        } else {
            Standing::Stranger
        }
    }

    /// A member that flickers is one to a change of the file.
    fn at_best(&self, number: u8, as_member: bool) -> Standing {
        if as_member {
            Standing::Member
        } else {
            self.standing(number)
        }
    }
}

impl Circuit {
    fn has(&self, number: u8) -> bool {
        self.source.0 == number || self.destination.0 == number
    }
}

fn prefix(place: IpAddr) -> String {
    match place {
        IpAddr::V4(place) => place.to_string(),
        IpAddr::V6(place) => {
            let half = place.segments().map(|part| format!("{part:x}"));
            half[..4].join(":")
        }
    }
}

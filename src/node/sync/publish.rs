//! Who is a member, published as soon as it changes and no oftener than makes sense.
#![allow(clippy::disallowed_methods, reason = "paces what is published")]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    pump::{Pump, later},
    schedule::Due,
};
use crate::{
    acl::{Membership, Window},
    id::PeerId,
};

/// Membership is published at most this often; within it changes count as one.
const COALESCE: Duration = Duration::from_millis(50);

/// What was published last.
pub struct Published {
    at: Instant,
    /// Of the ledger.
    revision: u64,
    pub membership: Arc<Membership>,
}

impl Pump<'_> {
    /// Publishes who is a member, if that has changed and not just been published.
    pub(super) async fn publish(&mut self) {
        let now = Instant::now();
        let Some(joined) = &mut self.joined else {
            return;
        };
        let Some(book) = &joined.book else { return };
        let revision = book.ledger().membership_revision();
        if let Some(last) = &self.published {
            let age = now.saturating_duration_since(last.at);
            if revision == last.revision && age < self.config.access.refresh {
                self.close_window(now);
                return;
            }
            if age < COALESCE {
                joined.schedule.advance(Due::Publish, later(COALESCE));
                return;
            }
        }
        self.publish_members(revision, now).await;
    }

    /// The window runs out while nothing else happens.
    fn close_window(&mut self, now: Instant) {
        let Some(last) = &mut self.published else {
            return;
        };
        let known = !last.membership.members.is_empty();
        let bootstrap = self.config.access.bootstrap;
        let window = self.bootstrap.look(known, bootstrap, now);
        if last.membership.window != window {
            last.membership = Arc::new(Membership {
                window,
                ..Membership::clone(&last.membership)
            });
            self.inputs.members.send_replace(last.membership.clone());
        }
    }

    /// Publishes who has which address. Members that lapse take their addresses along.
    pub(super) fn publish_machines(&mut self) {
        if !self.config.vpn.enabled || !std::mem::take(&mut self.machines_stale) {
            return;
        }
        let now = self.now();
        let book = self.joined.as_ref().and_then(|joined| joined.book.as_ref());
        let machines = book.map(|book| book.machines(now)).unwrap_or_default();
        self.inputs.machines.send_if_modified(|published| {
            let changed = **published != machines;
            if changed {
                *published = Arc::new(machines);
            }
            changed
        });
    }

    async fn publish_members(&mut self, revision: u64, at: Instant) {
        let now = self.now();
        let book = self.joined.as_ref().and_then(|joined| joined.book.as_ref());
        let Some(book) = book else { return };
        let mut membership = book.membership(Window::Closed, now);
        self.machines_stale = true;
        let known = !membership.members.is_empty();
        let bootstrap = self.config.access.bootstrap;
        membership.window = self.bootstrap.look(known, bootstrap, at);
        let before = self.membership();
        let is_new =
            |peer: &&PeerId| before.is_none_or(|before| !before.members.contains_key(peer));
        // Where those who have become members can be dialled; others tell when that changes.
        let addresses: Vec<_> = membership
            .members
            .keys()
            .filter(is_new)
            .filter_map(|peer| Some((*peer, book.ledger().node(peer)?.addresses)))
            .collect();
        let membership = Arc::new(membership);
        self.inputs.members.send_replace(membership.clone());
        self.published = Some(Published {
            at,
            revision,
            membership,
        });
        if !addresses.is_empty() {
            self.inputs.net.learnt(addresses).await;
        }
    }

    pub(super) fn membership(&self) -> Option<&Membership> {
        Some(&self.published.as_ref()?.membership)
    }
}

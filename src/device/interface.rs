//! Addresses, MTU and routes of a device, by netlink: new ones are added before old ones go, and undone on an error.

use std::{io, net::IpAddr};

use futures::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::{
    Handle, LinkUnspec, RouteMessageBuilder,
    packet_route::{
        address::{AddressAttribute, AddressMessage},
        route::{RouteMessage, RouteScope},
    },
};

use crate::task::{self, Task};

/// The network side of a device that is open. What it set goes with the device.
pub struct Interface {
    name: String,
    index: u32,
    handle: Handle,
    set: Settings,
    _netlink: Task,
}

/// What an interface should have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Bytes; 0 leaves the kernel's.
    pub mtu: u32,
    pub addresses: Vec<IpNet>,
    /// Prefixes that are reached through it, beside those of the addresses.
    pub routes: Vec<IpNet>,
}

#[derive(Debug, thiserror::Error)]
pub enum InterfaceError {
    #[error("cannot speak netlink")]
    Netlink(#[from] io::Error),
    #[error("the interface {name} is not there")]
    Missing { name: String },
    #[error("cannot {what} on {name}: {cause}")]
    Refused {
        name: String,
        what: String,
        cause: rtnetlink::Error,
    },
}

impl Interface {
    /// Finds the interface of a device.
    pub async fn of(name: &str) -> Result<Self, InterfaceError> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let netlink = task::spawn("netlink", connection);
        let mut links = handle.link().get().match_name(name.to_owned()).execute();
        let missing = || InterfaceError::Missing {
            name: name.to_owned(),
        };
        // Then the kernel keeps them by itself. Where this cannot be written they are added again.
        let promote = format!("/proc/sys/net/ipv4/conf/{name}/promote_secondaries");
        let _ = tokio::fs::write(promote, "1").await;
        let link = links
            .try_next()
            .await
            .map_err(|_| missing())?
            .ok_or_else(missing)?;
        Ok(Self {
            name: name.to_owned(),
            index: link.header.index,
            handle: handle.clone(),
            set: Settings::default(),
            _netlink: netlink,
        })
    }

    pub fn settings(&self) -> &Settings {
        &self.set
    }

    /// Brings the interface up with these settings. On an error it has those it had.
    pub async fn change(&mut self, to: &Settings) -> Result<(), InterfaceError> {
        let from = self.set.clone();
        let changed = self.replace(to).await;
        if changed.is_err() {
            self.set = from.with(to);
            if let Err(error) = self.replace(&from).await {
                tracing::error!(interface = self.name, cause = %error, "cannot undo a failed change of the interface");
            }
            self.set = from;
        }
        changed
    }

    async fn replace(&mut self, to: &Settings) -> Result<(), InterfaceError> {
        let from = std::mem::take(&mut self.set);
        let mut link = LinkUnspec::new_with_index(self.index).up();
        if to.mtu != 0 {
            link = link.mtu(to.mtu);
        }
        self.carry_out(
            "set the MTU and bring it up",
            self.handle.link().set(link.build()).execute(),
        )
        .await?;
        for address in to
            .addresses
            .iter()
            .filter(|new| !from.addresses.contains(new))
        {
            let add = self
                .handle
                .address()
                .add(self.index, address.addr(), address.prefix_len());
            self.carry_out(
                &format!("add the address {address}"),
                add.replace().execute(),
            )
            .await?;
        }
        for route in to.routes.iter().filter(|new| !from.routes.contains(new)) {
            if let Some(message) = self.route(*route) {
                let add = self.handle.route().add(message);
                self.carry_out(&format!("add a route to {route}"), add.replace().execute())
                    .await?;
            }
        }
        for route in from.routes.iter().filter(|old| !to.routes.contains(old)) {
            if let Some(message) = self.route(*route) {
                // It may have gone with an address.
                let _ = self.handle.route().del(message).execute().await;
            }
        }
        for address in from
            .addresses
            .iter()
            .filter(|old| !to.addresses.contains(old))
        {
            for message in self.held(address.addr()).await {
                let _ = self.handle.address().del(message).execute().await;
            }
        }
        if from.addresses.iter().any(|old| !to.addresses.contains(old)) {
            self.restore(to).await?;
        }
        self.set = to.clone();
        Ok(())
    }

    /// With an address the kernel takes those that are secondary to it, and routes that lead out of it.
    async fn restore(&self, to: &Settings) -> Result<(), InterfaceError> {
        for address in &to.addresses {
            let add = self
                .handle
                .address()
                .add(self.index, address.addr(), address.prefix_len());
            self.carry_out(
                &format!("keep the address {address}"),
                add.replace().execute(),
            )
            .await?;
        }
        for message in to.routes.iter().filter_map(|route| self.route(*route)) {
            let add = self.handle.route().add(message);
            self.carry_out("keep a route", add.replace().execute())
                .await?;
        }
        Ok(())
    }

    fn route(&self, to: IpNet) -> Option<RouteMessage> {
        let route = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(to.network(), to.prefix_len())
            .ok()?
            .output_interface(self.index)
            .scope(if to.addr().is_ipv4() {
                RouteScope::Link
            } else {
                RouteScope::Universe
            });
        Some(route.build())
    }

    /// The kernel's own record of an address, which is what it wants to be told to delete it.
    async fn held(&self, address: IpAddr) -> Vec<AddressMessage> {
        let all = self
            .handle
            .address()
            .get()
            .set_link_index_filter(self.index)
            .execute();
        let all: Vec<AddressMessage> = all.try_collect().await.unwrap_or_default();
        let is_it = |attribute: &AddressAttribute| matches!(attribute, AddressAttribute::Address(held) if *held == address);
        all.into_iter()
            .filter(|message| message.attributes.iter().any(is_it))
            .collect()
    }

    async fn carry_out(
        &self,
        what: &str,
        request: impl Future<Output = Result<(), rtnetlink::Error>>,
    ) -> Result<(), InterfaceError> {
        request.await.map_err(|cause| InterfaceError::Refused {
            name: self.name.clone(),
            what: what.to_owned(),
            cause,
        })
    }
}

/// Addresses of all interfaces of this machine, loopback left out.
pub async fn addresses() -> Result<Vec<IpAddr>, InterfaceError> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let _netlink = task::spawn("netlink", connection);
    let all = handle.address().get().execute();
    let all: Vec<AddressMessage> = all.try_collect().await.unwrap_or_default();
    let own = |message: AddressMessage| {
        // Of a point-to-point interface `Address` is the other side's; `Local` is always ours.
        let find = |wanted: fn(&AddressAttribute) -> Option<IpAddr>| {
            message.attributes.iter().find_map(wanted)
        };
        find(|attribute| match attribute {
            AddressAttribute::Local(address) => Some(*address),
            _ => None,
        })
        .or_else(|| {
            find(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            })
        })
    };
    let all = all.into_iter().filter_map(own);
    Ok(all.filter(|address| !address.is_loopback()).collect())
}

impl Settings {
    /// These and those of `more`, which decides on the MTU.
    pub fn with(&self, more: &Settings) -> Settings {
        Settings {
            mtu: more.mtu,
            addresses: both(&self.addresses, &more.addresses),
            routes: both(&self.routes, &more.routes),
        }
    }
}

fn both(one: &[IpNet], other: &[IpNet]) -> Vec<IpNet> {
    let more = other.iter().filter(|net| !one.contains(net));
    one.iter().chain(more).copied().collect()
}

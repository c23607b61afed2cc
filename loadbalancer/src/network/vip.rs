//! VIPs as addresses of an interface of the gateway.

use std::net::IpAddr;

use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};

use super::announce::announce;
use super::interface::NoInterface;
use super::netlink::{Network, NetworkError, address};
use super::table::Link;

/// VIPs that interfaces have.
#[derive(Debug, Default)]
pub struct AssignedVips(Vec<(String, IpAddr)>);

impl AssignedVips {
    /// Gives VIPs to an interface and announces them. What cannot be announced is logged.
    ///
    /// # Errors
    /// The kernel refuses one.
    pub async fn assign(
        network: &Network,
        link: &Link,
        vips: impl IntoIterator<Item = IpAddr>,
    ) -> Result<Self, NetworkError> {
        let mut assigned = Self::default();
        let interface = &link.name;
        for vip in vips {
            if network.assign(interface, vip).await? {
                tracing::info!(%vip, %interface, "VIP assigned");
            }
            assigned.0.push((interface.clone(), vip));
            // Also when it was there already: whoever had it before may still get its traffic.
            if let Some(mac) = link.mac
                && let Err(error) = announce(link.index, mac, vip)
            {
                tracing::warn!(%vip, %error, "the VIP could not be announced");
            }
        }
        Ok(assigned)
    }

    /// Takes from their interfaces those that are not among what is assigned now. What goes wrong is logged, and is among
    /// those that are given back.
    pub async fn replace_with(self, mut now: Self, network: &Network) -> Self {
        let gone: Vec<_> = self.0.into_iter().filter(|old| !now.0.contains(old)).collect();
        for (interface, vip) in gone {
            match network.unassign(&interface, vip).await {
                Ok(_) => tracing::info!(%vip, %interface, "VIP removed"),
                Err(error) => {
                    tracing::error!(%vip, %interface, %error, "cannot remove the VIP");
                    now.0.push((interface, vip));
                }
            }
        }
        now
    }

    /// Takes all from their interfaces.
    ///
    /// # Errors
    /// The kernel refuses one.
    pub async fn remove(&self, network: &Network) -> Result<(), NetworkError> {
        for (interface, vip) in &self.0 {
            network.unassign(interface, *vip).await?;
        }
        Ok(())
    }
}

impl Network {
    /// Gives an interface an address. False if it has it already.
    ///
    /// # Errors
    /// There is no such interface, or the kernel refuses.
    pub async fn assign(&self, interface: &str, vip: IpAddr) -> Result<bool, NetworkError> {
        let link = self.table.link_named(interface).ok_or_else(|| NoInterface(interface.to_owned()))?;
        if self.addresses().await?.contains(&(link.index, vip)) {
            return Ok(false);
        }
        let mut request = self.handle.address().add(link.index, vip, if vip.is_ipv4() { 32 } else { 128 });
        if vip.is_ipv6() {
            // A VIP may be on several gateways on purpose, and must serve at once.
            request.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        let action = format!("give {vip} to {interface}");
        request.execute().await.map_err(|source| NetworkError::Netlink { action, source })?;
        Ok(true)
    }

    /// Takes an address from an interface. False if it does not have it.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn unassign(&self, interface: &str, vip: IpAddr) -> Result<bool, NetworkError> {
        let Some(link) = self.table.link_named(interface) else {
            return Ok(false);
        };
        for message in self.list_addresses().await? {
            if message.header.index == link.index && address(&message) == Some(vip) {
                let action = format!("take {vip} from {interface}");
                let failed = |source| NetworkError::Netlink { action, source };
                self.handle.address().del(message).execute().await.map_err(failed)?;
                return Ok(true);
            }
        }
        Ok(false)
    }
}

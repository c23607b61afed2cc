//! Policy routing for probes over channels: per channel a table with one route, and a rule that sends marked packets there.
//!
//! The packet path needs none of this; it bears the way in its prebuilt headers. But probes are sent through the kernel,
//! which has to take the same way.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use rtnetlink::packet_route::route::{RouteMessage, RouteProtocol};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{IpVersion, RouteMessageBuilder};

use super::netlink::{Network, NetworkError};

/// What rules and routes of this program say that they are from (`proto` in `ip rule`); others use numbers up to 42 and
/// 186 to 192 (linux/rtnetlink.h).
const PROTOCOL: RouteProtocol = RouteProtocol::Other(76);
/// Before the rule of the main table, which has 32,766.
const PRIORITY: u32 = 76;
/// Marks from the first one on that belong to a gateway.
const MARKS: u32 = 64;

/// The way of packets with a mark. The table has the number of the mark.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PolicyRoute {
    pub mark: u32,
    pub interface: String,
    pub router: IpAddr,
    pub source: Option<IpAddr>,
}

impl Network {
    /// Installs these rules and routes and removes others with marks from `first` on, also those that an earlier process
    /// has left. What is there already stays undisturbed.
    ///
    /// # Errors
    /// Of rules that cannot be read or changed. A route whose interface is down is left out: it comes with the next call.
    pub async fn set_policy_routes(&self, first: u32, wanted: &[PolicyRoute]) -> Result<(), NetworkError> {
        let mut missing: BTreeSet<(u32, bool)> =
            wanted.iter().map(|route| (route.mark, route.router.is_ipv6())).collect();
        for (mark, is_v6, rule) in self.policy_rules().await? {
            if (first..first.saturating_add(MARKS)).contains(&mark) && !missing.remove(&(mark, is_v6)) {
                self.remove_rule(mark, is_v6, rule).await?;
            }
        }
        for (mark, is_v6) in missing {
            let add = self.handle.rule().add().fw_mark(mark).table_id(mark).priority(PRIORITY);
            let mut add = add.action(RuleAction::ToTable);
            add.message_mut().attributes.push(RuleAttribute::Protocol(PROTOCOL));
            let result = if is_v6 { add.v6().execute().await } else { add.v4().execute().await };
            result.map_err(failed("add a rule for a channel"))?;
        }
        for route in wanted {
            let Some(link) = self.table.link_named(&route.interface).filter(|link| link.is_up) else { continue };
            let message = message(route, link.index);
            if let Err(error) = self.handle.route().add(message).replace().execute().await {
                tracing::warn!(
                    interface = %route.interface, next_hop = %route.router, %error,
                    "the way of a channel's probes cannot be set; is the next hop on that interface's segment?"
                );
            }
        }
        Ok(())
    }

    /// Removes all rules and routes of this program, whatever process installed them.
    ///
    /// # Errors
    /// Rules cannot be read or removed.
    pub async fn remove_policy_routes(&self) -> Result<(), NetworkError> {
        for (mark, is_v6, rule) in self.policy_rules().await? {
            self.remove_rule(mark, is_v6, rule).await?;
        }
        Ok(())
    }

    async fn remove_rule(&self, mark: u32, is_v6: bool, rule: RuleMessage) -> Result<(), NetworkError> {
        self.handle.rule().del(rule).execute().await.map_err(failed("remove a rule of a channel"))?;
        let route = if is_v6 {
            RouteMessageBuilder::<Ipv6Addr>::new().table_id(mark).protocol(PROTOCOL).build()
        } else {
            RouteMessageBuilder::<Ipv4Addr>::new().table_id(mark).protocol(PROTOCOL).build()
        };
        // It may have gone with its interface.
        if let Err(error) = self.handle.route().del(route).execute().await {
            tracing::debug!(table = mark, %error, "no route of a channel to remove");
        }
        Ok(())
    }

    /// The rules of this program: mark, family, and the rule itself.
    async fn policy_rules(&self) -> Result<Vec<(u32, bool, RuleMessage)>, NetworkError> {
        let _listing = self.listing.lock().await;
        let mut found = Vec::new();
        for (version, is_v6) in [(IpVersion::V4, false), (IpVersion::V6, true)] {
            let rules: Vec<RuleMessage> =
                self.handle.rule().get(version).execute().try_collect().await.map_err(failed("list routing rules"))?;
            for rule in rules {
                let ours = rule.attributes.contains(&RuleAttribute::Protocol(PROTOCOL));
                let mark = rule.attributes.iter().find_map(|attribute| match attribute {
                    RuleAttribute::FwMark(mark) => Some(*mark),
                    _ => None,
                });
                if let Some(mark) = mark.filter(|_| ours) {
                    found.push((mark, is_v6, rule));
                }
            }
        }
        Ok(found)
    }
}

fn failed(action: &str) -> impl FnOnce(rtnetlink::Error) -> NetworkError {
    let action = action.to_owned();
    move |source| NetworkError::Netlink { action, source }
}

fn message(route: &PolicyRoute, interface: u32) -> RouteMessage {
    match (route.router, route.source) {
        (IpAddr::V4(router), source) => {
            let builder = RouteMessageBuilder::<Ipv4Addr>::new()
                .table_id(route.mark)
                .protocol(PROTOCOL)
                .output_interface(interface)
                .gateway(router);
            match source {
                Some(IpAddr::V4(source)) => builder.pref_source(source).build(),
                _ => builder.build(),
            }
        }
        (IpAddr::V6(router), source) => {
            let builder = RouteMessageBuilder::<Ipv6Addr>::new()
                .table_id(route.mark)
                .protocol(PROTOCOL)
                .output_interface(interface)
                .gateway(router);
            match source {
                Some(IpAddr::V6(source)) => builder.pref_source(source).build(),
                _ => builder.build(),
            }
        }
    }
}

//! The namespace lab: hosts and links on one machine, each host in a network namespace of its own: clients, one gateway,
//! servers.
//!
//! All traffic stays inside namespaces that the lab makes and removes. Needs root, and `ip` (Debian: iproute2).
//!
//! Clients and servers have default routes to the gateway, so virtual addresses, which belong to no link, lead there
//! too. The gateway's kernel forwards what no XDP program takes: the replies of DSR servers, for one.

pub mod plan;
pub mod channel;
pub mod relay;
pub mod impair;
pub mod host;
pub mod events;
pub mod run;
pub mod netns;
pub mod runtime;
pub mod priority;
pub mod offload;
pub mod xdp;
pub mod gateway;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use thiserror::Error;

use channel::Channel;
use host::{End, Host};
use netns::{Namespace, NetnsError, ip_on_host};
use offload::OffloadError;
use plan::{
    GATEWAY, GatewayLink, LabConfig, MAX_CHANNELS, MAX_HOSTS, MAX_MTU, MIN_MTU, Plan, RELAY, ROUTER, Role, SWITCH, Wire,
};
use relay::{Relay, RelayError};
use run::{Run, RunError};
use xdp::{XdpError, XdpLink, attach_xdp_pass};

#[derive(Debug, Error)]
pub enum LabError {
    #[error("{clients} clients and {servers} servers asked for; the lab takes 1 to {MAX_HOSTS} of each")]
    HostCount { clients: u8, servers: u8 },
    #[error("an MTU of {0} bytes asked for; the lab takes {MIN_MTU} to {MAX_MTU}")]
    Mtu(u16),
    #[error("{0} channels asked for; the lab takes up to {MAX_CHANNELS}")]
    ChannelCount(u8),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    Namespace(#[from] NetnsError),
    #[error(transparent)]
    Offload(#[from] OffloadError),
    #[error(transparent)]
    Xdp(#[from] XdpError),
    #[error(transparent)]
    Relay(#[from] RelayError),
}

#[derive(Debug)]
pub struct Gateway {
    pub namespace: Namespace,
    /// In a routed lab to each client, then to each server or, if there are channels, over each of these, and the return
    /// link. In a segment over each channel, then the link to the segment.
    pub links: Vec<GatewayLink>,
}

/// The hosts, up and connected. Dropping it removes everything. What runs in it goes first: servers, loads, runtimes.
#[derive(Debug)]
pub struct Lab {
    pub clients: Vec<Host>,
    pub gateway: Gateway,
    pub servers: Vec<Host>,
    pub channels: Vec<Channel>,
    /// The switch's program for frames that the gateway sends from XDP.
    _switch_port: Option<XdpLink>,
    run: Run,
}

/// Virtual IPv4 address number `n`, from a documentation range (RFC 5737).
pub const fn vip4(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, n)
}

/// Virtual IPv6 address number `n`, from the documentation range (RFC 3849).
pub const fn vip6(n: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0x77, 0, 0, 0, 0, n as u16)
}

impl Lab {
    /// Removes what crashed labs left, then brings up a new one.
    pub fn up(config: &LabConfig) -> Result<Self, LabError> {
        check(config)?;
        let plan = Plan::new(config);
        let run = Run::start()?;
        let names = plan.namespaces();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let namespaces: BTreeMap<&str, Namespace> = names.iter().copied().zip(run.add_namespaces(&names)?).collect();
        for (name, namespace) in &namespaces {
            namespace.sysctl(kernel_parameters(name))?;
        }
        let full_name = |host: &str| namespaces[host].name().to_owned();
        ip_on_host(&plan.wires.iter().flat_map(|wire| wire.lines(full_name)).collect::<Vec<_>>())?;
        for device in plan.gateway_neighbours() {
            namespaces[GATEWAY].sysctl(&[(&format!("ipv4/conf/{device}/arp_ignore"), "1")])?;
        }
        // Both ends of every link must be up before routes over it are set: the centre goes first.
        if let Some(relay) = namespaces.get(RELAY) {
            relay.ip(&plan.relay_lines())?;
        }
        if let Some(switch) = namespaces.get(SWITCH) {
            switch.ip(&plan.switch_lines())?;
        }
        namespaces[GATEWAY].ip(&plan.gateway_lines())?;
        if let Some(router) = namespaces.get(ROUTER) {
            router.ip(&plan.router_lines())?;
        }
        for host in &plan.hosts {
            namespaces[host.name.as_str()].ip(&plan.host_lines(host))?;
        }
        for (name, namespace) in &namespaces {
            let devices = plan.devices(name);
            offload::switch_off(namespace, &devices.iter().map(String::as_str).collect::<Vec<_>>())?;
        }
        let switch_port = namespaces.get(SWITCH).map(|switch| attach_xdp_pass(switch, GATEWAY)).transpose()?;

        let ends = |wire: &Wire| {
            wire.ends.clone().map(|(host, device)| End { namespace: namespaces[host.as_str()].clone(), device })
        };
        let relay = |index: usize| -> Result<Option<Relay>, RelayError> {
            let devices = plan.wires[index].relay_devices();
            devices.map(|devices| Relay::start(&namespaces[RELAY], &devices, index as u64)).transpose()
        };
        let mut clients = Vec::new();
        let mut servers = Vec::new();
        for (index, planned) in plan.hosts.iter().enumerate() {
            let host = Host::new(planned, ends(&plan.wires[index]), relay(index)?)?;
            match planned.role {
                Role::Client => clients.push(host),
                Role::Server => servers.push(host),
            }
        }
        let mut channels = Vec::new();
        for (number, planned) in plan.channels.iter().enumerate() {
            let index = plan.hosts.len() + number;
            let relay = relay(index)?.expect("every channel is planned with one");
            channels.push(Channel::new(planned, ends(&plan.wires[index]), relay, plan.channel_routes(number)));
        }
        let gateway = Gateway { namespace: namespaces[GATEWAY].clone(), links: plan.gateway_links.clone() };
        Ok(Self { clients, gateway, servers, channels, _switch_port: switch_port, run })
    }

    pub fn run(&self) -> &Run {
        &self.run
    }

    pub fn hosts(&self) -> impl Iterator<Item = &Host> {
        self.clients.iter().chain(&self.servers)
    }

    /// Gives every server a virtual address, as DSR needs it.
    pub fn add_vip_to_servers(&self, vip: IpAddr) -> Result<(), NetnsError> {
        self.servers.iter().try_for_each(|server| server.add_vip(vip))
    }
}

fn check(config: &LabConfig) -> Result<(), LabError> {
    let LabConfig { clients, servers, client_mtu, server_mtu, channels, .. } = *config;
    if ![clients, servers].iter().all(|count| (1..=MAX_HOSTS).contains(count)) {
        return Err(LabError::HostCount { clients, servers });
    }
    if channels > MAX_CHANNELS {
        return Err(LabError::ChannelCount(channels));
    }
    match [client_mtu, server_mtu].into_iter().find(|mtu| !(MIN_MTU..=MAX_MTU).contains(mtu)) {
        Some(mtu) => Err(LabError::Mtu(mtu)),
        None => Ok(()),
    }
}

/// Parameters below `/proc/sys/net`, set before a host has interfaces, which inherit them.
fn kernel_parameters(host: &str) -> &'static [(&'static str, &'static str)] {
    match host {
        GATEWAY | ROUTER => &[
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
            // In a segment the kernel would tell servers of the shorter way.
            ("ipv4/conf/all/send_redirects", "0"),
            ("ipv4/conf/default/send_redirects", "0"),
            // An address must not disappear with a link that goes down and comes back.
            ("ipv6/conf/default/keep_addr_on_down", "1"),
            ("ipv6/conf/default/accept_dad", "0"),
        ],
        SWITCH | RELAY => &[("ipv6/conf/default/disable_ipv6", "1")],
        _ => &[
            // A virtual address on the loopback interface must not be answered for (DSR), nor be used to ask.
            ("ipv4/conf/all/arp_ignore", "1"),
            ("ipv4/conf/all/arp_announce", "2"),
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
            // A changed MAC address is announced.
            ("ipv4/conf/default/arp_notify", "1"),
            ("ipv6/conf/default/ndisc_notify", "1"),
            ("ipv6/conf/default/keep_addr_on_down", "1"),
            ("ipv6/conf/default/accept_dad", "0"),
            // Load clients open more connections than the default range has room for.
            ("ipv4/ip_local_port_range", "10000 65000"),
            // And than it has in the minute for which a closed one is remembered.
            ("ipv4/tcp_tw_reuse", "1"),
        ],
    }
}

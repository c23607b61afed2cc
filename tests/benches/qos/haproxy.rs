//! HAProxy on the gateway of a lab, to compare with.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use loadbalancer_tests::lab::events::wait_until;
use loadbalancer_tests::traffic::client::{Query, fetch};

use super::world::{PATIENCE, Site, vip};
use crate::system::{Process, start};

/// Starts it on the first VIP, as a TCP proxy with checks as those of our gateway, and waits until it answers.
pub fn up(site: &Site, balance: &str) -> Result<Process> {
    up_with(site, balance, "", "timeout connect 5s")
}

/// The same with more for each server, and with other defaults.
pub fn up_with(site: &Site, balance: &str, server: &str, defaults: &str) -> Result<Process> {
    let namespace = &site.lab.gateway.namespace;
    let vip = vip(1);
    namespace.ip(&[format!("addr add {vip}/32 dev lo")])?;
    let line = |(index, host): (usize, &loadbalancer_tests::lab::host::Host)| {
        format!(" server s{index} {}:80 check inter 100ms {server}\n", host.addresses.ipv4)
    };
    let servers: String = site.lab.servers.iter().enumerate().map(line).collect();
    let config = site.lab.run().directory().join("haproxy.cfg");
    let text = format!(
        "global\n maxconn 8000\n nbthread 1\ndefaults\n mode tcp\n {defaults}\n timeout client 30s\n timeout server 30s\n \
         timeout check 1s\nlisten bench\n bind {vip}:80\n balance {balance}\n option httpchk GET /\n{servers}"
    );
    fs::write(&config, text).with_context(|| format!("cannot write {}", config.display()))?;
    let process = start(namespace, "haproxy", &["-f", &config.display().to_string()])?;
    let client = site.lab.clients[0].namespace();
    let answers = || fetch(client, SocketAddr::new(vip, 80), &Query::get("/"), Duration::from_secs(1)).is_ok();
    wait_until("HAProxy answers", PATIENCE, answers)?;
    Ok(process)
}

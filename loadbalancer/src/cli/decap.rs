//! `loadbalancer decap`: runs on servers.

use std::net::IpAddr;

use anyhow::Result;
use clap::Args;
use loadbalancer::dataplane::attached_program::AttachMode;
use loadbalancer::dataplane::decap::Decap;
use loadbalancer::network::Network;
use tokio::signal::unix::{SignalKind, signal};

use super::common::{block_on, need_root};

#[derive(Args)]
pub struct DecapArgs {
    /// Interface on which packets from the gateway arrive
    #[arg(long, short)]
    interface: String,
    /// UDP port on which GUE packets arrive
    #[arg(long, default_value_t = loadbalancer_common::net::GUE_PORT)]
    gue_port: u16,
    /// Attach in generic mode, for drivers without XDP
    #[arg(long)]
    generic: bool,
}

/// The machine's own addresses: tunnels end at these.
async fn ends(network: &Network) -> Result<Vec<IpAddr>> {
    Ok(network.addresses().await?.into_iter().map(|(_, addr)| addr).collect())
}

pub fn decap(args: &DecapArgs) -> Result<()> {
    need_root("taking packets out of tunnels")?;
    let mode = if args.generic { AttachMode::Generic } else { AttachMode::Native };
    block_on(async {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let (network, mut changes) = Network::open().await?;
        let mut decap = Decap::attach(&args.interface, args.gue_port, mode, &ends(&network).await?)?;
        println!("taking packets out of IPIP and GUE (port {}) on {}; stop with Ctrl-C", args.gue_port, args.interface);
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                changed = changes.changed() => {
                    changed?;
                    decap.set_ends(&ends(&network).await?)?;
                }
            }
        }
        println!("{} packets taken out of their tunnel", decap.packets()?);
        Ok(())
    })
}

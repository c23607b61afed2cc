//! `loadbalancer decap`: runs on servers.

use anyhow::Result;
use clap::Args;
use loadbalancer::dataplane::decap::Decap;
use loadbalancer::dataplane::kernel::AttachMode;
use tokio::signal::unix::{SignalKind, signal};

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

pub fn decap(args: &DecapArgs) -> Result<()> {
    let mode = if args.generic { AttachMode::Generic } else { AttachMode::Native };
    super::block_on(async {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let decap = Decap::attach(&args.interface, args.gue_port, mode)?;
        println!("taking packets out of IPIP and GUE (port {}) on {}; stop with Ctrl-C", args.gue_port, args.interface);
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        println!("{} packets taken out of their tunnel", decap.packets()?);
        Ok(())
    })
}

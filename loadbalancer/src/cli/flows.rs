//! Flows, read from the pinned maps.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use loadbalancer::api::types::flows::{Affinity, FlowCount, NatFlow};
use loadbalancer::dataplane::flows::{self, Filter, Lookup};
use loadbalancer::dataplane::maps::Maps;
use model::address::Protocol;

use super::common::{PINS, need_root};
use super::table::{table, time};

#[derive(Args)]
pub struct FlowsArgs {
    /// Where the state is pinned
    #[arg(long, default_value = PINS)]
    pins: PathBuf,
    /// Only flows of this client
    #[arg(long)]
    client: Option<IpAddr>,
    /// Only flows on this server
    #[arg(long)]
    server: Option<IpAddr>,
    /// Only flows to this virtual address
    #[arg(long)]
    vip: Option<IpAddr>,
    /// Show no more than so many flows
    #[arg(long, default_value_t = 100)]
    limit: usize,
    /// Count the flows of all services per server, instead of listing those of nat
    #[arg(long, conflicts_with_all = ["client", "server", "vip", "find"])]
    count: bool,
    /// Find one flow in the affinity table, as PROTOCOL,CLIENT:PORT,VIP:PORT (tcp,198.51.100.7:40000,192.0.2.1:80)
    #[arg(long, value_name = "FLOW", value_parser = parse_lookup)]
    find: Option<Lookup>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

fn parse_lookup(text: &str) -> Result<Lookup, String> {
    let help = "write PROTOCOL,CLIENT:PORT,VIP:PORT, such as tcp,198.51.100.7:40000,192.0.2.1:80";
    let [protocol, client, vip] = text.split(',').collect::<Vec<_>>()[..] else {
        return Err(help.to_owned());
    };
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        _ => return Err(help.to_owned()),
    };
    let client: SocketAddr = client.parse().map_err(|_| help.to_owned())?;
    let vip: SocketAddr = vip.parse().map_err(|_| help.to_owned())?;
    if client.is_ipv4() != vip.is_ipv4() {
        return Err("client and VIP are of different families".to_owned());
    }
    Ok(Lookup { protocol, client, vip })
}

pub fn flows(args: &FlowsArgs) -> Result<()> {
    need_root("reading the tables of flows")?;
    let maps = Maps::pinned(&args.pins)?;
    let mut out = std::io::stdout().lock();
    if let Some(lookup) = &args.find {
        let Some(found) = flows::find(&maps, lookup)?.map(Affinity::from) else {
            bail!("there is no entry of this flow in the affinity table (flows of nat are listed without --find)");
        };
        if args.json {
            writeln!(out, "{}", serde_json::to_string_pretty(&found)?)?;
        } else {
            writeln!(
                out,
                "server {}, {}, last packet up to {} ago",
                found.server,
                found.state,
                time(found.idle_seconds)
            )?;
        }
        return Ok(());
    }
    if args.count {
        let counts: Vec<FlowCount> = flows::count(&maps)?.into_iter().map(FlowCount::from).collect();
        if args.json {
            writeln!(out, "{}", serde_json::to_string_pretty(&counts)?)?;
        } else {
            let rows = counts.iter().map(|count| {
                let number = |n: u64| n.to_string();
                vec![count.server.clone(), number(count.affinity), number(count.nat), number(count.active)]
            });
            writeln!(out, "{}", table(&["SERVER", ">AFFINITY", ">NAT", ">ACTIVE"], rows.collect()))?;
        }
        return Ok(());
    }
    let filter = Filter { client: args.client, server: args.server, vip: args.vip };
    let (listed, total) = flows::nat(&maps, &filter, args.limit)?;
    let listed: Vec<NatFlow> = listed.into_iter().map(NatFlow::from).collect();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&listed)?)?;
        return Ok(());
    }
    let rows = listed.iter().map(|flow| {
        vec![
            flow.protocol.clone(),
            flow.client.to_string(),
            flow.vip.to_string(),
            flow.source.to_string(),
            flow.server.to_string(),
            flow.state.clone(),
            time(flow.idle_seconds),
        ]
    });
    let headings = ["PROTO", "CLIENT", "VIP", "SOURCE", "SERVER", "STATE", ">IDLE"];
    writeln!(out, "{}", table(&headings, rows.collect()))?;
    if total > listed.len() {
        writeln!(out, "{} of {total} flows; --limit shows more", listed.len())?;
    }
    Ok(())
}

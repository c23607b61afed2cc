//! Gateways in the lab: real sockets through XDP. Needs root.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use loadbalancer_tests::support::client::{Query, fetch};
use loadbalancer_tests::support::gateway::Gateway;
use loadbalancer_tests::support::host::Host;
use loadbalancer_tests::support::http::Seen;
use loadbalancer_tests::support::lab::{Lab, vip4};
use loadbalancer_tests::support::plan::LabConfig;
use loadbalancer_tests::support::server::{Ports, Server};

const SOON: Duration = Duration::from_secs(5);

fn lab(config: LabConfig) -> Lab {
    Lab::up(&config).unwrap_or_else(|error| panic!("{error}"))
}

fn servers(lab: &Lab) -> Vec<Server> {
    let start = |host: &Host| Server::start(host.namespace(), &host.name, Ports::default());
    lab.servers.iter().map(|host| start(host).unwrap_or_else(|error| panic!("{error}"))).collect()
}

fn seen(client: &Host, address: IpAddr) -> Seen {
    let answer = fetch(client.namespace(), SocketAddr::new(address, 80), &Query::get("/"), SOON)
        .unwrap_or_else(|error| panic!("{error}"));
    serde_json::from_slice(&answer.body).expect("servers answer in JSON")
}

#[test]
fn nat_forwards_http() {
    let lab = lab(LabConfig::default());
    let _servers = servers(&lab);
    let mut text = format!("[[service]]\nname = \"web\"\nlisten = [\"{}:80\"]\n", vip4(1));
    for host in &lab.servers {
        text += &format!("[[service.server]]\nname = {:?}\naddress = \"{}\"\n", host.name, host.addresses.ipv4);
    }
    let gateway = Gateway::start(&lab, &text).unwrap_or_else(|error| panic!("{error}"));
    for _ in 0..10 {
        let seen = seen(&lab.clients[0], vip4(1).into());
        println!("{seen:?}");
    }
    println!("{}", gateway.ask(&["stats"]));
    println!("{}", gateway.ask(&["status"]));
    println!("{}", gateway.log());
}

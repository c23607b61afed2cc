//! No flow of a living server moves, whatever changes.

use std::time::Duration;

use libtest_mimic::Trial;
use loadbalancer::api::client;
use loadbalancer::api::types::Change;
use loadbalancer_tests::lab::vip4;
use loadbalancer_tests::traffic::hold::Protocol;

use super::world::Setup;

pub fn trials() -> Vec<Trial> {
    trials![no_flow_of_a_living_server_moves_in_a_thousand_changes,]
}

/// Changes that are made in all, over the modes.
const CHANGES: usize = 1_000;

fn no_flow_of_a_living_server_moves_in_a_thousand_changes() {
    let modes = ["nat", "dnat", "dsr-ipip", "dsr-l2"];
    let mut made = 0;
    for mode in modes {
        let setup = Setup::new(mode);
        let world = setup.clone().up();
        let vip = vip4(1).into();
        let tcp = world.hold(vip, Protocol::Tcp, 40);
        let udp = world.hold(vip, Protocol::Udp, 40);
        let load = world.load(vip, |load| load.max_time = Duration::from_secs(120));
        let runtime = tokio::runtime::Runtime::new().expect("started");
        let all: Vec<_> = world.lab.servers.iter().collect();
        for number in 0..CHANGES / modes.len() {
            let server = format!("web/server{}", 1 + number / 2 % 4);
            // Weights in many steps, drains and returns of one at a time; and every so often one leaves and comes back.
            let change = match number % 10 {
                0 => Change::Drain,
                1 => Change::Enable,
                _ => Change::Weight((number * 7 % 50) as u16 + 1),
            };
            if number % 25 == 24 {
                let keep = number / 25 % 4;
                let hosts: Vec<_> = all.iter().copied().filter(|host| host.name != all[keep].name).collect();
                world.gateway.write(&setup.services_of(&hosts)).expect("written");
                world.gateway.reload().expect("reloaded");
                world.gateway.write(&setup.services_of(&all)).expect("written");
                world.gateway.reload().expect("reloaded");
                made += 2;
            }
            runtime.block_on(client::change(&world.gateway.socket, &server, &change)).expect("changed");
            made += 1;
        }
        world.assert_clean(&load.stop());
        world.assert_held(&tcp);
        udp.wait_exchanges(3, super::world::SOON).expect("datagrams go on");
        assert_eq!(udp.moved(), [], "{mode}\n{}", world.tell());
    }
    assert!(made >= CHANGES);
    println!("{made} changes, 0 flows moved");
}

//! A world with one service, and packets of its clients.

use anyhow::Result;
use loadbalancer_common::net::protocol;
use loadbalancer_tests::frames::frame::Frame;
use loadbalancer_tests::frames::world::World;

use super::family::Family;
use super::mode::Mode;

/// The first packet of a flow, or one in its middle.
pub(super) fn packet(family: &Family, number: u8, sport: u16, flags: u8) -> Frame {
    if number == protocol::TCP {
        Frame::tcp(family.client, sport, family.vip, 80, flags)
    } else {
        Frame::udp(family.client, sport, family.vip, 80)
    }
}

/// A world with one service of two servers.
pub(super) fn world(family: &Family, mode: &Mode, flags: u8) -> Result<(World, u16, Vec<u16>)> {
    let mut world = World::new()?;
    let listen = [(family.vip, 80, protocol::TCP), (family.vip, 80, protocol::UDP)];
    let (service, backends) = world.service(mode.mode, flags, &listen, &mode.servers(family))?;
    Ok((world, service, backends))
}

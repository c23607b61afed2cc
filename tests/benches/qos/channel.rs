//! A channel that gets worse, or dies, while another stays good.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use loadbalancer_tests::lab::impair::Impairment;
use loadbalancer_tests::lab::plan::LabConfig;
use loadbalancer_tests::lab::relay::Direction;
use loadbalancer_tests::traffic::hold::{Held, Protocol};

use super::world::{self, NAT_SOURCE, Site, World, behaviour, harmed, hold, seconds, until, vip};
use crate::scenario::{Round, Value, all};

const FLOWS: usize = 60;
const BACK: Duration = Duration::from_secs(60);
/// A probe is sent every 100 ms and waits for 300 ms at most: when the third is missed, at the latest.
const THIRD_MISS: Duration = Duration::from_millis(100 + 3 * 300);

struct Place {
    held: Held,
    world: World,
}

impl Place {
    fn up(mode: &str) -> Result<Self> {
        let config = LabConfig { clients: 2, servers: 2, channels: 2, ..LabConfig::default() };
        let site = Site::up(&config, behaviour(Duration::from_millis(1)))?;
        let is_nat = mode == "nat";
        if !is_nat {
            site.lab.add_vip_to_servers(vip(1))?;
            site.lab.servers.iter().try_for_each(|host| host.set_decap())?;
        }
        let keys = format!(
            "check = {{ type = \"tcp\", interval = \"200ms\", timeout = \"1s\", port = 80 }}\nchannels = [\"channel1\", \
             \"channel2\"]\n{}",
            if is_nat { NAT_SOURCE } else { "" }
        );
        let hosts = world::plain(&site.lab.servers);
        let text = world::channels(&site.lab)? + &world::service("web", mode, vip(1), &keys, &hosts)?;
        let world = World::up(site, &text)?;
        world.wait_ready()?;
        let client = world.site.lab.clients[1].namespace();
        let held = hold(client, vip(1), Protocol::Tcp, FLOWS, Duration::from_millis(50))?;
        let place = Self { held, world };
        if place.wait_slots(BACK, is_shared)?.is_none() {
            bail!("the channels are not shared before anything happened:\n{}", place.world.gateway.ask(&["channels"]));
        }
        Ok(place)
    }

    /// Slots of the first channel, of each server.
    fn slots(&self) -> Result<Vec<usize>> {
        let of_first = |slots: &[Option<String>]| slots.iter().flatten().filter(|name| *name == "channel1").count();
        Ok(self.world.channels()?.servers.iter().map(|server| of_first(&server.slots)).collect())
    }

    fn wait_slots(&self, at_most: Duration, condition: impl Fn(usize) -> bool) -> Result<Option<Duration>> {
        until(at_most, || Ok(self.slots()?.into_iter().all(&condition)))
    }

    /// Frames that came to each channel on their way to the servers.
    fn offered(&self) -> Vec<u64> {
        let offered = |channel: &loadbalancer_tests::lab::channel::Channel| {
            let counts = channel.relay.counts(Direction::ToServers);
            counts.passed + counts.lost
        };
        self.world.site.lab.channels.iter().map(offered).collect()
    }
}

fn is_shared(slots: usize) -> bool {
    (3..=5).contains(&slots)
}

pub fn worse(_round: Round) -> Result<Vec<Value>> {
    Ok(all(&["nat", "dsr-ipip", "dsr-gue"], |mode| worse_in(mode))?.concat())
}

fn worse_in(mode: &str) -> Result<Vec<Value>> {
    let place = Place::up(mode)?;
    let first = &place.world.site.lab.channels[0].relay;
    let mut values = Vec::new();
    let impairments = [("+50 ms", Impairment::delay(Duration::from_millis(50))), ("5 % loss", Impairment::loss(0.05))];
    for (name, impairment) in impairments {
        first.set(impairment);
        let begun = Instant::now();
        thread::sleep(Duration::from_secs(3));
        let before = place.offered();
        thread::sleep(Duration::from_secs(3));
        let frames: Vec<u64> = place.offered().iter().zip(&before).map(|(now, before)| now - before).collect();
        let good = frames[1] as f64 / frames.iter().sum::<u64>() as f64;
        let left = place.wait_slots(Duration::from_secs(10), |slots| slots <= 1)?.map(|_| begun.elapsed());
        first.set(Impairment::NONE);
        let mut flaps = 0;
        let mut last = place.slots()?;
        // Who was still about to leave when it got better may do so before it comes back.
        let mut comes_back = vec![false; last.len()];
        let mut count = |now: Vec<usize>| {
            for ((now, last), comes_back) in now.iter().zip(&last).zip(&mut comes_back) {
                *comes_back |= now > last;
                flaps += usize::from(*comes_back && now < last);
            }
            last = now;
        };
        let back = until(BACK, || {
            let slots = place.slots()?;
            let done = slots.iter().all(|slots| is_shared(*slots));
            count(slots);
            Ok(done)
        })?;
        until(Duration::from_secs(3), || {
            count(place.slots()?);
            Ok(false)
        })?;
        eprintln!("  channel, {mode}, {name}: good {good:.3}, left within {left:?}, back {back:?}, flaps {flaps}");
        let what = |what: &str| format!("channel {name}, {mode}: {what}");
        values.extend([
            Value::new(what("frames on the good channel, 3 to 6 s after"), "", good).at_least(0.8),
            Value::new(what("time until the flows are shared again"), "s", seconds(back)).at_most(BACK.as_secs_f64()),
            Value::new(what("steps away again on the way back"), "", f64::from(flaps as u32)).at_most(0.0),
            Value::new(what("flows broken or moved"), "", harmed(&place.held)).at_most(0.0),
        ]);
    }
    Ok(values)
}

const DEATHS: [&str; 3] = ["interface down", "next hop gone", "silent loss"];

pub fn dead(_round: Round) -> Result<Vec<Value>> {
    Ok(all(&DEATHS, |death| dead_by(death))?.concat())
}

fn dead_by(death: &str) -> Result<Vec<Value>> {
    let place = Place::up("nat")?;
    let channel = &place.world.site.lab.channels[0];
    // An interface that goes down is seen at once: no probe has to be missed.
    let mut known_after = THIRD_MISS;
    match death {
        "interface down" => {
            channel.link_down()?;
            known_after = Duration::ZERO;
        }
        "next hop gone" => channel.far.namespace.ip(&[format!("link set {} down", channel.far.device)])?,
        _ => channel.relay.set(Impairment::CUT),
    }
    let moved = place.wait_slots(Duration::from_secs(10), |slots| slots == 0)?;
    let after = seconds(moved) - known_after.as_secs_f64();
    place.held.wait_exchanges(3, world::PATIENCE)?;
    eprintln!("  dead, {death}: moved {moved:?} after it");
    Ok(vec![
        Value::new(format!("channel dead, {death}: time until moved, after the third miss"), "s", after).at_most(0.5),
        Value::new(format!("channel dead, {death}: time until moved, after the event"), "s", seconds(moved)),
        Value::new(format!("channel dead, {death}: flows broken or moved"), "", harmed(&place.held)).at_most(0.0),
    ])
}

//! Cost of a change of the packet path: both builds in turn, on the same packets.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use loadbalancer_tests::report::{Bar, Figure, median};

use super::driver::{Bench, Extent, FLOWS, Kind, MODES};

/// The most that a packet may cost, as a ratio to what it did.
const MOST: f64 = 1.03;

/// Net cost of a packet by mode, kind and number of flows, as a ratio to that of another build.
pub(super) fn measure(object: &Path, filter: &str, extent: Extent) -> Result<Vec<Figure>> {
    let object = fs::read(object).with_context(|| format!("cannot read {}", object.display()))?;
    println!("net ns of a packet, before and now, in turn; medians of {} rounds\n", extent.rounds);
    println!("{:<16} {:<12} {:>9} {:>9} {:>9} {:>7}  bar", "mode", "packets", "flows", "before ns", "now ns", "ratio");
    let mut figures = Vec::new();
    for mode in MODES.iter().filter(|mode| mode.name.contains(filter)) {
        let (mut now, mut before) = (Bench::new(*mode)?, Bench::with_object(&object, *mode)?);
        for kind in [Kind::Established, Kind::New] {
            for flows in FLOWS {
                let name = format!("{}, {}, {flows} flows: net, now / before", mode.name, kind.label());
                let [old, new, ratios] = in_turn(&mut before, &mut now, kind, flows, extent)?;
                let figure = Figure::new(name, "", ratios).with_bar(Bar::AtMost(MOST));
                println!(
                    "{:<16} {:<12} {:>9} {:>9.1} {:>9.1} {:>7.3}  {}",
                    mode.name,
                    kind.label(),
                    flows,
                    median(&old),
                    median(&new),
                    figure.value,
                    figure.bar_text()
                );
                figures.push(figure);
            }
        }
    }
    Ok(figures)
}

/// Costs before, now, and their ratios. Each round has both, and the next one begins with the other: a machine that slows down
/// or warms up does not prefer one.
fn in_turn(before: &mut Bench, now: &mut Bench, kind: Kind, flows: u32, extent: Extent) -> Result<[Vec<f64>; 3]> {
    before.prime(flows)?;
    now.prime(flows)?;
    let mut costs = [Vec::new(), Vec::new(), Vec::new()];
    for round in 1..=extent.rounds as u32 {
        let (old, new) = if round % 2 == 0 {
            let old = before.net(kind, flows, round, extent.packets)?;
            (old, now.net(kind, flows, round, extent.packets)?)
        } else {
            let new = now.net(kind, flows, round, extent.packets)?;
            (before.net(kind, flows, round, extent.packets)?, new)
        };
        for (costs, cost) in costs.iter_mut().zip([old, new, new / old]) {
            costs.push(cost);
        }
    }
    Ok(costs)
}

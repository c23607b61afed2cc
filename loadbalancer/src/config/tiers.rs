//! `[service.tiers]`: when lower tiers help the first.

use std::time::Duration;

use super::schema::table::{Keys, Table};
use super::schema::value::At;
use super::standby::{DAY, LEAST, has_levels, levels_keys};
use decide::tiers::Settings;

pub(super) fn table() -> Table<At<Settings>> {
    let doc = "When lower tiers help the first: a level of the first that is exceeded, any of p90, failures, \
               active_per_weight. Without this table they get only what the first refuses.";
    let keys = Keys::new("[service.tiers]", doc, Settings::default()).optional();
    let load = "Live flows of the first tier's servers that serve, over the sum of their weights.";
    levels_keys(keys, |it| &mut it.levels.p90, |it| &mut it.levels.failures, (|it| &mut it.levels.load, load))
        .time("hold", |it| &mut it.hold, Duration::ZERO..=DAY, "How long a level has to be exceeded before they help.")
        .decimal(
            "recovery",
            |it| &mut it.recovery,
            0.01..=0.99,
            "Share of the levels below which the first gets more again.",
        )
        .decimal(
            "rise",
            |it| &mut it.rise,
            0.001..=10.0,
            "Part of what the first keeps that is taken from it in a second at most.",
        )
        .decimal(
            "fall",
            |it| &mut it.fall,
            0.000_1..=1.0,
            "Part of what the first keeps that is given back to it in a second at most.",
        )
        .time(
            "memory",
            |it| &mut it.memory,
            LEAST..=Duration::from_secs(60),
            "Time constant of what is measured; up to four times as long where samples are few.",
        )
        .build(|section, it| {
            if !has_levels(section) {
                let help = "set p90 = \"200ms\", failures = 0.05 or active_per_weight = 100";
                section.error(section.span.clone(), "nothing says when lower tiers help", help);
            }
            Some(At { value: it, span: section.span.clone() })
        })
}

//! `[quality]` and `[service.quality]`: the constants of the loops from measured quality to weights and channels. Their
//! meanings, defaults and sources stand with them in `crate::quality`.

use std::time::Duration;

use super::parse::set;
use super::walk::Section;
use crate::quality::{Settings, channel, eject, law, measure, start};

const LEAST: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(3_600);

/// What stands in `[quality]`: it holds for all services.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Quality {
    pub settings: Settings,
    pub channels: channel::Settings,
}

pub(super) fn of_all(section: Section<'_, '_>) -> Quality {
    let mut quality = Quality::default();
    if let Some(channels) = section.section("channels", "[quality.channels]") {
        self::channels(channels, &mut quality.channels);
    }
    keys(section, &mut quality.settings, "quality");
    quality
}

/// What a service has otherwise.
pub(super) fn of_service(section: Section<'_, '_>, usual: &Settings) -> Settings {
    let mut settings = usual.clone();
    keys(section, &mut settings, "service.quality");
    settings
}

fn keys(section: Section<'_, '_>, settings: &mut Settings, name: &str) {
    set(&mut settings.measured, section.choice("weights", &[("measured", true), ("configured", false)]));
    let part = |key: &'static str| section.section(key, &format!("[{name}.{key}]"));
    if let Some(section) = part("measure") {
        measure(section, &mut settings.measure);
    }
    if let Some(section) = part("law") {
        law(section, &mut settings.law);
    }
    if let Some(section) = part("eject") {
        eject(section, &mut settings.eject);
    }
    if let Some(section) = part("slow_start") {
        slow_start(section, &mut settings.start);
    }
    section.finish();
}

/// Keys with a time each.
fn times<const N: usize>(section: &Section<'_, '_>, fields: [(&'static str, &mut Duration); N]) {
    for (key, field) in fields {
        set(field, section.duration(key, LEAST..=HOUR, ""));
    }
}

/// Keys with a number each, and its range.
fn numbers<const N: usize>(section: &Section<'_, '_>, fields: [(&'static str, &mut f64, f64, f64); N]) {
    for (key, field, least, most) in fields {
        set(field, section.decimal(key, least..=most));
    }
}

/// The second key is to be at least as large as the first.
pub(super) fn in_order<T: PartialOrd>(section: &Section<'_, '_>, less: (&str, T), more: (&str, T)) {
    if more.1 < less.1 {
        let given = if section.has(more.0) { more.0 } else { less.0 };
        let message = format!("`{}` is smaller than `{}`", more.0, less.0);
        section.error(
            section.value_span(given),
            message,
            format!("make `{}` at least as large as `{}`", more.0, less.0),
        );
    }
}

fn measure(section: Section<'_, '_>, it: &mut measure::Settings) {
    times(
        &section,
        [
            ("memory", &mut it.memory),
            ("long_memory", &mut it.long_memory),
            ("variation_memory", &mut it.variation_memory),
            ("stale_after", &mut it.stale_after),
            ("answered_within", &mut it.answered_within),
        ],
    );
    numbers(
        &section,
        [
            ("min_samples", &mut it.min_samples, 1.0, 1e6),
            ("batch_samples", &mut it.batch_samples, 1.0, 1e6),
            ("sudden", &mut it.sudden, 1.1, 1e3),
            ("correlation", &mut it.correlation, 1.0, 1e3),
            ("sure", &mut it.sure, 0.0, 100.0),
        ],
    );
    in_order(&section, ("memory", it.memory), ("long_memory", it.long_memory));
    section.finish();
}

fn law(section: Section<'_, '_>, it: &mut law::Settings) {
    times(
        &section,
        [
            ("patience", &mut it.patience),
            ("correction", &mut it.correction),
            ("far_correction", &mut it.far_correction),
            ("publish_every", &mut it.publish_every),
        ],
    );
    numbers(
        &section,
        [
            ("failure_gain", &mut it.failure_gain, 0.0, 1e4),
            ("tolerated", &mut it.tolerated, 1.0, 1e3),
            ("beyond", &mut it.beyond, 0.0, 10.0),
            ("deadband", &mut it.deadband, 0.0, 2.0),
            ("settled", &mut it.settled, 0.0, 2.0),
            ("settled_sure", &mut it.settled_sure, 0.0, 100.0),
            ("sure", &mut it.sure, 0.0, 100.0),
            ("lasting_sure", &mut it.lasting_sure, 0.0, 100.0),
            ("far_off", &mut it.far_off, 1.0, 1e3),
            ("fall", &mut it.fall, 0.01, 1.0),
            ("rise", &mut it.rise, 1.0, 10.0),
            ("floor", &mut it.floor, 0.0001, 1.0),
            ("ceiling", &mut it.ceiling, 1.0, 1e3),
            ("publish_change", &mut it.publish_change, 0.0, 1.0),
            ("publish_floor", &mut it.publish_floor, 0.0, 1.0),
            ("publish_large", &mut it.publish_large, 0.0, 1.0),
            ("publish_gain", &mut it.publish_gain, 0.0, 1e3),
        ],
    );
    section.finish();
}

fn eject(section: Section<'_, '_>, it: &mut eject::Settings) {
    set(&mut it.consecutive, section.number("consecutive", 1..=1_000_000));
    times(&section, [("base", &mut it.base), ("max", &mut it.max), ("forget_after", &mut it.forget_after)]);
    numbers(
        &section,
        [
            ("floor", &mut it.floor, 0.0, 1.0),
            ("slack", &mut it.slack, 0.0, 100.0),
            ("deviations", &mut it.deviations, 0.0, 100.0),
            ("excess", &mut it.excess, 0.001, 1.0),
            ("evidence", &mut it.evidence, 0.1, 1e3),
            ("panic", &mut it.panic, 0.0, 1.0),
        ],
    );
    in_order(&section, ("base", it.base), ("max", it.max));
    section.finish();
}

fn slow_start(section: Section<'_, '_>, it: &mut start::Settings) {
    set(&mut it.ramp, section.duration("ramp", Duration::ZERO..=HOUR, ""));
    numbers(&section, [("from", &mut it.from, 0.001, 1.0)]);
    section.finish();
}

fn channels(section: Section<'_, '_>, it: &mut channel::Settings) {
    times(
        &section,
        [
            ("interval", &mut it.interval),
            ("loss_penalty", &mut it.loss_penalty),
            ("score_floor", &mut it.score_floor),
            ("hold", &mut it.hold),
            ("hold_most", &mut it.hold_most),
            ("forget_after", &mut it.forget_after),
            ("stale_after", &mut it.stale_after),
        ],
    );
    numbers(
        &section,
        [
            ("srtt_gain", &mut it.srtt_gain, 0.001, 1.0),
            ("rttvar_gain", &mut it.rttvar_gain, 0.001, 1.0),
            ("deviations", &mut it.deviations, 0.0, 100.0),
            ("sure", &mut it.sure, 0.0, 100.0),
            ("preference", &mut it.preference, 0.0, 10.0),
            ("margin", &mut it.margin, 0.0, 8.0),
        ],
    );
    set(&mut it.leave, section.choice("leave", &[("worse", channel::Leave::Worse), ("dead", channel::Leave::Dead)]));
    set(&mut it.loss_window, section.number("loss_window", 1..=100_000));
    set(&mut it.least_intervals, section.number("least_intervals", 1..=100_000));
    for (key, field) in [
        ("better_for", &mut it.better_for),
        ("dead_after", &mut it.dead_after),
        ("back_after", &mut it.back_after),
        ("back_most", &mut it.back_most),
    ] {
        set(field, section.number(key, 1..=100_000));
    }
    in_order(&section, ("hold", it.hold), ("hold_most", it.hold_most));
    in_order(&section, ("back_after", it.back_after), ("back_most", it.back_most));
    section.finish();
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    const EXAMPLE: &str = include_str!("../../examples/quality.toml");

    #[test]
    fn the_example_has_all_constants_with_their_defaults() {
        let config = Config::parse("quality.toml", EXAMPLE).unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!(config.quality, Quality::default());
        for table in ["measure", "law", "eject", "slow_start", "channels"] {
            let header = format!("[quality.{table}]\n");
            let errors = Config::parse("x", &EXAMPLE.replace(&header, &format!("{header}qqqq = 1\n"))).map(|_| ());
            let text = errors.expect_err("there is no such key").to_string();
            let (_, keys) = text.split_once("takes: ").unwrap_or_else(|| panic!("{text}"));
            let shown =
                EXAMPLE.split_once(&format!("\n{}", header.trim_end())).and_then(|(_, rest)| rest.split("\n\n").next());
            for key in keys.trim().split(", ") {
                assert!(
                    shown.unwrap_or_default().contains(&format!("\n{key} = ")),
                    "{key} of [quality.{table}] is not shown"
                );
            }
        }
    }
    #[test]
    fn flows_can_be_bound_to_channels_that_live() {
        let text = EXAMPLE.replace("leave = \"worse\"", "leave = \"dead\"");
        let config = Config::parse("quality.toml", &text).unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!(config.quality.channels.leave, channel::Leave::Dead);
    }
}

//! `[quality]` and `[service.quality]`: the constants of the loops from measured quality to weights and channels. Their
//! defaults and sources stand with them in `decide::quality`.

use std::time::Duration;

use super::document::Quality;
use super::schema::table::{Keys, Table};
use super::schema::walk::Section;
use decide::channel::settings as channel;
use decide::quality::{Settings, eject, law, measure, start};

const LEAST: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(3_600);

pub(super) fn of_all() -> Table<Quality> {
    let doc = "Constants of the loops that follow measured quality, for all services. docs/quality.md tells how the loops \
               work; the sources of the constants stand with them in the code. None of them has to be set.";
    Keys::new("[quality]", doc, Quality::default())
        .choice("weights", |it| &mut it.settings.measured, &WEIGHTS, WEIGHTS_DOC)
        .table("measure", |it| &mut it.settings.measure, |it| measure("quality", &it.settings.measure))
        .table("law", |it| &mut it.settings.law, |it| law("quality", &it.settings.law))
        .table("eject", |it| &mut it.settings.eject, |it| eject("quality", &it.settings.eject))
        .table("slow_start", |it| &mut it.settings.start, |it| slow_start("quality", &it.settings.start))
        .table("channels", |it| &mut it.channels, |it| channels(&it.channels))
        .plain()
}

/// What a service has otherwise.
pub(super) fn of_service(usual: &Settings) -> Table<Settings> {
    let doc = "The same for one service: the tables of [quality] but [quality.channels].";
    Keys::new("[service.quality]", doc, usual.clone())
        .optional()
        .tells(&["weights"])
        .choice("weights", |it| &mut it.measured, &WEIGHTS, WEIGHTS_DOC)
        .table("measure", |it| &mut it.measure, |it| measure("service.quality", &it.measure))
        .table("law", |it| &mut it.law, |it| law("service.quality", &it.law))
        .table("eject", |it| &mut it.eject, |it| eject("service.quality", &it.eject))
        .table("slow_start", |it| &mut it.start, |it| slow_start("service.quality", &it.start))
        .plain()
}

const WEIGHTS: [(&str, bool); 2] = [("measured", true), ("configured", false)];
const WEIGHTS_DOC: &str = "\"measured\": weights follow what is measured; \"configured\": they stay as they are configured, nobody is ejected.";

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

fn measure(parent: &str, usual: &measure::Settings) -> Table<measure::Settings> {
    let doc = "What is measured of one server.";
    Keys::new(format!("[{parent}.measure]"), doc, usual.clone())
        .time("memory", |it| &mut it.memory, LEAST..=HOUR, "Time constant of means and rates.")
        .time("long_memory", |it| &mut it.long_memory, LEAST..=HOUR, "Time constant for servers with few samples.")
        .decimal("min_samples", |it| &mut it.min_samples, 1.0..=1e6, "Samples below which a mean says nothing.")
        .decimal(
            "batch_samples",
            |it| &mut it.batch_samples,
            1.0..=1e6,
            "Samples that make a second worth looking at by itself.",
        )
        .decimal(
            "sudden",
            |it| &mut it.sudden,
            1.1..=1e3,
            "What was before is forgotten if the last second is surely so many times slower or faster.",
        )
        .time(
            "variation_memory",
            |it| &mut it.variation_memory,
            LEAST..=HOUR,
            "Time constant of the variation from second to second.",
        )
        .decimal(
            "correlation",
            |it| &mut it.correlation,
            1.0..=1e3,
            "How much more the mean varies since neighbouring seconds are alike.",
        )
        .decimal("sure", |it| &mut it.sure, 0.0..=100.0, "Standard errors within which a last second is no news.")
        .time("stale_after", |it| &mut it.stale_after, LEAST..=HOUR, "Silence after which a weight is frozen.")
        .time(
            "answered_within",
            |it| &mut it.answered_within,
            LEAST..=HOUR,
            "Checks that time out do not count against a server that answered clients not longer ago than this.",
        )
        .build(|section, it| {
            in_order(section, ("memory", it.memory), ("long_memory", it.long_memory));
            Some(it)
        })
}

fn law(parent: &str, usual: &law::Settings) -> Table<law::Settings> {
    let keys = Keys::new(format!("[{parent}.law]"), "From slowness to weights.", usual.clone())
        .decimal(
            "failure_gain",
            |it| &mut it.failure_gain,
            0.0..=1e4,
            "With 10, one failure in ten makes a server as bad as one that is twice as slow.",
        )
        .decimal(
            "tolerated",
            |it| &mut it.tolerated,
            1.0..=1e3,
            "Slowness up to which the share shrinks in proportion.",
        )
        .decimal("beyond", |it| &mut it.beyond, 0.0..=10.0, "Power by which it shrinks in addition beyond `tolerated`.")
        .decimal(
            "deadband",
            |it| &mut it.deadband,
            0.0..=2.0,
            "Errors (natural logarithm) from which corrections begin.",
        )
        .decimal("settled", |it| &mut it.settled, 0.0..=2.0, "Errors down to which corrections go on.")
        .decimal(
            "sure",
            |it| &mut it.sure,
            0.0..=100.0,
            "As `deadband`, in standard errors, among four servers; it grows with their number, as some are farther off by \
             chance.",
        )
        .decimal("settled_sure", |it| &mut it.settled_sure, 0.0..=100.0, "As `settled`, in standard errors.")
        .time("patience", |it| &mut it.patience, LEAST..=HOUR, "Time over which smaller errors are averaged.")
        .decimal(
            "lasting_sure",
            |it| &mut it.lasting_sure,
            0.0..=100.0,
            "Standard errors from which the mean of smaller errors is corrected.",
        )
        .time("correction", |it| &mut it.correction, LEAST..=HOUR, "Time constant of corrections.")
        .decimal("far_off", |it| &mut it.far_off, 1.0..=1e3, "So many times the usual burden is far off.")
        .time("far_correction", |it| &mut it.far_correction, LEAST..=HOUR, "Time constant of corrections of what is far off.")
        .decimal("fall", |it| &mut it.fall, 0.01..=1.0, "Least factor of a weight in a quarter of a second.")
        .decimal("rise", |it| &mut it.rise, 1.0..=10.0, "Greatest factor of a weight in a quarter of a second.")
        .decimal(
            "floor",
            |it| &mut it.floor,
            0.0001..=1.0,
            "Least factor of all: as much traffic explores a bad server.",
        )
        .decimal("ceiling", |it| &mut it.ceiling, 1.0..=1e3, "Greatest factor of all.");
    publish_keys(keys).plain()
}

/// When a new ring is published.
fn publish_keys(keys: Keys<law::Settings>) -> Keys<law::Settings> {
    keys.decimal(
        "publish_change",
        |it| &mut it.publish_change,
        0.0..=1.0,
        "Change of a share, as part of itself, from which a new ring is looked at.",
    )
    .decimal("publish_floor", |it| &mut it.publish_floor, 0.0..=1.0, "Part of the nominal share that stands for a share which is smaller.")
    .decimal(
        "publish_large",
        |it| &mut it.publish_large,
        0.0..=1.0,
        "Change of a share, as part of itself, from which a new ring is published at once.",
    )
    .decimal(
        "publish_gain",
        |it| &mut it.publish_gain,
        0.0..=1e3,
        "Else it is published when the share of new flows that it moves, times the seconds since the last ring, reaches this.",
    )
    .time("publish_every", |it| &mut it.publish_every, LEAST..=HOUR, "Least time between rings.")
}

fn eject(parent: &str, usual: &eject::Settings) -> Table<eject::Settings> {
    let doc = "When a server is taken out for a while.";
    Keys::new(format!("[{parent}.eject]"), doc, usual.clone())
        .number::<u32>("consecutive", |it| &mut it.consecutive, 1..=1_000_000, "Failures in a row.")
        .decimal("floor", |it| &mut it.floor, 0.0..=1.0, "Failure rate that is always tolerated.")
        .decimal(
            "slack",
            |it| &mut it.slack,
            0.0..=100.0,
            "So many times the median rate of the peers is tolerated as well.",
        )
        .decimal("deviations", |it| &mut it.deviations, 0.0..=100.0, "And so many standard deviations of their rates.")
        .decimal("excess", |it| &mut it.excess, 0.001..=1.0, "Rate above what is tolerated that is looked for.")
        .decimal(
            "evidence",
            |it| &mut it.evidence,
            0.1..=1e3,
            "Evidence of such a rate (natural logarithm of odds) that ejects.",
        )
        .time("base", |it| &mut it.base, LEAST..=HOUR, "Length of the first ejection; the n-th lasts n times as long.")
        .time("max", |it| &mut it.max, LEAST..=HOUR, "Longest ejection.")
        .time(
            "forget_after",
            |it| &mut it.forget_after,
            LEAST..=HOUR,
            "Time in service after which one ejection is forgotten.",
        )
        .decimal(
            "panic",
            |it| &mut it.panic,
            0.0..=1.0,
            "With fewer servers than this share in good order nobody is ejected.",
        )
        .build(|section, it| {
            in_order(section, ("base", it.base), ("max", it.max));
            Some(it)
        })
}

fn slow_start(parent: &str, usual: &start::Settings) -> Table<start::Settings> {
    let doc = "A server that is new or was out begins with a share of its weight.";
    Keys::new(format!("[{parent}.slow_start]"), doc, usual.clone())
        .time("ramp", |it| &mut it.ramp, Duration::ZERO..=HOUR, "Time until it has its whole weight.")
        .decimal("from", |it| &mut it.from, 0.001..=1.0, "Share of its weight at the beginning.")
        .plain()
}

fn channels(usual: &channel::Settings) -> Table<channel::Settings> {
    let doc = "Which of its channels the flows of a server take.";
    let keys = Keys::new("[quality.channels]", doc, usual.clone())
        .choice(
            "leave",
            |it| &mut it.leave,
            &[("worse", channel::Leave::Worse), ("dead", channel::Leave::Dead)],
            "Which channels live flows leave: those that are \"worse\" than others, or only \"dead\" ones. As a flow's hash \
             binds it to a path slot, and slots to channels, new flows stay with \"dead\" as well: slots follow quality only \
             while a server has no active flow.",
        )
        .time("interval", |it| &mut it.interval, LEAST..=HOUR, "Time between comparisons.")
        .number::<u32>("better_for", |it| &mut it.better_for, 1..=100_000, "Comparisons in a row that have to agree.")
        .decimal(
            "srtt_gain",
            |it| &mut it.srtt_gain,
            0.001..=1.0,
            "Weight of a measurement in the smoothed round-trip time.",
        )
        .decimal("rttvar_gain", |it| &mut it.rttvar_gain, 0.001..=1.0, "Weight of a measurement in the variation of that time.")
        .decimal("deviations", |it| &mut it.deviations, 0.0..=100.0, "Variations that are added to the smoothed time.")
        .number::<usize>(
            "loss_window",
            |it| &mut it.loss_window,
            1..=100_000,
            "Most intervals of a probe over which losses are counted.",
        )
        .number::<usize>("least_intervals", |it| &mut it.least_intervals, 1..=100_000, "Least intervals of a probe over which losses are counted.")
        .time("loss_penalty", |it| &mut it.loss_penalty, LEAST..=HOUR, "What losing everything would cost.")
        .decimal(
            "sure",
            |it| &mut it.sure,
            0.0..=100.0,
            "Standard deviations of the number of losses that are taken off before they count.",
        )
        .time("score_floor", |it| &mut it.score_floor, LEAST..=HOUR, "Scores below this one are alike.")
        .decimal(
            "preference",
            |it| &mut it.preference,
            0.0..=10.0,
            "Shares are in proportion to capacity / score^preference.",
        )
        .decimal(
            "margin",
            |it| &mut it.margin,
            0.0..=8.0,
            "Slots move when they are off by half of one and this part of one.",
        );
    return_keys(keys).build(|section, it| {
        in_order(section, ("hold", it.hold), ("hold_most", it.hold_most));
        in_order(section, ("back_after", it.back_after), ("back_most", it.back_most));
        Some(it)
    })
}

/// When a channel gets slots back, and what is forgotten.
fn return_keys(keys: Keys<channel::Settings>) -> Keys<channel::Settings> {
    keys.time(
        "hold",
        |it| &mut it.hold,
        LEAST..=HOUR,
        "Time after which a channel that lost slots gets some back, doubled each time.",
    )
    .time("hold_most", |it| &mut it.hold_most, LEAST..=HOUR, "Longest such time.")
    .number::<u32>("dead_after", |it| &mut it.dead_after, 1..=100_000, "Missed probes in a row that mean death.")
    .number::<u32>(
        "back_after",
        |it| &mut it.back_after,
        1..=100_000,
        "Good probes in a row that bring a channel back, times the number of its deaths.",
    )
    .number::<u32>("back_most", |it| &mut it.back_most, 1..=100_000, "Most good probes that this takes.")
    .time(
        "forget_after",
        |it| &mut it.forget_after,
        LEAST..=HOUR,
        "Time after which one death, and one time of lost slots, is forgotten.",
    )
    .time("stale_after", |it| &mut it.stale_after, LEAST..=HOUR, "Silence after which nothing moves.")
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

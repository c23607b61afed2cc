//! `[service.tiers]`: when lower tiers help the first.

use std::time::Duration;

use super::error::Errors;
use super::model::Service;
use super::parse::set;
use super::standby::{DAY, LEAST, levels};
use super::walk::{Section, Span};
use crate::quality::tiers::Settings;

pub(super) fn of_service(section: Section<'_, '_>) -> Settings {
    let mut settings = Settings::default();
    if let Some(levels) = levels(&section) {
        settings.levels = levels;
    } else {
        let help = "set p90 = \"200ms\", failures = 0.05 or active_per_weight = 100";
        section.error(section.span.clone(), "nothing says when lower tiers help", help);
    }
    set(&mut settings.hold, section.duration("hold", Duration::ZERO..=DAY, ""));
    set(&mut settings.recovery, section.decimal("recovery", 0.01..=0.99));
    set(&mut settings.rise, section.decimal("rise", 0.001..=10.0));
    set(&mut settings.fall, section.decimal("fall", 0.000_1..=1.0));
    set(&mut settings.memory, section.duration("memory", LEAST..=Duration::from_secs(60), ""));
    section.finish();
    settings
}

/// There is someone who can help.
pub(super) fn validate(service: &Service, place: &Span, errors: &mut Errors<'_>) {
    let mut tiers = service.servers.iter().map(|server| server.tier);
    let first = tiers.next();
    if service.tiers.is_some() && first.is_some() && tiers.all(|tier| Some(tier) == first) {
        let message = format!("all servers of service {} are in the same tier, so there is none to help", service.name);
        errors.add(place.clone(), message, "add `tier = 1` to those that are to help, or remove [service.tiers]");
    }
}

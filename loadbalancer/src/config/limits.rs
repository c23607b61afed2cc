//! `[limits]`: sizes of the kernel's tables.

use super::schema::table::{Keys, Table};
use super::schema::value::Given;
use crate::dataplane::sizes::Sizes;

pub(super) const MOST_SERVICES: u32 = 4_096;
/// Numbers of servers have 16 bits; zero is none, and the count with it is to fit as well.
pub(super) const MOST_BACKENDS: u32 = 65_534;
pub(super) const MOST_RINGS: u32 = 4_096;

#[derive(Clone, Debug)]
pub(super) struct LimitsKeys {
    pub services: Given<u32>,
    pub backends: Given<u32>,
    pub rings: Given<u32>,
    flows: u32,
    nat_flows: u32,
}

impl Default for LimitsKeys {
    fn default() -> Self {
        let sizes = Sizes::default();
        Self {
            services: Given::default_of(sizes.services),
            backends: Given::default_of(sizes.backends),
            rings: Given::default_of(sizes.rings),
            flows: sizes.flows,
            nat_flows: sizes.nat_flows,
        }
    }
}

impl LimitsKeys {
    /// VIPs, of which a service has four.
    pub fn vips(&self) -> u32 {
        Sizes::default().vips.max(self.services.value * 4)
    }

    pub fn document(self) -> Sizes {
        Sizes {
            services: self.services.value,
            backends: self.backends.value,
            rings: self.rings.value,
            flows: self.flows,
            nat_flows: self.nat_flows,
            vips: self.vips(),
        }
    }
}

pub(super) fn table() -> Table<LimitsKeys> {
    let doc = "Sizes of the kernel's tables. They are fixed while the pinned state lives.";
    Keys::new("[limits]", doc, LimitsKeys::default())
        .number::<u32>(
            "services",
            |it| &mut it.services,
            1..=i64::from(MOST_SERVICES),
            "Services, in nat and dnat one per family; each has room for four addresses to listen on.",
        )
        .number::<u32>("backends", |it| &mut it.backends, 1..=i64::from(MOST_BACKENDS), "Servers of all services.")
        .number::<u32>("rings", |it| &mut it.rings, 2..=i64::from(MOST_RINGS), "Rings: two per service and tier.")
        .number::<u32>(
            "flows",
            |it| &mut it.flows,
            1_000..=64_000_000,
            "Flows of dsr-* and dnat that are remembered: 16 bytes each.",
        )
        .number::<u32>("nat_flows", |it| &mut it.nat_flows, 1_000..=16_000_000, "Flows of nat: some 300 bytes each.")
        .plain()
}

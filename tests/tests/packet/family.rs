//! The families of packets, with the addresses of each.

/// One family's addresses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) client: &'static str,
    pub(super) vip: &'static str,
    pub(super) other: &'static str,
    pub(super) servers: [&'static str; 2],
    pub(super) nat_source: &'static str,
}

pub(super) const V4: Family = Family {
    name: "v4",
    client: "198.51.100.7",
    vip: "192.0.2.10",
    other: "192.0.2.99",
    servers: ["10.0.0.11", "10.0.0.12"],
    nat_source: "10.0.0.1",
};
pub(super) const V6: Family = Family {
    name: "v6",
    client: "2001:db8:1::7",
    vip: "2001:db8::10",
    other: "2001:db8::99",
    servers: ["fd00::11", "fd00::12"],
    nat_source: "fd00::1",
};
pub(super) const FAMILIES: [Family; 2] = [V4, V6];

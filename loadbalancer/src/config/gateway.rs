//! `[gateway]`: the machine itself.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use super::document::{Gateway, Interface, OnIncompatible, OnStop, XdpMode};
use super::forms::{gateway_address, interface, ports, repeated_families, write_as};
use super::schema::table::{Keys, Table};
use super::schema::value::{At, Given, List, Rejection};
use super::schema::walk::Section;

/// Beyond those that Linux gives to others (`ip_local_port_range`).
const PROBE_PORTS: RangeInclusive<u16> = 61_000..=65_535;

#[derive(Clone, Debug)]
pub(super) struct GatewayKeys {
    /// At their names.
    pub interfaces: List<At<Interface>>,
    on_stop: OnStop,
    on_incompatible: OnIncompatible,
    pin_directory: PathBuf,
    hash_seed: Option<u64>,
    channel_marks: u32,
    pub probe_source: List<At<IpAddr>>,
    pub probe_ports: Given<RangeInclusive<u16>>,
    vip_interface: Option<String>,
}

impl Default for GatewayKeys {
    fn default() -> Self {
        Self {
            interfaces: List::default(),
            on_stop: OnStop::default(),
            on_incompatible: OnIncompatible::default(),
            pin_directory: "/sys/fs/bpf/loadbalancer".into(),
            hash_seed: None,
            channel_marks: 0x4c42_0000,
            probe_source: List::default(),
            probe_ports: Given::default_of(PROBE_PORTS),
            vip_interface: None,
        }
    }
}

impl GatewayKeys {
    pub fn document(self) -> Gateway {
        Gateway {
            interfaces: self.interfaces.into_values(),
            on_stop: self.on_stop,
            on_incompatible: self.on_incompatible,
            pin_directory: self.pin_directory,
            hash_seed: self.hash_seed,
            channel_marks: self.channel_marks,
            probe_source: self.probe_source.into_values(),
            probe_ports: self.probe_ports.value,
            vip_interface: self.vip_interface,
        }
    }
}

pub(super) fn table() -> Table<GatewayKeys> {
    let on_stop = [("keep", OnStop::Keep), ("remove", OnStop::Remove)];
    let on_incompatible = [("refuse", OnIncompatible::Refuse), ("replace", OnIncompatible::Replace)];
    let keys = Keys::new("[gateway]", "The machine that forwards.", GatewayKeys::default())
        .texts_or_tables(
            "interfaces",
            |it| &mut it.interfaces,
            (named_interface, interface_table),
            "[\"eth0\"]",
            "All interfaces on which packets of clients or servers arrive: names, or tables with a name.",
        )
        .required("interfaces = [\"eth0\"]")
        .shown("[{ name = \"eth0\", xdp = \"auto\" }]")
        .choice(
            "on_stop",
            |it| &mut it.on_stop,
            &on_stop,
            "What SIGTERM does: \"keep\" leaves forwarding in place, \"remove\" ends it.",
        )
        .choice(
            "on_incompatible",
            |it| &mut it.on_incompatible,
            &on_incompatible,
            "What to do about pinned state of another layout or size: \"refuse\" to start, or \"replace\" it.",
        )
        .text(
            "pin_directory",
            |it| &mut it.pin_directory,
            pin_directory,
            "/sys/fs/bpf/loadbalancer",
            "Where the state of the packet path is pinned, below /sys/fs/bpf.",
        )
        .number::<u64>(
            "hash_seed",
            |it| &mut it.hash_seed,
            1..=i64::MAX,
            "Key of the flow hash. Without it one is drawn and kept. Gateways that share a VIP must share it.",
        )
        .shown("1234")
        .number::<u32>(
            "channel_marks",
            |it| &mut it.channel_marks,
            256..=0xffff_ff00,
            "Firewall mark, and number of the routing table, by which probes take the first channel; the next ones follow.",
        );
    probe_keys(keys)
        .text(
            "vip_interface",
            |it| &mut it.vip_interface,
            interface,
            "eth0",
            "Interface that gets the VIPs as addresses and announces them. Without: they are routed here, or assigned by \
             others.",
        )
        .build(|section, it| {
            if section.is_empty_list("interfaces") {
                let help = "name one at least: interfaces = [\"eth0\"]";
                section.error(section.value_span("interfaces"), "`interfaces` is empty", help);
            }
            for at in repeated_families(&it.probe_source.all) {
                section.error(at.span.clone(), "a second source of the same family", "give one address per family");
            }
            Some(it)
        })
}

/// Where checks through VIPs come from.
fn probe_keys(keys: Keys<GatewayKeys>) -> Keys<GatewayKeys> {
    keys.texts(
        "probe_source",
        |it| &mut it.probe_source,
        gateway_address,
        "10.0.0.1",
        "Checks with through = \"vip\" come from these addresses of the gateway, one per family. Without: its own on \
         the way to the server.",
    )
    .shown("[\"10.0.0.1\", \"fd00::1\"]")
    .text(
        "probe_ports",
        |it| &mut it.probe_ports,
        probe_ports,
        "61000-65535",
        "And from these source ports, one for each server and check. Keep other programs from them \
         (`ip_local_reserved_ports`).",
    )
}

/// An interface by its name alone.
fn named_interface(section: &Section<'_, '_>, name: At<&str>) -> Option<At<Interface>> {
    match interface(name.value) {
        Ok(known) => Some(At { value: Interface { name: known, xdp: XdpMode::default() }, span: name.span }),
        Err((message, help)) => {
            section.error(name.span, message, help);
            None
        }
    }
}

#[derive(Clone, Debug, Default)]
struct InterfaceKeys {
    name: Option<At<String>>,
    xdp: XdpMode,
}

fn interface_table() -> Table<At<Interface>> {
    let modes = [("auto", XdpMode::Auto), ("native", XdpMode::Native), ("generic", XdpMode::Generic)];
    Keys::new("`interfaces`", "An interface.", InterfaceKeys::default())
        .text("name", |it| &mut it.name, interface, "eth0", "As `ip link` shows it.")
        .required("name = \"eth0\"")
        .choice(
            "xdp",
            |it| &mut it.xdp,
            &modes,
            "Where the packet path hooks in: \"auto\" is native, else generic with a warning.",
        )
        .build(|_, it| Some(it.name?.map(|name| Interface { name, xdp: it.xdp })))
}

fn pin_directory(text: &str) -> Result<PathBuf, Rejection> {
    let path = Path::new(text);
    let below = path
        .strip_prefix("/sys/fs/bpf")
        .is_ok_and(|rest| rest.components().count() > 0 && !text.contains('.') && !text.ends_with('/'));
    if below {
        return Ok(path.to_owned());
    }
    let help = "name a directory below /sys/fs/bpf, without dots: /sys/fs/bpf/loadbalancer";
    Err((format!("`{text}` cannot hold pins"), help.to_owned()))
}

fn probe_ports(text: &str) -> Result<RangeInclusive<u16>, Rejection> {
    ports(text, 1, "it is to be the first and the last port, within 1024-65535")
        .map_err(|error| write_as("probe_ports", "61000-65535", error))
}

//! Loading the packet path into the kernel: programs, maps, pins and interfaces. The only user of aya.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path as FilePath, PathBuf};

use aya::maps::{Map as AyaMap, MapData, MapError as AyaMapError, ProgramArray, RingBuf};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::{XdpLink, XdpMode};
use aya::programs::{Xdp, loaded_programs};
use aya::{Ebpf, EbpfError, EbpfLoader};
use aya_log::EbpfLogger;
use bytemuck::Pod;
use loadbalancer_common::LAYOUT_VERSION;
use loadbalancer_common::affinity::{BUCKET_ENTRIES, Bucket};
use loadbalancer_common::backend::{Backend, BackendCounters};
use loadbalancer_common::conntrack::{Fragment, FragmentKey, Translation, Tuple};
use loadbalancer_common::net::{Addr4, Addr6};
use loadbalancer_common::outcome::OutcomeCounters;
use loadbalancer_common::path::{LastHop, Path};
use loadbalancer_common::probe::Probe;
use loadbalancer_common::queue::{BUFFER_BYTES, ClassKey};
use loadbalancer_common::ring::{BLOCK_SLOTS, RingBlock, SLOT_BLOCKS};
use loadbalancer_common::service::{Reply, Service, ServiceState, Vip, VipKey4, VipKey6};
use loadbalancer_common::settings::{Settings, program as index};
use loadbalancer_common::signal::{CHANNELS, Observed, Signals};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::map::{Map, MapError, Mapped};
use super::occupant;

static GATEWAY: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/loadbalancer-ebpf"));

const PROGRAM: &str = "loadbalancer";
/// What the main program continues with.
const OTHERS: [(u32, &str); index::COUNT as usize] = [
    (index::SPECIAL4, "special4"),
    (index::SPECIAL6, "special6"),
    (index::IPV6, "ipv6"),
    (index::HOLD4, "hold4"),
    (index::HOLD6, "hold6"),
    (index::TICKET, "ticket"),
    (index::RELEASE4, "release4"),
    (index::RELEASE6, "release6"),
];

/// Sizes of the kernel's maps, fixed while the state lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    pub services: u32,
    pub backends: u32,
    pub rings: u32,
    /// Flows that the affinity table holds well: it gets twice as many entries, as a power of two.
    pub flows: u32,
    /// Flows of `nat` services.
    pub nat_flows: u32,
    /// VIPs, counting each address, port and protocol.
    pub vips: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { services: 64, backends: 1024, rings: 64, flows: 1_000_000, nat_flows: 262_144, vips: 1024 }
    }
}

impl Sizes {
    /// Buckets of the affinity table. At half load of eight-entry buckets with two places a flow, fewer than one flow in
    /// a thousand finds no room (measured by a test in `tests`).
    pub fn buckets(&self) -> u32 {
        (self.flows.max(64) * 2 / BUCKET_ENTRIES as u32).next_power_of_two()
    }

    /// Blocks of one ring: its slots and its members.
    pub fn ring_blocks(&self) -> u32 {
        SLOT_BLOCKS + self.backends.div_ceil(BLOCK_SLOTS)
    }

    /// Paths: each backend's slots may all differ, and a change needs the new ones beside the old.
    pub fn paths(&self) -> u32 {
        self.backends * 4 + 16
    }

    /// Places for watched flows: one for every four of a full table if one in sixteen is watched, as then at most. Few of them
    /// are in the middle of something at a time, and more places would only take the processor's cache.
    pub fn observed(&self) -> u32 {
        (self.flows.max(self.nat_flows) / 64).clamp(1 << 10, 1 << 16).next_power_of_two()
    }

    fn entries(&self) -> [(&'static str, u32); 28] {
        [
            ("PROGRAMS", index::COUNT),
            ("SETTINGS", 1),
            ("VIPS4", self.vips),
            ("VIPS6", self.vips),
            ("REPLIES4", self.backends * 2),
            ("REPLIES6", self.backends * 2),
            ("SERVICES", self.services + 1),
            ("SERVICE_STATE", self.services + 1),
            ("RINGS", self.rings * self.ring_blocks()),
            ("BACKENDS", self.backends + 1),
            ("ACTIVE", self.backends + 1),
            ("PATHS", self.paths()),
            ("AFFINITY", self.buckets()),
            // Two entries a flow.
            ("CONNTRACK4", self.nat_flows * 2),
            ("CONNTRACK6", self.nat_flows * 2),
            ("FRAGMENTS4", 8192),
            ("FRAGMENTS6", 8192),
            ("LAST_HOPS4", self.flows.min(262_144)),
            ("LAST_HOPS6", self.flows.min(262_144)),
            ("NAT_PORTS", self.backends + 1),
            // One for each port; memory is taken as they come.
            ("PROBES", 1 << 16),
            ("OUTCOMES", self.services + 1),
            ("BACKEND_COUNTERS", self.backends + 1),
            ("QUEUE", BUFFER_BYTES),
            // Memory is taken as they come.
            ("CLASSES", 1 << 21),
            ("VERIFIED", 65_536),
            ("OBSERVED", self.observed()),
            ("SIGNALS", (self.backends + 1) * CHANNELS as u32),
        ]
    }
}

#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error("this binary was built without the packet path; build it with `cargo xtask build`")]
    NoObject,
    #[error("the kernel refused the packet path: {0}\nhelp: `loadbalancer doctor` checks what it needs")]
    Load(#[from] Box<EbpfError>),
    #[error("the packet path lacks {0}; build it again with `cargo xtask build`")]
    Missing(&'static str),
    #[error(transparent)]
    Map(#[from] MapError),
    #[error("cannot use {what} of the packet path: {source}")]
    Aya { what: &'static str, source: AyaMapError },
    #[error("cannot take a handle of map {name}: {source}")]
    Handle { name: &'static str, source: io::Error },
    #[error("cannot {action} {}: {source}\nhelp: {}", path.display(), pin_help(source, path))]
    Pin { action: &'static str, path: PathBuf, source: io::Error },
    #[error(
        "the state pinned in {} has another layout or size: {difference}\nhelp: set `on_incompatible = \"replace\"` to \
         drop it (live connections that need it break), or restore the old sizes in [limits]",
        directory.display()
    )]
    Incompatible { directory: PathBuf, difference: String },
    #[error(
        "interface {interface} already runs an XDP program: {program}\nhelp: detach it (`ip link set dev {interface} \
         xdp off`; another gateway of ours: `loadbalancer detach --pins DIRECTORY`), or choose another interface"
    )]
    Occupied { interface: String, program: String },
    #[error(
        "a running controller keeps its state in {}\nhelp: stop it first; to run two, give each its own `pin_directory`",
        directory.display()
    )]
    InUse { directory: PathBuf },
    #[error(
        "{} is not on a BPF file system, so there are no pins\nhelp: name the `pin_directory` of the configuration",
        directory.display()
    )]
    NoPins { directory: PathBuf },
    #[error("nothing is pinned in {}: no gateway runs, or it keeps its state elsewhere", directory.display())]
    NothingPinned { directory: PathBuf },
    #[error("there is no interface {interface}\nhelp: `ip link` lists them; correct the name")]
    NoInterface { interface: String },
    #[error("cannot attach to {interface} in {mode} mode: {reason}")]
    Attach { interface: String, mode: &'static str, reason: String },
}

fn pin_help(error: &io::Error, path: &FilePath) -> String {
    match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem => "make the BPF file system writable (`mount -o remount,rw`)".to_owned(),
        _ => format!(
            "pins need a BPF file system, which is never full; `findmnt --target {}` shows what is mounted there",
            path.display()
        ),
    }
}

/// How an interface runs the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachMode {
    Native,
    Generic,
}

impl AttachMode {
    pub const fn label(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

/// All maps of the packet path.
#[derive(Debug)]
pub struct Maps {
    pub settings: Map<u32, Settings>,
    pub vips4: Map<VipKey4, Vip>,
    pub vips6: Map<VipKey6, Vip>,
    pub replies4: Map<VipKey4, Reply>,
    pub replies6: Map<VipKey6, Reply>,
    pub services: Map<u32, Service>,
    pub service_state: Mapped<ServiceState>,
    pub rings: Mapped<RingBlock>,
    pub backends: Map<u32, Backend>,
    pub active: Mapped<u64>,
    pub paths: Map<u32, Path>,
    pub affinity: Mapped<Bucket>,
    pub conntrack4: Map<Tuple<Addr4>, Translation<Addr4>>,
    pub conntrack6: Map<Tuple<Addr6>, Translation<Addr6>>,
    pub fragments4: Map<FragmentKey<Addr4>, Fragment<Addr4>>,
    pub fragments6: Map<FragmentKey<Addr6>, Fragment<Addr6>>,
    pub last_hops4: Map<Addr4, LastHop>,
    pub last_hops6: Map<Addr6, LastHop>,
    pub probes: Map<u32, Probe>,
    pub outcomes: Map<u32, OutcomeCounters>,
    pub backend_counters: Map<u32, BackendCounters>,
    pub observed: Map<u32, Observed>,
    pub signals: Mapped<Signals>,
    pub classes: Map<ClassKey, u32>,
    pub verified: Map<[u32; 4], u32>,
}

/// The packet path in the kernel.
#[derive(Debug)]
pub struct Kernel {
    ebpf: Ebpf,
    pub maps: Maps,
    pub sizes: Sizes,
    /// Where maps and links are pinned; none: they go with this process.
    directory: Option<PathBuf>,
    /// Whether the maps were found pinned, with the state of an earlier controller.
    pub adopted: bool,
    links: Vec<XdpLink>,
}

impl Kernel {
    /// Loads the packet path. With a directory its maps are pinned there, or taken from there if they are compatible.
    pub fn load(sizes: Sizes, pin_root: Option<&FilePath>) -> Result<Self, KernelError> {
        if GATEWAY.is_empty() {
            return Err(KernelError::NoObject);
        }
        let directory = pin_root.map(versioned);
        let mut adopted = false;
        if let Some(directory) = &directory {
            adopted = compatible(directory, &sizes)?;
            fs::create_dir_all(directory).map_err(|source| KernelError::Pin {
                action: "create",
                path: directory.clone(),
                source,
            })?;
        }
        let entries = sizes.entries();
        let mut loader = EbpfLoader::new();
        for (name, entries) in entries {
            loader.map_max_entries(name, entries);
        }
        if let Some(directory) = &directory {
            for (name, _) in entries {
                loader.map_pin_path(name, directory.join(name));
            }
        }
        let mut ebpf = loader.load(GATEWAY).map_err(Box::new)?;
        for name in OTHERS.map(|(_, name)| name).into_iter().chain([PROGRAM]) {
            program(&mut ebpf, name)?.load().map_err(|error| Box::new(EbpfError::from(error)))?;
        }
        connect(&mut ebpf)?;
        let maps = take_maps(&ebpf)?;
        Ok(Self { ebpf, maps, sizes, directory, adopted, links: Vec::new() })
    }

    /// The loaded program, for test runs.
    pub fn program(&mut self) -> Result<&mut Xdp, KernelError> {
        program(&mut self.ebpf, PROGRAM)
    }

    /// The packet path's log, if it was built with one (`cargo xtask build --debug-log`). Its maps are of this load, so
    /// that of an earlier controller's programs is not seen.
    pub fn packet_log(&mut self) -> Option<EbpfLogger<&'static dyn log::Log>> {
        EbpfLogger::init(&mut self.ebpf).ok()
    }

    /// What the packet path hands over to the controller. Only one may read it.
    pub fn queue_buffer(&self) -> Result<RingBuf<MapData>, KernelError> {
        let failed = |source| KernelError::Aya { what: "the queue's ring buffer", source };
        let Some(AyaMap::RingBuf(data)) = self.ebpf.map("QUEUE") else {
            return Err(KernelError::Missing("QUEUE"));
        };
        let data = data.info().and_then(|info| MapData::from_id(info.id())).map_err(failed)?;
        RingBuf::try_from(AyaMap::RingBuf(data)).map_err(failed)
    }

    /// The maps once more, for another thread.
    pub fn maps_again(&self) -> Result<Maps, KernelError> {
        take_maps(&self.ebpf)
    }

    /// Attaches the program to an interface, or replaces the one that an earlier controller left there, without a gap.
    /// Gives the mode in which it runs, which for a replaced program is the old one's.
    pub fn attach(&mut self, interface: &str, mode: AttachMode) -> Result<AttachMode, KernelError> {
        let index = interface_index(interface)?;
        let pin = self.directory.as_ref().map(|directory| link_pin(directory, interface));
        if let Some(pin) = &pin
            && pin.exists()
        {
            match self.replace(pin, index) {
                Ok(()) => return Ok(occupant::find(index).map_or(mode, |occupant| occupant.mode)),
                // The interface was removed and made anew meanwhile: its link is dead.
                Err(_) => fs::remove_file(pin).map_err(|source| KernelError::Pin {
                    action: "remove",
                    path: pin.clone(),
                    source,
                })?,
            }
        }
        if let Some(program) = attached_program(interface, index) {
            return Err(KernelError::Occupied { interface: interface.to_owned(), program });
        }
        let failed =
            |reason: String| KernelError::Attach { interface: interface.to_owned(), mode: mode.label(), reason };
        let xdp_mode = match mode {
            AttachMode::Native => XdpMode::Driver,
            AttachMode::Generic => XdpMode::Skb,
        };
        let program = program(&mut self.ebpf, PROGRAM)?;
        let id = program.attach_to_if_index(index, xdp_mode).map_err(|error| failed(chain(&error)))?;
        let link = program.take_link(id).map_err(|error| failed(chain(&error)))?;
        match pin {
            Some(pin) => {
                // A link that is not a descriptor cannot be pinned: the old netlink way, which would leave the program
                // behind or take it down with this process. Neither is what was asked for.
                let link: FdLink = link.try_into().map_err(|error| {
                    failed(format!(
                        "the kernel gave no link that can be pinned ({error}); Linux 5.9 or later is needed"
                    ))
                })?;
                link.pin(&pin).map_err(|error| KernelError::Pin {
                    action: "pin a link at",
                    path: pin.clone(),
                    source: io::Error::other(chain(&error)),
                })?;
            }
            None => self.links.push(link),
        }
        Ok(mode)
    }

    fn replace(&mut self, pin: &FilePath, index: u32) -> Result<(), String> {
        let link = PinnedLink::from_pin(pin).map_err(|error| chain(&error))?;
        // A link outlives its interface, and may then be of one that had this name before.
        if occupant::find(index).is_none() {
            return Err("the link is of an interface that is gone".to_owned());
        }
        let link: XdpLink = FdLink::from(link).try_into().map_err(|error| format!("{error}"))?;
        let program = program(&mut self.ebpf, PROGRAM).map_err(|error| error.to_string())?;
        let id = program.attach_to_link(link).map_err(|error| chain(&error))?;
        let link = program.take_link(id).map_err(|error| chain(&error))?;
        // The pin keeps the link; this handle may go.
        drop(link);
        Ok(())
    }

    /// Detaches from an interface.
    pub fn detach(&mut self, interface: &str) -> Result<(), KernelError> {
        match self.directory.as_ref().and_then(|directory| directory.parent()) {
            Some(root) => remove_link(root, interface),
            None => Ok(()),
        }
    }
}

/// What keeps two controllers from the same pins, for as long as it lives.
#[derive(Debug)]
pub struct PinLock(#[expect(dead_code, reason = "the lock lasts as long as the file is open")] File);

/// Takes the pins below a root, which is made if it is not there.
pub fn lock_pins(pin_root: &FilePath) -> Result<PinLock, KernelError> {
    let failed = |action| move |source| KernelError::Pin { action, path: pin_root.to_owned(), source };
    fs::create_dir_all(pin_root).map_err(failed("create"))?;
    let directory = File::open(pin_root).map_err(failed("open"))?;
    match directory.try_lock() {
        Ok(()) => Ok(PinLock(directory)),
        Err(TryLockError::WouldBlock) => Err(KernelError::InUse { directory: pin_root.to_owned() }),
        Err(TryLockError::Error(source)) => Err(failed("lock")(source)),
    }
}

/// Removes everything pinned below a root, of any layout version: programs detach, maps go. False if there was nothing.
/// The root itself stays, if it is locked by who calls this.
pub fn remove_pins(pin_root: &FilePath) -> Result<bool, KernelError> {
    let failed = |path: &FilePath| {
        let path = path.to_owned();
        move |source| KernelError::Pin { action: "remove", path, source }
    };
    let entries = match fs::read_dir(pin_root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        entries => entries.map_err(failed(pin_root))?,
    };
    if !statfs(pin_root).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC) {
        return Err(KernelError::NoPins { directory: pin_root.to_owned() });
    }
    let mut found = false;
    for entry in entries {
        let path = entry.map_err(failed(pin_root))?.path();
        let version = path.file_name().and_then(|name| name.to_str()?.strip_prefix('v')?.parse::<u32>().ok());
        if version.is_some() {
            fs::remove_dir_all(&path).map_err(failed(&path))?;
            found = true;
        }
    }
    Ok(found)
}

/// Removes the root of pins, if nothing else is in it.
pub fn remove_pin_root(pin_root: &FilePath) -> Result<(), KernelError> {
    match fs::remove_dir(pin_root) {
        Err(source) if !matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => {
            Err(KernelError::Pin { action: "remove", path: pin_root.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Removes the link of one interface, which detaches the program.
pub fn remove_link(pin_root: &FilePath, interface: &str) -> Result<(), KernelError> {
    let pin = link_pin(&versioned(pin_root), interface);
    match fs::remove_file(&pin) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(KernelError::Pin { action: "remove", path: pin, source })
        }
        _ => Ok(()),
    }
}

/// Interfaces that have a pinned link below a root.
pub fn pinned_interfaces(pin_root: &FilePath) -> Vec<String> {
    let Ok(entries) = fs::read_dir(versioned(pin_root)) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.strip_prefix(LINK_PREFIX).map(|name| name.replace('+', ".")))
        .collect()
}

const LINK_PREFIX: &str = "link-";

fn versioned(root: &FilePath) -> PathBuf {
    root.join(format!("v{LAYOUT_VERSION}"))
}

fn link_pin(directory: &FilePath, interface: &str) -> PathBuf {
    // The BPF file system has no dots in names.
    directory.join(format!("{LINK_PREFIX}{}", interface.replace('.', "+")))
}

/// Whether there is pinned state, all of it of the layout and sizes wanted.
fn compatible(directory: &FilePath, sizes: &Sizes) -> Result<bool, KernelError> {
    let mut found = 0;
    let wanted = sizes.entries();
    for (name, entries) in wanted {
        let path = directory.join(name);
        if !path.exists() {
            continue;
        }
        let info = MapData::from_pin(&path)
            .and_then(|map| map.info())
            .map_err(|source| KernelError::Aya { what: "a pinned map", source })?;
        if info.max_entries() != entries {
            return Err(KernelError::Incompatible {
                directory: directory.to_owned(),
                difference: format!("map {name} has {} entries, {entries} are wanted", info.max_entries()),
            });
        }
        found += 1;
    }
    if found != 0 && found != wanted.len() {
        return Err(KernelError::Incompatible {
            directory: directory.to_owned(),
            difference: format!("{found} of {} maps are there", wanted.len()),
        });
    }
    Ok(found != 0)
}

/// Handles of all maps of what is loaded.
fn take_maps(ebpf: &Ebpf) -> Result<Maps, KernelError> {
    Maps::take(&|name| match ebpf.map(name) {
        Some(
            AyaMap::Array(data)
            | AyaMap::HashMap(data)
            | AyaMap::LruHashMap(data)
            | AyaMap::PerCpuArray(data)
            | AyaMap::LpmTrie(data)
            | AyaMap::RingBuf(data),
        ) => data
            .info()
            .and_then(|info| MapData::from_id(info.id()))
            .map_err(|source| KernelError::Aya { what: name, source }),
        _ => Err(KernelError::Missing(name)),
    })
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Xdp, KernelError> {
    ebpf.program_mut(name).and_then(|program| program.try_into().ok()).ok_or(KernelError::Missing(name))
}

/// Puts the other programs where the main one finds them. In adopted state this replaces the old ones, which
/// read the same layout.
fn connect(ebpf: &mut Ebpf) -> Result<(), KernelError> {
    for (index, name) in OTHERS {
        let fd = program(ebpf, name)?
            .fd()
            .and_then(|fd| fd.try_clone().map_err(Into::into))
            .map_err(|error| Box::new(EbpfError::from(error)))?;
        let map = ebpf.map_mut("PROGRAMS").ok_or(KernelError::Missing("PROGRAMS"))?;
        ProgramArray::try_from(map)
            .and_then(|mut programs| programs.set(index, &fd, 0))
            .map_err(|source| KernelError::Aya { what: "the program array", source })?;
    }
    Ok(())
}

/// Index of an interface.
pub fn interface_index(interface: &str) -> Result<u32, KernelError> {
    let missing = || KernelError::NoInterface { interface: interface.to_owned() };
    let name = std::ffi::CString::new(interface).map_err(|_| missing())?;
    // SAFETY: the name is a string that ends in zero.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(missing()),
        index => Ok(index),
    }
}

/// The XDP program on an interface, for people.
pub fn occupant(interface: &str) -> Result<Option<String>, KernelError> {
    Ok(attached_program(interface, interface_index(interface)?))
}

/// Name and number of the XDP program on an interface, if there is one.
pub(super) fn attached_program(interface: &str, index: u32) -> Option<String> {
    let id = occupant::find(index)?.program;
    let name = loaded_programs()
        .flatten()
        .find(|program| program.id() == id)
        .and_then(|program| program.name_as_str().map(str::to_owned))
        .unwrap_or_default();
    Some(format!("{} (id {id}) on {interface}", if name.is_empty() { "unnamed" } else { &name }))
}

/// An error with its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

impl Maps {
    /// Opens what an earlier controller has pinned below a root, without loading anything: for looking only.
    pub fn pinned(pin_root: &FilePath) -> Result<Self, KernelError> {
        let directory = versioned(pin_root);
        if !directory.is_dir() {
            return Err(KernelError::NothingPinned { directory });
        }
        Self::take(&|name| {
            MapData::from_pin(directory.join(name)).map_err(|source| KernelError::Aya { what: name, source })
        })
    }

    fn take(source: &dyn Fn(&'static str) -> Result<MapData, KernelError>) -> Result<Self, KernelError> {
        let take = Taker(source);
        Ok(Self {
            settings: take.map("SETTINGS")?,
            vips4: take.map("VIPS4")?,
            vips6: take.map("VIPS6")?,
            replies4: take.map("REPLIES4")?,
            replies6: take.map("REPLIES6")?,
            services: take.map("SERVICES")?,
            service_state: take.map::<u32, _>("SERVICE_STATE")?.mapped()?,
            rings: take.map::<u32, _>("RINGS")?.mapped()?,
            backends: take.map("BACKENDS")?,
            active: take.map::<u32, _>("ACTIVE")?.mapped()?,
            paths: take.map("PATHS")?,
            affinity: take.map::<u32, _>("AFFINITY")?.mapped()?,
            conntrack4: take.map("CONNTRACK4")?,
            conntrack6: take.map("CONNTRACK6")?,
            fragments4: take.map("FRAGMENTS4")?,
            fragments6: take.map("FRAGMENTS6")?,
            last_hops4: take.map("LAST_HOPS4")?,
            last_hops6: take.map("LAST_HOPS6")?,
            probes: take.map("PROBES")?,
            outcomes: take.map("OUTCOMES")?,
            backend_counters: take.map("BACKEND_COUNTERS")?,
            observed: take.map("OBSERVED")?,
            signals: take.map::<u32, _>("SIGNALS")?.mapped()?,
            classes: take.map("CLASSES")?,
            verified: take.map("VERIFIED")?,
        })
    }
}

struct Taker<'a>(&'a dyn Fn(&'static str) -> Result<MapData, KernelError>);

impl Taker<'_> {
    fn map<K: Pod, V: Pod>(&self, name: &'static str) -> Result<Map<K, V>, KernelError> {
        let data = (self.0)(name)?;
        let info = data.info().map_err(|source| KernelError::Aya { what: name, source })?;
        if info.key_size() as usize != size_of::<K>() || info.value_size() as usize != size_of::<V>() {
            return Err(KernelError::Missing(name));
        }
        let fd: OwnedFd =
            data.fd().as_fd().try_clone_to_owned().map_err(|source| KernelError::Handle { name, source })?;
        Ok(Map::new(fd, name, info.max_entries()))
    }
}

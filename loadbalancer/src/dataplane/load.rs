//! Loading the packet path into the kernel: its programs, with the maps that are pinned or new ones.

use std::fs;
use std::path::{Path, PathBuf};

use aya::maps::{Map as AyaMap, MapData, ProgramArray, RingBuf};
use aya::programs::Xdp;
use aya::programs::xdp::XdpLink;
use aya::{Ebpf, EbpfError, EbpfLoader};
use loadbalancer_common::settings::program as index;

use super::error::KernelError;
use super::maps::{Maps, entries, is_compatible};
use super::packet_log::PacketLog;
use super::pins::versioned;
use super::queue_buffer::QueueBuffer;
use super::sizes::Sizes;

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

/// The packet path in the kernel.
#[derive(Debug)]
pub struct Kernel {
    ebpf: Ebpf,
    pub maps: Maps,
    pub sizes: Sizes,
    /// Where maps and links are pinned; none: they go with this process.
    pub(super) directory: Option<PathBuf>,
    /// Whether the maps were found pinned, with the state of an earlier controller.
    pub adopted: bool,
    /// Those that are not pinned.
    pub(super) links: Vec<XdpLink>,
}

impl Kernel {
    /// Loads the packet path. With a directory its maps are pinned there, or taken from there if they are compatible.
    ///
    /// # Errors
    /// This binary has no packet path, the kernel refuses it, or what is pinned has another layout or size.
    pub fn load(sizes: Sizes, pin_root: Option<&Path>) -> Result<Self, KernelError> {
        if GATEWAY.is_empty() {
            return Err(KernelError::NoObject);
        }
        Self::load_object(GATEWAY, sizes, pin_root)
    }

    /// The same with the packet path of another build, to compare both.
    ///
    /// # Errors
    /// As [`Self::load`]; or the object is no packet path with these maps.
    pub fn load_object(object: &[u8], sizes: Sizes, pin_root: Option<&Path>) -> Result<Self, KernelError> {
        let directory = pin_root.map(versioned);
        let mut adopted = false;
        if let Some(directory) = &directory {
            adopted = is_compatible(directory, &sizes)?;
            fs::create_dir_all(directory).map_err(|source| KernelError::Pin {
                action: "create",
                path: directory.clone(),
                source,
            })?;
        }
        let entries = entries(&sizes);
        let mut loader = EbpfLoader::new();
        for (name, entries) in entries {
            loader.map_max_entries(name, entries);
        }
        if let Some(directory) = &directory {
            for (name, _) in entries {
                loader.map_pin_path(name, directory.join(name));
            }
        }
        let mut ebpf = loader.load(object).map_err(Box::new)?;
        for name in OTHERS.map(|(_, name)| name).into_iter().chain([PROGRAM]) {
            program(&mut ebpf, name)?.load().map_err(|error| Box::new(EbpfError::from(error)))?;
        }
        connect(&mut ebpf)?;
        let maps = take_maps(&ebpf)?;
        Ok(Self { ebpf, maps, sizes, directory, adopted, links: Vec::new() })
    }

    /// The loaded program, to attach it, and for test runs.
    ///
    /// # Errors
    /// The packet path has none.
    pub fn program(&mut self) -> Result<&mut Xdp, KernelError> {
        program(&mut self.ebpf, PROGRAM)
    }

    /// The packet path's log, if it was built with one (`cargo xtask build --debug-log`). Its maps are of this load, so
    /// that of an earlier controller's programs is not seen.
    pub fn packet_log(&mut self) -> Option<PacketLog> {
        PacketLog::of(&mut self.ebpf)
    }

    /// What the packet path hands over to the controller. Only one may read it.
    ///
    /// # Errors
    /// The kernel gives no handle of it, or does not map it into memory.
    pub fn queue_buffer(&self) -> Result<QueueBuffer, KernelError> {
        let failed = |source| KernelError::Aya { what: "the queue's ring buffer", source };
        let Some(AyaMap::RingBuf(data)) = self.ebpf.map("QUEUE") else {
            return Err(KernelError::Missing("QUEUE"));
        };
        let data = data.info().and_then(|info| MapData::from_id(info.id())).map_err(failed)?;
        RingBuf::try_from(AyaMap::RingBuf(data)).map(QueueBuffer).map_err(failed)
    }

    /// The maps once more, for another thread.
    ///
    /// # Errors
    /// The kernel gives no handle of one, or does not map it into memory.
    pub fn maps_again(&self) -> Result<Maps, KernelError> {
        take_maps(&self.ebpf)
    }
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

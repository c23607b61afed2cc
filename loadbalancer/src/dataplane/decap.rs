//! The program for servers that takes packets out of their tunnel.

use std::net::IpAddr;

use aya::maps::{Array, HashMap, PerCpuArray};
use aya::programs::Xdp;
use aya::{Ebpf, EbpfError, EbpfLoader};
use loadbalancer_common::net::AnyAddr;

use super::attached_program::{AttachMode, reject_occupied};
use super::error::{KernelError, chain};
use crate::network::interface;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/decap-ebpf"));

/// The attached program; dropping it detaches.
#[derive(Debug)]
pub struct Decap {
    ebpf: Ebpf,
}

impl Decap {
    /// Attaches to an interface, for tunnels that end at some addresses.
    ///
    /// # Errors
    /// There is no such interface, a program is attached to it already, or the kernel refuses ours.
    pub fn attach(interface: &str, gue_port: u16, mode: AttachMode, ends: &[IpAddr]) -> Result<Self, KernelError> {
        if OBJECT.is_empty() {
            return Err(KernelError::NoObject);
        }
        let index = interface::index(interface)?;
        reject_occupied(interface, index)?;
        let mut ebpf = EbpfLoader::new().load(OBJECT).map_err(Box::new)?;
        let map = ebpf.map_mut("GUE").ok_or(KernelError::Missing("GUE"))?;
        Array::try_from(map)
            .and_then(|mut port: Array<_, u32>| port.set(0, u32::from(gue_port), 0))
            .map_err(|source| KernelError::Aya { what: "the port of GUE", source })?;
        set_ends(&mut ebpf, ends)?;
        let program: &mut Xdp = ebpf
            .program_mut("decap")
            .and_then(|program| program.try_into().ok())
            .ok_or(KernelError::Missing("decap"))?;
        program.load().map_err(|error| Box::new(EbpfError::from(error)))?;
        program.attach_to_if_index(index, mode.xdp_mode()).map_err(|error| KernelError::Attach {
            interface: interface.to_owned(),
            mode: mode.label(),
            reason: chain(&error),
        })?;
        Ok(Self { ebpf })
    }

    /// Changes the addresses at which tunnels end.
    ///
    /// # Errors
    /// There are more than the map holds, or the kernel refuses.
    pub fn set_ends(&mut self, ends: &[IpAddr]) -> Result<(), KernelError> {
        set_ends(&mut self.ebpf, ends)
    }

    /// Packets taken out of a tunnel until now.
    ///
    /// # Errors
    /// The kernel refuses to tell.
    pub fn packets(&self) -> Result<u64, KernelError> {
        let failed = |source| KernelError::Aya { what: "the counter of packets", source };
        let map = self.ebpf.map("DECAPSULATED").ok_or(KernelError::Missing("DECAPSULATED"))?;
        let counters: PerCpuArray<_, u64> = PerCpuArray::try_from(map).map_err(failed)?;
        Ok(counters.get(&0, 0).map_err(failed)?.iter().sum())
    }
}

fn set_ends(ebpf: &mut Ebpf, ends: &[IpAddr]) -> Result<(), KernelError> {
    let failed = |source| KernelError::Aya { what: "the addresses of tunnels", source };
    let map = ebpf.map_mut("ENDS").ok_or(KernelError::Missing("ENDS"))?;
    let mut map: HashMap<_, [u32; 4], u32> = HashMap::try_from(map).map_err(failed)?;
    let wanted: Vec<[u32; 4]> = ends.iter().map(|end| AnyAddr::from(*end).0).collect();
    let there: Vec<[u32; 4]> = map.keys().collect::<Result<_, _>>().map_err(failed)?;
    for end in there.iter().filter(|end| !wanted.contains(end)) {
        map.remove(end).map_err(failed)?;
    }
    wanted.iter().filter(|end| !there.contains(end)).try_for_each(|end| map.insert(end, 0, 0)).map_err(failed)
}

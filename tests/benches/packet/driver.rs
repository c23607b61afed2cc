//! Has programs of the packet path run on packets that a generator makes in the kernel.

use std::sync::atomic::Ordering;

use anyhow::{Context, Result, bail};
use aya::maps::{Array, ProgramArray};
use aya::programs::{ProgramFd, TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader, Pod};
use loadbalancer::dataplane::ids::ServiceNumber;
use loadbalancer::dataplane::sizes::Sizes;
use loadbalancer_common::checksum::fold;
use loadbalancer_common::net::{protocol, tcp_flag};
use loadbalancer_common::outcome::Outcome;
use loadbalancer_common::path::encap;
use loadbalancer_common::service::mode;
use loadbalancer_common::signal::mask_of;
use loadbalancer_tests::frames::frame::{Frame, Transport};
use loadbalancer_tests::frames::world::{Server, World};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

static GENERATOR: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/generator-ebpf"));

const SERVERS: usize = 100;
const TEMPLATE: usize = 80;
/// Bytes of payload with which a frame is as long as one that the generator knows.
const PAYLOAD: usize = 12;
/// Flows in the table.
pub(super) const FLOWS: [u32; 4] = [1, 1_000, 100_000, 1_000_000];
/// As the configuration has it by default.
pub(super) const USUAL_FLOWS_PER_SAMPLE: u16 = 16;
/// Room for the largest number of flows, and for new ones beside.
pub(super) const SIZES: Sizes =
    Sizes { services: 16, backends: 1024, rings: 16, flows: 1_000_000, nat_flows: 1_200_000, vips: 1024 };

/// A mode as it is measured.
#[derive(Clone, Copy)]
pub(super) struct Mode {
    pub(super) name: &'static str,
    pub(super) mode: u8,
    pub(super) encap: u8,
    pub(super) v6: bool,
    pub(super) udp: bool,
    /// With the options that TCP segments usually have.
    pub(super) options: bool,
}

impl Mode {
    /// Those that have a bar. The plain balancer takes IPv4 in any mode, and encapsulates it.
    pub(super) fn has_reference(&self) -> bool {
        matches!(self.name, "dsr-ipip" | "nat")
    }
}

pub(super) const MODES: [Mode; 8] = [
    Mode { name: "dsr-l2", mode: mode::DSR, encap: encap::NONE, v6: false, udp: false, options: false },
    Mode { name: "dsr-ipip", mode: mode::DSR, encap: encap::IPV4, v6: false, udp: false, options: false },
    Mode { name: "dsr-ipip UDP", mode: mode::DSR, encap: encap::IPV4, v6: false, udp: true, options: false },
    Mode { name: "dsr-ipip IPv6", mode: mode::DSR, encap: encap::IPV6, v6: true, udp: false, options: false },
    Mode { name: "dsr-gue", mode: mode::DSR, encap: encap::GUE_IPV4, v6: false, udp: false, options: false },
    Mode { name: "dnat", mode: mode::DNAT, encap: encap::NONE, v6: false, udp: false, options: false },
    Mode { name: "nat", mode: mode::NAT, encap: encap::NONE, v6: false, udp: false, options: false },
    Mode { name: "nat timestamps", mode: mode::NAT, encap: encap::NONE, v6: false, udp: false, options: true },
];

/// As Linux sends them: segment size, SACK permitted, timestamps and window scale with a SYN, then timestamps alone.
const SYN_OPTIONS: [u8; 20] = [2, 4, 5, 0xb4, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7];
const OPTIONS: [u8; 12] = [1, 1, 8, 10, 1, 2, 3, 5, 5, 6, 7, 8];

/// As the generator has it.
#[repr(C)]
#[derive(Clone, Copy)]
struct Config {
    flows: u32,
    next: u32,
    length: u32,
    address_at: u32,
    port_at: u32,
    address: u32,
    random: u32,
    ip_checksum_at: u32,
    checksum_at: u32,
    ip_sum: u32,
    sum: u32,
    template: [u8; TEMPLATE],
}

// SAFETY: only numbers, without padding.
unsafe impl Pod for Config {}

/// Keeps this thread on the last processor: interrupts tend to go to the first one.
pub(super) fn stay() -> Result<()> {
    let mut cpu = CpuSet::new();
    cpu.set(std::thread::available_parallelism()?.get() - 1)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &cpu)?)
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Packets of flows that are in the table.
    Established,
    /// The same with a little payload, always the same, which a watched flow takes for sent again: the most that there is
    /// to count.
    Data,
    /// First packets of ever new flows, beside those in the table.
    New,
}

impl Kind {
    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Established => "established",
            Self::Data => "data",
            Self::New => "new",
        }
    }
}

/// How often and how long is measured.
#[derive(Clone, Copy)]
pub(super) struct Extent {
    pub(super) rounds: usize,
    /// Packets of each round.
    pub(super) packets: u32,
}

/// Of a packet, in ns and as ratios, one entry a round.
#[derive(Default)]
pub(super) struct Costs {
    pub(super) null: Vec<f64>,
    /// Without generator and null program.
    pub(super) net: Vec<f64>,
    pub(super) to_null: Vec<f64>,
    /// Net cost to that of the plain balancer, where there is one.
    pub(super) to_plain: Vec<f64>,
}

pub(super) struct Bench {
    pub(super) world: World,
    pub(super) generator: Ebpf,
    pub(super) service: u16,
    pub(super) mode: Mode,
}

impl Bench {
    pub(super) fn new(mode: Mode) -> Result<Self> {
        Self::of(World::with_sizes(SIZES)?, mode)
    }

    /// With the packet path of another build.
    pub(super) fn with_object(object: &[u8], mode: Mode) -> Result<Self> {
        Self::of(World::with_object(object, SIZES)?, mode)
    }

    fn of(mut world: World, mode: Mode) -> Result<Self> {
        if GENERATOR.is_empty() {
            bail!("this was built without the generator; run it with `cargo xtask bench packet`");
        }
        let servers: Vec<Server> = (0..SERVERS)
            .map(|number| {
                let address = if mode.v6 { format!("fd00::1:{number:x}") } else { format!("10.0.1.{number}") };
                Server::at(&address).with(|server| server.encap = mode.encap)
            })
            .collect();
        let vip = if mode.v6 { "2001:db8::10" } else { "192.0.2.10" };
        let number = if mode.udp { protocol::UDP } else { protocol::TCP };
        let (service, _) = world.service(mode.mode, 0, &[(vip, 80, number)], &servers)?;
        // All ports that there are: a million flows go to a hundred servers.
        world.change_service(service, |service| (service.nat_port_first, service.nat_port_last) = (1_024, 65_535))?;
        let mut generator = EbpfLoader::new().load(GENERATOR)?;
        for name in ["null", "lru", "generator"] {
            program(&mut generator, name)?.load()?;
        }
        let map = generator.map_mut("OUTER").context("the generator has outer headers")?;
        let mut outer: Array<_, [u32; 5]> = Array::try_from(map)?;
        for backend in 0..outer.len() {
            let words: [[u8; 4]; 5] = [[0x45, 0, 0, 0], [0, 0, 0x40, 0], [64, 4, 0, 0], [10, 0, 0, 1], [10, 0, 1, 9]];
            outer.set(backend, words.map(u32::from_ne_bytes), 0)?;
        }
        world.watch(service, mask_of(USUAL_FLOWS_PER_SAMPLE))?;
        Ok(Self { world, generator, service, mode })
    }

    pub(super) fn measure(&mut self, kind: Kind, flows: u32, extent: Extent) -> Result<Costs> {
        self.prime(flows)?;
        let mut costs = Costs::default();
        for round in 0..extent.rounds {
            let run = self.packets(kind, flows, round as u32 + 1, extent.packets);
            let full = self.forward(&run)?;
            let null = self.generate(Target::Null, &run)?;
            if self.mode.has_reference() {
                let lru = self.generate(Target::Lru, &run)?;
                costs.to_plain.push((full - null) / (lru - null));
            }
            costs.null.push(null);
            costs.net.push(full - null);
            costs.to_null.push((full - null) / null);
        }
        Ok(costs)
    }

    /// Net ns of a packet in a round.
    pub(super) fn net(&mut self, kind: Kind, flows: u32, round: u32, packets: u32) -> Result<f64> {
        let run = self.packets(kind, flows, round, packets);
        Ok(self.forward(&run)? - self.generate(Target::Null, &run)?)
    }

    /// Mean time of a packet in ns, generator included; all are forwarded.
    fn forward(&mut self, run: &Run) -> Result<f64> {
        let before = self.forwarded()?;
        let full = self.generate(Target::Gateway, run)?;
        let forwarded = self.forwarded()? - before;
        if forwarded < u64::from(run.packets) * 99 / 100 {
            bail!("{}: only {forwarded} of {} packets were forwarded", self.mode.name, run.packets);
        }
        Ok(full)
    }

    /// Opens flows.
    pub(super) fn prime(&mut self, flows: u32) -> Result<()> {
        self.forget()?;
        // Each flow once as new, once more as established.
        for flags in [tcp_flag::SYN, tcp_flag::ACK] {
            let run = Run { order: Order::Sequence, flags, address: 0x0b00_0000, flows, packets: flows, payload: 0 };
            self.generate(Target::Gateway, &run)?;
            if self.mode.has_reference() {
                self.generate(Target::Lru, &run)?;
            }
        }
        Ok(())
    }

    /// Net costs of rounds with no flow watched, one in sixteen, and all.
    pub(super) fn measure_passive(&mut self, kind: Kind, flows: u32, extent: Extent) -> Result<[Vec<f64>; 3]> {
        let mut costs = [Vec::new(), Vec::new(), Vec::new()];
        let mut runs = 1;
        for round in 0..extent.rounds {
            let mut nets = [0.0; 3];
            for (net, flows_per_sample) in nets.iter_mut().zip([0, 16, 1]) {
                self.world.watch(self.service, mask_of(flows_per_sample))?;
                // Flows of `nat` are chosen when they begin.
                if self.mode.mode == mode::NAT || round == 0 {
                    self.prime(flows)?;
                }
                let run = self.packets(kind, flows, runs, extent.packets);
                runs += 1;
                let full = self.generate(Target::Gateway, &run)?;
                *net = full - self.generate(Target::Null, &run)?;
            }
            if flows == 1 && kind != Kind::New {
                // The one flow is watched or it is not; of many, one in sixteen is.
                nets[1] = nets[0] + (nets[2] - nets[0]) / 16.0;
            }
            costs.iter_mut().zip(nets).for_each(|(costs, net)| costs.push(net));
        }
        self.world.watch(self.service, mask_of(USUAL_FLOWS_PER_SAMPLE))?;
        Ok(costs)
    }

    pub(super) fn has_room_for_data(&self) -> bool {
        !self.mode.v6 && !self.mode.udp && !self.mode.options
    }

    fn forget(&self) -> Result<()> {
        let maps = &self.world.kernel().maps;
        for word in maps.affinity.words().iter().chain(maps.active.words()) {
            word.store(0, Ordering::Relaxed);
        }
        if self.mode.mode == mode::NAT {
            let mut keys = Vec::new();
            maps.conntrack4.for_each(|key, _| keys.push(*key))?;
            keys.iter().try_for_each(|key| maps.conntrack4.remove(key).map(drop))?;
        }
        Ok(())
    }

    fn forwarded(&self) -> Result<u64> {
        let stats = loadbalancer::dataplane::stats::read(&self.world.kernel().maps)?;
        Ok(stats.services[&ServiceNumber(self.service)].outcomes[Outcome::Forwarded as usize])
    }

    /// The packets of a round; numbers of rounds are from 1 on and differ for what is to be new each time.
    pub(super) fn packets(&self, kind: Kind, flows: u32, round: u32, packets: u32) -> Run {
        match kind {
            Kind::Established | Kind::Data => Run {
                order: Order::Random,
                flags: tcp_flag::ACK,
                address: 0x0b00_0000,
                flows,
                packets,
                payload: if kind == Kind::Data { PAYLOAD } else { 0 },
            },
            // Never the same twice; few enough that those in the table are not pushed out.
            Kind::New => {
                let packets = packets.min(100_000);
                Run {
                    order: Order::Sequence,
                    flags: tcp_flag::SYN,
                    address: 0x0c00_0000 + (round << 16),
                    flows: packets,
                    packets,
                    payload: 0,
                }
            }
        }
    }

    /// Mean time of a packet in ns.
    pub(super) fn generate(&mut self, target: Target, run: &Run) -> Result<f64> {
        let fd = match target {
            Target::Gateway => fd(self.world.kernel_mut().program()?)?,
            Target::Null => fd(program(&mut self.generator, "null")?)?,
            Target::Lru => fd(program(&mut self.generator, "lru")?)?,
        };
        let map = self.generator.map_mut("TARGET").context("the generator has a program array")?;
        ProgramArray::try_from(map)?.set(0, &fd, 0)?;
        let frame = self.frame(run.flags, run.payload);
        let mut template = [0; TEMPLATE];
        template[..frame.len()].copy_from_slice(&frame);
        let (address_at, port_at) = if self.mode.v6 { (14 + 8 + 12, 54) } else { (14 + 12, 34) };
        let checksum_at = port_at + if self.mode.udp { 6 } else { 16 };
        let ip_checksum_at = if self.mode.v6 { 0 } else { 14 + 10 };
        let word = |at: u32| u16::from_ne_bytes([frame[at as usize], frame[at as usize + 1]]);
        // What a checksum sums, less what the generator fills in.
        let without = |checksum: u16, parts: &[u16]| -> u32 {
            let sum = u64::from(!checksum) + parts.iter().map(|part| u64::from(!part)).sum::<u64>();
            u32::from(fold(sum))
        };
        let addresses = [word(address_at), word(address_at + 2)];
        let config = Config {
            flows: run.flows,
            next: 0,
            length: frame.len() as u32,
            address_at,
            port_at,
            address: run.address,
            random: u32::from(run.order == Order::Random),
            ip_checksum_at,
            checksum_at,
            ip_sum: if self.mode.v6 { 0 } else { without(word(ip_checksum_at), &addresses) },
            sum: without(word(checksum_at), &[addresses[0], addresses[1], word(port_at)]),
            template,
        };
        let map = self.generator.map_mut("CONFIG").context("the generator has a configuration")?;
        Array::try_from(map)?.set(0, config, 0)?;
        let options = TestRunOptions { data_in: Some(&frame), repeat: run.packets, ..TestRunOptions::default() };
        let result = program(&mut self.generator, "generator")?.test_run(options)?;
        if result.return_value == 0 {
            bail!("{}: the generator or the program under test aborted", self.mode.name);
        }
        Ok(result.duration.as_nanos() as f64)
    }

    fn frame(&self, flags: u8, payload: usize) -> Vec<u8> {
        let (client, vip) = if self.mode.v6 { ("2001:db8:1::7", "2001:db8::10") } else { ("11.0.0.0", "192.0.2.10") };
        if self.mode.udp {
            // As long as a TCP header.
            Frame::udp(client, 1_024, vip, 80).with(|frame| frame.payload = vec![0; 12]).bytes()
        } else {
            Frame::tcp(client, 1_024, vip, 80, flags)
                .with(|frame| {
                    frame.payload = vec![0; payload];
                    if let Transport::Tcp { options, .. } = &mut frame.transport
                        && self.mode.options
                    {
                        *options = if flags == tcp_flag::SYN { SYN_OPTIONS.to_vec() } else { OPTIONS.to_vec() };
                    }
                })
                .bytes()
        }
    }
}

/// Packets that are generated.
pub(super) struct Run {
    order: Order,
    flags: u8,
    /// Of the first flow's client.
    address: u32,
    flows: u32,
    packets: u32,
    /// Bytes behind the transport header.
    payload: usize,
}

#[derive(Clone, Copy)]
pub(super) enum Target {
    Null,
    Gateway,
    /// A plain balancer: the least that one with the kernel's LRU hash map does.
    Lru,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Sequence,
    Random,
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    Ok(ebpf.program_mut(name).with_context(|| format!("the generator has a program {name}"))?.try_into()?)
}

fn fd(program: &Xdp) -> Result<ProgramFd> {
    Ok(program.fd()?.try_clone()?)
}

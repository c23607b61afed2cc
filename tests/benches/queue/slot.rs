//! How long a place at a server stays free while somebody waits: from the packet that ends a flow to the first of the next, both
//! seen at the server's interface. That is a thread that a packet wakes and that sends another; so is an echo server, which is
//! measured the same way to compare with.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use loadbalancer::network::{interface, packet_socket};
use loadbalancer_common::net::{protocol, tcp_flag};
use loadbalancer_tests::lab::host::Host;
use loadbalancer_tests::lab::plan::LabConfig;
use loadbalancer_tests::traffic::hold::Protocol;
use loadbalancer_tests::traffic::load::{Load, Pace};
use nix::errno::Errno;
use socket2::{Socket, Type};

use crate::qos::world::{self, Site, World, behaviour, vip};
use crate::scenario::{Round, Value};

const MEAN: Duration = Duration::from_millis(2);
const TIME: Duration = Duration::from_secs(15);
/// Port of the echo server.
const ECHO: u16 = 7;
/// One place, and always somebody who waits for it.
const MARK: u32 = 1;
const WORKERS: u32 = 8;
const ECHO_TIME: Duration = Duration::from_secs(5);
const ECHO_EVERY: Duration = Duration::from_millis(5);
/// The most that a place may stay free, against the time of an echo at the server.
const TO_ECHO: f64 = 4.0;

pub fn round(round: Round) -> Result<Vec<Value>> {
    let config = LabConfig { clients: 1, servers: 1, ..LabConfig::default() };
    let site = Site::up(&config, behaviour(MEAN))?;
    let hosts: Vec<(&Host, String)> =
        site.lab.servers.iter().map(|host| (host, format!("high_water = {MARK}"))).collect();
    let keys = "quality = { weights = \"configured\" }\n[service.queue]\ndeadline = \"5s\"\n";
    let text = world::service("web", "nat", vip(1), keys, &hosts)?;
    let world = World::up(site, &text)?;
    world.wait_ready()?;
    let stop = AtomicBool::new(false);
    let mut times = thread::scope(|scope| -> Result<_> {
        let server = &world.site.lab.servers[0];
        let seen = scope.spawn(|| server.namespace().run(|| watch(&server.near.device, &stop, Places::default())));
        let mut load = Load::new((vip(1), 80).into());
        load.query.close = true;
        load.pace = Pace::Closed { workers: WORKERS };
        load.max_time = TIME;
        let report = load.start(world.site.lab.clients[0].namespace()).map(|load| load.wait());
        stop.store(true, Ordering::Relaxed);
        let seen = seen.join().expect("the thread that watches does not panic")??;
        let report = report?;
        eprintln!("  {} requests, {:?}", report.ok, report.errors);
        Ok(seen)
    })?;
    if round.explain {
        eprintln!("{}", world.gateway.ask(&["queue"]));
    }
    ensure!(times.len() > 500, "only {} places became free", times.len());
    times.sort_unstable();
    let echoes = echoes(&world)?;
    let at = |times: &[u64], share: f64| times[((times.len() - 1) as f64 * share) as usize] as f64 / 1e3;
    let [p50, p99] = [0.5, 0.99].map(|share| (at(&times, share), at(&echoes, share)));
    Ok(vec![
        Value::new("slot freed to SYN on the wire: p50", "us", p50.0),
        Value::new("slot freed to SYN on the wire: p99", "us", p99.0),
        Value::new("slot freed to SYN on the wire: most", "us", at(&times, 1.0)),
        Value::new("echo at the server: p50", "us", p50.1),
        Value::new("echo at the server: p99", "us", p99.1),
        Value::new("slot freed to SYN on the wire / echo: p50", "", p50.0 / p50.1).at_most(TO_ECHO),
        Value::new("slot freed to SYN on the wire / echo: p99", "", p99.0 / p99.1).at_most(TO_ECHO),
    ])
}

/// Nanoseconds from a line that comes to the server to its echo, in order of size.
fn echoes(world: &World) -> Result<Vec<u64>> {
    let server = &world.site.lab.servers[0];
    let stop = AtomicBool::new(false);
    let mut times = thread::scope(|scope| -> Result<_> {
        let seen = scope.spawn(|| server.namespace().run(|| watch(&server.near.device, &stop, Echoes::default())));
        let held = world::hold(world.site.lab.clients[0].namespace(), vip(1), Protocol::Tcp, 1, ECHO_EVERY);
        thread::sleep(ECHO_TIME);
        stop.store(true, Ordering::Relaxed);
        let seen = seen.join().expect("the thread that watches does not panic")??;
        held?;
        Ok(seen)
    })?;
    ensure!(times.len() > 200, "only {} echoes were seen", times.len());
    times.sort_unstable();
    Ok(times)
}

/// What the packets at a server's interface tell.
trait Observer {
    /// Nanoseconds that end with this packet, if any do.
    fn see(&mut self, packet: &Packet) -> Option<u64>;
}

/// From the first packet that ends a flow of the server's to the first of the next flow.
#[derive(Default)]
struct Places {
    /// Port of the flow that has the place, and when it ended.
    current: u16,
    ended: Option<u64>,
}

impl Observer for Places {
    fn see(&mut self, packet: &Packet) -> Option<u64> {
        let peer_port = if packet.ports[1] == 80 { packet.ports[0] } else { packet.ports[1] };
        if packet.flags & tcp_flag::SYN != 0 && packet.flags & tcp_flag::ACK == 0 {
            self.current = peer_port;
            return self.ended.take().map(|ended| packet.time_ns.saturating_sub(ended));
        }
        if packet.flags & (tcp_flag::FIN | tcp_flag::RST) != 0 && peer_port == self.current && self.ended.is_none() {
            self.ended = Some(packet.time_ns);
        }
        None
    }
}

/// From a line to its echo, of one flow.
#[derive(Default)]
struct Echoes {
    asked: Option<u64>,
}

impl Observer for Echoes {
    fn see(&mut self, packet: &Packet) -> Option<u64> {
        match packet.ports {
            [_, ECHO] if packet.has_payload => self.asked = Some(packet.time_ns),
            [ECHO, _] if packet.has_payload => {
                return self.asked.take().map(|asked| packet.time_ns.saturating_sub(asked));
            }
            _ => {}
        }
        None
    }
}

fn watch(device: &str, stop: &AtomicBool, mut observer: impl Observer) -> Result<Vec<u64>> {
    let socket = socket(device).context("cannot watch an interface")?;
    let mut times = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        times.extend(receive(&socket)?.and_then(|packet| observer.see(&packet)));
    }
    Ok(times)
}

struct Packet {
    time_ns: u64,
    flags: u8,
    /// Source and destination.
    ports: [u16; 2],
    has_payload: bool,
}

fn socket(device: &str) -> Result<Socket> {
    let socket = packet_socket::socket(interface::index(device)?, Type::DGRAM, libc::ETH_P_ALL as u16)?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    socket.set_recv_buffer_size(8 << 20)?;
    let on: libc::c_int = 1;
    // SAFETY: the option takes an integer, which lives through the call.
    Errno::result(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_TIMESTAMPNS,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    })?;
    Ok(socket)
}

/// A TCP packet, with the kernel's own time stamp. None: nothing came for a while, or something else.
fn receive(socket: &Socket) -> Result<Option<Packet>> {
    let mut data = [0u8; 128];
    let mut control = [0u64; 16];
    let mut part = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() };
    // SAFETY: all zeroes is a valid `msghdr`.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: the message and what it points to live through the call, with their lengths.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0) };
    if length < 0 {
        let error = io::Error::last_os_error();
        return match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
            _ => Err(error.into()),
        };
    }
    let mut time_ns = None;
    // SAFETY: the kernel has filled in the control messages, which the macros walk within their length.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_TIMESTAMPNS {
                let time = libc::CMSG_DATA(header).cast::<libc::timespec>().read_unaligned();
                time_ns = Some(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64);
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    let is_tcp = length >= 40 && data[0] == 0x45 && data[9] == protocol::TCP;
    let time_ns = time_ns.context("the kernel gave no time stamp")?;
    let word = |at: usize| u16::from_be_bytes([data[at], data[at + 1]]);
    let headers = 20 + u16::from(data[32] >> 4) * 4;
    let packet = Packet { time_ns, flags: data[33], ports: [word(20), word(22)], has_payload: word(2) > headers };
    Ok(is_tcp.then_some(packet))
}

//! A relay: the two halves of a cut link, joined by a thread that impairs what passes.
//!
//! The thread takes frames from a packet socket on one half and sends them from one on the other, so that everything
//! passes, ARP and neighbour discovery included; only VLAN tags, which the lab has not, would be stripped. The senders
//! at both ends must finish their packets ([`super::offload`]), as a packet socket sees them as they are.

use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::sockopt::{RcvBufForce, ReceiveTimestampns, SndBufForce};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, send, setsockopt, socket,
};
use nix::sys::time::TimeSpec;
use thiserror::Error;

use super::impair::{Impairment, Lane, LaneCounts};
use super::netns::{Namespace, NetnsError};
use super::priority;
use super::xdp::{XdpError, XdpLink, attach_xdp_pass};

/// Larger than any frame.
const BUFFER_BYTES: usize = 1 << 17;
/// What the kernel may hold for the thread, and the thread may have under way at the other half.
const SOCKET_BYTES: usize = 64 << 20;
/// Frames taken from one half before due frames of the other have their turn.
const BATCH: usize = 64;
/// A wake-up costs more than a frame. So frames that are due wait for each other, at most so long, and frames that will
/// be delayed for at least [`RESTFUL_DELAY`] are looked for only so often; the kernel tells when they arrived.
const REST: Duration = Duration::from_micros(300);
const RESTFUL_DELAY: Duration = Duration::from_millis(1);

#[derive(Debug, Error)]
pub enum RelayError {
    #[error(transparent)]
    Namespace(#[from] NetnsError),
    #[error(transparent)]
    Xdp(#[from] XdpError),
    #[error("cannot open a packet socket on {device} in {namespace}: {source}; root is needed")]
    Socket { device: String, namespace: String, source: Errno },
    #[error("cannot give a relay's thread real-time priority: {0}; root is needed")]
    Priority(Errno),
    #[error("cannot make the descriptor that stops the relay: {0}; are file descriptors used up?")]
    Stop(Errno),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    ToServers = 0,
    ToGateway = 1,
}

impl Direction {
    pub const BOTH: [Self; 2] = [Self::ToServers, Self::ToGateway];
}

/// A running relay, which impairs nothing before it is told to. Dropping it cuts the link for good.
#[derive(Debug)]
pub struct Relay {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// Without these it would not get what is sent from XDP.
    _receiving: [XdpLink; 2],
}

#[derive(Debug)]
struct Shared {
    lanes: Mutex<[Lane; 2]>,
    stopping: AtomicBool,
    stop: EventFd,
}

impl Shared {
    fn lanes(&self) -> MutexGuard<'_, [Lane; 2]> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Relay {
    /// Joins two devices of a namespace, of which the second leads to the gateway. What is lost, and how delays vary,
    /// follows from the seed.
    pub(super) fn start(namespace: &Namespace, [far, near]: &[String; 2], seed: u64) -> Result<Self, RelayError> {
        let receiving = [attach_xdp_pass(namespace, near)?, attach_xdp_pass(namespace, far)?];
        let sockets = namespace.run(|| {
            let open = |device: &str| {
                packet_socket(device).map_err(|source| RelayError::Socket {
                    device: device.to_owned(),
                    namespace: namespace.name().to_owned(),
                    source,
                })
            };
            Ok::<_, RelayError>([open(near)?, open(far)?])
        })??;
        let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).map_err(RelayError::Stop)?;
        let now = Instant::now();
        let lanes = [Lane::new(2 * seed, now), Lane::new(2 * seed + 1, now)];
        let shared = Arc::new(Shared { lanes: Mutex::new(lanes), stopping: AtomicBool::new(false), stop });
        let of_thread = Arc::clone(&shared);
        let name = namespace.name().to_owned();
        let (starting, started) = mpsc::sync_channel(1);
        let thread = thread::Builder::new()
            .name(name.clone())
            .spawn(move || {
                let result = priority::take();
                let may_run = result.is_ok();
                starting.send(result).expect("the starter waits for the answer");
                if may_run {
                    run(&sockets, &of_thread);
                }
            })
            .map_err(|source| NetnsError::Thread { name, source })?;
        let relay = Self { shared, thread: Some(thread), _receiving: receiving };
        started.recv().expect("the thread answers before anything else").map_err(RelayError::Priority)?;
        Ok(relay)
    }

    /// Changes both directions. When it returns no frame passes as before, except those that are already delayed.
    ///
    /// # Panics
    /// If the rate is zero or the loss is not between 0 and 1.
    pub fn set(&self, impairment: Impairment) {
        Direction::BOTH.into_iter().for_each(|direction| self.set_direction(direction, impairment));
    }

    /// As [`Self::set`], for one direction.
    pub fn set_direction(&self, direction: Direction, impairment: Impairment) {
        assert!(impairment.rate.is_none_or(|rate| rate.bits_per_second > 0), "{impairment:?}: cut instead");
        assert!((0.0..=1.0).contains(&impairment.loss), "{impairment:?}: loss is a share of 1");
        self.shared.lanes()[direction as usize].set(impairment, Instant::now());
    }

    pub fn impairment(&self, direction: Direction) -> Impairment {
        self.shared.lanes()[direction as usize].impairment()
    }

    pub fn counts(&self, direction: Direction) -> LaneCounts {
        self.shared.lanes()[direction as usize].counts
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        if let Err(error) = self.shared.stop.write(1) {
            eprintln!("lab: cannot wake a relay to end it: {error}");
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("lab: the thread of a relay panicked; its message is above");
        }
    }
}

/// A socket that gets all frames that arrive at a device, and none that leave from it.
fn packet_socket(device: &str) -> Result<OwnedFd, Errno> {
    // Without a protocol it gets nothing before it is bound, also not from other devices.
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Packet, SockType::Raw, flags, None)?;
    setsockopt(&socket, RcvBufForce, &SOCKET_BYTES)?;
    setsockopt(&socket, SndBufForce, &SOCKET_BYTES)?;
    setsockopt(&socket, ReceiveTimestampns, &true)?;
    let on: libc::c_int = 1;
    for option in [libc::PACKET_IGNORE_OUTGOING, libc::PACKET_QDISC_BYPASS] {
        // SAFETY: the value is an int that outlives the call, and the length is its own.
        let result = unsafe {
            let size = size_of_val(&on) as libc::socklen_t;
            libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, option, (&raw const on).cast(), size)
        };
        Errno::result(result)?;
    }
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
        sll_ifindex: if_nametoindex(device)? as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: the address is a `sockaddr_ll` that outlives the call, and the length is its own.
    let result = unsafe {
        let size = size_of_val(&address) as libc::socklen_t;
        libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size)
    };
    Errno::result(result)?;
    Ok(socket)
}

fn run(sockets: &[OwnedFd; 2], shared: &Shared) {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut looked_at = [true; 2];
    while !shared.stopping.load(Ordering::Relaxed) {
        let mut resting = [false; 2];
        let mut next_due: Option<Instant> = None;
        {
            let mut lanes = shared.lanes();
            for (half, lane) in lanes.iter_mut().enumerate().filter(|(half, _)| looked_at[*half]) {
                let taken = take(&sockets[half], lane, &mut buffer);
                resting[half] = (1..BATCH).contains(&taken) && lane.impairment().delay >= RESTFUL_DELAY;
            }
            for (lane, socket) in lanes.iter_mut().zip(sockets.iter().rev()) {
                give(socket, lane);
                next_due = next_due.into_iter().chain(lane.next_due()).min();
            }
        }
        let timeout = if resting.contains(&true) {
            Some(REST)
        } else {
            next_due.map(|due| due.saturating_duration_since(Instant::now()).max(REST))
        };
        let wanted = |rests| if rests { PollFlags::empty() } else { PollFlags::POLLIN };
        let mut polled = [
            PollFd::new(sockets[0].as_fd(), wanted(resting[0])),
            PollFd::new(sockets[1].as_fd(), wanted(resting[1])),
            PollFd::new(shared.stop.as_fd(), PollFlags::POLLIN),
        ];
        match ppoll(&mut polled, timeout.map(TimeSpec::from), None) {
            Ok(_) => looked_at = [0, 1].map(|half| resting[half] || polled[half].any().unwrap_or(true)),
            Err(Errno::EINTR) => looked_at = [true; 2],
            Err(errno) => panic!("a relay cannot wait for frames: {errno}"),
        }
    }
}

/// Takes frames from a half, and gives how many.
fn take(socket: &OwnedFd, lane: &mut Lane, buffer: &mut [u8]) -> usize {
    // In this order: should the thread be stopped in between, frames pass late and not early.
    let wall_clock = SystemTime::now();
    let clocks = (Instant::now(), wall_clock);
    for taken in 0..BATCH {
        match receive(socket, buffer, clocks) {
            Ok((length, arrived)) => lane.offer(&buffer[..length], arrived),
            // The device went down; its socket works on when it is up again.
            Err(Errno::EAGAIN | Errno::ENETDOWN | Errno::EINTR) => return taken,
            Err(errno) => {
                eprintln!("lab: a relay cannot receive: {errno}");
                return taken;
            }
        }
    }
    BATCH
}

/// The length of the next frame and when the kernel got it, which it tells in the time of the second clock.
fn receive(socket: &OwnedFd, buffer: &mut [u8], clocks: (Instant, SystemTime)) -> Result<(usize, Instant), Errno> {
    let mut control = nix::cmsg_space!(TimeSpec);
    let mut slices = [IoSliceMut::new(buffer)];
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut control), MsgFlags::empty())?;
    let arrived = message.cmsgs()?.find_map(|message| match message {
        ControlMessageOwned::ScmTimestampns(arrived) => Some(UNIX_EPOCH + Duration::from(arrived)),
        _ => None,
    });
    let (now, wall_clock) = clocks;
    let arrived = match arrived.map(|arrived| arrived.duration_since(wall_clock)) {
        Some(Ok(since)) => now + since,
        Some(Err(before)) => now - before.duration(),
        None => now,
    };
    Ok((message.bytes, arrived))
}

/// Sends from a half what is due.
fn give(socket: &OwnedFd, lane: &mut Lane) {
    while let Some(frame) = lane.take_due(Instant::now()) {
        match send(socket.as_raw_fd(), &frame, MsgFlags::empty()) {
            Ok(_) => {
                lane.counts.passed += 1;
                lane.counts.passed_bytes += frame.len() as u64;
            }
            Err(_) => lane.counts.refused += 1,
        }
    }
}

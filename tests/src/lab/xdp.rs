//! Minimal XDP programs for the receiving ends of the lab's links.
//!
//! A veth end takes frames from XDP_TX and XDP_REDIRECT only if it runs an XDP program itself; without one they are
//! lost silently. The programs here are a few instructions long, so the lab needs no eBPF object.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::thread;
use std::time::{Duration, Instant};

use aya_obj::generated::{BPF_F_XDP_HAS_FRAGS, XDP_FLAGS_DRV_MODE, bpf_attach_type, bpf_cmd, bpf_prog_type};
use bytemuck::{NoUninit, Pod, Zeroable};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use thiserror::Error;

use super::netns::{Namespace, NetnsError};

/// Until a program that was detached makes room.
const DETACH: Duration = Duration::from_secs(2);

#[derive(Debug, Error)]
pub enum XdpError {
    #[error("cannot load the lab's XDP program: {0}; a kernel of 6.1 or later with CONFIG_BPF_SYSCALL is needed")]
    Load(io::Error),
    #[error("no interface {device} in {namespace}: {source}")]
    NoDevice { device: String, namespace: String, source: Errno },
    #[error("cannot attach XDP to {device} in {namespace}: {source}; does another program sit there?")]
    Attach { device: String, namespace: String, source: io::Error },
    #[error(transparent)]
    Namespace(#[from] NetnsError),
}

/// What a link's end does with the frames it receives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Receive {
    /// Takes them all.
    Pass,
    /// Loses this share of them (0 to 1), at random. Neighbour discovery suffers, too, and repeats after a second.
    Lose(f64),
}

/// An attached program. Dropping it detaches.
#[derive(Debug)]
pub struct XdpLink(OwnedFd);

impl Drop for XdpLink {
    fn drop(&mut self) {
        // Closing alone would leave it attached while a process that was forked at the moment has a copy.
        if let Err(error) = bpf(bpf_cmd::BPF_LINK_DETACH, &self.0.as_raw_fd()) {
            eprintln!("lab: an XDP program may stay attached: {error}");
        }
    }
}

/// Attaches a program that takes all frames, natively and able to receive frames of any size.
pub fn attach_xdp_pass(namespace: &Namespace, device: &str) -> Result<XdpLink, XdpError> {
    attach(namespace, device, Receive::Pass)
}

pub fn attach(namespace: &Namespace, device: &str, receive: Receive) -> Result<XdpLink, XdpError> {
    let program = load(&instructions(receive)).map_err(XdpError::Load)?;
    let place = || (device.to_owned(), namespace.name().to_owned());
    namespace.run(|| {
        let target_ifindex = if_nametoindex(device).map_err(|source| {
            let (device, namespace) = place();
            XdpError::NoDevice { device, namespace, source }
        })?;
        let request = LinkCreate {
            prog_fd: program.as_raw_fd(),
            target_ifindex,
            attach_type: bpf_attach_type::BPF_XDP as u32,
            flags: XDP_FLAGS_DRV_MODE,
        };
        // A link that was closed a moment ago may still be open in a process that is just being started.
        let deadline = Instant::now() + DETACH;
        let mut created = bpf_fd(bpf_cmd::BPF_LINK_CREATE, &request);
        while created.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY))
            && Instant::now() < deadline
        {
            thread::sleep(Duration::from_millis(5));
            created = bpf_fd(bpf_cmd::BPF_LINK_CREATE, &request);
        }
        created.map(XdpLink).map_err(|source| {
            let (device, namespace) = place();
            XdpError::Attach { device, namespace, source }
        })
    })?
}

fn instructions(receive: Receive) -> Vec<u64> {
    const MOV_R0: u8 = 0xb7;
    const CALL: u8 = 0x85;
    const JUMP_IF_LOW_R0_BELOW: u8 = 0xa6;
    const EXIT: u8 = 0x95;
    const GET_PRANDOM_U32: u32 = 7;
    const XDP_DROP: u32 = 1;
    const XDP_PASS: u32 = 2;
    let op = |code: u8, offset: u8, value: u32| u64::from(code) | (u64::from(offset) << 16) | (u64::from(value) << 32);
    let verdict = |action: u32| [op(MOV_R0, 0, action), op(EXIT, 0, 0)];
    let pass = verdict(XDP_PASS);
    match receive {
        Receive::Pass => pass.to_vec(),
        Receive::Lose(share) => {
            let threshold = (share.clamp(0.0, 1.0) * f64::from(u32::MAX)) as u32;
            let draw = [op(CALL, 0, GET_PRANDOM_U32), op(JUMP_IF_LOW_R0_BELOW, pass.len() as u8, threshold)];
            [draw, pass, verdict(XDP_DROP)].concat()
        }
    }
}

fn load(instructions: &[u64]) -> io::Result<OwnedFd> {
    let license = c"GPL";
    let request = ProgramLoad {
        prog_type: bpf_prog_type::BPF_PROG_TYPE_XDP as u32,
        insn_cnt: instructions.len() as u32,
        insns: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        prog_flags: BPF_F_XDP_HAS_FRAGS,
        prog_name: *b"lab_receive\0\0\0\0\0",
        expected_attach_type: bpf_attach_type::BPF_XDP as u32,
        ..Zeroable::zeroed()
    };
    bpf_fd(bpf_cmd::BPF_PROG_LOAD, &request)
}

/// The part of `union bpf_attr` that loading a program needs.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ProgramLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

/// The part of `union bpf_attr` that attaching to an interface needs.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct LinkCreate {
    prog_fd: RawFd,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
}

/// A `bpf` call that loads or creates, and gives a new descriptor.
fn bpf_fd<A: NoUninit>(command: bpf_cmd, attributes: &A) -> io::Result<OwnedFd> {
    let fd = bpf(command, attributes)?;
    // SAFETY: the commands in use here return a descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bpf<A: NoUninit>(command: bpf_cmd, attributes: &A) -> io::Result<RawFd> {
    // SAFETY: the kernel reads as many bytes as given; pointers in them are alive in the caller, and the commands in use
    // only read through them.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command as libc::c_int, attributes, size_of::<A>()) };
    Ok(Errno::result(result)? as RawFd)
}

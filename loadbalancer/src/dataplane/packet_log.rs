//! What the packet path logs, in a build that has it log (`cargo xtask build --debug-log`).

use std::io;
use std::os::fd::AsFd;
use std::thread;

use aya::Ebpf;
use aya_log::EbpfLogger;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

pub struct PacketLog(EbpfLogger<&'static dyn log::Log>);

impl PacketLog {
    /// None: the packet path was built without.
    pub(super) fn of(ebpf: &mut Ebpf) -> Option<Self> {
        EbpfLogger::init(ebpf).ok().map(Self)
    }

    /// Passes on what is logged, at level `debug`, from a thread of its own for as long as the process lives.
    ///
    /// # Errors
    /// The kernel gives no thread.
    pub fn follow(mut self) -> io::Result<()> {
        let run = move || {
            loop {
                match poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE) {
                    Ok(_) => self.0.flush(),
                    Err(Errno::EINTR) => {}
                    Err(error) => return tracing::error!(%error, "the packet path's log cannot be followed"),
                }
            }
        };
        thread::Builder::new().name("packet-log".to_owned()).spawn(run).map(drop)
    }
}

//! Threads that are on time on a busy machine.

use nix::errno::Errno;

/// Has the calling thread run before all ordinary ones, which would else make it late by whole time slices.
///
/// # Errors
/// Without root.
pub fn take() -> Result<(), Errno> {
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: the parameters outlive the call; process 0 is the calling thread.
    Errno::result(unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) })?;
    Ok(())
}

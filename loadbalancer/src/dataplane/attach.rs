//! Links between the packet path and interfaces.

use std::fs;
use std::io;
use std::path::Path;

use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::XdpLink;

use super::attached_program::{self, AttachMode};
use super::error::{KernelError, chain};
use super::load::Kernel;
use super::pins::{link_pin, remove_link};
use crate::network::interface;

impl Kernel {
    /// Attaches the program to an interface, or replaces the one that an earlier controller left there, without a gap.
    /// Gives the mode in which it runs, which for a replaced program is the old one's.
    ///
    /// # Errors
    /// There is no such interface, another program runs on it, or the kernel refuses.
    pub fn attach(&mut self, interface: &str, mode: AttachMode) -> Result<AttachMode, KernelError> {
        let index = interface::index(interface)?;
        let pin = self.directory.as_ref().map(|directory| link_pin(directory, interface));
        if let Some(pin) = &pin
            && pin.exists()
        {
            match self.replace(pin, index) {
                Ok(()) => return Ok(attached_program::find(index).map_or(mode, |program| program.mode)),
                // The interface was removed and made anew meanwhile: its link is dead.
                Err(_) => fs::remove_file(pin).map_err(|source| KernelError::Pin {
                    action: "remove",
                    path: pin.clone(),
                    source,
                })?,
            }
        }
        attached_program::reject_occupied(interface, index)?;
        let failed =
            |reason: String| KernelError::Attach { interface: interface.to_owned(), mode: mode.label(), reason };
        let program = self.program()?;
        let id = program.attach_to_if_index(index, mode.xdp_mode()).map_err(|error| failed(chain(&error)))?;
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

    fn replace(&mut self, pin: &Path, index: u32) -> Result<(), String> {
        let link = PinnedLink::from_pin(pin).map_err(|error| chain(&error))?;
        // A link outlives its interface, and may then be of one that had this name before.
        if attached_program::find(index).is_none() {
            return Err("the link is of an interface that is gone".to_owned());
        }
        let link: XdpLink = FdLink::from(link).try_into().map_err(|error| format!("{error}"))?;
        let program = self.program().map_err(|error| error.to_string())?;
        let id = program.attach_to_link(link).map_err(|error| chain(&error))?;
        let link = program.take_link(id).map_err(|error| chain(&error))?;
        // The pin keeps the link; this handle may go.
        drop(link);
        Ok(())
    }

    /// Detaches from an interface.
    ///
    /// # Errors
    /// The link is pinned, and its pin cannot be removed.
    pub fn detach(&mut self, interface: &str) -> Result<(), KernelError> {
        match self.directory.as_ref().and_then(|directory| directory.parent()) {
            Some(root) => remove_link(root, interface),
            None => Ok(()),
        }
    }
}

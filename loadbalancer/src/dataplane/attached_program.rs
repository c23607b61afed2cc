//! Which XDP program an interface runs already, and how.

use aya::programs::loaded_programs;
use aya::programs::xdp::XdpMode;
use futures_util::TryStreamExt;
use rtnetlink::packet_route::link::{LinkAttribute, LinkXdp, XdpAttached};

use super::error::KernelError;
use crate::network::interface;

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

    pub(super) fn xdp_mode(self) -> XdpMode {
        match self {
            Self::Native => XdpMode::Driver,
            Self::Generic => XdpMode::Skb,
        }
    }
}

/// An attached program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AttachedProgram {
    /// The kernel's number of it.
    id: u32,
    pub(super) mode: AttachMode,
}

/// Name and number of the XDP program on an interface, for people; none: it has none, or the kernel does not tell.
///
/// # Errors
/// There is no such interface.
pub fn attached_program(interface: &str) -> Result<Option<String>, KernelError> {
    Ok(find(interface::index(interface)?).map(|program| program.describe(interface)))
}

/// # Errors
/// A program is attached to the interface.
pub(super) fn reject_occupied(interface: &str, index: u32) -> Result<(), KernelError> {
    match find(index) {
        Some(program) => {
            let (interface, program) = (interface.to_owned(), program.describe(interface));
            Err(KernelError::Occupied { interface, program })
        }
        None => Ok(()),
    }
}

/// The XDP program that runs on an interface, if there is one and the kernel tells.
pub(super) fn find(index: u32) -> Option<AttachedProgram> {
    // A thread of its own, because the caller may be inside a runtime.
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
        runtime.block_on(query(index))
    })
    .join()
    .ok()
    .flatten()
}

async fn query(index: u32) -> Option<AttachedProgram> {
    let (connection, handle, _) = rtnetlink::new_connection().ok()?;
    tokio::spawn(connection);
    let link = handle.link().get().match_index(index).execute().try_next().await.ok().flatten()?;
    link.attributes.iter().find_map(|attribute| {
        let LinkAttribute::Xdp(parts) = attribute else {
            return None;
        };
        let id = parts.iter().find_map(|part| match part {
            LinkXdp::ProgId(id) => Some(*id),
            _ => None,
        })?;
        let generic = parts.contains(&LinkXdp::Attached(XdpAttached::SocketBuffer));
        Some(AttachedProgram { id, mode: if generic { AttachMode::Generic } else { AttachMode::Native } })
    })
}

impl AttachedProgram {
    fn describe(self, interface: &str) -> String {
        let id = self.id;
        let name = loaded_programs()
            .flatten()
            .find(|program| program.id() == id)
            .and_then(|program| program.name_as_str().map(str::to_owned))
            .unwrap_or_default();
        format!("{} (id {id}) on {interface}", if name.is_empty() { "unnamed" } else { &name })
    }
}

//! Which XDP program an interface runs already.

use futures_util::TryStreamExt;
use rtnetlink::packet_route::link::{LinkAttribute, LinkXdp, XdpAttached};

use super::kernel::AttachMode;

/// An attached program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Occupant {
    /// Number of the program.
    pub program: u32,
    pub mode: AttachMode,
}

/// The XDP program that runs on an interface, if there is one and the kernel tells.
pub fn find(index: u32) -> Option<Occupant> {
    // A thread of its own, because the caller may be inside a runtime.
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
        runtime.block_on(query(index))
    })
    .join()
    .ok()
    .flatten()
}

async fn query(index: u32) -> Option<Occupant> {
    let (connection, handle, _) = rtnetlink::new_connection().ok()?;
    tokio::spawn(connection);
    let link = handle.link().get().match_index(index).execute().try_next().await.ok().flatten()?;
    link.attributes.iter().find_map(|attribute| {
        let LinkAttribute::Xdp(parts) = attribute else {
            return None;
        };
        let program = parts.iter().find_map(|part| match part {
            LinkXdp::ProgId(id) => Some(*id),
            _ => None,
        })?;
        let generic = parts.contains(&LinkXdp::Attached(XdpAttached::SocketBuffer));
        Some(Occupant { program, mode: if generic { AttachMode::Generic } else { AttachMode::Native } })
    })
}

//! Which XDP program an interface runs already.

use futures_util::TryStreamExt;
use rtnetlink::packet_route::link::{LinkAttribute, LinkXdp};

/// Number of the XDP program that runs on an interface, if there is one and the kernel tells.
pub fn program_id(index: u32) -> Option<u32> {
    // A thread of its own, because the caller may be inside a runtime.
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
        runtime.block_on(query(index))
    })
    .join()
    .ok()
    .flatten()
}

async fn query(index: u32) -> Option<u32> {
    let (connection, handle, _) = rtnetlink::new_connection().ok()?;
    tokio::spawn(connection);
    let link = handle.link().get().match_index(index).execute().try_next().await.ok().flatten()?;
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Xdp(xdp) => xdp.iter().find_map(|part| match part {
            LinkXdp::ProgId(id) => Some(*id),
            _ => None,
        }),
        _ => None,
    })
}

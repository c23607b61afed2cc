//! Interfaces by their names, asked of the kernel at once.

use nix::ifaddrs::getifaddrs;
use nix::net::if_::{InterfaceFlags, if_nametoindex};

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no interface {0}\nhelp: `ip link` lists them; correct the name")]
pub struct NoInterface(pub String);

/// Index of an interface.
///
/// # Errors
/// There is none of that name.
pub fn index(name: &str) -> Result<u32, NoInterface> {
    if_nametoindex(name).map_err(|_| NoInterface(name.to_owned()))
}

/// Whether an interface is there and set up; its carrier does not matter. True also if the kernel does not say.
pub fn is_up(name: &str) -> bool {
    let up = |interface: nix::ifaddrs::InterfaceAddress| {
        interface.interface_name == name && interface.flags.contains(InterfaceFlags::IFF_UP)
    };
    getifaddrs().ok().is_none_or(|mut interfaces| interfaces.any(up))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_known_by_their_names() {
        assert_eq!((index("lo"), is_up("lo")), (Ok(1), true), "the loopback interface");
        assert_eq!((index("no-such-if"), is_up("no-such-if")), (Err(NoInterface("no-such-if".into())), false));
    }
}

//! The interfaces that the packet path is attached to.

use std::collections::BTreeMap;

use super::component::{Changed, Component, Shared};
use super::event::Event;
use super::plane::Plane;
use crate::config::{Interface, XdpMode};
use crate::dataplane::attached_program::AttachMode;
use crate::dataplane::error::KernelError;
use crate::network::interface::index;

/// How an interface is attached.
#[derive(Clone, Copy, Debug)]
pub struct Attached {
    index: u32,
    pub mode: AttachMode,
}

#[derive(Default)]
pub struct Interfaces {
    attached: BTreeMap<String, Result<Attached, String>>,
}

impl Interfaces {
    /// How an interface is attached, or why it is not; None: it was not tried yet.
    pub fn state(&self, name: &str) -> Option<&Result<Attached, String>> {
        self.attached.get(name)
    }

    /// Why some interface is not attached.
    pub fn error(&self) -> Option<&String> {
        self.attached.values().find_map(|state| state.as_ref().err())
    }

    /// Attaches to all interfaces of the configuration, and to those that came back; detaches from others.
    ///
    /// # Errors
    /// Of the first interface that cannot be attached; the others are attached all the same.
    pub fn follow(&mut self, shared: &mut Shared) -> Result<(), KernelError> {
        let mut first = Ok(());
        let wanted = &shared.registry.config().gateway.interfaces;
        let unwanted: Vec<String> =
            self.attached.keys().filter(|name| !wanted.iter().any(|it| it.name == **name)).cloned().collect();
        for name in unwanted {
            self.attached.remove(&name);
            match shared.plane.reconciler.kernel_mut().detach(&name) {
                Ok(()) => tracing::info!(interface = %name, "detached"),
                Err(error) => tracing::error!(interface = %name, %error, "cannot detach"),
            }
        }
        for interface in wanted {
            let index = shared.resolved.interfaces.get(&interface.name).copied();
            match self.attached.get(&interface.name) {
                Some(Ok(attached)) if index.is_none_or(|index| index == attached.index) => continue,
                // It is told once; the next try follows when the interface changes.
                Some(Err(_)) if index.is_none() => continue,
                _ => {}
            }
            let result = attach(interface, &mut shared.plane);
            let state = match &result {
                Ok(attached) => {
                    tracing::info!(interface = %interface.name, mode = attached.mode.label(), "attached");
                    Ok(*attached)
                }
                Err(error) => Err(error.to_string()),
            };
            let before = self.attached.insert(interface.name.clone(), state);
            if let Err(error) = result {
                let text = error.to_string();
                if !matches!(before, Some(Err(before)) if before == text) {
                    tracing::error!(interface = %interface.name, error = %text, "not attached");
                }
                if first.is_ok() {
                    first = Err(error);
                }
            }
        }
        first
    }
}

impl Component for Interfaces {
    fn sync(&mut self, shared: &mut Shared) {
        // What goes wrong is logged, shown by `status`, and tried again with the next change.
        if let Err(error) = self.follow(shared) {
            tracing::debug!(%error, "an interface is not attached");
        }
    }

    fn on(&mut self, event: &Event, shared: &mut Shared) -> Changed {
        if matches!(event, Event::Resolved(_)) {
            self.sync(shared);
        }
        Changed::NOTHING
    }

    fn tick(&mut self, _shared: &mut Shared) -> Changed {
        Changed::NOTHING
    }
}

/// Attaches the packet path to an interface.
///
/// # Errors
/// There is no such interface, or it takes no XDP program in the mode that is asked for.
pub fn attach(interface: &Interface, plane: &mut Plane) -> Result<Attached, KernelError> {
    let index = index(&interface.name)?;
    let kernel = plane.reconciler.kernel_mut();
    let mut attach = |mode| kernel.attach(&interface.name, mode).map(|mode| Attached { index, mode });
    match interface.xdp {
        XdpMode::Native => attach(AttachMode::Native),
        XdpMode::Generic => attach(AttachMode::Generic),
        XdpMode::Auto => match attach(AttachMode::Native) {
            Err(KernelError::Attach { reason, .. }) => {
                tracing::warn!(
                    interface = %interface.name,
                    %reason,
                    "native XDP does not work here: falling back to generic XDP, which is several times slower; set \
                     xdp = \"native\" to refuse this, or xdp = \"generic\" to silence the warning"
                );
                attach(AttachMode::Generic)
            }
            result => result,
        },
    }
}

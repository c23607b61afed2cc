//! Interfaces.

use super::{Attached, Controller};
use crate::config::{Interface, XdpMode};
use crate::dataplane::kernel::{AttachMode, KernelError};

impl Controller {
    /// Attaches to all interfaces of the configuration, and to those that came back; detaches from others.
    ///
    /// # Errors
    /// Of the first interface that cannot be attached; the others are attached all the same.
    pub fn attach(&mut self) -> Result<(), KernelError> {
        let mut first = Ok(());
        let wanted = self.config.gateway.interfaces.clone();
        let unwanted: Vec<String> =
            self.attached.keys().filter(|name| !wanted.iter().any(|it| it.name == **name)).cloned().collect();
        for name in unwanted {
            self.attached.remove(&name);
            match self.reconciler.kernel_mut().detach(&name) {
                Ok(()) => tracing::info!(interface = %name, "detached"),
                Err(error) => tracing::error!(interface = %name, %error, "cannot detach"),
            }
        }
        for interface in &wanted {
            let index = self.resolved.interfaces.get(&interface.name).copied();
            match self.attached.get(&interface.name) {
                Some(Ok(attached)) if index.is_none_or(|index| index == attached.index) => continue,
                // It is told once; the next try follows when the interface changes.
                Some(Err(_)) if index.is_none() => continue,
                _ => {}
            }
            let result = self.attach_one(interface);
            let state = match &result {
                Ok(attached) => {
                    let mode = attached.mode.label();
                    tracing::info!(interface = %interface.name, mode, "attached");
                    Ok(Attached { index: attached.index, mode: attached.mode })
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

    pub(super) fn attach_one(&mut self, interface: &Interface) -> Result<Attached, KernelError> {
        let index = crate::dataplane::kernel::interface_index(&interface.name)?;
        let kernel = self.reconciler.kernel_mut();
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
}

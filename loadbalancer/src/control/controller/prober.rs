//! Probes through VIPs: who they are for, and where they come from.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;

use socket2::Socket;

use super::super::probes;
use super::Controller;
use crate::config::{Config, Interface, XdpMode};
use crate::dataplane::desired::DesiredProbe;
use crate::dataplane::kernel::KernelError;
use crate::health::{CheckSpec, Checker, ProbeKey, SourcePorts};
use crate::network::prober::Prober;

pub(super) struct ProberState {
    prober: Option<Prober>,
    ports: SourcePorts,
    wanted: Vec<Wanted>,
    /// The checker does not have them all yet.
    is_new: bool,
    /// Some found no port: those that were released rest for a while.
    lacks_ports: bool,
    /// Why there is none, although some are wanted.
    error: Option<String>,
}

struct Wanted {
    key: ProbeKey,
    spec: CheckSpec,
    probe: DesiredProbe,
}

impl ProberState {
    pub(super) fn new(config: &Config) -> Self {
        let ports = SourcePorts::new(config.gateway.probe_ports.clone());
        Self { prober: None, ports, wanted: Vec::new(), is_new: false, lacks_ports: false, error: None }
    }

    pub(super) fn prober(&self) -> Option<&Prober> {
        self.prober.as_ref()
    }

    pub(super) fn is_open(&self) -> bool {
        self.prober.is_some()
    }

    pub(super) fn error(&self) -> Option<&String> {
        self.error.as_ref()
    }

    /// Begins to list anew what is wanted.
    pub(super) fn begin(&mut self, config: &Config) {
        self.wanted.clear();
        self.lacks_ports = false;
        if *self.ports.range() != config.gateway.probe_ports {
            self.ports = SourcePorts::new(config.gateway.probe_ports.clone());
        }
    }

    /// Adds a probe. False: it cannot be sent now.
    pub(super) fn want(&mut self, key: ProbeKey, spec: &CheckSpec, server: (u64, u64), source: Option<IpAddr>) -> bool {
        let (Some(prober), Some(source)) = (&self.prober, source) else { return false };
        // The configuration was checked for there being enough; but a port that was released now is not free yet.
        let Some(port) = self.ports.reserve(key) else {
            self.lacks_ports = true;
            return false;
        };
        let (spec, probe) = probes::through_vip(spec.clone(), server, (source, port), prober);
        self.wanted.push(Wanted { key, spec, probe });
        true
    }

    /// What was not named since [`Self::begin`] is over.
    pub(super) fn end(&mut self) {
        let keys: HashSet<ProbeKey> = self.wanted.iter().map(|wanted| wanted.key).collect();
        let unwanted: Vec<ProbeKey> = self.ports.iter().map(|(_, key)| key).filter(|key| !keys.contains(key)).collect();
        unwanted.into_iter().for_each(|key| self.ports.release(key));
        if let Some(prober) = &self.prober {
            let sources: BTreeSet<IpAddr> = self.wanted.iter().map(|wanted| wanted.probe.source.ip()).collect();
            prober.set_addresses(sources);
        }
        self.is_new = true;
    }

    /// Interface that they come in by, and all of them.
    pub(super) fn desired(&self) -> (Option<u32>, Vec<DesiredProbe>) {
        let probes = self.wanted.iter().map(|wanted| wanted.probe.clone()).collect();
        (self.prober.as_ref().map(Prober::index), probes)
    }

    /// Has them sent from now on.
    pub(super) fn start(&mut self, checker: &mut Checker) {
        if std::mem::take(&mut self.is_new) {
            self.wanted.iter().for_each(|wanted| checker.set(wanted.key, wanted.spec.clone()));
        }
    }
}

impl Controller {
    /// Whether something is to be asked through a VIP, but there is nothing yet to ask from.
    pub fn lacks_prober(&self) -> bool {
        probes::need_prober(&self.config) && !self.prober.is_open()
    }

    /// Whether that is the interface that probes through VIPs come in by.
    pub fn probes_from(&self, interface: &str) -> bool {
        self.prober.prober.as_ref().is_some_and(|prober| prober.interface() == interface)
    }

    /// Takes what probes through VIPs are to come from. They begin when the kernel's maps are next brought up to date.
    ///
    /// # Errors
    /// The packet path cannot be attached to its interface.
    pub fn open_prober(&mut self, prober: Prober, frames: Socket) -> Result<(), KernelError> {
        let interface = Interface { name: prober.interface().to_owned(), xdp: XdpMode::Auto };
        self.attach_one(&interface)?;
        self.prober.prober = Some(prober);
        self.prober.error = None;
        self.queue.set_socket(Some(frames));
        self.follow_probes();
        self.follow_responders();
        Ok(())
    }

    /// Notes why there is none.
    pub fn miss_prober(&mut self, error: String) {
        if self.prober.error.as_ref() != Some(&error) {
            tracing::error!(%error, "checks through VIPs are not made");
        }
        self.prober.error = Some(error);
        self.queue.close();
    }

    /// Once a second: lets go of a prober whose interface someone has removed or taken down, and tries again what found no
    /// port. True: there should be a prober, but is none.
    pub fn tend_prober(&mut self) -> bool {
        if self.prober.prober.as_ref().is_some_and(|prober| !prober.is_up()) {
            tracing::warn!("the interface of checks through VIPs is down or gone; it is made anew");
            self.drop_prober();
        } else if self.prober.lacks_ports {
            self.follow_probes();
            self.apply();
        }
        self.lacks_prober()
    }

    fn drop_prober(&mut self) {
        if let Some(prober) = self.prober.prober.take() {
            self.queue.set_socket(None);
            // The checks that use it go, and what listens there, and with them the namespace and both ends of the pair.
            self.follow_probes();
            self.follow_responders();
            if let Err(error) = self.reconciler.kernel_mut().detach(prober.interface()) {
                tracing::error!(interface = prober.interface(), %error, "cannot detach");
            }
            self.apply();
        }
    }

    /// Ends probes through VIPs if nothing asks for them, or because the controller stops. Gives the interface that
    /// they came in by: a client of the responder that has vanished would keep it for a while.
    pub fn close_prober(&mut self, stop: bool) -> Option<String> {
        if !stop && probes::need_prober(&self.config) {
            return None;
        }
        let interface = self.prober.prober().map(|prober| prober.interface().to_owned());
        self.drop_prober();
        self.prober.error = None;
        interface
    }
}

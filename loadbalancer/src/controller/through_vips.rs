//! Probes through VIPs: who they are for, and where they come from.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;

use super::targets;
use crate::config::Config;
use crate::health::{CheckSpec, Checker, ProbeKey, SourcePorts};
use crate::network::prober::Prober;
use decide::plan::desired::DesiredProbe;
use model::ids::ServerId;

pub struct VipProbes {
    ports: SourcePorts,
    wanted: Vec<Wanted>,
    /// The checker does not have them all yet.
    is_new: bool,
    /// Some found no port: those that were released rest for a while.
    lacks_ports: bool,
    /// Why there is nothing to ask from, although something is to be asked.
    error: Option<String>,
}

struct Wanted {
    key: ProbeKey,
    spec: CheckSpec,
    probe: DesiredProbe,
}

impl VipProbes {
    pub fn new(config: &Config) -> Self {
        let ports = SourcePorts::new(config.gateway.probe_ports.clone());
        Self { ports, wanted: Vec::new(), is_new: false, lacks_ports: false, error: None }
    }

    pub fn error(&self) -> Option<&String> {
        self.error.as_ref()
    }

    /// Begins to list anew what is wanted.
    pub fn begin(&mut self, config: &Config) {
        self.wanted.clear();
        self.lacks_ports = false;
        if *self.ports.range() != config.gateway.probe_ports {
            self.ports = SourcePorts::new(config.gateway.probe_ports.clone());
        }
    }

    /// Adds a probe. False: it cannot be sent now.
    pub fn want(
        &mut self,
        key: ProbeKey,
        spec: &CheckSpec,
        server: ServerId,
        (prober, source): (Option<&Prober>, Option<IpAddr>),
    ) -> bool {
        let (Some(_), Some(source)) = (prober, source) else { return false };
        // The configuration was checked for there being enough; but a port that was released now is not free yet.
        let Some(port) = self.ports.reserve(key) else {
            self.lacks_ports = true;
            return false;
        };
        let (spec, probe) = targets::through_vip(spec.clone(), server, (source, port));
        self.wanted.push(Wanted { key, spec, probe });
        true
    }

    /// What was not named since [`Self::begin`] is over.
    pub fn end(&mut self, prober: Option<&Prober>) {
        let keys: HashSet<ProbeKey> = self.wanted.iter().map(|wanted| wanted.key).collect();
        let unwanted: Vec<ProbeKey> = self.ports.iter().map(|(_, key)| key).filter(|key| !keys.contains(key)).collect();
        unwanted.into_iter().for_each(|key| self.ports.release(key));
        if let Some(prober) = prober {
            let sources: BTreeSet<IpAddr> = self.wanted.iter().map(|wanted| wanted.probe.source.ip()).collect();
            prober.set_addresses(sources);
        }
        self.is_new = true;
    }

    /// All of them.
    pub fn desired(&self) -> Vec<DesiredProbe> {
        self.wanted.iter().map(|wanted| wanted.probe.clone()).collect()
    }

    /// Has them sent from now on.
    pub fn start(&mut self, checker: &mut Checker) {
        if std::mem::take(&mut self.is_new) {
            self.wanted.iter().for_each(|wanted| checker.set(wanted.key, wanted.spec.clone()));
        }
    }

    /// There is something to ask from, or nothing is asked.
    pub fn settle(&mut self) {
        self.error = None;
    }

    /// Notes why there is none.
    pub fn miss(&mut self, error: String) {
        if self.error.as_ref() != Some(&error) {
            tracing::error!(%error, "checks through VIPs are not made");
        }
        self.error = Some(error);
    }

    /// Some probe found no port: those that were released rest for a while.
    pub fn lacks_ports(&self) -> bool {
        self.lacks_ports
    }
}

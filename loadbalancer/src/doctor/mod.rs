//! Looks for what would keep a gateway from working, before it happens.

mod machine;
mod interface;
mod service;
mod server;
mod findings;

use crate::api::types::doctor::{Finding, Grade};
use crate::config::Config;
use crate::network::Network;
use findings::Findings;

/// Looks at the machine, and with a configuration at all that it names.
pub async fn examine(config: Option<&Config>) -> Vec<Finding> {
    let mut findings = Findings::default();
    let is_root = nix::unistd::geteuid().is_root();
    if is_root {
        findings.good("user", "root");
    } else {
        findings.add("user", Grade::Warning, "without root, some things cannot be looked at", "run it with sudo");
    }
    machine::examine(&mut findings, is_root);
    let Some(config) = config else {
        findings.add(
            "configuration",
            Grade::Note,
            "none was given",
            "--config FILE has interfaces and servers looked at too",
        );
        return findings.0;
    };
    let network = match Network::open().await {
        Ok((network, _)) => network,
        Err(error) => {
            findings.add("network", Grade::Problem, error.to_string(), "netlink is needed");
            return findings.0;
        }
    };
    for interface in &config.gateway.interfaces {
        let link = network.link(&interface.name);
        interface::examine(&mut findings, &interface.name, interface.xdp, link.as_ref());
    }
    machine::forwarding(&mut findings, config);
    for service in &config.services {
        service::ports(&mut findings, service);
        server::examine(&mut findings, &network, config, service).await;
        service::needs(&mut findings, service);
    }
    service::addresses(&mut findings, &network, config).await;
    findings.0
}

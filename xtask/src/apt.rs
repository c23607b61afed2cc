//! Debian's packages.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::step;
use crate::workspace::{Workspace, find_program, is_root};

/// Seconds to wait for another apt to finish.
const LOCK_TIMEOUT: &str = "DPkg::Lock::Timeout=300";

/// A package that brings a service must not start it, or web servers would appear on this machine's ports: while the
/// policy file exists, Debian's packages start nothing.
const INSTALL: &str = r#"
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    trap 'rm -f $policy' EXIT
    trap 'exit 130' INT TERM HUP
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod 755 $policy
fi
apt-get install "$@"
"#;

/// Services that must not start with the machine either, only because a bench uses their programs.
const SERVICES: [(&str, &str); 2] = [("nginx-light", "nginx.service"), ("haproxy", "haproxy.service")];

/// What a user without root runs instead of [`install`].
pub fn install_command(packages: &[&str]) -> String {
    format!(
        "sudo sh -c 'apt-get update && apt-get install --yes --no-install-recommends --no-remove {}'",
        packages.join(" ")
    )
}

pub fn install(workspace: &Workspace, packages: &[&str]) -> Result<()> {
    with_fresh_lists(workspace, &format!("apt-get install {}", packages.join(" ")), || {
        let mut install = command(workspace, "sh");
        install.args(["-c", INSTALL, "apt-get install", "--yes", "--no-install-recommends", "--no-remove"]);
        install.args(["--option", LOCK_TIMEOUT]).args(packages);
        install
    })?;
    let services: Vec<_> =
        SERVICES.iter().filter(|(package, _)| packages.contains(package)).map(|(_, service)| service).collect();
    if !services.is_empty() && find_program("systemctl").is_some() {
        let mut disable = command(workspace, "systemctl");
        step::run("disable their services (only the programs are used)", disable.arg("disable").args(services))?;
    }
    Ok(())
}

/// Runs a command; if it fails, which it does where apt's lists are missing or old, once more after an update of them.
pub fn with_fresh_lists(workspace: &Workspace, label: &str, make: impl Fn() -> Command) -> Result<()> {
    let first = step::watch(label, &mut make(), false)?;
    let last = if first.success || !is_root() {
        first
    } else {
        let mut update = command(workspace, "apt-get");
        update.args(["update", "--error-on=any", "--option", LOCK_TIMEOUT]);
        let updated = step::watch("apt-get update", &mut update, false)?;
        // An unreachable source of something else is no reason to stop.
        eprintln!(
            "apt-get update  {}{}",
            step::seconds(updated.took),
            if updated.success { "" } else { "  (not all)" }
        );
        let mut again = step::watch(label, &mut make(), false)?;
        if !updated.success {
            again.output.insert_str(0, &updated.output);
        }
        again
    };
    if !last.success {
        eprint!("{}", last.output);
        bail!("{label} failed: {}", advice(&last.output));
    }
    eprintln!("{label}  {}", step::seconds(last.took));
    Ok(())
}

/// A command that asks nothing and speaks English, or [`advice`] would not know its complaints.
pub fn command(workspace: &Workspace, program: &str) -> Command {
    let mut command = workspace.program(Path::new(program));
    command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C.UTF-8");
    command
}

/// What to do about apt's complaint. Where it makes several, the first one here is the cause of the others.
fn advice(output: &str) -> &'static str {
    const KNOWN: [(&str, &str); 8] = [
        ("dpkg was interrupted", "an earlier installation broke off: run `dpkg --configure -a`, then this again"),
        ("No space left on device", "the disk is full: make room, then run this again"),
        ("Could not get lock", "another package manager is running: wait for it, then run this again"),
        (
            "but remove is disabled",
            "it would remove packages that are installed here (named above): remove them first, or install by other \
             means what they stand in the way of",
        ),
        ("Temporary failure resolving", NETWORK),
        ("Failed to fetch", NETWORK),
        ("Unable to locate package", SOURCES),
        ("has no installation candidate", SOURCES),
    ];
    const NETWORK: &str = "Debian's archive cannot be reached: check network and proxy, then run this again";
    const SOURCES: &str = "apt's sources lack the package: they need main of Debian bookworm and of \
         bookworm-security, and `apt-get update`";
    KNOWN
        .iter()
        .find(|(complaint, _)| output.contains(complaint))
        .map_or("what apt says is above; put it right, then run this again", |(_, advice)| advice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apt_complaints_come_with_what_to_do() {
        for (output, expected) in [
            ("E: Unable to locate package rustc-web\n", "bookworm-security"),
            ("E: Package 'llvm-22-dev' has no installation candidate\n", "bookworm-security"),
            (
                "W: Failed to fetch x  Temporary failure resolving 'x'\nE: Unable to locate package wrk\n",
                "check network",
            ),
            ("Err:1 x\nE: Failed to fetch x  404  Not Found\n", "check network"),
            ("E: Packages need to be removed but remove is disabled.\n", "remove them first"),
            ("E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 7\n", "wait for it"),
            ("E: dpkg was interrupted, you must manually run 'dpkg --configure -a'\n", "dpkg --configure -a"),
            ("dpkg: error: No space left on device\nE: Failed to fetch x\n", "make room"),
            ("E: something new\n", "is above"),
        ] {
            assert!(advice(output).contains(expected), "{output}: {}", advice(output));
        }
    }
}

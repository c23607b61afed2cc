//! `cargo xtask setup`: installs what is missing.

use std::io::{IsTerminal, Write};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;

use crate::apt;
use crate::kernels;
use crate::need::{self, EVERYDAY, Missing, Purpose, Remedy};
use crate::step;
use crate::toolchain;
use crate::workspace::{Workspace, find_program, is_root};

#[derive(Args)]
pub struct Setup {
    /// Do not ask before installing
    #[arg(long, short)]
    yes: bool,

    /// What to install for; may be given several times [default: build, check, lab]
    #[arg(long = "for", value_name = "PURPOSE")]
    purposes: Vec<Purpose>,
}

impl Setup {
    pub fn run(self, workspace: &Workspace) -> Result<()> {
        let purposes = if self.purposes.is_empty() { &EVERYDAY[..] } else { &self.purposes };
        let missing = need::missing(workspace, purposes)?;
        if missing.is_empty() {
            println!("nothing is missing for {}", names(purposes).join(", "));
            return Ok(());
        }
        announce(&missing);
        if !self.yes && std::io::stdin().is_terminal() && !confirmed()? {
            bail!("nothing was installed");
        }
        install(workspace, &missing, purposes)
    }
}

/// Installs what is missing for some purposes, if anything is, without asking.
pub fn ensure(workspace: &Workspace, purposes: &[Purpose]) -> Result<()> {
    let missing = need::missing(workspace, purposes)?;
    if missing.is_empty() {
        return Ok(());
    }
    announce(&missing);
    install(workspace, &missing, purposes)
}

fn announce(missing: &[Missing]) {
    eprintln!("missing:");
    for missing in missing {
        eprintln!("  {}: {}", missing.name(), missing.why);
    }
}

fn confirmed() -> Result<bool> {
    print!("Install? [Y/n] ");
    std::io::stdout().flush().context("cannot ask on the terminal")?;
    let mut answer = String::new();
    let read = std::io::stdin().read_line(&mut answer).context("cannot read the answer from the terminal")?;
    Ok(read > 0 && matches!(answer.trim(), "" | "y" | "Y" | "yes"))
}

fn install(workspace: &Workspace, missing: &[Missing], purposes: &[Purpose]) -> Result<()> {
    let mut packages = Vec::new();
    for missing in missing {
        if let Remedy::Packages(names) = missing.remedy {
            packages.extend(names);
        }
    }
    if find_program("apt-get").is_none() && missing.iter().any(|missing| missing.remedy != Remedy::Linker) {
        bail!(
            "this is no Debian (there is no apt-get): install what is missing by this system's means; \
             `cargo xtask toolchain` tells which compilers and linkers will do"
        );
    }
    if !packages.is_empty() {
        if !is_root() {
            bail!(
                "installing packages needs root; run:\n  {} && cargo xtask setup{}",
                apt::install_command(&packages),
                names(purposes).iter().map(|name| format!(" --for {name}")).collect::<String>()
            );
        }
        apt::install(workspace, &packages)?;
    }
    for missing in missing {
        match missing.remedy {
            Remedy::Packages(_) => {}
            Remedy::Linker => install_linker(workspace)?,
            Remedy::Kernel(kernel) => kernels::fetch_kernel(workspace, kernel)?,
            Remedy::Emulator => kernels::fetch_emulator(workspace)?,
        }
    }
    let still_missing = need::missing(workspace, purposes)?;
    if !still_missing.is_empty() {
        announce(&still_missing);
        bail!("this is still missing although its installation reported success; `cargo xtask toolchain` may tell why");
    }
    Ok(())
}

fn install_linker(workspace: &Workspace) -> Result<()> {
    let label = format!("cargo install bpf-linker {}", toolchain::LINKER_VERSION);
    step::run(&label, &mut toolchain::linker_install(workspace)).map_err(|error| {
        anyhow!(
            "{error:#}; if crates could not be fetched, check network and proxy, then run this again; by hand it is\n  {}",
            toolchain::linker_install_command()
        )
    })
}

fn names(purposes: &[Purpose]) -> Vec<&'static str> {
    purposes.iter().map(|purpose| purpose.name()).collect()
}

//! `loadbalancer doctor`.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use loadbalancer::api::types::doctor::{Finding, Grade};
use loadbalancer::config::Config;
use loadbalancer::doctor;

use super::common::block_on;

#[derive(Args)]
pub struct DoctorArgs {
    /// Look at the interfaces, servers and addresses of this configuration, too
    #[arg(long, short)]
    config: Option<PathBuf>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub fn doctor(args: &DoctorArgs) -> Result<()> {
    let config = args.config.as_deref().map(Config::load).transpose()?;
    let findings = block_on(async { Ok(doctor::examine(config.as_ref()).await) })?;
    let mut out = std::io::stdout();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&findings)?)?;
    } else {
        let colours = out.is_terminal();
        for finding in &findings {
            writeln!(out, "{}", line(finding, colours))?;
        }
    }
    let count = |grade: Grade| findings.iter().filter(|finding| finding.grade == grade).count();
    let (problems, warnings) = (count(Grade::Problem), count(Grade::Warning));
    if problems > 0 {
        bail!("problems: {problems}, warnings: {warnings}");
    }
    if !args.json {
        writeln!(out, "problems: none, warnings: {warnings}")?;
    }
    Ok(())
}

fn line(finding: &Finding, colours: bool) -> String {
    let (label, colour) = match finding.grade {
        Grade::Good => ("ok     ", "32"),
        Grade::Note => ("note   ", "36"),
        Grade::Warning => ("WARNING", "33"),
        Grade::Problem => ("PROBLEM", "31"),
    };
    let label = if colours { format!("\x1b[{colour}m{label}\x1b[0m") } else { label.to_owned() };
    let mend = if finding.mend.is_empty() { String::new() } else { format!("\n          -> {}", finding.mend) };
    format!("{label}  {}: {}{mend}", finding.subject, finding.finding)
}

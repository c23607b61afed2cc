//! `loadbalancer run`: the controller, and what asks it.

use std::io::IsTerminal;
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use loadbalancer::api::server::{AdminListener, MetricsListener};
use loadbalancer::config::Config;
use loadbalancer::controller;
use tracing_subscriber::EnvFilter;

use super::common::block_on;

#[derive(Args)]
pub struct RunArgs {
    /// The configuration
    #[arg(long, short, default_value = "/etc/loadbalancer.toml")]
    config: PathBuf,
    /// Form of the log on stderr
    #[arg(long, value_enum, default_value = "text")]
    log_format: LogFormat,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

pub fn run(args: &RunArgs) -> Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    match args.log_format {
        LogFormat::Text => log.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => log.json().init(),
    }
    block_on(async {
        let config = Config::load(&args.config)?;
        if !nix::unistd::geteuid().is_root() {
            bail!(
                "running a gateway needs root\nhelp: start it with sudo, or as a service; `loadbalancer check` needs none"
            );
        }
        // The socket first: it tells whether another controller runs.
        let admin = AdminListener::bind(&config.admin).await?;
        let metrics = match config.metrics {
            Some(address) => Some(MetricsListener::bind(address).await?),
            None => None,
        };
        let serve = |requests: tokio::sync::mpsc::Sender<controller::Request>| {
            tokio::spawn(admin.serve(requests.clone()));
            if let Some(metrics) = metrics {
                tokio::spawn(metrics.serve(requests));
            }
        };
        controller::run(config, &args.config, serve).await
    })
}

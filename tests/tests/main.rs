//! All suites, under the command line of the standard harness: it lists, filters and runs single cases by name.

#[macro_use]
mod trials;
mod packet;
mod network;
mod lab;
mod system;
mod fuzz;
mod kernels;

use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use libtest_mimic::Trial;

#[derive(Parser)]
struct Options {
    #[command(flatten)]
    harness: libtest_mimic::Arguments,
    /// Only these suites
    #[arg(long, value_delimiter = ',', default_value = "packet,network,lab,system,fuzz,kernels")]
    suite: Vec<Suite>,
    #[command(flatten)]
    fuzz: fuzz::Options,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Suite {
    /// Frames through the XDP programs in the kernel's test run
    Packet,
    /// How the controller finds its ways in the network
    Network,
    /// The lab itself: hosts, links, servers and loads do what they say
    Lab,
    /// Gateways in the lab, with real sockets
    System,
    /// Mutated and random frames
    Fuzz,
    /// All packet cases on other kernels, under emulation
    Kernels,
}

fn main() -> ExitCode {
    if std::process::id() == 1 {
        kernels::guest();
    }
    let options = Options::parse();
    trials::tell_panics_briefly();
    let all = options.suite.iter().flat_map(|suite| suite.trials(&options.fuzz)).collect();
    libtest_mimic::run(&options.harness, all).exit_code()
}

impl Suite {
    fn trials(self, fuzz: &fuzz::Options) -> Vec<Trial> {
        match self {
            Self::Packet => packet::trials(),
            Self::Network => network::trials(),
            Self::Lab => lab::trials(),
            Self::System => system::trials(),
            Self::Fuzz => fuzz::trials(fuzz),
            Self::Kernels => kernels::trials(),
        }
    }
}

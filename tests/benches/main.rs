//! What the load balancer takes and does, measured: `cargo xtask bench`.

mod packet;
mod ring;
mod system;
mod qos;
mod simulate;
mod queue;
mod scenario;
mod plot;

use std::process::ExitCode;

use clap::Parser;
use loadbalancer_tests::machine::Machine;
use loadbalancer_tests::report;

#[derive(Parser)]
#[command(name = "cargo xtask bench", bin_name = "cargo xtask bench")]
enum Bench {
    Packet(packet::Arguments),
    Ring(ring::Arguments),
    System(system::Arguments),
    Qos(qos::Arguments),
    /// `cargo xtask bench qos --simulate`
    QosSimulate(simulate::Arguments),
    Queue(queue::Arguments),
}

fn main() -> ExitCode {
    let bench = Bench::parse();
    println!("{}\n", Machine::read());
    report::exit_code(match bench {
        Bench::Packet(arguments) => packet::run(&arguments),
        Bench::Ring(arguments) => ring::run(&arguments),
        Bench::System(arguments) => system::run(&arguments),
        Bench::Qos(arguments) => qos::run(&arguments),
        Bench::QosSimulate(arguments) => simulate::simulate(&arguments),
        Bench::Queue(arguments) => queue::run(&arguments),
    })
}

//! Packet tests: frames through the loaded program in the kernel's test run.

use std::process::ExitCode;

use loadbalancer_tests::packet;

fn main() -> ExitCode {
    packet::main()
}

//! `cargo xtask bench qos --simulate`.

use std::process::ExitCode;

use loadbalancer_tests::bench;

fn main() -> ExitCode {
    bench::simulate::main(std::env::args_os())
}

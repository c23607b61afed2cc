//! `cargo xtask bench ring`.

use std::process::ExitCode;

use loadbalancer_tests::bench;

fn main() -> ExitCode {
    bench::ring::main()
}

//! `cargo xtask bench packet`.

use std::process::ExitCode;

use loadbalancer_tests::bench;

fn main() -> ExitCode {
    bench::packet::main()
}

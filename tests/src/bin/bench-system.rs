//! `cargo xtask bench system`.

use std::process::ExitCode;

use loadbalancer_tests::bench;

fn main() -> ExitCode {
    bench::system::main()
}

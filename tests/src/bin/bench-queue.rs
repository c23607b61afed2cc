//! `cargo xtask bench queue`.

use std::process::ExitCode;

use loadbalancer_tests::bench;

fn main() -> ExitCode {
    bench::queue::main()
}

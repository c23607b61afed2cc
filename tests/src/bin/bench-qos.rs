//! `cargo xtask bench qos`.

use std::process::ExitCode;

use loadbalancer_tests::bench;

fn main() -> ExitCode {
    bench::qos::main()
}

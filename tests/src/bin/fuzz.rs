//! `cargo xtask test fuzz`.

use std::process::ExitCode;

use loadbalancer_tests::fuzz;

fn main() -> ExitCode {
    fuzz::main()
}

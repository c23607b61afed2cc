//! `cargo xtask test kernels`.

use std::process::ExitCode;

use loadbalancer_tests::kernels;

fn main() -> ExitCode {
    kernels::main()
}

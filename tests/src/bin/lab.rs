//! `cargo xtask run`: real HTTP traffic balanced by XDP between network namespaces, in every mode.

use std::process::ExitCode;

use loadbalancer_tests::demo;

fn main() -> ExitCode {
    demo::main()
}

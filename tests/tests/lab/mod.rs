//! What the other suites build on works. Needs root.

mod hosts;
mod impair;

use libtest_mimic::Trial;

pub fn trials() -> Vec<Trial> {
    [hosts::trials(), impair::trials()].into_iter().flatten().collect()
}

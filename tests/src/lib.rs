//! What the suites, the lab command and the benches have in common: `traffic` runs in the `lab`, `frames` in the kernel's
//! test run.

pub mod lab;
pub mod traffic;
pub mod frames;
pub mod report;
pub mod machine;
pub mod chance;

//! Runs the cases and tells of each that fails what was expected and what came.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use super::cases;

/// A named test, with a world of its own.
pub struct Case {
    pub name: String,
    pub run: Box<dyn FnOnce() -> anyhow::Result<()>>,
}

impl Case {
    pub fn new(name: impl Into<String>, run: impl FnOnce() -> anyhow::Result<()> + 'static) -> Self {
        Self { name: name.into(), run: Box::new(run) }
    }
}

/// Runs all cases whose name contains the first argument.
pub fn main() -> ExitCode {
    let (passed, failed) = run(&std::env::args().nth(1).unwrap_or_default());
    println!("packet: {passed} passed, {failed} failed");
    // No case at all is a wrong filter, not a success.
    if failed == 0 && passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs all cases whose name contains a text. Gives how many passed and failed.
pub fn run(filter: &str) -> (u32, u32) {
    let verbose = !filter.is_empty();
    std::panic::set_hook(Box::new(|_| {}));
    let (mut passed, mut failed) = (0u32, 0u32);
    for case in cases::all().into_iter().filter(|case| case.name.contains(filter)) {
        let result = catch_unwind(AssertUnwindSafe(case.run)).unwrap_or_else(|panic| {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("panic");
            Err(anyhow::anyhow!("{text}"))
        });
        match result {
            Ok(()) => {
                passed += 1;
                if verbose {
                    println!("ok      {}", case.name);
                }
            }
            Err(error) => {
                failed += 1;
                println!("FAILED  {}: {error:#}", case.name);
            }
        }
    }
    (passed, failed)
}

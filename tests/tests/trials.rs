//! How the functions of the suites become trials of the standard harness.

use std::panic;
use std::sync::{PoisonError, RwLock};

use libtest_mimic::Trial;

/// When a trial runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    Always,
    /// Beside no other: it judges times, which another trial's traffic would raise.
    Alone,
    /// Only if it is named.
    Ignored,
}

/// Held alone by trials that run alone, and shared by all others. Who waits for it alone comes before those that share it.
static MACHINE: RwLock<()> = RwLock::new(());

/// A trial for each of some functions, under the name of its module and its own; `#[ignore]` as for tests, `#[alone]` beside no
/// other.
macro_rules! trials {
    ($($(#[$when:ident])? $test:ident),* $(,)?) => {
        vec![$($crate::trials::trial(module_path!(), stringify!($test), trials!(@ $($when)?), $test)),*]
    };
    (@) => { $crate::trials::When::Always };
    (@ alone) => { $crate::trials::When::Alone };
    (@ ignore) => { $crate::trials::When::Ignored };
}

pub fn trial(module: &str, test: &str, when: When, run: fn()) -> Trial {
    // Without the name of the binary.
    let module = module.split_once("::").map_or(module, |(_, inside)| inside);
    let run = move || {
        if when == When::Alone {
            // A trial that panicked has left nothing in a wrong state.
            let _alone = MACHINE.write().unwrap_or_else(PoisonError::into_inner);
            run();
        } else {
            let _shared = MACHINE.read().unwrap_or_else(PoisonError::into_inner);
            run();
        }
        Ok(())
    };
    Trial::test(format!("{module}::{test}"), run).with_ignored_flag(when == When::Ignored)
}

/// Has a panic tell in one line where it is from. The harness tells the whole message, once all trials have run.
pub fn tell_panics_briefly() {
    panic::set_hook(Box::new(|panicked| {
        let message = panicked.payload_as_str().unwrap_or_default();
        let place = panicked.location().map(ToString::to_string).unwrap_or_default();
        eprintln!("panicked at {place}: {}", message.lines().next().unwrap_or_default());
    }));
}

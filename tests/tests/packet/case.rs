//! One case of the packet suite.

use anyhow::Result;
use libtest_mimic::{Failed, Trial};

/// A named test, with a world of its own.
pub struct Case {
    pub name: String,
    pub run: Box<dyn FnOnce() -> Result<()> + Send>,
}

impl Case {
    pub fn new(name: impl Into<String>, run: impl FnOnce() -> Result<()> + Send + 'static) -> Self {
        Self { name: name.into(), run: Box::new(run) }
    }
}

impl From<Case> for Trial {
    fn from(Case { name, run }: Case) -> Self {
        Self::test(format!("packet::{name}"), move || run().map_err(|error| Failed::from(format!("{error:#}"))))
    }
}

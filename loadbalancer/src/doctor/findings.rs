//! What was found, in the order in which it was looked for.

use crate::api::types::doctor::{Finding, Grade};

#[derive(Debug, Default)]
pub(super) struct Findings(pub Vec<Finding>);

impl Findings {
    pub fn add(
        &mut self,
        subject: impl Into<String>,
        grade: Grade,
        finding: impl Into<String>,
        mend: impl Into<String>,
    ) {
        self.0.push(Finding { subject: subject.into(), grade, finding: finding.into(), mend: mend.into() });
    }

    pub fn good(&mut self, subject: impl Into<String>, finding: impl Into<String>) {
        self.add(subject, Grade::Good, finding, "");
    }
}

//! What test programs report of their cases.

/// Cases that ran, by how they ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cases {
    pub passed: u64,
    pub failed: u64,
    pub ignored: u64,
}

impl Cases {
    /// Sums the result lines of the standard harness, one for each test binary:
    /// `test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s`.
    pub fn of(output: &str) -> Option<Self> {
        let mut sum: Option<Self> = None;
        for line in output.lines() {
            let Some((_, counts)) = line.strip_prefix("test result: ").and_then(|result| result.split_once(". "))
            else {
                continue;
            };
            sum.get_or_insert_default().add(Self::parse(counts)?);
        }
        sum
    }

    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }

    /// `12 passed; 0 failed`, where passed and failed must both be there.
    fn parse(counts: &str) -> Option<Self> {
        let (mut passed, mut failed, mut ignored) = (None, None, 0);
        for count in counts.split(';') {
            match count.trim().split_once(' ') {
                Some((number, "passed")) => passed = Some(number.parse().ok()?),
                Some((number, "failed")) => failed = Some(number.parse().ok()?),
                Some((number, "ignored")) => ignored = number.parse().ok()?,
                _ => {}
            }
        }
        Some(Self { passed: passed?, failed: failed?, ignored })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_of_all_test_binaries_are_summed() {
        let output = "\
running 2 tests
test a ... ok
test b ... ignored
test result: ok. 1 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s
     Running unittests src/lib.rs
test result: FAILED. 12 passed; 3 failed; 0 ignored; 0 measured; 4 filtered out; finished in 1.20s
error: test failed, to rerun pass `--lib`
";
        assert_eq!(Cases::of(output), Some(Cases { passed: 13, failed: 3, ignored: 1 }));
    }

    #[test]
    fn output_without_a_result_is_no_result() {
        for output in ["", "error[E0308]: mismatched types\n", "test result: \n", "12 passed; 0 failed\n"] {
            assert_eq!(Cases::of(output), None, "{output}");
        }
    }
}

//! What test programs report of their cases.

/// Cases that ran, by how they ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cases {
    pub passed: u64,
    pub failed: u64,
    pub ignored: u64,
}

impl Cases {
    /// Sums the result lines of `cargo test`, one for each test binary:
    /// `test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s`.
    pub fn of_cargo_test(output: &str) -> Option<Self> {
        let mut sum: Option<Self> = None;
        for line in output.lines() {
            let Some((_, counts)) = line.strip_prefix("test result: ").and_then(|result| result.split_once(". "))
            else {
                continue;
            };
            sum.get_or_insert_default().add(Self::parse(counts, ';')?);
        }
        sum
    }

    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }

    /// Reads the last line of one of our suites: `SUITE: 250 passed, 0 failed`.
    pub fn of_suite(output: &str) -> Option<Self> {
        let last = output.lines().rfind(|line| !line.trim().is_empty())?;
        let (name, counts) = last.split_once(": ")?;
        if name.is_empty() || name.contains(char::is_whitespace) {
            return None;
        }
        Self::parse(counts, ',')
    }

    /// `12 passed, 0 failed`, where passed and failed must both be there.
    fn parse(counts: &str, separator: char) -> Option<Self> {
        let (mut passed, mut failed, mut ignored) = (None, None, 0);
        for count in counts.split(separator) {
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
        assert_eq!(Cases::of_cargo_test(output), Some(Cases { passed: 13, failed: 3, ignored: 1 }));
    }

    #[test]
    fn output_without_a_result_is_no_result() {
        for output in ["", "error[E0308]: mismatched types\n", "test result: \n", "12 passed; 0 failed\n"] {
            assert_eq!(Cases::of_cargo_test(output), None, "{output}");
        }
        for output in [
            "",
            "\n",
            "12 passed, 0 failed\n",
            "packet: 12 passed\n",
            "packet: many passed, 0 failed\n",
            "two words: 12 passed, 0 failed\n",
            "packet: 12 passed, 0 failed\nthen it broke off\n",
        ] {
            assert_eq!(Cases::of_suite(output), None, "{output}");
        }
    }

    #[test]
    fn the_last_line_of_a_suite_counts() {
        for (output, passed, failed) in [
            ("SUITE: 250 passed, 0 failed\n", 250, 0),
            ("packet: 7 passed, 2 failed", 7, 2),
            ("packet: 1 passed, 1 failed\npacket: 7 passed, 2 failed\n\n", 7, 2),
        ] {
            assert_eq!(Cases::of_suite(output), Some(Cases { passed, failed, ignored: 0 }), "{output}");
        }
    }
}

//! Versions as compilers and linkers print them.

use std::fmt;

/// Major and minor number; what follows does not matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub major: u32,
    pub minor: u32,
}

impl Version {
    /// The first version in a text: `rustc 1.96.0 (ac68faa20 2026-05-25)`, `Debian LLVM version 22.1.8`.
    pub fn find(text: &str) -> Option<Self> {
        text.split_whitespace().find_map(|word| {
            let mut numbers = word.split('.');
            let major = numbers.next()?.parse().ok()?;
            let minor = numbers.next()?.parse().ok()?;
            Some(Self { major, minor })
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_version_in_a_line_counts() {
        for (text, expected) in [
            ("rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)", Some((1, 96))),
            ("release: 1.97.0-nightly", Some((1, 97))),
            ("LLVM version: 22.1.8", Some((22, 1))),
            ("Debian LLVM version 22.1.8\n  Optimized build.", Some((22, 1))),
            ("bpf-linker 0.13.0", Some((0, 13))),
            ("1.95", Some((1, 95))),
            ("no version here", None),
            ("2026-05-25", None),
            ("", None),
        ] {
            assert_eq!(Version::find(text).map(|version| (version.major, version.minor)), expected, "{text}");
        }
    }

    #[test]
    fn minor_versions_compare_as_numbers() {
        assert!(Version { major: 1, minor: 100 } > Version { major: 1, minor: 96 });
        assert!(Version { major: 0, minor: 13 } > Version { major: 0, minor: 9 });
    }
}

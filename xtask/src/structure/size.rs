//! How long files and functions may be.

use std::path::Path;

use super::item::Source;

const FILE_LINES: usize = 600;
const FUNCTION_LINES: usize = 80;

/// What of a file is too long. Of tests, tables of cases do not count.
pub fn violations(file: &Path, lines: usize, source: &Source) -> Vec<String> {
    let tables = |first: usize, last: usize| source.table_lines.range(first..=last).count();
    let length = lines - tables(1, lines);
    let mut found = Vec::new();
    if length > FILE_LINES {
        found.push(format!("{}: {length} lines, more than {FILE_LINES}: split it by subject", file.display()));
    }
    for function in &source.functions {
        let (first, last) = (function.first_line, function.last_line);
        let length = last + 1 - first - tables(first, last);
        if length > FUNCTION_LINES {
            let name = &function.name;
            found.push(format!(
                "{}:{first}: fn {name} has {length} lines, more than {FUNCTION_LINES}: split it by steps",
                file.display()
            ));
        }
    }
    found
}

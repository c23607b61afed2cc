//! Tables for people.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

/// A table without lines; columns whose heading begins with `>` are aligned to the right.
pub fn table(headings: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(headings.iter().map(|heading| heading.trim_start_matches('>')));
    table.add_rows(rows);
    for (index, heading) in headings.iter().enumerate() {
        if let Some(column) = table.column_mut(index) {
            column.set_padding((0, 2));
            if heading.starts_with('>') {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n")
}

/// A number with a unit of thousands: 12.3k, 4.56M.
pub fn short(number: f64) -> String {
    let (value, unit) = match number {
        n if n >= 1e12 => (n / 1e12, "T"),
        n if n >= 1e9 => (n / 1e9, "G"),
        n if n >= 1e6 => (n / 1e6, "M"),
        n if n >= 1e4 => (n / 1e3, "k"),
        n => return format!("{n:.0}"),
    };
    let decimals = if value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.decimals$}{unit}")
}

/// A time in its largest units: 3h 12m.
pub fn time(seconds: u64) -> String {
    match seconds {
        s if s >= 86_400 => format!("{}d {}h", s / 86_400, s % 86_400 / 3_600),
        s if s >= 3_600 => format!("{}h {}m", s / 3_600, s % 3_600 / 60),
        s if s >= 60 => format!("{}m {}s", s / 60, s % 60),
        s => format!("{s}s"),
    }
}

/// A share of 0 to 1 in percent.
pub fn percent(share: f64) -> String {
    // Without the sign of a zero that is a little less.
    format!("{:.1} %", (share * 1000.0).round() / 10.0 + 0.0)
}

/// A time of microseconds.
pub fn latency(us: u64) -> String {
    if us >= 10_000 { format!("{:.0} ms", us as f64 / 1e3) } else { format!("{:.2} ms", us as f64 / 1e3) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        assert_eq!([0.0, 9_999.0, 12_345.0, 1.5e6, 2e12].map(short), ["0", "9999", "12.3k", "1.50M", "2.00T"]);
        assert_eq!([5, 65, 3_700, 90_000].map(time), ["5s", "1m 5s", "1h 1m", "1d 1h"]);
        assert_eq!([70, 12_000].map(latency), ["0.07 ms", "12 ms"]);
    }

    #[test]
    fn columns_are_aligned() {
        assert_eq!(
            table(&["a", ">b"], vec![vec!["x".into(), "1".into()], vec!["yy".into(), "23".into()]]),
            "a    b\nx    1\nyy  23"
        );
    }
}

//! The table: a row for each operation, with what it costs there and here.

use std::fmt;

/// One operation.
#[derive(Debug)]
pub struct Row {
    /// What it is.
    pub name: String,
    /// On Debian's Xen as it comes.
    pub stock: u64,
    /// On Debian's Xen with `spec-ctrl=no`.
    pub unmitigated: u64,
    /// On ours.
    pub ours: u64,
    /// What ours should take at most.
    pub goal: Option<u64>,
}

impl Row {
    /// Returns ours as a part of both of theirs, in hundredths, rounded up: no row looks cheaper than it is.
    fn ratios(&self) -> [u64; 2] {
        [self.stock, self.unmitigated].map(|theirs| (self.ours * 100).div_ceil(theirs.max(1)))
    }

    fn is_above(&self) -> bool {
        self.ours > self.stock || self.ours > self.unmitigated
    }
}

/// All of them.
#[derive(Debug, Default)]
pub struct Table(Vec<Row>);

impl Table {
    /// An empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a row at the end.
    pub fn add(&mut self, row: Row) {
        self.0.push(row);
    }

    /// Returns the names of the rows that cost more on ours.
    pub fn above(&self) -> Vec<&str> {
        self.0
            .iter()
            .filter(|row| row.is_above())
            .map(|row| row.name.as_str())
            .collect()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.0.iter().map(|row| row.name.len()).max().unwrap_or(0);
        writeln!(
            f,
            "| {:width$} |         stock |  spec-ctrl=no |          ours |          goal | to stock | to spec-ctrl=no |",
            "operation"
        )?;
        let dashes = |count: usize| "-".repeat(count);
        let right = |count: usize| format!("{}:", dashes(count - 1));
        writeln!(
            f,
            "| {} | {} | {} | {} | {} | {} | {} |",
            dashes(width),
            right(13),
            right(13),
            right(13),
            right(13),
            right(8),
            right(15)
        )?;
        for row in &self.0 {
            let [to_stock, to_unmitigated] = row.ratios().map(|ratio| format!("{}.{:02}", ratio / 100, ratio % 100));
            writeln!(
                f,
                "| {:width$} | {:>13} | {:>13} | {:>13} | {:>13} | {to_stock:>8} | {to_unmitigated:>15} |",
                row.name,
                grouped(row.stock),
                grouped(row.unmitigated),
                grouped(row.ours),
                row.goal.map_or_else(String::new, grouped),
            )?;
        }
        Ok(())
    }
}

/// A number with a comma before every three digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(stock: u64, unmitigated: u64, ours: u64) -> Row {
        Row {
            name: format!("{ours}"),
            stock,
            unmitigated,
            ours,
            goal: None,
        }
    }

    #[test]
    fn a_row_above_either_of_theirs_is_named() {
        let mut table = Table::new();
        for row in [row(100, 90, 90), row(100, 90, 91), row(100, 100, 101)] {
            table.add(row);
        }
        assert_eq!(table.above(), ["91", "101"]);
    }

    #[test]
    fn a_ratio_is_rounded_against_us() {
        assert_eq!(row(1000, 999, 1000).ratios(), [100, 101]);
    }

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!(
            [0, 999, 1_000, 12_345_678].map(grouped),
            ["0", "999", "1,000", "12,345,678"]
        );
    }
}

//! The table: a row for each operation, with what it costs there and here.

use std::fmt;

use crate::cost::figures::Range;

/// One operation.
#[derive(Debug)]
pub struct Row {
    /// What it is.
    pub name: String,
    /// On Debian's Xen as it comes.
    pub stock: Range,
    /// On Debian's Xen with `spec-ctrl=no`.
    pub unmitigated: Range,
    /// On ours.
    pub ours: Range,
    /// What ours should take at most.
    pub goal: Option<u64>,
}

impl Row {
    /// Returns ours as a part of both of theirs, in hundredths: the most of ours, the least of theirs, and rounded up.
    /// No row looks cheaper than it is.
    fn ratios(&self) -> [u64; 2] {
        [self.stock, self.unmitigated].map(|theirs| (self.ours.most * 100).div_ceil(theirs.least.max(1)))
    }

    fn is_above(&self) -> bool {
        self.ours.most > self.stock.least || self.ours.most > self.unmitigated.least
    }

    fn misses_goal(&self) -> bool {
        self.goal.is_some_and(|goal| self.ours.most > goal)
    }

    fn cells(&self) -> [String; 7] {
        let [to_stock, to_unmitigated] = self.ratios().map(|ratio| format!("{}.{:02}", ratio / 100, ratio % 100));
        [
            self.name.clone(),
            self.stock.to_string(),
            self.unmitigated.to_string(),
            self.ours.to_string(),
            self.goal.map_or_else(String::new, |goal| Range::from(goal).to_string()),
            to_stock,
            to_unmitigated,
        ]
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

    /// Returns the names of the rows that may cost more on ours.
    pub fn above(&self) -> Vec<&str> {
        self.names_of(Row::is_above)
    }

    /// Returns the names of the rows that cost more than they should.
    pub fn missing_goals(&self) -> Vec<&str> {
        self.names_of(Row::misses_goal)
    }

    fn names_of(&self, wanted: impl Fn(&Row) -> bool) -> Vec<&str> {
        let rows = self.0.iter().filter(|row| wanted(row));
        rows.map(|row| row.name.as_str()).collect()
    }
}

const HEAD: [&str; 7] = [
    "operation",
    "stock",
    "spec-ctrl=no",
    "ours",
    "goal",
    "to stock",
    "to spec-ctrl=no",
];

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows: Vec<[String; 7]> = self.0.iter().map(Row::cells).collect();
        let mut widths = HEAD.map(|name| name.chars().count());
        for row in &rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        line(f, widths, &HEAD.map(str::to_owned))?;
        let mut number = 0;
        let dashes = widths.map(|width| {
            number += 1;
            let dashes = "-".repeat(width);
            // Numbers stand at the right.
            if number == 1 {
                dashes
            } else {
                format!("{}:", &dashes[1..])
            }
        });
        line(f, widths, &dashes)?;
        rows.iter().try_for_each(|row| line(f, widths, row))
    }
}

fn line(f: &mut fmt::Formatter<'_>, widths: [usize; 7], cells: &[String; 7]) -> fmt::Result {
    let [name, numbers @ ..] = cells;
    write!(f, "| {name:<width$} |", width = widths[0])?;
    for (cell, width) in numbers.iter().zip(&widths[1..]) {
        write!(f, " {cell:>width$} |")?;
    }
    writeln!(f)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(stock: u64, unmitigated: u64, ours: Range) -> Row {
        Row {
            name: ours.to_string(),
            stock: stock.into(),
            unmitigated: unmitigated.into(),
            ours,
            goal: Some(100),
        }
    }

    #[test]
    fn a_row_that_may_be_above_either_of_theirs_is_named() {
        let mut table = Table::new();
        let range = Range { least: 80, most: 95 };
        for row in [row(100, 90, 90.into()), row(100, 90, range), row(100, 100, 101.into())] {
            table.add(row);
        }
        assert_eq!(table.above(), ["80–95", "101"]);
        assert_eq!(table.missing_goals(), ["101"]);
    }

    #[test]
    fn a_ratio_is_rounded_against_us() {
        assert_eq!(row(1000, 999, 1000.into()).ratios(), [100, 101]);
    }

    #[test]
    fn columns_are_as_wide_as_what_stands_in_them() {
        let mut table = Table::new();
        table.add(row(1_234_567, 9, 5.into()));
        let lines: Vec<usize> = table.to_string().lines().map(|line| line.chars().count()).collect();
        assert_eq!(lines.len(), 3);
        assert!(lines.iter().all(|width| *width == lines[0]));
    }
}

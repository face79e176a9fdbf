//! Text for people: a table, or one thing's properties below each other.

/// Space between columns.
const GAP: &str = "  ";

/// A heading and rows, padded so that columns line up; ends with a line feed.
pub(crate) fn table<const N: usize>(heading: [&str; N], rows: &[[String; N]]) -> String {
    let rows: Vec<[String; N]> = std::iter::once(heading.map(str::to_owned))
        .chain(rows.iter().map(|row| row.each_ref().map(|text| cell(text))))
        .collect();
    let widths: [usize; N] =
        std::array::from_fn(|column| rows.iter().map(|row| width(&row[column])).max().unwrap_or(0));
    rows.iter().map(|row| line(row, &widths)).collect()
}

/// Labels and values, padded so that values line up. What has no value is left out.
pub(crate) fn properties(pairs: &[(&str, String)]) -> String {
    let shown: Vec<_> = pairs.iter().filter(|(_, value)| !value.is_empty()).collect();
    let widest = shown.iter().map(|(label, _)| width(label)).max().unwrap_or(0);
    shown.iter().map(|(label, value)| line(&[(*label).to_owned(), printable(value)], &[widest, 0])).collect()
}

/// The text without control characters: what a server or a guest's name says must not drive the terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

fn cell(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { printable(text) }
}

fn width(text: &str) -> usize {
    text.chars().count()
}

fn line(cells: &[String], widths: &[usize]) -> String {
    let padded: Vec<String> = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
    format!("{}\n", padded.join(GAP).trim_end())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [["a".to_owned(), "1".to_owned()], ["longer".to_owned(), String::new()]];
        assert_eq!(table(["NAME", "N"], &rows), "NAME    N\na       1\nlonger  -\n");
    }

    #[test]
    fn an_empty_table_has_its_heading() {
        assert_eq!(table(["NAME", "VNI"], &[]), "NAME  VNI\n");
    }

    #[test]
    fn properties_without_a_value_are_left_out() {
        let pairs = [("name", "x".to_owned()), ("detail", String::new()), ("generation", "1".to_owned())];
        assert_eq!(properties(&pairs), "name        x\ngeneration  1\n");
    }

    proptest! {
        #[test]
        fn whatever_a_cell_holds_stays_on_its_line(cells in proptest::collection::vec(any::<String>(), 0..8)) {
            let rows: Vec<[String; 2]> = cells.iter().map(|cell| [cell.clone(), "end".to_owned()]).collect();
            let shown = table(["FIRST", "LAST"], &rows);
            prop_assert_eq!(shown.matches('\n').count(), rows.len() + 1);
            prop_assert!(shown.chars().all(|c| c == '\n' || !c.is_control()));
            let columns: Vec<usize> = shown.split_terminator('\n').skip(1).map(|line| line.chars().count()).collect();
            prop_assert!(columns.windows(2).all(|pair| pair[0] == pair[1]));
        }
    }
}

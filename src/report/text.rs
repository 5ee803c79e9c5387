//! Text in columns and lines of a given width.

/// Text from elsewhere, such as a runtime's message, as one line that cannot move a terminal's cursor.
pub fn one_line(text: &str) -> String {
    let printable: String = text.chars().map(|char| if char.is_control() { ' ' } else { char }).collect();
    printable.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A command as a shell would take it, on one line.
pub fn command_line(words: &[String]) -> String {
    let plain = |char: char| char.is_ascii_alphanumeric() || "%+,-./:=@_".contains(char);
    let quoted = |word: &String| match word.is_empty() || !word.chars().all(plain) {
        true => format!("'{}'", word.replace('\'', r"'\''")),
        false => word.clone(),
    };
    one_line(&words.iter().map(quoted).collect::<Vec<_>>().join(" "))
}

/// Characters, taking each for one column wide.
pub fn width(text: &str) -> usize {
    text.chars().count()
}

/// Words after `head`, in lines of at most `columns` unless a word is longer; further lines are indented by `indent`.
pub fn wrapped(head: &str, words: &str, indent: usize, columns: usize) -> String {
    let (mut lines, mut used) = (head.to_owned(), width(head));
    let mut at_start = true;
    for word in words.split_whitespace() {
        let space = usize::from(!at_start);
        if !at_start && used + space + width(word) > columns {
            lines.push('\n');
            lines.push_str(&" ".repeat(indent));
            used = indent;
        } else if space == 1 {
            lines.push(' ');
            used += 1;
        }
        lines.push_str(word);
        used += width(word);
        at_start = false;
    }
    lines.push('\n');
    lines
}

/// Rows in columns as wide as they need be: the first to the left, others as `align` says.
pub fn columns(rows: &[Vec<String>], align: Align) -> Vec<String> {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count)
        .map(|column| {
            rows.iter().filter_map(|row| row.get(column)).map(|cell| width(cell)).max().unwrap_or(0)
        })
        .collect();
    let line = |row: &Vec<String>| {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let width = *width;
            let gap = if column == 0 { "" } else { "  " };
            if column > 0 && align == Align::Right {
                line.push_str(&format!("{gap}{cell:>width$}"));
            } else {
                line.push_str(&format!("{gap}{cell:<width$}"));
            }
        }
        line.truncate(line.trim_end().len());
        line
    };
    rows.iter().map(line).collect()
}

/// On which side the cells of a column begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    Left,
    Right,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_no_wider_than_they_may_be() {
        assert_eq!(wrapped("a: ", "one two three", 3, 10), "a: one two\n   three\n");
        assert_eq!(wrapped("a: ", "extraordinarily long", 3, 10), "a: extraordinarily\n   long\n");
        assert_eq!(wrapped("a: ", "", 3, 10), "a: \n");
    }

    #[test]
    fn a_command_is_quoted_for_a_shell() {
        let words = ["sh", "-c", "echo 'a' $b", "", "--x=/y"].map(String::from);
        assert_eq!(command_line(&words), r"sh -c 'echo '\''a'\'' $b' '' --x=/y");
    }

    #[test]
    fn columns_line_up() {
        let rows = [vec!["a".into(), "1.5".into(), "x".into()], vec!["long".into(), "10.25".into()]];
        assert_eq!(columns(&rows, Align::Right), ["a       1.5  x", "long  10.25"]);
        assert_eq!(columns(&rows, Align::Left), ["a     1.5    x", "long  10.25"]);
    }

    #[test]
    fn text_from_elsewhere_cannot_move_the_cursor() {
        assert_eq!(one_line("a\n\u{1b}[2J\tb\r\n"), "a [2J b");
    }
}

//! Printing text from other sources safely.

use std::borrow::Cow;

/// The text with its control characters escaped, so that a terminal shows them and does not execute them.
pub fn one_line(text: &str) -> Cow<'_, str> {
    printable(text, |_| false)
}

/// The same, but line breaks are kept.
pub fn lines(text: &str) -> Cow<'_, str> {
    printable(text, |character| character == '\n')
}

fn printable(text: &str, stays: impl Fn(char) -> bool) -> Cow<'_, str> {
    let is_printable = |character: char| stays(character) || !is_control(character);
    if text.chars().all(is_printable) {
        return Cow::Borrowed(text);
    }
    let mut printable = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if is_printable(character) {
            printable.push(character);
        } else {
            printable.extend(character.escape_default());
        }
    }
    Cow::Owned(printable)
}

/// Whether it is a control character, or changes the direction of the text after it.
fn is_control(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_obeys_nothing_of_it() {
        assert_eq!(one_line("\u{1b}[31mred\u{7}\u{9b}1m"), "\\u{1b}[31mred\\u{7}\\u{9b}1m");
        assert_eq!(one_line("a\r\nb\tc"), "a\\r\\nb\\tc");
        assert_eq!(one_line("\u{202e}live"), "\\u{202e}live");
        assert_eq!(lines("a\u{1b}\nb"), "a\\u{1b}\nb");
        assert!(matches!(one_line("schöne \"Grüße\""), Cow::Borrowed(_)), "all else stays as it is");
    }
}

//! The lines of a file.

use std::fmt::{self, Write as _};

use toml_writer::ToTomlValue as _;

/// A key and its text.
pub(super) fn field(text: &mut String, key: &str, value: &str) -> fmt::Result {
    writeln!(text, "{key} = {}", value.to_toml_value())
}

/// One value stands on the key's line, several on a line each.
pub(super) fn array(text: &mut String, key: &str, values: impl Iterator<Item = String>) -> fmt::Result {
    match &values.collect::<Vec<_>>()[..] {
        [] => writeln!(text, "{key} = []"),
        [value] => writeln!(text, "{key} = [{value}]"),
        values => {
            writeln!(text, "{key} = [")?;
            values.iter().try_for_each(|value| writeln!(text, "    {value},"))?;
            writeln!(text, "]")
        }
    }
}

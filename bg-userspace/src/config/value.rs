//! Reading TOML values. Each reader returns the value, or notes what it expected.

use std::{
    ops::{Range, RangeInclusive},
    time::Duration,
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::error::{Expected, Places, Position, Problem};

/// The file's text and the problems found so far.
pub(super) struct Notes<'i> {
    places: Places<'i>,
    problems: Vec<Problem>,
}

impl<'i> Notes<'i> {
    pub(super) fn new(text: &'i str) -> Self {
        Self { places: Places::new(text), problems: Vec::new() }
    }

    pub(super) fn position(&self, offset: usize) -> Position {
        self.places.position(offset)
    }

    pub(super) fn note(&mut self, span: &Range<usize>, place: &str, kind: Expected) {
        self.problems.push(Problem { position: self.position(span.start), place: place.to_owned(), kind });
    }

    /// All problems by position, if there are any.
    pub(super) fn into_problems(mut self) -> Vec<Problem> {
        self.problems.sort_by_key(|problem| problem.position);
        self.problems
    }
}

/// A table whose keys are known.
pub(super) struct Fields<'t, 'i> {
    table: &'t DeTable<'i>,
    /// What is noted when a key is missing points here.
    span: Range<usize>,
    /// As in [`Problem::place`].
    pub(super) place: String,
}

impl<'t, 'i> Fields<'t, 'i> {
    /// Notes each key that is not among `known`.
    pub(super) fn new(
        notes: &mut Notes<'_>,
        table: &'t DeTable<'i>,
        span: Range<usize>,
        place: String,
        known: &'static [&'static str],
    ) -> Self {
        for (key, _) in table.iter().filter(|(key, _)| !known.contains(&key.get_ref().as_ref())) {
            notes.note(&key.span(), &place, Expected::KnownKey { key: key.get_ref().to_string(), known });
        }
        Self { table, span, place }
    }

    pub(super) fn span(&self) -> &Range<usize> {
        &self.span
    }

    pub(super) fn optional(&self, key: &str) -> Option<&'t Spanned<DeValue<'i>>> {
        self.table.get(key)
    }

    pub(super) fn required(&self, notes: &mut Notes<'_>, key: &'static str) -> Option<&'t Spanned<DeValue<'i>>> {
        let value = self.optional(key);
        if value.is_none() {
            notes.note(&self.span, &self.place, Expected::Key(key));
        }
        value
    }

    /// A table below this one, if it is there.
    pub(super) fn table(
        &self,
        notes: &mut Notes<'_>,
        key: &'static str,
        expected: &'static str,
        known: &'static [&'static str],
    ) -> Option<Self> {
        let value = self.optional(key)?;
        let DeValue::Table(table) = value.get_ref() else {
            self.wrong_type(notes, key, value, expected);
            return None;
        };
        Some(Self::new(notes, table, value.span(), self.below(key), known))
    }

    /// An array of tables below this one; empty if it is not there. Messages call each one `called` with its number.
    pub(super) fn tables(
        &self,
        notes: &mut Notes<'_>,
        key: &'static str,
        called: &'static str,
        expected: &'static str,
        known: &'static [&'static str],
    ) -> Vec<Self> {
        let Some(value) = self.optional(key) else { return Vec::new() };
        let DeValue::Array(array) = value.get_ref() else {
            self.wrong_type(notes, key, value, expected);
            return Vec::new();
        };
        let mut tables = Vec::new();
        for (index, value) in array.iter().enumerate() {
            let place = self.below(&format!("{called} {}", index + 1));
            match value.get_ref() {
                DeValue::Table(table) => tables.push(Self::new(notes, table, value.span(), place, known)),
                _ => wrong_type(notes, &place, key, value, expected),
            }
        }
        tables
    }

    /// The place of something below this table.
    fn below(&self, key: &str) -> String {
        if self.place.is_empty() { key.to_owned() } else { format!("{}, {key}", self.place) }
    }

    /// A value of another type than expected.
    pub(super) fn wrong_type(
        &self,
        notes: &mut Notes<'_>,
        key: &str,
        value: &Spanned<DeValue<'_>>,
        expected: &'static str,
    ) {
        wrong_type(notes, &self.place, key, value, expected);
    }

    /// The text of a value that must be one.
    pub(super) fn text(
        &self,
        notes: &mut Notes<'_>,
        key: &str,
        value: &'t Spanned<DeValue<'i>>,
        expected: &'static str,
    ) -> Option<&'t str> {
        let text = value.get_ref().as_str();
        if text.is_none() {
            self.wrong_type(notes, key, value, expected);
        }
        text
    }

    /// One of a few words, by its index.
    pub(super) fn word(
        &self,
        notes: &mut Notes<'_>,
        what: &'static str,
        value: &'t Spanned<DeValue<'i>>,
        words: &'static [&'static str],
        note: impl FnOnce(&str) -> &'static str,
    ) -> Option<usize> {
        let text = self.text(notes, what, value, "a word in quotes")?;
        let index = words.iter().position(|word| *word == text);
        if index.is_none() {
            let kind = Expected::Word { what, got: text.to_owned(), words, note: note(text) };
            notes.note(&value.span(), &self.place, kind);
        }
        index
    }

    /// A whole number within `range`.
    pub(super) fn whole<N: Copy + Into<u64> + TryFrom<u64>>(
        &self,
        notes: &mut Notes<'_>,
        key: &'static str,
        range: RangeInclusive<N>,
    ) -> Option<N> {
        let value = self.optional(key)?;
        let DeValue::Integer(integer) = value.get_ref() else {
            self.wrong_type(notes, key, value, "an integer");
            return None;
        };
        let (least, most) = ((*range.start()).into(), (*range.end()).into());
        let number = u64::from_str_radix(integer.as_str(), integer.radix()).ok();
        let number =
            number.filter(|number| (least..=most).contains(number)).and_then(|number| N::try_from(number).ok());
        if number.is_none() {
            let kind = Expected::Number { what: key, got: integer.as_str().to_owned(), least, most };
            notes.note(&value.span(), &self.place, kind);
        }
        number
    }

    /// A text that is not empty and can be part of a line.
    pub(super) fn line(&self, notes: &mut Notes<'_>, key: &'static str, expected: &'static str) -> Option<String> {
        let value = self.optional(key)?;
        let text = self.text(notes, key, value, expected)?;
        if text.is_empty() || text.contains(char::is_control) {
            notes.note(
                &value.span(),
                &self.place,
                Expected::Text { what: key, got: text.to_owned(), expected: expected.into() },
            );
            return None;
        }
        Some(text.to_owned())
    }

    /// `true` or `false`; false if it is not there.
    pub(super) fn flag(&self, notes: &mut Notes<'_>, key: &'static str) -> bool {
        match self.optional(key) {
            None => false,
            Some(value) => value.get_ref().as_bool().unwrap_or_else(|| {
                self.wrong_type(notes, key, value, "true or false");
                false
            }),
        }
    }

    /// A program and its arguments.
    pub(super) fn command(&self, notes: &mut Notes<'_>) -> Option<Vec<String>> {
        const KEY: &str = "command";
        const EXPECTED: &str = "an array of a program and its arguments, [\"/usr/local/bin/smoke-test\", \"--fast\"]";
        let value = self.required(notes, KEY)?;
        let DeValue::Array(array) = value.get_ref() else {
            self.wrong_type(notes, KEY, value, EXPECTED);
            return None;
        };
        let words: Option<Vec<_>> =
            array.iter().map(|word| self.text(notes, KEY, word, EXPECTED).map(str::to_owned)).collect();
        let words = words?;
        // No argument of a program can have a zero byte.
        if words.first().is_none_or(String::is_empty) || words.iter().any(|word| word.contains('\0')) {
            notes.note(&value.span(), &self.place, Expected::Command);
            return None;
        }
        Some(words)
    }

    /// A required address of the web.
    pub(super) fn url(&self, notes: &mut Notes<'_>) -> Option<String> {
        const KEY: &str = "url";
        const EXPECTED: &str = "http://HOST... or https://HOST...";
        let value = self.required(notes, KEY)?;
        let text = self.text(notes, KEY, value, EXPECTED)?;
        let rest = text.strip_prefix("http://").or(text.strip_prefix("https://"));
        let host = rest.map(|rest| rest.split(['/', '?', '#']).next().unwrap_or(""));
        let has_host = host.is_some_and(|host| host.starts_with(|char: char| char.is_alphanumeric() || char == '['));
        if !has_host || text.contains(|char: char| char.is_whitespace() || char.is_control()) {
            notes.note(
                &value.span(),
                &self.place,
                Expected::Text { what: KEY, got: text.to_owned(), expected: EXPECTED.into() },
            );
            return None;
        }
        Some(text.to_owned())
    }

    /// Notes each of `keys` that is there although the `kind` has no such key.
    pub(super) fn not_of_kind(
        &self,
        notes: &mut Notes<'_>,
        kind: &'static str,
        keys: &[(&'static str, &'static [&'static str])],
    ) {
        for (key, kinds) in keys.iter().filter(|(_, kinds)| !kinds.contains(&kind)) {
            if let Some((key, _)) = self.table.get_key_value(*key) {
                notes.note(&key.span(), &self.place, Expected::OfKind { key: key.get_ref().to_string(), kind, kinds });
            }
        }
    }

    /// A duration in the syntax of systemd and humantime, within `range`.
    pub(super) fn duration(
        &self,
        notes: &mut Notes<'_>,
        key: &'static str,
        range: Range<Duration>,
    ) -> Option<Duration> {
        let value = self.optional(key)?;
        let text = self.text(notes, key, value, "a duration in quotes, such as \"2m\"")?;
        let why = match humantime::parse_duration(text) {
            Ok(duration) if duration < range.start => {
                format!("shorter than {}", humantime::format_duration(range.start))
            }
            Ok(duration) if duration > range.end => format!("longer than {}", humantime::format_duration(range.end)),
            Ok(duration) => return Some(duration),
            Err(error) => error.to_string(),
        };
        notes.note(&value.span(), &self.place, Expected::Duration { key, got: text.to_owned(), why });
        None
    }
}

/// Notes that a value has another type than expected.
pub(super) fn wrong_type(
    notes: &mut Notes<'_>,
    place: &str,
    key: &str,
    value: &Spanned<DeValue<'_>>,
    expected: &'static str,
) {
    let got = match value.get_ref() {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    };
    notes.note(&value.span(), place, Expected::Type { key: key.to_owned(), got, expected });
}

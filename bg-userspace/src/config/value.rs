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

    /// A number within `range`.
    pub(super) fn number(&self, notes: &mut Notes<'_>, key: &'static str, range: RangeInclusive<u8>) -> Option<u8> {
        let value = self.optional(key)?;
        let DeValue::Integer(integer) = value.get_ref() else {
            self.wrong_type(notes, key, value, "an integer");
            return None;
        };
        let number = i64::from_str_radix(integer.as_str(), integer.radix()).ok();
        let number = number.and_then(|number| u8::try_from(number).ok()).filter(|number| range.contains(number));
        if number.is_none() {
            let (least, most) = (u64::from(*range.start()), u64::from(*range.end()));
            let kind = Expected::Number { what: key, got: integer.as_str().to_owned(), least, most };
            notes.note(&value.span(), &self.place, kind);
        }
        number
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

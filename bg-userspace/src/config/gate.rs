//! Parsing `[[deployments.NAME.gates]]`.

use std::{ops::Range, time::Duration};

use toml::de::DeValue;

use super::{
    error::Expected,
    health::expect_status,
    model::{Bound, Gate, GateKind, When},
    value::{Fields, Notes},
};

const KEYS: &[&str] =
    &["when", "kind", "command", "url", "expect_status", "query", "max", "min", "interval", "timeout"];
const KINDS: &[&str] = &["exec", "http", "prometheus"];
/// The keys that only some kinds have.
const OF_KINDS: &[(&str, &[&str])] = &[
    ("command", &["exec"]),
    ("url", &["http", "prometheus"]),
    ("expect_status", &["http"]),
    ("query", &["prometheus"]),
    ("max", &["prometheus"]),
    ("min", &["prometheus"]),
];
const WHEN: &[&str] = &[When::Before.name(), When::After.name()];
const TIMES: Range<Duration> = Duration::from_millis(1)..Duration::from_secs(24 * 60 * 60);

/// The gates of a deployment that are valid.
pub(super) fn gates(notes: &mut Notes<'_>, owner: &Fields<'_, '_>) -> Vec<Gate> {
    let tables = owner.tables(notes, "gates", "gate", "an array of tables, [[deployments.NAME.gates]]", KEYS);
    tables.into_iter().filter_map(|fields| gate(notes, &fields)).collect()
}

fn gate(notes: &mut Notes<'_>, fields: &Fields<'_, '_>) -> Option<Gate> {
    let when = fields.required(notes, "when").and_then(|value| fields.word(notes, "when", value, WHEN, |_| ""));
    let kind = fields.required(notes, "kind").and_then(|value| fields.word(notes, "kind", value, KINDS, |_| ""));
    let interval = fields.duration(notes, "interval", TIMES).unwrap_or(Gate::INTERVAL);
    let timeout = fields.duration(notes, "timeout", TIMES).unwrap_or(Gate::TIMEOUT);
    let kind = KINDS[kind?];
    fields.not_of_kind(notes, kind, OF_KINDS);
    let kind = match kind {
        "exec" => GateKind::Exec { command: fields.command(notes)? },
        "http" => {
            let expect_status = expect_status(notes, fields);
            GateKind::Http { url: fields.url(notes)?, expect_status }
        }
        _ => prometheus(notes, fields)?,
    };
    Some(Gate { when: When::ALL[when?], kind, interval, timeout })
}

fn prometheus(notes: &mut Notes<'_>, fields: &Fields<'_, '_>) -> Option<GateKind> {
    let url = fields.url(notes);
    let query = fields.required(notes, "query").and_then(|value| {
        let text = fields.text(notes, "query", value, "a query in quotes, 'rate(errors[1m])'")?;
        if text.trim().is_empty() {
            let expected = "a query, 'rate(errors[1m])'".into();
            notes.note(&value.span(), &fields.place, Expected::Text { what: "query", got: text.to_owned(), expected });
        }
        Some(text.to_owned())
    });
    let (max, min) = (bound(notes, fields, "max"), bound(notes, fields, "min"));
    if fields.optional("max").is_none() && fields.optional("min").is_none() {
        notes.note(fields.span(), &fields.place, Expected::Bound);
    }
    if let (Some(max), Some(min), Some(value)) = (max, min, fields.optional("min"))
        && min > max
    {
        notes.note(&value.span(), &fields.place, Expected::Bounds { min, max });
    }
    Some(GateKind::Prometheus { url: url?, query: query?, max, min })
}

fn bound(notes: &mut Notes<'_>, fields: &Fields<'_, '_>, key: &'static str) -> Option<Bound> {
    let value = fields.optional(key)?;
    let number = match value.get_ref() {
        DeValue::Integer(integer) => {
            i64::from_str_radix(integer.as_str(), integer.radix()).ok().map(|number| number as f64)
        }
        DeValue::Float(float) => float.as_str().parse().ok(),
        _ => None,
    };
    let bound = number.and_then(Bound::new);
    if bound.is_none() {
        fields.wrong_type(notes, key, value, "a finite number");
    }
    bound
}

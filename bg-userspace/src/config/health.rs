//! Parsing `health` of a deployment or a service, and `[deployments.NAME.failover]`.

use std::{num::NonZeroU32, ops::Range, time::Duration};

use toml::{Spanned, de::DeValue};

use super::{
    error::Expected,
    model::{AllDown, CheckKind, Failover, HealthCheck, HttpCheck, MinHealthy, StatusRanges},
    value::{Fields, Notes},
};

const KEYS: &[&str] = &[
    "kind",
    "path",
    "host",
    "expect_status",
    "expect_body",
    "service",
    "tls",
    "command",
    "port",
    "interval",
    "timeout",
    "rise",
    "fall",
    "all_down",
    "slow_start",
];
const KINDS: &[&str] = &["tcp", "http", "https", "grpc", "exec"];
const HTTP: &[&str] = &["http", "https"];
/// The keys that only some kinds have.
const OF_KINDS: &[(&str, &[&str])] = &[
    ("path", HTTP),
    ("host", HTTP),
    ("expect_status", HTTP),
    ("expect_body", HTTP),
    ("service", &["grpc"]),
    ("tls", &["grpc"]),
    ("command", &["exec"]),
];
const ALL_DOWN: &[&str] = &[AllDown::Open.name(), AllDown::Refuse.name()];
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const TIMES: Range<Duration> = Duration::from_millis(1)..DAY;

/// `health`, if it is there and valid.
pub(super) fn health(notes: &mut Notes<'_>, owner: &Fields<'_, '_>) -> Option<HealthCheck> {
    let fields = owner.table(notes, "health", "a table, { kind = \"tcp\" }", KEYS)?;
    let value = fields.required(notes, "kind")?;
    let kind = KINDS[fields.word(notes, "kind", value, KINDS, |_| "")?];
    fields.not_of_kind(notes, kind, OF_KINDS);
    let usual = HealthCheck::new(CheckKind::Tcp);
    let kind = match kind {
        "tcp" => Some(CheckKind::Tcp),
        "http" | "https" => Some(CheckKind::Http(http(notes, &fields, kind == "https"))),
        "grpc" => Some(CheckKind::Grpc { service: service(notes, &fields), tls: fields.flag(notes, "tls") }),
        _ => fields.command(notes).map(|command| CheckKind::Exec { command }),
    };
    let interval = fields.duration(notes, "interval", Duration::from_millis(10)..DAY).unwrap_or(usual.interval);
    let timeout = fields.duration(notes, "timeout", TIMES);
    if let (Some(timeout), Some(value)) = (timeout.filter(|timeout| *timeout > interval), fields.optional("timeout")) {
        notes.note(&value.span(), &fields.place, Expected::Timeout { timeout, interval });
    }
    let all_down =
        fields.optional("all_down").and_then(|value| fields.word(notes, "all_down", value, ALL_DOWN, |_| ""));
    let port = fields.whole(notes, "port", 1..=u16::MAX);
    let rise = fields.whole(notes, "rise", 1..=1000_u32).unwrap_or(usual.rise);
    let fall = fields.whole(notes, "fall", 1..=1000_u32).unwrap_or(usual.fall);
    let slow_start = fields.duration(notes, "slow_start", TIMES);
    Some(HealthCheck {
        kind: kind?,
        port,
        interval,
        // The default is meant for the default interval.
        timeout: timeout.unwrap_or(usual.timeout.min(interval)),
        rise,
        fall,
        all_down: all_down.map_or(usual.all_down, |index| AllDown::ALL[index]),
        slow_start,
    })
}

/// Whether `health` of a service says that nothing checks it.
pub(super) fn is_none(service: &Fields<'_, '_>) -> bool {
    service.optional("health").and_then(|value| value.get_ref().as_str()) == Some("none")
}

/// Notes a check that would ask the port of a UDP service over TCP. `service` is the one that has it from its deployment.
pub(super) fn can_ask_udp(
    notes: &mut Notes<'_>,
    fields: &Fields<'_, '_>,
    check: &HealthCheck,
    value: &Spanned<DeValue<'_>>,
    service: Option<&str>,
) {
    // A port with a problem of its own is one, too.
    let has_port = value.get_ref().as_table().is_some_and(|table| table.contains_key("port"));
    if !has_port && !matches!(check.kind, CheckKind::Exec { .. }) {
        let kind = Expected::OverTcp { kind: check.kind.name(), service: service.map(str::to_owned) };
        notes.note(&value.span(), &fields.place, kind);
    }
}

/// Whether a request can ask for it: other characters are written in the form %3C.
pub(crate) fn is_path(path: &str) -> bool {
    let is_allowed = |char: char| char.is_ascii_graphic() && !"\"<>#`".contains(char);
    path.starts_with('/') && path.chars().all(is_allowed)
}

fn http(notes: &mut Notes<'_>, fields: &Fields<'_, '_>, tls: bool) -> HttpCheck {
    let path = fields.line(notes, "path", "a path that begins with /, \"/healthz\"").unwrap_or_else(|| "/".to_owned());
    if !is_path(&path) {
        let expected =
            "a path that begins with /, with other characters than those of URLs in the form %20, \"/healthz\"";
        note_text(notes, fields, "path", expected);
    }
    let host = fields.line(notes, "host", "the name of a host, \"shop.example\"");
    if host.as_ref().is_some_and(|host| host.contains(|char: char| char.is_whitespace() || char == '/')) {
        note_text(notes, fields, "host", "the name of a host, \"shop.example\"");
    }
    let expect_body = expect_body(notes, fields);
    HttpCheck {
        path,
        host,
        expect_status: expect_status(notes, fields).unwrap_or_else(StatusRanges::ok),
        expect_body,
        tls,
    }
}

/// `expect_status`, if it is there and valid.
pub(super) fn expect_status(notes: &mut Notes<'_>, fields: &Fields<'_, '_>) -> Option<StatusRanges> {
    const EXPECTED: &str = "status codes from 100 to 599 in quotes, \"200-399\" or \"200,204\"";
    let value = fields.optional("expect_status")?;
    let ranges = StatusRanges::parse(fields.text(notes, "expect_status", value, EXPECTED)?);
    if ranges.is_none() {
        note_text(notes, fields, "expect_status", EXPECTED);
    }
    ranges
}

fn expect_body(notes: &mut Notes<'_>, fields: &Fields<'_, '_>) -> Option<String> {
    let value = fields.optional("expect_body")?;
    let text = fields.text(notes, "expect_body", value, "a regular expression in quotes")?;
    if let Err(error) = regex_lite::Regex::new(text) {
        let kind = Expected::Text {
            what: "expect_body",
            got: text.to_owned(),
            expected: format!("a regular expression: {error}").into(),
        };
        notes.note(&value.span(), &fields.place, kind);
    }
    Some(text.to_owned())
}

fn service(notes: &mut Notes<'_>, fields: &Fields<'_, '_>) -> String {
    let Some(value) = fields.optional("service") else { return String::new() };
    fields.text(notes, "service", value, "the name of a service in quotes").unwrap_or("").to_owned()
}

/// Notes that the text of a key is another one than expected.
fn note_text(notes: &mut Notes<'_>, fields: &Fields<'_, '_>, key: &'static str, expected: &'static str) {
    if let Some((value, text)) = fields.optional(key).and_then(|value| Some((value, value.get_ref().as_str()?))) {
        let kind = Expected::Text { what: key, got: text.to_owned(), expected: expected.into() };
        notes.note(&value.span(), &fields.place, kind);
    }
}

/// `failover`. `is_checked` is whether the deployment has health checks.
pub(super) fn failover(notes: &mut Notes<'_>, owner: &Fields<'_, '_>, is_checked: bool) -> Failover {
    const KEYS: &[&str] = &["to_idle", "min_healthy", "hold_off"];
    const WAYS: &[&str] = &["off", "auto"];
    let usual = Failover::default();
    let Some(fields) = owner.table(notes, "failover", "a table, { to_idle = \"auto\" }", KEYS) else { return usual };
    let mut to_idle = false;
    if let Some(value) = fields.optional("to_idle") {
        to_idle = fields.word(notes, "to_idle", value, WAYS, |_| "") == Some(1);
        if to_idle && !is_checked {
            notes.note(&value.span(), &fields.place, Expected::Checks);
        }
    }
    Failover {
        to_idle,
        min_healthy: min_healthy(notes, &fields).unwrap_or(usual.min_healthy),
        hold_off: fields.duration(notes, "hold_off", Duration::from_secs(1)..DAY * 365).unwrap_or(usual.hold_off),
    }
}

fn min_healthy(notes: &mut Notes<'_>, fields: &Fields<'_, '_>) -> Option<MinHealthy> {
    const KEY: &str = "min_healthy";
    const EXPECTED: &str = "a percentage from 1% to 100% in quotes, \"50%\", or a number of backends, 2";
    let value = fields.optional(KEY)?;
    match value.get_ref() {
        DeValue::Integer(_) => {
            let count = fields.whole(notes, KEY, 1..=u32::from(u16::MAX))?;
            NonZeroU32::new(count).map(MinHealthy::Count)
        }
        DeValue::String(text) => {
            let digits = text.strip_suffix('%').filter(|text| text.bytes().all(|digit| digit.is_ascii_digit()));
            let percent = digits.and_then(|digits| digits.parse().ok()).filter(|percent| (1..=100).contains(percent));
            if percent.is_none() {
                note_text(notes, fields, KEY, EXPECTED);
            }
            percent.map(MinHealthy::Percent)
        }
        _ => {
            fields.wrong_type(notes, KEY, value, EXPECTED);
            None
        }
    }
}

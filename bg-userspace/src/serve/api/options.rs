//! The bodies of requests: the options of the commands, by their long names with `_` for `-`.

use std::{net::SocketAddr, time::Duration};

use axum::{body::Bytes, http::HeaderMap};
use serde::{Deserialize, Deserializer, de::DeserializeOwned, de::Error as _};

use super::problem::Problem;
use crate::{
    Colour, Condition, DrainRequest, FreezeRequest, FreezeWindow, SplitRequest, SwitchRequest,
    config::{DivideBy, OnSwitch},
};

/// The options of `switch`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Switch {
    #[serde(deserialize_with = "colour")]
    to: Option<Colour>,
    #[serde(deserialize_with = "on_switch")]
    on_switch: Option<OnSwitch>,
    pub(super) if_generation: Option<u32>,
    force: bool,
    pub(super) dry_run: bool,
    reason: Option<Text>,
    #[serde(deserialize_with = "duration")]
    confirm_within: Option<Duration>,
    #[serde(deserialize_with = "conditions")]
    revert_if: Vec<Condition>,
    #[serde(deserialize_with = "duration")]
    ramp: Option<Duration>,
    at: Option<jiff::Timestamp>,
    #[serde(deserialize_with = "period")]
    freeze: Option<Duration>,
    before: Option<Text>,
    after: Option<Text>,
    pub(super) skip_gates: bool,
}

impl Switch {
    pub(super) fn request(&self) -> SwitchRequest {
        let request = self.with_gates();
        if self.skip_gates { request.without_gates() } else { request }
    }

    fn with_gates(&self) -> SwitchRequest {
        SwitchRequest {
            to: self.to,
            on_switch: self.on_switch,
            if_generation: self.if_generation,
            force: self.force,
            reason: text(&self.reason),
            confirm_within: self.confirm_within,
            ramp: self.ramp,
            revert_if: self.revert_if.clone(),
            at: self.at,
            ..SwitchRequest::default()
        }
    }

    /// The frozen window, if there is to be one.
    pub(super) fn window(&self) -> Result<Option<FreezeWindow>, Problem> {
        let window = |max| FreezeWindow { max, before: text(&self.before), after: text(&self.after) };
        match self.freeze.map(window) {
            None if self.has_commands() => Err(Problem::usage("before and after are for a switch with freeze")),
            window => Ok(window),
        }
    }

    /// Whether it has the controller run commands on its host.
    pub(super) fn has_commands(&self) -> bool {
        self.before.is_some() || self.after.is_some()
    }
}

/// The options of `rollback`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Rollback {
    #[serde(deserialize_with = "colour")]
    to: Option<Colour>,
    #[serde(deserialize_with = "on_switch")]
    on_switch: Option<OnSwitch>,
    pub(super) if_generation: Option<u32>,
    force: bool,
    pub(super) dry_run: bool,
    reason: Option<Text>,
    pub(super) skip_gates: bool,
}

impl Rollback {
    pub(super) fn request(&self) -> SwitchRequest {
        let request = self.with_gates();
        if self.skip_gates { request.without_gates() } else { request }
    }

    fn with_gates(&self) -> SwitchRequest {
        SwitchRequest {
            to: self.to,
            on_switch: self.on_switch,
            if_generation: self.if_generation,
            force: self.force,
            reason: text(&self.reason),
            ..SwitchRequest::default()
        }
    }
}

/// The options of `confirm`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Confirm {
    pub(super) if_generation: Option<u32>,
    reason: Option<Text>,
}

impl Confirm {
    pub(super) fn reason(&self) -> Option<String> {
        text(&self.reason)
    }
}

/// The options of `split`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Split {
    /// In percent.
    #[serde(deserialize_with = "percent")]
    green: u16,
    #[serde(deserialize_with = "by", default)]
    by: Option<DivideBy>,
    #[serde(default)]
    pub(super) if_generation: Option<u32>,
    #[serde(default)]
    force: bool,
    #[serde(default)]
    pub(super) dry_run: bool,
    #[serde(default)]
    reason: Option<Text>,
    #[serde(default)]
    pub(super) skip_gates: bool,
}

impl Split {
    pub(super) fn request(&self) -> SplitRequest {
        let request = SplitRequest {
            green: self.green,
            by: self.by,
            if_generation: self.if_generation,
            force: self.force,
            reason: text(&self.reason),
            ..SplitRequest::default()
        };
        if self.skip_gates { request.without_gates() } else { request }
    }
}

/// The options of `freeze`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Freeze {
    #[serde(deserialize_with = "period")]
    max: Option<Duration>,
    drop: bool,
    reason: Option<Text>,
}

impl Freeze {
    pub(super) fn request(&self) -> FreezeRequest {
        FreezeRequest { max: self.max, drop: self.drop, reason: text(&self.reason) }
    }
}

/// The options of `thaw`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Thaw {
    reason: Option<Text>,
}

impl Thaw {
    pub(super) fn reason(&self) -> Option<String> {
        text(&self.reason)
    }
}

/// The options of `drain`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Drain {
    wait: bool,
    #[serde(deserialize_with = "duration")]
    timeout: Option<Duration>,
    then: Then,
    backend: Option<SocketAddr>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Then {
    #[default]
    Keep,
    Reset,
}

impl Drain {
    pub(super) fn request(&self) -> DrainRequest {
        let Self { wait, timeout, then, backend } = *self;
        DrainRequest { wait, timeout, reset: then == Then::Reset, backend }
    }
}

/// Text in a request: one line, of a length that a history can take.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Text(String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        const MOST: usize = 1000;
        let text = String::deserialize(deserializer)?;
        match text.chars().count() {
            ..=MOST => Ok(Self(text)),
            length => Err(D::Error::custom(format!("a text of {length} characters, expected at most {MOST}"))),
        }
    }
}

fn text(text: &Option<Text>) -> Option<String> {
    text.as_ref().map(|text| text.0.clone())
}

/// Reads the options of a body, which may be empty.
pub(super) fn read<T: DeserializeOwned>(headers: &HeaderMap, body: &Bytes) -> Result<T, Problem> {
    if body.is_empty() {
        return serde_json::from_str("{}").map_err(|error| Problem::usage(error.to_string()));
    }
    super::strict::content_is(headers, &["application/json"])?;
    // An array would be the values of the keys in their order, which nobody should rely on.
    match body.iter().find(|byte| !byte.is_ascii_whitespace()) {
        Some(b'{') => serde_json::from_slice(body).map_err(|error| Problem::usage(error.to_string())),
        _ => Err(Problem::usage("expected a JSON object with the options of the command")),
    }
}

fn one_of<'de, D: Deserializer<'de>, T: Copy>(deserializer: D, known: &[(&str, T)]) -> Result<Option<T>, D::Error> {
    let Some(name) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
    let found = known.iter().find(|(known, _)| *known == name);
    let names = || known.iter().map(|(name, _)| format!("\"{name}\"")).collect::<Vec<_>>().join(" or ");
    found
        .map(|(_, value)| Some(*value))
        .ok_or_else(|| D::Error::custom(format!("expected {}, got \"{name}\"", names())))
}

fn colour<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Colour>, D::Error> {
    one_of(deserializer, &Colour::ALL.map(|colour| (colour.name(), colour)))
}

fn on_switch<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<OnSwitch>, D::Error> {
    one_of(deserializer, &[OnSwitch::Drain, OnSwitch::Cut].map(|what| (what.name(), what)))
}

fn by<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<DivideBy>, D::Error> {
    one_of(deserializer, &[DivideBy::Flow, DivideBy::Client].map(|by| (by.name(), by)))
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
    let expected = || format!("expected a duration such as \"500ms\" or \"10s\", got \"{text}\"");
    humantime::parse_duration(&text).map(Some).map_err(|_| D::Error::custom(expected()))
}

fn period<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    match duration(deserializer)? {
        Some(Duration::ZERO) => Err(D::Error::custom("expected a duration that is not zero")),
        period => Ok(period),
    }
}

fn conditions<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Condition>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Conditions {
        One(String),
        Several(Vec<String>),
        None(()),
    }
    let texts =
        match Conditions::deserialize(deserializer).map_err(|_| D::Error::custom("expected an array of conditions"))? {
            Conditions::One(text) => vec![text],
            Conditions::Several(texts) => texts,
            Conditions::None(()) => Vec::new(),
        };
    texts.iter().map(|text| text.parse().map_err(D::Error::custom)).collect()
}

/// A percentage with at most two decimals, into basis points: a number, or text as on a command line.
fn percent<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u16, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Percent {
        Number(f64),
        Text(String),
    }
    let expected = || D::Error::custom("expected a percentage from 0 to 100 with at most two decimals");
    let number = match Percent::deserialize(deserializer).map_err(|_| expected())? {
        Percent::Number(number) => number,
        Percent::Text(text) => text.strip_suffix('%').unwrap_or(&text).parse().map_err(|_| expected())?,
    };
    let points = (number * 100.0).round();
    let is_exact = (number * 100.0 - points).abs() < 1e-6;
    ((0.0..=10_000.0).contains(&points) && is_exact).then_some(points as u16).ok_or_else(expected)
}

#[cfg(test)]
mod tests {
    use axum::http::{StatusCode, header};

    use super::*;

    fn parse<T: DeserializeOwned>(body: &str) -> Result<T, Problem> {
        let headers =
            [(header::CONTENT_TYPE, "application/json; charset=utf-8".parse().unwrap())].into_iter().collect();
        read(&headers, &body.to_owned().into())
    }

    #[test]
    fn options_are_those_of_the_commands() {
        let switch: Switch = parse(
            r#"{"to": "green", "on_switch": "cut", "if_generation": 7, "force": true, "reason": "r", "confirm_within": "5m",
                "revert_if": ["silence 2s", "resets > 5% of 200"], "ramp": "1s", "at": "2100-01-01T00:00:00Z"}"#,
        )
        .unwrap();
        let request = switch.request();
        assert_eq!(
            (request.to, request.on_switch, request.if_generation),
            (Some(Colour::Green), Some(OnSwitch::Cut), Some(7))
        );
        assert_eq!(
            (request.confirm_within, request.ramp),
            (Some(Duration::from_secs(300)), Some(Duration::from_secs(1)))
        );
        assert_eq!((request.revert_if.len(), request.force, request.reason.as_deref()), (2, true, Some("r")));
        assert!(request.at.is_some() && switch.window().unwrap().is_none());
        let window: Switch = parse(r#"{"freeze": "2s", "before": "true"}"#).unwrap();
        assert!(
            window.has_commands()
                && window.window().unwrap().is_some_and(|window| window.max == Duration::from_secs(2))
        );
        assert!(parse::<Switch>(r#"{"before": "true"}"#).unwrap().window().is_err());
        for (green, points) in [("12.5", 1250), ("\"12.5%\"", 1250), ("0", 0), ("99.99", 9999), ("100", 10_000)] {
            assert_eq!(parse::<Split>(&format!("{{\"green\": {green}}}")).unwrap().request().green, points, "{green}");
        }
        let drain: Drain =
            parse(r#"{"wait": true, "timeout": "3s", "then": "reset", "backend": "10.0.0.1:80"}"#).unwrap();
        assert!(drain.request().reset && drain.request().wait && drain.request().backend.is_some());
    }

    #[test]
    fn what_no_command_takes_is_refused() {
        for body in [
            "{\"colour\": \"green\"}",
            "{\"to\": \"red\"}",
            "{\"confirm_within\": 5}",
            "{\"freeze\": \"0s\"}",
            "[]",
            "[\"green\"]",
            "null",
            "7",
            "{\"to\": \"green\", \"to\": \"blue\"}",
            "{\"if_generation\": -1}",
            "{\"if_generation\": 4294967296}",
            "{\"revert_if\": [\"luck\"]}",
            "{",
            "{\"force\": 1}",
            "{\"at\": \"tomorrow\"}",
            "{\"to\": \"green\"} {}",
        ] {
            assert_eq!(parse::<Switch>(body).unwrap_err().status, StatusCode::BAD_REQUEST, "{body}");
        }
        for green in ["-1", "101", "1.234", "\"x\"", "null", "1e9", "\"NaN\"", "\"inf\""] {
            assert!(parse::<Split>(&format!("{{\"green\": {green}}}")).is_err(), "{green}");
        }
        assert!(
            parse::<Split>("{}").is_err()
                && parse::<Thaw>(&format!("{{\"reason\": \"{}\"}}", "x".repeat(1001))).is_err()
        );
        let typed = |kind: &str| [(header::CONTENT_TYPE, kind.parse().unwrap())].into_iter().collect::<HeaderMap>();
        for headers in [HeaderMap::new(), typed("text/plain"), typed("application/x-www-form-urlencoded")] {
            let problem = read::<Thaw>(&headers, &Bytes::from_static(b"{}")).unwrap_err();
            assert_eq!(problem.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
        }
        assert!(read::<Thaw>(&HeaderMap::new(), &Bytes::new()).is_ok());
    }
}

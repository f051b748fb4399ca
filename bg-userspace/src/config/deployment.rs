//! Parsing one `[deployments.NAME]`.

use std::{collections::HashMap, ops::Range, time::Duration};

use bg_common::{Colour, Protocol};
use toml::de::{DeTable, DeValue};

use super::{
    address,
    error::Expected,
    gate, health,
    model::{
        DEFAULT_TCP_IDLE_TIMEOUT, DEFAULT_UDP_IDLE_TIMEOUT, Deployment, DivideBy, OnSwitch, Prefix, Service,
        StickyPrefix,
    },
    service,
    taken::Taken,
    value::{Fields, Notes},
};

const KEYS: &[&str] = &[
    "initial",
    "on_switch",
    "drain_timeout",
    "tcp_idle_timeout",
    "udp_idle_timeout",
    "sticky",
    "sticky_prefix",
    "testers",
    "health",
    "failover",
    "gates",
    "services",
];

const COLOURS: &[&str] = &[Colour::Blue.name(), Colour::Green.name()];
const DIVIDED: &[&str] = &[DivideBy::Flow.name(), DivideBy::Client.name()];
const WAYS: &[&str] = &[OnSwitch::Drain.name(), OnSwitch::Cut.name()];

/// A year, as humantime defines it. This is far less than the data path's clock can count, in steps of less than a
/// second.
const LONGEST: Duration = Duration::from_secs(31_557_600);

pub(super) fn deployment(
    notes: &mut Notes<'_>,
    name: &str,
    table: &DeTable<'_>,
    span: Range<usize>,
    place: String,
    taken: &mut Taken,
) -> Deployment {
    let fields = Fields::new(notes, table, span, place, KEYS);
    let initial = fields.optional("initial").and_then(|value| fields.word(notes, "colour", value, COLOURS, |_| ""));
    let on_switch = fields.optional("on_switch").and_then(|value| fields.word(notes, "on_switch", value, WAYS, |_| ""));
    let sticky = fields.optional("sticky").and_then(|value| fields.word(notes, "sticky", value, DIVIDED, |_| ""));
    let idle = Duration::from_secs(1)..LONGEST;
    let health = health::health(notes, &fields);
    let services = services(notes, &fields, taken);
    if let (Some(check), Some(value)) = (&health, fields.optional("health")) {
        let is_asked =
            |service: &&Service| service.protocol == Protocol::Udp && service.health.is_none() && !service.is_unchecked;
        // A service whose own check has a problem does not get this one.
        if let Some(udp) = services.iter().find(is_asked) {
            health::can_ask_udp(notes, &fields, check, value, Some(&udp.name));
        }
    }
    let is_checked = fields.optional("health").is_some() || services.iter().any(|service| service.health.is_some());
    Deployment {
        name: name.to_owned(),
        initial: initial.map_or(Colour::Blue, |index| Colour::ALL[index]),
        on_switch: on_switch.map_or(OnSwitch::Drain, |index| OnSwitch::ALL[index]),
        drain_timeout: fields.duration(notes, "drain_timeout", Duration::from_millis(1)..LONGEST),
        tcp_idle_timeout: fields.duration(notes, "tcp_idle_timeout", idle.clone()).unwrap_or(DEFAULT_TCP_IDLE_TIMEOUT),
        udp_idle_timeout: fields.duration(notes, "udp_idle_timeout", idle).unwrap_or(DEFAULT_UDP_IDLE_TIMEOUT),
        sticky: sticky.map_or(DivideBy::Flow, |index| DivideBy::ALL[index]),
        sticky_prefix: sticky_prefix(notes, &fields),
        testers: testers(notes, &fields),
        health,
        failover: health::failover(notes, &fields, is_checked),
        gates: gate::gates(notes, &fields),
        services,
    }
}

fn sticky_prefix(notes: &mut Notes<'_>, fields: &Fields<'_, '_>) -> StickyPrefix {
    const KEYS: &[&str] = &["ipv4", "ipv6"];
    let usual = StickyPrefix::default();
    let Some(value) = fields.optional("sticky_prefix") else { return usual };
    let DeValue::Table(table) = value.get_ref() else {
        fields.wrong_type(notes, "sticky_prefix", value, "a table, { ipv4 = 32, ipv6 = 64 }");
        return usual;
    };
    let lengths = Fields::new(notes, table, value.span(), format!("{}.sticky_prefix", fields.place), KEYS);
    StickyPrefix {
        ipv4: lengths.whole(notes, "ipv4", 1..=32_u8).unwrap_or(usual.ipv4),
        ipv6: lengths.whole(notes, "ipv6", 1..=128_u8).unwrap_or(usual.ipv6),
    }
}

fn testers(notes: &mut Notes<'_>, fields: &Fields<'_, '_>) -> Vec<Prefix> {
    const EXPECTED: &str = "an array of prefixes, [\"198.51.100.0/24\"]";
    let Some(value) = fields.optional("testers") else { return Vec::new() };
    let DeValue::Array(array) = value.get_ref() else {
        fields.wrong_type(notes, "testers", value, EXPECTED);
        return Vec::new();
    };
    let mut testers = Vec::new();
    let mut seen = HashMap::new();
    for value in array {
        let Some(text) = fields.text(notes, "testers", value, EXPECTED) else { continue };
        let span = value.span();
        match address::prefix(text) {
            Ok(prefix) => {
                if let Some(first) = seen.insert(prefix, span.start) {
                    let first = notes.position(first);
                    let kind = Expected::Unique { what: "tester", got: prefix.to_string(), first, scope: "" };
                    notes.note(&span, &fields.place, kind);
                }
                testers.push(prefix);
            }
            Err(expected) => {
                let kind = Expected::Address { what: "tester", got: text.to_owned(), expected };
                notes.note(&span, &fields.place, kind);
            }
        }
    }
    testers
}

fn services(notes: &mut Notes<'_>, fields: &Fields<'_, '_>, taken: &mut Taken) -> Vec<Service> {
    const EXPECTED: &str = "an array of tables, [[deployments.NAME.services]]";
    let Some(value) = fields.optional("services") else {
        notes.note(fields.span(), &fields.place, Expected::Services);
        return Vec::new();
    };
    let DeValue::Array(array) = value.get_ref() else {
        fields.wrong_type(notes, "services", value, EXPECTED);
        return Vec::new();
    };
    if array.is_empty() {
        notes.note(&value.span(), &fields.place, Expected::Services);
    }
    let mut names = HashMap::new();
    let mut services = Vec::new();
    for (index, value) in array.iter().enumerate() {
        let DeValue::Table(table) = value.get_ref() else {
            fields.wrong_type(notes, "services", value, EXPECTED);
            continue;
        };
        let Some((service, name_span)) = service::service(notes, table, value.span(), index, &fields.place, taken)
        else {
            continue;
        };
        if let Some(first) = names.insert(service.name.clone(), name_span.start) {
            let first = notes.position(first);
            let got = format!("\"{}\"", service.name);
            let kind = Expected::Unique { what: "service name", got, first, scope: " in a deployment" };
            notes.note(&name_span, &fields.place, kind);
        }
        services.push(service);
    }
    services
}

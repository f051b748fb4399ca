//! Parsing one `[[deployments.NAME.services]]`.

use std::{collections::HashMap, net::SocketAddr, ops::Range};

use bg_common::{Colour, Mode, Protocol};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    address,
    error::Expected,
    health,
    model::{BackendSpec, Encap, Prefix, Service, Tee, mode_name, protocol_name},
    name::name_problem,
    taken::Taken,
    value::{Fields, Notes},
};

const KEYS: &[&str] = &[
    "name",
    "vip",
    "protocol",
    "mode",
    "blue",
    "green",
    "preview",
    "mirror",
    "listen",
    "proxy_protocol",
    "compare",
    "gue_port",
    "outer_source",
    "health",
];
const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];
const PROTOCOL_NAMES: &[&str] = &[protocol_name(PROTOCOLS[0]), protocol_name(PROTOCOLS[1])];
const MODES: [Mode; 6] = [Mode::Nat, Mode::Local, Mode::Tee, Mode::L2dsr, Mode::Ipip, Mode::Gue];
const MODE_NAMES: &[&str] = &["nat", "local", "tee", "l2dsr", "ipip", "gue"];
const MIRRORS: &[&str] = &["idle"];
const PROXY_PROTOCOLS: &[&str] = &["v2"];
const MAX_WEIGHT: u32 = 65_535;
const ENDPOINT: &str = "ADDRESS:PORT in quotes";

/// Parses a service. Returns it with the span of its name, or `None` if too little could be parsed to
/// compare it with others.
pub(super) fn service(
    notes: &mut Notes<'_>,
    table: &DeTable<'_>,
    span: Range<usize>,
    index: usize,
    deployment: &str,
    taken: &mut Taken,
) -> Option<(Service, Range<usize>)> {
    let place = format!("{deployment}, service {}", called(table, index));
    let fields = Fields::new(notes, table, span, place, KEYS);

    let vip = fields.required(notes, "vip").and_then(|value| endpoint(notes, &fields, "VIP", "vip", value));
    let protocol = fields
        .required(notes, "protocol")
        .and_then(|value| fields.word(notes, "protocol", value, PROTOCOL_NAMES, |_| ""))
        .map(|index| PROTOCOLS[index]);
    let mode = fields
        .required(notes, "mode")
        .and_then(|value| fields.word(notes, "mode", value, MODE_NAMES, |_| ""))
        .map(|index| MODES[index]);
    let preview =
        fields.optional("preview").and_then(|value| endpoint(notes, &fields, "preview address", "preview", value));
    for (address, what, key) in [(vip, "VIP", "vip"), (preview, "preview address", "preview")] {
        if let (Some(address), Some(protocol), Some(value)) = (address, protocol, fields.optional(key)) {
            claim(notes, &fields, taken, what, address, protocol, &value.span());
        }
    }
    if let (Some(vip), Some(address), Some(value)) = (vip, preview, fields.optional("preview")) {
        same_family(notes, &fields, "preview address", address, vip, &value.span());
    }
    let own = [(vip, "VIP"), (preview, "preview address")];
    let backends = Colour::ALL.map(|colour| backends(notes, &fields, colour, own, (protocol, mode), taken));
    let is_mirrored = mirror(notes, &fields, (protocol, mode), &backends);
    let encap = encap(notes, &fields, mode);
    let tee = tee(notes, &fields, (vip, protocol, mode), &backends, taken);
    let name = name(notes, &fields);
    let is_unchecked = health::is_none(&fields);
    let health = if is_unchecked { None } else { health::health(notes, &fields) };

    if let (Some(check), Some(Protocol::Udp), Some(value)) = (&health, protocol, fields.optional("health")) {
        health::can_ask_udp(notes, &fields, check, value, None);
    }
    let (vip, protocol, mode) = (vip?, protocol?, mode?);
    let (name, name_span) =
        name.unwrap_or_else(|| (format!("{vip}/{}", protocol_name(protocol)), fields.span().clone()));
    Some((
        Service { name, vip, protocol, mode, preview, is_mirrored, tee, encap, backends, health, is_unchecked },
        name_span,
    ))
}

/// Whether the service has a mirror.
fn mirror(
    notes: &mut Notes<'_>,
    fields: &Fields<'_, '_>,
    (protocol, mode): (Option<Protocol>, Option<Mode>),
    [blue, green]: &[Vec<BackendSpec>; 2],
) -> bool {
    let Some(value) = fields.optional("mirror") else { return false };
    if fields.word(notes, "mirror", value, MIRRORS, |_| "").is_none() {
        return false;
    }
    if protocol == Some(Protocol::Tcp) {
        notes.note(&value.span(), &fields.place, Expected::Mirrorable);
    }
    if let Some(mode) = mode.filter(|mode| mode.is_direct()) {
        notes.note(&value.span(), &fields.place, Expected::Unheard(mode_name(mode)));
    }
    for both in blue.iter().filter(|blue| green.iter().any(|green| green.address == blue.address)) {
        notes.note(&value.span(), &fields.place, Expected::OfOneColour(both.address));
    }
    true
}

/// The settings that only the modes `ipip` and `gue` have.
fn encap(notes: &mut Notes<'_>, fields: &Fields<'_, '_>, mode: Option<Mode>) -> Encap {
    const KEYS: [(&str, &[&str]); 2] = [("gue_port", &["gue"]), ("outer_source", &["ipip", "gue"])];
    let mut encap = Encap::default();
    for (key, modes) in KEYS {
        let Some(value) = fields.optional(key) else { continue };
        if mode.is_some_and(|mode| !modes.contains(&mode_name(mode))) {
            notes.note(&value.span(), &fields.place, Expected::OnlyMode { key, modes });
        } else if key == "gue_port" {
            encap.gue_port = gue_port(notes, fields, value).unwrap_or(encap.gue_port);
        } else {
            encap.outer_source = outer_source(notes, fields, value);
        }
    }
    encap
}

fn gue_port(notes: &mut Notes<'_>, fields: &Fields<'_, '_>, value: &Spanned<DeValue<'_>>) -> Option<u16> {
    let Some(integer) = value.get_ref().as_integer() else {
        fields.wrong_type(notes, "gue_port", value, "a port, 6080");
        return None;
    };
    let port = u16::from_str_radix(integer.as_str(), integer.radix()).ok().filter(|port| *port != 0);
    if port.is_none() {
        let (got, most) = (integer.to_string(), u64::from(u16::MAX));
        notes.note(&value.span(), &fields.place, Expected::Number { what: "gue_port", got, least: 1, most });
    }
    port
}

/// A prefix of each family at most.
fn outer_source(notes: &mut Notes<'_>, fields: &Fields<'_, '_>, value: &Spanned<DeValue<'_>>) -> [Option<Prefix>; 2] {
    const WHAT: &str = "outer_source";
    const EXPECTED: &str = "an array of one prefix of each family at most, [\"10.9.0.0/24\", \"2001:db8:9::/64\"]";
    let mut found = [None; 2];
    let DeValue::Array(array) = value.get_ref() else {
        fields.wrong_type(notes, WHAT, value, EXPECTED);
        return found;
    };
    for value in array {
        let Some(text) = value.get_ref().as_str() else {
            fields.wrong_type(notes, WHAT, value, EXPECTED);
            continue;
        };
        match address::prefix(text).and_then(|prefix| address::source_problem(prefix).map_or(Ok(prefix), Err)) {
            Ok(prefix) => {
                let of_family = &mut found[usize::from(prefix.addr.is_ipv6())];
                if of_family.replace(prefix).is_some() {
                    let (got, expected) = (text.to_owned(), "one prefix of each family at most".into());
                    notes.note(&value.span(), &fields.place, Expected::Text { what: WHAT, got, expected });
                }
            }
            Err(expected) => {
                let got = text.to_owned();
                notes.note(&value.span(), &fields.place, Expected::Address { what: WHAT, got, expected });
            }
        }
    }
    found
}

/// The settings that only mode `tee` has.
fn tee(
    notes: &mut Notes<'_>,
    fields: &Fields<'_, '_>,
    (vip, protocol, mode): (Option<SocketAddr>, Option<Protocol>, Option<Mode>),
    [blue, green]: &[Vec<BackendSpec>; 2],
    taken: &mut Taken,
) -> Tee {
    let version = fields.optional("proxy_protocol");
    let version = version.and_then(|value| fields.word(notes, "proxy_protocol", value, PROXY_PROTOCOLS, |_| ""));
    let tee = Tee {
        listen: listen(notes, fields, vip, taken),
        proxy_protocol: version.is_some(),
        compare: fields.flag(notes, "compare"),
    };
    if mode.is_none_or(|mode| mode == Mode::Tee) {
        let span = fields.optional("mode").map_or_else(|| fields.span().clone(), Spanned::span);
        let is_teed = mode == Some(Mode::Tee);
        if is_teed && protocol == Some(Protocol::Udp) {
            notes.note(&span, &fields.place, Expected::Teed);
        }
        for both in blue.iter().filter(|blue| is_teed && green.iter().any(|green| green.address == blue.address)) {
            notes.note(&span, &fields.place, Expected::FedTwice(both.address));
        }
    } else {
        for key in ["listen", "proxy_protocol", "compare"] {
            if let Some(value) = fields.optional(key) {
                notes.note(&value.span(), &fields.place, Expected::OnlyTee(key));
            }
        }
    }
    tee
}

/// The listeners of both colours.
fn listen(
    notes: &mut Notes<'_>,
    fields: &Fields<'_, '_>,
    vip: Option<SocketAddr>,
    taken: &mut Taken,
) -> Option<[SocketAddr; 2]> {
    const WHAT: &str = "listener address";
    const COLOURS: &[&str] = &[Colour::Blue.name(), Colour::Green.name()];
    let value = fields.optional("listen")?;
    let DeValue::Table(table) = value.get_ref() else {
        fields.wrong_type(notes, "listen", value, "a table, { blue = \"10.0.0.5:17000\", green = \"10.0.0.5:17001\" }");
        return None;
    };
    let of_colours = Fields::new(notes, table, value.span(), fields.place.clone(), COLOURS);
    let addresses = Colour::ALL.map(|colour| {
        let value = of_colours.required(notes, colour.name())?;
        let address = endpoint(notes, &of_colours, WHAT, colour.name(), value)?;
        claim(notes, &of_colours, taken, WHAT, address, Protocol::Tcp, &value.span());
        if let Some(vip) = vip {
            same_family(notes, &of_colours, WHAT, address, vip, &value.span());
        }
        Some(address)
    });
    Some([addresses[0]?, addresses[1]?])
}

/// The name of a service in messages, before it is parsed.
fn called(table: &DeTable<'_>, index: usize) -> String {
    let text = |key| table.get(key).and_then(|value: &Spanned<DeValue<'_>>| value.get_ref().as_str());
    match text("name").or(text("vip")) {
        Some(text) => format!("\"{text}\""),
        None => (index + 1).to_string(),
    }
}

fn name(notes: &mut Notes<'_>, fields: &Fields<'_, '_>) -> Option<(String, Range<usize>)> {
    let value = fields.optional("name")?;
    let name = fields.text(notes, "name", value, "a name in quotes")?;
    if let Some(why) = name_problem(name) {
        notes.note(&value.span(), &fields.place, Expected::Name { got: name.to_owned(), why });
    }
    Some((name.to_owned(), value.span()))
}

fn endpoint(
    notes: &mut Notes<'_>,
    fields: &Fields<'_, '_>,
    what: &'static str,
    key: &str,
    value: &Spanned<DeValue<'_>>,
) -> Option<SocketAddr> {
    let Some(text) = value.get_ref().as_str() else {
        fields.wrong_type(notes, key, value, ENDPOINT);
        return None;
    };
    match address::endpoint(text) {
        Ok(address) => Some(address),
        Err(expected) => {
            notes.note(&value.span(), &fields.place, Expected::Address { what, got: text.to_owned(), expected });
            None
        }
    }
}

/// Adds an address that packets are matched against, which must be unique.
fn claim(
    notes: &mut Notes<'_>,
    fields: &Fields<'_, '_>,
    taken: &mut Taken,
    what: &'static str,
    address: SocketAddr,
    protocol: Protocol,
    span: &Range<usize>,
) {
    if let Some(first) = taken.claim(address, protocol, what, span.start) {
        let first = notes.position(first);
        let got = format!("{address}/{}", protocol_name(protocol));
        let scope = " among all VIPs and preview addresses of the file";
        notes.note(span, &fields.place, Expected::Unique { what, got, first, scope });
    }
}

fn same_family(
    notes: &mut Notes<'_>,
    fields: &Fields<'_, '_>,
    what: &'static str,
    got: SocketAddr,
    vip: SocketAddr,
    span: &Range<usize>,
) {
    if got.is_ipv4() != vip.is_ipv4() {
        let family = if vip.is_ipv4() { "IPv4" } else { "IPv6" };
        notes.note(span, &fields.place, Expected::Family { what, got, vip, family });
    }
}

fn backends(
    notes: &mut Notes<'_>,
    fields: &Fields<'_, '_>,
    colour: Colour,
    own: [(Option<SocketAddr>, &'static str); 2],
    (protocol, mode): (Option<Protocol>, Option<Mode>),
    taken: &mut Taken,
) -> Vec<BackendSpec> {
    let key = colour.name();
    let Some(value) = fields.required(notes, key) else { return Vec::new() };
    let DeValue::Array(array) = value.get_ref() else {
        fields.wrong_type(notes, key, value, "an array of backends, [\"10.0.1.11:8443\"]");
        return Vec::new();
    };
    let mut seen = HashMap::new();
    let mut backends = Vec::new();
    let mut all_understood = true;
    for value in array {
        let Some(backend) = backend(notes, fields, key, value) else {
            all_understood = false;
            continue;
        };
        let (address, span) = (backend.address, value.span());
        for (own, what) in own.into_iter().filter_map(|(own, what)| own.map(|own| (own, what))) {
            if what == "VIP" && !mode.is_some_and(Mode::is_tunnel) {
                same_family(notes, fields, "backend", address, own, &span);
            }
            if let Some(mode) = mode.filter(|mode| what == "VIP" && mode.is_direct() && address.port() != own.port()) {
                let kind = Expected::SamePort { got: address, mode: mode_name(mode), port: own.port() };
                notes.note(&span, &fields.place, kind);
            }
            if address == own {
                notes.note(&span, &fields.place, Expected::NotItself(address, what));
            }
        }
        if let Some(protocol) = protocol.filter(|_| own.iter().all(|(own, _)| *own != Some(address))) {
            taken.used(address, protocol, span.start, &fields.place);
        }
        if let Some(first) = seen.insert(address, span.start) {
            let first = notes.position(first);
            let kind = Expected::Unique { what: "backend", got: address.to_string(), first, scope: " in a colour" };
            notes.note(&span, &fields.place, kind);
        }
        backends.push(backend);
    }
    // A backend that could not be parsed has its own problem, and might have had a weight.
    if all_understood && backends.iter().all(|backend| backend.weight == 0) {
        let expected = if backends.is_empty() { Expected::Backends(key) } else { Expected::Weights(key) };
        notes.note(&value.span(), &fields.place, expected);
    }
    backends
}

fn backend(
    notes: &mut Notes<'_>,
    fields: &Fields<'_, '_>,
    colour: &str,
    value: &Spanned<DeValue<'_>>,
) -> Option<BackendSpec> {
    match value.get_ref() {
        DeValue::String(_) => {
            let address = endpoint(notes, fields, "backend", colour, value)?;
            Some(BackendSpec { address, weight: 1 })
        }
        DeValue::Table(table) => {
            let fields = Fields::new(notes, table, value.span(), fields.place.clone(), &["address", "weight"]);
            let address = fields.required(notes, "address")?;
            let address = endpoint(notes, &fields, "backend", "address", address);
            let weight = fields.optional("weight").map_or(Some(1), |value| weight(notes, &fields, value));
            Some(BackendSpec { address: address?, weight: weight? })
        }
        _ => {
            let expected = "\"ADDRESS:PORT\" or { address = \"ADDRESS:PORT\", weight = 2 }";
            fields.wrong_type(notes, colour, value, expected);
            None
        }
    }
}

fn weight(notes: &mut Notes<'_>, fields: &Fields<'_, '_>, value: &Spanned<DeValue<'_>>) -> Option<u32> {
    let Some(integer) = value.get_ref().as_integer() else {
        fields.wrong_type(notes, "weight", value, "an integer");
        return None;
    };
    let weight = u32::from_str_radix(integer.as_str(), integer.radix()).ok().filter(|weight| *weight <= MAX_WEIGHT);
    if weight.is_none() {
        notes.note(&value.span(), &fields.place, Expected::Weight { got: integer.to_string(), max: MAX_WEIGHT });
    }
    weight
}

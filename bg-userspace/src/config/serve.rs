//! Parsing `[serve]` and `[[notify]]`.

use std::{collections::HashMap, net::SocketAddr, path::PathBuf};

use toml::de::DeValue;

use super::{
    error::Expected,
    model::{Notify, NotifyEvent, Serve, Tls},
    value::{Fields, Notes},
};

const PATH: &str = "the path of a file in quotes";

/// `[serve]`, if it is there.
pub(super) fn serve(notes: &mut Notes<'_>, file: &Fields<'_, '_>) -> Option<Serve> {
    const KEYS: &[&str] = &["socket", "socket_group", "listen", "tls", "tokens"];
    let fields = file.table(notes, "serve", "a table, [serve]", KEYS)?;
    let serve = Serve {
        socket: path(notes, &fields, "socket").unwrap_or_else(|| Serve::default().socket),
        socket_group: fields.line(notes, "socket_group", "the name of a group in quotes"),
        listen: listen(notes, &fields),
        tls: tls(notes, &fields),
        tokens: path(notes, &fields, "tokens"),
    };
    if let (Some(listen), Some(value)) = (serve.listen, fields.optional("listen"))
        && !listen.ip().to_canonical().is_loopback()
        && fields.optional("tls").is_none()
    {
        notes.note(&value.span(), &fields.place, Expected::Tls(listen));
    }
    Some(serve)
}

fn path(notes: &mut Notes<'_>, fields: &Fields<'_, '_>, key: &'static str) -> Option<PathBuf> {
    fields.line(notes, key, PATH).map(PathBuf::from)
}

fn listen(notes: &mut Notes<'_>, fields: &Fields<'_, '_>) -> Option<SocketAddr> {
    const EXPECTED: &str =
        "ADDRESS:PORT, \"127.0.0.1:7470\" or \"[::1]:7470\", with a port from 1 to 65535 (names are not looked up)";
    let text = fields.line(notes, "listen", EXPECTED)?;
    let address = text.parse::<SocketAddr>().ok().filter(|address| address.port() != 0);
    if let (None, Some(value)) = (address, fields.optional("listen")) {
        let kind = Expected::Address { what: "listen", got: text, expected: EXPECTED.into() };
        notes.note(&value.span(), &fields.place, kind);
    }
    address
}

fn tls(notes: &mut Notes<'_>, fields: &Fields<'_, '_>) -> Option<Tls> {
    const KEYS: &[&str] = &["certificate", "key", "client_ca"];
    const EXPECTED: &str = "a table, { certificate = \"cert.pem\", key = \"key.pem\" }";
    let fields = fields.table(notes, "tls", EXPECTED, KEYS)?;
    for key in ["certificate", "key"] {
        fields.required(notes, key);
    }
    let [certificate, key, client_ca] = ["certificate", "key", "client_ca"].map(|key| path(notes, &fields, key));
    Some(Tls { certificate: certificate?, key: key?, client_ca })
}

/// Each `[[notify]]` that is valid.
pub(super) fn notify(notes: &mut Notes<'_>, file: &Fields<'_, '_>) -> Vec<Notify> {
    const KEYS: &[&str] = &["url", "events"];
    let tables = file.tables(notes, "notify", "notify", "an array of tables, [[notify]]", KEYS);
    let notify = |fields: Fields<'_, '_>| {
        let events = events(notes, &fields);
        Some(Notify { url: fields.url(notes)?, events })
    };
    tables.into_iter().filter_map(notify).collect()
}

/// The events of a webhook, by default all.
fn events(notes: &mut Notes<'_>, fields: &Fields<'_, '_>) -> Vec<NotifyEvent> {
    const EXPECTED: &str = "an array of events, [\"switch\", \"revert\"]";
    const NAMES: &[&str] = &{
        let mut names = [""; NotifyEvent::ALL.len()];
        let mut index = 0;
        while index < names.len() {
            names[index] = NotifyEvent::ALL[index].name();
            index += 1;
        }
        names
    };
    let Some(value) = fields.optional("events") else { return NotifyEvent::ALL.to_vec() };
    let DeValue::Array(array) = value.get_ref() else {
        fields.wrong_type(notes, "events", value, EXPECTED);
        return Vec::new();
    };
    if array.is_empty() {
        let kind = Expected::Text { what: "events", got: "[]".to_owned(), expected: "at least one event".into() };
        notes.note(&value.span(), &fields.place, kind);
    }
    let mut seen = HashMap::new();
    let mut events = Vec::new();
    for value in array {
        let Some(index) = fields.word(notes, "event", value, NAMES, |_| "") else { continue };
        let event = NotifyEvent::ALL[index];
        if let Some(first) = seen.insert(event, value.span().start) {
            let kind = Expected::Unique {
                what: "event",
                got: event.name().to_owned(),
                first: notes.position(first),
                scope: "",
            };
            notes.note(&value.span(), &fields.place, kind);
        }
        events.push(event);
    }
    events
}

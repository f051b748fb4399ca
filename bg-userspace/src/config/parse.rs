//! Parsing a text into a [`Config`], and the checks that concern all deployments.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::SocketAddr,
};

use bg_common::{MAX_BACKENDS, MAX_DEPLOYMENTS, MAX_SERVICES, MAX_TESTERS, Protocol};
use toml::de::{DeTable, DeValue};

use super::{
    deployment,
    error::{Expected, Problem},
    model::{Config, Deployment},
    value::{Fields, Notes, wrong_type},
};

/// Bytes that the maps have for a name.
pub(super) const MAX_NAME: usize = 64;

/// The addresses of the whole file: VIPs and preview addresses, which must be unique, and backends, which must not be among
/// them.
#[derive(Default)]
pub(super) struct Taken {
    /// The kind of an address and the offset of its first occurrence, by address and protocol.
    claimed: HashMap<(SocketAddr, Protocol), (&'static str, usize)>,
    backends: Vec<Used>,
    places: Vec<String>,
}

/// A backend of a service.
struct Used {
    address: SocketAddr,
    protocol: Protocol,
    offset: usize,
    place: usize,
}

impl Taken {
    /// Adds a VIP or preview address. Returns the offset of an earlier occurrence.
    pub(super) fn claim(
        &mut self,
        address: SocketAddr,
        protocol: Protocol,
        what: &'static str,
        offset: usize,
    ) -> Option<usize> {
        match self.claimed.entry((address, protocol)) {
            Entry::Occupied(first) => Some(first.get().1),
            Entry::Vacant(free) => {
                free.insert((what, offset));
                None
            }
        }
    }

    /// Adds a backend.
    pub(super) fn used(&mut self, address: SocketAddr, protocol: Protocol, offset: usize, place: &str) {
        if self.places.last().is_none_or(|last| last != place) {
            self.places.push(place.to_owned());
        }
        self.backends.push(Used { address, protocol, offset, place: self.places.len() - 1 });
    }

    /// Notes each backend that is an address of another service, after all addresses are known.
    fn check(&self, notes: &mut Notes<'_>) {
        for backend in &self.backends {
            if let Some((what, offset)) = self.claimed.get(&(backend.address, backend.protocol)) {
                let kind = Expected::Server { got: backend.address, what, at: notes.position(*offset) };
                notes.note(&(backend.offset..backend.offset), &self.places[backend.place], kind);
            }
        }
    }
}

/// Parses a text, or returns all its problems.
pub(super) fn parse(text: &str) -> Result<Config, Vec<Problem>> {
    let mut notes = Notes::new(text);
    let (document, syntax) = DeTable::parse_recoverable(text);
    // If the text is not TOML, anything read from it would be a guess.
    let config = if syntax.is_empty() {
        file(&mut notes, document.get_ref())
    } else {
        for error in syntax {
            notes.note(&error.span().unwrap_or(0..0), "", Expected::Toml(error.message().replace('\n', ", ")));
        }
        Config::default()
    };
    match notes.into_problems() {
        problems if problems.is_empty() => Ok(config),
        problems => Err(problems),
    }
}

fn file(notes: &mut Notes<'_>, document: &DeTable<'_>) -> Config {
    let fields = Fields::new(notes, document, 0..0, String::new(), &["deployments"]);
    let Some(value) = fields.optional("deployments") else {
        notes.note(&(0..0), "", Expected::Deployments);
        return Config::default();
    };
    let DeValue::Table(table) = value.get_ref() else {
        fields.wrong_type(notes, "deployments", value, "a table, [deployments.NAME]");
        return Config::default();
    };
    let mut taken = Taken::default();
    let mut totals = Totals::default();
    let mut deployments = Vec::new();
    for (key, value) in table {
        let name = key.get_ref().as_ref();
        let place = format!("deployment \"{name}\"");
        if let Some(why) = name_problem(name) {
            notes.note(&key.span(), "", Expected::Name { got: name.to_owned(), why });
        }
        let DeValue::Table(table) = value.get_ref() else {
            wrong_type(notes, &place, name, value, "a table, [deployments.NAME]");
            continue;
        };
        let deployment = deployment::deployment(notes, name, table, key.span(), place, &mut taken);
        totals.add(notes, &key.span(), &deployment);
        deployments.push(deployment);
    }
    taken.check(notes);
    Config { deployments }
}

/// What is wrong with a name, if anything.
pub(super) fn name_problem(name: &str) -> Option<String> {
    if name.is_empty() {
        Some("it is empty".to_owned())
    } else if name.len() > MAX_NAME {
        Some(format!("it has {} bytes", name.len()))
    } else if name.contains(char::is_control) {
        Some("it has control characters".to_owned())
    } else {
        None
    }
}

/// The number of items of each kind so far.
#[derive(Default)]
struct Totals([u64; 4]);

impl Totals {
    /// Notes each limit at the deployment that exceeds it.
    fn add(&mut self, notes: &mut Notes<'_>, span: &std::ops::Range<usize>, deployment: &Deployment) {
        let colours = || deployment.services.iter().flat_map(|service| &service.backends);
        let added = [
            (1, MAX_DEPLOYMENTS, "deployments"),
            (deployment.services.len() as u64, MAX_SERVICES, "services"),
            (colours().map(|backends| backends.len() as u64).sum(), MAX_BACKENDS, "backends"),
            (deployment.testers.len() as u64, MAX_TESTERS, "testers"),
        ];
        for (total, (more, max, what)) in self.0.iter_mut().zip(added) {
            let (before, max) = (*total, u64::from(max));
            *total += more;
            if before <= max && *total > max {
                notes.note(span, "", Expected::Limit { what, got: *total, max });
            }
        }
    }
}

//! Parsing a text into a [`Config`], and the checks that concern all deployments.

use bg_common::{MAX_BACKENDS, MAX_DEPLOYMENTS, MAX_SERVICES, MAX_TESTERS};
use toml::de::{DeTable, DeValue};

use super::{
    deployment,
    error::{Expected, Problem},
    gate,
    model::{Config, Deployment, Gate},
    name::name_problem,
    serve,
    taken::Taken,
    value::{Fields, Notes, wrong_type},
};

/// Parses a text, or returns all its problems.
pub(super) fn parse(text: &str) -> Result<Config, Vec<Problem>> {
    read(text, file)
}

/// The gates of each deployment, in a text that has nothing else.
pub(super) fn kept_gates(text: &str) -> Result<Vec<(String, Vec<Gate>)>, Vec<Problem>> {
    read(text, |notes, document| {
        let fields = Fields::new(notes, document, 0..0, String::new(), &["deployments"]);
        let Some(value) = fields.optional("deployments") else { return Vec::new() };
        let DeValue::Table(table) = value.get_ref() else { return Vec::new() };
        let mut kept = Vec::new();
        for (key, value) in table {
            let DeValue::Table(table) = value.get_ref() else { continue };
            let name = key.get_ref().to_string();
            let fields = Fields::new(notes, table, key.span(), format!("deployment \"{name}\""), &["gates"]);
            kept.push((name, gate::gates(notes, &fields)));
        }
        kept
    })
}

/// Reads a text as TOML.
fn read<T: Default>(text: &str, read: impl FnOnce(&mut Notes<'_>, &DeTable<'_>) -> T) -> Result<T, Vec<Problem>> {
    let mut notes = Notes::new(text);
    let (document, syntax) = DeTable::parse_recoverable(text);
    // If the text is not TOML, anything read from it would be a guess.
    let content = if syntax.is_empty() {
        read(&mut notes, document.get_ref())
    } else {
        for error in syntax {
            notes.note(&error.span().unwrap_or(0..0), "", Expected::Toml(error.message().replace('\n', ", ")));
        }
        T::default()
    };
    match notes.into_problems() {
        problems if problems.is_empty() => Ok(content),
        problems => Err(problems),
    }
}

fn file(notes: &mut Notes<'_>, document: &DeTable<'_>) -> Config {
    let fields = Fields::new(notes, document, 0..0, String::new(), &["deployments", "serve", "notify"]);
    let (serve, notify) = (serve::serve(notes, &fields), serve::notify(notes, &fields));
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
    Config { deployments, serve, notify }
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

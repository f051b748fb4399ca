//! `bgctl man`: write the manual pages, one for each command and one for the configuration.

use std::path::Path;

use anyhow::Context as _;
use clap::{Arg, Command};
use roff::{Roff, bold, italic, roman};

use crate::{
    exit::Outcome,
    help::{self, PAGES, Page},
};

/// The page of the configuration, which is written by hand.
const CONFIGURATION: &str = include_str!("../../../../man/bgctl.toml.5");

/// The date of the last revision of the pages. It is fixed, so that builds are reproducible.
const DATE: &str = "2026-11-25";

const ENVIRONMENT: &[(&str, &str)] = &[
    ("BGCTL_PIN_ROOT", "the directory of the instance's pins; --pin-root overrides it"),
    ("BGCTL_STATE_DIR", "the state directory; --state-dir overrides it"),
    ("NO_COLOR", "if set and not empty, results are not coloured; --color overrides it"),
    (
        "CLICOLOR, CLICOLOR_FORCE",
        "0 in the first disables colours, 1 in the second enables them even if stdout is not a terminal; --color overrides both",
    ),
];

const FILES: &[(&str, &str)] = &[
    ("/etc/bgctl/bgctl.toml", "the configuration, see bgctl.toml(5)"),
    ("/etc/bgctl/interfaces", "the interfaces that bgctl.service attaches to at boot, see bgctl-attach(1)"),
    ("/sys/fs/bpf/bgctl", "the instance: pinned programs, maps and links"),
    ("/var/lib/bgctl/history.jsonl", "the history, one JSON object per line"),
    ("/var/lib/bgctl/live.json", "the last live colours, for the first apply after a reboot"),
    ("/var/lib/bgctl/gates.toml", "the gates of the last apply, for the next switch"),
    (
        "/var/lib/bgctl/listeners.json",
        "listeners that applies have chosen for mode tee, for the first apply after a reboot",
    ),
];

pub(super) fn run(dir: &Path) -> anyhow::Result<Outcome> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let mut grammar = help::grammar().disable_help_subcommand(true);
    grammar.build();
    for page in PAGES {
        let command = if page.command.is_empty() { Some(&grammar) } else { grammar.find_subcommand(page.command) };
        let command = command.with_context(|| format!("no command {}", page.command))?;
        write(dir, &format!("{}.1", name_of(command)), &render(command, page))?;
    }
    write(dir, "bgctl.toml.5", CONFIGURATION)?;
    Ok(Outcome::Done)
}

fn write(dir: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    let path = dir.join(name);
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn name_of(command: &Command) -> &str {
    command.get_display_name().unwrap_or_else(|| command.get_name())
}

fn render(command: &Command, page: &Page) -> String {
    let name = name_of(command);
    let mut roff = Roff::new();
    let version = concat!("bgctl ", env!("CARGO_PKG_VERSION"));
    roff.control("TH", [&name.to_uppercase(), "1", DATE, version, "bgctl"]);
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    roff.control("SH", ["NAME"]).text([roman(format!("{name} - {}", about.trim_end_matches('.')))]);
    roff.control("SH", ["SYNOPSIS"]);
    let called = command.get_bin_name().unwrap_or(name);
    let usage = command.clone().render_usage().to_string();
    let rest = usage.split_once(called).map_or("", |(_, rest)| rest);
    roff.text([bold(called), roman(rest.split_whitespace().fold(String::new(), |line, word| line + " " + word))]);
    roff.control("SH", ["DESCRIPTION"]).text([roman(format!("{}.", about.trim_end_matches('.')))]);
    for paragraph in page.description {
        roff.control("PP", []).text([roman(*paragraph)]);
    }
    let (own, global): (Vec<_>, Vec<_>) =
        command.get_arguments().filter(|arg| !arg.is_hide_set()).partition(|arg| arg.get_help_heading().is_none());
    let (positional, own): (Vec<_>, Vec<_>) = own.into_iter().partition(|arg| arg.is_positional());
    for (title, arguments) in [("ARGUMENTS", positional), ("OPTIONS", own), ("GLOBAL OPTIONS", global)] {
        if !arguments.is_empty() {
            roff.control("SH", [title]);
            arguments.into_iter().for_each(|argument| describe(&mut roff, argument));
        }
    }
    let commands = command.get_subcommands().map(|command| {
        (format!("{}(1)", name_of(command)), command.get_about().map(ToString::to_string).unwrap_or_default())
    });
    if command.has_subcommands() {
        section(&mut roff, "COMMANDS", commands);
    }
    let owned = |(term, meaning): &(&str, &str)| ((*term).to_owned(), (*meaning).to_owned());
    let codes = page.exit.iter().map(|(code, meaning)| (code.to_string(), (*meaning).to_owned()));
    section(&mut roff, "EXIT STATUS", codes);
    section(&mut roff, "ENVIRONMENT", ENVIRONMENT.iter().map(owned));
    section(&mut roff, "FILES", FILES.iter().map(owned));
    section(&mut roff, "EXAMPLES", page.examples.iter().map(owned));
    roff.control("SH", ["SEE ALSO"]);
    let others = PAGES.iter().filter(|other| other.command.is_empty() != page.command.is_empty());
    let names = others
        .map(|other| if other.command.is_empty() { "bgctl".to_owned() } else { format!("bgctl-{}", other.command) });
    let mut line: Vec<_> = names.flat_map(|name| [bold(name), roman("(1), ")]).collect();
    line.extend([bold("bgctl.toml"), roman("(5)")]);
    roff.text(line);
    roff.to_roff()
}

/// The description of an argument or option, and its values.
fn describe(roff: &mut Roff, argument: &Arg) {
    let value = argument.get_value_names().map(|names| names.join(" ")).unwrap_or_default();
    let mut names: Vec<_> = argument.get_short().map(|short| format!("-{short}")).into_iter().collect();
    names.extend(argument.get_long().map(|long| format!("--{long}")));
    let mut head = Vec::new();
    if argument.is_positional() {
        head.push(italic(value));
    } else {
        head.push(bold(names.join(", ")));
        if argument.get_action().takes_values() {
            head.extend([roman(" "), italic(value)]);
        }
    }
    let help = match argument.get_id().as_str() {
        // The text of clap is about itself.
        "help" => "Print help".to_owned(),
        _ => argument.get_help().map(ToString::to_string).unwrap_or_default(),
    };
    roff.control("TP", []).text(head).text([roman(format!("{}.", help.trim_end_matches('.')))]);
    if argument.get_action().takes_values() {
        let default = argument.get_default_values().iter().map(|value| value.to_string_lossy());
        for default in default {
            roff.text([roman(format!("Default: {default}."))]);
        }
        let values = argument.get_possible_values();
        let (explained, plain): (Vec<_>, Vec<_>) = values.iter().partition(|value| value.get_help().is_some());
        if !plain.is_empty() {
            let names: Vec<_> = plain.iter().map(|value| value.get_name()).collect();
            roff.text([roman(format!("One of {}.", names.join(", ")))]);
        }
        if !explained.is_empty() {
            roff.control("RS", []);
            for value in explained {
                let help = value.get_help().map(ToString::to_string).unwrap_or_default();
                roff.control("TP", []).text([bold(value.get_name())]).text([roman(format!("{help}."))]);
            }
            roff.control("RE", []);
        }
    }
}

fn section(roff: &mut Roff, title: &str, items: impl Iterator<Item = (String, String)>) {
    roff.control("SH", [title]);
    for (term, meaning) in items {
        roff.control("TP", []).text([bold(term)]).text([roman(meaning)]);
    }
}

//! What the program tells of itself: help, manual pages and completions. None of it needs privileges or an instance.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Command, Output},
};

const COMMANDS: &[&str] = &[
    "doctor",
    "attach",
    "decap",
    "detach",
    "check",
    "plan",
    "apply",
    "show",
    "status",
    "switch",
    "rollback",
    "confirm",
    "split",
    "freeze",
    "thaw",
    "drain",
    "drill",
    "flows",
    "explain",
    "history",
    #[cfg(feature = "serve")]
    "serve",
    #[cfg(feature = "serve")]
    "top",
    "completions",
    "man",
    "help",
];

fn bgctl(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bgctl")).args(words).env("COLUMNS", "100").output().unwrap()
}

#[track_caller]
fn stdout(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn help_has_an_example_the_exit_codes_and_own_options_first() {
    for command in &COMMANDS[..COMMANDS.len() - 1] {
        for help in ["-h", "--help"] {
            let text = stdout(bgctl(&[command, help]));
            let place = |part: &str| text.find(part).unwrap_or_else(|| panic!("{part:?} is not in {text}"));
            assert!(place("\nOptions:") < place("\nGlobal options:"), "{command}");
            assert!(place("\nGlobal options:") < place("\nExamples:\n  "), "{command}");
            assert!(place("\nExamples:") < place("\nExit codes:\n  0  "), "{command}");
            assert!(place("--help") < place("\nGlobal options:"), "{command}");
        }
    }
}

#[test]
fn without_a_command_help_is_told_as_a_usage_error() {
    let output = bgctl(&[]);
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8(output.stderr).unwrap();
    let commands = COMMANDS.iter().filter(|command| text.contains(&format!("\n  {command} ")));
    assert_eq!(commands.count(), COMMANDS.len(), "{text}");
    assert!(text.contains("\nExamples:\n") && text.contains("\nExit codes:\n"), "{text}");
}

#[test]
fn every_command_and_the_configuration_have_a_page_that_mandoc_accepts() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path().join("made/when/needed");
    stdout(bgctl(&["man", dir.to_str().unwrap()]));
    let mut expected: BTreeSet<_> =
        COMMANDS.iter().filter(|name| **name != "help").map(|name| format!("bgctl-{name}.1")).collect();
    expected.extend(["bgctl.1".to_owned(), "bgctl.toml.5".to_owned()]);
    let pages: BTreeSet<_> =
        fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(pages, expected);

    let lint = Command::new("mandoc").args(["-T", "lint", "-W", "warning"]).args(&pages).current_dir(&dir).output();
    let lint = lint.expect("mandoc, which `cargo xtask setup` installs");
    assert_eq!(String::from_utf8_lossy(&lint.stdout), "");
    assert!(lint.status.success(), "{}", String::from_utf8_lossy(&lint.stderr));

    for page in pages.iter().filter(|page| page.ends_with(".1")) {
        let text = read(&dir, page);
        let sections =
            ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "ENVIRONMENT", "FILES", "EXAMPLES"];
        let places: Vec<_> = sections.iter().map(|title| heading(&text, title, page)).collect();
        assert!(places.is_sorted(), "{page}: {places:?}");
        assert!(text.contains("BGCTL_PIN_ROOT") && text.contains("/etc/bgctl/bgctl.toml"), "{page}");
    }
    assert!(read(&dir, "bgctl-switch.1").contains("--if-generation N"));
    assert!(read(&dir, "bgctl-plan.1").contains("something would change"));
}

/// A page as a reader sees it.
fn read(dir: &Path, page: &str) -> String {
    let shown = Command::new("mandoc").args(["-T", "ascii", "-O", "width=100"]).arg(dir.join(page)).output().unwrap();
    // Bold is a letter over itself, italic one over a line.
    let mut text = String::new();
    for letter in stdout(shown).chars() {
        if letter == '\u{8}' { _ = text.pop() } else { text.push(letter) }
    }
    text
}

fn heading(text: &str, title: &str, page: &str) -> usize {
    text.find(&format!("\n{title}\n")).unwrap_or_else(|| panic!("no {title} in {page}:\n{text}"))
}

/// The page of the configuration is written by hand: it knows every key that the program knows.
#[test]
fn the_page_of_the_configuration_names_every_key() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("bad.toml");
    let unknown = "x = 1\n[deployments.d]\nx = 1\n[[deployments.d.services]]\nx = 1\nblue = [{ x = 1 }]\n\
                   [deployments.d.health]\nx = 1\n[deployments.d.failover]\nx = 1\n[[deployments.d.gates]]\nx = 1\n\
                   [serve]\nx = 1\ntls = { x = 1 }\n[[notify]]\nx = 1\n";
    fs::write(&file, unknown).unwrap();
    let output = bgctl(&["check", "-c", file.to_str().unwrap()]);
    let problems = String::from_utf8(output.stderr).unwrap();
    let page = include_str!("../man/bgctl.toml.5");
    let mut keys = 0;
    for list in problems.lines().filter_map(|line| line.split_once("unknown key \"x\", expected one of ")) {
        for key in list.1.split(", ") {
            keys += 1;
            let key = key.trim_matches('"');
            let names_it = |line: &str| {
                let words = line.strip_prefix(".Ic ").or(line.strip_prefix(".It Ic "));
                words.is_some_and(|words| words.split([' ', '.']).any(|word| word.trim_matches(['[', ']']) == key))
            };
            assert!(page.lines().any(names_it), "{key}");
        }
    }
    assert!(keys >= 60, "{problems}");
}

#[test]
fn other_shells_get_their_scripts() {
    for (shell, part) in [
        ("zsh", "compdef"),
        ("fish", "complete --"),
        ("elvish", "edit:completion"),
        ("powershell", "Register-ArgumentCompleter"),
    ] {
        let script = stdout(bgctl(&["completions", shell]));
        assert!(script.contains("COMPLETE") && script.contains(part), "{shell}: {script}");
    }
}

#[test]
fn a_variable_of_somebody_else_does_not_turn_a_command_into_a_question() {
    let directory = tempfile::tempdir().unwrap();
    for words in [&["history"][..], &["check", "-c", "missing.toml"], &["--version"]] {
        let run = |complete: &str| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_bgctl"));
            command.args(words).env("BGCTL_STATE_DIR", directory.path()).env("COMPLETE", complete);
            let output = command.output().unwrap();
            (output.status.code(), output.stdout, output.stderr)
        };
        assert_eq!(run("bash"), run(""), "{words:?}");
        assert_eq!(run("1"), run(""), "{words:?}");
    }
}

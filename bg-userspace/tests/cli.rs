//! The command line as a script meets it: what goes to stdout, what to stderr, and the exit code. None of
//! these needs privileges or touches an instance.

use std::{
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Output, Stdio},
};

use tempfile::TempDir;

const GOOD: &str = r#"[[deployments.shop.services]]
name = "web"
vip = "203.0.113.10:443"
protocol = "tcp"
mode = "nat"
blue = ["10.0.1.11:8443"]
green = ["10.0.2.11:8443", "10.0.2.12:8443"]
"#;

/// A directory for an instance that does not exist.
struct Nowhere(TempDir);

impl Nowhere {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// A file in it.
    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.path().join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bgctl"));
        command
            .args(words)
            .env("BGCTL_PIN_ROOT", self.path().join("pins"))
            .env("BGCTL_STATE_DIR", self.path().join("state"));
        command
    }

    fn bgctl(&self, words: &[&str]) -> Ended {
        Ended(self.command(words).output().unwrap())
    }

    /// With this on stdin.
    fn bgctl_reading(&self, words: &[&str], input: &str) -> Ended {
        let mut command = self.command(words);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        Ended(child.wait_with_output().unwrap())
    }
}

struct Ended(Output);

impl Ended {
    fn stdout(&self) -> String {
        String::from_utf8(self.0.stdout.clone()).unwrap()
    }

    fn stderr(&self) -> String {
        String::from_utf8(self.0.stderr.clone()).unwrap()
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.0.stdout).unwrap()
    }

    /// Asserts the exit code, and that results and messages are where they belong.
    #[track_caller]
    fn code(self, expected: i32) -> Self {
        assert_eq!(self.0.status.code(), Some(expected), "stdout {:?}, stderr {:?}", self.stdout(), self.stderr());
        self
    }

    /// Asserts that it failed with one message on stderr which has all these parts, and no result.
    #[track_caller]
    fn says(self, code: i32, parts: &[&str]) {
        let ended = self.code(code);
        assert_eq!(ended.stdout(), "");
        for part in parts {
            assert!(ended.stderr().contains(part), "{part:?} is not in {:?}", ended.stderr());
        }
    }
}

#[test]
fn a_valid_configuration_is_counted() {
    let nowhere = Nowhere::new();
    let file = nowhere.file("bgctl.toml", GOOD);
    let ended = nowhere.bgctl(&["check", "-c", &file]).code(0);
    assert_eq!(ended.stdout(), format!("{file} is valid: 1 deployment, 1 service, 3 backends\n"));
    assert_eq!(ended.stderr(), "");
    let ended = nowhere.bgctl(&["check", "-c", &file, "--json"]).code(0);
    assert_eq!(ended.json()["backends"], 3);
}

#[test]
fn a_configuration_may_come_through_a_pipe() {
    let nowhere = Nowhere::new();
    let ended = nowhere.bgctl_reading(&["check", "-c", "-"], GOOD).code(0);
    assert_eq!(ended.stdout(), "<stdin> is valid: 1 deployment, 1 service, 3 backends\n");
    for command in ["check", "plan", "apply"] {
        nowhere
            .bgctl_reading(&[command, "-c", "-"], &GOOD.replace("vip", "vips"))
            .says(2, &["<stdin>:3:1: deployment \"shop\", service \"web\": unknown key \"vips\""]);
    }
    nowhere.bgctl_reading(&["check", "-c", "-"], "").says(2, &["<stdin>:"]);
}

#[test]
fn a_bad_configuration_is_a_usage_error_with_every_problem() {
    let nowhere = Nowhere::new();
    let bad = GOOD.replace("vip", "vips").replace("10.0.2.12:8443", "10.0.2.12:0");
    let file = nowhere.file("bgctl.toml", bad);
    for command in ["check", "plan", "apply"] {
        nowhere.bgctl(&[command, "-c", &file]).says(
            2,
            &[
                &format!("{file}:3:1: deployment \"shop\", service \"web\": unknown key \"vips\", expected one of"),
                &format!("{file}:1:1: deployment \"shop\", service \"web\": missing key \"vip\""),
                &format!(
                    "{file}:7:28: deployment \"shop\", service \"web\": bad backend \"10.0.2.12:0\", expected a port"
                ),
            ],
        );
    }
    assert!(!nowhere.path().join("state").exists(), "nothing was touched");
}

#[test]
fn a_file_that_cannot_be_read_is_a_usage_error() {
    let nowhere = Nowhere::new();
    let missing = nowhere.path().join("missing.toml");
    nowhere
        .bgctl(&["check", "-c", missing.to_str().unwrap()])
        .says(2, &["missing.toml", "No such file", "-c names another"]);
    nowhere.bgctl(&["check", "-c", nowhere.path().to_str().unwrap()]).says(2, &["Is a directory"]);
    let file = nowhere.file("latin1.toml", b"# gr\xfcn\n");
    nowhere.bgctl(&["check", "-c", &file]).says(2, &["latin1.toml:1:5: not UTF-8"]);
}

#[test]
fn a_bad_file_of_interfaces_is_a_usage_error() {
    let nowhere = Nowhere::new();
    let file = nowhere.file("interfaces", "eth0\neth1 fast\n");
    nowhere
        .bgctl(&["attach", "--from", &file])
        .says(2, &[&format!("{file}:2: expected an interface's name"), "eth1 fast"]);
    nowhere.bgctl(&["attach", "--from", "/no/such/file"]).says(2, &["cannot read /no/such/file", "No such file"]);
    nowhere.bgctl(&["attach", "eth0", "--from", &file]).code(2);
}

#[test]
fn what_the_grammar_does_not_know_is_a_usage_error() {
    let nowhere = Nowhere::new();
    for words in [
        &[][..],
        &["swich", "shop"],
        &["switch"],
        &["switch", "shop", "red"],
        &["switch", "shop", "--on-switch", "kill"],
        &["switch", "shop", "--if-generation", "-1"],
        &["attach"],
        &["attach", "lo", "--mode", "fast"],
        &["attach", "lo", "--flows", "0"],
        &["attach", "lo", "--flows", "1G"],
        &["attach", "lo", "--flows", "1.5M"],
        &["flows", "--colour", "red"],
        &["flows", "--backend", "10.0.0.1"],
        &["history", "-n", "-1"],
        &["history", "--since", "yesterday"],
        &["status", "--color", "often"],
        &["detach"],
        &["detach", "lo", "--all"],
        &["check", "--frobnicate"],
    ] {
        let ended = nowhere.bgctl(words).code(2);
        assert!(ended.stderr().contains("--help"), "{words:?}: {}", ended.stderr());
        assert_eq!(ended.stdout(), "", "{words:?}");
    }
}

#[test]
fn without_an_instance_there_is_nothing_to_switch() {
    let nowhere = Nowhere::new();
    let file = nowhere.file("bgctl.toml", GOOD);
    for words in [
        &["status"][..],
        &["switch", "shop"],
        &["rollback", "shop"],
        &["confirm", "shop"],
        &["split", "shop", "--green", "5"],
        &["flows"],
        &["flows", "--count"],
        &["show"],
        &["plan", "-c", &file],
        &["apply", "-c", &file],
    ] {
        nowhere.bgctl(words).says(1, &["no instance at", "bgctl attach IFACE"]);
    }
}

#[test]
fn an_interface_that_does_not_exist_is_answered_with_those_that_do() {
    Nowhere::new().bgctl(&["doctor", "no-such-nic"]).says(2, &["\"no-such-nic\"", "there are:", "lo"]);
}

#[test]
fn the_history_is_empty_then_told_and_survives_a_torn_line() {
    let nowhere = Nowhere::new();
    let ended = nowhere.bgctl(&["history", "--json"]).code(0);
    assert_eq!(ended.json(), serde_json::json!({ "records": [] }));

    fs::create_dir(nowhere.path().join("state")).unwrap();
    let record = serde_json::json!({
        "time": "2025-03-01T12:00:00.123456789Z", "deployment": "shop", "action": "switch",
        "from": { "generation": 3, "live": "blue" }, "to": { "generation": 4, "live": "green" },
        "who": { "user": "alice", "uid": 1000 }, "reason": "release 7", "command": "bgctl switch shop",
    });
    nowhere.file("state/history.jsonl", format!("{record}\n{}", &record.to_string()[..40]));
    let ended = nowhere.bgctl(&["history", "shop"]).code(0);
    let line = "2025-03-01T12:00:00Z  shop        switch  blue@3  green@4  alice  release 7";
    assert!(ended.stdout().lines().any(|l| l == line), "{}", ended.stdout());
    assert!(ended.stderr().contains("1 line of"), "{}", ended.stderr());
    assert_eq!(nowhere.bgctl(&["history", "--json"]).code(0).json()["records"], serde_json::json!([record]));
    nowhere.bgctl(&["history", "other", "--json"]).says(2, &["no deployment \"other\"", "\"shop\""]);
}

#[test]
fn the_newest_records_or_those_since_a_moment_are_told() {
    let nowhere = Nowhere::new();
    fs::create_dir(nowhere.path().join("state")).unwrap();
    let now = jiff::Timestamp::now();
    let ages = [("mail", 900), ("shop", 800), ("mail", 300), ("shop", 200), ("mail", 0)];
    let record = |(generation, (deployment, minutes)): (usize, &(&str, i64))| {
        serde_json::json!({
            "time": now - jiff::SignedDuration::from_mins(*minutes), "deployment": deployment, "action": "switch",
            "from": null, "to": { "generation": generation, "live": "green" },
            "who": { "user": null, "uid": 7 }, "reason": null, "command": "bgctl",
        })
        .to_string()
    };
    let lines: Vec<_> = ages.iter().enumerate().map(record).collect();
    nowhere.file("state/history.jsonl", lines.join("\n") + "\n");
    let generations = |words: &[&str]| {
        let json = nowhere.bgctl(&[&["history", "--json"], words].concat()).code(0).json();
        let records = json["records"].as_array().unwrap().clone();
        records.iter().map(|record| record["to"]["generation"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(generations(&[]), [0, 1, 2, 3, 4]);
    assert_eq!(generations(&["-n", "2"]), [3, 4]);
    assert!(generations(&["-n", "0"]).is_empty());
    assert_eq!(generations(&["shop", "-n", "1"]), [3]);
    assert_eq!(generations(&["-n", "100"]), [0, 1, 2, 3, 4]);
    assert_eq!(generations(&["--since", "6h"]), [2, 3, 4]);
    assert_eq!(generations(&["--since", "6h", "mail", "-n", "1"]), [4]);
    let moment = (now - jiff::SignedDuration::from_mins(250)).to_string();
    assert_eq!(generations(&["--since", &moment]), [3, 4]);
    let none = nowhere.bgctl(&["history", "--since", "2100-01-01T00:00:00Z"]).code(0);
    assert!(none.stdout().is_empty() && none.stderr().contains("nothing that matches"), "{}", none.stderr());
}

#[test]
fn colours_are_for_terminals_unless_told_otherwise() {
    let nowhere = Nowhere::new();
    fs::create_dir(nowhere.path().join("state")).unwrap();
    let record = serde_json::json!({
        "time": "2025-03-01T12:00:00Z", "deployment": "shop", "action": "switch", "from": null, "to": null,
        "who": { "user": "alice", "uid": 1000 }, "reason": null, "command": "bgctl",
    });
    nowhere.file("state/history.jsonl", format!("{record}\n"));
    let has_colours = |words: &[&str], variable: Option<(&str, &str)>| {
        let mut command = nowhere.command(&[&["history"], words].concat());
        command.env_remove("NO_COLOR").env_remove("CLICOLOR_FORCE").env("TERM", "xterm").envs(variable);
        Ended(command.output().unwrap()).code(0).stdout().contains('\x1b')
    };
    assert!(!has_colours(&[], None), "a pipe is no terminal");
    assert!(has_colours(&["--color", "always"], None));
    assert!(has_colours(&[], Some(("CLICOLOR_FORCE", "1"))));
    assert!(!has_colours(&["--color", "never"], Some(("CLICOLOR_FORCE", "1"))));
    assert!(has_colours(&["--color", "always"], Some(("NO_COLOR", "1"))), "an option goes before a variable");
}

#[test]
fn the_doctor_finds_something_wherever_it_looks() {
    let nowhere = Nowhere::new();
    // Whether this host is fit is not the test's business, but the pin root is on no BPF file system.
    let ended = nowhere.bgctl(&["doctor", "lo", "--json"]).code(1);
    let json = ended.json();
    let findings = json["findings"].as_array().unwrap();
    let find = |subject: &str, check: &str| {
        let mut found = findings.iter().filter(|finding| finding["subject"] == subject && finding["check"] == check);
        found.next().unwrap_or_else(|| panic!("{subject} {check} in {findings:?}")).clone()
    };
    assert_eq!(find("host", "pins")["level"], "fail");
    assert!(find("host", "pins")["remedy"].as_str().unwrap().contains("mount -t bpf"));
    assert_eq!(find("lo", "mode")["level"], "ok");
    assert!(find("host", "kernel")["message"].is_string());
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let program = env!("CARGO_BIN_EXE_bgctl");
    let pipe = format!("set -o pipefail; {program} completions bash | true");
    for _ in 0..5 {
        let status = Command::new("bash").args(["-c", &pipe]).status().unwrap();
        assert!(status.success(), "{status}");
    }
}

#[test]
fn a_message_is_no_command_to_the_terminal() {
    let nowhere = Nowhere::new();
    let ended = nowhere.bgctl(&["check", "-c", "/nowhere/\u{1b}[2J\u{9b}31m.toml"]).code(2);
    assert!(!ended.stderr().contains(['\u{1b}', '\u{9b}']), "{:?}", ended.stderr());
    assert!(ended.stderr().contains("\\u{1b}[2J"), "{}", ended.stderr());
}

#[test]
fn a_backend_of_two_services_is_noted_and_nothing_is_wrong() {
    let nowhere = Nowhere::new();
    let again = GOOD.replace("deployments.shop", "deployments.mail").replace("203.0.113.10", "203.0.113.11");
    let file = nowhere.file("bgctl.toml", &(GOOD.to_owned() + &again));
    let ended = nowhere.bgctl(&["check", "-c", &file]).code(0);
    assert!(ended.stderr().contains("/tcp is in 2 services (mail/"), "{}", ended.stderr());
}

//! How a command ends when nobody can read what it says, or the machine gives it no more threads, and what a watch shows
//! when others take the instance away.

use std::{
    fs::OpenOptions,
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
};

use bg_userspace::{AttachMode, Colour, SwitchRequest, Target, detach};

use crate::{
    lab::Lab,
    state::{live, running, two},
};

fn full() -> Stdio {
    OpenOptions::new().write(true).open("/dev/full").unwrap().into()
}

#[test]
fn a_message_that_nobody_can_read_changes_nothing() {
    let lab = running();
    let (_, reader_gone) = std::io::pipe().unwrap();
    for (colour, stderr) in [("green", full()), ("blue", reader_gone.into())] {
        let status = lab.bgctl().args(["-v", "switch", "shop", colour]).stderr(stderr).status().unwrap();
        assert_eq!((status.code(), live(&lab).0), (Some(0), colour));
    }
    let status = lab.bgctl().args(["switch", "nothing"]).stderr(full()).status().unwrap();
    assert_eq!(status.code(), Some(2));
}

#[test]
fn a_result_that_cannot_be_written_is_an_error_that_says_what_is_done() {
    let lab = running();
    for (words, says) in [
        (&["switch", "shop", "green"][..], "the command is done: cannot write the result to standard output: No space"),
        (&["--json", "rollback", "shop"], "the command is done: cannot write the result"),
        (&["attach", "v0"], "the command is done: cannot write the result"),
        (&["detach", "v0"], "the command is done: cannot write the result"),
        (&["status"], "bgctl: cannot write the result"),
    ] {
        let ended = lab.bgctl().args(words).stdout(full()).output().unwrap();
        let stderr = String::from_utf8(ended.stderr).unwrap();
        assert!(ended.status.code() == Some(1) && stderr.contains(says), "{words:?}: {stderr}");
    }
    assert_eq!(live(&lab), ("blue", 3));
}

#[test]
fn without_more_threads_a_command_does_all_by_itself() {
    let lab = running();
    let bgctl = lab.bgctl();
    // A user who may do what bgctl does, and have no second process or thread. Root may have any number.
    let caps = "+bpf,+net_admin,+perfmon,+dac_override,+dac_read_search,+fowner";
    let mut command = Command::new("setpriv");
    command.args([
        "--reuid",
        "65534",
        "--regid",
        "65534",
        "--clear-groups",
        "--inh-caps",
        caps,
        "--ambient-caps",
        caps,
    ]);
    command.args(["prlimit", "--nproc=1"]).arg(bgctl.get_program()).args(bgctl.get_args());
    let ended = command.args(["flows"]).output().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
}

/// The live colours of "shop", line by line, and what else is said.
fn watch(lab: &Lab) -> (Child, impl Iterator<Item = String>, impl Iterator<Item = String>) {
    let mut command = lab.bgctl();
    command.args(["--json", "status", "shop", "--watch"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let said = BufReader::new(child.stderr.take().unwrap()).lines().map(|line| line.unwrap());
    let shown = BufReader::new(child.stdout.take().unwrap()).lines().map(|line| {
        let status: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
        status["deployments"][0]["live"].as_str().unwrap().to_owned()
    });
    (child, shown, said)
}

#[test]
fn a_watch_goes_on_with_the_instance_that_comes_next() {
    let lab = running();
    let (mut child, mut shown, mut said) = watch(&lab);
    assert_eq!(shown.next().as_deref(), Some("blue"));
    detach(&lab.paths, &Target::All).unwrap();
    assert!(said.any(|line| line.contains("no instance at")));
    lab.attach("v0", AttachMode::Tc).unwrap();
    lab.instance().apply(&two()).unwrap();
    let request = SwitchRequest { to: Some(Colour::Green), ..SwitchRequest::default() };
    lab.instance().switch("shop", &request).unwrap();
    assert!(shown.by_ref().take(20).any(|live| live == "green"));
    child.kill().unwrap();
    child.wait().unwrap();
}

//! Programs of others on an interface: another instance's, and somebody else's.

use aya::programs::{LinkOrder, SchedClassifier, TcAttachType, tc::TcAttachOptions};
use bg_userspace::{
    AttachMode, AttachOptions, Attached, Error, ErrorClass, Refusal, attach,
    doctor::{self, Finding, Level},
};

use crate::{
    lab::{Lab, config},
    lifecycle::link,
};

fn findings(lab: &Lab, interface: &str) -> Vec<Finding> {
    let report = doctor::examine(&lab.paths, &[interface.to_owned()], None).unwrap();
    report.findings.into_iter().filter(|finding| finding.subject == interface).collect()
}

fn forced(lab: &Lab, interface: &str) -> Vec<Attached> {
    let options = AttachOptions { mode: AttachMode::Tc, force: true, ..AttachOptions::default() };
    attach(&lab.paths, &[interface.to_owned()], &options).unwrap()
}

#[test]
fn another_instance_is_not_stacked_behind_the_first_unless_forced() {
    for mode in [AttachMode::Tc, AttachMode::Native] {
        let first = Lab::new();
        first.attach("v1", AttachMode::Tc).unwrap();
        first.attach("v0", mode).unwrap();
        let second = first.beside();
        let error = second.attach("v0", AttachMode::Tc).unwrap_err();
        assert!(matches!(error, Error::Refused(Refusal::OtherInstance { .. })), "{error}");
        assert_eq!(error.class(), ErrorClass::Refused);
        let name = if mode == AttachMode::Tc { "v0:tc_ingress" } else { "v0:native" };
        let (id, program) = link(&first, name);
        let text = error.to_string();
        assert!(text.contains(&format!("id {program}, link {id}")) && text.contains("--force"), "{text}");
        assert!(!second.paths.pin_root.exists(), "nothing has been made");

        let attached = forced(&second, "v0");
        assert!(attached[0].in_front.iter().any(|other| other.bgctl && other.link == Some(id)), "{attached:?}");
        let (code, _, stderr) = second.run(&["attach", "v0"]);
        assert_eq!(code, 0, "what was forced is updated in place: {stderr}");
        assert!(stderr.contains("v0") && stderr.contains(&format!("link {id}")), "{stderr}");
        assert!(!second.instance().status(None).unwrap().interfaces[0].in_front.is_empty());
        let found = findings(&second, "v0");
        let warned = found.iter().find(|finding| finding.message.contains(&format!("link {id}"))).unwrap();
        assert!(warned.level == Level::Warn && warned.remedy.is_some(), "{warned:?}");
    }
}

/// Whoever mounts a BPF file system over the pins does not see them any more.
#[test]
fn an_instance_whose_pins_are_hidden_is_told_from_a_new_one() {
    let lab = Lab::new();
    lab.attach("v0", AttachMode::Tc).unwrap();
    lab.instance().apply(&config("shop", &[(1, 1)], &[(1, 1)])).unwrap();
    let mounted = "mount -t bpf bpf /sys/fs/bpf && exec \"$@\"";
    let mut command = std::process::Command::new("unshare");
    command.args(["--mount", "sh", "-c", mounted, "sh", env!("CARGO_BIN_EXE_bgctl"), "attach", "v0", "--pin-root"]);
    command.arg(&lab.paths.pin_root).arg("--state-dir").arg(&lab.paths.state_dir);
    let refused = command.output().unwrap();
    let stderr = String::from_utf8(refused.stderr).unwrap();
    assert!(refused.status.code() == Some(1) && stderr.contains("its own mounts"), "{stderr}");
    assert!(lab.instance().lost_interfaces().unwrap().is_empty());
}

#[test]
fn somebody_elses_program_in_front_is_named() {
    let lab = Lab::new();
    lab.attach("v1", AttachMode::Tc).unwrap();
    // Any classifier will do for a stranger's.
    let mut stranger = SchedClassifier::from_pin(lab.paths.program("tc_egress")).unwrap();
    let first = TcAttachOptions::TcxOrder(LinkOrder::first());
    stranger.attach_with_options("v0", TcAttachType::Ingress, first).unwrap();

    let (code, _, stderr) = lab.run(&["attach", "v0", "--mode", "tc"]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stderr.contains("tcx ingress program \"tc_egress\"") && stderr.contains("before"), "{stderr}");
    let status = lab.instance().status(None).unwrap();
    let in_front = |name: &str| status.interfaces.iter().find(|it| it.name == name).unwrap().in_front.len();
    assert_eq!((in_front("v0"), in_front("v1")), (1, 0));
    let found = findings(&lab, "v0");
    assert!(found.iter().any(|finding| finding.check == "tc" && finding.level == Level::Warn), "{found:?}");
    assert!(findings(&lab, "v1").iter().all(|finding| finding.check != "tc"));
}

#[test]
fn xdp_that_gives_way_to_tc_is_nobody_elses() {
    let lab = Lab::new();
    lab.attach("v1", AttachMode::Tc).unwrap();
    for mode in ["native", "tc", "generic", "tc"] {
        let (code, _, stderr) = lab.run(&["attach", "v0", "--mode", mode]);
        assert_eq!((code, stderr.as_str()), (0, ""), "{mode}");
    }
}

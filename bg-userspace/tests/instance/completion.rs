//! What a shell offers: the names of what runs.

use std::{path::Path, process::Command};

use bg_userspace::AttachMode;

use crate::lab::{Lab, config};

/// What bash offers for the last word of a line, options aside.
fn offers(lab: &Lab, words: &str) -> Vec<String> {
    const SCRIPT: &str = r#"
        source <(bgctl completions bash) || exit 1
        COMP_LINE="$1" COMP_POINT=${#1} COMP_TYPE=9
        read -ra COMP_WORDS <<< "$1"
        [[ "$1" == *' ' ]] && COMP_WORDS+=('')
        COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 ))
        registered=$(complete -p bgctl) || exit 1
        function=${registered##*-F }
        ${function%% *} bgctl "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
        printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let beside = Path::new(env!("CARGO_BIN_EXE_bgctl")).parent().unwrap();
    let path = format!("{}:{}", beside.display(), std::env::var("PATH").unwrap());
    let line = format!("bgctl --pin-root {} {words}", lab.paths.pin_root.display());
    let output = Command::new("bash").args(["-c", SCRIPT, "bash", &line]).env("PATH", path).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    let offered = String::from_utf8(output.stdout).unwrap();
    let mut offered: Vec<_> = offered.lines().map(str::to_owned).collect();
    offered.retain(|word| !word.starts_with('-') && !word.is_empty());
    offered.sort();
    offered
}

#[test]
fn bash_knows_deployments_colours_and_interfaces_in_their_places() {
    let lab = Lab::new();
    lab.attach("v1", AttachMode::Tc).unwrap();
    let mut all = config("mail", &[(1, 1)], &[(2, 1)]);
    for (name, octet) in [("shop", 2), ("shopping", 3)] {
        let mut deployment = config(name, &[(1, 1)], &[(2, 1)]).deployments.remove(0);
        deployment.services[0].vip = ([203, 0, 113, octet], 443).into();
        deployment.services[0].name = format!("web-of-{name}");
        all.deployments.push(deployment);
    }
    lab.instance().apply(&all).unwrap();

    let offers = |words: &str| offers(&lab, words);
    assert!(offers("").contains(&"rollback".to_owned()));
    assert_eq!(offers("ro"), ["rollback"]);
    for command in ["switch", "rollback", "confirm", "split", "status", "flows", "history", "history -n 3"] {
        assert_eq!(offers(&format!("{command} sh")), ["shop", "shopping"], "{command}");
        assert_eq!(offers(&format!("--json {command} m")), ["mail"], "{command}");
    }
    assert_eq!(offers("switch shop "), ["blue", "green"]);
    assert_eq!(offers("switch shop g"), ["green"]);
    assert_eq!(offers("switch no-such-"), [""; 0]);
    assert_eq!(offers("switch shop --on-switch "), ["cut", "drain"]);
    assert_eq!(offers("flows --colour "), ["blue", "green"]);
    assert_eq!(offers("flows --service web-"), ["web-of-shop", "web-of-shopping"]);
    assert_eq!(offers("attach "), ["lo", "v0", "v1"]);
    assert_eq!(offers("attach v0 v"), ["v0", "v1"], "there may be several");
    assert_eq!(offers("doctor v"), ["v0", "v1"]);
    assert_eq!(offers("detach "), ["v1"], "those that are attached");
    assert_eq!(offers("attach lo --mode n"), ["native"]);

    // Fish shows what a word stands for; it speaks the same protocol.
    let words = ["--", "bgctl", "--pin-root", lab.paths.pin_root.to_str().unwrap(), "switch", "ma"];
    let output = Command::new(env!("CARGO_BIN_EXE_bgctl")).args(words).env("COMPLETE", "fish").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim_end(), "mail\tblue is live");
}

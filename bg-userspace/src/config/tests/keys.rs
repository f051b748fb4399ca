//! Keys, words, times and names that are refused.

use super::{GOOD, problems, problems_with, refused};

#[test]
fn unknown_keys() {
    refused(
        "vip = \"203",
        "vips = 1\nvip = \"203",
        "9:1: deployment \"shop\", service \"web\": unknown key \"vips\", expected one of \
         \"name\", \"vip\", \"protocol\", \"mode\", \"blue\", \"green\", \"preview\", \"mirror\", \"listen\", \
         \"proxy_protocol\", \"compare\", \"gue_port\", \"outer_source\", \"health\"",
    );
    refused(
        "weight = 2",
        "wait = 2",
        "12:58: deployment \"shop\", service \"web\": unknown key \"wait\", expected one of \"address\", \"weight\"",
    );
    refused(
        "initial",
        "instance = 7\ninitial",
        "2:1: deployment \"shop\": unknown key \"instance\", expected one of \
         \"initial\", \"on_switch\", \"drain_timeout\", \"tcp_idle_timeout\", \"udp_idle_timeout\", \"sticky\", \
         \"sticky_prefix\", \"testers\", \"health\", \"failover\", \"gates\", \"services\"",
    );
    refused(
        "[deployments.shop]\n",
        "[globals]\n[deployments.shop]\n",
        "1:2: unknown key \"globals\", expected one of \"deployments\", \"serve\", \"notify\"",
    );
}

#[test]
fn missing_keys() {
    refused("vip = \"203.0.113.10:443\"\n", "", "7:1: deployment \"shop\", service \"web\": missing key \"vip\"");
    refused("mode = \"nat\"\n", "", "7:1: deployment \"shop\", service \"web\": missing key \"mode\"");
    refused("green = [\"10.0.2.11:8443\"]\n", "", "7:1: deployment \"shop\", service \"web\": missing key \"green\"");
    refused(
        "address = \"10.0.1.12:8443\", ",
        "",
        "12:28: deployment \"shop\", service \"web\": missing key \"address\"",
    );
    assert_eq!(
        problems("[deployments.shop]\n"),
        ["bgctl.toml:1:14: deployment \"shop\": no services, expected at least one [[deployments.NAME.services]]"]
    );
}

#[test]
fn unknown_words() {
    refused(
        "\"nat\"",
        "\"snat\"",
        "11:8: deployment \"shop\", service \"web\": unknown mode \"snat\", expected \"nat\" or \"local\" or \"tee\" or \"l2dsr\" or \"ipip\" or \"gue\"",
    );
    refused(
        "\"tcp\"",
        "\"sctp\"",
        "10:12: deployment \"shop\", service \"web\": unknown protocol \"sctp\", expected \"tcp\" or \"udp\"",
    );
    refused(
        "\"green\"",
        "\"red\"",
        "2:11: deployment \"shop\": unknown colour \"red\", expected \"blue\" or \"green\"",
    );
    refused(
        "\"cut\"",
        "\"kill\"",
        "3:13: deployment \"shop\": unknown on_switch \"kill\", expected \"drain\" or \"cut\"",
    );
}

#[test]
fn bad_durations() {
    let refused = |text: &str, why: &str| {
        let problem = format!(
            "4:17: deployment \"shop\": bad drain_timeout \"{text}\": {why}, expected a duration such as \"500ms\", \"2m\" or \"1h 30m\""
        );
        refused("\"10m\"", &format!("\"{text}\""), &problem);
    };
    refused("0s", "shorter than 1ms");
    refused("2 years", "longer than 1year");
    assert!(
        problems_with("\"10m\"", "\"ten\"")[0]
            .starts_with("bgctl.toml:4:17: deployment \"shop\": bad drain_timeout \"ten\": ")
    );
    assert!(
        problems_with("\"10m\"", "600")[0]
            .contains("4:17: deployment \"shop\": \"drain_timeout\" is an integer, expected a duration")
    );
    assert_eq!(problems_with("\"10m\"", "\"1h 30m\""), Vec::<String>::new());
}

#[test]
fn bad_names() {
    let long = "x".repeat(65);
    let expected = "expected 1 to 64 bytes without control characters";
    refused(
        "\"web\"",
        "\"\"",
        &format!("8:8: deployment \"shop\", service \"\": bad name \"\": it is empty, {expected}"),
    );
    refused(
        "\"web\"",
        &format!("\"{long}\""),
        &format!("8:8: deployment \"shop\", service \"{long}\": bad name \"{long}\": it has 65 bytes, {expected}"),
    );
    let problems = problems(&GOOD.replace(".shop", &format!(".{long}")));
    assert_eq!(problems, [format!("bgctl.toml:1:14: bad name \"{long}\": it has 65 bytes, {expected}")]);
    assert_eq!(problems_with("\"web\"", &format!("\"{}\"", "é".repeat(32))), Vec::<String>::new());
}

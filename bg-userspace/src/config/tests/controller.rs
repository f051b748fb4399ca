//! What concerns the controller: `[serve]`, `[[notify]]`, `health`, `failover` and `gates`.

mod written;

use std::{num::NonZeroU32, path::Path, time::Duration};

use super::{GOOD, problems};
use crate::config::{Config, load, model::*, parse};

const CONTROLLER: &str = r#"
[serve]
socket = "/run/bgctl/api.sock"
socket_group = "bgctl"
listen = "0.0.0.0:7470"
tls = { certificate = "cert.pem", key = "key.pem", client_ca = "/etc/ca.pem" }
tokens = "tokens"

[deployments.shop.health]
kind = "http"
path = "/healthz"
port = 8080
interval = "1s"
timeout = "400ms"
rise = 2
fall = 3
expect_body = "^ok"

[deployments.shop.failover]
to_idle = "auto"
min_healthy = "50%"
hold_off = "5m"

[[deployments.shop.gates]]
when = "before"
kind = "exec"
command = ["/usr/local/bin/smoke-test", "--fast"]
interval = "11s"
timeout = "31s"

[[deployments.shop.gates]]
when = "after"
kind = "http"
url = "https://shop.example/deep?check=1"

[[deployments.shop.gates]]
when = "after"
kind = "prometheus"
url = "http://127.0.0.1:9090"
query = 'rate(errors[1m])'
max = 0.5

[[notify]]
url = "https://hooks.example/shop"
events = ["switch", "revert", "failover", "unhealthy"]
"#;

/// Asserts that the file with one part replaced has one problem. Its line is counted from the first one of [`CONTROLLER`].
#[track_caller]
fn refused(part: &str, replacement: &str, line: usize, problem: &str) {
    assert_eq!(CONTROLLER.matches(part).count(), 1, "{part:?} must occur once");
    let text = format!("{GOOD}{}", CONTROLLER.replace(part, replacement));
    let line = line + GOOD.lines().count();
    assert_eq!(problems(&text), [format!("bgctl.toml:{line}:{problem}")]);
}

fn config(text: &str) -> Config {
    parse(Path::new("bgctl.toml"), text).unwrap()
}

#[test]
fn the_documented_sections_are_understood() {
    let config = config(&format!("{GOOD}{CONTROLLER}"));
    let serve = config.serve.as_ref().unwrap();
    assert_eq!(serve.socket, Path::new("/run/bgctl/api.sock"));
    assert_eq!(serve.socket_group.as_deref(), Some("bgctl"));
    assert_eq!(serve.listen, Some("0.0.0.0:7470".parse().unwrap()));
    let [notify] = config.notify.as_slice() else { panic!("{config:?}") };
    assert_eq!(
        notify.events.iter().map(|event| event.name()).collect::<Vec<_>>().join(" "),
        "switch revert failover unhealthy"
    );

    let shop = &config.deployments[0];
    let health = shop.health.as_ref().unwrap();
    let CheckKind::Http(http) = &health.kind else { panic!("{health:?}") };
    assert_eq!((http.path.as_str(), http.tls, http.host.as_deref()), ("/healthz", false, None));
    assert!(http.expect_status.contains(302) && !http.expect_status.contains(404));
    assert_eq!((health.port, health.rise, health.fall, health.all_down), (Some(8080), 2, 3, AllDown::Open));
    assert_eq!((health.interval, health.timeout), (Duration::from_secs(1), Duration::from_millis(400)));
    assert!(shop.failover.to_idle);
    assert_eq!(shop.failover.min_healthy, MinHealthy::Percent(50));

    let [exec, http, prometheus] = shop.gates.as_slice() else { panic!("{shop:?}") };
    assert_eq!(
        (exec.when, exec.interval, exec.timeout),
        (When::Before, Duration::from_secs(11), Duration::from_secs(31))
    );
    assert_eq!(exec.to_string(), "exec /usr/local/bin/smoke-test --fast");
    assert_eq!((http.when, http.interval, http.timeout), (When::After, Gate::INTERVAL, Gate::TIMEOUT));
    let GateKind::Prometheus { max: Some(max), min: None, .. } = prometheus.kind else { panic!("{prometheus:?}") };
    assert_eq!(max.number(), 0.5);
}

#[test]
fn a_file_without_them_has_the_defaults() {
    let plain = config(GOOD);
    assert_eq!((plain.serve, plain.notify), (None, Vec::new()));
    let shop = &plain.deployments[0];
    assert_eq!((&shop.health, &shop.failover, &shop.gates), (&None, &Failover::default(), &Vec::new()));
    assert!(!shop.failover.to_idle);

    let empty = config("[deployments]\n[serve]\n[[notify]]\nurl = \"http://[::1]:80\"\n");
    assert_eq!(empty.serve, Some(Serve::default()));
    assert_eq!(empty.notify[0].events, NotifyEvent::ALL, "all of them");

    let fast = config(&format!("{GOOD}health = {{ kind = \"tcp\", port = 53, interval = \"100ms\" }}\n"));
    let health = fast.deployments[0].services[1].health.as_ref().unwrap();
    assert_eq!(health.timeout, Duration::from_millis(100), "never longer than the interval");
    assert_eq!(fast.deployments[0].health, None);
}

#[test]
fn a_udp_service_is_not_asked_over_tcp_at_its_own_port() {
    let of = |health: &str| format!("{GOOD}{health}\n");
    let problem = |kind: &str, place: &str, named: &str| {
        format!(
            "{place}: kind = \"{kind}\" asks over TCP, and {named} is UDP; expected `port` (that of a TCP listener of the backend), \
             kind = \"exec\", or health = \"none\" in the service"
        )
    };
    for kind in ["tcp", "http", "https", "grpc"] {
        let place = "bgctl.toml:22:10: deployment \"shop\", service \"[2001:db8::10]:53\"";
        assert_eq!(problems(&of(&format!("health = {{ kind = \"{kind}\" }}"))), [problem(kind, place, "this service")]);
        let inherited = GOOD.replace("initial =", &format!("health = {{ kind = \"{kind}\" }}\ninitial ="));
        let place = "bgctl.toml:2:10: deployment \"shop\"";
        assert_eq!(problems(&inherited), [problem(kind, place, "service \"[2001:db8::10]:53/udp\"")]);
        let unchecked = config(&format!("{inherited}health = \"none\"\n"));
        let shop = &unchecked.deployments[0];
        let checks = [0, 1].map(|service| shop.check_of(&shop.services[service]).is_some());
        assert_eq!(checks, [true, false], "nothing checks the one that says so");
        assert_eq!(config(&unchecked.to_toml()), unchecked);
    }
    for good in ["health = { kind = \"tcp\", port = 8080 }", "health = { kind = \"exec\", command = [\"dig\"] }"] {
        assert!(config(&of(good)).deployments[0].services[1].health.is_some(), "{good}");
    }
    let bad = "health = { kind = \"http\", port = 80, path = \"/<x>\" }";
    assert!(problems(&of(bad))[0].contains("bad path \"/<x>\""), "{:?}", problems(&of(bad)));
}

#[test]
fn paths_of_a_file_are_relative_to_its_directory() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bgctl.toml");
    std::fs::write(&path, format!("{GOOD}{CONTROLLER}")).unwrap();
    let serve = load(&path).unwrap().serve.unwrap();
    let tls = serve.tls.unwrap();
    assert_eq!(tls.certificate, directory.path().join("cert.pem"));
    assert_eq!(tls.client_ca.as_deref(), Some(Path::new("/etc/ca.pem")));
    assert_eq!(serve.tokens, Some(directory.path().join("tokens")));
    assert_eq!(serve.socket, Path::new("/run/bgctl/api.sock"));
}

#[test]
fn health_is_refused_at_its_place() {
    let place = "deployment \"shop\", health";
    refused(
        "kind = \"http\"\npath",
        "kind = \"ping\"\npath",
        10,
        &format!(
            "8: {place}: unknown kind \"ping\", expected \"tcp\" or \"http\" or \"https\" or \"grpc\" or \"exec\""
        ),
    );
    refused("kind = \"http\"\npath", "path", 9, &format!("1: {place}: missing key \"kind\""));
    refused(
        "\"/healthz\"",
        "\"healthz\"",
        11,
        &format!(
            "8: {place}: bad path \"healthz\", expected a path that begins with /, with other characters than those of URLs in the form %20, \"/healthz\""
        ),
    );
    refused(
        "\"400ms\"",
        "\"2s\"",
        14,
        &format!(
            "11: {place}: timeout 2s is longer than the interval 1s: a backend is asked once at a time, so it would be asked less often than that; expected a timeout of at most the interval"
        ),
    );
    refused("port = 8080", "port = 65536", 12, &format!("8: {place}: port 65536 is out of range, expected 1 to 65535"));
    refused("rise = 2", "rise = 0", 15, &format!("8: {place}: rise 0 is out of range, expected 1 to 1000"));
    refused(
        "rise = 2",
        "rose = 2",
        15,
        &format!(
            "1: {place}: unknown key \"rose\", expected one of \"kind\", \"path\", \"host\", \"expect_status\", \"expect_body\", \"service\", \"tls\", \"command\", \"port\", \"interval\", \"timeout\", \"rise\", \"fall\", \"all_down\", \"slow_start\""
        ),
    );
    refused(
        "rise = 2",
        "command = [\"true\"]",
        15,
        &format!("1: {place}: \"command\" is not for kind \"http\", expected it only with \"exec\""),
    );
    refused(
        "rise = 2",
        "expect_status = \"2xx\"",
        15,
        &format!(
            "17: {place}: bad expect_status \"2xx\", expected status codes from 100 to 599 in quotes, \"200-399\" or \"200,204\""
        ),
    );
    refused(
        "rise = 2",
        "all_down = \"closed\"",
        15,
        &format!("12: {place}: unknown all_down \"closed\", expected \"open\" or \"refuse\""),
    );
    refused(
        "rise = 2",
        "slow_start = \"0s\"",
        15,
        &format!(
            "14: {place}: bad slow_start \"0s\": shorter than 1ms, expected a duration such as \"500ms\", \"2m\" or \"1h 30m\""
        ),
    );
    let text = format!("{GOOD}health = {{ kind = \"exec\", command = [] }}\n");
    let own = "deployment \"shop\", service \"[2001:db8::10]:53\", health";
    assert_eq!(
        problems(&text),
        [format!(
            "bgctl.toml:22:37: {own}: an empty command, expected a program and its arguments, without zero bytes"
        )]
    );
    let bad = format!("{GOOD}{}", CONTROLLER.replace("\"^ok\"", "\"(ok\""));
    let problems = problems(&bad);
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(
        problems[0].starts_with(
            "bgctl.toml:38:15: deployment \"shop\", health: bad expect_body \"(ok\", expected a regular expression: "
        ),
        "{problems:?}"
    );
}

#[test]
fn failover_is_refused_at_its_place() {
    let place = "deployment \"shop\", failover";
    refused("\"auto\"", "\"on\"", 20, &format!("11: {place}: unknown to_idle \"on\", expected \"off\" or \"auto\""));
    for text in ["0%", "101%", "50", "%", "+5%", "-1%"] {
        let expected = "a percentage from 1% to 100% in quotes, \"50%\", or a number of backends, 2";
        refused(
            "\"50%\"",
            &format!("\"{text}\""),
            21,
            &format!("15: {place}: bad min_healthy \"{text}\", expected {expected}"),
        );
    }
    refused("\"50%\"", "0", 21, &format!("15: {place}: min_healthy 0 is out of range, expected 1 to 65535"));
    let unchecked = format!("{GOOD}[deployments.shop.failover]\nto_idle = \"auto\"\n");
    assert_eq!(
        problems(&unchecked),
        [format!(
            "bgctl.toml:23:11: {place}: to_idle = \"auto\" without health checks, expected [deployments.NAME.health], or `health` in a service"
        )]
    );
    let checked = format!(
        "{GOOD}health = {{ kind = \"tcp\", port = 53 }}\n[deployments.shop.failover]\nto_idle = \"auto\"\nmin_healthy = 2\n"
    );
    assert_eq!(config(&checked).deployments[0].failover.min_healthy, MinHealthy::Count(NonZeroU32::new(2).unwrap()));
}

#[test]
fn gates_are_refused_at_their_place() {
    let place = |gate: u8| format!("deployment \"shop\", gate {gate}");
    refused(
        "when = \"before\"",
        "when = \"during\"",
        25,
        &format!("8: {}: unknown when \"during\", expected \"before\" or \"after\"", place(1)),
    );
    refused("when = \"before\"\n", "", 24, &format!("1: {}: missing key \"when\"", place(1)));
    refused(
        "[\"/usr/local/bin/smoke-test\", \"--fast\"]",
        "\"smoke-test\"",
        27,
        &format!(
            "11: {}: \"command\" is a string, expected an array of a program and its arguments, [\"/usr/local/bin/smoke-test\", \"--fast\"]",
            place(1)
        ),
    );
    refused(
        "command = [\"/usr/local/bin/smoke-test\", \"--fast\"]\n",
        "",
        24,
        &format!("1: {}: missing key \"command\"", place(1)),
    );
    refused(
        "timeout = \"31s\"",
        "timeout = \"0s\"",
        29,
        &format!(
            "11: {}: bad timeout \"0s\": shorter than 1ms, expected a duration such as \"500ms\", \"2m\" or \"1h 30m\"",
            place(1)
        ),
    );
    refused(
        "\"https://shop.example/deep?check=1\"",
        "\"ftp://shop.example\"",
        34,
        &format!("7: {}: bad url \"ftp://shop.example\", expected http://HOST... or https://HOST...", place(2)),
    );
    refused(
        "\"https://shop.example/deep?check=1\"",
        "\"https://\"",
        34,
        &format!("7: {}: bad url \"https://\", expected http://HOST... or https://HOST...", place(2)),
    );
    refused(
        "url = \"https://shop.example/deep?check=1\"",
        "url = \"http://a\"\nmax = 1",
        35,
        &format!("1: {}: \"max\" is not for kind \"http\", expected it only with \"prometheus\"", place(2)),
    );
    refused(
        "max = 0.5\n",
        "",
        36,
        &format!("1: {}: missing key \"max\" or \"min\", expected at least one: which values pass?", place(3)),
    );
    refused(
        "max = 0.5",
        "max = 1\nmin = 2",
        42,
        &format!("7: {}: min 2 is above max 1, so no value would pass; expected it to be at most that", place(3)),
    );
    refused("max = 0.5", "max = nan", 41, &format!("7: {}: \"max\" is a float, expected a finite number", place(3)));
    refused("query = 'rate(errors[1m])'\n", "", 36, &format!("1: {}: missing key \"query\"", place(3)));
    let one = format!("{GOOD}[deployments.shop]\n")
        .replace("[deployments.shop]\ninitial", "[deployments.shop]\ngates = { when = \"before\" }\ninitial");
    assert!(
        problems(&one)[0].contains("not TOML") || problems(&one)[0].contains("\"gates\" is a table"),
        "{:?}",
        problems(&one)
    );
}

#[test]
fn serve_and_notify_are_refused_at_their_place() {
    refused(
        "tls = { certificate = \"cert.pem\", key = \"key.pem\", client_ca = \"/etc/ca.pem\" }\n",
        "",
        5,
        "10: serve: listen 0.0.0.0:7470 can be reached from other hosts, expected tls = { certificate = \"cert.pem\", key = \"key.pem\" } with it, or a loopback address",
    );
    refused(", key = \"key.pem\"", "", 6, "7: serve, tls: missing key \"key\"");
    refused(
        "\"0.0.0.0:7470\"",
        "\"localhost:7470\"",
        5,
        "10: serve: bad listen \"localhost:7470\", expected ADDRESS:PORT, \"127.0.0.1:7470\" or \"[::1]:7470\", with a port from 1 to 65535 (names are not looked up)",
    );
    refused(
        "tokens = \"tokens\"",
        "token = \"tokens\"",
        7,
        "1: serve: unknown key \"token\", expected one of \"socket\", \"socket_group\", \"listen\", \"tls\", \"tokens\"",
    );
    refused("\"tokens\"", "\"\"", 7, "10: serve: bad tokens \"\", expected the path of a file in quotes");
    refused(
        "\"failover\"",
        "\"fail\"",
        45,
        "31: notify 1: unknown event \"fail\", expected \"switch\" or \"revert\" or \"failover\" or \"unhealthy\" or \"healthy\" or \"gate\"",
    );
    refused(
        "\"failover\"",
        "\"switch\"",
        45,
        &format!("31: notify 1: duplicate event switch, first at {}:11; expected each once", 45 + GOOD.lines().count()),
    );
    refused("url = \"https://hooks.example/shop\"\n", "", 43, "1: notify 1: missing key \"url\"");
    for (listen, passes) in [
        ("127.0.0.1:1", true),
        ("[::1]:1", true),
        ("[::]:1", false),
        ("[::ffff:127.0.0.1]:1", true),
        ("10.0.0.1:1", false),
    ] {
        let text = format!("[deployments]\n[serve]\nlisten = \"{listen}\"\n");
        assert_eq!(problems(&text).is_empty(), passes, "{listen}");
    }
}

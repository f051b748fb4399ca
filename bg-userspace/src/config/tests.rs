//! What is refused, and exactly where.

use std::{path::Path, time::Duration};

use bg_common::{Colour, Mode, Protocol};

use super::{model::*, *};

mod addresses;
mod controller;
mod direct;
mod keys;

const GOOD: &str = r#"[deployments.shop]
initial = "green"
on_switch = "cut"
drain_timeout = "10m"
testers = ["198.51.100.0/24", "2001:db8:7::/48"]

[[deployments.shop.services]]
name = "web"
vip = "203.0.113.10:443"
protocol = "tcp"
mode = "nat"
blue  = ["10.0.1.11:8443", { address = "10.0.1.12:8443", weight = 2 }]
green = ["10.0.2.11:8443"]
preview = "203.0.113.10:9443"

[[deployments.shop.services]]
vip = "[2001:db8::10]:53"
protocol = "udp"
mode = "local"
blue  = ["[2001:db8:1::1]:53"]
green = [{ address = "[2001:db8:2::1]:53", weight = 0 }, "[2001:db8:2::2]:53"]
"#;

/// The problems of a text, as printed.
fn problems(text: &str) -> Vec<String> {
    match parse(Path::new("bgctl.toml"), text) {
        Ok(_) => Vec::new(),
        Err(error) => error.to_string().lines().map(str::to_owned).collect(),
    }
}

/// The problems of [`GOOD`] with one part replaced.
#[track_caller]
fn problems_with(part: &str, replacement: &str) -> Vec<String> {
    assert_eq!(GOOD.matches(part).count(), 1, "{part:?} must occur once");
    problems(&GOOD.replace(part, replacement))
}

/// Asserts that [`GOOD`] with one part replaced has one problem.
#[track_caller]
fn refused(part: &str, replacement: &str, problem: &str) {
    assert_eq!(problems_with(part, replacement), [format!("bgctl.toml:{problem}")]);
}

#[test]
fn a_teed_service_is_understood_and_what_cannot_be_teed_is_refused() {
    let listen = "listen = { blue = \"10.0.0.5:17000\", green = \"10.0.0.5:17001\" }";
    let teed = format!("mode = \"tee\"\n{listen}\nproxy_protocol = \"v2\"\ncompare = true");
    let config = parse(Path::new("bgctl.toml"), &GOOD.replace("mode = \"nat\"", &teed)).unwrap();
    let web = &config.deployments[0].services[0];
    let addresses = ["10.0.0.5:17000", "10.0.0.5:17001"].map(|address| address.parse().unwrap());
    assert_eq!(web.mode, Mode::Tee);
    assert_eq!(web.tee, Tee { listen: Some(addresses), proxy_protocol: true, compare: true });
    assert_eq!(parse(Path::new("again"), &config.to_toml()).unwrap(), config, "{}", config.to_toml());

    let place = "deployment \"shop\", service \"web\":";
    let with = |mode: &str, problem: &str| refused("mode = \"nat\"", mode, problem);
    let in_nat =
        |key: &str| format!("12:{}: {place} \"{key}\" without mode = \"tee\", which alone has it", key.len() + 4);
    for (key, line) in
        [("compare", "compare = false"), ("proxy_protocol", "proxy_protocol = \"v2\""), ("listen", listen)]
    {
        let problems = problems_with("mode = \"nat\"", &format!("mode = \"nat\"\n{line}"));
        assert!(problems.len() == 1 && problems[0].starts_with(&format!("bgctl.toml:{}", in_nat(key))), "{problems:?}");
    }
    with("mode = \"tee\"\nlisten = { blue = \"10.0.0.5:17000\" }", &format!("12:10: {place} missing key \"green\""));
    with(
        "mode = \"tee\"\nlisten = { blue = \"10.0.0.5:1\", green = \"10.0.0.5:1\" }",
        &format!(
            "12:41: {place} duplicate listener address 10.0.0.5:1/tcp, first at 12:19; expected each once among all VIPs and \
             preview addresses of the file"
        ),
    );
    with(
        "mode = \"tee\"\ncompare = \"yes\"",
        &format!("12:11: {place} \"compare\" is a string, expected true or false"),
    );
    let problems = problems_with("protocol = \"tcp\"\nmode = \"nat\"", "protocol = \"udp\"\nmode = \"tee\"");
    assert!(problems.len() == 1 && problems[0].contains("mode \"tee\" of a UDP service"), "{problems:?}");
    let text = GOOD.replace("mode = \"nat\"", "mode = \"tee\"").replace("10.0.2.11:8443", "10.0.1.11:8443");
    let problems = self::problems(&text);
    assert!(problems.len() == 1 && problems[0].contains("would get each connection twice"), "{problems:?}");
}

#[test]
fn the_documented_file_is_understood() {
    let config = parse(Path::new("bgctl.toml"), GOOD).unwrap();
    let [shop] = config.deployments.as_slice() else { panic!("{config:?}") };
    assert_eq!((shop.name.as_str(), shop.initial, shop.on_switch), ("shop", Colour::Green, OnSwitch::Cut));
    assert_eq!(shop.drain_timeout, Some(Duration::from_secs(600)));
    assert_eq!((shop.tcp_idle_timeout, shop.udp_idle_timeout), (Duration::from_secs(7200), Duration::from_secs(60)));
    assert_eq!(shop.testers.iter().map(Prefix::to_string).collect::<Vec<_>>(), ["198.51.100.0/24", "2001:db8:7::/48"]);

    let [web, dns] = shop.services.as_slice() else { panic!("{shop:?}") };
    assert_eq!((web.name.as_str(), web.protocol, web.mode), ("web", Protocol::Tcp, Mode::Nat));
    assert_eq!(web.preview, Some("203.0.113.10:9443".parse().unwrap()));
    let weights = |service: &Service, colour| service.backends(colour).iter().map(|b| b.weight).collect::<Vec<_>>();
    assert_eq!(weights(web, Colour::Blue), [1, 2]);
    assert_eq!((dns.name.as_str(), dns.mode, dns.preview), ("[2001:db8::10]:53/udp", Mode::Local, None));
    assert_eq!(weights(dns, Colour::Green), [0, 1]);
}

#[test]
fn a_udp_service_may_have_a_mirror() {
    let mode = "mode = \"local\"";
    let text = GOOD.replace(mode, &format!("{mode}\nmirror = \"idle\""));
    let config = parse(Path::new("bgctl.toml"), &text).unwrap();
    assert_eq!(
        config.deployments[0].services.iter().map(|service| service.is_mirrored).collect::<Vec<_>>(),
        [false, true]
    );
    assert_eq!(parse(Path::new("x"), &config.to_toml()).unwrap(), config);

    refused(
        mode,
        &format!("{mode}\nmirror = \"live\""),
        "20:10: deployment \"shop\", service \"[2001:db8::10]:53\": unknown mirror \"live\", expected \"idle\"",
    );
    refused(
        "mode = \"nat\"",
        "mode = \"nat\"\nmirror = \"idle\"",
        "12:10: deployment \"shop\", service \"web\": \"mirror\" of a TCP service: the idle colour knows nothing of the connections that \
         copied segments would belong to; expected protocol = \"udp\", or no \"mirror\"",
    );
    let both = text.replace("blue  = [\"[2001:db8:1::1]:53\"]", "blue  = [\"[2001:db8:2::2]:53\"]");
    assert_eq!(
        problems(&both),
        [
            "bgctl.toml:20:10: deployment \"shop\", service \"[2001:db8::10]:53\": \"mirror\" while backend [2001:db8:2::2]:53 is in both \
          colours: it would get each datagram twice, and answer twice; expected other addresses or ports in blue than in green"
        ]
    );
}

#[test]
fn only_an_explicit_nothing_is_nothing() {
    assert_eq!(parse(Path::new("x"), "[deployments]\n").unwrap(), Config::default());
    assert!(problems("")[0].starts_with("bgctl.toml:1:1: no deployments, expected"));
}

#[test]
fn too_many() {
    let mut text = String::new();
    for deployment in 0..=bg_common::MAX_DEPLOYMENTS {
        let (a, b) = (deployment >> 8, deployment & 255);
        text += &format!(
            "[[deployments.d{deployment}.services]]\nvip = \"10.0.{a}.{b}:1\"\nprotocol = \"tcp\"\nmode = \"nat\"\nblue = [\"10.1.0.1:1\"]\ngreen = [\"10.1.0.2:1\"]\n"
        );
    }
    let last = bg_common::MAX_DEPLOYMENTS * 6 + 1;
    assert_eq!(
        problems(&text),
        [format!("bgctl.toml:{last}:15: too many deployments: 1025, expected at most 1024 in one file")]
    );
}

#[test]
fn what_is_no_toml() {
    let problems = problems_with("protocol = \"tcp\"", "protocol = tcp");
    assert!(problems[0].starts_with("bgctl.toml:10:12: not TOML: "), "{problems:?}");
    assert_eq!(problems.len(), 1, "nothing else is guessed at: {problems:?}");
}

#[test]
fn all_problems_are_told_in_order() {
    let text = GOOD
        .replace("\"10m\"", "\"10 minuets\"")
        .replace("\"nat\"", "\"gnat\"")
        .replace("8443\"]", "0\"]")
        .replace("preview", "review");
    let at: Vec<_> = problems(&text).iter().map(|line| line.split(": ").next().unwrap().to_owned()).collect();
    assert_eq!(at, ["bgctl.toml:4:17", "bgctl.toml:11:8", "bgctl.toml:13:10", "bgctl.toml:14:1"]);
}

#[test]
fn the_first_problems_are_told_and_how_many_more_there_are() {
    let testers = |count: usize| vec!["7"; count].join(", ");
    let told = |count| problems_with("\"198.51.100.0/24\", \"2001:db8:7::/48\"", &testers(count));
    assert_eq!(told(20).len(), 20);
    assert_eq!((told(21).len(), told(21)[20].as_str()), (21, "bgctl.toml: and 1 more problem"));
    assert_eq!((told(500).len(), told(500)[20].as_str()), (21, "bgctl.toml: and 480 more problems"));
}

#[test]
fn many_problems_take_as_long_as_they_are_many() {
    // Each on a line of its own, and all on one.
    for separator in [",\n", ", "] {
        let text = |count: usize| GOOD.replace("\"198.51.100.0/24\"", &vec!["\"nowhere\""; count].join(separator));
        let time = |count| {
            let text = text(count);
            // Of this thread alone: other tests run beside it.
            let now = || {
                let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
                Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
            };
            let start = now();
            let Err(ConfigError::Invalid { problems, .. }) = parse(Path::new("x"), &text) else { panic!() };
            assert_eq!(problems.len(), count);
            now() - start
        };
        let few = (0..3).map(|_| time(500)).min().unwrap();
        let many = (0..3).map(|_| time(8000)).min().unwrap();
        assert!(many < few * 16 * 4, "sixteen times as many took {many:?}, not {few:?} each");
    }
}

#[test]
fn what_is_echoed_is_no_command_to_the_terminal() {
    let problems = problems_with("\"web\"", "\"\\u001b[2Jweb\\nbgctl.toml is valid\"");
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].contains("bad name \"\\u{1b}[2Jweb\\nbgctl.toml is valid\""), "{problems:?}");
}

#[test]
fn columns_count_characters() {
    let text = "[deployments.\"é\"]\nx = 1\n".replace('\n', "\r\n");
    assert!(
        problems(&text)[1].starts_with("bgctl.toml:2:1: deployment \"é\": unknown key \"x\""),
        "{:?}",
        problems(&text)
    );
    let problems = problems_with("blue  = [\"10.0.1.11:8443\", {", "blue = [\"é\", \"é\", {");
    assert!(problems[1].starts_with("bgctl.toml:12:14: "), "{problems:?}");
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bgctl.toml");
    let error = load(&path).unwrap_err();
    assert!(matches!(&error, ConfigError::Unreadable { path: p, .. } if *p == path), "{error}");
    std::fs::write(&path, b"[deployments]\n# gr\xfcn\n").unwrap();
    let error = load(&path).unwrap_err();
    assert_eq!(error.to_string(), format!("{}:2:5: not UTF-8, expected TOML", path.display()));
}

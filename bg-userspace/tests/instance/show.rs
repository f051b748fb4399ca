//! What runs, read back as a configuration: it applies back to nothing, whatever was applied and on top of what.

use std::{
    io::Write as _,
    net::{IpAddr, SocketAddr},
    path::Path,
    process::Stdio,
    time::Duration,
};

use bg_userspace::{
    AttachMode, Colour, Mode, Protocol, SwitchRequest,
    config::{
        BackendSpec, Config, Deployment, DivideBy, Encap, Failover, OnSwitch, Prefix, Service, StickyPrefix, Tee, parse,
    },
};
use proptest::{prelude::*, test_runner::TestRunner};

use crate::lab::Lab;

/// Text that a name may have: quotes, backslashes, dots, brackets and letters of any script, but no control characters.
const NAMES: &str = "[a-z0-9_-]{1,12}|[\\PC&&[^\u{2028}\u{2029}]]{1,12}|[\"\\\\'#.\\[\\]= ]{1,8}";

fn duration(least: Duration) -> impl Strategy<Value = Duration> {
    let year = 31_557_600_000_u64;
    let millis = prop_oneof![
        prop::sample::select(vec![1_000_u64, 60_000, 90_000, 7_200_000, 86_400_000, year]),
        1..200_000_u64,
        1..=year,
    ];
    // The maps keep no more than milliseconds.
    let micros = prop_oneof![3 => Just(0), 1 => 0..1000_u64];
    (millis, micros).prop_map(move |(millis, micros)| {
        let duration = Duration::from_millis(millis) + Duration::from_micros(micros);
        duration.clamp(least, Duration::from_millis(year))
    })
}

/// Addresses of one number differ from those of another one.
fn address(is_v6: bool, network: u8, number: u16, port: u16) -> SocketAddr {
    let [high, low] = number.to_be_bytes();
    let ip: IpAddr = if is_v6 {
        [0x2001, 0xdb8, network.into(), 0, 0, 0, 0, number].into()
    } else {
        [10, network, high, low].into()
    };
    SocketAddr::new(ip, port)
}

fn prefix() -> impl Strategy<Value = Prefix> {
    let v4 = (any::<u32>(), 0..=32_u8).prop_map(|(bits, len)| {
        let mask = u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
        Prefix { addr: IpAddr::V4((bits & mask).into()), len }
    });
    let v6 = (any::<u64>(), 0..=64_u8).prop_map(|(bits, len)| {
        let mask = u64::MAX.checked_shl(64 - u32::from(len)).unwrap_or(0);
        // 2000::/3, where no IPv4-mapped address is.
        let bits = (bits >> 3 | 1 << 61) & mask;
        Prefix { addr: IpAddr::V6((u128::from(bits) << 64).into()), len }
    });
    prop_oneof![v4, v6]
}

/// One colour's backends: their weights, one of them above zero, and ports.
fn weights() -> impl Strategy<Value = Vec<(u32, u16)>> {
    let weight = prop_oneof![3 => Just(1), 1 => Just(0), 1 => 2..10_u32, 1 => 10..=65_535_u32];
    prop::collection::vec((weight, 1..=u16::MAX), 1..5).prop_map(|mut weights| {
        weights[0].0 = weights[0].0.max(1);
        weights
    })
}

fn service() -> impl Strategy<Value = Service> {
    let tee = prop::option::of(any::<(bool, bool)>());
    let ends = (any::<(bool, bool)>(), any::<bool>(), any::<bool>(), tee, any::<Option<u16>>(), 1..=u16::MAX);
    (NAMES, ends, weights(), weights()).prop_map(
        |(name, ((is_v6, is_mirrored), is_udp, is_local, tee, preview, port), blue, green)| {
            let backends = |network, weights: Vec<(u32, u16)>| {
                let spec =
                    |(number, (weight, port))| BackendSpec { address: address(is_v6, network, number, port), weight };
                (1..).zip(weights).map(spec).collect()
            };
            Service {
                name,
                vip: address(is_v6, 1, 0, port),
                protocol: if is_udp { Protocol::Udp } else { Protocol::Tcp },
                mode: match (is_local, tee) {
                    (true, _) => Mode::Local,
                    (false, Some(_)) if !is_udp => Mode::Tee,
                    (false, _) => Mode::Nat,
                },
                preview: preview.map(|port| address(is_v6, 2, 0, port.max(1))),
                is_mirrored: is_udp && is_mirrored,
                // Which listeners, is not drawn.
                tee: tee.filter(|_| !is_local && !is_udp).map_or_else(Tee::default, |(proxy_protocol, compare)| Tee {
                    listen: Some([5, 6].map(|network| address(is_v6, network, 0, port))),
                    proxy_protocol,
                    compare,
                }),
                encap: Encap::default(),
                backends: [backends(3, blue), backends(4, green)],
                health: None,
                is_unchecked: false,
            }
        },
    )
}

fn deployment() -> impl Strategy<Value = Deployment> {
    let second = Duration::from_secs(1);
    let times = (prop::option::of(duration(Duration::from_millis(1))), duration(second), duration(second));
    let parts = (NAMES, any::<bool>(), any::<bool>(), times, (any::<bool>(), 1..=32_u8, 1..=128_u8));
    (parts, prop::collection::vec(prefix(), 0..5), prop::collection::vec(service(), 1..4)).prop_map(
        |(parts, testers, services)| {
            let (name, is_green, is_cut, times, (by_client, ipv4, ipv6)) = parts;
            let (drain_timeout, tcp_idle_timeout, udp_idle_timeout) = times;
            Deployment {
                name,
                initial: if is_green { Colour::Green } else { Colour::Blue },
                on_switch: if is_cut { OnSwitch::Cut } else { OnSwitch::Drain },
                drain_timeout,
                tcp_idle_timeout,
                udp_idle_timeout,
                sticky: DivideBy::ALL[usize::from(by_client)],
                sticky_prefix: StickyPrefix { ipv4, ipv6 },
                testers,
                health: None,
                failover: Failover::default(),
                gates: Vec::new(),
                services,
            }
        },
    )
}

/// Any configuration that is not refused: names and addresses are unique where they must be.
fn config() -> impl Strategy<Value = Config> {
    prop::collection::vec(deployment(), 0..5).prop_map(|mut deployments| {
        let mut number = 0;
        deployments.sort_by(|a, b| a.name.cmp(&b.name));
        deployments.dedup_by(|a, b| a.name == b.name);
        for deployment in &mut deployments {
            deployment.testers.sort_by_key(|prefix| (prefix.addr, prefix.len));
            deployment.testers.dedup();
            deployment.services.sort_by(|a, b| a.name.cmp(&b.name));
            deployment.services.dedup_by(|a, b| a.name == b.name);
            for service in &mut deployment.services {
                number += 1;
                let is_v6 = service.vip.is_ipv6();
                service.vip = address(is_v6, 1, number, service.vip.port());
                let number_of = |network| address(is_v6, network, number, 17_000);
                service.tee.listen = service.tee.listen.map(|_| [number_of(5), number_of(6)]);
                service.preview = service.preview.map(|preview| address(is_v6, 2, number, preview.port()));
            }
        }
        Config { deployments, ..Config::default() }
    })
}

fn cases(cases: u32) -> TestRunner {
    // A regression is kept as a test with a name, not as a file of seeds.
    TestRunner::new(ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() })
}

#[test]
fn a_configuration_is_written_as_it_is_read() {
    let result = cases(300).run(&config(), |config| {
        let text = config.to_toml();
        let read = parse(Path::new("written.toml"), &text);
        prop_assert_eq!(read.map_err(|error| TestCaseError::fail(format!("{error}\n{text}")))?, config);
        Ok(())
    });
    result.unwrap();
}

#[test]
fn what_runs_applies_back_to_nothing() {
    let lab = Lab::new();
    lab.attach("v0", AttachMode::Generic).unwrap();
    let instance = lab.instance();
    let result = cases(if std::env::var_os("BG_TEST_FULL").is_some() { 300 } else { 8 }).run(&config(), |config| {
        // On top of the case before: what is left of that must not show.
        instance.apply(&config).unwrap();
        let shown = instance.configuration().unwrap();
        let parsed = parse(Path::new("shown.toml"), &shown.to_toml())
            .map_err(|error| TestCaseError::fail(format!("{error}\n{}", shown.to_toml())))?;
        prop_assert_eq!(&parsed, &shown);
        let plan = instance.plan(&parsed).unwrap();
        prop_assert!(plan.is_empty(), "{plan}\nof\n{}", shown.to_toml());

        for wanted in &config.deployments {
            let found = shown.deployments.iter().find(|shown| shown.name == wanted.name).unwrap();
            prop_assert_eq!(found.services.len(), wanted.services.len());
            let millis = |time: Duration| time.as_millis();
            prop_assert_eq!(found.drain_timeout.map(millis), wanted.drain_timeout.map(millis));
            prop_assert_eq!(millis(found.tcp_idle_timeout), millis(wanted.tcp_idle_timeout));
            prop_assert_eq!(millis(found.udp_idle_timeout), millis(wanted.udp_idle_timeout));
        }
        prop_assert_eq!(shown.deployments.len(), config.deployments.len());
        Ok(())
    });
    result.unwrap();
}

#[test]
fn show_is_what_plan_and_apply_read_from_a_pipe() {
    let lab = Lab::new();
    lab.attach("v0", AttachMode::Generic).unwrap();
    let pipe = |words: &[&str], input: &str| {
        let mut command = lab.bgctl();
        let mut child =
            command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    let file = r#"[deployments.other]
testers = ["198.51.100.0/24"]
[[deployments.other.services]]
vip = "203.0.113.9:80"
protocol = "tcp"
mode = "nat"
blue = ["10.0.1.9:80"]
green = ["10.0.2.9:80"]
[deployments."shop \"1\""]
drain_timeout = "10m"
[[deployments."shop \"1\"".services]]
name = "web"
vip = "203.0.113.10:443"
protocol = "tcp"
mode = "nat"
blue = ["10.0.1.11:8443", { address = "10.0.1.12:8443", weight = 2 }]
green = ["10.0.2.11:8443"]
preview = "203.0.113.10:9443"
"#;
    let applied = pipe(&["apply", "-c", "-", "--reason", "from a pipe"], file);
    assert!(applied.status.success(), "{}", String::from_utf8_lossy(&applied.stderr));
    lab.instance().switch("shop \"1\"", &SwitchRequest::default()).unwrap();

    let shown = String::from_utf8(pipe(&["show"], "").stdout).unwrap();
    assert!(shown.contains(r#"drain_timeout = "10m""#) && shown.contains(r#"tcp_idle_timeout = "2h""#), "{shown}");
    assert!(shown.contains(r#"initial = "green""#), "the colour that is live: {shown}");
    let planned = pipe(&["plan", "-c", "-"], &shown);
    assert_eq!(planned.status.code(), Some(0), "{}", String::from_utf8_lossy(&planned.stdout));
    let planned = pipe(&["plan", "-c", "-"], &shown.replace("weight = 2", "weight = 3"));
    assert_eq!(planned.status.code(), Some(5));
    let json: serde_json::Value = serde_json::from_slice(&pipe(&["show", "--json"], "").stdout).unwrap();
    assert_eq!(json["deployments"]["shop \"1\""]["services"][0]["vip"], "203.0.113.10:443");

    let history: serde_json::Value = serde_json::from_slice(&pipe(&["history", "--json"], "").stdout).unwrap();
    let records = history["records"].as_array().unwrap().iter();
    let reasons: Vec<_> =
        records.filter(|record| record["action"] == "apply").map(|record| &record["reason"]).collect();
    assert_eq!(reasons, ["from a pipe", "from a pipe"]);
}

//! What was written is read as the same.

use std::{num::NonZeroU32, path::Path, time::Duration};

use proptest::prelude::*;

use super::{super::GOOD, config};
use crate::config::{model::*, parse};

fn time() -> impl Strategy<Value = Duration> {
    (10..86_400_000_u64).prop_map(Duration::from_millis)
}

/// Any text that may stand on a line: quotes, backslashes and letters of all alphabets.
fn line() -> impl Strategy<Value = String> {
    "[^\\p{C}\\s]{1,12}"
}

fn command() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec("[^\\x00]{1,9}", 1..4)
}

fn statuses() -> impl Strategy<Value = StatusRanges> {
    prop::sample::select(vec!["200", "200-299", "100-599,204", "404,200-201"])
        .prop_map(|text| StatusRanges::parse(text).unwrap())
}

fn health() -> impl Strategy<Value = HealthCheck> {
    let path = "[!-~&&[^\"<>#`]]{0,9}";
    let http = (path, prop::option::of("[a-z.]{1,9}"), statuses(), prop::option::of("[a-z\"^ ]{0,9}"), any::<bool>())
        .prop_map(|(path, host, expect_status, expect_body, tls)| {
            CheckKind::Http(HttpCheck { path: format!("/{path}"), host, expect_status, expect_body, tls })
        });
    let kind = prop_oneof![
        Just(CheckKind::Tcp),
        http,
        (".{0,9}", any::<bool>()).prop_map(|(service, tls)| CheckKind::Grpc { service, tls }),
        command().prop_map(|command| CheckKind::Exec { command }),
    ];
    let numbers = (prop::option::of(1..=u16::MAX), 1..=1000_u32, 1..=1000_u32, any::<bool>());
    (kind, numbers, (time(), time()), prop::option::of(time())).prop_map(
        |(kind, (port, rise, fall, refuse), (a, b), slow_start)| HealthCheck {
            kind,
            port,
            interval: a.max(b),
            timeout: a.min(b),
            rise,
            fall,
            all_down: AllDown::ALL[usize::from(refuse)],
            slow_start,
        },
    )
}

fn gate() -> impl Strategy<Value = Gate> {
    let bound = || prop::option::of(any::<f64>().prop_filter_map("not finite", Bound::new));
    let kind = prop_oneof![
        command().prop_map(|command| GateKind::Exec { command }),
        (line(), prop::option::of(statuses()))
            .prop_map(|(path, expect_status)| GateKind::Http { url: format!("https://a/{path}"), expect_status }),
        (line(), bound(), bound()).prop_filter_map("no values", |(query, max, min)| {
            let passes = max.or(min).is_some() && max.zip(min).is_none_or(|(max, min)| min <= max);
            passes.then(|| GateKind::Prometheus { url: "http://[::1]:9090".to_owned(), query, max, min })
        }),
    ];
    (any::<bool>(), kind, time(), time()).prop_map(|(after, kind, interval, timeout)| Gate {
        when: When::ALL[usize::from(after)],
        kind,
        interval,
        timeout,
    })
}

fn serve() -> impl Strategy<Value = Serve> {
    let tls = (line(), line(), prop::option::of(line())).prop_map(|(certificate, key, client_ca)| Tls {
        certificate: certificate.into(),
        key: key.into(),
        client_ca: client_ca.map(Into::into),
    });
    let listen = prop::option::of(any::<([u8; 4], bool)>());
    (line(), prop::option::of(line()), listen, tls, prop::option::of(line())).prop_map(
        |(socket, socket_group, listen, tls, tokens)| Serve {
            socket: socket.into(),
            socket_group,
            tls: listen.is_none_or(|(_, is_loopback)| !is_loopback).then_some(tls),
            listen: listen
                .map(|(ip, is_loopback)| if is_loopback { ([127, 0, 0, 1], 1).into() } else { (ip, 7470).into() }),
            tokens: tokens.map(Into::into),
        },
    )
}

fn failover(is_checked: bool) -> impl Strategy<Value = Failover> {
    let enough = prop_oneof![
        (1..=100_u8).prop_map(MinHealthy::Percent),
        (1..=65_535_u32).prop_map(|count| MinHealthy::Count(NonZeroU32::new(count).unwrap())),
    ];
    (any::<bool>(), enough, 1..100_000_u64).prop_map(move |(to_idle, min_healthy, seconds)| Failover {
        to_idle: to_idle && is_checked,
        min_healthy,
        hold_off: Duration::from_secs(seconds),
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read_again(
        serve in prop::option::of(serve()),
        events in prop::sample::subsequence(NotifyEvent::ALL.to_vec(), 1..=NotifyEvent::ALL.len()),
        hook in line(),
        health in prop::option::of(health()),
        own in prop::option::of(health()),
        is_unchecked in any::<bool>(),
        checked in failover(true),
        unchecked in failover(false),
        gates in prop::collection::vec(gate(), 0..4),
    ) {
        let mut config = config(GOOD);
        config.serve = serve;
        config.notify = vec![Notify { url: format!("https://hooks/{hook}"), events }];
        let shop = &mut config.deployments[0];
        shop.failover = if health.is_some() || own.is_some() { checked } else { unchecked };
        shop.services[0].is_unchecked = is_unchecked && own.is_none();
        shop.services[1].is_unchecked = true;
        (shop.health, shop.services[0].health, shop.gates) = (health, own, gates);
        let text = config.to_toml();
        prop_assert_eq!(parse(Path::new("x"), &text).map_err(|error| TestCaseError::fail(format!("{error}\n{text}")))?, config);
    }
}

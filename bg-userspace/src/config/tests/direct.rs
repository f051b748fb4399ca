//! Services whose backends reply to clients directly.

use super::*;
use crate::config::{Encap, Prefix};

/// [`GOOD`], whose first service has this mode and these lines.
fn with(mode: &str, lines: &str) -> String {
    let text = GOOD.replace(":8443", ":443").replace("mode = \"nat\"", &format!("mode = \"{mode}\"\n{lines}"));
    text.replace(":9443\"", ":443\"").replace("203.0.113.10:443\"\n\n", "203.0.113.11:443\"\n\n")
}

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

#[test]
fn their_settings_are_understood_and_written() {
    for (mode, lines, encap) in [
        ("l2dsr", "", Encap::default()),
        (
            "ipip",
            "outer_source = [\"10.9.0.0/24\"]",
            Encap { outer_source: [Some(prefix("10.9.0.0/24")), None], ..Encap::default() },
        ),
        (
            "gue",
            "gue_port = 5555\nouter_source = [\"2001:db8:9::/64\", \"10.9.0.1\"]",
            Encap { gue_port: 5555, outer_source: [Some(prefix("10.9.0.1/32")), Some(prefix("2001:db8:9::/64"))] },
        ),
    ] {
        let config = parse(Path::new("bgctl.toml"), &with(mode, lines)).unwrap();
        let web = &config.deployments[0].services[0];
        assert!(web.mode.is_direct());
        assert_eq!(web.encap, encap);
        assert_eq!(parse(Path::new("again"), &config.to_toml()).unwrap(), config, "{}", config.to_toml());
    }
}

#[test]
fn backends_may_be_of_the_other_family_where_packets_are_encapsulated() {
    let other = |mode| with(mode, "").replace("\"10.0.2.11:443\"", "\"[2001:db8::21]:443\"");
    assert_eq!(problems(&other("ipip")), [""; 0]);
    assert_eq!(problems(&other("gue")), [""; 0]);
    let refused = problems(&other("l2dsr"));
    assert!(refused.len() == 1 && refused[0].contains("of different families"), "{refused:?}");
}

#[test]
fn what_makes_no_sense_is_refused() {
    for (mode, lines, problem) in [
        ("nat", "gue_port = 5555", "\"gue_port\" in another mode than \"gue\""),
        ("ipip", "gue_port = 5555", "\"gue_port\" in another mode than \"gue\""),
        ("l2dsr", "outer_source = []", "\"outer_source\" in another mode than \"ipip\" or \"gue\""),
        ("gue", "gue_port = 0", "gue_port 0 is out of range, expected 1 to 65535"),
        ("gue", "outer_source = [\"10.9.0.1/24\"]", "expected zeros after the prefix"),
        ("ipip", "outer_source = [\"0.0.0.0/0\"]", "expected addresses that a host can send from"),
        ("gue", "outer_source = [\"10.0.0.0/8\", \"10.9.0.1\"]", "expected one prefix of each family at most"),
    ] {
        let found = problems(&with(mode, lines));
        assert!(found.len() == 1 && found[0].contains(problem), "{found:?}");
    }
    let port = problems(&with("ipip", "").replace("\"10.0.2.11:443\"", "\"10.0.2.11:8443\""));
    assert!(
        port.len() == 1
            && port[0].contains("backend 10.0.2.11:8443 in mode \"ipip\"")
            && port[0].contains("expected port 443"),
        "{port:?}"
    );
    let udp = GOOD.replace("mode = \"local\"", "mode = \"l2dsr\"\nmirror = \"idle\"");
    let mirror = problems(&udp);
    assert!(mirror.len() == 1 && mirror[0].contains("clients would get the answers of both colours"), "{mirror:?}");
}

#[test]
fn a_backend_of_many_services_is_nothing_to_note() {
    let text = with("ipip", "").replace("10.0.2.12", "10.0.2.11");
    let again = text.replace("203.0.113.1", "203.0.113.2").replace("db8::10", "db8::20").replace(".shop", ".other");
    let notes =
        |text: &str| crate::config::shared_backends(&crate::config::parse("test".as_ref(), text).unwrap()).len();
    let both = format!("{text}{again}");
    let nat = both.replace("mode = \"ipip\"", "mode = \"nat\"");
    assert!(notes(&nat) > notes(&both), "{} {}", notes(&nat), notes(&both));
}

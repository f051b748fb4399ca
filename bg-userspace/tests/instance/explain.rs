//! `bgctl explain`: what it says in the main cases, and that it leaves no trace.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use aya::maps::{HashMap, Map, MapData};
use bg_common::{ServiceKey, ServiceRow};
use bg_userspace::{
    AttachMode, AttachOptions, ExplainRequest, Explanation, FlowFilter, FreezeRequest, Protocol, SwitchRequest, attach,
    config,
};

use crate::{flows::send_to, lab::Lab};

const CLIENT: &str = "198.51.100.7:40000";
const TESTER: &str = "198.51.100.200:40000";
const VIP: &str = "203.0.113.10:443";
const PREVIEW: &str = "203.0.113.10:9443";
const BACKEND: &str = "10.0.1.11:8443";
const RESOLVER: &str = "10.0.1.11:53";

pub(crate) const CONFIG: &str = r#"
[deployments.other]
initial = "green"
[[deployments.other.services]]
vip = "203.0.113.9:443"
protocol = "tcp"
mode = "nat"
blue = ["10.0.1.21:8443"]
green = ["10.0.2.21:8443"]
[[deployments.other.services]]
vip = "[2001:db8::9]:443"
protocol = "tcp"
mode = "nat"
blue = ["[fd00:1::21]:8443"]
green = ["[fd00:2::21]:8443"]
[deployments.shop]
initial = "blue"
testers = ["198.51.100.128/25"]
[[deployments.shop.services]]
name = "web"
vip = "203.0.113.10:443"
protocol = "tcp"
mode = "nat"
preview = "203.0.113.10:9443"
blue = ["10.0.1.11:8443"]
green = ["10.0.2.11:8443"]
[[deployments.shop.services]]
name = "dns"
vip = "203.0.113.10:443"
protocol = "udp"
mode = "nat"
blue = ["10.0.1.11:53"]
green = ["10.0.2.11:53"]
[[deployments.shop.services]]
name = "web6"
vip = "[2001:db8::10]:443"
protocol = "tcp"
mode = "nat"
blue = ["[fd00:1::11]:8443"]
green = ["[fd00:2::11]:8443"]
"#;

fn edge(mode: AttachMode) -> Lab {
    edge_with(mode, CONFIG)
}

/// An edge between clients and backends: v0 faces both.
pub(crate) fn edge_with(mode: AttachMode, config: &str) -> Lab {
    let lab = Lab::new();
    for address in ["192.0.2.1/24", "10.0.1.1/24", "10.0.2.1/24"] {
        lab.ip(&format!("address add {address} dev v0"));
    }
    lab.ip("address add fd00:1::1/64 dev v0 nodad");
    lab.ip("link set v0 address 02:00:00:00:00:01");
    lab.ip("route add 198.51.100.0/24 via 192.0.2.2");
    lab.ip("route add 2001:db8:1::/48 via fd00:1::2");
    for (address, mac) in [("192.0.2.2", "07"), ("10.0.1.11", "11"), ("10.0.2.11", "12"), ("fd00:1::11", "61")] {
        lab.ip(&format!("neigh replace {address} lladdr 02:00:00:00:00:{mac} dev v0 nud permanent"));
    }
    for family in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        std::fs::write(format!("/proc/sys/net/{family}"), "1").unwrap();
    }
    // Small maps, which are quickly read.
    let options =
        AttachOptions { mode, flows: Some(1000), services: Some(16), backends: Some(64), ..AttachOptions::default() };
    attach(&lab.paths, &["v0".to_owned()], &options).unwrap();
    let file = lab.file("bgctl.toml", config);
    lab.instance().apply(&config::load(&file).unwrap()).unwrap();
    lab
}

fn request(from: &str, to: &str, protocol: Protocol) -> ExplainRequest {
    let at = |text: &str| -> SocketAddr { text.parse().unwrap() };
    ExplainRequest { from: at(from), to: at(to), protocol, flags: None, interface: None }
}

/// The names of the steps at the last program.
fn steps(explanation: &Explanation) -> Vec<&str> {
    explanation.hooks.last().unwrap().steps.iter().map(|step| step.step).collect()
}

fn said(lab: &Lab, words: &[&str]) -> String {
    let (code, text, stderr) = lab.run(&[&["explain"], words].concat());
    assert_eq!((code, stderr.as_str()), (0, ""));
    text
}

#[test]
fn a_new_connection_a_tester_and_the_preview_are_told_in_words() {
    let lab = edge(AttachMode::Tc);
    assert_eq!(
        said(&lab, &["--from", CLIENT, "--to", VIP, "--protocol", "tcp"]),
        "\
tcp SYN from 198.51.100.7:40000 to 203.0.113.10:443
tc ingress on v0:
  203.0.113.10:443/tcp is the virtual address of service web of deployment shop
  no flow from 198.51.100.7:40000 is in the table
  blue is live (generation 1): all new flows of shop go to blue
  backend 10.0.1.11:8443 of blue, by entry 0 of 1 of the Maglev table
  a new flow is opened
  the kernel's route leads out by v0 to 02:00:00:00:00:11
  rewritten, and sent out by v0 through the kernel's neighbour table
afterwards: from 198.51.100.7:40000 to 10.0.1.11:8443, TTL 63
"
    );
    let tester = said(&lab, &["--from", TESTER, "--to", VIP, "--protocol", "tcp"]);
    let line = "\n  198.51.100.200 is a tester: the flow goes to the idle colour of shop, green (blue is live, generation 1)\n";
    assert!(tester.contains(line), "{tester}");
    let preview = said(&lab, &["--from", CLIENT, "--to", PREVIEW, "--protocol", "tcp"]);
    let line = "\n  preview address: the flow goes to the idle colour of shop, green (blue is live, generation 1)\n";
    assert!(preview.contains(line), "{preview}");
    let datagram = said(&lab, &["--from", CLIENT, "--to", VIP, "--protocol", "udp"]);
    assert!(datagram.contains("service dns of deployment shop\n") && datagram.contains("to 10.0.1.11:53, TTL 63\n"));
    let foreign = said(&lab, &["--from", CLIENT, "--to", "203.0.113.99:443", "--protocol", "tcp"]);
    assert!(foreign.ends_with("/tcp is no virtual address\n  left unmodified to the host\n"), "{foreign}");
    let ipv6 = said(&lab, &["--from", "[2001:db8:1::7]:40000", "--to", "[2001:db8::10]:443", "--protocol", "tcp"]);
    assert!(ipv6.ends_with("to [fd00:1::11]:8443, TTL 63\n"), "{ipv6}");
    lab.instance().switch("shop", &SwitchRequest::default()).unwrap();
    let switched = said(&lab, &["--from", CLIENT, "--to", VIP, "--protocol", "tcp"]);
    let line = "\n  green is live (generation 2, draining): all new flows of shop go to green\n";
    assert!(switched.contains(line), "{switched}");
    assert!(switched.ends_with("to 10.0.2.11:8443, TTL 63\n"), "{switched}");
}

#[test]
fn flags_of_a_datagram_are_said_to_have_no_effect() {
    let lab = edge(AttachMode::Tc);
    let words = ["--from", CLIENT, "--to", VIP, "--protocol", "udp"];
    let plain = said(&lab, &words);
    let (code, text, stderr) = lab.run(&[&["explain"], &words[..], &["--flags", "SYN"]].concat());
    assert_eq!((code, text), (0, plain));
    assert!(stderr.contains("--flags has no effect"), "{stderr}");
}

#[test]
fn json_has_the_steps_with_their_values() {
    let lab = edge(AttachMode::Tc);
    let text = said(&lab, &["--from", CLIENT, "--to", VIP, "--protocol", "tcp", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (&json["verdict"], &json["interface"], &json["flags"]),
        (&"resolve".into(), &"v0".into(), &"SYN".into())
    );
    assert_eq!(json["packet"]["destination"], "10.0.1.11:8443");
    assert_eq!(json["packet"]["destination_mac"], "02:00:00:00:00:11");
    let step = |name: &str| {
        let steps = json["hooks"][0]["steps"].as_array().unwrap();
        steps.iter().find(|step| step["step"] == name).unwrap_or_else(|| panic!("{name} is not in {json}"))["values"]
            .clone()
    };
    assert_eq!(step("vip"), serde_json::json!({"address": VIP, "role": "vip", "service": "web", "deployment": "shop"}));
    assert_eq!(step("live")["generation"], 1);
    assert_eq!(step("backend"), serde_json::json!({"backend": BACKEND, "colour": "blue", "entry": 0, "entries": 1}));
}

/// Where no flow is open, the words for it; then the words for a flow that stays, and for its reply.
#[test]
fn an_open_flow_and_its_reply_are_explained_in_each_mode() {
    for mode in [AttachMode::Tc, AttachMode::Native, AttachMode::Generic] {
        std::thread::spawn(move || {
            let lab = edge(mode);
            let explain = |from, to| lab.instance().explain(&request(from, to, Protocol::Udp)).unwrap();
            assert_eq!(steps(&explain(RESOLVER, CLIENT))[..3], ["no_vip", "from_backend", "no_reply"]);
            open(&lab);
            let opened = explain(CLIENT, VIP);
            assert!(steps(&opened).starts_with(&["vip", "flow", "continues"]), "{opened:?}");
            assert_eq!(opened.packet.destination, RESOLVER.parse().unwrap());
            let reply = explain(RESOLVER, CLIENT);
            assert!(steps(&reply).starts_with(&["no_vip", "from_backend", "flow"]), "{reply:?}");
            assert_eq!(reply.packet.source, VIP.parse().unwrap(), "{reply:?}");
            let hooks: Vec<_> = reply.hooks.iter().map(|at| at.hook).collect();
            let expected: &[&str] = if mode == AttachMode::Tc { &["tc ingress"] } else { &["xdp", "tc ingress"] };
            assert_eq!(hooks, expected);
            assert_eq!((reply.verdict, reply.interface.as_deref()), ("resolve", Some("v0")));
            // A cut ends it.
            let request = SwitchRequest { on_switch: Some(config::OnSwitch::Cut), ..SwitchRequest::default() };
            lab.instance().switch("shop", &request).unwrap();
            let moved = explain(CLIENT, VIP);
            assert!(steps(&moved).starts_with(&["vip", "flow", "ended_by_switch", "live", "backend"]), "{moved:?}");
            assert_eq!(moved.packet.destination, "10.0.2.11:53".parse().unwrap());
            let late = explain(RESOLVER, CLIENT);
            assert_eq!((late.verdict, steps(&late).contains(&"counted")), ("drop", true), "{late:?}");
        })
        .join()
        .unwrap();
    }
}

/// Opens a flow of [`CLIENT`] by a datagram to [`VIP`].
fn open(lab: &Lab) {
    send_to(lab, [198, 51, 100, 7], 40000, [203, 0, 113, 10]);
}

/// All maps, byte by byte.
fn bytes(lab: &Lab) -> BTreeMap<String, Vec<u8>> {
    let files = std::fs::read_dir(lab.paths.map("")).unwrap();
    bytes_of(lab, files.map(|file| file.unwrap().file_name().into_string().unwrap()))
}

/// The maps of live words and of queues.
fn words(lab: &Lab) -> BTreeMap<String, Vec<u8>> {
    bytes_of(lab, ["live", "terms", "timing", "holds", "deployments"].map(str::to_owned))
}

fn bytes_of(lab: &Lab, names: impl IntoIterator<Item = String>) -> BTreeMap<String, Vec<u8>> {
    let mut maps = BTreeMap::new();
    for name in names {
        let map = MapData::from_pin(lab.paths.map(&name)).unwrap();
        let output = std::process::Command::new("bpftool")
            .args(["map", "dump", "id", &map.info().unwrap().id().to_string(), "-j"])
            .output()
            .unwrap();
        maps.insert(name, output.stdout);
    }
    maps
}

#[test]
fn nothing_changes_not_even_a_next_hop_a_drain_or_a_counter() {
    for mode in [AttachMode::Tc, AttachMode::Native] {
        std::thread::spawn(move || {
            let lab = edge(mode);
            open(&lab);
            lab.instance().switch("shop", &SwitchRequest::default()).unwrap();
            let flows = || lab.instance().flows(&FlowFilter::default()).unwrap().len();
            let (count, before) = (flows(), bytes(&lab));
            assert!(before.len() > 20 && before.values().all(|map| !map.is_empty()), "{:?}", before.keys());
            for (from, to, protocol) in [
                (CLIENT, VIP, Protocol::Udp),
                (RESOLVER, CLIENT, Protocol::Udp),
                ("198.51.100.8:5000", VIP, Protocol::Udp),
                (CLIENT, VIP, Protocol::Tcp),
                (BACKEND, CLIENT, Protocol::Tcp),
                (TESTER, VIP, Protocol::Tcp),
                (CLIENT, PREVIEW, Protocol::Tcp),
                ("[2001:db8:1::7]:40000", "[2001:db8::10]:443", Protocol::Tcp),
                ("[fd00:1::11]:8443", "[2001:db8:1::7]:40000", Protocol::Tcp),
            ] {
                lab.instance().explain(&request(from, to, protocol)).unwrap();
            }
            for (name, after) in bytes(&lab) {
                assert!(before[&name] == after, "{name} has changed");
            }
            assert_eq!(flows(), count);
        })
        .join()
        .unwrap();
    }
}

#[test]
fn what_cannot_be_explained_is_a_usage_error() {
    let lab = edge(AttachMode::Tc);
    let run = |words: &[&str]| lab.run(&[&["explain", "--protocol", "tcp"], words].concat());
    let (code, _, stderr) = run(&["--from", CLIENT, "--to", VIP, "--iface", "v1"]);
    assert_eq!((code, stderr.trim()), (2, "bgctl: v1 is not attached; attached: v0"));
    let (code, _, stderr) = run(&["--from", "192.0.3.1:1", "--to", VIP]);
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains("this host has no route to 192.0.3.1"), "{stderr}");
    let (code, _, stderr) = run(&["--from", "[2001:db8:1::7]:40000", "--to", VIP]);
    assert_eq!(code, 2, "{stderr}");
    let (code, _, stderr) = run(&["--from", CLIENT, "--to", VIP, "--flags", "SIN"]);
    assert_eq!(code, 2, "{stderr}");
}

#[test]
fn a_frozen_deployment_holds_what_opens_a_flow_and_nothing_else() {
    for (mode, hooks) in [(AttachMode::Tc, &["tc ingress"][..]), (AttachMode::Native, &["xdp", "tc ingress"])] {
        std::thread::spawn(move || {
            let lab = edge(mode);
            open(&lab);
            let hour = Some(Duration::from_secs(3600));
            let freeze =
                |drop| lab.instance().freeze("shop", &FreezeRequest { max: hour, drop, reason: None }).unwrap();
            let explain = |from, to, protocol| lab.instance().explain(&request(from, to, protocol)).unwrap();
            freeze(false);
            let before = words(&lab);
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let held = explain("198.51.100.9:5000", VIP, protocol);
                assert_eq!(held.hooks.iter().map(|at| at.hook).collect::<Vec<_>>(), hooks);
                assert!(steps(&held).contains(&"waits") && held.verdict == "hold", "{held:?}");
                let told = &held.hooks.last().unwrap().steps;
                assert_eq!(told[told.len() - 1].text, "held: it goes on at the thaw");
            }
            // An open flow, a tester, the preview and another deployment.
            for (from, to, protocol) in [
                (CLIENT, VIP, Protocol::Udp),
                (TESTER, VIP, Protocol::Tcp),
                (CLIENT, PREVIEW, Protocol::Tcp),
                (CLIENT, "203.0.113.9:443", Protocol::Tcp),
            ] {
                let explained = explain(from, to, protocol);
                assert!(!steps(&explained).contains(&"waits"), "{explained:?}");
                assert_eq!(explained.verdict, "resolve");
            }
            assert!(before == words(&lab), "nothing has changed");
            freeze(true);
            let dropped = explain(CLIENT, VIP, Protocol::Tcp);
            let counted = dropped.hooks.last().unwrap().steps.iter().find(|step| step.step == "counted").unwrap();
            assert_eq!((dropped.verdict, counted.text.as_str()), ("drop", "counted as frozen"), "{dropped:?}");
            lab.instance().thaw("shop", None).unwrap();
            assert_eq!(explain(CLIENT, VIP, Protocol::Tcp).verdict, "resolve");
        })
        .join()
        .unwrap();
    }
}

#[test]
fn a_tester_is_refused_while_the_idle_colour_has_no_backend() {
    let lab = edge(AttachMode::Native);
    let pin = MapData::from_pin(lab.paths.map("services")).unwrap();
    let mut services: HashMap<MapData, ServiceKey, ServiceRow> = Map::from_map_data(pin).unwrap().try_into().unwrap();
    let rows: Vec<_> = services.iter().collect::<Result<_, _>>().unwrap();
    for (key, mut row) in rows.into_iter().filter(|(_, row)| row.deployment == 1) {
        row.tables[1].len = 0;
        services.insert(key, row, 0).unwrap();
    }
    let explain = |from, protocol| lab.instance().explain(&request(from, VIP, protocol)).unwrap();
    let refused = explain(TESTER, Protocol::Tcp);
    assert_eq!((refused.verdict, refused.hooks.len()), ("refuse", 2), "{refused:?}");
    let last: Vec<_> = refused.hooks[1].steps.iter().rev().take(2).map(|step| step.text.as_str()).collect();
    assert_eq!(last, ["answered with a reset: no backend gets it", "counted as idle_not_ready"]);
    // The reset, on its way back.
    assert_eq!((refused.packet.source, refused.packet.destination), (VIP.parse().unwrap(), TESTER.parse().unwrap()));
    let unreachable = explain(TESTER, Protocol::Udp);
    let last = unreachable.hooks.last().and_then(|hook| hook.steps.last()).map(|step| step.text.as_str());
    let said = "answered with an ICMP error, port unreachable: no backend gets it";
    assert_eq!((unreachable.verdict, last), ("refuse", Some(said)), "{unreachable:?}");
    assert_eq!(explain(CLIENT, Protocol::Tcp).verdict, "resolve");
}

#[test]
fn a_word_that_changes_by_itself_is_explained_as_it_is_at_that_moment() {
    let lab = edge(AttachMode::Tc);
    let soon = Duration::from_millis(700);
    let settled = |explanation: &Explanation| {
        let steps = &explanation.hooks[0].steps;
        steps.iter().find(|step| step.step == "settled").map(|step| step.text.clone()).unwrap_or_default()
    };
    let explain = || lab.instance().explain(&request(CLIENT, VIP, Protocol::Tcp)).unwrap();
    let at = jiff::Timestamp::now() + soon;
    lab.instance().switch("shop", &SwitchRequest { at: Some(at), ..SwitchRequest::default() }).unwrap();
    let armed = explain();
    if jiff::Timestamp::now() < at {
        assert_eq!(settled(&armed), "generation 2 of shop is armed, but does not fully apply yet");
        assert_eq!(armed.packet.destination, BACKEND.parse().unwrap());
    }
    std::thread::sleep(soon);
    let before = words(&lab);
    let due = explain();
    assert_eq!(settled(&due), "generation 2 of shop takes effect now");
    assert_eq!(due.packet.destination, "10.0.2.11:8443".parse().unwrap());
    assert!(before == words(&lab), "it is left to others to make that explicit");

    let request = SwitchRequest { confirm_within: Some(soon), ..SwitchRequest::default() };
    let deadline = lab.instance().switch("shop", &request).unwrap().confirm_deadline.unwrap();
    let guarded = explain();
    if jiff::Timestamp::now() < deadline {
        assert_eq!(settled(&guarded), "generation 3 of shop applies, and is not confirmed yet");
        assert_eq!(guarded.packet.destination, BACKEND.parse().unwrap());
    }
    std::thread::sleep(soon + Duration::from_millis(10));
    let back = explain();
    let told = settled(&back);
    let (begin, end) = ("generation 3 of shop was not confirmed in time", ": generation 4 takes it back");
    assert!(told.starts_with(begin) && told.ends_with(end), "{told}");
    assert_eq!(back.packet.destination, "10.0.2.11:8443".parse().unwrap());
}

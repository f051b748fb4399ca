//! What a dry run says, beside what the switch then does; and that it changes nothing.

use std::{
    collections::{BTreeMap, HashSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::{AsFd as _, AsRawFd as _},
    time::Duration,
};

use aya::maps::{HashMap as BpfHashMap, Map, MapData};
use bg_common::{Backend, Be16, Clock, Flow, FlowBackend, FlowKey4, FlowState, ServiceKey, ServiceRow, TICK_SHIFT};
use bg_userspace::{
    AttachMode, Colour, Fates, FlowFilter, FlowStatus, FreezeWindow, SplitRequest, SwitchRequest, Target, Would,
    config::{DivideBy, OnSwitch, parse},
    detach,
};
use memmap2::MmapOptions;
use serde_json::{Value, json};

use crate::{
    flow_map::{FlowMap, array},
    lab::Lab,
    state::{live, running},
};

pub(crate) const CONFIG: &str = r#"
[[deployments.mail.services]]
name = "web"
vip = "203.0.113.9:443"
protocol = "tcp"
mode = "nat"
blue = ["10.9.1.9:443"]
green = ["10.9.2.9:443"]
[deployments.shop]
drain_timeout = "10m"
[[deployments.shop.services]]
name = "web"
vip = "203.0.113.10:443"
protocol = "tcp"
mode = "nat"
blue = ["10.9.1.10:443"]
green = ["10.9.2.10:443"]
[[deployments.shop.services]]
name = "dns"
vip = "203.0.113.10:53"
protocol = "udp"
mode = "nat"
blue = ["10.9.1.10:53"]
green = ["10.9.2.10:53"]
"#;

fn applied(config: &str) -> Lab {
    let lab = Lab::new();
    lab.attach("v0", AttachMode::Native).unwrap();
    lab.instance().apply(&parse("test.toml".as_ref(), config).unwrap()).unwrap();
    lab
}

/// Everything that the data path and commands keep: the words of mapped maps, counters, and the files of the state directory.
pub(crate) fn everything(lab: &Lab) -> (BTreeMap<String, Vec<u8>>, String) {
    let mut everything = BTreeMap::new();
    for name in ["live", "terms", "deployments", "flows4", "flows6", "vips", "backends", "maglev"] {
        let map = MapData::from_pin(lab.paths.map(name)).unwrap();
        let info = map.info().unwrap();
        let length = info.max_entries() as usize * info.value_size().next_multiple_of(8) as usize;
        // SAFETY: nobody writes to the map or truncates it while it is copied.
        let mapped = unsafe { MmapOptions::new().len(length).map(map.fd().as_fd().as_raw_fd()) }.unwrap();
        everything.insert(name.to_owned(), mapped.to_vec());
    }
    for directory in [&lab.paths.state_dir, &lab.paths.pin_root] {
        for entry in std::fs::read_dir(directory).unwrap().map(Result::unwrap) {
            let content = std::fs::read(entry.path()).unwrap_or_default();
            everything.insert(entry.path().display().to_string(), content);
        }
    }
    (everything, serde_json::to_string(&lab.instance().status(None).unwrap()).unwrap())
}

const CONFIRMED: u32 = FlowState::CONFIRMED;
/// States of flows, and what becomes of a connection with such a state that a switch ends: whether it counts, and whether it moves.
const STATES: [(u32, bool, bool); 6] = [
    (0, true, true),
    (FlowState::ANSWERED, true, false),
    (CONFIRMED, true, false),
    (CONFIRMED | FlowState::ANSWERED, true, false),
    (CONFIRMED | FlowState::CLIENT_FIN, true, false),
    (CONFIRMED | FlowState::BACKEND_RESET, false, false),
];

/// Opens flows to every backend, from nine clients: as users' in each of [`STATES`] and in each of these generations, and one of a tester.
fn open_flows(lab: &Lab, generations: std::ops::RangeInclusive<u32>) {
    lab.instance().status(None).unwrap();
    // Reading the status has read the clock.
    let clock: Clock = array(lab, "clock").get(&0, 0).unwrap();
    let now = (clock.jiffies >> TICK_SHIFT) as u32;
    let (map, backends) = (FlowMap::open(lab), array::<Backend>(lab, "backends"));
    let used = (0..16).map(|slot| (slot, backends.get(&slot, 0).unwrap())).filter(|(_, row)| row.identity.in_use == 1);
    let testers = [(FlowState::IDLE_ONLY | CONFIRMED, 1)];
    let users = STATES.iter().flat_map(|(state, ..)| generations.clone().map(|generation| (*state, generation)));
    let sorts: Vec<_> = users.chain(testers).collect();
    for (number, ((slot, backend), (state, generation))) in
        used.flat_map(|backend| sorts.iter().map(move |sort| (backend, *sort))).enumerate()
    {
        let client = u32::from_ne_bytes([192, 0, 2, (number % 9) as u8]);
        let key = FlowKey4 { client, port: Be16::new(5000 + number as u16), vip: 2 * backend.service };
        let (state, backend) = (FlowState(state), FlowBackend::new(slot, backend.identity.epoch));
        map.insert(&key, &Flow { state, backend, generation, last_seen: now, ..Flow::default() }, now);
    }
}

#[test]
fn a_dry_run_counts_what_the_switch_then_does_and_changes_nothing() {
    for (nth, on_switch) in [OnSwitch::Cut, OnSwitch::Drain, OnSwitch::Drain, OnSwitch::Cut].into_iter().enumerate() {
        let lab = applied(CONFIG);
        let instance = lab.instance();
        // Each time another history: flows that a cut has ended, flows that drain.
        for earlier in 0..nth {
            let on_switch = Some(if earlier % 2 == 0 { OnSwitch::Cut } else { OnSwitch::Drain });
            instance.switch("shop", &SwitchRequest { on_switch, ..SwitchRequest::default() }).unwrap();
        }
        open_flows(&lab, 1..=nth as u32 + 1);
        let all = FlowFilter::default();
        let shop = FlowFilter { deployment: Some("shop".into()), ..FlowFilter::default() };
        let (before, open) = (everything(&lab), instance.flows(&shop).unwrap());
        let request = SwitchRequest { on_switch: Some(on_switch), ..SwitchRequest::default() };
        let said = instance.dry_run("shop", &request).unwrap();
        assert_eq!(everything(&lab), before);

        let Fates { stay, moved, reset } = said.flows;
        assert_eq!((said.would, said.refusal, stay + moved + reset), (Would::Switch, None, open.len() as u64));
        let clients: HashSet<IpAddr> = open.iter().map(|flow| flow.client.ip()).collect();
        let by_fate = said.clients_by_fate;
        assert_eq!((said.clients, by_fate.stay + by_fate.moved + by_fate.reset), (9, 9));
        assert_eq!(clients.len(), 9);
        assert_eq!(said.flow_table.ipv4.open, instance.count_flows(&all).unwrap());
        assert!(said.flow_table.ipv4.room >= 262_144 && said.flow_table.ipv6.open == 0);
        let names: Vec<_> = said.services.iter().map(|service| service.service.as_str()).collect();
        assert_eq!(names, ["dns", "web"]);
        let [dns, web] = [0, 1].map(|index| said.services[index].flows);
        let sum = [dns.stay + web.stay, dns.moved + web.moved, dns.reset + web.reset];
        assert_eq!((sum, dns.reset), ([stay, moved, reset], 0), "no datagram can be reset");

        let switched = instance.switch("shop", &request).unwrap();
        assert_eq!((said.from, said.to, said.on_switch), (switched.from, switched.to, on_switch));
        let left: HashSet<SocketAddr> = instance.flows(&shop).unwrap().iter().map(|flow| flow.client).collect();
        let (stayed, ended): (Vec<_>, Vec<_>) = open.iter().partition(|flow| left.contains(&flow.client));
        assert_eq!((stayed.len() as u64, ended.len() as u64), (stay, moved + reset));
        if on_switch == OnSwitch::Cut {
            let live = |flow: &&&FlowStatus| flow.colour == said.from.live;
            assert!(ended.iter().filter(live).count() >= 10, "{ended:?}");
            assert!(web.reset > 0 && web.moved == 1 + nth as u64, "one opening flow for each generation: {web:?}");
        } else {
            assert!(ended.iter().all(|flow| flow.via == "tester"), "{ended:?}");
        }
    }
}

#[test]
fn what_would_be_refused_is_said_in_the_words_of_the_switch() {
    let lab = applied(CONFIG);
    let instance = lab.instance();
    let same = |words: &[&str], code: i32, part: &str| {
        let before = everything(&lab);
        let (dry_code, stdout, _) = lab.run(&[words, &["--dry-run", "--json"]].concat());
        assert_eq!(everything(&lab), before, "{words:?}");
        let said: Value = serde_json::from_str(&stdout).unwrap();
        let (real_code, _, stderr) = lab.run(words);
        assert_eq!((dry_code, real_code), (code, code), "{words:?}: {said} {stderr}");
        match said["refusal"].as_str() {
            Some(refusal) => {
                assert_eq!(said["would"], "refuse");
                assert!(refusal.contains(part) && stderr.contains(refusal), "{refusal} {stderr}");
                assert_eq!((&said["flows"]["move"], &said["flows"]["reset"]), (&json!(0), &json!(0)));
                let text = lab.run(&[words, &["--dry-run"]].concat()).1;
                assert!(text.contains("would be refused") && text.contains(part), "{text}");
            }
            None => assert_eq!((said["would"].as_str(), part), (Some("nothing"), "")),
        }
        said
    };
    open_flows(&lab, 1..=1);
    let nothing = same(&["switch", "shop", "blue"], 0, "");
    assert_eq!((&nothing["from"], &nothing["to"]), (&json!({"generation": 1, "live": "blue"}), &nothing["from"]));
    let refused = same(&["switch", "shop", "--if-generation", "7"], 3, "is at generation 1, not at 7");
    assert_eq!(refused["to"], json!({"generation": 2, "live": "green"}));
    same(&["rollback", "shop"], 3, "nothing to roll back to");
    let nothing = same(&["split", "shop", "--green", "0"], 0, "");
    assert_eq!((&nothing["green_share"], &nothing["to"]), (&json!(0.0), &nothing["from"]));
    let refused = same(&["split", "shop", "--green", "80", "--if-generation", "7"], 3, "is at generation 1, not at 7");
    assert_eq!((&refused["to"], &refused["green_share"]), (&json!({"generation": 2, "live": "green"}), &json!(0.8)));
    instance.switch("shop", &SwitchRequest::default()).unwrap();
    let said = instance.dry_run_rollback("shop", &SwitchRequest::default()).unwrap();
    assert_eq!((said.would, said.to.live), (Would::Switch, Colour::Blue));
    instance.rollback("shop", &SwitchRequest::default()).unwrap();
    let refused = same(&["rollback", "shop"], 3, "was a rollback already");
    assert_eq!(refused["to"]["live"], "green");

    let mut services: BpfHashMap<_, ServiceKey, ServiceRow> =
        MapData::from_pin(lab.paths.map("services")).and_then(Map::from_map_data).unwrap().try_into().unwrap();
    let rows: Vec<_> = services.iter().map(Result::unwrap).collect();
    let last = rows.iter().filter(|(_, row)| row.deployment == 1).max_by_key(|(_, row)| row.service).unwrap();
    let mut without = last.1;
    without.tables[Colour::Green as usize].len = 0;
    services.insert(last.0, without, 0).unwrap();
    same(&["switch", "shop"], 3, "has no backends in service");
    same(&["split", "shop", "--green", "25"], 3, "has no backends in service");
    services.insert(last.0, last.1, 0).unwrap();

    detach(&lab.paths, &Target::Interfaces(vec!["v0".into()])).unwrap();
    same(&["switch", "shop"], 3, "no interface is attached");
    same(&["split", "shop", "--green", "25"], 3, "no interface is attached");
    let forced = SwitchRequest { force: true, ..SwitchRequest::default() };
    assert_eq!(instance.dry_run("shop", &forced).unwrap().would, Would::Switch);
    let (code, _, stderr) = lab.run(&["switch", "shpo", "--dry-run"]);
    assert!(code == 2 && stderr.contains("did you mean \"shop\"?"), "{stderr}");
}

#[test]
fn a_switch_that_would_wait_says_for_what_and_arms_nothing() {
    let lab = running();
    let at = "2099-01-01T00:00:00Z";
    let words = ["switch", "shop", "green", "--dry-run", "--ramp", "10m", "--confirm-within", "5m"];
    let (code, text, stderr) = lab.run(&words);
    let line = "shop: would switch, blue -> green, by and by in 10m, generation 2; would go back 5m later, unless `bgctl confirm shop";
    assert!(code == 0 && text.starts_with(line), "{code}: {text}{stderr}");
    let (code, _, stderr) = lab.run(&["switch", "shop", "green", "--dry-run", "--at", at]);
    assert_eq!(code, 2, "further ahead than anybody plans: {stderr}");
    let soon = jiff::Timestamp::now() + Duration::from_secs(60);
    let json = |to: &str| {
        let (code, text, _) = lab.run(&["switch", "shop", to, "--dry-run", "--at", &soon.to_string(), "--json"]);
        assert_eq!(code, 0);
        serde_json::from_str::<serde_json::Value>(&text).unwrap()
    };
    let told = json("green");
    assert_eq!((&told["would"], &told["at"]), (&"switch".into(), &soon.to_string().into()));
    assert!(told["ramp"].is_null() && told["confirm_within"].is_null());
    assert!(json("blue")["at"].is_null(), "nothing would change");
    assert_eq!(live(&lab), ("blue", 1));
    assert!(lab.instance().status(Some("shop")).unwrap().deployments[0].pending.is_none());
}

#[test]
fn a_dry_run_names_the_conditions_that_would_be_armed() {
    let lab = applied(CONFIG);
    let words = ["switch", "shop", "--dry-run", "--confirm-within", "5m", "--revert-if", "silence 2s", "--revert-if"];
    let words = [&words[..], &["resets > 5% of 200"]].concat();
    let told = || {
        let (code, text, stderr) = lab.run(&words);
        let json = lab.run(&[&words[..], &["--json"]].concat()).1;
        assert_eq!(code, 0, "{stderr}");
        (text, serde_json::from_str::<Value>(&json).unwrap())
    };
    let (text, json) = told();
    assert!(
        text.contains("; would go back 5m later or if silence 2s or if resets > 5% of 200, unless `bgctl"),
        "{text}"
    );
    assert_eq!((&json["revert_if"], &json["not_armed"]), (&json!(["silence 2s", "resets > 5% of 200"]), &json!([])));

    // Nobody on blue answers.
    let clock: Clock = array(&lab, "clock").get(&0, 0).unwrap();
    let now = (clock.jiffies >> TICK_SHIFT) as u32;
    let backends = array::<Backend>(&lab, "backends");
    let blue: std::net::IpAddr = Ipv4Addr::new(10, 9, 1, 10).into();
    let is_resolver = |row: &Backend| row.addr.to_ip(bg_common::Family::V4) == blue && row.port == Be16::new(53);
    let (slot, backend) =
        (0..16).map(|slot| (slot, backends.get(&slot, 0).unwrap())).find(|(_, row)| is_resolver(row)).unwrap();
    for port in 5000..5003 {
        let key =
            FlowKey4 { client: u32::from_ne_bytes([192, 0, 2, 1]), port: Be16::new(port), vip: 2 * backend.service };
        let backend = FlowBackend::new(slot, backend.identity.epoch);
        let flow = Flow { state: FlowState(0), backend, generation: 1, last_seen: now, ..Flow::default() };
        FlowMap::open(&lab).insert(&key, &flow, now);
    }
    let (text, json) = told();
    assert!(text.contains("; the old colour meets \"silence 2s\" itself, so that does not take it back\n"), "{text}");
    assert_eq!((&json["revert_if"], &json["not_armed"]), (&json!(["resets > 5% of 200"]), &json!(["silence 2s"])));
}

#[test]
fn the_dry_run_of_a_split_says_where_new_flows_would_go() {
    let lab = applied(CONFIG);
    let dry_run = |words: &[&str]| lab.run(&[&["split", "shop", "--dry-run"], words].concat()).1;
    let first = |text: &str| text.lines().next().unwrap_or_default().to_owned();
    assert_eq!(
        first(&dry_run(&["--green", "12.5"])),
        "shop: would send 12.5 % of new flows to green, by flow, generation 2"
    );
    let text = dry_run(&["--green", "60", "--by", "client"]);
    assert_eq!(first(&text), "shop: would send 60 % of new flows to green, by client, generation 2");
    assert!(text.contains("\n  blue: ") && text.contains("\n  green: "), "{text}");
    assert_eq!(first(&dry_run(&["--green", "100"])), "shop: would switch, blue -> green, generation 2");
    let split =
        |green, by| lab.instance().split("shop", &SplitRequest { green, by, ..SplitRequest::default() }).unwrap();
    assert!(split(1250, Some(DivideBy::Client)).changed);
    assert_eq!(
        first(&dry_run(&["--green", "12.5"])),
        "shop: sends 12.5 % of new flows to green already, by client, generation 2, nothing would change"
    );
    assert!(
        lab.run(&["split", "shop", "--green", "12.5", "--by", "flow", "--dry-run"])
            .1
            .contains("by flow, generation 3\n")
    );
    assert_eq!(live(&lab), ("blue", 2));
}

#[test]
fn a_dry_run_of_a_frozen_window_counts_what_the_switch_would_wait_for_and_freezes_nothing() {
    let lab = applied(CONFIG);
    open_flows(&lab, 1..=1);
    let words = ["switch", "shop", "--freeze", "20s", "--before", "exit 1", "--dry-run"];
    let json = |more: &[&str]| {
        let (code, text, stderr) = lab.run(&[&words, more, &["--json"]].concat());
        assert_eq!(code, 0, "{stderr}");
        serde_json::from_str::<Value>(&text).unwrap()
    };
    let before = everything(&lab);
    // Of the states above, three are those of connections that go on, and two those of handshakes. How many UDP flows have had a packet in the last second
    // depends on how long this takes.
    for (more, waits) in [(&[][..], true), (&["--on-switch", "cut"], false)] {
        let freeze = json(more)["freeze"].clone();
        let in_flight = &freeze["in_flight"];
        assert_eq!((&freeze["max"], &freeze["waits"]), (&json!("20s"), &json!(waits)), "{freeze}");
        assert_eq!((&in_flight["connections"], &in_flight["handshakes"]), (&json!(3), &json!(2)), "{freeze}");
        assert!(in_flight["udp"].as_u64() <= Some(5) && freeze["room"].as_u64() > Some(4_000_000), "{freeze}");
    }
    let (_, text, _) = lab.run(&words);
    assert!(text.contains("\n  freeze: new flows wait for at most 20s, in 4."), "{text}");
    assert!(text.contains("\n  in flight on blue: 3 connections, 2 handshakes, "), "{text}");
    assert!(text.contains(" UDP flows; the switch waits until these are over\n"), "{text}");
    assert_eq!(everything(&lab), before);

    let (_, text, _) = lab.run(&["switch", "shop", "blue", "--freeze", "20s", "--dry-run", "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["freeze"], Value::Null, "blue is live: {text}");
    let window = FreezeWindow { max: Duration::from_secs(20), before: None, after: None };
    let timed = SwitchRequest { ramp: Some(Duration::from_secs(9)), ..SwitchRequest::default() };
    let refused = lab.instance().switch_in_window("shop", &timed, &window).unwrap_err().to_string();
    assert!(refused.contains("--freeze and --ramp"), "{refused}");
}

//! Open flows of sources that become testers or are testers no more, and of preview addresses that go.

use aya::maps::{Array, Map, MapData, lpm_trie::LpmTrie};
use bg_common::{Backend, Colour, Flow, FlowBackend, FlowKey4, FlowState, LiveWord, TesterKey};
use bg_ebpf::flow_table::Stored;
use bg_userspace::{
    AttachMode,
    config::{Config, Prefix},
};

use crate::{
    flow_map::FlowMap,
    lab::{Lab, config},
};

const TESTER: [u8; 4] = [198, 51, 100, 7];
const USER: [u8; 4] = [203, 0, 113, 200];
const CONFINED: u32 = FlowState::IDLE_ONLY;
const PREVIEW: u32 = FlowState::IDLE_ONLY | FlowState::PREVIEW;

fn shop(testers: &[[u8; 4]], preview: Option<u16>) -> Config {
    let mut config = config("shop", &[(1, 1)], &[(1, 1)]);
    let prefix = |addr: &[u8; 4]| Prefix { addr: (*addr).into(), len: 32 };
    config.deployments[0].testers = testers.iter().map(prefix).collect();
    config.deployments[0].services[0].preview = preview.map(|port| ([203, 0, 113, 10], port).into());
    config
}

fn map(lab: &Lab, name: &str) -> Map {
    MapData::from_pin(lab.paths.map(name)).and_then(Map::from_map_data).unwrap()
}

/// Runs `before` with open flows of these clients and roles, applies `after`, and tells which flows are left. A
/// flow is one only if both directions are there.
fn left_over(before: &Config, after: &Config, flows: &[([u8; 4], u32)]) -> Vec<([u8; 4], u32)> {
    let lab = Lab::new();
    lab.attach("v0", AttachMode::Tc).unwrap();
    lab.instance().apply(before).unwrap();
    let table = FlowMap::open(&lab);
    let backends: Array<_, Backend> = map(&lab, "backends").try_into().unwrap();
    let backends = (0..8).map(|slot| (slot, backends.get(&slot, 0).unwrap()));
    let (slot, row) = backends.into_iter().find(|(_, row)| row.identity.in_use == 1).unwrap();
    assert_eq!(row.colour, Colour::Blue as u8);
    let vip = u32::from_ne_bytes([203, 0, 113, 10]);
    let backend = u32::from_ne_bytes([10, 0, 0, 1]);
    let keys = |client: [u8; 4]| {
        let client = u32::from_ne_bytes(client);
        let forward = FlowKey4 { src: client, dst: vip, ports: 1, protocol: 17 };
        (forward, FlowKey4 { src: backend, dst: client, ..forward })
    };
    for (client, role) in flows {
        let (forward, reply) = keys(*client);
        for (key, role) in [(forward, *role), (reply, *role | FlowState::REPLY)] {
            let state = FlowState(role | FlowState::UDP);
            let backend = FlowBackend::new(slot, row.identity.epoch);
            let flow = Flow { ports: key.ports, state, backend, ..Flow::default() };
            assert_eq!(table.insert(&key, &flow, 0), Stored::Yes);
        }
    }
    let word = |lab: &Lab| Array::<_, LiveWord>::try_from(map(lab, "live")).unwrap().get(&0, 0).unwrap();
    let live = word(&lab);
    lab.instance().apply(after).unwrap();
    assert!(lab.instance().plan(after).unwrap().is_empty());
    assert_eq!(word(&lab), live);
    let is_left = |(client, _): &&([u8; 4], u32)| {
        let (forward, reply) = keys(*client);
        let found = [table.find(&forward).is_some(), table.find(&reply).is_some()];
        assert_eq!(found[0], found[1], "one direction would bring the other one back");
        found[0]
    };
    flows.iter().filter(is_left).copied().collect()
}

#[test]
fn open_flows_of_a_new_tester_end_and_no_others() {
    let flows = [(TESTER, 0), (USER, 0)];
    assert_eq!(left_over(&shop(&[], None), &shop(&[TESTER], None), &flows), [(USER, 0)]);
}

#[test]
fn open_flows_of_one_who_is_no_tester_any_more_end() {
    let flows = [(TESTER, CONFINED), (USER, 0)];
    assert_eq!(left_over(&shop(&[TESTER], None), &shop(&[], None), &flows), [(USER, 0)]);
    let other = [198, 51, 100, 8];
    let flows = [(TESTER, CONFINED), (other, 0), (USER, PREVIEW)];
    assert_eq!(left_over(&shop(&[TESTER], Some(9)), &shop(&[TESTER, other], Some(9)), &flows), [flows[0], flows[2]]);
}

#[test]
fn flows_of_a_preview_address_that_goes_end() {
    let flows = [(TESTER, PREVIEW), (USER, 0)];
    assert_eq!(left_over(&shop(&[], Some(9443)), &shop(&[], None), &flows), [(USER, 0)]);
}

#[test]
fn an_apply_that_was_killed_before_it_looked_at_open_flows_is_not_finished() {
    let lab = Lab::new();
    lab.attach("v0", AttachMode::Tc).unwrap();
    let shop = shop(&[TESTER], None);
    lab.instance().apply(&shop).unwrap();
    let mut testers: LpmTrie<_, TesterKey, u32> = map(&lab, "testers").try_into().unwrap();
    assert_eq!(testers.keys().count(), 1, "nothing is left of the mark");
    let mark = TesterKey { deployment: 0, family: 0, addr: bg_common::Addr::default() };
    testers.insert(&aya::maps::lpm_trie::Key::new(TesterKey::PREFIX_BITS, mark), 0, 0).unwrap();
    assert!(!lab.instance().plan(&shop).unwrap().is_empty());
    lab.instance().apply(&shop).unwrap();
    assert!(lab.instance().plan(&shop).unwrap().is_empty());
    assert_eq!(testers.keys().count(), 1);
}

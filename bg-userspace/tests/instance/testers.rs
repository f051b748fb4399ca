//! Open flows of sources that become testers or are testers no more, and of preview addresses that go.

use aya::maps::{Array, Map, MapData, lpm_trie::LpmTrie};
use bg_common::{Backend, Be16, Colour, Flow, FlowBackend, FlowKey4, FlowState, LiveWord, Role, TesterKey};
use bg_ebpf::flow::table::Stored;
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
/// How a client came.
type Way = (Role, u32);
const OPENLY: Way = (Role::Vip, 0);
const CONFINED: Way = (Role::Vip, FlowState::IDLE_ONLY);
const PREVIEW: Way = (Role::Preview, FlowState::IDLE_ONLY);

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

/// Runs `before` with open flows of these clients, applies `after`, and tells which flows are left.
fn left_over(before: &Config, after: &Config, flows: &[([u8; 4], Way)]) -> Vec<([u8; 4], Way)> {
    let lab = Lab::new();
    lab.attach("v0", AttachMode::Tc).unwrap();
    lab.instance().apply(before).unwrap();
    let table = FlowMap::open(&lab);
    let backends: Array<_, Backend> = map(&lab, "backends").try_into().unwrap();
    let backends = (0..8).map(|slot| (slot, backends.get(&slot, 0).unwrap()));
    let (slot, row) = backends.into_iter().find(|(_, row)| row.identity.in_use == 1).unwrap();
    assert_eq!((row.colour, row.service), (Colour::Blue as u8, 0));
    let key = |client: [u8; 4], (role, _): Way| FlowKey4 {
        client: u32::from_ne_bytes(client),
        port: Be16::new(5000),
        vip: role as u16,
    };
    for (client, way) in flows {
        let backend = FlowBackend::new(slot, row.identity.epoch);
        let flow = Flow { state: FlowState(way.1), backend, ..Flow::default() };
        assert_eq!(table.insert(&key(*client, *way), &flow, 0), Stored::Yes);
    }
    let word = |lab: &Lab| Array::<_, LiveWord>::try_from(map(lab, "live")).unwrap().get(&0, 0).unwrap();
    let live = word(&lab);
    lab.instance().apply(after).unwrap();
    assert!(lab.instance().plan(after).unwrap().is_empty());
    assert_eq!(word(&lab), live);
    flows.iter().filter(|(client, way)| table.find(&key(*client, *way)).is_some()).copied().collect()
}

#[test]
fn open_flows_of_a_new_tester_end_and_no_others() {
    let flows = [(TESTER, OPENLY), (USER, OPENLY)];
    assert_eq!(left_over(&shop(&[], None), &shop(&[TESTER], None), &flows), [(USER, OPENLY)]);
}

#[test]
fn open_flows_of_one_who_is_no_tester_any_more_end() {
    let flows = [(TESTER, CONFINED), (USER, OPENLY)];
    assert_eq!(left_over(&shop(&[TESTER], None), &shop(&[], None), &flows), [(USER, OPENLY)]);
    let other = [198, 51, 100, 8];
    let flows = [(TESTER, CONFINED), (other, OPENLY), (USER, PREVIEW)];
    assert_eq!(left_over(&shop(&[TESTER], Some(9)), &shop(&[TESTER, other], Some(9)), &flows), [flows[0], flows[2]]);
}

#[test]
fn flows_of_a_preview_address_that_goes_end() {
    let flows = [(TESTER, PREVIEW), (USER, OPENLY)];
    assert_eq!(left_over(&shop(&[], Some(9443)), &shop(&[], None), &flows), [(USER, OPENLY)]);
    assert_eq!(left_over(&shop(&[], Some(9443)), &shop(&[], Some(9444)), &flows), [(USER, OPENLY)], "or changes");
    assert_eq!(left_over(&shop(&[], Some(9443)), &shop(&[USER], Some(9443)), &flows), [(TESTER, PREVIEW)]);
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

//! What `bgctl explain` says, sentence by sentence, of packets that meet flows in all states, both colours, and each way out.

mod backends;
mod clients;
mod exits;
mod switches;

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use aya::maps::{HashMap, Map, MapData};
use bg_common::{
    Backend, Be16, Clock, Colour, Family, Flow, FlowBackend, FlowKey4, FlowState, NextHop, ServiceKey, ServiceRow,
    TICK_SHIFT,
};
use bg_userspace::{
    AttachMode, ExplainRequest, Explained, Explanation, FreezeRequest, Protocol, SplitRequest, SwitchRequest, TcpFlags,
    config::OnSwitch,
};

use crate::{
    explain::{self, edge_with},
    flow_map::{FlowMap, array, vip_row},
    lab::Lab,
};

/// Services beside those of [`explain::CONFIG`], and a deployment whose drain is soon over. `lost` has no route to its backends, and `silent` no MAC
/// address; those of `here` are addresses of this host; `twin` shares the backends of `web`.
const MORE: &str = r#"
[[deployments.shop.services]]
name = "twin"
vip = "203.0.113.11:443"
protocol = "tcp"
mode = "nat"
blue = ["10.0.1.11:8443"]
green = ["10.0.2.11:8443"]
[[deployments.shop.services]]
name = "lost"
vip = "203.0.113.12:443"
protocol = "tcp"
mode = "nat"
blue = ["172.31.255.1:8443"]
green = ["172.31.255.2:8443"]
[[deployments.shop.services]]
name = "silent"
vip = "203.0.113.13:443"
protocol = "tcp"
mode = "nat"
blue = ["10.0.1.99:8443"]
green = ["10.0.2.99:8443"]
[[deployments.shop.services]]
name = "here"
vip = "203.0.113.14:443"
protocol = "tcp"
mode = "local"
blue = ["10.0.1.1:8443"]
green = ["10.0.2.1:8443"]
[[deployments.shop.services]]
name = "copied"
vip = "203.0.113.15:53"
protocol = "udp"
mode = "nat"
blue = ["10.0.1.11:5353"]
green = ["10.0.2.11:5353"]
mirror = "idle"
[deployments.brief]
drain_timeout = "300ms"
[[deployments.brief.services]]
name = "web"
vip = "203.0.113.20:443"
protocol = "tcp"
mode = "nat"
blue = ["10.0.1.11:1443"]
green = ["10.0.2.11:1443"]
"#;

fn edge(mode: AttachMode) -> Lab {
    edge_with(mode, &(explain::CONFIG.to_owned() + MORE))
}

const VIP: &str = "203.0.113.10:443";
const TWIN: &str = "203.0.113.11:443";
const BRIEF: &str = "203.0.113.20:443";
const COPIED: &str = "203.0.113.15:53";
const WEB_BLUE: &str = "10.0.1.11:8443";
const WEB_GREEN: &str = "10.0.2.11:8443";
const DNS_BLUE: &str = "10.0.1.11:53";

const TCP: Protocol = Protocol::Tcp;
const UDP: Protocol = Protocol::Udp;
const OPEN: u32 = FlowState::CONFIRMED | FlowState::ANSWERED;
const ACK: Option<TcpFlags> = Some(TcpFlags::ACK);
const RST: Option<TcpFlags> = Some(TcpFlags(4));

// Lines that many packets have in common.
const WEB: &str = "203.0.113.10:443/tcp is the virtual address of service web of deployment shop";
const DNS: &str = "203.0.113.10:443/udp is the virtual address of service dns of deployment shop";
const BLUE_IS_LIVE: &str = "blue is live (generation 1): all new flows of shop go to blue";
const GREEN_IS_LIVE: &str = "green is live (generation 2, draining): all new flows of shop go to green";
const TO_WEB_BLUE: &str = "backend 10.0.1.11:8443 of blue, by entry 0 of 1 of the Maglev table";
const TO_WEB_GREEN: &str = "backend 10.0.2.11:8443 of green, by entry 0 of 1 of the Maglev table";
const OPENED: &str = "a new flow is opened";
const CONTINUES: &str = "the flow goes on at its backend";
const WAY_TO_BLUE: &str = "the kernel's route leads out by v0 to 02:00:00:00:00:11";
const WAY_TO_GREEN: &str = "the kernel's route leads out by v0 to 02:00:00:00:00:12";
const WAY_TO_CLIENT: &str = "the kernel's route leads out by v0 to 02:00:00:00:00:07";
const SENT: &str = "rewritten, and sent out by v0 through the kernel's neighbour table";
const PASSED: &str = "left unmodified to the host";
const DEFERRED: &str = "left unmodified to tc on the same interface";
const DROPPED: &str = "dropped";
const BOTH_RESET: &str = "answered with a reset, and sent on as a reset to the other end";
const COUNTED_RESET: &str = "counted as ended_reset";
const FROM_WEB_BLUE: &str = "10.0.1.11:8443/tcp is a backend of service web of deployment shop (blue)";

/// The client with this port.
fn client(port: u16) -> String {
    format!("198.51.100.7:{port}")
}

fn tester(port: u16) -> String {
    format!("198.51.100.200:{port}")
}

fn no_flow(client: &str) -> String {
    format!("no flow from {client} is in the table")
}

fn not_a_vip(to: &str, protocol: &str) -> String {
    format!("{to}/{protocol} is no virtual address")
}

/// The present tick.
fn tick(lab: &Lab) -> u32 {
    // Reading the status reads the clock.
    lab.instance().status(None).unwrap();
    (array::<Clock>(lab, "clock").get(&0, 0).unwrap().jiffies >> TICK_SHIFT) as u32
}

/// The slot and the row of a backend of the service at this row of `vips`.
fn backend(lab: &Lab, address: &str, vip: u16) -> (u32, Backend) {
    let address: SocketAddr = address.parse().unwrap();
    let rows = array::<Backend>(lab, "backends");
    let is_it = |row: &Backend| {
        row.service == vip / 2
            && row.addr.to_ip(Family::V4) == address.ip()
            && row.port.host() == address.port()
            && row.identity.in_use == 1
    };
    (0..64).map(|slot| (slot, rows.get(&slot, 0).unwrap())).find(|(_, row)| is_it(row)).unwrap()
}

fn vip_of(lab: &Lab, vip: &str, protocol: Protocol) -> u16 {
    let SocketAddr::V4(vip) = vip.parse().unwrap() else { panic!("{vip} is of IPv6") };
    vip_row(lab, vip.ip().octets(), vip.port(), protocol as u8).unwrap()
}

fn key(client: &str, vip: u16) -> FlowKey4 {
    let SocketAddr::V4(client) = client.parse().unwrap() else { panic!("{client} is of IPv6") };
    FlowKey4 { client: u32::from_ne_bytes(client.ip().octets()), port: Be16::new(client.port()), vip }
}

/// The index of v0.
fn ifindex() -> u32 {
    let output = std::process::Command::new("ip").args(["-json", "link", "show", "v0"]).output().unwrap();
    let links: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    links[0]["ifindex"].as_u64().unwrap() as u32
}

/// Puts a flow of the first generation into the table, with its last packet now.
fn put(lab: &Lab, client: &str, (vip, protocol): (&str, Protocol), at: &str, state: u32, note: u32) {
    put_with(lab, client, (vip, protocol), at, |flow| Flow { state: FlowState(state), note, ..flow });
}

fn put_with(lab: &Lab, client: &str, (vip, protocol): (&str, Protocol), at: &str, change: impl FnOnce(Flow) -> Flow) {
    let (vip, now) = (vip_of(lab, vip, protocol), tick(lab));
    let (slot, row) = backend(lab, at, vip);
    let backend = FlowBackend::new(slot, row.identity.epoch);
    let flow = change(Flow { backend, generation: 1, last_seen: now, ..Flow::default() });
    FlowMap::open(lab).insert(&key(client, vip), &flow, now);
}

fn explain_packet(lab: &Lab, from: &str, to: &str, protocol: Protocol, flags: Option<TcpFlags>) -> Explanation {
    let [from, to] = [from, to].map(|address| address.parse().unwrap());
    lab.instance().explain(&ExplainRequest { from, to, protocol, flags, interface: None }).unwrap()
}

/// A sentence, without the time since a flow's last packet: the machine may be slow.
fn sentence(step: &Explained) -> String {
    let ends = [", last packet", " came "];
    let end =
        ends.iter().filter_map(|end| step.text.find(end)).min().filter(|_| matches!(step.step, "flow" | "silent"));
    step.text[..end.unwrap_or(step.text.len())].to_owned()
}

/// What is said of a packet at the last program that it meets, or, with the number, at another one.
#[track_caller]
fn says_at(nth: usize, explanation: &Explanation, expected: &[&str]) {
    let said: Vec<_> = explanation.hooks[nth].steps.iter().map(sentence).collect();
    assert_eq!(said, expected, "{} {}", explanation.from, explanation.to);
}

#[track_caller]
fn says(explanation: &Explanation, expected: &[&str]) {
    says_at(explanation.hooks.len() - 1, explanation, expected);
}

fn flow(at: &str, state: &str) -> String {
    format!("a flow is in the table: {at}, {state}, opened in generation 1")
}

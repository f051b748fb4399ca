//! The switch is no secret of bgctl: bpftool alone loads the object, attaches it, fills the maps by their
//! documented layout, and switches real traffic by writing one word. So does the program in C that the page about the
//! pinned ABI shows.

use anyhow::{Context, Result};
use bg_common::{
    Addr, Backend, Be16, Colour, DeploymentRow, Family, Identity, LiveFlags, LiveWord, Mode, NextHop, Protocol,
    ServiceKey, ServiceRow, TableSpan, Vip, endpoint_hash,
};
use bg_tests::{Fabric, Lab, Live, NewFlows, UDP_PORT, address, config::udp_vip, load::Echo, run};
use bytemuck::{Zeroable, bytes_of};
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

/// The object under test: the fresh one that `BGCTL_BPF_OBJECT` names, else the committed one.
fn object() -> PathBuf {
    let committed = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../bg-userspace/bpf/bg.bpf.o");
    std::env::var_os("BGCTL_BPF_OBJECT").map_or_else(committed, PathBuf::from)
}

/// An instance that bpftool has made.
struct ByBpftool<'a> {
    lab: &'a Lab,
    root: String,
}

impl<'a> ByBpftool<'a> {
    fn load(lab: &'a Lab) -> Result<Self> {
        let root = lab.sandbox.pin_root().display().to_string();
        std::fs::create_dir(&root).with_context(|| format!("cannot make {root}"))?;
        let object = object().display().to_string();
        lab.edge
            .run(&format!("bpftool prog loadall {object} {root}/programs pinmaps {root}/maps"))
            .context("if bpftool is missing, `cargo xtask setup` installs it")?;
        Ok(Self { lab, root })
    }

    /// Writes one entry of a map.
    fn put(&self, map: &str, key: &[u8], value: &[u8]) -> Result<()> {
        let hex = |bytes: &[u8]| bytes.iter().map(|octet| format!("{octet:02x} ")).collect::<String>();
        let Self { root, lab } = self;
        lab.edge.run(&format!(
            "bpftool map update pinned {root}/maps/{map} key hex {} value hex {}",
            hex(key),
            hex(value)
        ))?;
        Ok(())
    }

    /// Makes a row the only one of its hash in an index, whose rows hold two heads each.
    fn link(&self, index: &str, address: &Addr, port: Be16, row: u32) -> Result<()> {
        let path = format!("{}/maps/{index}", self.root);
        let map: serde_json::Value =
            serde_json::from_str(&self.lab.edge.run(&format!("bpftool -j map show pinned {path}"))?)?;
        let heads = 2 * map["max_entries"].as_u64().context("no max_entries")? as u32;
        let head = endpoint_hash(address, port, Protocol::Udp as u8) % heads;
        let mut pair = [0_u32; 2];
        pair[head as usize % 2] = row + 1;
        self.put(index, bytes_of(&(head / 2)), bytes_of(&pair))
    }

    /// Attaches to an interface, and lets frames be redirected to it.
    fn attach(&self, interface: &str) -> Result<()> {
        let Self { root, lab } = self;
        // tc does what XDP leaves to it.
        lab.edge.run(&format!("tc qdisc add dev {interface} clsact"))?;
        for direction in ["ingress", "egress"] {
            let program = format!("{root}/programs/tc_{direction}");
            lab.edge
                .run(&format!("tc filter add dev {interface} {direction} bpf direct-action object-pinned {program}"))?;
        }
        lab.edge.run(&format!("bpftool net attach xdpdrv pinned {root}/programs/ingress dev {interface}"))?;
        let link: serde_json::Value = serde_json::from_str(&lab.edge.ip(&format!("-json link show dev {interface}"))?)?;
        let index = link[0]["ifindex"].as_u64().context("no ifindex")? as u32;
        // `struct bpf_devmap_val`: the interface, and no program on the way out.
        self.put("egress", bytes_of(&index), bytes_of(&[index, 0]))
    }

    /// The switch: one word.
    fn make_live(&self, generation: u32, colour: Colour) -> Result<()> {
        let (target, previous) = (colour.full_share(), colour.other().full_share());
        let word = LiveWord::new(generation, LiveFlags::NONE, previous, target);
        self.put("live", bytes_of(&0_u32), bytes_of(&word))
    }
}

/// Slot of a colour's only backend; also the only entry of its Maglev table.
const fn slot(colour: Colour) -> u32 {
    colour as u32
}

fn backend(address: SocketAddr, colour: Colour) -> Backend {
    Backend {
        identity: Identity { epoch: 1, in_use: 1 },
        addr: address.ip().into(),
        port: Be16::new(address.port()),
        protocol: Protocol::Udp as u8,
        family: Family::of(address.ip()) as u8,
        service: 0,
        colour: colour as u8,
        mode: Mode::Nat as u8,
        next_hop: NextHop::NONE,
        next: 0,
        deployment: 0,
        salt: 0,
    }
}

/// An instance with one service, whose backends are in the lab, attached to all of the lab's interfaces. Blue is live.
fn with_a_service(lab: &Lab) -> Result<ByBpftool<'_>> {
    let instance = ByBpftool::load(lab)?;
    let vip = udp_vip(address::VIP_V4);
    let key = ServiceKey {
        addr: Addr::from(vip.ip()),
        port: Be16::new(vip.port()),
        protocol: Protocol::Udp as u8,
        family: Family::V4 as u8,
    };
    // Ticks are 64 jiffies each: 10,000 of them are long at any frequency.
    let deployment = DeploymentRow { udp_idle: 10_000, in_use: 1, ..DeploymentRow::zeroed() };
    instance.put("deployments", bytes_of(&0_u32), bytes_of(&deployment))?;
    for colour in Colour::ALL {
        let of_colour = lab.backends.iter().find(|backend| backend.colour == colour).context("no backend")?;
        let address = SocketAddr::new(of_colour.addresses[0], UDP_PORT);
        let row = backend(address, colour);
        instance.put("backends", bytes_of(&slot(colour)), bytes_of(&row))?;
        instance.link("backend_index", &row.addr, row.port, slot(colour))?;
    }
    // Two entries a row: one row holds both colours' tables of one entry.
    instance.put("maglev", bytes_of(&0_u32), bytes_of(&Colour::ALL.map(slot)))?;
    instance.make_live(1, Colour::Blue)?;
    let tables = Colour::ALL.map(|colour| TableSpan { base: slot(colour), len: 1 });
    instance.put("services", bytes_of(&key), bytes_of(&ServiceRow { tables, ..ServiceRow::zeroed() }))?;
    instance.put("vips", bytes_of(&0_u32), bytes_of(&Vip { key, ..Vip::default() }))?;
    // Last: from now on packets find the service.
    instance.link("vip_index", &key.addr, key.port, 0)?;
    lab.interfaces.iter().try_for_each(|interface| instance.attach(interface))?;
    Ok(instance)
}

#[test]
fn bpftool_alone_loads_attaches_fills_and_switches() -> Result<()> {
    let lab = Lab::wire(Fabric::Switch)?;
    let _servers = lab.servers()?;
    let instance = with_a_service(&lab)?;
    let vip = udp_vip(address::VIP_V4);
    let live = Live::first(lab.sandbox.pin_root())?;
    let mut flows = NewFlows::new(vip, &[address::CLIENT_V4], 2000..3000);
    let stays = lab.client.enter(|| Echo::open_from(SocketAddr::new(address::CLIENT_V4, 1999), vip))??;
    assert_eq!(stays.ask("before")?.colour, Colour::Blue);
    for generation in 2..12 {
        let colour = if generation % 2 == 0 { Colour::Green } else { Colour::Blue };
        instance.make_live(generation, colour)?;
        for _ in 0..20 {
            let answer = lab.client.enter(|| flows.ask(&live))??.answer.context("no answer")?;
            assert_eq!(answer.colour, colour, "generation {generation}");
        }
        assert_eq!(stays.ask(&format!("in generation {generation}"))?.colour, Colour::Blue, "an open flow stays");
    }
    Ok(())
}

/// Compiles the program that the page about the pinned ABI shows; where it is.
fn program_of_the_page(lab: &Lab) -> Result<PathBuf> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/pinned-abi.md");
    let page = std::fs::read_to_string(&page).with_context(|| format!("cannot read {}", page.display()))?;
    let (_, rest) = page.split_once("```c\n").context("no program in C")?;
    let (source, _) = rest.split_once("```").context("no end of the program")?;
    let program = lab.sandbox.dir().join("flip");
    let file = program.with_extension("c");
    std::fs::write(&file, source)?;
    run(&format!("cc -O2 -Wall -Wextra -Werror {} -o {}", file.display(), program.display()))?;
    Ok(program)
}

#[test]
fn the_program_of_the_page_switches() -> Result<()> {
    let lab = Lab::wire(Fabric::Switch)?;
    let _servers = lab.servers()?;
    let instance = with_a_service(&lab)?;
    let program = program_of_the_page(&lab)?;
    let flip = |colour: Colour| run(&format!("{} {} 0 {}", program.display(), instance.root, colour.name()));
    let vip = udp_vip(address::VIP_V4);
    let live = Live::first(lab.sandbox.pin_root())?;
    let mut flows = NewFlows::new(vip, &[address::CLIENT_V4], 2000..3000);
    let stays = lab.client.enter(|| Echo::open_from(SocketAddr::new(address::CLIENT_V4, 1999), vip))??;
    assert_eq!(stays.ask("before")?.colour, Colour::Blue);
    for (generation, colour) in (2..6).zip([Colour::Green, Colour::Blue].into_iter().cycle()) {
        let previous = colour.other().full_share();
        assert_eq!(flip(colour)?.trim(), format!("generation {generation}"));
        assert_eq!(live.word(), LiveWord::new(generation, LiveFlags::DRAINING, previous, colour.full_share()));
        assert!(flip(colour).is_err(), "it is live already");
        let answer = lab.client.enter(|| flows.ask(&live))??.answer.context("no answer")?;
        assert_eq!(answer.colour, colour, "generation {generation}");
        assert_eq!(stays.ask(&format!("in generation {generation}"))?.colour, Colour::Blue, "an open flow stays");
    }
    Ok(())
}

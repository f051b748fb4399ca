//! A service with a mirror: the idle colour receives each datagram of the live one, byte for byte, and nobody hears what it answers. A mirror that
//! is gone costs the live colour nothing.
//!
//! The servers are the oracle: they note what they receive, and answer. On the client's wire, a packet socket sees all that arrives.

use anyhow::{Context as _, Result, ensure};
use bg_common::Colour;
use bg_tests::{
    Fabric, Lab, Namespace, Offloads, RawSocket, Ready, address,
    config::{DEPLOYMENT, shop},
    frames::packet_in,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// Port of the service at the VIP, of its servers, and of its preview address.
const PORT: u16 = 514;
const SERVER_PORT: u16 = 5514;
const PREVIEW_PORT: u16 = 9514;
/// Client, tester and VIP of each family.
const ENDS: [[IpAddr; 3]; 2] = [
    [address::CLIENT_V4, address::TESTER_V4, address::VIP_V4],
    [address::CLIENT_V6, address::TESTER_V6, address::VIP_V6],
];
/// Flows of each family, and datagrams of a flow.
const FLOWS: usize = 6;
const DATAGRAMS: usize = 40;
const PATIENCE: Duration = Duration::from_secs(20);

/// The service under test, which is the last one, after others without a mirror.
fn config(lab: &Lab, mode: &str, mirror: &str) -> String {
    let mut config = shop(lab, mode, "");
    for (family, [.., vip]) in ENDS.into_iter().enumerate() {
        let [blue, green] = Colour::ALL.map(|colour| {
            let of_colour = lab.backends.iter().filter(|backend| backend.colour == colour);
            let address = of_colour.map(|it| format!("\"{}\"", SocketAddr::new(it.addresses[family], SERVER_PORT)));
            address.collect::<Vec<_>>().join(", ")
        });
        config += &format!(
            "\n[[deployments.{DEPLOYMENT}.services]]\nname = \"log{family}\"\nvip = \"{}\"\nprotocol = \"udp\"\nmode = \"{mode}\"\n\
             blue = [{blue}]\ngreen = [{green}]\npreview = \"{}\"\n{mirror}\n",
            SocketAddr::new(vip, PORT),
            SocketAddr::new(vip, PREVIEW_PORT),
        );
    }
    config
}

/// A datagram: who has sent it, and its content.
type Datagram = (SocketAddr, Vec<u8>);

/// The servers of one colour. Each notes what it receives, and answers it with its colour in front.
struct Recorder {
    /// By the server's address.
    received: Arc<Mutex<BTreeMap<SocketAddr, Vec<Datagram>>>>,
    is_over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Recorder {
    fn start(lab: &Lab, colour: Colour) -> Result<Self> {
        let mut this = Self { received: Arc::default(), is_over: Arc::default(), threads: Vec::new() };
        for backend in lab.backends.iter().filter(|backend| backend.colour == colour) {
            for address in backend.addresses {
                let socket = open(&backend.namespace, SocketAddr::new(address, SERVER_PORT))?;
                let (received, is_over) = (this.received.clone(), this.is_over.clone());
                let at = socket.local_addr()?;
                this.threads.push(thread::spawn(move || {
                    let mut buffer = [0; 2048];
                    while !is_over.load(Ordering::Relaxed) {
                        let Ok((length, client)) = socket.recv_from(&mut buffer) else { continue };
                        let content = buffer[..length].to_vec();
                        let answer = [&[colour as u8], &content[..]].concat();
                        received.lock().expect("no panic").entry(at).or_default().push((client, content));
                        // Of a client that is gone, nothing is to be heard.
                        let _ = socket.send_to(&answer, client);
                    }
                }));
            }
        }
        Ok(this)
    }

    /// All that was received, sorted.
    fn all(&self) -> Vec<Datagram> {
        let received = self.received.lock().expect("no panic");
        let mut all: Vec<_> = received.values().flatten().cloned().collect();
        all.sort();
        all
    }

    /// Waits until so many datagrams have come.
    fn wait_for(&self, datagrams: usize) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        while self.all().len() < datagrams {
            ensure!(Instant::now() < end, "{} of {datagrams} have come", self.all().len());
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// The servers that have received datagrams of each client.
    fn servers_of_clients(&self) -> BTreeMap<SocketAddr, BTreeSet<SocketAddr>> {
        let mut servers = BTreeMap::<_, BTreeSet<_>>::new();
        for (server, datagrams) in self.received.lock().expect("no panic").iter() {
            for (client, _) in datagrams {
                servers.entry(*client).or_default().insert(*server);
            }
        }
        servers
    }

    fn forget(&self) {
        self.received.lock().expect("no panic").clear();
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

fn open(namespace: &Namespace, at: SocketAddr) -> Result<UdpSocket> {
    let socket = namespace.enter(|| UdpSocket::bind(at))?.with_context(|| format!("cannot bind {at}"))?;
    socket.set_read_timeout(Some(Duration::from_millis(20)))?;
    Ok(socket)
}

/// A socket of the client that is not connected, so that it hears everybody.
struct Flow {
    socket: UdpSocket,
    to: SocketAddr,
}

impl Flow {
    fn open(lab: &Lab, from: IpAddr, to: SocketAddr) -> Result<Self> {
        Ok(Self { socket: open(&lab.client, SocketAddr::new(from, 0))?, to })
    }

    /// Sends a datagram, and waits for its answer. It must be that of this colour, from the address that was asked.
    fn ask(&self, content: &[u8], expected: Colour) -> Result<Datagram> {
        self.socket.send_to(content, self.to)?;
        let (end, mut buffer) = (Instant::now() + PATIENCE, [0; 2048]);
        loop {
            match self.socket.recv_from(&mut buffer) {
                Ok((length, from)) => {
                    assert_eq!(from, self.to, "an answer from elsewhere");
                    assert_eq!((buffer[0], &buffer[1..length]), (expected as u8, content), "another colour's answer");
                    return Ok((self.socket.local_addr()?, content.to_vec()));
                }
                Err(_) => ensure!(Instant::now() < end, "no answer from {}", self.to),
            }
        }
    }

    /// Asserts that nothing else arrives.
    fn is_silent(&self) {
        assert!(self.socket.recv_from(&mut [0; 2048]).is_err(), "an answer too many");
    }
}

fn flows(lab: &Lab, family: usize) -> Result<Vec<Flow>> {
    let [client, _, vip] = ENDS[family];
    (0..FLOWS).map(|_| Flow::open(lab, client, SocketAddr::new(vip, PORT))).collect()
}

/// Content of all lengths, an empty one and one of a full frame too.
fn content(nth: usize) -> Vec<u8> {
    let length = if nth == 0 { 0 } else { (nth * 37) % 1450 };
    (0..length).map(|at| (at * 7 + nth) as u8).collect()
}

/// Sends datagrams of each flow in turn. Each is answered by this colour. Returns them, sorted.
fn talk(flows: &[Flow], datagrams: usize, expected: Colour) -> Result<Vec<Datagram>> {
    let mut sent = Vec::new();
    for nth in 0..datagrams {
        for flow in flows {
            sent.push(flow.ask(&content(nth), expected)?);
        }
    }
    flows.iter().for_each(Flow::is_silent);
    sent.sort();
    Ok(sent)
}

/// A counter of the service under test of this family.
fn counter(ready: &Ready, family: usize, colour: Colour, what: &str) -> Result<u64> {
    let deployment = ready.bgctl.deployment(DEPLOYMENT)?;
    let mut services = deployment["services"].as_array().context("services")?.iter();
    let service = services.find(|service| service["name"] == format!("log{family}")).context("the service")?;
    assert_eq!(service["mirror"], "idle");
    service[colour.name()][what].as_u64().context("a counter")
}

fn dropped(ready: &Ready, reason: &str) -> Result<u64> {
    ready.bgctl.json(&["status"])?["drops"][reason].as_u64().context("a counter")
}

/// Asserts that all packets that have arrived at the client are from one of the edge's or the VIPs' addresses: no answer of a backend as it is, and no ICMP
/// error of one or about a copy.
fn nobody_else_was_heard(wire: &RawSocket, lab: &Lab) -> Result<()> {
    let strange: Vec<IpAddr> = lab.backends.iter().flat_map(|backend| backend.addresses).collect();
    while let Some(frame) = wire.receive_within(Duration::from_millis(20))? {
        let kind = u16::from_be_bytes([frame[12], frame[13]]);
        let packet = packet_in(&frame);
        let (source, is_error): (IpAddr, bool) = match kind {
            0x0800 => (<[u8; 4]>::try_from(&packet[12..16])?.into(), packet[9] == 1 && packet[20] == 3),
            0x86dd => (<[u8; 16]>::try_from(&packet[8..24])?.into(), packet[6] == 58 && packet[40] < 128),
            _ => continue,
        };
        assert!(!strange.contains(&source), "the client has heard {source}: {frame:02x?}");
        assert!(!is_error, "an error of {source}: {frame:02x?}");
    }
    Ok(())
}

/// What is to happen to the mirror.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mirror {
    /// Its machines disappear.
    Gone,
    /// Its servers end: its hosts answer with ICMP errors.
    Closed,
}

fn mirrors(lab: Lab, attach_mode: &str, mode: &str, accidents: &[Mirror]) -> Result<()> {
    let mirrored = config(&lab, mode, "mirror = \"idle\"");
    let ready = Ready::with(lab, attach_mode, &mirrored)?;
    let lab = &ready.lab;
    let [blue, green] = Colour::ALL.map(|colour| Recorder::start(lab, colour));
    let (blue, green) = (blue?, green?);
    let wire = RawSocket::open(&lab.client, "eth0")?;
    let all_flows = [flows(lab, 0)?, flows(lab, 1)?];

    // Each datagram reaches both colours, byte for byte, and only the live one is heard.
    let mut answers = 0;
    for (family, flows) in all_flows.iter().enumerate() {
        let sent = talk(flows, DATAGRAMS, Colour::Blue)?;
        green.wait_for(sent.len())?;
        assert_eq!(blue.all(), sent);
        assert_eq!(green.all(), sent);
        for servers in green.servers_of_clients().values().chain(blue.servers_of_clients().values()) {
            assert_eq!(servers.len(), 1, "datagrams of a flow, and their copies, stay at one server: {servers:?}");
        }
        answers += sent.len() as u64;
        let end = Instant::now() + PATIENCE;
        while dropped(&ready, "mirror_answer")? < answers {
            ensure!(Instant::now() < end, "{} of {answers} answers were counted", dropped(&ready, "mirror_answer")?);
        }
        let of = |colour, what| counter(&ready, family, colour, what);
        assert_eq!(
            (of(Colour::Blue, "packets")?, of(Colour::Green, "mirrored")?),
            (sent.len() as u64, sent.len() as u64)
        );
        assert_eq!((of(Colour::Green, "packets")?, of(Colour::Blue, "mirrored")?), (0, 0));
        blue.forget();
        green.forget();
    }
    assert_eq!(dropped(&ready, "mirror_answer")?, answers);

    // Testers, and who asks the preview address, are answered by the idle colour, which gets their datagrams once.
    for [client, tester, vip] in ENDS {
        let tests = [
            Flow::open(lab, tester, SocketAddr::new(vip, PORT))?,
            Flow::open(lab, client, SocketAddr::new(vip, PREVIEW_PORT))?,
        ];
        let sent = talk(&tests, 5, Colour::Green)?;
        assert_eq!(green.all(), sent);
        assert_eq!(blue.all(), []);
        green.forget();
    }
    assert_eq!(dropped(&ready, "mirror_answer")?, answers);

    // A switch. Open flows stay, and are on the idle colour now: no copies. New ones have them on blue.
    ready.bgctl.run(&["switch", DEPLOYMENT, "green", "--on-switch", "drain"])?;
    for (family, old) in all_flows.iter().enumerate() {
        let sent_old = talk(old, 5, Colour::Blue)?;
        let sent = talk(&flows(lab, family)?, 5, Colour::Green)?;
        blue.wait_for(sent.len() + sent_old.len())?;
        let mut both = [sent_old, sent.clone()].concat();
        both.sort();
        assert_eq!((green.all(), blue.all()), (sent, both));
        blue.forget();
        green.forget();
    }
    // And a cut, in which they move.
    ready.bgctl.run(&["rollback", DEPLOYMENT, "--on-switch", "cut"])?;
    for flows in &all_flows {
        let sent = talk(flows, 5, Colour::Blue)?;
        green.wait_for(sent.len())?;
        assert_eq!((blue.all(), green.all()), (sent.clone(), sent));
        blue.forget();
        green.forget();
    }
    assert_eq!(dropped(&ready, "mirror_lost")?, 0);
    nobody_else_was_heard(&wire, lab)?;

    ready.neighbour_is_undisturbed()?;

    drop(green);
    for accident in accidents {
        if *accident == Mirror::Gone {
            for backend in lab.backends.iter().filter(|backend| backend.colour == Colour::Green) {
                backend.namespace.ip("link set eth0 down")?;
            }
        }
        for (family, flows) in all_flows.iter().enumerate() {
            let before = counter(&ready, family, Colour::Blue, "packets")?;
            let sent = talk(flows, DATAGRAMS, Colour::Blue)?;
            assert_eq!(blue.all(), sent, "{accident:?}");
            assert_eq!(counter(&ready, family, Colour::Blue, "packets")? - before, sent.len() as u64);
            blue.forget();
        }
        nobody_else_was_heard(&wire, lab)?;
    }

    // Without a mirror again.
    let copies = counter(&ready, 0, Colour::Green, "mirrored")?;
    let shown = ready.bgctl.run(&["show"])?;
    assert_eq!(shown.matches("mirror = \"idle\"").count(), 2, "{shown}");
    ready.bgctl.apply(&shown)?;
    assert_eq!(counter(&ready, 0, Colour::Green, "mirrored")?, copies, "nothing has changed");
    ready.bgctl.apply(&config(lab, mode, ""))?;
    assert!(!ready.bgctl.run(&["show"])?.contains("mirror"));
    talk(&all_flows[0], 3, Colour::Blue)?;
    let deployment = ready.bgctl.deployment(DEPLOYMENT)?;
    let service = deployment["services"].as_array().into_iter().flatten().find(|it| it["name"] == "log0");
    assert_eq!(service.context("the service")?["green"]["mirrored"], copies);
    Ok(())
}

#[test]
fn the_idle_colour_mirrors_the_live_one_with_native_xdp() -> Result<()> {
    mirrors(Lab::wire(Fabric::Switch)?, "native", "nat", &[Mirror::Closed, Mirror::Gone])
}

#[test]
fn the_idle_colour_mirrors_the_live_one_with_generic_xdp_behind_a_router() -> Result<()> {
    mirrors(Lab::wire(Fabric::Router)?, "generic", "nat", &[Mirror::Closed, Mirror::Gone])
}

#[test]
fn the_idle_colour_mirrors_the_live_one_with_tc() -> Result<()> {
    mirrors(Lab::bridge()?, "tc", "nat", &[Mirror::Closed, Mirror::Gone])
}

#[test]
fn the_idle_colour_mirrors_the_live_one_between_zones_with_tc() -> Result<()> {
    mirrors(Lab::zones(Offloads::Default)?, "tc", "local", &[Mirror::Closed])
}

#[test]
fn the_idle_colour_mirrors_the_live_one_between_zones_with_native_xdp() -> Result<()> {
    mirrors(Lab::zones(Offloads::Wire)?, "native", "local", &[Mirror::Closed])
}

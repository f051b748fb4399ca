//! The programs: loaded from an object of their own, attached by links that end with the process, and never pinned.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use aya::{
    Ebpf,
    maps::{Array, HashMap as BpfHashMap, MapData},
    programs::{
        LinkOrder, SchedClassifier, TcAttachType,
        links::{FdLink, LinkError},
        tc::SchedClassifierLink,
        tc::TcAttachOptions,
    },
    util::KernelVersion,
};
use aya_obj::generated::bpf_attach_type;
use bg_common::{CheckDevice, CheckKey, CheckReplyKey, CheckWay};
use rustix::net::{AddressFamily, SocketType, netdevice::index_to_name, socket};

use super::{
    target::Trouble,
    way::{Way, family},
};
use crate::sys::tcx_programs;

/// The object that the build script has embedded; empty if there was none.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/check.bpf.o"));

/// The programs' names: on the way out of the device, and where replies come in.
const OUT: &str = "check_out";
const IN: &str = "check_in";

/// How long a check stays registered after its end, so that the reset which ends its connection gets through.
const AFTERWARDS: Duration = Duration::from_secs(2);

/// The programs and their maps.
#[derive(Debug)]
pub(super) struct Programs {
    ebpf: Mutex<Ebpf>,
    /// The interfaces by which replies are heard.
    links: Mutex<HashMap<u32, Attached>>,
    checks: Mutex<Checks>,
    /// The link on the device.
    out: Attached,
}

/// A link, and its id.
#[derive(Debug)]
struct Attached {
    id: u32,
    _link: SchedClassifierLink,
}

#[derive(Debug)]
struct Checks {
    out: BpfHashMap<MapData, CheckKey, CheckWay>,
    replies: BpfHashMap<MapData, CheckReplyKey, u32>,
    /// The last check of each port, by its number, and what it hears. One that ends may not be the last any more.
    last: HashMap<CheckKey, (u64, CheckReplyKey)>,
    number: u64,
    /// Those that have ended, and when.
    ended: HashMap<CheckKey, (CheckReplyKey, Instant)>,
    swept: Instant,
}

/// The programs, loaded: this kernel takes them.
pub(super) struct Loaded(Ebpf);

impl Loaded {
    pub(super) fn load() -> Result<Self, String> {
        if OBJECT.is_empty() {
            return Err("this build has no programs for it".to_owned());
        }
        let running = KernelVersion::current().map_err(|error| error.to_string())?;
        if running < KernelVersion::new(6, 6, 0) {
            return Err("it takes Linux 6.6: before, programs of tc do not end with the process".to_owned());
        }
        let mut ebpf = Ebpf::load(OBJECT).map_err(|error| failed(&error))?;
        load(&mut ebpf, OUT)?;
        load(&mut ebpf, IN)?;
        Ok(Self(ebpf))
    }

    /// Attaches one to the device.
    pub(super) fn begin(self, name: &str, row: CheckDevice) -> Result<Programs, String> {
        let Self(mut ebpf) = self;
        let map = ebpf.map_mut("check_device").ok_or("no map")?;
        let mut device: Array<_, CheckDevice> = map.try_into().map_err(|error: aya::maps::MapError| failed(&error))?;
        device.set(0, row, 0).map_err(|error| failed(&error))?;
        let out = attach(&mut ebpf, OUT, name, TcAttachType::Egress)?;
        let checks = ebpf.take_map("checks").ok_or("no map")?;
        let replies = ebpf.take_map("check_replies").ok_or("no map")?;
        let checks = Checks {
            out: checks.try_into().map_err(|error: aya::maps::MapError| failed(&error))?,
            replies: replies.try_into().map_err(|error: aya::maps::MapError| failed(&error))?,
            last: HashMap::new(),
            number: 0,
            ended: HashMap::new(),
            swept: Instant::now(),
        };
        Ok(Programs { ebpf: Mutex::new(ebpf), links: Mutex::default(), checks: Mutex::new(checks), out })
    }
}

fn failed(error: &dyn std::error::Error) -> String {
    format!("its programs could not be loaded: {error}")
}

impl Programs {
    /// Looks whether somebody has detached them. Those on interfaces that are gone do nothing, and are forgotten.
    pub(super) fn look(&self, device: u32) -> Result<(), Trouble> {
        let is_attached = |ifindex, attached: &Attached, hook| {
            let programs = tcx_programs(ifindex, hook);
            let programs =
                programs.map_err(|error| Trouble::Unable(format!("its programs cannot be seen: {error}")))?;
            Ok(programs.iter().any(|program| program.link_id == Some(attached.id)))
        };
        if !is_attached(device, &self.out, bpf_attach_type::BPF_TCX_EGRESS)? {
            return Err(Trouble::Gone(format!("{OUT} was detached")));
        }
        let (mut links, mut lost) = (locked(&self.links), Vec::new());
        for (ifindex, attached) in links.iter() {
            if !is_attached(*ifindex, attached, bpf_attach_type::BPF_TCX_INGRESS)? {
                lost.push(*ifindex);
            }
        }
        let mut detached = None;
        for ifindex in lost {
            links.remove(&ifindex);
            detached = name_of(ifindex).ok().or(detached);
        }
        match detached {
            Some(name) => Err(Trouble::Unable(format!("{IN} was detached from {name}"))),
            None => Ok(()),
        }
    }

    /// Hears replies on an interface.
    pub(super) fn hear_on(&self, ifindex: u32) -> Result<(), String> {
        let mut links = locked(&self.links);
        if links.contains_key(&ifindex) {
            return Ok(());
        }
        let name = name_of(ifindex).map_err(|error| format!("interface {ifindex}: {error}"))?;
        let link = attach(&mut locked(&self.ebpf), IN, &name, TcAttachType::Ingress)?;
        links.insert(ifindex, link);
        Ok(())
    }

    /// Has the packets of a connection from and to these ports take this way.
    pub(super) fn register(programs: &Arc<Self>, way: &Way, [from, to]: [u16; 2]) -> Result<Registered, String> {
        let family = family(way.vip) as u32;
        let (key, reply) = (
            CheckKey { ports: ports(from, to), family },
            CheckReplyKey { vip: way.vip.into(), client: way.client.into(), ports: ports(to, from), family },
        );
        let mut checks = locked(&programs.checks);
        checks.sweep();
        checks.forget(&key);
        checks.replies.insert(reply, 1, 0).map_err(|error| error.to_string())?;
        checks.out.insert(key, way.row(), 0).map_err(|error| error.to_string())?;
        checks.number += 1;
        let number = checks.number;
        checks.last.insert(key, (number, reply));
        drop(checks);
        Ok(Registered { programs: programs.clone(), key, reply, number })
    }
}

impl Checks {
    /// Forgets an earlier check from this port.
    fn forget(&mut self, key: &CheckKey) {
        if let Some((reply, _)) = self.ended.remove(key) {
            let _ = self.replies.remove(&reply);
            let _ = self.out.remove(key);
            self.last.remove(key);
        }
    }

    /// Forgets checks that have ended some time ago.
    fn sweep(&mut self) {
        if self.swept.elapsed() < AFTERWARDS / 4 {
            return;
        }
        self.swept = Instant::now();
        let ended: Vec<_> = self.ended.iter().filter(|(_, (_, ended))| ended.elapsed() > AFTERWARDS).collect();
        let ended: Vec<_> = ended.into_iter().map(|(key, _)| *key).collect();
        ended.iter().for_each(|key| self.forget(key));
    }
}

/// A check whose packets find their way as long as this lives, and a moment longer.
#[derive(Debug)]
pub(crate) struct Registered {
    programs: Arc<Programs>,
    key: CheckKey,
    reply: CheckReplyKey,
    number: u64,
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut checks = locked(&self.programs.checks);
        match checks.last.get(&self.key).copied() {
            // Its socket was closed before this, and another check has taken the port.
            Some((last, reply)) if last != self.number => {
                if reply != self.reply {
                    let _ = checks.replies.remove(&self.reply);
                }
            }
            _ => drop(checks.ended.insert(self.key, (self.reply, Instant::now()))),
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn load<'a>(ebpf: &'a mut Ebpf, program: &str) -> Result<&'a mut SchedClassifier, String> {
    let failed = |error: &dyn std::error::Error| format!("{program} could not be loaded: {error}");
    let found = ebpf.program_mut(program).ok_or("no program")?;
    let found: &mut SchedClassifier = found.try_into().map_err(|error: aya::programs::ProgramError| failed(&error))?;
    if found.fd().is_err() {
        found.load().map_err(|error| failed(&error))?;
    }
    Ok(found)
}

fn attach(ebpf: &mut Ebpf, program: &str, interface: &str, to: TcAttachType) -> Result<Attached, String> {
    let loaded = load(ebpf, program)?;
    let failed = |error: &dyn std::error::Error| format!("{program} could not be attached to {interface}: {error}");
    // Programs of others may keep packets to themselves. What is taken before them is meant for nobody else.
    let order = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = loaded.attach_with_options(interface, to, order).map_err(|error| failed(&error))?;
    let link = loaded.take_link(id).map_err(|error| failed(&error))?;
    let held: &FdLink = (&link).try_into().map_err(|error: LinkError| failed(&error))?;
    let id = held.info().map_err(|error| failed(&error))?.id();
    Ok(Attached { id, _link: link })
}

fn name_of(ifindex: u32) -> io::Result<String> {
    Ok(index_to_name(socket(AddressFamily::INET, SocketType::DGRAM, None)?, ifindex)?)
}

/// Source and destination port as they stand on the wire.
fn ports(from: u16, to: u16) -> u32 {
    let ([a, b], [c, d]) = (from.to_be_bytes(), to.to_be_bytes());
    u32::from_ne_bytes([a, b, c, d])
}

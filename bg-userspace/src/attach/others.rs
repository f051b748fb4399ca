//! Programs of others on the hooks of an interface. They belong to other software, or to another instance of bgctl.
//!
//! A TCX hook runs its programs in order until one of them decides about the packet, and so does clsact with its filters.
//! An instance attaches its programs last, and they pass on each packet that is not for one of its VIPs. So instances with different
//! VIPs can share an interface. But if two instances have the same VIP, the second never sees its packets. A mistyped `--pin-root` has
//! this effect, so another instance's programs are refused unless the caller forces it.

use std::{collections::HashMap, fmt};

use aya::{
    maps::MapInfo,
    programs::{ProgramInfo, loaded_programs},
};
use aya_obj::generated::bpf_attach_type;
use serde::Serialize;

use super::{Hook, PinnedLink, tc};
use crate::{
    Error, Paths,
    loader::{INGRESS, TC_EGRESS, TC_INGRESS},
    map_specs::MAPS,
    net::{self, Interface},
    sys::{TcxProgram, tcx_programs, xdp_link},
};

/// A program that does not belong to this instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OtherProgram {
    /// Its hook: `xdp`, `xdp generic`, `tcx ingress`, `tcx egress`, `clsact ingress`, `clsact egress`.
    pub hook: &'static str,
    /// Its name; empty if it has none, or the caller may not read it.
    pub name: String,
    /// Its id in the kernel; 0 for a filter that is not a program.
    pub id: u32,
    /// The id of the link that holds it, if any.
    pub link: Option<u32>,
    /// Whether it belongs to another instance of bgctl.
    pub bgctl: bool,
    /// Whether it sees packets before this instance's program.
    #[serde(skip)]
    pub(crate) in_front: bool,
}

impl fmt::Display for OtherProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { hook, name, id, link, bgctl, .. } = self;
        let owner = if *bgctl { " of another bgctl instance" } else { "" };
        let hook = match *hook {
            XDP => "XDP",
            XDP_GENERIC => "generic XDP",
            hook => hook,
        };
        write!(f, "{hook} program \"{name}\"{owner} (id {id}")?;
        match link {
            Some(link) => write!(f, ", link {link})"),
            None => f.write_str(")"),
        }
    }
}

impl OtherProgram {
    /// A sentence about a program that runs before this instance's program on an interface.
    pub fn warning(&self, interface: &str) -> String {
        let end = if self.bgctl {
            "it takes every packet for its own VIPs, even if they are VIPs of this instance too"
        } else {
            "packets that it drops, redirects or finally accepts never reach this instance"
        };
        format!("{interface}: the {self} runs before this instance's program: {end}")
    }

    /// Whether it is an XDP program.
    pub(crate) fn is_xdp(&self) -> bool {
        matches!(self.hook, XDP | XDP_GENERIC)
    }

    /// The command that removes it.
    pub(crate) fn removal(&self, interface: &str) -> String {
        match (self.link, self.hook) {
            (Some(link), _) => format!("bpftool link detach id {link}"),
            (None, XDP) => format!("ip link set dev {interface} xdp off"),
            (None, XDP_GENERIC) => format!("ip link set dev {interface} xdpgeneric off"),
            (None, _) => format!("bpftool net show dev {interface} shows how it is attached"),
        }
    }
}

const XDP: &str = "xdp";
const XDP_GENERIC: &str = "xdp generic";

/// The programs on an interface that are not among `ours`, in the order in which they run.
pub(crate) fn others(paths: &Paths, interface: &Interface, ours: &[PinnedLink]) -> Result<Vec<OtherProgram>, Error> {
    let ours: Vec<_> = ours.iter().filter(|link| link.is_on(interface)).collect();
    let mut others = Vec::new();
    for attachment in &interface.xdp {
        let id = attachment.program_id;
        if !ours.iter().any(|link| matches!(link.hook, Hook::Xdp(_)) && link.program_id() == Some(id)) {
            let hook = if attachment.mode == net::XdpMode::Generic { XDP_GENERIC } else { XDP };
            // A caller that may not list links gets less information.
            let link = xdp_link(interface.index, id).unwrap_or(None);
            others.push(OtherProgram { link, in_front: true, ..OtherProgram::new(hook, id) });
        }
    }
    for (hook, place, attach_type) in [
        (Hook::TcIngress, "tcx ingress", bpf_attach_type::BPF_TCX_INGRESS),
        (Hook::TcEgress, "tcx egress", bpf_attach_type::BPF_TCX_EGRESS),
    ] {
        let is_ours = |program: &TcxProgram| {
            program.link_id.is_some() && ours.iter().any(|link| link.hook == hook && link.link_id() == program.link_id)
        };
        let programs = tcx_programs(interface.index, attach_type);
        let programs = programs.map_err(Error::io("ask for the TCX programs of", &interface.name))?;
        let own = programs.iter().position(is_ours);
        for (position, program) in programs.iter().enumerate().filter(|(_, program)| !is_ours(program)) {
            let in_front = own.is_some_and(|own| position < own);
            others.push(OtherProgram {
                link: program.link_id,
                in_front,
                ..OtherProgram::new(place, program.program_id)
            });
        }
    }
    for (hook, place) in [(Hook::ClsactIngress, "clsact ingress"), (Hook::ClsactEgress, "clsact egress")] {
        let own = ours.iter().find(|link| link.hook == hook);
        for filter in net::filters(interface.index, hook == Hook::ClsactEgress) {
            // A program that a killed attach has not pinned yet belongs to this instance too.
            if tc::is_our_place(&filter) && filter.program_id.is_some_and(|id| is_of_instance(paths, id)) {
                continue;
            }
            let in_front = own.is_some() && filter.priority < tc::PRIORITY;
            let name = filter.name.unwrap_or(filter.kind);
            let id = filter.program_id.unwrap_or(0);
            others.push(OtherProgram { name, in_front, ..OtherProgram::new(place, id) });
        }
    }
    describe(paths, &mut others);
    Ok(others)
}

impl OtherProgram {
    fn new(hook: &'static str, id: u32) -> Self {
        Self { hook, name: String::new(), id, link: None, bgctl: false, in_front: false }
    }
}

/// Fills in what the kernel says about the programs, as far as the caller may read it.
fn describe(paths: &Paths, others: &mut [OtherProgram]) {
    if others.is_empty() {
        return;
    }
    let programs: HashMap<u32, ProgramInfo> =
        loaded_programs().map_while(Result::ok).map(|program| (program.id(), program)).collect();
    for other in others {
        if let Some(program) = programs.get(&other.id) {
            if let Some(name) = program.name_as_str().filter(|name| !name.is_empty()) {
                other.name = name.to_owned();
            }
            // Somebody may have attached a program of this instance by hand.
            other.bgctl = is_bgctl(program) && !uses_maps_of(paths, program);
        }
    }
}

/// Whether a program uses this instance's maps.
pub(super) fn is_of_instance(paths: &Paths, program_id: u32) -> bool {
    let mut programs = loaded_programs().map_while(Result::ok);
    programs.find(|program| program.id() == program_id).is_some_and(|program| uses_maps_of(paths, &program))
}

fn uses_maps_of(paths: &Paths, program: &ProgramInfo) -> bool {
    let Ok(Some(maps)) = program.map_ids() else { return false };
    // Every program uses the map of event counters.
    MapInfo::from_pin(paths.map("events")).is_ok_and(|events| maps.contains(&events.id()))
}

/// Whether an instance of this or another version has loaded the program, judged by its name and the names of its maps.
fn is_bgctl(program: &ProgramInfo) -> bool {
    const ENOUGH: usize = 3;
    if !program.name_as_str().is_some_and(|name| [INGRESS, TC_INGRESS, TC_EGRESS].contains(&name)) {
        return false;
    }
    let maps = program.map_ids().ok().flatten().unwrap_or_default();
    let known = maps.into_iter().filter(|id| {
        let info = MapInfo::from_id(*id).ok();
        info.is_some_and(|info| MAPS.iter().any(|map| info.name_as_str() == Some(map.name)))
    });
    known.take(ENOUGH).count() == ENOUGH
}

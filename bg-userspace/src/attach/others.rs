//! Programs of others on the hooks of an interface. They belong to other software, or to another instance of bgctl.
//!
//! A TCX hook runs its programs in order until one of them decides about the packet, and so does clsact with its filters.
//! An instance attaches its programs last, and they pass on each packet that is not for one of its VIPs. So instances with different
//! VIPs can share an interface. But if two instances have the same VIP, the second never sees its packets. A mistyped `--pin-root` has
//! this effect, so another instance's programs are refused unless the caller forces it.

use std::collections::HashMap;

use aya::programs::{ProgramInfo, loaded_programs};
use aya_obj::generated::bpf_attach_type;

use super::{
    hook::Hook,
    other_program::{OtherProgram, XDP, XDP_GENERIC},
    owner::{is_bgctl, is_of_checks, is_of_instance, uses_maps_of},
    pinned::PinnedLink,
    tc,
};
use crate::{
    Error, Paths,
    net::{self, Interface},
    sys::{TcxProgram, tcx_programs, xdp_link},
};

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

/// Fills in what the kernel says about the programs, as far as the caller may read it. A controller's own programs for checks are left out.
fn describe(paths: &Paths, others: &mut Vec<OtherProgram>) {
    if others.is_empty() {
        return;
    }
    let programs: HashMap<u32, ProgramInfo> =
        loaded_programs().map_while(Result::ok).map(|program| (program.id(), program)).collect();
    // They are no obstacle, and whoever removed them would blind the controller.
    others.retain(|other| !programs.get(&other.id).is_some_and(is_of_checks));
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

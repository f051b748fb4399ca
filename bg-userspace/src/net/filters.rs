//! The filters of an interface's clsact qdisc.

use super::netlink::{self, attributes, text, u32_at};

// linux/pkt_sched.h, linux/rtnetlink.h, linux/pkt_cls.h.
const CLSACT_INGRESS: u32 = 0xffff_fff2;
const CLSACT_EGRESS: u32 = 0xffff_fff3;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_ID: u16 = 11;

/// A filter of clsact.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    /// `bpf`, `flower`, ...
    pub(crate) kind: String,
    /// Filters with a lower priority run first.
    pub(crate) priority: u16,
    /// Its number among the filters of one priority.
    pub(crate) handle: u32,
    /// The id of a `bpf` filter's program.
    pub(crate) program_id: Option<u32>,
    /// The name that its owner gave it.
    pub(crate) name: Option<String>,
}

/// The filters of one direction, in the order in which they run. Empty if there is no clsact qdisc.
pub(crate) fn filters(ifindex: u32, egress: bool) -> Vec<Filter> {
    // struct tcmsg: family, index, handle, parent, info.
    let mut request = [0; 20];
    request[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    request[12..16].copy_from_slice(&(if egress { CLSACT_EGRESS } else { CLSACT_INGRESS }).to_ne_bytes());
    let mut filters = Vec::new();
    // An error means that there is no such qdisc.
    let _ = netlink::dump(libc::RTM_GETTFILTER, &request, |payload| filters.extend(filter_of(payload)));
    filters.sort_by_key(|filter: &Filter| filter.priority);
    filters
}

/// The kernel also lists each priority, as a filter without a handle, which is not a filter.
fn filter_of(payload: &[u8]) -> Option<Filter> {
    let (handle, info) = (u32_at(payload, 8)?, u32_at(payload, 16)?);
    let mut filter = Filter { handle, priority: (info >> 16) as u16, ..Filter::default() };
    for (kind, value) in attributes(payload.get(20..)?) {
        match kind {
            TCA_KIND => filter.kind = text(value),
            TCA_OPTIONS => {
                for (kind, value) in attributes(value) {
                    match kind {
                        TCA_BPF_ID => filter.program_id = u32_at(value, 0),
                        TCA_BPF_NAME => filter.name = Some(text(value)),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    (handle != 0).then_some(filter)
}

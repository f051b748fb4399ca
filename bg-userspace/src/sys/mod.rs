//! System interfaces for which no crate has an API: a few commands of bpf(2), mapped maps, and work in a separate process. All `unsafe` code of the
//! control path is in this module.

mod apart;
mod bpf;
mod mapped;

pub(crate) use apart::{Unanswered, apart};
pub(crate) use bpf::{LinkInfo, TcxProgram, detach_link, link_info, lookup_batch, tcx_programs, xdp_link};
pub(crate) use mapped::Mapped;

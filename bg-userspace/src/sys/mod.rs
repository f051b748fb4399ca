//! What no crate has an API for: a few commands of bpf(2), and maps in memory. All `unsafe` code of the
//! control path is in this module.

mod bpf;
mod mapped;

pub(crate) use bpf::{LinkInfo, TcxProgram, link_info, lookup_batch, tcx_programs, xdp_link};
pub(crate) use mapped::Mapped;

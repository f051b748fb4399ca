//! What aya and the standard library have no API for: a few commands of bpf(2), maps in memory, a mount,
//! a lock. All `unsafe` code of the control path is in this module.

mod bpf;
mod lock;
mod mapped;
mod mount;

pub(crate) use bpf::{LinkInfo, link_info, lookup_batch};
pub(crate) use lock::try_lock;
pub(crate) use mapped::Mapped;
pub(crate) use mount::mount_bpf_file_system;

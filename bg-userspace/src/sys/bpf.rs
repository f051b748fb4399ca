//! Commands of bpf(2): reading and detaching links, listing the programs on a hook, and reading many map entries
//! in one call.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use aya_obj::generated::{bpf_attach_type, bpf_attr, bpf_cmd, bpf_link_info, bpf_link_type};
use bytemuck::Pod;

/// A pinned link, and where it is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LinkInfo {
    /// Its id in the kernel.
    pub(crate) id: u32,
    /// The id of its program.
    pub(crate) program_id: u32,
    /// The index of its interface; 0 if the interface is gone, and the link has no effect.
    pub(crate) ifindex: u32,
}

/// Reads information about a pinned XDP or TCX link.
pub(crate) fn link_info(path: &Path) -> io::Result<LinkInfo> {
    info_of(&object(path)?)
}

/// Detaches a pinned link from its interface before this returns. If only the pin were removed,
/// the kernel would detach the link some time later.
pub(crate) fn detach_link(path: &Path) -> io::Result<()> {
    let link = object(path)?;
    let mut attr = empty_attr();
    attr.link_detach.link_fd = link.as_raw_fd() as u32;
    // SAFETY: no pointers are passed.
    unsafe { bpf(bpf_cmd::BPF_LINK_DETACH, &mut attr) }.map(drop)
}

/// The link that holds this XDP program on this interface, if a link does.
pub(crate) fn xdp_link(ifindex: u32, program_id: u32) -> io::Result<Option<u32>> {
    let mut attr = empty_attr();
    loop {
        // SAFETY: no pointers are passed.
        match unsafe { bpf(bpf_cmd::BPF_LINK_GET_NEXT_ID, &mut attr) } {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
            result => result?,
        };
        // SAFETY: the number that the command above has written.
        let id = unsafe { attr.__bindgen_anon_6.next_id };
        attr.__bindgen_anon_6.__bindgen_anon_1.start_id = id;
        let mut by_id = empty_attr();
        by_id.__bindgen_anon_6.__bindgen_anon_1.link_id = id;
        // SAFETY: no pointers are passed.
        let fd = match unsafe { bpf(bpf_cmd::BPF_LINK_GET_FD_BY_ID, &mut by_id) } {
            // The link has been removed meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => continue,
            result => result?,
        };
        // SAFETY: the call has just opened it, and nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // Links of other kinds are not attached to an interface.
        if info_of(&fd).is_ok_and(|info| (info.ifindex, info.program_id) == (ifindex, program_id)) {
            return Ok(Some(id));
        }
    }
}

fn info_of(fd: &OwnedFd) -> io::Result<LinkInfo> {
    // SAFETY: plain old data, for which zeros are valid.
    let mut info: bpf_link_info = unsafe { std::mem::zeroed() };
    let mut attr = empty_attr();
    attr.info.bpf_fd = fd.as_raw_fd() as u32;
    attr.info.info_len = size_of::<bpf_link_info>() as u32;
    attr.info.info = &raw mut info as u64;
    // SAFETY: `info` is `info_len` bytes long and outlives the call.
    unsafe { bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)? };
    let ifindex = if info.type_ == bpf_link_type::BPF_LINK_TYPE_XDP as u32 {
        // SAFETY: the kernel has filled in the member that belongs to this type.
        unsafe { info.__bindgen_anon_1.xdp.ifindex }
    } else if info.type_ == bpf_link_type::BPF_LINK_TYPE_TCX as u32 {
        // SAFETY: as above.
        unsafe { info.__bindgen_anon_1.tcx.ifindex }
    } else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a link of type {}", info.type_)));
    };
    Ok(LinkInfo { id: info.id, program_id: info.prog_id, ifindex })
}

/// A program on a TCX hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TcxProgram {
    /// Its id in the kernel.
    pub(crate) program_id: u32,
    /// The id of the link that holds it, if any.
    pub(crate) link_id: Option<u32>,
}

/// The programs on one TCX hook of an interface in the caller's network namespace, in the order in which they run.
/// Empty before Linux 6.6, which has no such hook, and for an interface that was removed meanwhile.
pub(crate) fn tcx_programs(ifindex: u32, hook: bpf_attach_type) -> io::Result<Vec<TcxProgram>> {
    // The kernel allows no more on one hook.
    const MOST: usize = 64;
    let mut programs = [0_u32; MOST];
    let mut links = [0_u32; MOST];
    let mut attr = empty_attr();
    attr.query.__bindgen_anon_1.target_ifindex = ifindex;
    attr.query.attach_type = hook as u32;
    attr.query.prog_ids = programs.as_mut_ptr() as u64;
    attr.query.link_ids = links.as_mut_ptr() as u64;
    attr.query.__bindgen_anon_2.prog_cnt = MOST as u32;
    // SAFETY: both arrays hold as many elements as are told, and outlive the call.
    match unsafe { bpf(bpf_cmd::BPF_PROG_QUERY, &mut attr) } {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENODEV)) => return Ok(Vec::new()),
        result => result?,
    };
    // SAFETY: `query` is the member that this command uses, and the count the only one of its union.
    let count = unsafe { attr.query.__bindgen_anon_2.prog_cnt } as usize;
    let both = programs.into_iter().zip(links).take(count);
    Ok(both.map(|(program_id, link)| TcxProgram { program_id, link_id: (link != 0).then_some(link) }).collect())
}

/// All entries of a hash map, read in batches, which takes two orders of magnitude fewer system calls than reading
/// each entry. Entries that are added or removed meanwhile may be missed, but none is torn.
pub(crate) fn lookup_batch<K: Pod, V: Pod>(map: BorrowedFd<'_>, mut each: impl FnMut(K, V)) -> io::Result<()> {
    // If a bucket does not fit, the kernel returns ENOSPC. Buckets are far shorter than this.
    let mut capacity = 4096;
    let mut position = 0_u64;
    let mut is_first = true;
    loop {
        let mut keys = vec![K::zeroed(); capacity];
        let mut values = vec![V::zeroed(); capacity];
        let mut next = 0_u64;
        let mut attr = empty_attr();
        attr.batch.in_batch = if is_first { 0 } else { &raw const position as u64 };
        attr.batch.out_batch = &raw mut next as u64;
        attr.batch.keys = keys.as_mut_ptr() as u64;
        attr.batch.values = values.as_mut_ptr() as u64;
        attr.batch.count = capacity as u32;
        attr.batch.map_fd = map.as_raw_fd() as u32;
        // SAFETY: both arrays hold `count` elements of the map's key and value size, which the caller's
        // types have; a position is a bucket's number, four bytes. All outlive the call.
        let result = unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr) };
        let at_end = match result {
            Ok(_) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                capacity *= 2;
                continue;
            }
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => continue,
            Err(error) => return Err(error),
        };
        // SAFETY: `batch` is the member that this command uses.
        let count = unsafe { attr.batch.count } as usize;
        for (key, value) in keys.into_iter().zip(values).take(count) {
            each(key, value);
        }
        if at_end {
            return Ok(());
        }
        (position, is_first) = (next, false);
    }
}

fn object(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = empty_attr();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    // SAFETY: `path` ends in a zero byte and outlives the call.
    let fd = unsafe { bpf(bpf_cmd::BPF_OBJ_GET, &mut attr)? };
    // SAFETY: the call has just opened it, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn empty_attr() -> bpf_attr {
    // SAFETY: plain old data, for which zeros are valid.
    unsafe { std::mem::zeroed() }
}

/// # Safety
/// Each pointer in `attr` that the command uses is valid for what it does with it.
unsafe fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i32> {
    // SAFETY: `attr` is of the size told; the caller vouches for the pointers in it.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command as u32, std::ptr::from_mut(attr), size_of::<bpf_attr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_has_gone_has_no_programs() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: this test asks for BPF programs, run it as root");
            return;
        }
        assert_eq!(tcx_programs(i32::MAX as u32, bpf_attach_type::BPF_TCX_INGRESS).unwrap(), []);
    }
}

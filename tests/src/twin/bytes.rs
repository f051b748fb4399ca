//! All that the maps of a loaded object hold, as bytes.

use anyhow::{Context as _, Result};
use aya::maps::{Map, MapData, MapInfo};
use aya_obj::generated::{BPF_F_MMAPABLE, bpf_attr, bpf_cmd};
use memmap2::MmapOptions;
use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _},
};

/// The bytes of a map; `None` for a map to which no program can write, and, if not `all` are asked for, for those that take a
/// system call an entry or two.
pub(super) fn bytes_of(map: &Map, all: bool) -> Result<Option<Vec<u8>>> {
    match map {
        Map::Array(data) if is_mappable(data)? => Ok(Some(mapped(data)?)),
        _ if !all => Ok(None),
        Map::Array(data) => Ok(Some(batch(data, 1)?)),
        Map::HashMap(data) => Ok(Some(batch(data, 1)?)),
        Map::PerCpuArray(data) => {
            let cpus = aya::util::nr_cpus().map_err(|(_, error)| error).context("possible CPUs")?;
            Ok(Some(batch(data, cpus)?))
        }
        // Tries have no batch look-up on old kernels, and no program updates one. Maps of devices, programs and maps are for
        // user space to write.
        _ => Ok(None),
    }
}

fn info(data: &MapData) -> Result<MapInfo> {
    Ok(data.info()?)
}

fn is_mappable(data: &MapData) -> Result<bool> {
    Ok(info(data)?.map_flags() & BPF_F_MMAPABLE != 0)
}

fn mapped(data: &MapData) -> Result<Vec<u8>> {
    let info = info(data)?;
    let length = info.max_entries() as usize * (info.value_size() as usize).next_multiple_of(8);
    let memory = MmapOptions::new().len(length).map_raw_read_only(data.fd().as_fd().as_raw_fd())?;
    let mut bytes = vec![0; length];
    // SAFETY: the mapping is so long, and no program runs.
    unsafe { std::ptr::copy_nonoverlapping(memory.as_ptr(), bytes.as_mut_ptr(), length) };
    Ok(bytes)
}

/// Keys and values of all entries. `copies`: values of each entry.
fn batch(data: &MapData, copies: usize) -> Result<Vec<u8>> {
    let info = info(data)?;
    let count = info.max_entries();
    let value = if copies == 1 { info.value_size() as usize } else { (info.value_size() as usize).next_multiple_of(8) };
    let mut keys = vec![0_u8; count as usize * info.key_size() as usize];
    let mut values = vec![0_u8; count as usize * copies * value];
    let mut next = [0_u8; 64];
    let mut attr = empty_attr();
    attr.batch.out_batch = next.as_mut_ptr() as u64;
    attr.batch.keys = keys.as_mut_ptr() as u64;
    attr.batch.values = values.as_mut_ptr() as u64;
    attr.batch.count = count;
    attr.batch.map_fd = data.fd().as_fd().as_raw_fd() as u32;
    // SAFETY: all buffers are as long as the map's sizes demand, and outlive the call.
    match unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr) } {
        Ok(_) => {}
        // The end of the map is no error.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
            // SAFETY: the member that this command uses.
            let found = unsafe { attr.batch.count };
            anyhow::ensure!(found <= count);
        }
        Err(error) => return Err(error.into()),
    }
    keys.extend(values);
    Ok(keys)
}

/// No argument of bpf(2) is set.
pub(super) fn empty_attr() -> bpf_attr {
    // SAFETY: plain old data, for which zeros are valid.
    unsafe { std::mem::zeroed() }
}

/// bpf(2).
///
/// # Safety
///
/// Each pointer in `attr` that the command uses must be valid for what it does with it.
pub(super) unsafe fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i32> {
    // SAFETY: `attr` is of the size told; the caller vouches for the pointers in it.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command as u32, &raw mut *attr, size_of::<bpf_attr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}
